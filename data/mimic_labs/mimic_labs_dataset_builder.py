"""Laboratory values of MIMIC-IV admissions, as Symile-MIMIC makes them.

Layout: `admissions`, `labevents` and `d_labitems`, each .csv or .csv.gz, in hosp/ or in
the source itself. Of each admission the earliest value of 50 items within 24 h before
or after it (events.earliest), as percentile of the training admissions; missing ones
have the mean percentile of train and mask 0. Admissions with none of the 50 are left
out. Patients are split by the hash of their id.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from data import records
from data.mimic_labs import events, items
from pacx_jax.errors import PacxError
from pacx_jax.input import percentiles, tables

ENTRIES = ("labs", "labs_mask", "patient_id", "hadm_id")
TABLES = ("admissions", "d_labitems", "labevents")


class Builder(records.RecordBuilder, skip_registration=True):
    """MIMIC's laboratory values as ArrayRecord."""

    name = "mimic_labs"
    description = "50 laboratory values of an admission, as percentiles of train."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Finds the files and reads the small ones; PacxError for what is wrong.

    labevents, of some gigabytes, is read by the plan's `complete`.
    """
    paths = {name: events.table(source, name) for name in TABLES}
    admissions = events.read_stays(paths["admissions"])
    known = events.read_labels(paths["d_labitems"])
    where = items.resolve(known, str(paths["d_labitems"]))
    digest = hashlib.sha256()
    for name in TABLES:
        digest.update(events.digest(paths[name]).encode())
    given = given_percentiles(options, items.IDS)
    if given:
        digest.update(given.to_bytes())
    plan = records.Plan({}, incomplete, str, ENTRIES, (), digest.hexdigest())

    def complete() -> records.Plan:
        found = events.earliest(
            paths["labevents"], admissions, where, known, options.units == "any"
        )
        if not np.isfinite(found.values).any():
            raise PacxError(
                f"{paths['labevents']}: none of its {found.read} events is a value of "
                "the 50 items within 24 h of an admission"
            )
        return _complete(plan, admissions, found, where, given, options)

    return dataclasses.replace(plan, complete=complete)


def given_percentiles(
    options: Any, ids: tuple[int, ...], file: str = percentiles.FILE
) -> percentiles.Percentiles | None:
    """Those that --percentiles names, None without; PacxError if of other items."""
    if not options.percentiles:
        return None
    given = percentiles.load(options.percentiles, file)
    if given.items != ids:
        raise PacxError(
            f"{options.percentiles}: percentiles of {len(given.items)} other items"
        )
    return given


def split_patients(patients: list[str], options: Any) -> dict[str, list[int]]:
    """Split -> rows, by the hash of their patient; PacxError without a train split."""
    salt = f"{options.split_seed}/" if options.split_seed else ""
    names = tables.assign_splits(
        [salt + p for p in patients], options.val_fraction, options.test_fraction
    )
    splits: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        splits.setdefault(name, []).append(row)
    if "train" not in splits:
        raise PacxError("the train split is empty; lower --val_fraction")
    return {s: splits[s] for s in ("train", "val", "test") if s in splits}


def incomplete(row: Any) -> dict[str, Any]:
    """`Plan.make` of a plan whose `complete` has not run."""
    raise AssertionError("the plan is not complete")


def _complete(plan, admissions, found, where, given, options) -> records.Plan:
    """The plan with its rows, fitted on its training admissions."""
    kept = np.flatnonzero(np.isfinite(found.values).any(axis=1))
    patients = [admissions.patients[i] for i in kept]
    splits = split_patients(patients, options)
    values = found.values[kept]
    fitted = given or percentiles.fit(values[splits["train"]], items.IDS)
    labs, mask = fitted.apply(values)
    make = _Make(labs, mask, patients, [admissions.ids[i] for i in kept])
    counts = {"listed": len(admissions.ids), "kept": len(kept)}
    counts["patients"] = len(set(patients))
    missing = {s: 1 - mask[rows].mean(axis=0) for s, rows in splits.items()}
    report = {
        "admissions": counts,
        "events": {"read": found.read, "left_out": found.dropped},
        "other_units": found.units,
        "other_ids": {str(k): v for k, v in where.items() if str(k) != v},
        "missing": {
            s: {f"{i} {name}": round(float(m), 4) for (i, name, _), m in _zip(shares)}
            for s, shares in missing.items()
        },
    }
    return dataclasses.replace(
        plan,
        splits=splits,
        make=make,
        name=make.name,
        files={percentiles.FILE: fitted.to_bytes()},
        report=report,
        notes=tuple(_notes(report, missing, fitted, options)),
    )


def _zip(values: Any) -> Any:
    return zip(items.ITEMS, values, strict=True)


def _notes(report: dict, missing: dict, fitted: Any, options: Any) -> list[str]:
    """What a reader should know of the set, in lines."""
    counts = report["admissions"]
    notes = [
        f"{counts['kept']} of {counts['listed']} admissions have one of the 50 items "
        f"within 24 h; {counts['patients']} patients",
        "missing values: "
        + ", ".join(f"{s} {m.mean():.1%}" for s, m in missing.items()),
    ]
    for item, there in report["other_ids"].items():
        name = next(n for i, n, _ in items.ITEMS if str(i) == item)
        notes.append(f"{item} {name} is item {there} in this version of MIMIC")
    for unit, n in report["other_units"].items():
        taken = "taken as they are" if options.units == "any" else "left out"
        notes.append(f"{n} values in another unit {taken}: {unit}")
    for reason, n in report["events"]["left_out"].items():
        notes.append(f"{n} events left out: {reason}")
    without = [str(i) for (i, _, _), v in _zip(fitted.values) if not len(v)]
    if without:
        notes.append(
            f"no training value of {', '.join(without)}: missing in every split"
        )
    return notes


@dataclasses.dataclass(frozen=True)
class _Make:
    labs: np.ndarray
    mask: np.ndarray
    patients: list[str]
    hadm_ids: list[str]

    def name(self, row: int) -> str:
        return f"admission {self.hadm_ids[row]}"

    def __call__(self, row: int) -> dict[str, Any]:
        name = self.name(row)
        return {
            **records.labs_entries(self.labs[row], self.mask[row], name),
            "patient_id": self.patients[row],
            "hadm_id": self.hadm_ids[row],
        }
