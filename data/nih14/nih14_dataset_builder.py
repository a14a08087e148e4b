"""NIH ChestX-ray14 (Wang et al. 2017): 112,120 frontal X-rays of 30,805 patients.

Layout, of the NIH and of Kaggle:

  Data_Entry_2017_v2020.csv, else Data_Entry_2017.csv
  train_val_list.txt, test_list.txt
  images/00000001_000.png, or images_001/images/00000001_000.png

The official lists share no patient. "No Finding" is 0 for all labels; a blank cell of
findings is missing labels. A study is a patient's visit, by `Follow-up #`; the view is
`View Position`'s. Where a table lacks either, so do the examples.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from pacx_jax.errors import PacxError
from pacx_jax.input import tables

CSVS = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
# Positives in the official test list.
LABELS = {
    "Hernia": 86,
    "Pneumothorax": 2_665,
    "Nodule": 1_623,
    "Edema": 925,
    "Effusion": 4_658,
    "Pleural_Thickening": 1_143,
    "Cardiomegaly": 1_069,
    "Mass": 1_748,
    "Fibrosis": 435,
    "Consolidation": 1_815,
    "Pneumonia": 555,
    "Infiltration": 6_112,
    "Emphysema": 1_093,
    "Atelectasis": 3_279,
}
FACTS = published.Facts(
    title="NIH ChestX-ray14",
    markers=CSVS,
    labels=tuple(LABELS),
    strict=splits.Policy(keep=("test",), val=0.15, by_patient=True),
    reference=splits.Policy(keep=("test",), val=0.15),
    counts={
        "both": {
            "train+val": {"images": 86_524},
            "test": {"images": 25_596} | LABELS,
        }
    },
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The rows of the CSV; PacxError for one in neither list."""
    del files
    columns = ("Image Index", "Finding Labels", "Patient ID")
    table = listings.read_table(listings.first_file(root, *CSVS), columns)
    lists = {
        split: dict.fromkeys(listings.read_lines(listings.first_file(root, file)))
        for split, file in LISTS.items()
    }
    twice = [name for name in lists["test"] if name in lists["train"]]
    if twice:
        raise PacxError(
            f"{root}: {twice[0]} is in both {' and '.join(LISTS.values())}; remove one"
        )
    listed = {name: split for split, names in lists.items() for name in names}
    patients = tables.patients(table.table, "Patient ID", "as published")
    for (origin, cells), patient in zip(table, patients, strict=True):
        name = cells["Image Index"]
        if name not in listed:
            raise PacxError(
                f"{origin}: {name} is in neither {' nor '.join(LISTS.values())}"
            )
        labels = _labels(cells["Finding Labels"], origin)
        visit, view = cells.get("Follow-up #", ""), cells.get("View Position")
        yield listings.Row(
            origin,
            name,
            labels,
            patient,
            listed[name],
            study=f"{patient}_{visit}" if visit else "",
            views=() if view is None else (("listed", view),),
        )


def _labels(cell: str, origin: str) -> list[float]:
    found = {part.strip() for part in cell.split("|")} - {""}
    unknown = sorted(found - {*LABELS, "No Finding"})
    if unknown:
        raise PacxError(
            f"{origin}: unknown finding {unknown[0]!r}; they are {', '.join(LABELS)}"
        )
    return [float(name in found) if found else float("nan") for name in LABELS]


class Builder(records.RecordBuilder, skip_registration=True):
    """NIH ChestX-ray14 as ArrayRecord."""

    name = "nih14"
    description = "NIH ChestX-ray14 with its 14 text-mined labels."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
