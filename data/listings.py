"""What the tables and folders of a published set list: rows, and files to find.

Every reader answers with one line that names the file and the row when something is
not as published.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Container, Iterator, Mapping, Sequence

from data import runs
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import names, tables


@dataclasses.dataclass(frozen=True)
class Row:
    """One image as the data set's tables describe it.

    Attributes:
      origin: where that stands, for messages.
      file: name or path of the image; a name without extension fits any.
      labels: 1, 0, -1 (uncertain) or NaN (missing), in the order of `Facts.labels`.
      patient: "" if not known.
      split: the official one, "" without one.
      stratum: 1 where a stratified draw counts the row as positive.
      folder: a folder above the image, where names repeat ("train").
      mask: path of its mask, "" if that is not there, or the runs of its pixels;
        None where the set has none.
      study: its study's id, unique within the patient; "" where the set names none.
      views: its view as each origin has it, (origin, text) for `views.settle`; ()
        where the set says nothing.
      report: findings and impression of its study, each "" without one; None where
        the set has no reports.
    """

    origin: str
    file: str
    labels: Sequence[float]
    patient: str = ""
    split: str = ""
    stratum: float = 0.0
    folder: str = ""
    mask: str | runs.Runs | None = None
    study: str = ""
    views: tuple[tuple[str, str], ...] = ()
    report: tuple[str, str] | None = None


class Files:
    """The images under a root, found by path, name, or name without extension.

    They are listed when that is needed: those of MIMIC-CXR-JPG, in 300,000 folders,
    are found by their paths.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root

    @functools.cached_property
    def found(self) -> names.Found:
        """All files, relative to the root."""
        return names.find(self.root)

    @property
    def paths(self) -> list[str]:
        """The images among them."""
        return self.found.paths

    @functools.cached_property
    def _names(self) -> names.Names:
        return names.Names(self.paths)

    @functools.cached_property
    def _folders(self) -> set[str]:
        return {folder for path in self.paths for folder in path.split("/")[:-1]}

    def find(self, row: Row) -> str:
        """The path of a row's image, "" if it is not there; PacxError if twice."""
        name = row.file.strip().replace("\\", "/")
        above = name.split("/")[:-1]
        inside = above and not {"", ".", ".."} & set(above)
        if inside and os.path.isfile(self.root / name):
            return name
        folder = row.folder if row.folder in self._folders else ""
        found = self._names.named(name, folder)
        if name in found:
            return name
        if len(found) > 1:
            raise PacxError(
                f"{row.origin}: {name!r} is both {found[0]} and {found[1]} under "
                f"{self.root}; keep one"
            )
        return found[0] if found else ""

    def mask(self, path: str) -> str:
        """The image at this path, with its extension or another; "" without one."""
        found = self._names.exactly(path)
        return found[0] if len(found) == 1 else ""


def first_file(root: pathlib.Path, *names: str) -> pathlib.Path:
    """The first of the files that is there; PacxError if none is."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise PacxError(f"{root}: no {' or '.join(names)} here; see data/README.md")


class CellTable:
    """A CSV with the columns that are needed; iterates over (origin, cells).

    `origin` names the row in messages, `cells` is column -> text without blanks at its
    ends. Other names of a column are put right by `aliases`.
    """

    def __init__(self, table: tables.Table):
        self.table = table

    def __iter__(self) -> Iterator[tuple[str, dict[str, str]]]:
        for number, row in enumerate(self.table.rows, start=2):
            cells = zip(self.table.columns, row, strict=True)
            yield (
                f"{self.table.path}: row {number}",
                {name: cell.strip() for name, cell in cells},
            )


def read_table(
    path: pathlib.Path, columns: Sequence[str], aliases: Mapping[str, str] | None = None
) -> CellTable:
    """Reads a CSV; PacxError when one of the columns is missing."""
    table = tables.read_table(path)
    renamed = tuple((aliases or {}).get(name, name) for name in table.columns)
    table = dataclasses.replace(table, columns=renamed)
    for column in columns:
        table.column(column, "as published")
    return CellTable(table)


def read_lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file that are not blank."""
    text = files.read_bytes(path).decode("utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def class_folders(
    files: Files, classes: Sequence[str], inside: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(path, split, class) of each image in SPLIT/CLASS[/inside]/, by any case.

    PacxError when a split has a folder that is none of the classes.
    """
    known = {name.lower(): name for name in classes}
    for path in files.paths:
        parts = path.split("/")
        split = tables.SPLIT_NAMES.get(parts[0].lower())
        if split is None or len(parts) < 3:
            continue
        if parts[1].lower() not in known:
            raise PacxError(
                f"{files.root / path}: {parts[1]!r} is not a class; they are "
                f"{', '.join(classes)}"
            )
        if not inside or parts[2].lower() == inside:
            yield path, split, known[parts[1].lower()]


def told_unlisted(files: Files, listed: Container[str]) -> list[str]:
    """A line on images whose names, without extension, a table does not have.

    Those are left out; [] where there are none.
    """
    stems = ((p, p.rsplit("/", 1)[-1].rsplit(".", 1)[0]) for p in files.paths)
    odd = [path for path, stem in stems if stem not in listed]
    return [
        f"{len(odd)} images have no row in the tables and are left out, the first is "
        f"{first}"
        for first in odd[:1]
    ]


def one_hot(names: Sequence[str], name: str) -> list[float]:
    """1 for one of the names, 0 for the others."""
    return [float(name == other) for other in names]
