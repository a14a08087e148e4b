"""COVIDx CXR-4 (Wu et al. 2023): 84,818 X-rays, COVID-19 or not.

Layout (Kaggle, andyczhao/covidx-cxr2, version 9): train.txt, val.txt and test.txt with
`patient_id filename class source` a line, and train/, val/, test/ (or all in images/).

`strict` keeps the official splits; `reference` puts all together and draws images.

Counts of all are those of Wu et al. (arXiv 2311.17677), positives as others cite them;
those of `reference` the authors' code's.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from pacx_jax.errors import PacxError

CLASSES = {"negative": 0.0, "positive": 1.0}
FACTS = published.Facts(
    title="COVIDx",
    markers=("train.txt",),
    labels=("COVID-19",),
    strict=splits.Policy(keep=splits.NAMES, by_patient=True),
    reference=splits.Policy(test=0.2, val=0.1, stratified=True),
    counts={
        "both": {"train+val+test": {"images": 84_818, "COVID-19": 65_681}},
        "reference": {
            "train": {"images": 61_068},
            "val": {"images": 6_786},
            "test": {"images": 16_964},
        },
    },
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The lines of the lists; val.txt is missing in older versions."""
    del files
    for split in splits.NAMES:
        path = root / f"{split}.txt"
        if split == "val" and not path.is_file():
            continue
        path = listings.first_file(root, path.name)
        for number, line in enumerate(listings.read_lines(path), start=1):
            origin = f"{path}: line {number}"
            # Names of files may have spaces.
            patient, _, rest = line.partition(" ")
            name, _, label = rest.rpartition(" ")[0].rpartition(" ")
            if label not in CLASSES or not name:
                raise PacxError(
                    f"{origin}: {line!r} is not 'patient filename class source' with "
                    f"class {' or '.join(CLASSES)}"
                )
            value = CLASSES[label]
            yield listings.Row(origin, name, [value], patient, split, value, split)


class Builder(records.RecordBuilder, skip_registration=True):
    """COVIDx as ArrayRecord."""

    name = "covidx"
    description = "COVIDx chest X-rays, COVID-19 or not."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
