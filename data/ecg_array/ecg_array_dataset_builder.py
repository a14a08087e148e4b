"""ECGs in one array with a CSV of labels, for training the ECG encoder.

Layout: `ecg.npy` int16 (n, t, 12) in microvolts at 500 Hz, and `labels.csv` or .tsv
with one row a record, in the order of the array. Stored as int16 and read as mV.
Splits come from the CSV's split column, else by patient, else by record. With
`labs_percentiles.npy` and `labs_missingness.npy` (n, 50) the laboratory values of the
same rows are stored too.
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
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import arrays, ecg, findings, folders, tables
from pacx_jax.input import patients as ids

LABS = "labs_percentiles.npy"
LABS_MASK = "labs_missingness.npy"


class Builder(records.RecordBuilder, skip_registration=True):
    """An array of ECGs as ArrayRecord."""

    name = "ecg_array"
    description = "12-lead ECGs, int16 microvolts at 500 Hz, with labels."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the CSV and the array's header; PacxError when they do not fit."""
    path = source / "ecg.npy"
    array = open_array(str(path))
    if array.ndim != 3 or array.shape[2] != 12 or array.dtype != np.int16:
        raise PacxError(
            f"{path}: {array.dtype} array of shape {array.shape}; it must be int16 "
            "(records, samples, 12) in microvolts"
        )
    spec = folders.FolderSpec.from_config(options)
    known = tables.LABEL_FILES[:2]
    csv = spec.csv or tables.label_file(source, os.listdir(source), known) or known[0]
    table = tables.read_table(source / csv)
    if len(table.rows) != len(array):
        raise PacxError(
            f"{table.path}: {len(table.rows)} rows for {len(array)} records in {path}"
        )
    _check_order(table)
    roles = folders.table_roles(table, spec)
    patients = folders.table_patients(table, roles)
    names, values, notes = findings.read(
        table, spec.label_columns, spec.label_separator, {*roles.values(), "record"}
    )
    paths = [f"ecg.npy/{i}" for i in range(len(array))]
    where = folders.table_splits(table, spec, patients, paths)
    if roles["path"]:
        paths = table.column(roles["path"], "data.path_column")
    splits: dict[str, list[tuple]] = {}
    for i, split in enumerate(where):
        row = (i, paths[i], patients[i] if patients else "", values[i])
        splits.setdefault(split, []).append(row)
    splits = {s: splits[s] for s in ("train", "val", "test") if s in splits}
    digest = hashlib.sha256(files.read_bytes(table.path))
    digest.update(f"{array.shape} {path.stat().st_mtime_ns}".encode())
    entries = ("ecg", "path") + (("patient_id",) if patients else ())
    entries += ("labels",) if names else ()
    entries += ("labs", "labs_mask") if _has_labs(source, len(array)) else ()
    make = _Make(str(source), options.lead_order, entries)
    return records.Plan(
        splits,
        make,
        make.name,
        entries,
        names,
        digest.hexdigest(),
        ecg_shape=array.shape[1:],
        ecg_scale=1e-3,
        lead_order=options.lead_order,
        notes=(folders.described(table, roles), *notes),
    )


def _check_order(table: tables.Table) -> None:
    """PacxError where a column numbers the rows otherwise than the array does."""
    for name in table.columns:
        if tables.plain(name) not in ("record", "index", "row", "unnamed0", ""):
            continue
        cells = list(map(ids.canonical, table.column(name, "")))
        if not all(map(str.isdecimal, cells)):
            continue
        numbers = list(map(int, cells))
        first = min(numbers)
        if sorted(numbers) == list(range(first, first + len(cells))) != numbers:
            row = next(i for i, x in enumerate(numbers) if x != first + i)
            raise PacxError(
                f"{table.path}: row {row + 2} has {cells[row]} in column {name!r}, but "
                f"stands for ecg.npy[{row}]; sort the rows as the array's, or remove "
                "the column"
            )


@functools.lru_cache(maxsize=32)
def open_array(path: str) -> np.ndarray:
    """Maps a .npy file into memory: rows are read when they are asked for."""
    return arrays.open_npy(path)


def _has_labs(source: pathlib.Path, n: int) -> bool:
    """Whether there are laboratory values; PacxError if they do not fit."""
    for name in (LABS, LABS_MASK):
        if not (source / name).is_file():
            return False
        shape = open_array(str(source / name)).shape
        if shape != (n, 50):
            raise PacxError(
                f"{source / name}: array of shape {shape}; it must be {(n, 50)}, one "
                "row for each record of ecg.npy"
            )
    return True


@dataclasses.dataclass(frozen=True)
class _Make:
    source: str
    lead_order: str
    entries: tuple[str, ...]

    def name(self, row: tuple) -> str:
        return f"{self.source}/ecg.npy[{row[0]}]"

    def __call__(self, row: tuple) -> dict[str, Any]:
        index, path, patient, labels = row
        record = np.array(open_array(f"{self.source}/ecg.npy")[index])
        if (record == np.iinfo(np.int16).min).any():  # WFDB's mark, not -32.8 mV
            raise PacxError(
                f"{self.name(row)}: holds -32768, the mark of a missing sample"
            )
        ecg.check(record, self.name(row), self.lead_order)
        example = {"ecg": record, "path": path}
        if "patient_id" in self.entries:
            example["patient_id"] = patient
        if "labels" in self.entries:
            example["labels"] = labels
        if "labs" in self.entries:
            labs, mask = (
                open_array(f"{self.source}/{name}")[index] for name in (LABS, LABS_MASK)
            )
            example |= records.labs_entries(labs, mask, self.name(row))
        return example
