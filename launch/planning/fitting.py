"""The largest batch that fits a chip's memory, by few compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

STEP = 8  # rows a chip between the batches that are tried


@dataclasses.dataclass(frozen=True)
class Tried:
    """One compile: rows a chip, bytes it needs, and whether that fits.

    Where it does not fit, the bytes are what the compiler said it would need, or None.
    """

    rows: int
    peak: int | None
    fits: bool


def largest(
    tried: list[Tried],
    compile_at: Callable[[int], Tried],
    capacity: int,
    fixed: int,
    compiles: int,
    step: int = STEP,
    most: int = 2**31,
) -> list[Tried]:
    """Tries batches until the largest is found, or `compiles` are spent.

    The next one lies where a line through the two nearest known points meets the
    capacity; the first line starts at `fixed`. What is found was compiled and fits; it
    is a lower bound unless the next `step` rows are known not to fit.

    Args:
      tried: what is known, at least one.
      capacity: bytes of a chip.
      fixed: bytes that do not depend on the batch: parameters and optimizer.
      compiles: how many more.
      step: rows a chip come in multiples of this.
      most: rows a chip that are not exceeded, whatever fits.

    Returns:
      all that were tried, by rows.
    """
    tried = sorted(tried, key=lambda t: t.rows)
    for _ in range(compiles):
        rows = _next(tried, capacity, fixed, step)
        rows = rows and min(rows, most - most % step)
        if rows is None or rows in {t.rows for t in tried}:
            break
        tried = sorted([*tried, compile_at(rows)], key=lambda t: t.rows)
    return tried


def bounds(tried: list[Tried]) -> tuple[int, int | None]:
    """(most rows that fit or 0, fewest that do not or None)."""
    fits = max((t.rows for t in tried if t.fits), default=0)
    above = [t.rows for t in tried if not t.fits and t.rows > fits]
    return fits, min(above, default=None)


def is_exact(tried: list[Tried], step: int = STEP) -> bool:
    """Whether the next batch after the largest that fits is known not to."""
    low, high = bounds(tried)
    return high is not None and high - low <= step


def _next(tried: list[Tried], capacity: int, fixed: int, step: int) -> int | None:
    low, high = bounds(tried)
    points = [(0, fixed), *((t.rows, t.peak) for t in tried if t.peak is not None)]
    points.sort()
    below = [p for p in points if p[1] <= capacity]
    above = [p for p in points if p[1] > capacity]
    if not below:  # the parameters alone do not fit
        return None
    if above:
        (x0, y0), (x1, y1) = below[-1], above[0]
    elif len(below) > 1:
        (x0, y0), (x1, y1) = below[-2:]
    else:
        return None
    if y1 <= y0:
        return None
    rows = int(x0 + (capacity - y0) * (x1 - x0) / (y1 - y0))
    rows -= rows % step
    if high is not None and rows >= high:  # the compiler did not say by how much
        rows = (low + high) // 2
        rows -= rows % step
    if rows <= low:
        rows = low + step
    known = {t.rows for t in tried}
    return None if rows in known or (high is not None and rows >= high) else rows
