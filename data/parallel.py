"""Rows made into examples by threads, in order and in constant memory."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pacx_jax.errors import PacxError

_CHUNK = 16  # rows a worker gets at a time


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _make_chunk(
    make: Callable[[Any], dict[str, Any]], rows: Iterable[Any]
) -> list[tuple[dict[str, Any] | None, str]]:
    made = []
    for row in rows:
        try:
            made.append((make(row), ""))
        except PacxError as error:
            made.append((None, str(error)))
    return made


def make_all(
    make: Callable[[Any], dict[str, Any]], rows: Iterable[Any], workers: int
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """(example, "") or (None, reason) of each row, in order, in constant memory.

    Threads serve as well as processes, which would take seconds to start: decoding,
    resizing and encoding leave the interpreter free, and one writer limits both.
    """
    rows = iter(rows)
    chunks = iter(lambda: list(itertools.islice(rows, _CHUNK)), [])
    if workers < 2:
        for chunk in chunks:
            yield from _make_chunk(make, chunk)
        return
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    # Only a few chunks are under way, or results would pile up before the writer.
    waiting: collections.deque = collections.deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_make_chunk, make, chunk))
            if len(waiting) >= 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
