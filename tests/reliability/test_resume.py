"""Runs that are stopped in every way, and go on as if they had not been.

"Same" means: every leaf of params, optimizer and step to the last bit, and the metrics
to the byte.
"""

import functools
import signal
import time

import pytest

from pacx_jax import main, step
from pacx_jax.distributed import preemption
from pacx_jax.run import goodput, manifest
from tests import stages, tiny
from tests.reliability import runs, test_golden


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def straight(folders, tmp_path_factory):
    """stage, devices -> the workdir of a run that nothing stopped."""

    @functools.cache
    def run(stage, devices):
        workdir = tmp_path_factory.mktemp("straight") / stage
        config = runs.config(stage, folders, num_devices=devices)
        with pytest.MonkeyPatch.context() as patched:
            runs.use_patients(patched)
            main.run(config, str(workdir))
        if devices == 2:
            test_golden.assert_as_recorded(stage, workdir)
        return workdir

    return run


@pytest.fixture
def patients(monkeypatch):
    runs.use_patients(monkeypatch)
    monkeypatch.setattr(step, "make_train_step", step.make_train_step)  # put back
    monkeypatch.setattr(manifest, "write", manifest.write)


# An epoch ends within update 3 and after update 5; 3 and 6 are saved anyway.
@pytest.mark.parametrize(
    ("stage", "k"),
    [
        ("labs_dae", 4),  # test_main has the MAE
        ("vq", 5),  # its codes are moved by no gradient
        pytest.param("v2t", 5, marks=pytest.mark.full),
        pytest.param("masked", 4, marks=pytest.mark.full),
        pytest.param("distill", 4, marks=pytest.mark.full),  # test_processes has it
        pytest.param("classify", 6, marks=pytest.mark.full),
        pytest.param("segment", 4, marks=pytest.mark.full),
        *[
            pytest.param(stage, k, marks=pytest.mark.full)
            for stage in stages.STAGES
            for k in (2, 3, 5, 7, 20)
        ],
    ],
)
def test_sigterm_saves_within_its_step_and_the_run_resumes_bit_exact(
    stage, k, folders, straight, patients, tmp_path, monkeypatch
):
    if k == 4:  # the save of step 3 is still under way
        write = manifest.write
        slow = lambda *args: (time.sleep(0.5), write(*args))  # noqa: E731
        monkeypatch.setattr(manifest, "write", slow)
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.at_update(k, runs.ask_to_end)
        with pytest.raises(preemption.Preempted, match=f"saved at step {k}"):
            main.run(runs.config(stage, folders, num_devices=2), str(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert runs.state(tmp_path)["['step']"] == k
    main.run(runs.config(stage, folders, num_devices=2), str(tmp_path))
    runs.assert_same(tmp_path, straight(stage, 2))


def ask_twice_and_hang() -> None:
    runs.ask_to_end()
    runs.ask_to_end()
    time.sleep(60)


def test_run_that_cannot_save_in_time_ends_without_a_new_checkpoint(tmp_path):
    workdir, config = tmp_path / "run", runs.config("labs_dae", {}, grace_seconds=1)
    before = functools.partial(runs.at_update, 5, ask_twice_and_hang)
    (process,) = runs.start(config, workdir, functools.partial(runs.in_all, before))
    process.join(45)
    said = runs.said(workdir)
    assert process.exitcode == preemption.EXIT_CODE, said
    last = said.splitlines()[-1]
    assert last.startswith("stopped: not saved within 1 s of SIGTERM (config.grace")
    assert last.endswith("; the same command goes on from step 3")
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["3"]


@pytest.mark.full
def test_sigterm_during_an_evaluation_gives_it_up_and_does_it_again(
    folders, straight, patients, tmp_path, monkeypatch
):
    from pacx_jax.run import setup

    original = setup.Run.evaluate

    def evaluate(self, state, between):
        runs.ask_to_end()
        return original(self, state, between)

    with monkeypatch.context() as patched:
        patched.setattr(setup.Run, "evaluate", evaluate)
        with pytest.raises(preemption.Preempted, match="saved at step 4"):
            main.run(runs.config("mae", folders, num_devices=2), str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3
    main.run(runs.config("mae", folders, num_devices=2), str(tmp_path))
    runs.assert_same(tmp_path, straight("mae", 2))


@pytest.mark.parametrize(
    ("stage", "before", "left"),
    [
        ("labs_dae", functools.partial(runs.at_update, 5, runs.die), ["3"]),
        pytest.param(
            *("labs_dae", functools.partial(runs.die_in_a_save, 1), ["3.saving"]),
            marks=pytest.mark.full,
        ),
        ("labs_dae", functools.partial(runs.die_in_a_save, 3), ["3", "6", "9.saving"]),
    ],
    ids=["mid-epoch", "in the first save", "in a later save"],
)
def test_killed_run_resumes_bit_exact(
    stage, before, left, folders, straight, patients, tmp_path
):
    workdir = tmp_path / "run"
    config = runs.config(stage, folders, num_devices=2)
    before = functools.partial(runs.in_all, before)
    (process,) = runs.start(config, workdir, before, devices=2)
    process.join()
    assert process.exitcode == -signal.SIGKILL, runs.said(workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == left
    main.run(config, str(workdir))
    runs.assert_same(workdir, straight(stage, 2))
    ledger = goodput.read(workdir)
    assert ledger["sessions"] == 2 and ledger["seconds"]["recomputed"] > 0
