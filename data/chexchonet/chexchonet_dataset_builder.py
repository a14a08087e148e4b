"""CheXchoNet (Elias and Bhave 2024): X-rays with labels from echocardiograms.

Layout (PhysioNet, 1.0.0): metadata.csv and images/, 71,589 X-rays of 24,689 patients.

Two tasks: `composite` (any left-ventricular abnormality) and `echo`, five labels. The
authors drew the first by image, which puts patients into several splits, and the second
by patient. The table has neither studies nor views: each X-ray is a study, and all are
frontal as published.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from pacx_jax.input import findings, tables

COMPOSITE = "composite_slvh_dlv"
ECHO = ("slvh", "dlv", "heart_transplant", "lung_transplant", "pacemaker_or_icd")
_COUNTS = {"both": {"train+val+test": {"images": 71_589}}}
_IMAGES = splits.Policy(test=0.2, val=0.1, stratified=True)
_PATIENTS = splits.Policy(test=0.2, val=0.1, stratified=True, by_patient=True)
# A fifth of the patients, of whom half are val.
_HALVED = splits.Policy(test=0.2, val=0.5, halve=True, stratified=True, by_patient=True)
_TITLE, _MARKERS = "CheXchoNet", ("metadata.csv",)
TASKS = {
    "composite": published.Facts(
        _TITLE, _MARKERS, (COMPOSITE,), _PATIENTS, _IMAGES, _COUNTS
    ),
    "echo": published.Facts(_TITLE, _MARKERS, ECHO, _HALVED, _HALVED, _COUNTS),
}


class Builder(records.RecordBuilder, skip_registration=True):
    """CheXchoNet as ArrayRecord."""

    name = "chexchonet"
    description = "CheXchoNet chest X-rays with labels from echocardiograms."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    facts = TASKS[options.task or "composite"]

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        del files
        columns = ("cxr_filename", "patient_id", COMPOSITE, *facts.labels)
        table = listings.read_table(root / "metadata.csv", columns)
        patients = tables.patients(table.table, "patient_id", "the patient's id")
        values = findings.read(table.table, facts.labels)[1]
        strata = findings.read(table.table, (COMPOSITE,))[1][:, 0]
        for i, (origin, cells) in enumerate(table):
            yield listings.Row(
                origin,
                cells["cxr_filename"],
                values[i],
                patients[i],
                stratum=strata[i],
                study=cells["cxr_filename"],
                views=(("listed", "frontal"),),
            )

    return published.make_plan(source, options, facts, read)
