"""How the processes of a run find each other, and what refuses to start."""

import functools
import os

import pytest

from pacx_jax import main
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from tests.reliability import runs

RANK = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
RANK |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPI_4 = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
MPI_5 = {"PMIX_NAMESPACE": "prterun-login-2-13183@1"}


def clear(number: int = 0) -> None:
    """Nothing in the environment of this process has started it."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "PMIX", "JAX_COORDINATOR")):
            del os.environ[name]


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        (MPI_5, "login-2:62335"),
        (MPI_5 | {"JAX_COORDINATOR_PORT": "77"}, "login-2:77"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "a:1"),
    ],
    ids=["namespace", "port", "address"],
)
def test_a_rank_of_open_mpi_5_knows_its_place(monkeypatch, variables, address):
    monkeypatch.setattr(os, "environ", RANK | variables)
    assert processes.open_mpi_5() == {
        "coordinator_address": address,
        "num_processes": 8,
        "process_id": 5,
        "local_device_ids": [1],
    }


@pytest.mark.parametrize("variables", [{}, RANK | MPI_4])
def test_what_jax_detects_itself_is_left_to_it(monkeypatch, variables):
    monkeypatch.setattr(os, "environ", variables)
    assert processes.open_mpi_5() == {}


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        (RANK, "PMIX_NAMESPACE '' names no host: set JAX_COORDINATOR_ADDRESS"),
        (MPI_5 | {"OMPI_COMM_WORLD_RANK": "0"}, "KeyError: 'OMPI_COMM_WORLD_SIZE'"),
    ],
)
def test_an_environment_that_says_too_little_is_one_line(monkeypatch, variables, error):
    monkeypatch.setattr(os, "environ", variables)
    with pytest.raises(PacxError, match=error):
        processes.start_detected()


@pytest.mark.parametrize(
    ("place", "error"),
    [
        (("a:1", 2, 2), "--num_processes=2 --process_id=2: give an id from 0 to"),
        (("a:1", 0, 0), "--num_processes=0 --process_id=0"),
        (("a", 2, 0), "--coordinator=a: give host:port of process 0"),
        (("a:65536", 2, 0), "--coordinator=a:65536: give host:port"),
        (("", 2, 0), "--coordinator=: give host:port"),
    ],
)
def test_flags_that_name_no_place_are_one_line(place, error):
    with pytest.raises(PacxError, match=error):
        processes.start(*place)


def second_never_comes(number: int) -> None:
    processes.JOIN_SECONDS = 2
    if number:
        os._exit(0)


@pytest.mark.parametrize(
    ("before", "options", "error"),
    [
        (second_never_comes, {"count": 2}, "error: the processes of this run did not "),
        (clear, {"flags": ["--distributed=auto"]}, "error: --distributed=auto found "),
    ],
    ids=["missing", "nothing detected"],
)
def test_a_process_that_finds_no_other_ends_with_a_line(
    tmp_path, before, options, error
):
    first, *_ = runs.start(None, tmp_path / "run", before, **options)
    first.join(60)
    said = runs.said(tmp_path / "run")
    assert first.exitcode == 2, said
    assert said.startswith(error) and said.count("\n") == 1


def gather_texts(folder, number: int) -> None:
    """For `start`: each process gathers what all of them say."""

    def run(*_):
        texts = processes.gathered(["", "größer"][number]) + processes.gathered("")
        (folder / str(number)).write_text("|".join(texts))

    main.run = run


def test_texts_of_all_processes_are_gathered_in_order(tmp_path):
    assert processes.gathered("alone") == ["alone"]
    before = functools.partial(gather_texts, tmp_path)
    started = runs.start(None, tmp_path / "run", before, count=2, devices=2)
    for process in started:
        process.join(60)
    assert [p.exitcode for p in started] == [0, 0], runs.said(tmp_path / "run")
    assert [(tmp_path / n).read_text() for n in "01"] == ["|größer||"] * 2
