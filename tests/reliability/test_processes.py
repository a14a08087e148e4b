"""Runs of two processes: stopped, bereaved, resumed together or by one."""

import functools
import time

import pytest

from pacx_jax import main
from pacx_jax.distributed.preemption import EXIT_CODE
from pacx_jax.errors import PacxError
from tests import tiny
from tests.reliability import runs, test_golden


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
    workdir = tmp_path / "run"
    config = runs.config("distill", folders, grace_seconds=100)
    told = runs.start(config, workdir, second_is_told_to_end, count=2)
    assert ended(told, workdir) == [EXIT_CODE] * 2
    stopped_at = runs.state(workdir)["['step']"]
    assert 2 <= stopped_at < runs.STEPS
    assert f"saved at step {stopped_at}" in runs.said(workdir)
    assert ended(runs.start(config, workdir, count=2), workdir) == [0, 0]
    runs.assert_same(workdir, straight)
    name = "export/model.safetensors"
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()


def test_trace_of_distillation_is_the_recorded_one(straight):
    test_golden.assert_as_recorded("distill", straight)


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


def one_dies_while_the_other_compiles(dead: int, number: int) -> None:
    act = runs.die if number == dead else runs.compile_for_long
    runs.at_update(1, act)


@pytest.mark.parametrize("dead", [0, 1])
def test_process_that_compiles_ends_within_5_seconds_of_anothers_death(tmp_path, dead):
    workdir, config = tmp_path / "run", runs.config("labs_dae", {})
    dies = functools.partial(one_dies_while_the_other_compiles, dead)
    processes = runs.start(config, workdir, dies, count=2)
    processes[dead].join(120)
    since = time.monotonic()
    survivor = processes[1 - dead]
    survivor.join(30)
    said = runs.said(workdir, 1 - dead)
    assert survivor.exitcode == EXIT_CODE, said
    assert time.monotonic() - since < 5
    last = said.splitlines()[-1]
    assert last.startswith("stopped: another process of this run was lost (process ")
    assert "compiled" not in said


def second_is_told_while_the_first_compiles(number: int) -> None:
    runs.at_update(1, runs.ask_to_end if number else runs.compile_for_long)


def second_ends_with_an_error(number: int) -> None:
    error = functools.partial(runs.raise_, PacxError("this host's disk has no data"))
    runs.in_second(functools.partial(runs.at_update, 2, error), number)


def test_sigterm_before_the_first_step_ends_all_processes_at_once(tmp_path):
    workdir, config = tmp_path / "run", runs.config("labs_dae", {})
    told = runs.start(config, workdir, second_is_told_while_the_first_compiles, count=2)
    assert ended(told, workdir) == [EXIT_CODE] * 2
    assert "preempted, ending now without a new" in runs.said(workdir, 1)
    assert runs.said(workdir).startswith("stopped: process 1 was asked to end; ")
    assert not (workdir / "checkpoints").exists() or not list(
        (workdir / "checkpoints").iterdir()
    )


def test_error_of_one_process_ends_the_other_with_its_code(tmp_path):
    workdir, config = tmp_path / "run", runs.config("labs_dae", {})
    erring = runs.start(config, workdir, second_ends_with_an_error, count=2)
    assert ended(erring, workdir) == [2, 2]
    assert runs.said(workdir, 1) == "error: this host's disk has no data\n"
    assert "stopped: process 1 ended with code 2: its own output" in runs.said(workdir)
