"""Reads the first vital signs of each emergency stay from MIMIC-IV-ED's tables."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data.mimic_labs import events
from pacx_jax.errors import PacxError
from pacx_jax.input import patients
from pacx_jax.modalities import vitals

SIGNS = tuple(vitals.SIGNS)
IDS = tuple(range(len(SIGNS)))  # items of the percentiles
TABLES = ("edstays", "triage", "vitalsign")
# The column of each sign, in the order of SIGNS, and its limits in the column's unit:
# above the first and up to the second is plausible. They are those of mimic-code's
# concept `vitalsign`; weight's are ours.
COLUMNS = {
    "heart_rate": ("heartrate", 0, 300),
    "systolic": ("sbp", 0, 400),
    "diastolic": ("dbp", 0, 300),
    "respiration": ("resprate", 0, 70),
    "saturation": ("o2sat", 0, 100),
    "temperature": ("temperature", 70, 120),  # degrees F
    "weight": ("weight", 0, 500),
}
_OPTIONAL = ("weight",)  # MIMIC-IV-ED has no such column
_TEMPERATURE = SIGNS.index("temperature")


@dataclasses.dataclass(frozen=True)
class Signs:
    """The first vital signs of each stay, and what was left out.

    Attributes:
      stays: the stays; ids are MIMIC-IV-ED's stay_id.
      hadm_ids: the admission of each stay, "" without one.
      values: float64 (stays, 7) in the units of `vitals.SIGNS`, NaN where missing.
      dropped: reason -> values or rows that were left out for it.
    """

    stays: events.Stays
    hadm_ids: list[str]
    values: np.ndarray
    dropped: Mapping[str, int]

    def by_admission(self) -> dict[str, np.ndarray]:
        """The signs (7,) of each admission's earliest stay that has any."""
        found: dict[str, np.ndarray] = {}
        for i in np.argsort(self.stays.times, kind="stable"):
            if self.hadm_ids[i] and np.isfinite(self.values[i]).any():
                found.setdefault(self.hadm_ids[i], self.values[i])
        return found


def paths(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """The tables, plain or gzipped, in the source or in ed/; PacxError without one."""
    return {name: events.table(source, name, "ed", "MIMIC-IV-ED") for name in TABLES}


def digest(found: Mapping[str, pathlib.Path]) -> bytes:
    """A digest of the tables."""
    return hashlib.sha256(
        "".join(events.digest(found[name]) for name in TABLES).encode()
    ).digest()


def read(found: Mapping[str, pathlib.Path]) -> Signs:
    """The first plausible value of each sign in each stay: triage's, else the earliest.

    What is no number, or implausible, is left out and counted, and the next one serves.
    Temperatures become degrees C.

    Raises:
      PacxError: a table that cannot be read, or none of whose values can be used.
    """
    stays = events.read_stays(found["edstays"], "emergency stay", "stay_id", "intime")
    rows = {stay: i for i, stay in enumerate(stays.ids)}
    hadm_ids = [""] * len(rows)
    for row, places in events.rows(found["edstays"], ("stay_id", "hadm_id")):
        stay, admission = (patients.canonical(row[i]) for i in places)
        hadm_ids[rows[stay]] = admission
    values = np.full((len(rows), len(SIGNS)), np.nan)
    taken = np.full(values.shape, np.inf)  # when, in seconds
    dropped: collections.Counter = collections.Counter()
    for name in TABLES[1:]:
        for i, time, signs in _measured(found[name], name, rows, dropped):
            for j, value in signs:
                if time < taken[i, j]:
                    values[i, j], taken[i, j] = value, time
    values[:, _TEMPERATURE] = (values[:, _TEMPERATURE] - 32) / 1.8
    if not np.isfinite(values).any():
        raise PacxError(
            f"{found['triage']}: neither it nor {found['vitalsign'].name} has a "
            "vital sign of a stay of edstays; give the tables of one release"
        )
    return Signs(stays, hadm_ids, values, dict(dropped))


def _measured(
    path: pathlib.Path,
    name: str,
    stays: Mapping[str, int],
    dropped: collections.Counter,
) -> Iterator[tuple[int, float, list[tuple[int, float]]]]:
    """(stay's row, when, its (sign, value)s) of each row; triage comes before all."""
    timed = name == "vitalsign"
    before = ("stay_id", "charttime") if timed else ("stay_id",)
    required = tuple(c for c, _, _ in COLUMNS.values() if c not in _OPTIONAL)
    table = events.rows(path, before + required, progress=True, optional=_OPTIONAL)
    for number, (row, places) in enumerate(table, start=2):
        origin = f"{path}: row {number}"
        stay, time = stays.get(patients.canonical(row[places[0]])), -math.inf
        if timed:
            time = events.seconds(row[places[1]], origin, "charttime")
        if stay is None or time is None:
            dropped["stay not in edstays" if stay is None else "no charttime"] += 1
            continue
        cells = [row[i].strip() if i >= 0 else "" for i in places[len(before) :]]
        yield stay, time, list(_plausible(cells, origin, dropped))


def _plausible(
    cells: Sequence[str], origin: str, dropped: collections.Counter
) -> Iterator[tuple[int, float]]:
    """(sign, value) of the cells, one a sign, that have a plausible one."""
    limits = COLUMNS.items()
    for j, (cell, (sign, known)) in enumerate(zip(cells, limits, strict=True)):
        if not cell:
            continue
        column, low, high = known
        value = events.number(cell, origin, column)
        if math.isnan(value):
            dropped[f"{sign}: no number"] += 1
        elif not low < value <= high:
            dropped[f"{sign}: implausible"] += 1
        else:
            yield j, value
