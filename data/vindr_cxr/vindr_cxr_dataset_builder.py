"""VinDr-CXR (Nguyen et al. 2022): 18,000 X-rays read by radiologists.

Layout, of PhysioNet 1.0.0, or Kaggle's 512-pixel PNGs (awsaf49) with its label files:

  annotations/image_labels_train.csv   image_id, rad_id, 28 labels; three rows an image
  annotations/image_labels_test.csv    image_id, 28 labels; one row an image
  train/IMAGE_ID.png, test/IMAGE_ID.png

The label files may also lie beside `train` and `test`. Labels are those 19 that at
least 50 training images have; in train what half of an image's readers say. Neither
patients nor studies are published: each image is a study. All are PA as published,
and where images are DICOM files the headers are compared with that.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from data import listings, published, records, splits
from pacx_jax.errors import PacxError
from pacx_jax.input import dicom, findings

FILES = ("image_labels_train.csv", "annotations/image_labels_train.csv")
# Positives among the 15,000 images of the official train split.
LABELS = {
    "Pneumothorax": 58,
    "Atelectasis": 62,
    "Mediastinal shift": 85,
    "Consolidation": 121,
    "Lung tumor": 134,
    "ILD": 152,
    "Calcification": 177,
    "Infiltration": 245,
    "Other lesion": 362,
    "Nodule/Mass": 409,
    "Pneumonia": 471,
    "Tuberculosis": 482,
    "Lung Opacity": 547,
    "Pleural effusion": 634,
    "Pleural thickening": 882,
    "Pulmonary fibrosis": 1017,
    "Cardiomegaly": 1817,
    "Aortic enlargement": 2346,
    "Other diseases": 4003,
}
ALIASES = {"Other disease": "Other diseases"}  # the two files differ
_DRAW = splits.Policy(keep=("test",), val=0.1)
FACTS = published.Facts(
    title="VinDr-CXR",
    markers=FILES,
    labels=tuple(LABELS),
    strict=_DRAW,
    reference=_DRAW,
    counts={
        "both": {
            "train": {"images": 13_500},
            "val": {"images": 1_500},
            "test": {"images": 3_000},
            "train+val": LABELS,
        }
    },
    note="VinDr-CXR publishes no patients: train and val are drawn by image",
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """One row an image, in the order of their ids."""
    for split in ("train", "test"):
        names = (name.replace("train", split) for name in FILES)
        path = listings.first_file(root, *names)
        table = listings.read_table(path, ("image_id", *LABELS), ALIASES)
        values = findings.read(table.table, tuple(LABELS))[1]
        readings: dict[str, dict[str, np.ndarray]] = {}
        for (origin, cells), value in zip(table, values, strict=True):
            readers = readings.setdefault(cells["image_id"], {})
            unnamed = origin if split == "train" else ""
            reader = cells.get("rad_id") or cells.get("rad_ID") or unnamed
            if not np.array_equal(
                readers.setdefault(reader, value), value, equal_nan=True
            ):
                raise PacxError(
                    f"{origin}: an earlier row of {cells['image_id']} by the same "
                    "reader has other labels; remove one"
                )
        for image, readers in sorted(readings.items()):
            labels = majority(np.stack(list(readers.values())))
            origin = f"{path}: image {image}"
            row = listings.Row(origin, image, labels, split=split, folder=split)
            path = files.find(row)
            header = dicom.view(files.root / path) if path else ""
            claims = (("listed", "PA"), *((("DICOM", header),) if header else ()))
            yield dataclasses.replace(row, study=image, views=claims)


def majority(readings: np.ndarray) -> np.ndarray:
    """(readers, labels) -> 1 where at least half of those who judged say so.

    What nobody judged is NaN, or -1 where somebody was uncertain.
    """
    judged = (readings == 0) | (readings == 1)
    positive = (readings == 1).sum(0) >= np.maximum(judged.sum(0), 1) / 2
    unjudged = np.where((readings == -1).any(0), -1.0, np.nan)
    return np.where(judged.any(0), positive, unjudged).astype(np.float32)


class Builder(records.RecordBuilder, skip_registration=True):
    """VinDr-CXR as ArrayRecord."""

    name = "vindr_cxr"
    description = "VinDr-CXR chest X-rays with 19 labels of radiologists."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
