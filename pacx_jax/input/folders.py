"""A tree of JPEG, PNG and DICOM files, its CSV, and the split of them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import tables
from pacx_jax.input.images import EXTENSIONS

DEFAULT_CSVS = ("labels.csv", "metadata.csv")
_SAMPLE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class FolderSpec:
    """How to read a folder; the fields stand in `config.data` under these names.

    Attributes:
      path: root of the tree.
      csv: the CSV, absolute or relative to `path`; "" = `labels.csv` or
        `metadata.csv` if it is there; "-" = none. With a CSV the examples are its
        rows, and files without a row are left out.
      label_columns: see `tables.labels`.
      label_separator: between the values of one cell.
      patient_column: "" = the first of tables.PATIENT_COLUMNS that is there; "-" =
        none, so that files are split one by one.
      path_column: "" = the first of tables.PATH_COLUMNS that is there.
      split_column: "" = `split` if it is there; "-" = none.
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
    """

    root: pathlib.Path
    paths: list[str]
    splits: list[str]
    patients: list[str]
    label_names: tuple[str, ...]
    labels: np.ndarray
    fingerprint: str


def read_folder(spec: FolderSpec) -> Listing:
    """Lists a folder and joins it with its CSV; PacxError names what is wrong."""
    root = pathlib.Path(spec.path)
    files = list_images(root)
    csv_path = _csv_path(root, spec.csv)
    if csv_path is None:
        for field in ("label_columns", "patient_column", "split_column"):
            if getattr(spec, field) not in ("", "-", ()):
                raise PacxError(
                    f"{spec.path}: data.{field} is set but there is no CSV; give "
                    "data.csv"
                )
        digests = _digests(root, files)
        return Listing(
            root,
            files,
            tables.assign_splits(digests, spec.val_fraction, spec.test_fraction),
            [],
            (),
            np.zeros((len(files), 0), np.float32),
            _fingerprint(files, digests, b""),
        )
    table = tables.read_table(csv_path)
    path_column = spec.path_column or table.first_of(tables.PATH_COLUMNS)
    if not path_column:
        raise PacxError(
            f"{table.path}: no column of paths ({', '.join(tables.PATH_COLUMNS)}); "
            f"give data.path_column, one of {', '.join(table.columns)}, or "
            "data.csv='-' to use no CSV"
        )
    paths = match_paths(table, path_column, files, root)
    patients, patient_column = table_patients(table, spec)
    split_column = table_split_column(table, spec)
    names, values = tables.labels(
        table,
        spec.label_columns,
        spec.label_separator,
        exclude={path_column, patient_column, split_column},
    )
    digests = _digests(root, paths)
    splits = table_splits(table, spec, patients, digests)
    fingerprint = _fingerprint(paths, digests, csv_path.read_bytes())
    order = sorted(range(len(paths)), key=paths.__getitem__)

    def ordered(values: list[str]) -> list[str]:
        return [values[i] for i in order] if values else []

    return Listing(
        root,
        ordered(paths),
        ordered(splits),
        ordered(patients),
        names,
        values[order],
        fingerprint,
    )


def list_images(root: str | os.PathLike, setting: str = "data.path") -> list[str]:
    """Relative paths of all JPEG, PNG and DICOM files under `root`, sorted.

    Hidden files and folders are skipped; links to folders are followed once.

    Raises:
      PacxError: no such folder, or no images in it; it names `setting`.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise PacxError(f"{root}: no such folder; check {setting}")
    found, visited = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(x for x in subfolders if not hidden(pathlib.Path(x)))
        prefix = pathlib.PurePath(folder).relative_to(root)
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not hidden(pathlib.Path(name)):
                found.append((prefix / name).as_posix())
    if not found:
        raise PacxError(
            f"{root}: no JPEG, PNG or DICOM files in this folder; check {setting}"
        )
    return sorted(found)


def hidden(path: pathlib.Path) -> bool:
    """Whether it is a hidden file, or one that macOS puts into archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _csv_path(root: pathlib.Path, csv: str) -> pathlib.Path | None:
    if csv == "-":
        return None
    if not csv:
        found = (root / name for name in DEFAULT_CSVS if (root / name).is_file())
        return next(found, None)
    for candidate in (root / csv, pathlib.Path(csv)):
        if candidate.is_file():
            return candidate
    raise PacxError(f"{csv}: no such CSV file, here or under {root}; check data.csv")


def match_paths(
    table: tables.Table,
    column: str,
    files: list[str],
    root: pathlib.Path,
    allow_missing: bool = False,
    allow_repeats: bool = False,
) -> list[str]:
    """The file of each row: its path as it stands, else without leading folders.

    CheXpert's CSV names its own root folder, NIH's gives bare names of files that lie
    in subfolders; both are found. With `allow_missing` a row without its file has "",
    with `allow_repeats` one that is equal to an earlier row has.
    """
    exact = set(files)
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(file.rsplit("/", 1)[-1], []).append(file)
    paths, missing, used = [], [], {}
    for number, cell in enumerate(table.column(column, "data.path_column"), start=2):
        parts = cell.strip().replace("\\", "/").split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        path = next((tail for tail in tails if tail in exact), None)
        same_name = by_name.get(parts[-1], [])
        if path is None and len(parts) == 1 and len(same_name) == 1:
            path = same_name[0]
        if path is None:
            missing.append((number, cell))
            paths.append("")
            continue
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
    if missing and not allow_missing:
        number, cell = missing[0]
        raise PacxError(
            f"{table.path}: {len(missing)} rows name files that are not under {root}, "
            f"the first is row {number}, {cell!r}; add the files or remove the rows"
        )
    return paths


def table_patients(table: tables.Table, spec: FolderSpec) -> tuple[list[str], str]:
    """Patient of each row and the column they are from; ([], "") without one."""
    column = spec.patient_column or table.first_of(tables.PATIENT_COLUMNS)
    if column in ("", "-"):
        return [], ""
    return tables.patients(table, column, "data.patient_column"), column


def table_split_column(table: tables.Table, spec: FolderSpec) -> str:
    """The column of splits, or ""."""
    column = spec.split_column or table.first_of(("split",))
    return "" if column == "-" else column


def table_splits(
    table: tables.Table, spec: FolderSpec, patients: list[str], files: list[str]
) -> list[str]:
    """Split of each row: the CSV's, with val and test drawn from train if not given.

    Drawn by patient, else by `files`. PacxError when a patient is in two splits.
    """
    column = table_split_column(table, spec)
    splits = ["train"] * len(files)
    if column:
        splits = tables.split_names(table, column, "data.split_column")
    val = 0.0 if "val" in splits else spec.val_fraction
    test = 0.0 if "test" in splits else spec.test_fraction
    rows = [i for i, name in enumerate(splits) if name == "train"]
    drawn = tables.assign_splits([(patients or files)[i] for i in rows], val, test)
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
            raise PacxError(f"{root / path}: cannot be read ({error})") from None
        return hashlib.sha256(size.to_bytes(8, "big") + ends).hexdigest()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(digest, paths))


def _fingerprint(paths: list[str], digests: list[str], csv: bytes) -> str:
    whole = hashlib.sha256(csv)
    for path, digest in zip(paths, digests, strict=True):
        whole.update(f"{path}\0{digest}\n".encode())
    return whole.hexdigest()
