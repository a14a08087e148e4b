"""The largest batch that fits a chip's memory, by few compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

STEP = 8  # rows a chip between the batches that are tried


class Tried(NamedTuple):
    """One compile: rows a chip, bytes it needs, and whether that fits.

    Where it does not fit, the bytes are what the compiler said it would need, or None.
    """

    rows: int
    peak: int | None
    fits: bool


def largest(
    first: Tried,
    compile_at: Callable[[int], Tried],
    capacity: int,
    fixed: int,
    compiles: int,
    step: int = STEP,
    most: int = 2**31,
) -> list[Tried]:
    """Tries batches until the largest is found, or `compiles` more are spent.

    What is found was compiled and fits; it is a lower bound unless the next `step` rows
    are known not to fit.

    Args:
      capacity: bytes of a chip.
      fixed: bytes that do not depend on the batch: parameters and optimizer.
      step: rows a chip come in multiples of this.
      most: rows a chip that are not exceeded, whatever fits.

    Returns:
      all that were tried, by rows.
    """
    tried = [first]
    for _ in range(compiles):
        rows = min(_next(tried, capacity, fixed, step), most - most % step)
        if not rows or rows in {t.rows for t in tried}:
            break
        tried = sorted([*tried, compile_at(rows)])
    return tried


def bounds(tried: list[Tried]) -> tuple[int, int | None]:
    """(most rows that fit or 0, fewest that do not or None)."""
    fits = max((t.rows for t in tried if t.fits), default=0)
    above = [t.rows for t in tried if not t.fits and t.rows > fits]
    return fits, min(above, default=None)


def _next(tried: list[Tried], capacity: int, fixed: int, step: int) -> int:
    """Rows where a line through the two nearest known points meets the capacity.

    0 where nothing is left to try, or the state alone does not fit.
    """
    low, high = bounds(tried)
    points = [(0, fixed), *((t.rows, t.peak) for t in tried if t.peak is not None)]
    below = sorted(p for p in points if p[1] <= capacity)
    above = sorted(p for p in points if p[1] > capacity)
    ends = below[-1:] + above[:1] if above else below[-2:]
    if len(ends) < 2 or ends[0][1] >= ends[1][1]:
        return 0
    (x0, y0), (x1, y1) = ends
    rows = int(x0 + (capacity - y0) * (x1 - x0) / (y1 - y0)) // step * step
    if high is not None and rows >= high:  # the compiler did not say by how much
        rows = (low + high) // 2 // step * step
    rows = rows if rows > low else low + step
    return 0 if high is not None and rows >= high else rows
