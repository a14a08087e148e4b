"""Masks as runs of pixels: the relative run-length encoding of SIIM-ACR.

A text is pairs of numbers, "offset length offset length ...": the offset of a run is
counted from the end of the one before it (of the first from pixel 0). Pixels are
numbered down the columns, as those of the transposed image row by row.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pacx_jax.errors import PacxError


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of an image's masks, which together are its mask.

    Attributes:
      texts: one a mask; () = nothing is inside.
      height, width: pixels of the image that they are for.
    """

    texts: tuple[str, ...]
    height: int
    width: int

    @property
    def text(self) -> str:
        """All of it, to tell whether it is another."""
        return f"{self.height}x{self.width} {'; '.join(self.texts)}"


def draw(runs: Runs, name: str) -> np.ndarray:
    """uint8 (height, width), 1 inside.

    >>> draw(Runs(("1 2 1 1",), 2, 3), "x").tolist()
    [[0, 1, 1], [1, 0, 0]]

    Raises:
      PacxError: a text that is no pairs of numbers, or runs beyond the last pixel; it
        names the image.
    """
    columns = np.zeros(runs.width * runs.height, np.uint8)
    for text in runs.texts:
        numbers = text.split()
        if len(numbers) % 2 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise PacxError(
                f"{name}: its mask {text[:40]!r} ({len(numbers)} numbers) is no list "
                "of offsets and lengths"
            )
        at = 0
        for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
            start = at + int(offset)
            at = start + int(length)
            columns[start:at] = 1
        if at > columns.size:
            raise PacxError(
                f"{name}: its mask ends at pixel {at}, the image of {runs.height} x "
                f"{runs.width} at {columns.size}"
            )
    return columns.reshape(runs.width, runs.height).T
