"""The parts of a run's page, as plain data: a heading, then charts, tables, images."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

COLOURS = ("pacx", "mae", "violet", "gain", "pink", "teal", "olive", "loss")
MOST = len(COLOURS)  # runs of a page: each has a colour


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure, with a description for readers who do not see it."""

    title: str
    described: str
    figure: Figure


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, as text or numbers; the first cell is the row's head.

    Attributes:
      folded: shown on demand.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence]
    folded: bool = False

    @property
    def kinds(self) -> list[str]:
        """ "text" or "number" for each column: text stands left, and wraps."""
        columns = zip(*self.rows, strict=True)
        return ["number" if all(map(_is_number, c)) else "text" for c in columns]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images side by side: (caption, uint8 image (h, w[, 3])) each."""

    which: str
    images: Sequence[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the page. Without charts, tables and pictures it says `empty`.

    Attributes:
      folded: charts that are shown on demand.
      texts: name -> text that is shown on demand, such as a configuration.
    """

    title: str
    empty: str
    text: str = ""
    charts: Sequence[Chart] = ()
    folded: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Pictures] = ()
    texts: Sequence[tuple[str, str]] = ()

    @property
    def found(self) -> bool:
        """Whether there is anything to show."""
        shown = (self.charts, self.folded, self.tables, self.pictures, self.texts)
        return any(map(len, shown))

    @property
    def widest(self) -> int:
        """The most images in a row of pictures."""
        return max((len(row.images) for row in self.pictures), default=0)


def _is_number(cell) -> bool:
    """Whether a cell is empty, a number or one with its interval."""
    return re.fullmatch(r"|[-+−]?[0-9].{,24}|undefined|nan|inf", str(cell)) is not None


def slug(*parts: str) -> str:
    """A file name of words.

    >>> slug("ROC, test", "Pleural Effusion")
    'roc-test-pleural-effusion'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")
