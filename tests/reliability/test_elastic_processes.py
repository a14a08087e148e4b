"""A run of four processes goes on in one, and one of eight devices in four."""

import functools
import json
import shutil

import pytest

from pacx_jax import main, step
from tests import tiny
from tests.reliability import runs
from tests.reliability.test_elastic import MORE, SAVED, assert_goes_on, read, record
from tests.stages import STAGES

FIELDS = {
    "total_steps": SAVED + MORE,
    "save_every": SAVED,
    "keep": 99,
    "eval_every": 99,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


def in_processes(config, workdir, rows, count: int) -> list:
    """Trains in `count` processes; hashes of each batch's rows, all of them."""
    rows.mkdir()
    before = functools.partial(record, rows)
    started = runs.start(config, workdir, before, count=count)
    for process in started:
        process.join(200)
    assert [p.exitcode for p in started] == [0] * count, runs.said(workdir)
    parts = [json.loads((rows / f"rows{i}.json").read_text()) for i in range(count)]
    return [sum(shares, []) for shares in zip(*parts, strict=True)]


def in_one(config, workdir, rows, devices: int, monkeypatch) -> list:
    """The same in this process."""
    rows.mkdir()
    config = tiny.copy_of(config)
    config.num_devices = devices
    runs.use_patients(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.record_rows(rows / "rows.json")
        main.run(config, str(workdir))
    return json.loads((rows / "rows.json").read_text())


def back_to_the_save(workdir, target) -> None:
    """A copy of a workdir as it was when step SAVED had been saved."""
    shutil.copytree(workdir, target)
    for folder in (target / "checkpoints").iterdir():
        if folder.name != str(SAVED):
            shutil.rmtree(folder)
    for name in ("done.json", "best.json"):
        (target / name).unlink(missing_ok=True)


@pytest.mark.full
@pytest.mark.parametrize("stage", STAGES)
def test_run_of_four_processes_goes_on_in_one(stage, folders, tmp_path, monkeypatch):
    config = runs.config(stage, folders, **FIELDS)
    straight = tmp_path / "straight"
    rows = in_processes(config, straight, tmp_path / "rows", 4)
    for n in (4, 8):
        workdir = tmp_path / f"run_{n}"
        back_to_the_save(straight, workdir)
        later = in_one(config, workdir, tmp_path / f"rows_{n}", n, monkeypatch)
        assert later == rows[SAVED:]
        assert_goes_on(workdir, read(straight), 1e-5)


@pytest.mark.full
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [2, 4])
def test_run_of_eight_devices_goes_on_in_several_processes(
    stage, count, folders, tmp_path, monkeypatch
):
    config = runs.config(stage, folders, **FIELDS)
    straight, workdir = tmp_path / "straight", tmp_path / "run"
    rows = in_one(config, straight, tmp_path / "rows", 8, monkeypatch)
    back_to_the_save(straight, workdir)
    assert in_processes(config, workdir, tmp_path / "later", count) == rows[SAVED:]
    assert_goes_on(workdir, read(straight), 1e-5)
