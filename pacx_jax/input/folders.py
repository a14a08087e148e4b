"""A tree of JPEG, PNG and DICOM files, its CSV, and the split of them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np

from pacx_jax import files
from pacx_jax.errors import PacxError, one_line
from pacx_jax.input import findings, names, reports, tables, views
from pacx_jax.input import patients as ids

_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods", ".parquet", ".json", ".jsonl")
_SAMPLE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class FolderSpec:
    """How to read a folder; the fields stand in `config.data` under these names.

    Attributes:
      path: root of the tree.
      csv: the CSV, absolute or relative to `path`; "" = the first of
        tables.LABEL_FILES that is there; "-" = none. With a CSV the examples are its
        rows, and files without a row are left out.
      label_columns, some_labels: see `findings.read`.
      label_separator: between the values of one cell.
      patient_column, path_column, split_column: "" = the first of tables.ROLES that is
        there; "-" = none. Without patients, files are split one by one.
      val_fraction, test_fraction: shares of patients (else of files) for val and
        test. Where a split column has rows of one of them, its fraction is unused.
    """

    path: str = ""
    csv: str = ""
    label_columns: tuple[str, ...] = ()
    label_separator: str = "|"
    patient_column: str = ""
    path_column: str = ""
    split_column: str = ""
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    some_labels: bool = False

    @classmethod
    def from_config(cls, data: Any) -> FolderSpec:
        """Takes the fields that `data` has; the others keep their defaults."""
        fields = {}
        for field in dataclasses.fields(cls):
            value = getattr(data, field.name, None)
            if value is not None:
                fields[field.name] = value
        columns = fields.get("label_columns", ())
        if isinstance(columns, str):
            columns = columns.split(",") if columns else ()
        fields["label_columns"] = tuple(columns)
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The examples of a folder, sorted by path, so that listing order is no matter.

    Attributes:
      root: the folder.
      paths: n relative paths with forward slashes.
      splits: n of "train", "val", "test".
      patients: n ids, or empty.
      label_names: c names.
      labels: float32 (n, c).
      fingerprint: sha256 over paths, sizes, both ends of each file, and the CSV.
      notes: lines that say what was taken for what, and what was left out.
      studies: n ids of studies, or empty; an image that names none is one by its path.
      views: n keys of `views.FINE`, or empty; the table states them.
      reports: section of a report -> n texts, "" where there is none; {} without a
        column of them.
    """

    root: pathlib.Path
    paths: list[str]
    splits: list[str]
    patients: list[str]
    label_names: tuple[str, ...]
    labels: np.ndarray
    fingerprint: str
    notes: tuple[str, ...] = ()
    studies: list[str] = dataclasses.field(default_factory=list)
    views: list[str] = dataclasses.field(default_factory=list)
    reports: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def read_folder(spec: FolderSpec) -> Listing:
    """Lists a folder and joins it with its CSV; PacxError names what is wrong."""
    root = pathlib.Path(spec.path)
    found = names.find(spec.path)
    csv_path = _csv_path(root, spec.csv, found.passed)
    if csv_path is None:
        return _without_csv(root, spec, found)
    table = tables.read_table(csv_path)
    roles = table_roles(table, spec)
    if not roles["path"]:
        raise PacxError(
            f"{table.path}: its first row names no column of paths "
            f"({tables.ROLES['path'][0]}); give data.path_column, one of "
            f"{', '.join(table.columns)}, remove rows above the header, or use no CSV "
            "by data.csv='-'"
        )
    paths, told = match_paths(table, roles["path"], found, root)
    patients = table_patients(table, roles)
    sections = table_reports(table, spec.label_columns, spec.label_separator)
    labels = findings.read(
        table,
        spec.label_columns,
        spec.label_separator,
        exclude=(*roles.values(), *sections.values()),
        some=spec.some_labels,
    )
    texts = {name: table.column(column, "") for name, column in sections.items()}
    digests = _digests(root, paths)
    splits = table_splits(table, spec, patients, digests)
    fingerprint = _fingerprint(paths, digests, csv_path.read_bytes())
    without = len(found.paths) - len(paths)
    notes = [described(table, roles), *told, *labels.notes]
    notes += [f"{without} images have no row and are left out"] if without else []
    notes += [] if roles["split"] else [_told_splits(paths)]
    notes += [_copies(digests), found.told(_under(root, csv_path))]
    studies, seen, told = _studies(table, roles, paths, patients, digests)
    notes += [*told, _told_reports(texts)]
    order = sorted(range(len(digests)), key=paths.__getitem__)

    def ordered(values: list[str]) -> list[str]:
        return [values[i] for i in order] if values else []

    return Listing(
        root,
        ordered(paths),
        ordered(splits),
        ordered(patients),
        labels.names,
        labels.values[order],
        fingerprint,
        tuple(one_line(note, 3000) for note in notes if note),
        ordered(studies),
        ordered(seen),
        {name: ordered(cells) for name, cells in texts.items()},
    )


def table_reports(
    table: tables.Table, label_columns: Collection[str] = (), separator: str = "|"
) -> dict[str, str]:
    """Section of a report -> the column that is called so and holds texts.

    Labels, and lists of them such as Effusion|Mass, are no texts: some cell has more
    than two words, and none the separator.
    """

    def texts(column: str) -> bool:
        cells = table.column(column, "")
        long = any(len(cell.split()) > 2 for cell in cells)
        return long and not any(separator in cell for cell in cells)

    return {
        name: column
        for name in reports.SECTIONS
        for column in table.columns
        if tables.plain(column) == name and column not in label_columns
        if texts(column)
    }


def _told_reports(texts: dict[str, list[str]]) -> str:
    if not texts:
        return ""
    rows = list(zip(*texts.values(), strict=True))
    without = sum(not any(cell.strip() for cell in row) for row in rows)
    return f"reports: {' and '.join(texts)}; {without} of {len(rows)} rows without"


def _studies(
    table: tables.Table,
    roles: dict[str, str],
    paths: list[str],
    patients: list[str],
    digests: list[str],
) -> tuple[list[str], list[str], list[str]]:
    """Studies and views of the rows, [] without their column, and lines to tell."""
    studies, seen, notes = [], [], []
    if column := roles["study"]:
        cells = [ids.canonical(cell) for cell in table.column(column, "")]
        studies = [cell or path for cell, path in zip(cells, paths, strict=True)]
        keys = list(zip(patients or cells, studies, strict=True))
        notes = [f"{len(set(keys))} studies"]
        if alone := cells.count(""):
            notes.append(f"{alone} rows name no study and are each one of their own")
        if same := len(keys) - len({*zip(keys, digests, strict=True)}):
            told = "images are copies of another of their study and are kept"
            notes.append(f"{same} {told}")
    if column := roles["view"]:
        tally = views.Tally()
        cells = table.column(column, "")
        seen = [tally.settle([("listed", cell)]).view for cell in cells]
        notes += tally.told()
    return studies, seen, notes


def _without_csv(root: pathlib.Path, spec: FolderSpec, found: names.Found) -> Listing:
    for field in ("label_columns", "patient_column", "split_column"):
        passed_over = field == "label_columns" and spec.some_labels
        if getattr(spec, field) not in ("", "-", ()) and not passed_over:
            raise PacxError(
                f"{spec.path}: data.{field} is set but there is no CSV; give data.csv"
            )
    files = found.paths
    digests = _digests(root, files)
    return Listing(
        root,
        files,
        tables.assign_splits(digests, spec.val_fraction, spec.test_fraction),
        [],
        (),
        np.zeros((len(files), 0), np.float32),
        _fingerprint(files, digests, b""),
        tuple(
            one_line(note, 3000)
            for note in (
                _told_tables(spec, found),
                _told_splits(files),
                _copies(digests),
                found.told(),
            )
            if note
        ),
    )


def _csv_path(root: pathlib.Path, csv: str, others: list[str]) -> pathlib.Path | None:
    if csv == "-":
        return None
    if not csv:
        here = tables.label_file(root, others)
        known = tables.LABEL_FILES
        inside = [f for f in others if f.lower().rsplit("/", 1)[-1] in known]
        if not here and inside:
            raise PacxError(
                f"{root}: no {' or '.join(known)} in it but in its sub-folders "
                f"({', '.join(sorted(inside)[:3])}); give one of these folders as "
                "data.path or one file as data.csv, or data.csv='-' to use none"
            )
        return root / here if here else None
    for candidate in (root / csv, pathlib.Path(csv)):
        if candidate.is_file():
            return candidate
    raise PacxError(f"{csv}: no such CSV file, here or under {root}; check data.csv")


def _under(root: pathlib.Path, path: str | os.PathLike) -> str:
    """A path relative to the root, as names.find lists it; another one as it is."""
    return pathlib.Path(os.path.relpath(path, root)).as_posix()


def match_paths(
    table: tables.Table,
    column: str,
    found: names.Found,
    root: pathlib.Path,
    allow_missing: bool = False,
    allow_repeats: bool = False,
) -> tuple[list[str], tuple[str, ...]]:
    """Finds the file that each row names, as `names.Names` does.

    Names are relative to the table, else to the root. With `allow_missing` a row
    without its file has "", with `allow_repeats` one that is equal to an earlier row.

    Returns:
      The path of each row, and lines that say how those were found.

    Raises:
      PacxError: a row without its file, with several, or with that of another row.
    """
    known, passed = names.Names(found.paths), names.Names(found.passed)
    near = _under(root, table.path).rpartition("/")[0]
    paths, missing, other, used = [], [], [], {}
    for number, cell in enumerate(table.column(column, "data.path_column"), start=2):
        candidates = known.at(f"{near}/{cell.strip()}") if near else []
        candidates = candidates or known.at(cell)
        if len(candidates) > 1:
            raise PacxError(
                f"{table.path}: row {number} names {cell!r}, which may be "
                f"{candidates[0]} or {candidates[1]} under {root}; write its whole path"
            )
        if not candidates:
            missing.append((number, cell))
            paths.append("")
            continue
        path = candidates[0]
        if path in used:
            if allow_repeats and table.rows[used[path] - 2] == table.rows[number - 2]:
                paths.append("")
                continue
            raise PacxError(
                f"{table.path}: rows {used[path]} and {number} both name {path}; "
                "keep one"
            )
        used[path] = number
        paths.append(path)
        said = cell.strip().replace("\\", "/").removeprefix("./")
        whole = path if "/" in said else path.rsplit("/", 1)[-1]
        if said != whole and f"{near}/{said}" != path:
            other.append(f"{cell!r} is {path}")
    if missing and not allow_missing:
        number, cell = missing[0]
        there = passed.at(cell)
        why, mend = f"are not under {root}", "add the files"
        if there:
            why, mend = f"are no JPEG, PNG or DICOM ({there[0]})", "convert them"
        raise PacxError(
            f"{table.path}: {len(missing)} rows name files that {why}, the first is "
            f"row {number}, {cell!r}; {mend} or remove the rows"
        )
    if not other:
        return paths, ()
    return paths, (f"{len(other)} rows name their file otherwise: {other[0]}, ...",)


def table_roles(table: tables.Table, spec: FolderSpec) -> dict[str, str]:
    """The column of each of tables.ROLES, "" without one."""
    chosen = {r: getattr(spec, f"{r}_column") for r in ("path", "patient", "split")}
    return tables.columns(table, chosen)


def described(table: tables.Table, roles: dict[str, str]) -> str:
    """One line that says which column was taken for what."""
    taken = ", ".join(f"{role} {name!r}" for role, name in roles.items() if name)
    return f"{table.path}: {len(table.rows)} rows; columns: {taken or 'none known'}"


def table_patients(table: tables.Table, roles: dict[str, str]) -> list[str]:
    """Patient of each row; [] without a column of them."""
    column = roles["patient"]
    return tables.patients(table, column, "data.patient_column") if column else []


def table_splits(
    table: tables.Table, spec: FolderSpec, patients: list[str], files: list[str]
) -> list[str]:
    """Split of each row: the CSV's, with val and test drawn from train if not given.

    Drawn by patient, else by `files`. PacxError when a patient is in two splits.
    """
    roles = table_roles(table, spec)
    column = roles["split"]
    splits = ["train"] * len(files)
    if column:
        splits = tables.split_names(table, column, "data.split_column")
    val = 0.0 if "val" in splits else spec.val_fraction
    test = 0.0 if "test" in splits else spec.test_fraction
    rows = [i for i, name in enumerate(splits) if name == "train"]
    groups = patients or files
    if patients and roles["patient"]:
        groups = ids.as_written(table.column(roles["patient"], ""), patients)
    drawn = tables.assign_splits([groups[i] for i in rows], val, test)
    for i, name in zip(rows, drawn, strict=True):
        splits[i] = name
    seen: dict[str, str] = {}
    for patient, split in zip(patients, splits, strict=False):
        if seen.setdefault(patient, split) != split:
            raise PacxError(
                f"{table.path}: patient {patient!r} is in both {seen[patient]} and "
                f"{split}; mend column {column!r}, or give data.split_column='-'"
            )
    return splits


def _digests(root: pathlib.Path, paths: list[str]) -> list[str]:
    """A digest of each file: its size and both its ends.

    Cheap, and different for any two images in practice: the ends of a compressed
    file depend on its pixels. Copies of one image have one digest, so that they
    fall into one split.
    """

    def digest(path: str) -> str:
        try:
            with open(root / path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                ends = file.read(_SAMPLE_BYTES)
                file.seek(max(size - _SAMPLE_BYTES, 0))
                ends += file.read(_SAMPLE_BYTES)
        except OSError as error:
            raise files.unreadable(root / path, error) from None
        return hashlib.sha256(size.to_bytes(8, "big") + ends).hexdigest()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(digest, paths))


def _told_tables(spec: FolderSpec, found: names.Found) -> str:
    """A line on tables that may have been meant as the labels; "" without any."""
    like = [p for p in found.passed if p.lower().endswith(_TABLES)]
    like = [] if spec.csv else [p for p in like if not p.startswith(".")]
    if not like:
        return ""
    more = f" and {len(like) - 5} more" if len(like) > 5 else ""
    return (
        f"NO LABELS are read: {', '.join(like[:5])}{more} is none of "
        f"{', '.join(tables.LABEL_FILES)}; name a CSV by data.csv, a workbook saved as "
        "CSV first"
    )


def _told_splits(paths: list[str]) -> str:
    """A line on folders that a publisher named by splits; "" without any."""
    named = {part for path in paths for part in path.split("/")[:-1]}
    named = {part for part in named if part.lower() in tables.SPLIT_NAMES}
    if len({tables.SPLIT_NAMES[part.lower()] for part in named}) < 2:
        return ""
    return (
        f"NO SPLITS are read from the folders {', '.join(sorted(named))}: each split "
        "is drawn from all; a CSV with a column of splits keeps them"
    )


def _copies(digests: list[str]) -> str:
    copies = len(digests) - len(set(digests))
    return f"{copies} images are copies of others" if copies else ""


def _fingerprint(paths: list[str], digests: list[str], csv: bytes) -> str:
    whole = hashlib.sha256(csv)
    for path, digest in zip(paths, digests, strict=True):
        whole.update(f"{path}\0{digest}\n".encode())
    return whole.hexdigest()
