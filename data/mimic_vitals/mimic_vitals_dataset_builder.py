"""Vital signs of MIMIC-IV-ED's emergency stays, to train their encoder on.

Layout: `edstays`, `triage` and `vitalsign`, each .csv or .csv.gz, in ed/ or in the
source itself. Of each stay the first value of seven signs (stays.read), as percentile
of the training stays; missing ones have the mean percentile of train and mask 0. Stays
without any are left out. Patients are split by the hash of their id.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from data import records
from data.mimic_labs import mimic_labs_dataset_builder as labs
from data.mimic_vitals import stays
from pacx_jax.input import percentiles

ENTRIES = ("vitals", "vitals_mask", "patient_id", "hadm_id")


class Builder(records.RecordBuilder, skip_registration=True):
    """MIMIC's vital signs as ArrayRecord."""

    name = "mimic_vitals"
    description = "Seven vital signs of an emergency stay, as percentiles of train."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Finds the tables; the plan's `complete` reads them. PacxError for what is wrong.

    An example's `hadm_id` is "" where the stay ended without admission.
    """
    paths = stays.paths(source)
    digest = hashlib.sha256(stays.digest(paths))
    given = labs.given_percentiles(options, stays.IDS, percentiles.VITALS)
    if given:
        digest.update(given.to_bytes())
    plan = records.Plan({}, labs.incomplete, str, ENTRIES, (), digest.hexdigest())

    def complete() -> records.Plan:
        return _complete(plan, stays.read(paths), given, options)

    return dataclasses.replace(plan, complete=complete)


def _complete(plan, found: stays.Signs, given, options) -> records.Plan:
    """The plan with its rows, fitted on its training stays."""
    kept = np.flatnonzero(np.isfinite(found.values).any(axis=1))
    patients = [found.stays.patients[i] for i in kept]
    splits = labs.split_patients(patients, options)
    values = found.values[kept]
    fitted = given or percentiles.fit(values[splits["train"]], stays.IDS)
    signs, mask = fitted.apply(values)
    ids = [found.stays.ids[i] for i in kept]
    make = _Make(signs, mask, patients, ids, [found.hadm_ids[i] for i in kept])
    missing = {
        split: {
            sign: round(float(share), 4)
            for sign, share in zip(stays.SIGNS, 1 - mask[rows].mean(0), strict=True)
        }
        for split, rows in splits.items()
    }
    report = {
        "stays": {"listed": len(found.stays.ids), "kept": len(kept)},
        "patients": len(set(patients)),
        "left_out": found.dropped,
        "missing": missing,
    }
    return dataclasses.replace(
        plan,
        splits=splits,
        make=make,
        name=make.name,
        files={percentiles.VITALS: fitted.to_bytes()},
        report=report,
        notes=tuple(_notes(report)),
    )


def _notes(report: dict) -> list[str]:
    """What a reader should know of the set, in lines."""
    counts = report["stays"]
    notes = [
        f"{counts['kept']} of {counts['listed']} emergency stays have a vital sign; "
        f"{report['patients']} patients"
    ]
    notes += [f"{n} left out: {why}" for why, n in report["left_out"].items()]
    absent = [k for k, v in report["missing"]["train"].items() if v == 1]
    if absent:
        notes.append(f"train has no {', '.join(absent)}: missing in every split")
    return notes


@dataclasses.dataclass(frozen=True)
class _Make:
    signs: np.ndarray
    mask: np.ndarray
    patients: list[str]
    ids: list[str]
    hadm_ids: list[str]

    def name(self, row: int) -> str:
        return f"emergency stay {self.ids[row]}"

    def __call__(self, row: int) -> dict[str, Any]:
        return {
            "vitals": self.signs[row],
            "vitals_mask": self.mask[row],
            "patient_id": self.patients[row],
            "hadm_id": self.hadm_ids[row],
        }
