"""Runs that are cut off between any two requests, lose answers, or outlive their lock.

A run is played here without training: its states are two small files, and metrics.jsonl
has a row a step.
"""

import contextlib
import itertools
import threading
import time
from urllib.parse import unquote

import pytest

from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import (
    manifest,
    metrics,
    mirror,
    remote_run,
    remote_steps,
    saved_steps,
)
from pacx_jax.stores import lock, objects, urls
from tests.stores import servers

KEEP = 2
MORE = [("gs", False), ("s3", True), ("s3", False)]
_FOLDERS = itertools.count()


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """Each run has a machine of its own. Nothing ends the tests' process."""
    monkeypatch.setattr(processes, "end_at_once", lambda text, code: None)
    new = mirror.Mirror.__init__

    def elsewhere(self, url):
        scratch = tmp_path / f"machine_{next(_FOLDERS)}"
        monkeypatch.setenv("PACX_SCRATCH", str(scratch))
        new(self, url)

    monkeypatch.setattr(mirror.Mirror, "__init__", elsewhere)


def state(number: int, of: str) -> dict[str, bytes]:
    return {"state/a": f"{of} {number}".encode() * 50, "state/b": b"\0" * number}


def rows(last: int, of: str) -> bytes:
    every = range(1, last + 1)
    return b"".join(b'{"step": %d, "of": "%b"}\n' % (i, of.encode()) for i in every)


def opened(url: str, of="run") -> tuple[mirror.Mirror, int]:
    """A run that goes on, and the step from which; both are as they were saved."""
    run = mirror.Mirror(url)
    run.open()
    folder = run.local / "checkpoints"
    run.fetch(folder, KEEP)
    number, _, _ = saved_steps.newest(folder)
    if number is None:
        return run, 0
    saved = {n: (folder / str(number) / n).read_bytes() for n in state(number, of)}
    assert saved == state(number, of)
    metrics.keep_rows(run.local / "metrics.jsonl", number)
    assert (run.local / "metrics.jsonl").read_bytes() == rows(number, of)
    return run, number


def save(run: mirror.Mirror, number: int, of="run") -> None:
    """What a run does after a step: its rows, its state, and the older states."""
    (run.local / "metrics.jsonl").write_bytes(rows(number, of))
    folder = run.local / "checkpoints" / str(number)
    for name, data in state(number, of).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    manifest.write(folder, {"step": number, "leaves": {}, "metrics": {}})
    run.begin()
    run.save(folder, KEEP)


def test_run_that_is_killed_between_any_two_requests_goes_on(url, proxy, monkeypatch):
    """The k-th time it is killed after k requests; a reader finds a state each time."""
    monkeypatch.setattr(lock, "SECONDS", 600.0)  # no renewals in between
    run, number = opened(url)
    save(run, 1)
    number, ends = 1, set()
    for k in itertools.count():
        left = iter(range(k))
        proxy.fault = lambda *_, left=left: (
            "" if next(left, None) is not None else "denied"
        )
        before = len(proxy.requests)
        try:
            save(run, number + 1)
            break
        except PacxError:
            assert len(proxy.requests) == before + k + 1
            run.close(False)  # which is denied too
        proxy.fault = lambda *_: ""
        objects.Store(url).delete([lock.NAME])  # rather than wait until it is stale
        read, _, _ = saved_steps.newest(remote_run.finished(url) / "checkpoints")
        run, found = opened(url)
        assert found in (number, number + 1) and read == found
        ends.add(found - number)
        number = found
    assert k > 8 and ends == {0, 1}
    proxy.fault = lambda *_: ""
    run.close(False)
    names = [n for n in objects.Store(url).list() if n.startswith("checkpoints")]
    assert len(names) == 2 * KEEP, names


def test_a_hundred_faults_lose_and_change_nothing(url, proxy, monkeypatch):
    monkeypatch.setattr(urls, "SECONDS", 0.5)
    kinds = servers.FAULTS * 3 + servers.STALLS
    drawn, number = servers.seeded(5, 0.25, kinds), 0

    def fault(method, path):
        return "" if lock.NAME in unquote(path) else drawn(method, path)

    while sum(proxy.faults.values()) < 110:
        proxy.fault = fault
        run, found = opened(url)
        assert found == number
        for number in range(found + 1, found + 4):
            save(run, number)
        run.close(False)
        proxy.fault = lambda *_: ""
    assert set(proxy.faults) == set(kinds), proxy.faults
    assert opened(url)[1] == number
    assert remote_steps.numbers(objects.Store(url), "checkpoints")[-1] == number


class Clock:
    """For lock.time: waiting for a lock takes no time."""

    def __init__(self):
        self.skipped = 0.0

    def clock_gettime(self, clock: int) -> float:
        return time.clock_gettime(clock) + self.skipped

    def sleep(self, seconds: float) -> None:
        self.skipped += 10 * seconds


def damaged_workdir(url: str) -> dict[str, bytes]:
    """Two states, of which the newer is damaged, and what a cut-off save left."""
    run, _ = opened(url)
    for number in (1, 2):
        save(run, number)
    run.close(False)
    store = objects.Store(url)
    (pack,) = (n for n in store.list("checkpoints/2") if n.endswith(".pack"))
    store.write(pack, b"?" * len(store.read(pack)[0]))
    store.write("checkpoints/3/attempt-0.pack", b"of a save that was cut off")
    return {name: store.read(name)[0] for name in store.list()}


def owner(url: str, said: list) -> None:
    """A run that goes on from step 1, and is then outlived."""
    run = mirror.Mirror(url)
    try:
        run.open()
        run.fetch(run.local / "checkpoints", KEEP)
        save(run, 2)
        save(run, 3)
    except PacxError as e:
        said.append(str(e))
    with contextlib.suppress(PacxError):
        run.close(False)


@pytest.mark.parametrize(
    ("port", "late"),
    [("gs", True)] + [pytest.param(*x, marks=pytest.mark.full) for x in MORE],
    indirect=["port"],
)
def test_owner_that_sleeps_through_its_lock_does_no_harm(
    late, url, proxy, port, monkeypatch, capsys
):
    """Its k-th writing request arrives when another has the lock, or (late) has saved.

    The other's states and rows differ, as if it had been started with --force.
    """
    content, told = damaged_workdir(url), 0
    for k in itertools.count():
        monkeypatch.setattr(lock, "time", Clock())
        place, said = f"{url}_{k}", []
        store = objects.Store(place)
        for name, data in content.items():
            store.write(name, data)
        with servers.Proxy(*port) as asleep, monkeypatch.context() as patched:
            writes = itertools.count()

            def fault(method, path, asleep=asleep, writes=writes, k=k):
                if asleep.held.is_set():
                    return "hold"
                if method in ("GET", "HEAD") or lock.NAME in unquote(path):
                    return ""
                return "hold" if next(writes) == k else ""

            asleep.fault = fault
            for name, value in asleep.environment().items():
                patched.setenv(name, value)
            first = threading.Thread(target=owner, args=(place, said))
            first.start()
            while first.is_alive() and not asleep.held.wait(0.01):
                pass
            if not asleep.held.is_set():
                break
            patched.undo()
            second, start = opened(place)
            assert start in (1, 2, 3)
            if not late:
                asleep.resumed.set()
                first.join()
            for number in range(start + 1, 5):
                save(second, number, "another")
            asleep.resumed.set()
            first.join()
        assert all("has taken over this run" in text for text in said)
        told += len(said)
        second.close(False)
        third, number = opened(place, "another")
        save(third, 5, "another")
        assert number == 4 and remote_steps.numbers(store, "checkpoints") == [4, 5]
        third.close(False)
    assert told > 10 and told >= k - 1  # nothing is left to write after the last one
