"""Symile-MIMIC (Saporta et al. 2024): X-ray, ECG and 50 labs of one admission.

Layout (PhysioNet, version 1.0.0), s one of train, val, val_retrieval, test:

  {s}.csv                                subject_id, hadm_id, labels, ...
  data_npy/{s}/cxr_{s}.npy               float32 (n, 3, 320, 320), ImageNet-normalised
  data_npy/{s}/ecg_{s}.npy               (n, 1, 5000, 12), each record in [-1, 1]
  data_npy/{s}/labs_percentiles_{s}.npy  (n, 50)
  data_npy/{s}/labs_missingness_{s}.npy  (n, 50), 1 = observed
  data_npy/{s}/hadm_id_{s}.npy           (n,)

Arrays are mapped into memory, never read whole. Images are un-normalised to uint8 (to
within half a grey level) and stored as PNG; ECGs become int16 of 1/32767 of their
range, an error of at most 1.6e-5, below the step of the recorder's own converter.
Where a CSV has `label` (val_retrieval, test) only rows with label 1 are kept: the
queries, each admission once; the others repeat them as candidates.

Where --vitals, or else the folder ed/ of the source, has MIMIC-IV-ED's tables, the
first vital signs of the admission's emergency stay are stored too, as percentiles of
the training admissions. An admission without any has the mean percentiles and mask 0.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from data import records
from data.ecg_array.ecg_array_dataset_builder import open_array
from data.mimic_labs.mimic_labs_dataset_builder import given_percentiles
from data.mimic_vitals import stays
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import ecg, findings, percentiles, tables
from pacx_jax.input import patients as ids
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD

SPLITS = ("train", "val", "val_retrieval", "test")
LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Edema",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
)
# Of test the 464 queries, as here.
COUNTS = {
    "train": {"images": 10_000},
    "val": {"images": 750},
    "test": {"images": 464},
}
ECG_SCALE = 1 / 32767
_ARRAYS = ("cxr", "ecg", "labs_percentiles", "labs_missingness", "hadm_id")
_MEAN = np.array(IMAGENET_MEAN, np.float32)[:, None, None]
_STD = np.array(IMAGENET_STD, np.float32)[:, None, None]


class Builder(records.RecordBuilder, skip_registration=True):
    """Symile-MIMIC as ArrayRecord."""

    name = "symile_mimic"
    description = "Symile-MIMIC: paired chest X-rays, ECGs and laboratory values."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the CSVs and the arrays' headers; PacxError when they do not fit."""
    if not source.is_dir():
        raise PacxError(f"{source}: no such folder; check --source")
    found = [s for s in SPLITS if (source / f"{s}.csv").is_file()]
    for required in ("train", "val"):
        if required not in found:
            raise PacxError(
                f"{source}: no {required}.csv; --source must be the folder of "
                "Symile-MIMIC with train.csv and data_npy/"
            )
    read = {split: tables.read_table(source / f"{split}.csv") for split in found}
    names = tuple(n for n in LABELS if n in read["train"].columns)
    digest, splits, seen = hashlib.sha256(), {}, {}
    for split, table in read.items():
        digest.update(files.read_bytes(table.path))
        for array in _ARRAYS:
            path = _array_path(source, split, array)
            shape = _checked_shape(path, array, len(table.rows))
            digest.update(f"{array} {shape} {os.stat(path).st_mtime_ns}".encode())
        splits[split] = _rows(source, split, table, names)
        for _, _, patient, _, _ in splits[split]:
            # val_retrieval repeats val's patients, by design of the data set.
            role = "val" if split == "val_retrieval" else split
            if seen.setdefault(patient, role) != role:
                raise PacxError(
                    f"{table.path}: patient {patient} is also in {seen[patient]}.csv; "
                    "splits must not share patients"
                )
    make = _Make(str(source), options.size, bool(names))
    entries = ("image", "ecg", "labs", "labs_mask", "patient_id", "hadm_id", "path")
    plan = records.Plan(
        splits,
        make,
        make.name,
        entries + (("labels",) if names else ()),
        names,
        digest.hexdigest(),
        ecg_scale=ECG_SCALE,
        lead_order="mimic",
        published={} if (source / "cohort_layout.json").is_file() else COUNTS,
    )
    return _with_vitals(plan, source, options)


def _with_vitals(plan: records.Plan, source: pathlib.Path, options: Any):
    """The plan with vital signs where there are tables of them, else as it is."""
    if not options.vitals and not (source / "ed").is_dir():
        if options.percentiles:
            raise PacxError(
                f"--percentiles is of vital signs, and {source} has no folder ed: give "
                "--vitals too, or leave it out"
            )
        return plan
    paths = stays.paths(pathlib.Path(options.vitals or source))
    given = given_percentiles(options, stays.IDS, percentiles.VITALS)
    digest = hashlib.sha256(plan.fingerprint.encode() + stays.digest(paths))
    digest.update(given.to_bytes() if given else b"")
    plan = dataclasses.replace(
        plan,
        entries=(*plan.entries, "vitals", "vitals_mask"),
        fingerprint=digest.hexdigest(),
    )
    return dataclasses.replace(
        plan, complete=functools.partial(_read_vitals, plan, paths, given)
    )


def _read_vitals(plan: records.Plan, paths: dict, given: Any) -> records.Plan:
    """The plan, with the vital signs read and mapped."""
    found = stays.read(paths).by_admission()
    missing = np.full(len(stays.SIGNS), np.nan)
    splits = {
        split: [found.get(row[3], missing) for row in rows]
        for split, rows in plan.splits.items()
    }
    if not np.isfinite(splits["train"]).any():
        raise PacxError(
            f"{paths['edstays']}: none of its stays is of an admission of the train "
            "split; check --vitals"
        )
    fitted = given or percentiles.fit(np.array(splits["train"]), stays.IDS)
    vitals, notes = {}, []
    for split, rows in plan.splits.items():
        values, mask = fitted.apply(np.array(splits[split]))
        for row, *entries in zip(rows, values, mask, strict=True):
            vitals[row[3]] = entries
        seen = int(mask.any(axis=1).sum())
        notes.append(f"{split}: {seen} of {len(rows)} admissions have vital signs")
    return dataclasses.replace(
        plan,
        make=dataclasses.replace(plan.make, vitals=vitals),
        files={percentiles.VITALS: fitted.to_bytes()},
        notes=tuple(notes),
    )


@dataclasses.dataclass(frozen=True)
class _Make:
    source: str
    size: int
    labelled: bool
    vitals: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def name(self, row: tuple) -> str:
        split, index, _, hadm_id, _ = row
        return f"{self.source}: {split} row {index} (hadm_id {hadm_id})"

    def __call__(self, row: tuple) -> dict[str, Any]:
        split, index, patient, hadm_id, labels = row
        name = self.name(row)
        cxr, record, labs, mask = (
            np.asarray(open_array(_array_path(self.source, split, array))[index])
            for array in _ARRAYS[:4]
        )
        record = record.reshape(5000, 12)
        ecg.check(record, name, "mimic")
        example = {
            "image": records.store_image(_to_uint8(cxr, name), self.size, name),
            "ecg": _to_int16(record, name),
            **records.labs_entries(labs, mask, name),
            "patient_id": patient,
            "hadm_id": hadm_id,
            "path": f"{split}/{index}",
        }
        if self.vitals:
            example["vitals"], example["vitals_mask"] = self.vitals[hadm_id]
        return example | ({"labels": labels} if self.labelled else {})


def _to_uint8(cxr: np.ndarray, name: str) -> np.ndarray:
    """float32 (3, h, w), ImageNet-normalised -> uint8 (h, w), else (h, w, 3)."""
    if not np.isfinite(cxr).all():
        raise PacxError(f"{name}: NaN or infinite pixels")
    levels = (cxr * _STD + _MEAN) * 255
    if levels.min() < -2 or levels.max() > 257:
        raise PacxError(
            f"{name}: pixels from {cxr.min():.3g} to {cxr.max():.3g} are not an image "
            "normalised by the ImageNet statistics"
        )
    image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    if (image[0] == image[1]).all() and (image[0] == image[2]).all():
        return image[0]
    return image.transpose(1, 2, 0)


def _to_int16(record: np.ndarray, name: str) -> np.ndarray:
    if np.abs(record).max() > 1.001:
        raise PacxError(
            f"{name}: ECG from {record.min():.3g} to {record.max():.3g}; the records "
            "of Symile-MIMIC are scaled to [-1, 1]"
        )
    return np.rint(np.clip(record, -1, 1) / ECG_SCALE).astype(np.int16)


def _array_path(source: Any, split: str, array: str) -> str:
    return f"{source}/data_npy/{split}/{array}_{split}.npy"


def _checked_shape(path: str, array: str, n: int) -> tuple[int, ...]:
    shape = open_array(path).shape
    fits = {
        "cxr": len(shape) == 4 and shape[1] == 3,
        "ecg": shape[1:] in ((1, 5000, 12), (5000, 12)),
        "labs_percentiles": shape[1:] == (50,),
        "labs_missingness": shape[1:] == (50,),
        "hadm_id": len(shape) == 1,
    }[array]
    if not fits or shape[0] != n:
        raise PacxError(
            f"{path}: array of shape {shape} does not fit the {n} rows of the CSV "
            "(see data/README.md for the layout)"
        )
    return shape


def _rows(
    source: pathlib.Path, split: str, table: tables.Table, names: tuple[str, ...]
) -> list[tuple]:
    patients = tables.patients(table, "subject_id", "the patient's id")
    admissions = tables.patients(table, "hadm_id", "the admission's id")
    path = _array_path(source, split, "hadm_id")
    arrays = [ids.canonical(value) for value in open_array(path).tolist()]
    for i, (csv, npy) in enumerate(zip(admissions, arrays, strict=True)):
        if csv != npy:
            raise PacxError(
                f"{path}: row {i} is admission {npy}, but {csv} in {table.path}; the "
                "arrays and the CSV must have one order"
            )
    values = np.zeros((len(patients), 0), np.float32)
    if names:
        values = findings.read(table, names)[1]
    keep = range(len(patients))
    if "label" in table.columns:
        keep = np.flatnonzero(findings.read(table, ("label",))[1][:, 0] == 1).tolist()
    return [(split, i, patients[i], arrays[i], values[i]) for i in keep]
