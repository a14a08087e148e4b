"""CheXpert (Irvin et al. 2019): frontal and lateral chest X-rays with 14 labels.

Layout, of CheXpert-v1.0 and of CheXpert-v1.0-small:

  train.csv, valid.csv [, train_visualCheXbert.csv]
  train/patient00001/study1/view1_frontal.jpg
  valid/patient64541/study1/view1_frontal.jpg

The `Path` column begins with the root folder's name, which is stripped. Labels stay
as they are: 1, 0, -1 (uncertain), blank. Where train_visualCheXbert.csv is there, its
labels are those of train. The official valid.csv is the val split.

A study is its folder. The view is what the columns Frontal/Lateral and AP/PA say
(origin `listed`); the file's name is compared, and tells it where the columns are not
there (origin `guessed`).
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import re
from typing import Any

import numpy as np

from data import published, records, studies
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import findings, folders, tables, views
from pacx_jax.input import names as file_names

LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_TEXTS = ("study_id", "view", "view_origin")
COUNTS = {"train": {"images": 223_414}, "val": {"images": 234}}


class Builder(records.RecordBuilder, skip_registration=True):
    """CheXpert as ArrayRecord."""

    name = "chexpert"
    description = "CheXpert chest radiographs, shrunk once, with their labels."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the CSVs; PacxError when one is missing or names a missing file."""
    root = _root(source)
    train_csv = root / "train_visualCheXbert.csv"
    if not train_csv.is_file():
        train_csv = root / "train.csv"
    read = {
        split: tables.read_table(path)
        for split, path in (("train", train_csv), ("val", root / "valid.csv"))
    }
    names = _labels(read)
    found = file_names.find(root)
    digest = hashlib.sha256()
    splits, told, missing, repeats = {}, (), 0, 0
    tally = views.Tally()
    for split, table in read.items():
        digest.update(files.read_bytes(table.path))
        paths, notes = folders.match_paths(
            table, "Path", found, root, options.allow_missing, allow_repeats=True
        )
        told += notes
        repeated = len(table.rows) - len(set(map(tuple, table.rows)))
        values = np.zeros((len(paths), 0), np.float32)
        if names:
            values = findings.read(table, names)[1]
        rows, notes = _rows(root, table, paths, values, tally)
        told += notes
        splits[split] = rows
        repeats += repeated
        missing += paths.count("") - repeated
    train, val = ({row[1] for row in splits[name]} for name in ("train", "val"))
    shared = train & val
    if shared:
        raise PacxError(
            f"{root}: patient {min(shared)} is in both train.csv and valid.csv"
        )
    make = published.MakeImage(str(root), options.size, grouped=True, texts=_TEXTS)
    entries = ("image", "path", "patient_id") + (("labels",) if names else ()) + _TEXTS
    if missing:
        digest.update(f"without {missing}".encode())
    told += (f"{missing} listed images are not there and left out",) * bool(missing)
    told += (f"{repeats} rows repeat another and count once",) * bool(repeats)
    told += tuple(tally.told())
    simulated = (root / published.SIMULATED).is_file()
    return records.Plan(
        splits,
        make,
        make.name,
        entries,
        names,
        digest.hexdigest(),
        published={} if simulated else COUNTS,
        notes=told,
        identity=functools.partial(records.image_identity, str(root)),
    )


def _labels(read: dict[str, tables.Table]) -> tuple[str, ...]:
    """The official labels in their order; PacxError if one CSV alone lacks one."""
    columns = {split: set(table.columns) for split, table in read.items()}
    names = tuple(name for name in LABELS if any(name in c for c in columns.values()))
    for split, table in read.items():
        lacking = [name for name in names if name not in columns[split]]
        if lacking:
            table.column(lacking[0], "a label that the other CSV has")
    return names or findings.read(read["train"], exclude={"Path"})[0]


def _rows(
    root: pathlib.Path,
    table: tables.Table,
    paths: list[str],
    values: np.ndarray,
    tally: views.Tally,
) -> tuple[list[tuple], tuple[str, ...]]:
    """The rows of a split as `published.MakeImage` takes them, and what to tell."""
    rows = [
        (path, _patient(path, table), labels, None, _texts(path, claims, tally))
        for path, labels, claims in zip(paths, values, _views(table), strict=True)
        if path
    ]
    there = [row[0] for row in rows]
    again = studies.copies(root, there, [row[4][0] for row in rows])
    left = [row for i, row in enumerate(rows) if i not in {*again}]
    return left, tuple(studies.told_copies(there, again))


def _views(table: tables.Table) -> list[tuple[tuple[str, str], ...]]:
    """What the columns say of each row's view, as `views.settle` takes it."""
    columns = [c for c in ("Frontal/Lateral", "AP/PA") if c in table.columns]
    cells = [table.column(c, "as published") for c in columns]
    return [
        tuple(("listed", cell) for cell in row)
        for row in (zip(*cells, strict=True) if cells else [()] * len(table.rows))
    ]


def _texts(
    path: str, claims: tuple[tuple[str, str], ...], tally: views.Tally
) -> tuple[str, ...]:
    """The values of _TEXTS for the image at train/patient00001/study1/view1_x.jpg."""
    folders_above, _, name = path.rpartition("/")
    study = "/".join(folders_above.split("/")[-2:])
    told = re.search("frontal|lateral", name.lower())
    claims += (("guessed", told[0]),) if told else ()
    settled = tally.settle(claims)
    return study, settled.view, settled.origin


def _root(source: pathlib.Path) -> pathlib.Path:
    """The folder with train.csv: `source`, or the one folder in it that has it."""
    if not source.is_dir():
        raise PacxError(f"{source}: no such folder; check --source")
    inside = [p.parent for p in sorted(source.glob("*/train.csv"))]
    candidates = [source] if (source / "train.csv").is_file() else inside
    if len(candidates) != 1:
        raise PacxError(
            f"{source}: no train.csv here; --source must be the folder CheXpert-v1.0 "
            "with train.csv, valid.csv, train/ and valid/"
        )
    return candidates[0]


def _patient(path: str, table: tables.Table) -> str:
    found = re.search(r"(?:^|/)(patient\w+)/", path)
    if not found:
        raise PacxError(
            f"{table.path}: no patient in the path {path!r}; CheXpert's paths are like "
            "train/patient00001/study1/view1_frontal.jpg"
        )
    return found[1]
