"""ChestX6: 18,036 X-rays of six classes, collected from other data sets.

Layout (Kaggle, mohamedasak): {train,val,test}/CLASS/FILE, in a folder `chest-xray`. The
official splits are kept. The set holds images that were augmented before publication,
and no patients.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits

CLASSES = (
    "Covid-19",
    "Emphysema",
    "Normal",
    "Pneumonia-Bacterial",
    "Pneumonia-Viral",
    "Tuberculosis",
)
_OFFICIAL = splits.Policy(keep=splits.NAMES)
FACTS = published.Facts(
    title="ChestX6",
    markers=tuple(f"train/{name}" for name in CLASSES),
    labels=CLASSES,
    strict=_OFFICIAL,
    reference=_OFFICIAL,
    counts={
        "both": {
            "train": {"images": 14_551},
            "val": {"images": 1_748},
            "test": {"images": 1_737},
        }
    },
    note="ChestX6 publishes no patients and holds augmented copies of images: whether "
    "its splits share patients cannot be known",
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The files of the class folders."""
    for path, split, name in listings.class_folders(files, CLASSES):
        labels = listings.one_hot(CLASSES, name)
        yield listings.Row(str(root / path), path, labels, split=split)


class Builder(records.RecordBuilder, skip_registration=True):
    """ChestX6 as ArrayRecord."""

    name = "chestx6"
    description = "Chest X-rays of six classes."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
