"""Kermany et al. 2018: 5,856 X-rays of children, pneumonia or normal.

Layout (Kaggle, paultimothymooney; Mendeley): {train,val,test}/{NORMAL,PNEUMONIA}/FILE,
in a folder `chest_xray`. Mendeley's has no val. File names tell the patient:
person1_bacteria_2.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-0383-0001.jpeg.

`strict` keeps the official test split and draws val by patient (the official val is 16
images); `reference` puts all together and draws images.

Counts of `strict` are the paper's: 3,883 with pneumonia and 1,349 normal to train on
(Kaggle's train and val together), 390 and 234 to test on; those of `reference`
the authors' code's.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits

FACTS = published.Facts(
    title="the pneumonia set of Kermany et al.",
    markers=("train/NORMAL", "train/PNEUMONIA"),
    labels=("Pneumonia",),
    strict=splits.Policy(keep=("test",), val=0.1, stratified=True, by_patient=True),
    reference=splits.Policy(test=0.2, val=0.1, stratified=True),
    counts={
        "strict": {
            "train+val": {"images": 5_232, "Pneumonia": 3_883},
            "test": {"images": 624, "Pneumonia": 390},
        },
        "reference": {
            "train": {"images": 4_216},
            "val": {"images": 469},
            "test": {"images": 1_172},
        },
    },
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The files of the class folders."""
    classes = ("NORMAL", "PNEUMONIA")
    for path, split, name in listings.class_folders(files, classes):
        label = float(name == "PNEUMONIA")
        patient = _patient(path.rsplit("/", 1)[-1])
        yield listings.Row(str(root / path), path, [label], patient, split, label)


def _patient(name: str) -> str:
    """The patient of a file, "" if not told; bacteria and virus count separately."""
    found = re.match(r"(person\d+)_(bacteria|virus)|((?:NORMAL2-)?IM-\d+)", name)
    if not found:
        return ""
    return found[3] or f"{found[2]}-{found[1]}"


class Builder(records.RecordBuilder, skip_registration=True):
    """The pneumonia set of Kermany et al. as ArrayRecord."""

    name = "kermany"
    description = "Chest X-rays of children, pneumonia or normal."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
