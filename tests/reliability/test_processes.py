"""Runs of two processes: stopped, bereaved, resumed together or by one."""

import functools
import signal

import pytest

from pacx_jax import main
from pacx_jax.distributed.preemption import EXIT_CODE
from tests import tiny
from tests.reliability import runs, test_golden

BEREAVED = -signal.SIGABRT  # by JAX: 134 in a shell


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def straight(folders, tmp_path_factory):
    """stage -> workdir of a run on two devices of one process, that nothing stopped."""

    @functools.cache
    def run(stage):
        workdir = tmp_path_factory.mktemp("straight") / stage
        with pytest.MonkeyPatch.context() as patched:
            runs.use_patients(patched)
            main.run(runs.config(stage, folders, num_devices=2), str(workdir))
        return workdir

    return run


def ended(processes, workdir) -> list[int]:
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert None not in codes, runs.said(workdir) + runs.said(workdir, 1)
    return codes


def second_is_told_to_end(number: int) -> None:
    runs.slow_steps(0.3)  # the word takes a second or two to reach all
    runs.in_second(functools.partial(runs.at_update, 2, runs.ctrl_c), number)


def test_two_processes_stop_then_lose_one_and_one_resumes_to_the_same_bits(
    straight, tmp_path, monkeypatch
):
    # Only the second is told to end. Two summands have one sum, so that two processes
    # give the bits of one with two devices.
    workdir, config = tmp_path / "run", runs.config("labs_dae", {})
    told = runs.start(config, workdir, second_is_told_to_end, count=2)
    assert ended(told, workdir) == [EXIT_CODE] * 2, runs.said(workdir)
    step = int(runs.state(workdir)["['step']"])
    assert 2 <= step < runs.STEPS - 4
    assert f"saved at step {step}" in runs.said(workdir)

    act = functools.partial(runs.at_update, step + 5, runs.die)
    before = functools.partial(runs.in_second, act)
    left = ended(runs.start(config, workdir, before, count=2), workdir)
    assert left == [BEREAVED, -signal.SIGKILL], runs.said(workdir)
    assert "another task died" in runs.said(workdir)
    assert step <= runs.state(workdir)["['step']"] <= step + 4

    runs.use_patients(monkeypatch)
    config.num_devices = 2
    main.run(config, str(workdir))
    assert_same(workdir, straight("labs_dae"))


def assert_same(workdir, straight) -> None:
    """The same metrics, state and export, to the last bit."""
    runs.assert_same(workdir, straight)
    name = "export/model.safetensors"
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.full
def test_two_processes_distill_to_the_bits_of_one_after_a_stop(
    folders, straight, tmp_path
):
    workdir, config = tmp_path / "run", runs.config("distill", folders)
    told = runs.start(config, workdir, second_is_told_to_end, count=2)
    assert ended(told, workdir) == [EXIT_CODE] * 2, runs.said(workdir)
    assert ended(runs.start(config, workdir, count=2), workdir) == [0, 0]
    assert_same(workdir, straight("distill"))


def test_trace_of_distillation_is_the_recorded_one(straight):
    test_golden.assert_as_recorded("distill", straight("distill"))


def first_dies_while_the_second_compiles(number: int) -> None:
    runs.at_update(1, runs.compile_for_long if number else runs.die)


def test_process_that_compiles_ends_when_another_dies(tmp_path):
    workdir, config = tmp_path / "run", runs.config("labs_dae", {})
    started = runs.start(config, workdir, first_dies_while_the_second_compiles, count=2)
    assert ended(started, workdir) == [-signal.SIGKILL, BEREAVED]
    assert "another task died" in runs.said(workdir, 1)
    assert "compiled" not in runs.said(workdir, 1)


def first_has_a_bug(number: int) -> None:
    error = functools.partial(runs.raise_, ZeroDivisionError("a bug of ours"))
    if number == 0:
        runs.at_update(2, error)


@pytest.mark.full
def test_bug_in_one_process_is_its_stack_and_1_and_ends_the_other(tmp_path):
    workdir, config = tmp_path / "run", runs.config("labs_dae", {})
    started = runs.start(config, workdir, first_has_a_bug, count=2)
    assert ended(started, workdir) == [1, BEREAVED]
    said = runs.said(workdir)
    assert "ZeroDivisionError: a bug of ours" in said
    assert said.endswith("stopped: by the error above\n")
