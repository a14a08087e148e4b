"""Batches made ahead by a thread: their order, their errors, their end."""

import threading

import jax
import jax.numpy as jnp
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import prefetch
from pacx_jax.run import goodput


class Numbers:
    """Counts up from 0; notes what was read; raises at `bad`; ends at `end`."""

    def __init__(self, bad=None, end=None):
        self.read, self.closed, self._bad, self._end = 0, 0, bad, end

    def __next__(self) -> int:
        if self.read == self._bad:
            raise PacxError(f"number {self.read} is unreadable")
        if self.read == self._end:
            raise StopIteration
        self.read += 1
        return self.read - 1

    def close(self) -> None:
        self.closed += 1


def no_thread_is_left() -> bool:
    threads = [t for t in threading.enumerate() if t.name.startswith("prefetch")]
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_order_is_the_stream_s_and_as_many_are_ahead(count):
    numbers, done = Numbers(), threading.Semaphore(0)

    def put(n):
        done.release()
        return -n

    stream = prefetch.Prefetch(numbers, put, count)
    for n in range(20):
        for _ in range(count if n == 0 else min(count, 1)):  # made without a `next`
            assert done.acquire(timeout=10)
        assert numbers.read == n + count
        assert next(stream) == -n
    stream.close()
    assert numbers.closed == 1 and no_thread_is_left()
    assert list(stream) == []


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_error_comes_where_its_batch_would_and_the_end_at_the_end(count):
    stream = prefetch.Prefetch(Numbers(bad=3), lambda n: n, count)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(PacxError, match="number 3 is unreadable"):
            next(stream)
    stream.close()
    stream = prefetch.Prefetch(Numbers(end=3), lambda n: n, count)
    assert list(stream) == [0, 1, 2] and list(stream) == []
    stream.close()
    assert no_thread_is_left()


def test_what_is_put_by_a_hidden_transfer_is_an_error():
    for count in (0, 2):
        stream = prefetch.Prefetch(Numbers(), jnp.float32, count)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-d"):
            next(stream)
        stream.close()


def test_close_does_not_wait_for_a_stream_that_hangs(monkeypatch):
    monkeypatch.setattr(prefetch, "_PATIENCE", 0.05)
    numbers, goes_on = Numbers(), threading.Event()
    stream = prefetch.Prefetch(numbers, lambda n: n == 0 or goes_on.wait(10), 2)
    assert next(stream) and not stream.wait(0.01)
    stream.close()
    assert numbers.closed == 1 and list(stream) == []
    goes_on.set()
    assert no_thread_is_left() and numbers.read == 2


class Loss:
    """Of an update that is computed when it has been looked at a few times."""

    def __init__(self, looks: int):
        self.looks = looks

    def is_ready(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_devices_starve_from_when_their_step_is_done(tmp_path, monkeypatch):
    # 5 looks come before the batch: devices are busy for the first 3 of them.
    monkeypatch.setattr(goodput, "POLL_SECONDS", 0.02)
    goes_on, looks = threading.Event(), []

    def put(n):
        assert goes_on.wait(10)
        return n

    class Watched(prefetch.Prefetch):
        def wait(self, seconds):
            looks.append(seconds)
            if len(looks) == 5:
                goes_on.set()
            return super().wait(seconds)

    ledger = goodput.Ledger(str(tmp_path))
    stream = Watched(Numbers(), put, 1)
    assert ledger.next_batch(stream, 1, {"loss": Loss(3)}) == 0
    ledger.close()
    stream.close()
    seconds = goodput.read(str(tmp_path))["seconds"]
    assert seconds["productive"] >= 3 * 0.02 - 0.005
    assert seconds["data_stall"] >= 0.02 - 0.005
