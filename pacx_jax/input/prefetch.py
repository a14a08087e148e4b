"""Batches on the device before the step that uses them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax

_PATIENCE = 5.0  # seconds that `close` waits for the batch that is being made


class Prefetch:
    """An iterator of put(batch), made by a thread ahead of the caller.

    One thread reads the stream and puts its batches in order, so the batches are the
    same for every count, and every process of a run puts them in the same order. An
    error of the stream is raised where its batch would be returned.

    Args:
      stream: host batches; closed with this.
      put: host batch -> batch on the devices.
      count: how many batches to hold ready, beside the one that was returned last;
        0 = each is made when it is asked for, in the caller's thread.
    """

    def __init__(self, stream: Any, put: Callable[[Any], Any], count: int):
        self._stream, self._put = stream, put
        self._pool = futures.ThreadPoolExecutor(1, "prefetch") if count else None
        self._ahead: collections.deque[futures.Future] = collections.deque()
        self._closed = False
        for _ in range(count):
            self._ahead.append(self._pool.submit(self._make))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        if self._pool is None:
            return self._make()
        batch = self._ahead[0].result()
        self._ahead.popleft()
        self._ahead.append(self._pool.submit(self._make))
        return batch

    def wait(self, seconds: float) -> bool:
        """Whether `next` will not block: waits for that, up to so many seconds."""
        return not self._ahead or bool(futures.wait([self._ahead[0]], seconds).done)

    def close(self) -> None:
        """Drops what is ready and ends the thread and the stream."""
        if self._closed:
            return
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            # The stream is not closed under the thread, unless that hangs.
            running = [f for f in self._ahead if not f.cancelled()]
            futures.wait(running, _PATIENCE)
            self._ahead.clear()
        self._stream.close()

    def _make(self) -> Any:
        # The guard is of one thread: the loop's does not hold here.
        with jax.transfer_guard("disallow"):
            return self._put(next(self._stream))
