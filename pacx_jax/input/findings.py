"""Labels of a table's rows: which columns and values are some, and what they mean."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import patients, tables

LISTS = ("labels", "findinglabels", "label")  # columns of separated values
# A column with one of these words in its name is no label unless it is asked for.
_BOOKKEEPING = (
    "age sex gender male female visit follow followup index id row fold series "
    "instance number year offset width height spacing unnamed exclude excluded "
    "include included duplicate quality train test val validation split view site "
    "opinion report validated"
).split()
_LABEL_WORDS = dict.fromkeys(("true", "yes", "y", "t"), 1.0)
_LABEL_WORDS |= dict.fromkeys(("false", "no", "n", "f"), 0.0)
_NEGATIVE = "no finding"  # NIH's word for an image without any of its findings
_BLANK = patients.MISSING - {"none"}  # which may mean that nothing was found
_SHOWN = 20
NEARLY = "NO LABELS:"  # begins a note on what may have been meant as one


class Labels(NamedTuple):
    """Names of c labels, float32 (rows, c), and lines that say where they are from."""

    names: tuple[str, ...]
    values: np.ndarray
    notes: tuple[str, ...] = ()


def read(
    table: tables.Table,
    label_columns: Sequence[str] = (),
    separator: str = "|",
    exclude: Iterable[str] = (),
    some: bool = False,
) -> Labels:
    """Reads the labels of all rows.

    Each name of `label_columns` is a column of 0, 1, -1, true, false, yes, no and
    blanks, or one of the values in a column of separated values ("Effusion|Mass"), or
    COLUMN=VALUE. Without names, the labels are all such columns but those of ROLES and
    of bookkeeping; where there are none, all values of the first column of LISTS,
    sorted, without "No Finding", which is the absence of the others. With `some`, names
    that the table does not have are passed over.

    Returns:
      Labels: NaN where the cell is blank, -1 (uncertain), 1 or 0.

    Raises:
      PacxError: a name that is neither a column nor a value, or a value of two columns;
        a cell that is no label; values that another separator seems to divide.
    """
    if not separator:
        raise PacxError("data.label_separator is empty: give what is between values")
    roles = {c for c in table.columns if tables.role(c)} | {*exclude}
    free = [c for c in table.columns if c not in roles - {*label_columns}]
    names, asked = tuple(label_columns), []
    if twice := [name for name in names if names.count(name) > 1]:
        raise PacxError(f"data.label_columns has {twice[0]!r} twice; name it once")
    loose = functools.cache(lambda c: _values(table, c) | _values(table, c, separator))
    if not names:
        names, asked, free = _all(table, free, separator)
    elif some:
        columns = {*table.columns}
        there = columns.union(*map(loose, free))
        names = tuple(n for n in names if n in there or n.partition("=")[0] in columns)
    found, told, used = [], [], set()
    for name in names:
        column, value = _origin(table, name, free, separator, loose)
        cells = table.column(column, "data.label_columns")
        used.add(column)
        if value is None:
            found.append(_numbers(table, column))
            counts = collections.Counter(cell.strip() or "blank" for cell in cells)
            how = ", ".join(f"{v} {n}" for v, n in sorted(counts.items()))
        else:
            found.append(_indicator(cells, value, separator))
            how = f"in {column!r} {found[-1].count(1.0)} of {len(cells)}"
        told.append(f"{name} ({how})")
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    notes = [f"labels: {', '.join(told[:_SHOWN]) or 'none'}{more}"]
    other = [c for c in table.columns if c and c not in used | {*exclude}]
    other += ["one without a name"] if "" in table.columns else []
    notes += [f"columns that are not used: {', '.join(other)}"] if other else []
    only = [n for n, x in zip(names, found, strict=True) if 1.0 in x and 0.0 not in x]
    if only:
        notes.append(
            f"NO NEGATIVES of {', '.join(only)}: blanks are unknown and are masked; "
            "write 0 where a finding is absent"
        )
    if asked:
        notes.append(f"labels if data.label_columns has them: {', '.join(asked)}")
    if not names:
        notes += [f"{NEARLY} {told}" for _, told in _nearly(table, free)]
    elif not label_columns:
        rest = [column for column in free if column not in used]
        for cell, told in _nearly(table, rest):
            if not _is_number(cell):  # a column of counts may be anything else
                raise PacxError(
                    f"{table.path}: {told}; mend the cell, or say by "
                    f"data.label_columns which labels there are ({', '.join(names)})"
                )
    values = np.array(found, np.float32).reshape(len(names), len(table.rows))
    return Labels(names, values.T.copy(), tuple(notes))


def _all(
    table: tables.Table, free: list[str], separator: str
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Labels where none are named, columns that might be some, and where to look."""
    like = [c for c in free if _is_label_column(table.column(c, ""))]
    names = tuple(c for c in like if not _is_bookkeeping(c))
    others = [c for c in free if c not in like]
    lists = [c for n in LISTS for c in others if tables.plain(c) == n]
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(patients.look(name.replace("_", " ")), name)
        if other != name:
            raise PacxError(
                f"{table.path}: columns {other!r} and {name!r} seem one label; remove "
                "or rename one, or say by data.label_columns which are labels"
            )
    if names and lists:
        raise PacxError(
            f"{table.path}: column {lists[0]!r} has words and {', '.join(names[:5])} "
            "0 and 1: say by data.label_columns which of these are labels"
        )
    asked = [c for c in like if c not in names]
    if lists:
        values = _values(table, lists[0], separator)
        names = tuple(sorted(v for v in values if v.lower() != _NEGATIVE))
        free = lists[:1]
    return names, asked, free


def _origin(
    table: tables.Table,
    name: str,
    free: list[str],
    separator: str,
    loose: Callable[[str], set[str]],
) -> tuple[str, str | None]:
    """The column of a label, and which of its values it is; None for the column."""
    if name in table.columns:
        return name, None
    column, equals, value = name.partition("=")
    if not equals or column not in table.columns:
        column, value = "", name
    places = [column] if column else [c for c in free if name in loose(c)]
    places = [c for c in places if tables.plain(c) in LISTS] or places
    if not places:
        for c in free:
            if any(f"'{value}'" in x or f'"{value}"' in x for x in table.column(c, "")):
                _check_words(table, c, value, _values(table, c, separator))
        raise PacxError(
            f"{table.path}: data.label_columns has {name!r}, which is neither a "
            f"column ({', '.join(table.columns)}) nor a value in a column of "
            f"{separator!r}-separated values"
        )
    if len(places) > 1:
        raise PacxError(
            f"{table.path}: {name!r} is a value of the columns {' and '.join(places)}; "
            f"write {places[0]}={name} in data.label_columns"
        )
    whole = _values(table, places[0], separator)
    _check_words(table, places[0], value, whole)
    divided = any(separator in cell for cell in table.column(places[0], ""))
    for other in ",;|/+":
        for listed in whole if other != separator else ():
            parts = _split_cell(listed, other)
            if len(parts) > 1 and (
                value in parts or (parts <= whole if divided else parts & whole)
            ):
                raise PacxError(
                    f"{table.path}: {listed!r} in column {places[0]!r} seems a list "
                    f"with {other!r} between; give data.label_separator={other!r} (or, "
                    "if it is one label, any other sign that the column lacks)"
                )
    return places[0], value


def _check_words(table: tables.Table, column: str, value: str, whole: set[str]) -> None:
    """PacxError for lists as Python writes them, and one word in two spellings."""
    for other in sorted(whole):
        if re.match(r"[\[{]|\(['\"]", other):
            raise PacxError(
                f"{table.path}: column {column!r} has lists in brackets, {other!r}; "
                "write the values alone, such as Effusion|Mass"
            )
        if other != value and patients.look(other) == patients.look(value):
            what = "" if ascii(other) == repr(other) else f" ({ascii(other)})"
            raise PacxError(
                f"{table.path}: column {column!r} has both {value!r} and {other!r}"
                f"{what}; write one label in one way"
            )


def _is_bookkeeping(name: str) -> bool:
    spaced = re.sub("(?<=[a-z])(?=[A-Z])", " ", name).casefold()
    known = (
        word == b or len(b) > 4 and (word.startswith(b) or word.endswith(b))
        for word in re.findall("[a-z]+", spaced)
        for b in _BOOKKEEPING
    )
    return not name or "]" in name or any(known)


def _is_label_column(cells: list[str]) -> bool:
    values = {_label(cell) for cell in set(cells)}
    return None not in values and any(value == value for value in values)


def _nearly(table: tables.Table, free: list[str]) -> list[tuple[str, str]]:
    """The first cell that is no label, of columns most of whose filled cells are."""
    found = []
    for column in free:
        cells = table.column(column, "")
        values = [_label(cell) for cell in cells]
        bad = [i for i, value in enumerate(values) if value is None]
        good = sum(value in (0.0, 1.0, -1.0) for value in values)
        if not _is_bookkeeping(column) and 0 < len(bad) <= good:
            told = (
                f"column {column!r} is no label, as row {bad[0] + 2} has "
                f"{cells[bad[0]]!r}; labels are 0, 1, -1 (uncertain), true, false, "
                "yes, no or blank"
            )
            found.append((cells[bad[0]], told))
    return found


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _label(cell: str) -> float | None:
    """1, 0, -1, NaN where missing; None for what is no label."""
    text = cell.strip().lower()
    if text in patients.MISSING:
        return float("nan")
    if "_" in text:  # 0_1, which Python takes for 1
        return None
    try:
        number = _LABEL_WORDS.get(text)
        number = float(text.replace(",", ".")) if number is None else number
    except ValueError:
        return None
    return number if number in (0.0, 1.0, -1.0) else None


def _numbers(table: tables.Table, name: str) -> list[float]:
    numbers = []
    for row, cell in enumerate(table.column(name, "data.label_columns"), start=2):
        numbers.append(_label(cell))
        if numbers[-1] is None:
            raise PacxError(
                f"{table.path}: row {row} has {cell!r} in the label column {name!r}; "
                "labels are 0, 1, -1 (uncertain), true, false, yes, no or blank. If it "
                "lists findings, name these in data.label_columns, not the column"
            )
    return numbers


def _split_cell(cell: str, separator: str) -> set[str]:
    parts = {part.strip() for part in cell.split(separator)}
    return {part for part in parts if part.lower() not in _BLANK}


def _values(table: tables.Table, column: str, separator: str = "") -> set[str]:
    """A column's values; without a separator, what any divides."""
    cells = set(table.column(column, "data.label_columns"))
    if not separator:
        cells |= {part for cell in cells for part in re.split("[,;|]", cell)}
    return set().union(*(_split_cell(cell, separator or "|") for cell in cells))


def _indicator(cells: list[str], name: str, separator: str) -> list[float]:
    parts = [_split_cell(cell, separator) for cell in cells]
    return [float(name in part) if part else float("nan") for part in parts]
