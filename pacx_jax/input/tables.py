"""Reading the CSV beside a data set: paths, patients, labels, splits.

Every reader here answers with one line that names the file, the column and the row
when the table is not what it should be.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from pacx_jax.errors import PacxError

PATH_COLUMNS = ("path", "Path", "file", "filename", "Image Index")
PATIENT_COLUMNS = ("patient_id", "subject_id", "Patient ID", "patient")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "test": "test",
}
_MISSING = {"", "nan", "na", "n/a", "none", "null", "unknown", "?"}
_LABEL_VALUES = {0.0, 1.0, -1.0}
_NEGATIVE = "No Finding"  # NIH's word for an image without any of its findings


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV (or TSV) file as text: its columns and the cells of each row."""

    path: str
    columns: tuple[str, ...]
    rows: list[list[str]]

    def column(self, name: str, field: str) -> list[str]:
        """The cells of one column; `field` is the config field that named it."""
        if name not in self.columns:
            raise PacxError(
                f"{self.path}: no column {name!r} ({field}); its columns are "
                f"{', '.join(self.columns)}"
            )
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def first_of(self, candidates: Sequence[str]) -> str:
        """The first of the candidates that is a column, or ""."""
        return next((name for name in candidates if name in self.columns), "")


def read_table(path: str | os.PathLike) -> Table:
    """Reads a CSV with a header; a name ending in .tsv is tab-separated."""
    path = pathlib.Path(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
    except FileNotFoundError:
        raise PacxError(f"{path}: no such CSV file; check data.csv") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PacxError(f"{path}: not a readable UTF-8 CSV file ({error})") from None
    if len(rows) < 2:
        raise PacxError(f"{path}: the CSV has no rows under a header")
    columns = tuple(cell.strip() for cell in rows[0])
    for number, row in enumerate(rows[1:], start=2):
        while len(row) > len(columns) and not row[-1].strip():
            row.pop()  # NIH's rows end in a comma where the header may not
        if len(row) != len(columns):
            raise PacxError(
                f"{path}: row {number} has {len(row)} cells, the header {len(columns)}"
            )
    return Table(str(path), columns, rows[1:])


def patients(table: Table, column: str, field: str) -> list[str]:
    """Patient ids of all rows, none of them blank or unknown."""
    ids = [cell.strip() for cell in table.column(column, field)]
    for number, patient in enumerate(ids, start=2):
        if patient.lower() in _MISSING:
            raise PacxError(
                f"{table.path}: row {number} has no known patient in column "
                f"{column!r} ({patient!r}); fill it in or remove the row"
            )
    return ids


def split_names(table: Table, column: str, field: str) -> list[str]:
    """The rows' splits as train, val or test."""
    names = []
    for number, cell in enumerate(table.column(column, field), start=2):
        name = SPLIT_NAMES.get(cell.strip().lower())
        if name is None:
            raise PacxError(
                f"{table.path}: row {number} has the unknown split {cell!r} in column "
                f"{column!r}; use train, val or test"
            )
        names.append(name)
    return names


def labels(
    table: Table,
    label_columns: Sequence[str] = (),
    separator: str = "|",
    exclude: Iterable[str] = (),
) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads the labels of all rows.

    Each name of `label_columns` is either a numeric column or one of the values in a
    column of separated values ("Effusion|Mass"). Without names, the labels are all
    columns that hold nothing but 0, 1, -1 and blanks; where there are none, all
    values of the first column called `labels`, `Finding Labels` or `label`, sorted,
    without "No Finding", which is the absence of the others.

    Returns:
      Names, and float32 (rows, labels): NaN where the cell is blank, -1 (uncertain)
      as it stands, 1 or 0 for separated values.

    Raises:
      PacxError: a name that is neither a column nor a value, or a cell that is not a
        number.
    """
    exclude = set(exclude)
    names = tuple(label_columns)
    if not names:
        names = tuple(
            name
            for name in table.columns
            if name not in exclude and _is_label_column(table.column(name, ""))
        )
        if not names:
            return _all_values(table, separator)
    if not set(names) - set(table.columns):
        return names, _stack([_numbers(table, name) for name in names], table)
    values = {
        name: _values(table, name, separator)
        for name in table.columns
        if name not in exclude
    }
    source = {}
    for name in names:
        if name in table.columns:
            continue
        source[name] = next((c for c in values if name in values[c]), None)
        if source[name] is None:
            raise PacxError(
                f"{table.path}: data.label_columns has {name!r}, which is neither a "
                f"column ({', '.join(table.columns)}) nor a value in a column of "
                f"{separator!r}-separated values"
            )
    columns = [
        _indicator(table, source[name], name, separator)
        if name in source
        else _numbers(table, name)
        for name in names
    ]
    return names, _stack(columns, table)


def assign_splits(
    groups: Sequence[str], val_fraction: float, test_fraction: float = 0.0
) -> list[str]:
    """Splits examples by the hash of their group: a patient, else a file.

    A group goes where its hash, uniform in [0, 1), falls: below `test_fraction` to
    test, then `val_fraction` to val, else to train. So the split depends on neither
    the order nor the number of files, and nobody moves when others are added. When
    chance leaves val (or train) empty, the group nearest to it by hash moves there.
    """
    for field, value in (("val", val_fraction), ("test", test_fraction)):
        if not 0 <= value < 1:
            raise PacxError(f"data.{field}_fraction {value}: give a number in [0, 1)")
    if val_fraction + test_fraction >= 1:
        raise PacxError("data.val_fraction + data.test_fraction must be below 1")
    where = {group: _uniform(group) for group in groups}
    split = {
        group: "test"
        if u < test_fraction
        else ("val" if u < test_fraction + val_fraction else "train")
        for group, u in where.items()
    }
    ordered = sorted(where, key=lambda group: (where[group], group))
    for name, fraction, nearest in (
        ("test", test_fraction, ordered),
        ("val", val_fraction, ordered),
        ("train", 1.0, ordered[::-1]),
    ):
        if fraction and name not in split.values():
            counts = collections.Counter(split.values())
            movable = (group for group in nearest if counts[split[group]] > 1)
            split.update({group: name for group in itertools.islice(movable, 1)})
    return [split[group] for group in groups]


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def _is_label_column(cells: list[str]) -> bool:
    values = set()
    for cell in set(cells):
        if cell.strip().lower() in _MISSING:
            continue
        try:
            values.add(float(cell))
        except ValueError:
            return False
    return bool(values) and values <= _LABEL_VALUES


def _numbers(table: Table, name: str) -> list[float]:
    numbers = []
    for row, cell in enumerate(table.column(name, "data.label_columns"), start=2):
        try:
            missing = cell.strip().lower() in _MISSING
            number = float("nan") if missing else float(cell)
        except ValueError:
            number = None
        if number not in (0.0, 1.0, -1.0) and number == number:
            raise PacxError(
                f"{table.path}: row {row} has {cell!r} in the label column {name!r}; "
                "labels are 0, 1, -1 (uncertain) or blank"
            )
        numbers.append(number)
    return numbers


def _split_cell(cell: str, separator: str) -> set[str]:
    return {part.strip() for part in cell.split(separator)} - {""}


def _values(table: Table, column: str, separator: str) -> set[str]:
    cells = set(table.column(column, "data.label_columns"))
    return set().union(*(_split_cell(cell, separator) for cell in cells))


def _indicator(table: Table, column: str, name: str, separator: str) -> list[float]:
    cells = [_split_cell(c, separator) for c in table.column(column, "")]
    return [float(name in cell) if cell else float("nan") for cell in cells]


def _all_values(table: Table, separator: str) -> tuple[tuple[str, ...], np.ndarray]:
    column = table.first_of(("labels", "Finding Labels", "label"))
    if not column:
        return (), np.zeros((len(table.rows), 0), np.float32)
    names = tuple(sorted(_values(table, column, separator) - {_NEGATIVE}))
    columns = [_indicator(table, column, name, separator) for name in names]
    return names, _stack(columns, table)


def _stack(columns: list[list[float]], table: Table) -> np.ndarray:
    if not columns:
        return np.zeros((len(table.rows), 0), np.float32)
    return np.asarray(columns, np.float32).T.copy()
