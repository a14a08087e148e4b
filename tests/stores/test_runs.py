"""Whole small runs whose workdir lies in a bucket, compared with local ones to the bit.

"Same" means: every leaf of the state to the last bit, and the metrics to the byte.
"""

import functools
import itertools
import os
import shutil
import signal
import threading
from urllib.parse import unquote

import numpy as np
import pytest

from pacx_jax import main, step
from pacx_jax.commands import replay
from pacx_jax.distributed import preemption
from pacx_jax.errors import PacxError
from pacx_jax.run import mirror, remote_run, remote_steps, saved_steps
from pacx_jax.stores import lock, objects
from tests import tiny
from tests.reliability import runs
from tests.stores import servers

FULL = pytest.mark.full
STEPS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The encoders that distillation begins with."""
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, folders):
    """stage, devices, fsdp -> the workdir of a local run that nothing stopped."""

    @functools.cache
    def run(stage="labs_dae", devices=1, fsdp=1):
        workdir = tmp_path_factory.mktemp("straight") / stage
        with pytest.MonkeyPatch.context() as patched:
            runs.use_patients(patched)
            fields = {"num_devices": devices, "mesh__fsdp": fsdp}
            main.run(config(stage, folders, **fields), str(workdir))
        return workdir

    return run


@pytest.fixture(autouse=True)
def patients(monkeypatch):
    runs.use_patients(monkeypatch)
    monkeypatch.setattr(step, "make_train_step", step.make_train_step)  # put back
    monkeypatch.setattr(lock, "SECONDS", 2.0)


def config(stage="labs_dae", folders=None, **fields):
    few = {"total_steps": STEPS, "save_every": 4, "eval_every": 6}
    fields = few | {"num_devices": 1, "best": "val/loss"} | fields
    return runs.config(stage, folders or {}, **fields)


def in_bucket(url: str, scratch: str, environment: dict, number: int) -> None:
    """For `runs.start`: the run's workdir is a URL."""
    os.environ.update(environment, PACX_SCRATCH=scratch)
    lock.SECONDS = 2.0
    run = main.run

    def remote(config, workdir, **more):
        return run(config, workdir if more.get("mirrored") else url, **more)

    main.run = remote


def twice(url: str, scratch: str, environment: dict, number: int) -> None:
    """The same for a run that is asked to end at step 5, and begun again."""
    in_bucket(url, scratch, environment, number)
    run = main.run
    if number == 1:
        runs.at_update(5, runs.ask_to_end)

    def again(config, workdir, **more):
        if more.get("mirrored"):
            return run(config, workdir, **more)
        with pytest.raises(preemption.Preempted, match="saved at step"):
            run(config, workdir, **more)
        return run(config, workdir, **more)

    main.run = again


def slowly(url: str, scratch: str, environment: dict, number: int) -> None:
    """The same for a run that waits before each update."""
    in_bucket(url, scratch, environment, number)
    runs.slow_steps(0.3)


def start(url, proxy, tmp_path, **more):
    """Processes of a run in a bucket, with copies in one folder."""
    where = (url, str(tmp_path / "scratch"), proxy.environment())
    before = functools.partial(more.pop("before", in_bucket), *where)
    chosen = config(**more.pop("fields", {}))
    return runs.start(chosen, tmp_path / "run", before, **more)


def flip_a_byte(url: str, number: int) -> None:
    """Damages a saved step."""
    store = objects.Store(url)
    (pack,) = [n for n in store.list(f"checkpoints/{number}") if n.endswith(".pack")]
    data = bytearray(store.read(pack)[0])
    data[len(data) // 2] ^= 1
    store.write(pack, bytes(data))


def assert_same(url, straight) -> None:
    runs.assert_same(remote_run.finished(url), straight, STEPS)
    names = objects.Store(url).list()
    assert {"done.json", "config.json", "export/model.safetensors"} <= set(names)
    steps = remote_steps.numbers(objects.Store(url), "checkpoints")
    assert steps[-1] == STEPS and len(steps) == 2


@pytest.mark.parametrize(
    ("port", "stage", "stopped"),
    [
        ("gs", "mae", True),
        ("s3", "distill", False),
        pytest.param("s3", "mae", True, marks=FULL),
        pytest.param("gs", "distill", True, marks=FULL),
    ],
    indirect=["port"],
)
def test_run_that_is_stopped_killed_and_damaged_goes_on_elsewhere_bit_exact(
    stage, stopped, url, proxy, straight, folders, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.at_update(5, runs.ask_to_end)
        if stopped:
            with pytest.raises(preemption.Preempted, match="saved at step 5"):
                main.run(config(stage, folders), url)
    # Killed when the pack of step 8 has come and its manifest has not.
    (process,) = start(
        url, proxy, tmp_path, fields={"stage": stage, "folders": folders}
    )

    def fault(method, path):
        if method == "PUT" and unquote(path).endswith("checkpoints/8/manifest.json"):
            os.kill(process.pid, signal.SIGKILL)
            return "reset"
        return ""

    proxy.fault = fault
    process.join(120)
    there = [4, 5] if stopped else [4]
    assert process.exitcode == -signal.SIGKILL, runs.said(tmp_path / "run")
    proxy.fault = lambda method, path: ""
    assert remote_steps.numbers(objects.Store(url), "checkpoints") == there
    if stopped:
        flip_a_byte(url, 5)
    monkeypatch.setenv("PACX_SCRATCH", str(tmp_path / "another machine"))
    main.run(config(stage, folders), url)
    assert_same(url, straight(stage))
    said = capsys.readouterr()
    assert f"encoder: {url}/export" in said.out and "another machine" not in said.out
    assert "holds its lock; waiting up to" in said.err
    assert (f"{url}/checkpoints/5 is damaged" in said.err) == stopped
    main.run(config(stage, folders), url)
    assert f"{url} is finished, nothing to do" in capsys.readouterr().out
    assert replay.main([f"--workdir={url}", f"--step={STEPS + 1}"]) == 2
    assert f"{url} has steps 1 to {STEPS}" in capsys.readouterr().err


def test_requests_of_a_save_are_those_of_its_parts_and_a_few(url, proxy, monkeypatch):
    real, most = objects.PART, 20
    monkeypatch.setattr(objects, "PART", 5 * 2**20)  # the least that S3 takes
    mirrored = mirror.Mirror(url)
    mirrored.open()
    steps = saved_steps.Steps(mirrored.local / "checkpoints", 2, mirrored)
    rng = np.random.default_rng(0)
    state = {f"w{i}": rng.random(2**19, np.float32) for i in range(6)}
    for i in range(1, 5):
        before = len(proxy.requests)
        steps.save(state, i, {})
        steps.settle()
        count = len(proxy.requests) - before
    steps.close()
    mirrored.close(True)
    assert remote_steps.numbers(objects.Store(url), "checkpoints") == [3, 4]
    times = {"s3": 1, "gs": 2}[proxy.kind]  # gs:// is read back, as its tag is no MD5
    assert 0 < count <= times * -(-12 * 2**20 // objects.PART) + most
    vitb = 1_340_000_000  # bytes of a ViT-B MAE with Adam's moments
    assert times * -(-vitb // real) + most <= 200


@pytest.mark.parametrize("port", ["gs"], indirect=True)
def test_faults_of_every_kind_lose_and_change_nothing(url, proxy, straight):
    kinds, count = itertools.cycle(servers.FAULTS), itertools.count(1)
    proxy.fault = lambda *_: "" if next(count) % 5 else next(kinds)
    main.run(config(), url)
    assert len(proxy.faults) == len(servers.FAULTS), proxy.faults
    proxy.fault = lambda method, path: ""
    assert_same(url, straight())


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_what_could_not_be_sent_is_kept_and_sent_by_the_same_command(
    url, proxy, straight, monkeypatch, capsys
):
    monkeypatch.setattr(objects, "PATIENCE", 0.2)
    monkeypatch.setattr(lock, "SECONDS", 60.0)
    runs.at_update(7, lambda: setattr(proxy, "fault", lambda *_: "expired"))
    with pytest.raises(
        PacxError, match="What is not sent is kept in .*-0of1: the same"
    ):
        main.run(config(), url)
    assert "the credentials have expired: renew them" in capsys.readouterr().err
    proxy.fault = lambda method, path: ""
    assert remote_steps.numbers(objects.Store(url), "checkpoints")[-1] < STEPS
    monkeypatch.setattr(lock.Lock, "_watch", lambda *args: None)  # it is not released
    main.run(config(), url)
    assert_same(url, straight())


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_full_disk_is_named_and_not_the_bucket(
    url, proxy, tmp_path, monkeypatch, capsys
):
    full = shutil.disk_usage("/")._replace(free=0)

    def fill():
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)

    runs.at_update(7, fill)
    with pytest.raises(PacxError, match=f"{url}: step 12 could not be saved"):
        main.run(config(), url)
    said = capsys.readouterr().err
    assert f"warning: {tmp_path}/scratch/" in said and "no space left" in said


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_run_that_has_lost_its_lock_ends_with_one_line(url, proxy, tmp_path):
    (process,) = start(url, proxy, tmp_path, fields={"total_steps": 100_000})
    store = objects.Store(url)

    def steal():
        while not remote_steps.numbers(store, "checkpoints"):
            threading.Event().wait(0.2)
        store.write(lock.NAME, b'{"owner": "thief", "session": "x", "state": "held"}')

    threading.Thread(target=steal).start()
    process.join(120)
    said = runs.said(tmp_path / "run")
    assert process.exitcode == 2, said
    assert said.splitlines()[-1] == f"error: {url}: thief has taken over this run"


@pytest.mark.parametrize(
    ("stage", "fsdp"),
    [
        ("labs_dae", 1),
        *(pytest.param(*x, marks=FULL) for x in (("mae", 2), ("distill", 1))),
    ],
)
@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_two_processes_stop_and_go_on_without_a_shared_folder(
    stage, fsdp, url, proxy, straight, folders, tmp_path
):
    fields = {"stage": stage, "folders": folders, "num_devices": 0}
    fields |= {"mesh__fsdp": fsdp}
    started = start(url, proxy, tmp_path, before=twice, count=2, fields=fields)
    for process in started:
        process.join(300)
    said = [runs.said(tmp_path / "run", i) for i in range(2)]
    assert [process.exitcode for process in started] == [0, 0], said
    assert_same(url, straight(stage, 2, fsdp))


@FULL
@pytest.mark.parametrize("port", ["gs"], indirect=True)
def test_run_that_sleeps_through_its_lock_ends_and_harms_nothing(
    url, proxy, straight, tmp_path, monkeypatch
):
    (process,) = start(url, proxy, tmp_path, before=slowly)
    while not remote_steps.numbers(objects.Store(url), "checkpoints"):
        threading.Event().wait(0.05)
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setenv("PACX_SCRATCH", str(tmp_path / "another machine"))
    main.run(config(), url)
    os.kill(process.pid, signal.SIGCONT)
    process.join(120)
    assert process.exitcode == 2, runs.said(tmp_path / "run")
    assert "has taken over this run" in runs.said(tmp_path / "run")
    assert_same(url, straight())
