"""Runs of two processes: stopped, bereaved, resumed together or by one."""

import functools
import time

import pytest

from pacx_jax import main
from pacx_jax.preemption import EXIT_CODE
from tests import tiny
from tests.reliability import runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def straight(folders, tmp_path_factory):
    """The workdir of a run on two devices of one process, that nothing stopped."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patched:
        runs.use_patients(patched)
        main.run(runs.config("distill", folders, num_devices=2), str(workdir))
    return workdir


def ended(processes, workdir) -> list[int]:
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert None not in codes, runs.said(workdir) + runs.said(workdir, 1)
    return codes


def second_is_told_to_end(number: int) -> None:
    runs.slow_steps(0.5)  # the word takes a moment to reach all
    runs.in_second(functools.partial(runs.at_update, 2, runs.ask_to_end), number)


def test_two_processes_stop_at_one_step_and_resume_to_the_bits_of_one(
    folders, straight, tmp_path
):
    # Only the second is told to end. Two summands have one sum, so that two processes
    # give the bits of one with two devices.
    workdir, config = tmp_path / "run", runs.config("distill", folders)
    told = runs.start(config, workdir, second_is_told_to_end, count=2)
    assert ended(told, workdir) == [EXIT_CODE] * 2
    stopped_at = runs.state(workdir)["['step']"]
    assert 2 <= stopped_at < runs.STEPS
    assert f"saved at step {stopped_at}" in runs.said(workdir)
    assert ended(runs.start(config, workdir, count=2), workdir) == [0, 0]
    runs.assert_same(workdir, straight)
    name = "export/model.safetensors"
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()


def test_survivor_of_a_dead_process_ends_within_5_seconds_and_one_resumes(
    tmp_path, monkeypatch
):
    workdir, config = tmp_path / "run", runs.config("labs_dae", {})
    dies = functools.partial(
        runs.in_second, functools.partial(runs.at_update, 5, runs.die)
    )
    survivor, dead = runs.start(config, workdir, dies, count=2)
    dead.join(120)
    since = time.monotonic()
    survivor.join(30)
    assert survivor.exitcode == EXIT_CODE, runs.said(workdir)
    assert time.monotonic() - since < 5
    assert "another process of this run was lost" in runs.said(workdir)
    assert runs.state(workdir)["['step']"] == 3
    runs.use_patients(monkeypatch)
    config.num_devices = 2
    main.run(config, str(workdir))
    main.run(config, str(tmp_path / "straight"))
    runs.assert_same(workdir, tmp_path / "straight")
