"""Runs of four processes: each stage, its evaluation, and what all of them refuse."""

import functools
import json
import os
import pathlib
import socket

import numpy as np
import pytest

from pacx_jax import main, processes
from pacx_jax.types import PacxError
from tests import tiny
from tests.reliability import runs

STAGES = ("mae", "labs_dae", "ecg", "distill", "classify", "segment")
STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


def configs(folders, stages=STAGES, **fields):
    few = {"total_steps": STEPS, "save_every": 2, "eval_every": 2} | fields
    return {stage: runs.config(stage, folders, **few) for stage in stages}


def train_all(stages: dict, root: pathlib.Path, number: int = 0) -> None:
    """For `start`: trains all of the stages one after the other, and measures two."""
    train = main.run

    def run(config, workdir):
        for stage, its_config in stages.items():
            train(its_config, str(root / stage))
            if stage in ("classify", "segment"):
                main.measure(its_config, str(root / stage), "val")

    main.run = run


def ended(started, workdir) -> list[int]:
    for process in started:
        process.join(200)
    codes = [process.exitcode for process in started]
    assert None not in codes, [runs.said(workdir, i) for i in range(len(codes))]
    return codes


def train_together(stages: dict, root: pathlib.Path, count: int) -> None:
    first = next(iter(stages.values()))
    before = functools.partial(train_all, stages, root)
    started = runs.start(first, root / "all", before, count=count)
    codes = ended(started, root / "all")
    assert codes == [0] * count, [runs.said(root / "all", i) for i in range(count)]


def differences(workdir, straight) -> tuple[float, float]:
    """Largest relative difference of the metrics and of the state's leaves."""
    rows = [
        [json.loads(x) for x in (p / "metrics.jsonl").read_text().splitlines()]
        for p in (workdir, straight)
    ]
    assert [sorted(row) for row in rows[0]] == [sorted(row) for row in rows[1]]
    assert len(rows[0]) == STEPS
    got, want = ([v for row in r for v in row.values()] for r in rows)
    metrics = max(abs(a - b) / max(abs(b), 1e-3) for a, b in zip(got, want))
    got, want = runs.state(workdir), runs.state(straight)
    assert got.keys() == want.keys() and len(got) > 8
    leaves = [
        np.linalg.norm(np.float64(got[k]) - want[k])
        / max(np.linalg.norm(np.float64(want[k])), 1e-3)
        for k in want
    ]
    return float(metrics), float(max(leaves))


def compare(stages: dict, root: pathlib.Path, count: int, tmp_path) -> None:
    """Trains the same with one process of `count` devices."""
    for stage, config in stages.items():
        config.num_devices = count
        straight = tmp_path / "straight" / stage
        main.run(config, str(straight))
        metrics, state = differences(root / stage, straight)
        print(f"{count} processes, {stage}: metrics {metrics:.1e}, state {state:.1e}")
        if stage in ("classify", "segment"):
            main.measure(config, str(straight), "val")


@pytest.mark.parametrize("count", [4, 2])
def test_processes_train_each_stage_as_one_with_as_many_devices(
    count, folders, tmp_path, monkeypatch
):
    stages = configs(folders)
    train_together(stages, tmp_path / "together", count)
    runs.use_patients(monkeypatch)
    compare(stages, tmp_path / "together", count, tmp_path)
