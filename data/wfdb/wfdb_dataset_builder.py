"""12-lead ECGs of any tree of WFDB records, for training the ECG encoder.

Every .hea file is a record, read by pacx_jax.input.ecg_records and cut into windows of
10 s at 500 Hz by the rule of docs/ecg.md. Windows are stored as int16 microvolts, so a
record of 1000 steps a mV at 500 Hz comes back exactly. Labels are those of a CSV, else
the values of the headers' `#Dx`. Splits are the CSV's, else by patient, else by
recording.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from typing import Any

import numpy as np

from data import records
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import ecg, ecg_records, findings, folders, names, tables
from pacx_jax.input import patients as ids

SCALE = 1e-3  # mV a step
_SUFFIXES = (".hea", ".mat", ".dat")
_TABLES = (".csv", ".tsv")
_ENDS = 4096


class Builder(records.RecordBuilder, skip_registration=True):
    """A tree of WFDB records as ArrayRecord."""

    name = "wfdb"
    description = "12-lead ECGs, int16 microvolts at 500 Hz, windows of 10 s."


@dataclasses.dataclass(frozen=True)
class Header:
    """What a header says, as far as it can be read.

    Attributes:
      path: relative, with its suffix.
      windows: how many whole windows it promises; at least 1, so that a short or an
        unreadable record is tried, and told of.
      diagnoses: values of `#Dx`; None without any.
      patient: as it stands there, such as in `# <subject_id>: 1`; "" without one.
      others: what else it calls the patient, of another form.
      group: digest of the recording's samples, the same for copies.
      text: digest of the header.
    """

    path: str
    windows: int
    diagnoses: frozenset[str] | None
    patient: str
    group: str
    text: str
    others: tuple[str, ...] = ()


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the headers and the CSV; PacxError when they do not fit."""
    if not source.is_dir():
        raise PacxError(f"{source}: no such folder; check --source")
    paths = [
        path.relative_to(source).as_posix()
        for path in ecg_records.find(source)
        if path.suffix.lower() == ".hea"
    ]
    if not paths:
        raise PacxError(
            f"{source}: no WFDB headers (.hea) here; arrays are for ecg_array"
        )
    headers = [read_header(source, path) for path in paths]
    spec = folders.FolderSpec.from_config(options)
    table = _table(source, spec)
    digest = hashlib.sha256(files.read_bytes(table.path) if table else b"")
    for header in headers:
        digest.update(f"{header.path}\0{header.text}\0{header.group}\n".encode())
    label_names, labels, patients, where, notes = (), None, [], [], ()
    if table:
        headers, labels, patients, where, notes = _join(table, spec, headers, source)
        label_names, labels = labels.names, labels.values
    if not table and spec.csv != "-":
        lie = [n for n in sorted(os.listdir(source)) if n.lower()[-4:] in _TABLES]
        notes = (f"NO CSV is read, {', '.join(lie[:5])}: name one by --csv",) * bool(
            lie
        )
    if not label_names:
        label_names, labels = _diagnoses(headers, spec, str(source))
    patients = patients or _patients(headers, spec)
    if not where:
        where = tables.assign_splits(
            patients or [h.group for h in headers],
            spec.val_fraction,
            spec.test_fraction,
        )
    splits: dict[str, list[tuple]] = {}
    for i, (header, split) in enumerate(zip(headers, where, strict=True)):
        patient = patients[i] if patients else ""
        count = header.windows if options.windows == "all" else 1
        splits.setdefault(split, []).extend(
            (header.path, k, patient, labels[i]) for k in range(count)
        )
    entries = ("ecg", "path") + (("patient_id",) if patients else ())
    entries += ("labels",) if label_names else ()
    make = _Make(str(source), entries)
    return records.Plan(
        {s: splits[s] for s in ("train", "val", "test") if s in splits},
        make,
        make.name,
        entries,
        tuple(label_names),
        digest.hexdigest(),
        ecg_scale=SCALE,
        **_report(headers, labels, patients, label_names, notes),
    )


def read_header(source: pathlib.Path, path: str) -> Header:
    """Reads one header without judging it: `ecg_records` does, when the record is."""
    try:
        with (source / path).open("rb") as file:
            data = file.read(ecg_records.HEADER_BYTES)
    except OSError:
        data = b""
    text = data.decode("utf-8", errors="replace")
    lines = [x.strip() for x in text.splitlines()]
    signals = [x.split() for x in lines if x and not x.startswith("#")]
    comments = ecg_records.comments(text)
    fields = [(re.sub(r"[\W_]", "", key).lower(), value) for key, value in comments]
    values = {
        part.strip() for k, v in fields if k == "dx" for part in re.split("[,;]", v)
    }
    values = frozenset(x for x in values if x.lower() not in ids.MISSING)
    named = [v for k, v in fields if tables.role(k) == "patient" and ids.canonical(v)]
    patient = (named or [""])[0]
    files = sorted({words[0].rpartition("/")[2] for words in signals[1:]})
    return Header(
        path,
        _count(source / path, signals),
        values or None,
        patient,
        _samples_digest(source / path, files),
        hashlib.sha256(data).hexdigest(),
        tuple(v for v in named if ids.canonical(v) != ids.canonical(patient)),
    )


def _count(path: pathlib.Path, signals: list[list[str]]) -> int:
    """How many whole windows of 10 s the record has; 1 where it cannot be told."""
    try:
        fs = float(signals[0][2].split("/")[0].split("(")[0])
        if len(signals[0]) > 3:
            samples = int(signals[0][3])
        else:
            samples = len(_read(str(path)).ecg)
        if not 0 < samples <= ecg.LONGEST:
            return 1
        return max(1, ecg.count_windows(samples, fs))
    except (PacxError, IndexError, ValueError):
        return 1


def _samples_digest(path: pathlib.Path, files: list[str]) -> str:
    """Digest of the signal files' sizes and both ends; of the path if there are none.

    Copies of a recording under other names have one, so that they fall in one split.
    """
    digest, found = hashlib.sha256(), False
    for name in files:
        if name.startswith(".") or names.waits(path.parent / name):
            continue
        try:
            with (path.parent / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                ends = file.read(_ENDS)
                file.seek(max(size - _ENDS, 0))
                ends += file.read(_ENDS)
        except OSError:
            continue
        digest.update(size.to_bytes(8, "big") + ends)
        found = True
    return (
        digest.hexdigest() if found else hashlib.sha256(str(path).encode()).hexdigest()
    )


def _table(source: pathlib.Path, spec: folders.FolderSpec) -> tables.Table | None:
    """The CSV of --csv, else labels.csv or .tsv of the source, else none."""
    if spec.csv == "-":
        return None
    if not spec.csv:
        name = tables.label_file(source, os.listdir(source), tables.LABEL_FILES[:2])
        return tables.read_table(source / name) if name else None
    inside = source / spec.csv
    return tables.read_table(inside if inside.is_file() else spec.csv)


def _join(table, spec, headers, source):
    """The records of the CSV's rows: headers, labels, patients, splits, notes.

    Splits are [] where neither a column of them nor patients say anything that the
    headers do not.
    """
    roles = folders.table_roles(table, spec)
    record = next((c for c in table.columns if tables.plain(c) == "record"), "")
    column = roles["path"] or record
    if not column:
        raise PacxError(
            f"{table.path}: no column of records (record, path, file); give "
            f"--path_column, one of {', '.join(table.columns)}"
        )
    table.column(column, "--path_column")  # it is there
    place = table.columns.index(column)
    rows = [
        row[:place] + [_stem(row[place].strip())] + row[place + 1 :]
        for row in table.rows
    ]
    stems = {_stem(h.path): h for h in headers}
    found, told = folders.match_paths(
        dataclasses.replace(table, rows=rows),
        column,
        names.Found(sorted(stems), []),
        source,
    )
    patients = folders.table_patients(table, roles)
    labels = findings.Labels((), np.zeros((len(found), 0), np.float32))
    wanted = set(spec.label_columns)
    if not wanted or wanted & set(table.columns) or not _in_headers(wanted, headers):
        labels = findings.read(
            table, spec.label_columns, spec.label_separator, {*roles.values(), column}
        )
    headers = [stems[stem] for stem in found]
    patients = patients or _patients(headers, spec)
    groups = [h.group for h in headers]
    where = []
    if patients or roles["split"]:
        where = folders.table_splits(table, spec, patients, groups)
    notes = (folders.described(table, roles | {"path": column}), *told)
    return headers, labels, patients, where, (*notes, *labels.notes)


def _in_headers(names: set[str], headers: list[Header]) -> bool:
    return names <= set().union(*(h.diagnoses or () for h in headers))


def _stem(path: str) -> str:
    return path[:-4] if path.lower().endswith(_SUFFIXES) else path


def _diagnoses(headers, spec, source) -> tuple[tuple[str, ...], np.ndarray]:
    """Labels from `#Dx`: 1 or 0, NaN for a record without any."""
    there = sorted(set().union(*(h.diagnoses or () for h in headers)))
    unknown = sorted(set(spec.label_columns) - set(there))
    if unknown:
        raise PacxError(
            f"{source}: --label_columns {', '.join(unknown)} in no header's #Dx, which "
            f"have {', '.join(there)[:300] or 'none'}"
        )
    names = spec.label_columns or tuple(there)
    labels = np.full((len(headers), len(names)), np.nan, np.float32)
    for i, header in enumerate(headers):
        if header.diagnoses is not None:
            labels[i] = [name in header.diagnoses for name in names]
    return names, labels


def _patients(headers: list[Header], spec: folders.FolderSpec) -> list[str]:
    """The headers' patients; [] where none is named, or none is wanted."""
    without = [h.path for h in headers if not h.patient]
    if len(without) == len(headers) or spec.patient_column == "-":
        return []
    for header in headers:
        if header.others:
            raise PacxError(
                f"{header.path}: names the patients {header.patient!r} and "
                f"{header.others[0]!r}; correct it, or give --patient_column=- to "
                "split by recording"
            )
    if without:
        raise PacxError(
            f"{without[0]}: names no patient, as {len(without)} of {len(headers)} "
            "headers; add them, or give --patient_column=- to split by recording"
        )
    return ids.canonical_column([h.patient for h in headers], "the headers' patients")


def _report(headers, labels, patients, names, told) -> dict[str, Any]:
    """The plan's `report` and `notes`."""
    without = int(np.isnan(labels).all(axis=1).sum()) if names else len(headers)
    report = {
        "records": len(headers),
        "without_labels": without,
        "patients": len(set(patients)) if patients else None,
    }
    of = f"{report['patients']} patients" if patients else "patients unknown"
    notes = [*told, f"{len(headers)} records, {of}; {without} without labels"]
    copies = collections.Counter(h.group for h in headers)
    doubled = sum(n for n in copies.values() if n > 1)
    if doubled:
        notes.append(f"{doubled} records are copies of one another's samples")
    return {"report": report, "notes": tuple(notes)}


@functools.lru_cache(maxsize=4)
def _read(path: str) -> ecg_records.Record:
    """Reads a record, once for the windows that are made of it in a row."""
    return ecg_records.read_wfdb(pathlib.Path(path))


@dataclasses.dataclass(frozen=True)
class _Make:
    source: str
    entries: tuple[str, ...]

    def name(self, row: tuple) -> str:
        return f"{self.source}/{row[0]}" + (f" at {10 * row[1]} s" if row[1] else "")

    def __call__(self, row: tuple) -> dict[str, Any]:
        path, window, patient, labels = row
        name = self.name(row)
        record = _read(f"{self.source}/{path}")
        steps = ecg.cut(record.ecg, record.fs, window, name) / SCALE
        if np.abs(steps).max() > 32767:
            raise PacxError(
                f"{name}: {np.abs(steps).max() * SCALE:.1f} mV, more than the 32.767 "
                "that are stored; take the offset away"
            )
        stored = np.rint(steps).astype(np.int16)
        ecg.check(stored, name)
        suffix = f"@{10 * window}s" if window else ""
        example = {"ecg": stored, "path": path + suffix}
        if "patient_id" in self.entries:
            example["patient_id"] = patient
        if "labels" in self.entries:
            example["labels"] = labels
        return example
