"""`bench.py mae|distill|ecg|embed --input=drawn|DIR`: real input, by the real loop.

A run as `python -m pacx_jax.main` makes it: the recipe, the input pipeline, the loop
with its metrics and checkpoints, in a workdir that is thrown away. It logs every
`--steps` steps; what lies between two rows is a turn, and the first, in which it
compiles, does not count. With --saves it saves after every second turn, so that turns
with the writing of a checkpoint under them and turns without alternate.

embed reads and embeds files as `python -m pacx_jax.embed` does; a turn is `--steps`
batches of them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import logging

from launch.benchmarks import flops, loop_data, measure, recipes
from pacx_jax import embed, main
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.input import folders
from pacx_jax.run import host_memory, profiling

DEFAULT_INTERVAL = 500  # steps between two saves, of which a save's cost is a share
LOG_EVERY = 50  # the recipes'
PROFILED = 3  # steps, of the first turn, which does not count


def run(options: argparse.Namespace) -> dict:
    """Measures the loop; returns what goes into the JSON, and `table`."""
    host_memory.keep_freed()
    logging.set_verbosity(logging.WARNING)
    asked = vars(options) | {"train": True}
    config = recipes.make_config(asked)
    work = recipes.describe(config, asked)
    steps = options.steps or 5
    with tempfile.TemporaryDirectory(prefix="pacx_bench_") as folder:
        folder = pathlib.Path(folder)
        loop_data.point_at(config, options, folder)
        if options.mode == "embed":
            turns = _embed(config, steps, options, folder)
        else:
            turns = _loop(config, steps, options, folder)
    return _result(options, config, work, steps, turns)


def _loop(config, steps: int, options, folder: pathlib.Path) -> list[measure.Turn]:
    """One run; the turns are between the rows of its timings."""
    c = config
    c.total_steps = steps * (options.repeats + 1)
    c.log_every, c.eval_every = steps, c.total_steps
    c.save_every = 2 * steps if options.saves else c.total_steps
    c.best, c.export = "", "latest"
    c.model_init = ""
    c.profile_steps = PROFILED if options.profile else 0
    if c.objective == "distill":
        loop_data.write_starts(c, folder)
    workdir = folder / "run"
    main.run(c, str(workdir))
    if options.profile:
        shutil.copytree(workdir / "profile", options.profile, dirs_exist_ok=True)
    lines = (workdir / "timings.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "seconds" in row]
    batch, turns = c.global_batch_size, []
    for i, (before, row) in enumerate(zip(rows, rows[1:], strict=False)):
        lost = {k: row[k] - before[k] for k in ("data_stall", "checkpoint", "metrics")}
        turns.append(
            {
                "step_s": row["seconds"] / steps,
                "images_per_s": batch * steps / row["seconds"],
                "data_stall_share": lost["data_stall"] / row["seconds"],
                "log_s": lost["metrics"],
                "save_blocked_s": lost["checkpoint"],
                "saved": options.saves and i % 2 == 1,
            }
        )
    return turns


def _embed(config, steps: int, options, folder: pathlib.Path):
    """Passes over as many files as `steps` batches take."""
    batch, model = config.global_batch_size, recipes.image_encoder(config)
    root = pathlib.Path(config.data.path)
    files = folders.list_images(str(root), "--input")
    chosen = folder / "chosen"
    chosen.mkdir()
    for i in range(batch * steps):
        file = (root / files[i % len(files)]).resolve()
        (chosen / f"{i:06d}{file.suffix}").symlink_to(file)
    size = config.data.image_size
    init = jax.jit(model.module().init)
    params = init(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    model = dataclasses.replace(model, params=params)
    encoder = Encoder(model, batch, config.dtype, config.num_devices)

    def turn() -> measure.Turn:
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            embed.embed_folder(encoder, str(chosen), False)
        seconds = time.perf_counter() - start
        return {"step_s": seconds / steps, "images_per_s": batch * steps / seconds}

    turns = [turn() for _ in range(options.repeats + 1)][1:]  # the first compiles
    if options.profile:
        with profiling.trace(options.profile):
            turn()
    return turns


def _result(options, config, work: dict, steps: int, turns: list) -> dict:
    need = flops.of(work if options.mode != "ecg" else work | {"train": True})
    figures = {
        name: measure.spread([t.get(name) for t in turns])
        for name in ("step_s", "images_per_s", "data_stall_share", "log_s")
    }
    n = config.num_devices or jax.device_count()
    device = jax.devices()[0]
    rate = figures["images_per_s"]["median"] / n
    step = figures["step_s"]["median"]
    log = figures["log_s"] and figures["log_s"]["median"] / (LOG_EVERY * step)
    result = {
        "mode": options.mode,
        "images_per_s": figures["images_per_s"]["median"],
        "images_per_s_per_device": round(rate, 4),
        "ratio": None,  # the peer has synthetic input
        **flops.utilisation(
            rate * need.step, device.device_kind, config.dtype, options.peak_flops
        ),
        "peak_mib": measure.peak_mib(),
        "batch": config.global_batch_size,
        "steps": steps,
        "repeats": options.repeats,
        "dtype": config.dtype,
        "variant": options.variant,
        "input": options.input,
        "backend": jax.default_backend(),
        "device_kind": device.device_kind,
        "devices": n,
        "cores": measure.cores(),
        "load": round(os.getloadavg()[0], 2),
        "step_s": figures["step_s"],
        "images_per_s_spread": figures["images_per_s"],
        "data_stall_share": figures["data_stall_share"],
        "log_s": figures["log_s"],
        "log_share": log and round(log, 5),
        "log_every": LOG_EVERY,
        "saves": cost_of_saves(turns, steps) if options.saves else None,
        "gflop_step": round(need.step / 1e9, 4),
        "set": options.set,
        "autotune_level": measure.autotune_level(),
        "versions": measure.versions(),
    }
    return {"table": list(_table(result)), **result}


def cost_of_saves(turns: list, steps: int) -> dict:
    """What a save costs: a turn with one against the turn before it, without."""
    pairs = list(zip(turns[0::2], turns[1::2], strict=False))
    longer = [(b["step_s"] - a["step_s"]) * steps for a, b in pairs]
    step = min(t["step_s"] for t in turns if not t["saved"])
    extra, blocked = (
        measure.spread(x) for x in (longer, [b["save_blocked_s"] for _, b in pairs])
    )
    return {
        "seconds": extra,
        "blocked_seconds": blocked,
        "interval": DEFAULT_INTERVAL,
        "share": round(extra["median"] / (DEFAULT_INTERVAL * step), 5),
        "blocked_share": round(blocked["median"] / (DEFAULT_INTERVAL * step), 5),
    }


def _table(r: dict):
    yield (
        f"{r['mode']} on {r['input']}: {r['devices']} x {r['device_kind']}, "
        f"{r['cores']} cores, load {r['load']}, batch {r['batch']}, {r['dtype']}, "
        f"variant {r['variant']}, {r['repeats']} turns of {r['steps']} steps"
    )
    yield f"step, ms               {measure.cell(r['step_s'], 1000, 1)}"
    yield f"images/s               {measure.cell(r['images_per_s_spread'], digits=2)}"
    yield f"utilisation            {flops.as_text(r)}"
    if r["backend"] == "gpu":
        yield measure.software(r)
    yield f"data stall, % of time  {measure.cell(r['data_stall_share'], 100, 2)}"
    if r["log_share"] is not None:
        yield (
            f"a logged row, ms       {measure.cell(r['log_s'], 1000, 2)}: "
            f"{100 * r['log_share']:.3f}% of the time at one every {r['log_every']} "
            "steps"
        )
    if r["saves"]:
        s = r["saves"]
        shares = f"{100 * s['share']:.2f}% and {100 * s['blocked_share']:.2f}%"
        longer, held = (
            measure.cell(s[name], digits=3) for name in ("seconds", "blocked_seconds")
        )
        yield (
            f"a save, s              {longer} longer, the loop held up {held}: "
            f"{shares} of the time at one every {s['interval']} steps"
        )
