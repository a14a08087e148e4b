"""Runs of four processes: each stage, its evaluation, and what all of them refuse."""

import functools
import json
import os
import pathlib
import shutil
import signal
import socket

import jax
import numpy as np
import pytest

from pacx_jax import main, sharding, target
from pacx_jax.errors import PacxError
from pacx_jax.input import sources
from tests import tiny
from tests.reliability import runs
from tests.stages import STAGES

STEPS = 4
METRICS = STATE = 1e-5  # largest relative difference of four processes


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


def train_together(stages: dict, root: pathlib.Path, count: int, devices=1) -> None:
    """Trains in `count` processes of so many devices each."""
    first = next(iter(stages.values()))
    before = functools.partial(train_all, stages, root)
    started = runs.start(first, root / "all", before, count=count, devices=devices)
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
    metrics = max(
        abs(a - b) / max(abs(b), 1e-3) for a, b in zip(got, want, strict=True)
    )
    got, want = runs.state(workdir), runs.state(straight)
    assert got.keys() == want.keys() and len(got) > 8
    for k in want:
        if k.endswith("['k_norm']['bias']"):
            got[k] = want[k]  # likewise
        if k.endswith("['qkv']['bias']"):  # without the keys' share, which changes no
            # output: its gradient is rounding, and Adam makes steps of that
            got[k], want[k] = (
                np.delete(np.split(x, 3), 1, 0) for x in (got[k], want[k])
            )
    leaves = [
        np.linalg.norm(np.float64(got[k]) - want[k])
        / max(np.linalg.norm(np.float64(want[k])), 1e-3)
        for k in want
    ]
    return float(metrics), float(max(leaves))


def compare(stages: dict, root: pathlib.Path, count: int, straight) -> None:
    """Trains the same in one process of `count` devices, and compares.

    Two summands have one sum, so that two processes give the bits of one. Four are
    added in another order: the bounds are ten times what was measured. That process is
    one of its own, since with more devices than it uses it would have more threads, and
    the ECG encoder's convolutions other bits.
    """
    train_together(stages, straight, 1, count)
    for stage in stages:
        metrics, state = differences(root / stage, straight / stage)
        print(f"{count} processes, {stage}: metrics {metrics:.1e}, state {state:.1e}")
        bounds = (0, 0) if count == 2 else (METRICS, STATE)
        assert metrics <= bounds[0] and state <= bounds[1]
        if stage in ("classify", "segment"):
            name = "evaluation_val.json"
            got, want = (
                json.loads((p / stage / name).read_text()) for p in (root, straight)
            )
            assert got["n"] == want["n"] and got["loss"] == pytest.approx(want["loss"])


@pytest.fixture(scope="module")
def four(folders, tmp_path_factory):
    """A stage's config, and the folder where four processes have trained it."""
    root = tmp_path_factory.mktemp("four")
    stages = configs(folders, ("labs_dae",))
    train_together(stages, root, 4)
    return stages, root


@pytest.mark.full
def test_run_of_four_processes_goes_on_with_eight_devices_of_one(
    four, tmp_path, monkeypatch
):
    stages, root = four
    workdir = tmp_path / "run"
    shutil.copytree(root / "labs_dae", workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    (workdir / "done.json").unlink()
    config = tiny.copy_of(stages["labs_dae"])
    config.num_devices = 8
    runs.use_patients(monkeypatch)
    main.run(config, str(workdir))  # which takes steps 3 and 4 again
    metrics, state = differences(workdir, root / "labs_dae")
    assert metrics <= METRICS and state <= STATE


@pytest.mark.full
@pytest.mark.parametrize("count", [4, 2])
def test_processes_train_each_stage_as_one_with_as_many_devices(
    count, folders, tmp_path
):
    stages = configs(folders)
    train_together(stages, tmp_path / "together", count)
    printed = [runs.said(tmp_path / "together" / "all", i) for i in range(count)]
    assert ["95% interval" in text for text in printed] == [True] + [False] * (
        count - 1
    )
    compare(stages, tmp_path / "together", count, tmp_path / "straight")


def other_patients(number: int) -> None:
    """The data of each process have a fingerprint of their own from now on."""
    init = runs.Patients.__init__

    def other(self, split):
        init(self, split)
        self.fingerprint += str(number)

    runs.Patients.__init__ = other


def on_its_own_disk(number: int) -> None:
    """From now on, what the first process writes is not what the others see."""
    exists = pathlib.Path.exists

    def blind(self, **more):
        return exists(self, **more) and not self.name.startswith(".shared_")

    if number:
        pathlib.Path.exists = blind


def refuse_all(cases: dict, number: int) -> None:
    """For `start`: tries each of the runs, and writes down why it was refused."""
    train, said = main.run, {}

    def run(_, workdir):
        for name, config in cases.items():
            config.seed += number * (name == "config")
            if name == "data":
                other_patients(number)
            if name == "disk":
                on_its_own_disk(number)
            place = f"{workdir}_{number}" if name == "workdir" else f"{workdir}_{name}"
            try:
                train(config, place)
            except PacxError as e:
                said[name] = str(e)
        pathlib.Path(f"{workdir}_said_{number}").write_text(json.dumps(said))

    main.run = run


def slurm(job: int, number: int) -> None:
    """What srun sets in the environment of a task."""
    os.environ |= {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost"}
    os.environ |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    os.environ |= {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}


def open_mpi(job: int, number: int) -> None:
    """What mpirun 5 sets in the environment of a rank."""
    os.environ |= {"PMIX_NAMESPACE": f"prterun-localhost-{job}@1"}
    os.environ |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(number)}
    os.environ |= {"OMPI_COMM_WORLD_LOCAL_RANK": str(number)}


def free_job() -> int:
    """A job's number that leads to a free port."""
    for job in range(os.getpid() % 2048, 4096):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 61440 + job)):
                return job
    raise AssertionError("no port is free")


def in_turn(*acts) -> None:
    """For `start`: several things happen, the process's number being last."""
    *acts, number = acts
    for act in acts:
        act(number)


REFUSED = {
    "batch": ({"global_batch_size": 9}, "9 is not divisible by 2 devices"),
    "few": ({"num_devices": 1}, "num_devices is 1 but 2 processes have 2 devices"),
    "many": ({"num_devices": 4}, "num_devices is 4 but 2 processes have 2 devices"),
    "config": ({}, "config.seed of process 1 is 1, that of process 0 0: give every"),
    "workdir": ({}, "--workdir of process 1 is '"),
    "data": ({}, "data train.fingerprint of process 1 is '"),
    "disk": ({}, "of process 1 is another folder than that of process 0"),
}


def test_what_cannot_be_is_refused_by_every_process_that_slurm_starts(tmp_path):
    cases = {k: runs.config("labs_dae", {}, **v[0]) for k, v in REFUSED.items()}
    acts = [functools.partial(slurm, free_job()), functools.partial(refuse_all, cases)]
    before = functools.partial(in_turn, *acts)
    flags = ["--distributed=auto"]
    config = cases["config"]
    started = runs.start(config, tmp_path / "run", before, count=2, flags=flags)
    assert ended(started, tmp_path / "run") == [0, 0], runs.said(tmp_path / "run")
    for number in (0, 1):
        said = json.loads((tmp_path / f"run_said_{number}").read_text())
        assert said.keys() == REFUSED.keys()
        for name, (_, text) in REFUSED.items():
            assert text in said[name]


def other_seed(number: int) -> None:
    run = main.run

    def other(config, workdir):
        config.seed += number
        run(config, workdir)

    main.run = other


def test_a_refusal_is_one_line_and_2_in_every_process_of_open_mpi(tmp_path):
    workdir = tmp_path / "run"
    acts = [functools.partial(open_mpi, free_job()), other_seed]
    before, flags = functools.partial(in_turn, *acts), ["--distributed=auto"]
    config = runs.config("labs_dae", {})
    started = runs.start(config, workdir, before, count=2, flags=flags)
    assert ended(started, workdir) == [2, 2]
    for number in (0, 1):
        assert "error: config.seed of process 1 is 1" in runs.said(workdir, number)
        assert "Traceback" not in runs.said(workdir, number)


def no_data(erring: int, number: int) -> None:
    def refuse(*_):
        raise PacxError("config.data.path: no such folder")

    if number == erring:
        sources.open_source = refuse


@pytest.mark.parametrize("erring", [0, pytest.param(1, marks=pytest.mark.full)])
def test_error_of_one_process_is_its_line_and_code_and_ends_the_other(tmp_path, erring):
    workdir, before = tmp_path / "run", functools.partial(no_data, erring)
    started = runs.start(runs.config("labs_dae", {}), workdir, before, count=2)
    codes = ended(started, workdir)
    assert (codes.pop(erring), codes) == (2, [-signal.SIGABRT])
    assert runs.said(workdir, erring) == "error: config.data.path: no such folder\n"


def try_a_kernel(folder: pathlib.Path, number: int) -> None:
    """For `start`: traces a program that asks for a kernel which the second lacks."""

    def run(*_):
        def traced(x):
            wrong = target.tried("a kernel", lambda _: "no such cuDNN" * number)
            (folder / str(number)).write_text(wrong)
            return x

        with sharding.tracing(sharding.make_mesh(0)):
            jax.jit(traced).lower(jax.ShapeDtypeStruct((), "float32"))

    main.run = run


def test_a_kernel_that_fails_on_one_process_is_left_out_on_all(tmp_path):
    before = functools.partial(try_a_kernel, tmp_path)
    started = runs.start(None, tmp_path / "run", before, count=2)
    assert ended(started, tmp_path / "run") == [0, 0], runs.said(tmp_path / "run")
    assert [(tmp_path / n).read_text() for n in "01"] == ["no such cuDNN"] * 2
