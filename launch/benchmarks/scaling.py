"""Mode scaling: whether many devices do the work of one, and no more.

Forward and backward pass of a ViT-Ti/16 MAE at 224 pixels: eight simulated devices with
a batch of b / 8 each, and one with b. All share this machine's cores, so that what is
compared is processor time and counted FLOPs, not speed. One CPU device would take
attention's backward pass in a loop, which XLA counts once: FLOPs are those of both
without it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

from launch.benchmarks import measure
from pacx_jax.errors import PacxError

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICES = 8
DTYPE = "float32"
MOST_FLOPS = 1.02  # of eight devices, in those of one
AIM_TIME = 1.3


def run(options: argparse.Namespace) -> dict:
    """The mode's table and figures.

    Raises:
      PacxError: a batch that eight devices do not share evenly.
    """
    batch, steps = options.batch or 64, options.steps or 3
    if batch % DEVICES:
        raise PacxError(f"--batch {batch}: give a multiple of {DEVICES}")
    workers = {n: Worker(n, batch, steps) for n in (1, DEVICES)}
    try:
        turns = measure.in_turns(
            {str(n): worker.turn for n, worker in workers.items()}, options.repeats
        )
        flops = {n: worker.flops for n, worker in workers.items()}
        if options.profile:
            workers[DEVICES].profile(options.profile)
    finally:
        for worker in workers.values():
            worker.close()
    return _result(options, batch, steps, turns, flops)


def _result(
    options: argparse.Namespace, batch: int, steps: int, turns: dict, flops: dict
) -> dict:
    """The JSON's contents, and the table; speed and memory are of eight devices."""
    one, many = turns["1"], turns[str(DEVICES)]
    ratio = measure.ratio(many, one, "processor_seconds")
    flops_ratio = flops[DEVICES] / flops[1]
    table = ["| devices | batch | GFLOP a step | processor s a step | wall s a step |"]
    table.append("|---:|---:|---:|---:|---:|")
    for n, found in ((1, one), (DEVICES, many)):
        seconds = [
            statistics.median(t[k] for t in found)
            for k in ("processor_seconds", "wall_seconds")
        ]
        row = f"| {n} | {n} x {batch // n} | {flops[n] / 1e9:.2f} | "
        table.append(f"{row}{seconds[0]:.3f} | {seconds[1]:.3f} |")
    table.append(
        f"FLOPs {flops_ratio:.4f} of one device's (at most {MOST_FLOPS}), processor "
        f"time {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}; aim "
        f"{AIM_TIME})"
    )
    return {
        "table": table,
        "mode": "scaling",
        "images_per_s": round(
            batch / statistics.median(t["wall_seconds"] for t in many), 4
        ),
        "ratio": None,  # there is no peer
        "mfu": None,  # eight devices share the cores of one
        "peak_mib": measure.largest([t["peak_mib"] for t in many]),
        "batch": batch,
        "steps": steps,
        "repeats": options.repeats,
        "dtype": DTYPE,
        "devices": DEVICES,
        "flops": {str(n): value for n, value in flops.items()},
        "flops_ratio": flops_ratio,
        "flops_within_2_percent": abs(flops_ratio - 1) <= MOST_FLOPS - 1,
        "processor_time_ratio": ratio,
        "processor_time_within_aim": ratio["median"] <= AIM_TIME,
        "turns": turns,
        "cores": measure.cores(),
        "versions": measure.versions(),
    }


class Worker:
    """A process with its own number of devices, which takes turns."""

    def __init__(self, devices: int, batch: int, steps: int):
        flags = f"--xla_force_host_platform_device_count={devices}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(devices), str(batch), str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags),
        )
        self.flops = self._answer()["flops"]

    def turn(self) -> measure.Turn:
        """Seconds a step, of the clock and of the processor, and its memory so far."""
        return self._ask("turn")

    def profile(self, folder: str) -> None:
        """Writes a trace of a turn into a folder."""
        self._ask(f"profile {os.path.abspath(folder)}")

    def _ask(self, line: str) -> dict:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise PacxError(f"a process of it ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def recipe():
    """The MAE that is measured: ViT-Ti/16 at 224 pixels, the published decoder."""
    from configs import mae_vitb16

    config = mae_vitb16.get_config()
    config.model.variant, config.dtype = "Ti", DTYPE
    return config


def gradient_step(config, devices: int, batch: int):
    """(compiled forward and backward pass, its arguments) on `devices` of this process.

    The optimizer is left out: every device does all of it.
    """
    import jax
    import numpy as np

    from pacx_jax import sharding
    from pacx_jax.run import setup

    config.num_devices, config.global_batch_size = devices, batch
    mesh, objective = setup.place(config)
    everywhere = sharding.replicated(mesh)
    rows = sharding.batch_sharding(mesh)

    def loss(params, batch, key):
        with sharding.tracing(mesh):
            return objective.loss(params, batch, key, train=True)[0]

    step = jax.jit(
        jax.value_and_grad(loss),
        in_shardings=(everywhere, rows, everywhere),
        out_shardings=everywhere,
    )
    side = config.data.image_size
    image = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    key = jax.random.key(0)
    args = (
        jax.jit(objective.init, out_shardings=everywhere)(key),
        sharding.put_batch({"image": image}, mesh),
        jax.device_put(key, everywhere),
    )
    return step.lower(*args).compile(), args


def _serve(devices: int, batch: int, steps: int) -> None:
    import jax

    from pacx_jax.models import attention
    from pacx_jax.run import profiling

    compiled, args = gradient_step(recipe(), devices, batch)
    jax.block_until_ready(compiled(*args))
    attention.LARGE_SCORES = math.inf  # the timed step is compiled already
    counted, _ = gradient_step(recipe(), devices, batch)
    flops = counted.cost_analysis()["flops"] * devices
    print(json.dumps({"flops": flops}), flush=True)
    for line in sys.stdin:
        what, _, folder = line.strip().partition(" ")
        trace = contextlib.nullcontext()
        if what == "profile":
            trace = profiling.trace(folder)
        with trace:
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(steps):
                jax.block_until_ready(compiled(*args))
            found = {
                "processor_seconds": (time.process_time() - processor) / steps,
                "wall_seconds": (time.perf_counter() - wall) / steps,
                "peak_mib": measure.peak_mib(),
            }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
