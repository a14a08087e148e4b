"""Shenzhen tuberculosis set (Jaeger et al. 2014): 662 frontal X-rays.

Layouts, Kaggle's (raddar) and that of the National Library of Medicine:

  shenzhen_metadata.csv (study_id, sex, age, findings), images/images/CHNCXR_0001_0.png
  CXR_png/CHNCXR_0001_0.png, ClinicalReadings/CHNCXR_0001_0.txt

The label is 1 unless the findings are "normal"; without the CSV it is the last digit of
the file's name. Each X-ray is of another patient as far as is published.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from pacx_jax.errors import PacxError

CSV = "shenzhen_metadata.csv"
FACTS = published.Facts(
    title="the Shenzhen tuberculosis set",
    markers=(CSV, "CXR_png"),
    labels=("Tuberculosis",),
    strict=splits.Policy(test=0.2, val=0.15, stratified=True, by_patient=True),
    reference=splits.Policy(test=0.2, val=0.15, stratified=True),
    counts={
        "both": {
            "train": {"images": 449},
            "val": {"images": 80},
            "test": {"images": 133},
            "train+val+test": {"Tuberculosis": 336},
        }
    },
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The rows of the CSV, else the files of CXR_png."""
    for origin, file, label in _studies(root, files):
        patient = pathlib.PurePath(file).stem.rsplit("_", 1)[0]
        yield listings.Row(origin, file, [label], patient, stratum=label)


def _studies(
    root: pathlib.Path, files: listings.Files
) -> Iterator[tuple[str, str, float]]:
    if (root / CSV).is_file():
        table = listings.read_table(root / CSV, ("study_id", "findings"))
        for origin, cells in table:
            findings = cells["findings"].strip().lower()
            label = float(findings != "normal") if findings else float("nan")
            yield origin, cells["study_id"], label
        return
    for path in files.paths:
        if "CXR_png" in path.split("/"):
            digit = pathlib.PurePath(path).stem.rsplit("_", 1)[-1]
            if digit not in ("0", "1"):
                raise PacxError(
                    f"{root / path}: the names of this set end in _0 or _1, which is "
                    "the label"
                )
            yield str(root / path), path, float(digit)


class Builder(records.RecordBuilder, skip_registration=True):
    """The Shenzhen tuberculosis set as ArrayRecord."""

    name = "tb"
    description = "Shenzhen chest X-rays, with tuberculosis or not."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
