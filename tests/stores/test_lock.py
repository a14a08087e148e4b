"""One writer: on real stores, by threads that race."""

import concurrent.futures
import subprocess
import sys
import threading

import pytest

from pacx_jax.errors import PacxError
from pacx_jax.stores import failures, lock, objects


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lock, "SECONDS", 2.0)


def race(url, count: int):
    """Those of `count` holders that get the lock, and what the others are told."""
    barrier = threading.Barrier(count)

    def one(_):
        found = lock.Lock(url, lambda text: None)
        barrier.wait()
        try:
            found.acquire()
        except PacxError as e:
            return str(e)
        return found

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one, range(count)))
    winners = [x for x in found if isinstance(x, lock.Lock)]
    return winners, [x for x in found if isinstance(x, str)]


def test_one_of_sixteen_gets_the_lock_and_the_next_after_its_release(url):
    (winner,), others = race(url, 16)
    assert len(others) == 15
    assert all("is writing here: take another --workdir" in text for text in others)
    winner.release()
    (second,), _ = race(url, 4)
    assert second.previous == winner.session
    second.release()


def test_stale_lock_is_taken_over_once_and_its_owner_learns_it(url):
    told = []
    owner = lock.Lock(url, told.append)
    owner.acquire()
    silent = threading.Event()
    renew, owner.renew = owner.renew, silent.wait  # as a machine that has stopped
    (winner,), others = race(url, 8)
    assert len(others) == 7 and winner.previous == owner.session
    with pytest.raises(lock.Lost, match="has taken over this run"):
        renew()
    owner.renew = renew
    silent.set()
    winner.release()


@pytest.mark.parametrize("fault", ["lost", "stall after"])
def test_renewal_whose_answer_is_lost_keeps_the_lock(fault, url, proxy):
    told = []
    owner = lock.Lock(url, told.append)
    owner.acquire()
    proxy.fault = lambda method, path: fault if method == "PUT" else ""
    with pytest.raises(failures.StoreError, match="it (cannot be reached|did not)"):
        owner.renew()
    proxy.fault = lambda method, path: ""
    owner.renew()
    owner.check()
    assert not told and b'"held"' in objects.Store(url).read(lock.NAME)[0]
    owner.release()
    assert b'"free"' in objects.Store(url).read(lock.NAME)[0]


ONE_OF_MANY = """
import sys
from pacx_jax.errors import PacxError
from pacx_jax.stores import lock

lock.SECONDS = 2.0
found = lock.Lock(sys.argv[1], lambda text: None)
print("ready", flush=True)
input()
try:
    found.acquire()
    print("won", found.previous, flush=True)
except PacxError as e:
    print(e, flush=True)
input()
assert "jax" not in sys.modules
"""


def race_of_processes(url, count: int):
    """The processes that got the lock, and what the others said; killed at the end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", ONE_OF_MANY, url]
    started = [subprocess.Popen(command, **pipes) for _ in range(count)]
    try:
        assert {process.stdout.readline() for process in started} == {"ready\n"}
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        return [process.stdout.readline() for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.full
def test_one_of_sixteen_processes_wins_and_its_stale_lock_is_taken_once(url):
    for _ in range(3):  # the first one free, the others stale
        said = race_of_processes(url, 16)
        assert sum(text.startswith("won") for text in said) == 1, said
        lost = [text for text in said if "is writing here: take another" in text]
        assert len(lost) == 15, said
