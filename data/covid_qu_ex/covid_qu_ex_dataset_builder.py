"""COVID-QU-Ex (Tahir et al. 2022): 33,920 X-rays of three classes with lung masks.

Layout (Kaggle, anasmohammedtahir/covidqu): in `Lung Segmentation Data`, once or twice,
{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks}/FILE.png. The official
splits are kept; patients are not published. Counts of the classes are those of its page
on Kaggle, of the splits those of the authors' code. The mask is the lungs' (D29):
those of the infection, of a part of the images, are not read.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits

FOLDER = "Lung Segmentation Data"
CLASSES = ("Normal", "COVID-19", "Non-COVID")  # the reference's 0, 1, 2
_OFFICIAL = splits.Policy(keep=splits.NAMES)
FACTS = published.Facts(
    title="COVID-QU-Ex",
    markers=tuple(f"Train/{name}" for name in CLASSES),
    labels=CLASSES,
    strict=_OFFICIAL,
    reference=_OFFICIAL,
    counts={
        "both": {
            "train": {"images": 21_715},
            "val": {"images": 5_417},
            "test": {"images": 6_788},
            "train+val+test": {
                "Normal": 10_701,
                "COVID-19": 11_956,
                "Non-COVID": 11_263,
            },
        }
    },
    note="COVID-QU-Ex publishes no patients: whether its splits share some cannot be "
    "known",
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The files of the class folders' `images`, and of `lung masks` beside it."""
    for path, split, name in listings.class_folders(files, CLASSES, inside="images"):
        labels = listings.one_hot(CLASSES, name)
        above, _, file = path.rsplit("/", 2)
        mask = files.mask(f"{above}/lung masks/{file}")
        yield listings.Row(str(root / path), path, labels, split=split, mask=mask)


class Builder(records.RecordBuilder, skip_registration=True):
    """COVID-QU-Ex as ArrayRecord."""

    name = "covid_qu_ex"
    description = "COVID-QU-Ex chest X-rays of three classes with lung masks."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    # Beside it lies `Infection Segmentation Data`, a part of the same images.
    inside = source / FOLDER
    source = inside if inside.is_dir() else source
    return published.make_plan(source, options, FACTS, read)
