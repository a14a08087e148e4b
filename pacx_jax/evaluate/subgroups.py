"""Subgroups by view, and by sex, age band and whatever else a user's table says.

Sex and age are in no prepared set; most publishers' tables have them. A table is a CSV
with a column of paths or file names, or of patients (`input.tables.ROLES`), and further
columns, each of which divides the examples.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import measures, statistics
from pacx_jax.input import names, patients, tables

BANDS = ((0, 17), (18, 39), (40, 59), (60, 79), (80, 120))  # years
UNKNOWN = "unknown"
_SEX = ("sex", "gender", "patientsex", "patientgender")
_AGE = ("age", "patientage", "ageyears", "anchorage")
_SEXES = {"f": "female", "m": "male", "woman": "female", "man": "male"}


def age_band(cell: str) -> str:
    """The band of an age in years: 57, 57.0 or 057Y; "unknown" for anything else.

    DICOM's 006M, 010W and 005D are months, weeks and days. Above 120 there is no age.

    >>> age_band("057Y"), age_band("91"), age_band("411")
    ('40-59', '80+', 'unknown')
    """
    found = re.fullmatch(r"\s*([0-9]{1,4})(\.[0-9]*)?\s*([YMWD]?)\s*", cell, re.I)
    if not found:
        return UNKNOWN
    years = int(found[1]) // {"M": 12, "W": 52, "D": 365}.get(found[3].upper(), 1)
    for low, high in BANDS:
        if low <= years <= high:
            return f"{low}+" if high == BANDS[-1][1] else f"{low}-{high}"
    return UNKNOWN


def _group(column: str, cell: str) -> str:
    """The group that a cell of a table's column puts an example in."""
    text = " ".join(cell.split())
    if text.lower() in patients.MISSING:
        return UNKNOWN
    if tables.plain(column) in _AGE:
        return age_band(text)
    if tables.plain(column) in _SEX:
        return _SEXES.get(text.lower(), text.lower())
    return text


def view_groups(source: Any, index: np.ndarray) -> list[str] | None:
    """The fine view of each image; None where the source names none, as of studies."""
    found, known = [], {}
    for i in index:
        part, j = source, int(i)
        while hasattr(part, "origin"):
            part, j = part.origin(j)
        if id(part) not in known:
            known[id(part)] = _views(part)
        views = known[id(part)]
        if not views and "view" in part.entries:  # only each record names it
            found.append(part[j]["view"])
        else:
            found.append(views[j] if views else UNKNOWN)
    return found if set(found) - {UNKNOWN} else None


def _views(source: Any) -> list[str]:
    """The views of a source's images as far as they are listed; [] without."""
    listed = getattr(source, "views", [])
    index = source.studies() if not listed and hasattr(source, "studies") else None
    return index.views if index else listed


def read_groups(
    file: str, columns: Sequence[str], paths: Sequence[str], named: Sequence[str]
) -> dict[str, list[str]]:
    """The groups of the examples by each column of a user's table.

    Args:
      file: of the CSV; rows of other examples are passed over.
      columns: to divide by; () takes those called sex, gender or age.
      paths: (n,) of the examples, which a table's column of paths is looked up in, also
        by file name alone.
      named: (n,) patients, for a table without such a column.

    Returns:
      Column -> (n,) groups, "unknown" where the table has no row or a blank cell.

    Raises:
      PacxError: no column to find the examples by or to divide by, two rows that
        disagree on an example, or a table with no row of any of them.
    """
    table = tables.read_table(file)
    roles = tables.columns(table, {})
    usual = [c for c in table.columns if tables.plain(c) in _SEX + _AGE]
    if not (columns := tuple(columns) or tuple(usual)):
        raise PacxError(
            f"{file}: no column is called sex, gender or age; name those to divide by "
            f"as --group_columns, of {', '.join(table.columns)}"
        )
    if roles["path"]:
        known = names.Names(sorted(set(paths)))
        rows = [known.at(cell) for cell in table.column(roles["path"], "")]
        if several := next((found for found in rows if len(found) > 1), None):
            raise PacxError(
                f"{file}: column {roles['path']!r} has a name of several images, such "
                f"as {several[0]} and {several[1]}; write their paths"
            )
        ids = list(paths)
    elif roles["patient"]:
        cells = tables.patients(table, roles["patient"], "--groups")
        rows, ids = [[cell] for cell in cells], list(map(patients.canonical, named))
    else:
        raise PacxError(
            f"{file}: no column of paths or patients; call one path or patient_id, of "
            f"{', '.join(table.columns)}"
        )
    groups = {}
    for column in columns:
        cells, of = table.column(column, "--group_columns"), {}
        for number, (found, cell) in enumerate(zip(rows, cells, strict=True), start=2):
            for who in found:
                group = _group(column, cell)
                if of.setdefault(who, group) != group:
                    raise PacxError(
                        f"{file}, row {number}: {who} is {group!r} in column "
                        f"{column!r}, and {of[who]!r} in another row; give one row "
                        "each, or a column of paths"
                    )
        groups[column] = [of.get(i, UNKNOWN) if i else UNKNOWN for i in ids]
    if not set(itertools.chain(*rows)) & set(ids):
        by = roles["path"] or roles["patient"]
        raise PacxError(
            f"{file}: no row is of any of {len(ids)} examples: column {by!r} begins "
            f"with {table.column(by, '')[0]!r}, the examples with {ids[0]!r}"
        )
    return groups


def compared(
    given: measures.Examples,
    groups: Sequence[str],
    units: np.ndarray,
    weights: np.ndarray,
) -> dict[str, Any]:
    """Every measure in each group, and how far the groups lie apart.

    A gap is the highest less the lowest group's value, both named; its interval is of
    these two, under the same resamples of patients. They are picked by looking, so the
    gap of small groups is too large on average. A macro mean in a group, and so its
    gap, is over the labels that every group has both classes of.

    Args:
      groups: (n,) of the examples; "unknown" is counted, and not compared.
      units: (n,) patients.
      weights: (r, n).

    Returns:
      `n` (group -> n and n_patients, and counts of the labels), `scores` (group ->
      `measures.rows`), `gap` (the same form, with `highest` and `lowest`),
      `not_compared` (groups in which no label has both classes, and "unknown").
    """
    groups, sizes, inside, found = np.asarray(groups), {}, {}, {}
    for name in sorted(set(groups)):
        rows = np.flatnonzero(groups == name)
        part = given.rows(rows)
        sizes[name] = {"n": len(rows), "n_patients": len(np.unique(units[rows]))}
        if counted := measures.counts(part):
            sizes[name]["labels"] = counted
        if name != UNKNOWN and len(measures.defined(part)):
            inside[name] = rows
    left = [name for name in sizes if name not in inside]
    columns = {g: set(measures.defined(given.rows(r))) for g, r in inside.items()}
    shared = sorted(set.intersection(*columns.values())) if columns else []
    scores = {}
    for name, rows in inside.items():
        own = sorted(columns[name])
        part = given.rows(rows).columns(own)
        found[name] = measures.values(part, weights[:, rows])
        scores[name] = measures.rows(part.names, found[name])
        everywhere = [own.index(c) for c in shared]
        found[name] = {k: v[:, everywhere] for k, v in found[name].items()}
        scores[name]["macro"] = (
            measures.rows((), found[name])["macro"] if shared else {}
        )
    result = {"n": sizes, "scores": scores, "not_compared": left}
    if len(inside) > 1 and shared:
        result["gap"] = _gaps([given.names[c] for c in shared], found)
    return result


def _gaps(columns: Sequence[str], found: dict[str, dict[str, np.ndarray]]) -> dict:
    """Gaps of the columns and of their mean, from (1 + r, c) values of each group."""

    def gap(each: dict[str, np.ndarray]) -> dict[str, Any]:
        there = {g: v for g, v in each.items() if not np.isnan(v[0])}
        if len(there) < 2:
            return {"value": None, "low": None, "high": None}
        high = max(there, key=lambda g: there[g][0])
        low = min(there, key=lambda g: there[g][0])
        apart = statistics.row(there[high] - there[low])
        return apart | {"highest": high, "lowest": low}

    result = collections.defaultdict(lambda: collections.defaultdict(dict))
    for measure in next(iter(found.values())):
        each = {g: v[measure] for g, v in found.items()}
        means = {g: statistics.mean_defined(v) for g, v in each.items()}
        result["macro"][measure] = gap(means)
        for c, name in enumerate(columns):
            column = {g: v[:, c] for g, v in each.items()}
            result["labels"][name][measure] = gap(column)
    return {"macro": result["macro"], "labels": dict(result["labels"])}
