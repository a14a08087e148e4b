"""Mode scaling: whether many devices do the work of one, and no more.

Forward and backward pass of a ViT-Ti/16 MAE at 224 pixels: eight simulated devices with
a batch of b / 8 each, and one with b. All share this machine's cores, so that what is
compared is processor time and counted FLOPs, not speed. One CPU device would take
attention's backward pass in a loop, which XLA counts once: FLOPs are those of both
without it.

  python -m launch.benchmarks.scaling DEVICES BATCH
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys

import jax
import numpy as np

from configs import mae_vitb16
from launch.benchmarks import measure, worker
from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import attention
from pacx_jax.run import profiling, setup

DEVICES = 8
MOST_FLOPS = 1.02  # of eight devices, in those of one
AIM_TIME = 1.3
ONE, MANY = "one device", "eight devices"


def run(options: argparse.Namespace) -> dict:
    """The mode's table and figures.

    Raises:
      PacxError: a batch that eight devices do not share evenly.
    """
    if options.batch % DEVICES or not options.batch:
        raise PacxError(f"--batch {options.batch}: give a multiple of {DEVICES}")
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, n in ((ONE, 1), (MANY, DEVICES)):
            flags = f"--xla_force_host_platform_device_count={n}"
            env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
            arguments = (str(n), str(options.batch))
            workers[name] = worker.Worker(__name__, *arguments, env=env)
            stack.callback(workers[name].close)
        steps = options.steps or 3
        taken = {k: functools.partial(w.turn, steps) for k, w in workers.items()}
        turns = measure.in_turns(taken, options.repeats)
        if options.profile:
            workers[MANY].profile(options.profile)
        flops = {name: each.about["flops"] for name, each in workers.items()}
    return result(options, turns, flops)


def result(options: argparse.Namespace, turns: dict, flops: dict[str, float]) -> dict:
    """The JSON's contents, and the table; speed and memory are of eight devices.

    Args:
      turns, flops: of ONE and MANY.
    """
    ratio = flops[MANY] / flops[ONE]
    used = [
        one["images_per_cpu_s"] / many["images_per_cpu_s"]
        for one, many in zip(turns[ONE], turns[MANY], strict=True)
    ]
    time = measure.spread(used)
    notes = [
        f"{flops[MANY] / 1e9:,.2f} GFLOP a step, {ratio:.4f} of one device's (at most "
        f"{MOST_FLOPS})",
        f"processor time {measure.cell(time, 1, 2)} of one device's (aim {AIM_TIME})",
    ]
    more = {
        "devices": DEVICES,
        "device_kind": "cpu",
        "flops": flops,
        "flops_ratio": ratio,
        "flops_within_2_percent": abs(ratio - 1) <= MOST_FLOPS - 1,
        "processor_time_ratio": time,
        "processor_time_within_aim": time["median"] <= AIM_TIME,
    }
    return measure.result(
        options, turns, MANY, pairs=[(MANY, ONE)], notes=notes, **more
    )


def recipe():
    """The MAE that is measured: ViT-Ti/16 at 224 pixels, the published decoder."""
    config = mae_vitb16.get_config()
    config.model.variant, config.dtype = "Ti", "float32"
    return config


def gradient_step(config, devices: int, batch: int):
    """(compiled forward and backward pass, its arguments) on `devices` of this process.

    The optimizer is left out: every device does all of it.
    """
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


class Devices:
    """The step of so many devices; see worker.py."""

    def __init__(self, devices: int, batch: int):
        self._batch = batch
        self._step, self._args = gradient_step(recipe(), devices, batch)
        attention.LARGE_SCORES = math.inf  # the timed step is compiled already
        counted, _ = gradient_step(recipe(), devices, batch)
        self.about = {"flops": counted.cost_analysis()["flops"] * devices}

    def turn(self, steps: int) -> measure.Turn:
        """Its figures of so many steps."""
        return measure.timed(self._run, steps, self._batch)

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(self._step(*self._args))

    def profile(self, folder: str) -> None:
        """Writes a trace of a step."""
        with profiling.trace(folder):
            self._run(1)


if __name__ == "__main__":
    worker.serve(lambda: Devices(*map(int, sys.argv[1:])), warm_up=1)
