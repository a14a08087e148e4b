"""MIMIC-CXR-JPG (Johnson et al. 2019, 2.1.0): 377,110 X-rays of 227,827 studies.

Layout, of PhysioNet; other numbers than 2.0.0 in the names of the tables are taken too:

  mimic-cxr-2.0.0-split.csv.gz      dicom_id, study_id, subject_id, split
  mimic-cxr-2.0.0-metadata.csv.gz   dicom_id, ViewPosition, ...
  mimic-cxr-2.0.0-chexpert.csv.gz, mimic-cxr-2.0.0-negbio.csv.gz   14 labels a study
  files/p10/p10000032/s50414267/DICOM.jpg
  mimic-cxr-reports/files/p10/p10000032/s50414267.txt   of MIMIC-CXR, unpacked

The reports may lie in the source, beside it, or in --reports=DIR; without them there
are none. data/reports.py states how findings and impression are cut out of them.

Labels are those of CheXpert's labeller, with --task=negbio those of NegBio's: 1, 0, -1
(uncertain), blank. The official split is kept (train, validate, test).

The view is ViewPosition's (origin `listed`) and that of ViewCodeSequence_CodeMeaning
(origin `DICOM`); where neither says one, a PerformedProcedureStepDescription that names
AP and neither PA nor lateral makes it AP (origin `guessed`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from data.chexpert.chexpert_dataset_builder import LABELS
from data.mimic_cxr import metadata, texts
from data.mimic_labs import events
from pacx_jax.errors import PacxError
from pacx_jax.input import patients, tables

FACTS = published.Facts(
    title="MIMIC-CXR-JPG",
    markers=("mimic-cxr-*-split.csv", "mimic-cxr-*-split.csv.gz"),
    labels=LABELS,
    strict=splits.Policy(keep=splits.NAMES, by_patient=True),
    reference=splits.Policy(keep=splits.NAMES),
    counts={
        "both": {
            "train": {"images": 368_960},
            "val": {"images": 2_991},
            "test": {"images": 5_159},
        }
    },
)
TASKS = {"chexpert": FACTS, "negbio": FACTS}  # whose labels
_SPLIT = ("dicom_id", "study_id", "subject_id", "split")
_LABEL = {"": float("nan"), "1": 1.0, "0": 0.0, "-1": -1.0}
_MISSING = (float("nan"),) * len(LABELS)


class Builder(records.RecordBuilder, skip_registration=True):
    """MIMIC-CXR-JPG as ArrayRecord."""

    name = "mimic_cxr"
    description = "MIMIC-CXR-JPG chest radiographs with labels, views and reports."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the tables and reports; PacxError when they are not as described."""
    notes: list[str] = []

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        del files
        yield from _rows(root, options, notes)

    plan = published.make_plan(source, options, FACTS, read)
    return dataclasses.replace(plan, notes=(*notes, *plan.notes))


def _rows(root: pathlib.Path, options: Any, notes: list[str]) -> Iterator[listings.Row]:
    """The rows of the split table, with what the other tables say of them."""
    table = _table(root, "split")
    listed = [[row[i].strip() for i in at] for row, at in events.rows(table, _SPLIT)]
    for row in listed:
        row[1:3] = (patients.canonical(i.lstrip("ps")) for i in row[1:3])
    studies = {study for _, study, _, _ in listed}
    seen = _views(_table(root, "metadata"))
    kind = options.task or "chexpert"
    labels = _labels(_table(root, kind))
    written: dict[str, tuple[str, str]] | None = None
    if folder := texts.find(root, options.reports):
        written, told = texts.read(folder, studies)
        notes += told
    else:
        notes.append(
            f"NO REPORTS: no {texts.FOLDER}/ in or beside {root}; give --reports=DIR"
        )
    for number, what in (
        (len(labels.keys() - studies), f"studies of the {kind} labels have no image"),
        (len(studies - labels.keys()), f"studies have no {kind} labels"),
        (sum(row[0] not in seen for row in listed), "images are not in the metadata"),
    ):
        notes += [f"{number} {what}"] if number else []
    for number, (dicom, study, patient, split) in enumerate(listed, start=2):
        origin = f"{table}: row {number}"
        if split.lower() not in tables.SPLIT_NAMES:
            raise PacxError(f"{origin}: unknown split {split!r}; use train or validate")
        if not study or not patient:
            raise PacxError(f"{origin}: no study_id or subject_id; fill it in")
        yield listings.Row(
            origin,
            f"files/p{patient[:2]}/p{patient}/s{study}/{dicom}.jpg",
            labels.get(study, _MISSING),
            patient,
            tables.SPLIT_NAMES[split.lower()],
            study=study,
            views=seen.get(dicom, (("listed", ""),)),
            report=None if written is None else written.get(study, ("", "")),
        )


def _table(root: pathlib.Path, kind: str) -> pathlib.Path:
    """The table of this kind, of whatever version; PacxError for none or several."""
    names = (f"mimic-cxr-*-{kind}.csv", f"mimic-cxr-*-{kind}.csv.gz")
    found = sorted(path for name in names for path in root.glob(name))
    if not found:
        raise PacxError(
            f"{root}: no mimic-cxr-2.0.0-{kind}.csv.gz here; see data/README.md"
        )
    if len(found) > 1:
        raise PacxError(f"{found[0]} and {found[1]} are both there; remove one")
    return found[0]


def _views(table: pathlib.Path) -> dict[str, tuple[tuple[str, str], ...]]:
    """Image -> what the metadata say of its view, as `views.settle` takes it.

    Each distinct answer is held once: there are a few dozen.
    """
    found, answers = {}, {}
    for row, (dicom, *at) in events.rows(
        table, ("dicom_id", metadata.VIEWS[0]), optional=metadata.VIEWS[1:]
    ):
        cells = tuple(row[i].strip() if i >= 0 else "" for i in at)
        if cells not in answers:
            answers[cells] = metadata.claims(*cells)
        found[row[dicom].strip()] = answers[cells]
    return found


def _labels(table: pathlib.Path) -> dict[str, tuple[float, ...]]:
    """Study -> its labels in the order of LABELS; each distinct row is held once."""
    found, answers = {}, {}
    for number, (row, (study, *at)) in enumerate(
        events.rows(table, ("study_id", *LABELS)), start=2
    ):
        cells = tuple(row[i].strip().removesuffix(".0") for i in at)
        if cells not in answers:
            odd = [cell for cell in cells if cell not in _LABEL]
            if odd:
                raise PacxError(
                    f"{table}: row {number} has {odd[0]!r} in a label column; labels "
                    "are 1, 0, -1 (uncertain) or blank"
                )
            answers[cells] = tuple(_LABEL[cell] for cell in cells)
        found[patients.canonical(row[study].strip().lstrip("s"))] = answers[cells]
    return found
