"""Processes that make batches in turns, for what threads of one process wait for.

Not Grain's: its processes make shared memory anew for each batch and leave some of it
behind at the end. These have theirs from the start, of a file that is unlinked already.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np

from pacx_jax.errors import PacxError

_AHEAD = 2  # batches that each worker makes ahead
_PATIENCE = 10.0  # seconds in which a worker ends its batch and itself
Batch = dict[str, np.ndarray]


def check(workers: int, cache: Any) -> None:
    """PacxError for what workers cannot do."""
    if workers < 0:
        raise PacxError(f"data.workers {workers}: give 0 (threads) or more")
    if workers and cache:
        raise PacxError(
            f"data.cache=True with data.workers={workers}: each process would fill a "
            "cache of its own; give data.cache=False or data.workers=0"
        )


class Workers:
    """An iterator of make(start), make(start + 1), ... without end.

    Worker w makes every count-th of them, `_AHEAD` before they are asked for, so that
    neither the number of workers nor their speed changes a batch or the order. The
    first is made here, while the workers start: its shapes are those of all.

    Args:
      make: number -> batch; pickled with all that it holds.
      start: number of the first batch.
      count: how many processes.
    """

    def __init__(self, make: Callable[[int], Batch], start: int, count: int):
        self._make, self._next, self._count = make, start, count
        self._start = start
        self._workers: list[tuple[Any, Any, list[Batch]]] = []
        # Also when it is forgotten or Python ends.
        self.close = weakref.finalize(self, _end, self._workers)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.close.alive:
            raise StopIteration
        number, self._next = self._next, self._next + 1
        if number == self._start:
            pickled = cloudpickle.dumps(self._make)
            batch = self._make(number)
            self._begin(pickled, batch)
            return batch
        turn = number - self._start - 1
        process, pipe, slots = self._workers[turn % self._count]
        try:
            error = pipe.recv()
        except (EOFError, OSError):
            process.join(_PATIENCE)
            raise PacxError(
                "a worker process of the input pipeline ended (exit code "
                f"{process.exitcode}): memory may be full; lower data.workers or "
                "global_batch_size"
            ) from None
        if error is not None:
            raise error
        slot = turn // self._count % _AHEAD
        batch = {key: array.copy() for key, array in slots[slot].items()}
        _ask(pipe, number + self._count * _AHEAD, slot)
        return batch

    def _begin(self, pickled: bytes, batch: Batch) -> None:
        """Starts the workers, with room for batches like this one."""
        context = multiprocessing.get_context("spawn")
        layout = {key: (array.shape, array.dtype) for key, array in batch.items()}
        size = sum(_room(array.nbytes) for array in batch.values())
        for w in range(self._count):
            memory = context.RawArray(ctypes.c_uint8, _AHEAD * size)
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, pickled, memory, layout), daemon=True
            )
            process.start()
            theirs.close()
            self._workers.append((process, ours, _slots(memory, layout)))
            for slot in range(_AHEAD):
                _ask(ours, self._next + w + slot * self._count, slot)


def _ask(pipe: Any, number: int, slot: int) -> None:
    try:
        pipe.send((number, slot))
    except OSError:
        return  # it has died, which the next answer tells


def _end(workers: list[tuple[Any, Any, list[Batch]]]) -> None:
    """Closes the pipes, at which workers end; kills those that do not."""
    for _, pipe, _ in workers:
        pipe.close()
    for process, *_ in workers:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
    workers.clear()


def _work(pipe: Any, pickled: bytes, memory: Any, layout: dict[str, tuple]) -> None:
    """A worker's life: makes what it is asked for until the other end is closed."""
    # A scheduler and Ctrl-C signal all processes alike; the parent, which may still
    # want a batch to end its step, closes the pipe when it is over, or when it dies.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    slots = _slots(memory, layout)
    make = cloudpickle.loads(pickled)
    while True:
        try:
            number, slot = pipe.recv()
        except (EOFError, OSError):
            return
        answer = None
        try:
            for key, array in make(number).items():
                slots[slot][key][...] = array
        except Exception as error:
            answer = error
        try:
            pipe.send(answer)
        except OSError:
            return


def _slots(memory: Any, layout: dict[str, tuple]) -> list[Batch]:
    """`_AHEAD` batches as views of the memory, one after the other."""
    slots, at = [], 0
    for _ in range(_AHEAD):
        slots.append({})
        for key, (shape, dtype) in layout.items():
            n = int(np.prod(shape))
            view = np.frombuffer(memory, dtype, n, at)
            slots[-1][key] = view.reshape(shape)
            at += _room(view.nbytes)
    return slots


def _room(size: int) -> int:
    return -(-size // 64) * 64  # arrays begin where any dtype may
