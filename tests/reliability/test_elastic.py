"""A run saved on 8 devices goes on with other numbers of devices, meshes, processes."""

import functools
import json
import shutil

import pytest

from pacx_jax import main, step
from tests import tiny
from tests.reliability import runs

SAVED, MORE = 4, 20


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(stage, fsdp, tensor) -> (config, workdir with step 4 alone, metrics, rows)."""
    folders = tiny.write_folders(tmp_path_factory.mktemp("models"))

    @functools.cache
    def run(stage, fsdp=1, tensor=1):
        workdir = tmp_path_factory.mktemp("saved") / stage
        fields = {"total_steps": SAVED + MORE, "save_every": SAVED, "keep": 99}
        fields |= {"eval_every": 99}
        fields |= {"mesh__fsdp": fsdp, "mesh__tensor": tensor}
        config = runs.config(stage, folders, **fields)
        rows = workdir.parent / "rows.json"
        with pytest.MonkeyPatch.context() as patched:
            runs.use_patients(patched)
            patched.setattr(step, "make_train_step", step.make_train_step)
            runs.record_rows(rows)
            main.run(config, str(workdir))
        metrics = read(workdir)
        for folder in (workdir / "checkpoints").iterdir():
            if folder.name != str(SAVED):
                shutil.rmtree(folder)
        for name in ("done.json", "best.json"):
            (workdir / name).unlink(missing_ok=True)
        return config, workdir, metrics, json.loads(rows.read_text())[SAVED:]

    return run


def read(workdir) -> list[dict]:
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_goes_on(workdir, metrics, bound_of_all: float) -> None:
    """The first step to 1e-6, all 20 to the bound, relative to the largest loss."""
    found = read(workdir)
    assert [row["step"] for row in found] == [row["step"] for row in metrics]
    errors = [
        abs(a["loss"] - b["loss"]) / abs(b["loss"])
        for a, b in zip(found, metrics, strict=True)
    ][SAVED:]
    print(f"first step {errors[0]:.1e}, {MORE} steps {max(errors):.1e}")
    assert errors[0] <= 1e-6 and max(errors) <= bound_of_all


@pytest.mark.parametrize(
    ("stage", "devices"),
    [
        ("labs_dae", 4),
        *[
            pytest.param(stage, devices, marks=pytest.mark.full)
            for stage in ("mae", "labs_dae", "ecg", "distill", "classify")
            for devices in (1, 2, 4)
            if (stage, devices) != ("labs_dae", 4)
        ],
    ],
)
def test_run_of_8_devices_goes_on_with_fewer(
    stage, devices, saved, tmp_path, monkeypatch
):
    go_on(saved(stage), tmp_path, monkeypatch, num_devices=devices)


def go_on(saved, tmp_path, monkeypatch, **fields) -> None:
    """The run goes on with other devices: the same batches, and losses to 1e-5."""
    config, origin, metrics, rows = saved
    workdir = tmp_path / "run"
    shutil.copytree(origin, workdir)
    config = tiny.copy_of(config)
    config.update_from_flattened_dict(fields)
    runs.use_patients(monkeypatch)
    monkeypatch.setattr(step, "make_train_step", step.make_train_step)
    runs.record_rows(tmp_path / "rows.json")
    main.run(config, str(workdir))
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert_goes_on(workdir, metrics, 1e-5)


FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [  # before: fsdp, tensor on 8 devices; after: devices, fsdp, tensor
        ("labs_dae", (1, 1), (8, 4, 1)),
        pytest.param("mae", (1, 1), (8, 4, 1), marks=FULL),
        pytest.param("mae", (4, 1), (8, 1, 1), marks=FULL),
        pytest.param("mae", (8, 1), (4, 2, 1), marks=FULL),
        pytest.param("mae", (4, 1), (8, 2, 2), marks=FULL),
        pytest.param("mae", (1, 2), (1, 1, 1), marks=FULL),
        pytest.param("distill", (1, 1), (8, 4, 1), marks=FULL),
        pytest.param("distill", (4, 1), (8, 1, 1), marks=FULL),
        pytest.param("distill", (2, 2), (2, 2, 1), marks=FULL),
    ],
)
def test_run_goes_on_on_another_mesh(
    stage, before, after, saved, tmp_path, monkeypatch
):
    devices, fsdp, tensor = after
    fields = {"num_devices": devices, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
    go_on(saved(stage, *before), tmp_path, monkeypatch, **fields)


def record(folder, number: int) -> None:
    runs.record_rows(folder / f"rows{number}.json")


@FULL  # test_many_processes goes on with another number of processes too
def test_run_of_8_devices_goes_on_with_two_processes(saved, tmp_path):
    config, origin, metrics, rows = saved("distill")
    workdir = tmp_path / "run"
    shutil.copytree(origin, workdir)
    started = runs.start(config, workdir, functools.partial(record, tmp_path), count=2)
    for process in started:
        process.join(120)
    assert [p.exitcode for p in started] == [0, 0], runs.said(workdir)
    halves = [json.loads((tmp_path / f"rows{i}.json").read_text()) for i in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == rows
    assert_goes_on(workdir, metrics, 1e-5)
