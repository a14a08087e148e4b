"""`bench.py mae --input=drawn|DIR`: real input, by the real loop.

A run as `python -m pacx_jax.main` makes it, in a workdir that is thrown away. It logs
every `--steps` steps; what lies between two rows is a turn, and the first, in which it
compiles, does not count. With --saves it saves after every second turn.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl import logging

from launch.benchmarks import flops, measure, ours, recipes
from launch.benchmarks.worker import ROOT
from pacx_jax import main
from pacx_jax.errors import PacxError
from pacx_jax.input import prepared
from pacx_jax.run import host_memory

INTERVAL = 500  # steps between two saves, of which a save's cost is a share
LOG_EVERY = 50  # the recipe's


def run(options: argparse.Namespace) -> dict:
    """Measures the loop; returns what goes into the JSON, and `table`."""
    host_memory.keep_freed()
    logging.set_verbosity(logging.WARNING)
    options.steps = options.steps or 5
    config = recipes.make_config(vars(options))
    work = recipes.describe(config, vars(options))
    with tempfile.TemporaryDirectory(prefix="pacx_bench_") as folder:
        _point_at_data(config, options, pathlib.Path(folder))
        turns = _loop(config, options, pathlib.Path(folder) / "run")
    return result(options, turns, ours.about(config, work))


def _point_at_data(config, options, folder: pathlib.Path) -> None:
    """Sets config.data to what --input says, and draws it in `folder` if it says so."""
    data, path = config.data, options.input
    if path == "drawn":  # by a process that leaves neither memory nor threads behind
        path = str(folder / "films")
        draw = [sys.executable, "-m", "launch.benchmarks.input_pipeline", path]
        if subprocess.run(draw, cwd=ROOT, check=False).returncode:
            raise PacxError("X-rays cannot be drawn: what was said stands above")
    elif not pathlib.Path(path).is_dir():
        raise PacxError(f"--input={path}: no such folder; or give synthetic or drawn")
    is_prepared = (pathlib.Path(path) / prepared.FILE).is_file()
    data.source, data.path = "prepared" if is_prepared else "folder", path
    data.simulated, data.cache = options.input == "drawn", False
    if not is_prepared:
        data.val_fraction = 0.02  # the loop ends with an evaluation, which is not timed
    if options.workers > 0:
        data.workers = options.workers


def _loop(config, options, workdir: pathlib.Path) -> list[measure.Turn]:
    """One run; the turns are between the rows of its timings."""
    c, steps = config, options.steps
    c.total_steps = steps * (options.repeats + 1)
    c.log_every, c.eval_every = steps, c.total_steps
    c.save_every = 2 * steps if options.saves else c.total_steps
    c.best, c.export, c.model_init = "", "latest", ""
    c.profile_steps = ours.PROFILED if options.profile else 0
    main.run(c, str(workdir))
    if options.profile:
        shutil.copytree(workdir / "profile", options.profile, dirs_exist_ok=True)
    lines = (workdir / "timings.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "seconds" in row]
    turns = []
    for before, row in zip(rows, rows[1:], strict=False):
        lost = {k: row[k] - before[k] for k in ("data_stall", "checkpoint", "metrics")}
        turns.append(
            {
                "step_s": row["seconds"] / steps,
                "images_per_s": c.global_batch_size * steps / row["seconds"],
                "data_stall_share": lost["data_stall"] / row["seconds"],
                "log_s": lost["metrics"],
                "save_blocked_s": lost["checkpoint"],
            }
        )
    return turns


def result(options, turns: list[measure.Turn], about: dict) -> dict:
    """The JSON's contents, and the table; `about` is of `ours.about`."""
    log_s, step_s = (
        measure.spread([t[f] for t in turns])["median"] for f in ("log_s", "step_s")
    )
    log = log_s / (LOG_EVERY * step_s)
    notes = [
        f"logging takes {100 * log:.3f}% of the time at a row in {LOG_EVERY} steps"
    ]
    saves = cost_of_saves(turns, options.steps) if options.saves else None
    if saves:
        longer, held = (
            measure.cell(saves[f], digits=3) for f in ("seconds", "blocked_seconds")
        )
        notes.append(
            f"a save takes {longer} s, of which the loop is held up {held} s: "
            f"{100 * saves['share']:.2f}% of the time at one every {INTERVAL} steps"
        )
    more = {"input": options.input, "log_share": round(log, 5), "saves": saves}
    return flops.result(options, {"ours": turns}, about, {}, notes, **more)


def cost_of_saves(turns: list[measure.Turn], steps: int) -> dict:
    """What a save costs: each second turn, with one, against the turn before it."""
    pairs = list(zip(turns[0::2], turns[1::2], strict=False))
    extra = measure.spread([(b["step_s"] - a["step_s"]) * steps for a, b in pairs])
    between = INTERVAL * min(turn["step_s"] for turn in turns[0::2])
    return {
        "seconds": extra,
        "blocked_seconds": measure.spread([b["save_blocked_s"] for _, b in pairs]),
        "share": round(extra["median"] / between, 5),
    }
