"""SIIM-ACR Pneumothorax Segmentation (2019): X-rays with masks of the pneumothorax.

Layouts, of Kaggle's challenge (siim-acr-pneumothorax-segmentation), and of a copy as
PNG (vbookshelf/pneumothorax-chest-xray-images-and-masks), which BenchX reads:

  stage_2_train.csv, else train-rle.csv   ImageId, EncodedPixels; a row a mask
  any folders/IMAGEID.dcm

  stage_1_{train,test}_images.csv         new_filename, ImageId, has_pneumo
  png_images/FILE.png, png_masks/FILE.png

EncodedPixels is " -1" without pneumothorax, else a mask of 1024 x 1024 pixels as
data/runs.py reads it; several rows of an image are one mask. Images that the table does
not have (37 of stage 1's) are counted and left out. Neither patients nor a mapping to
NIH ChestX-ray14, from which all images are, are published.

In the DICOM layout, 15% of the images are drawn for test and 15% of the rest for val,
stratified. The copy's test is kept, and as many images of train are drawn for val.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, runs, splits
from pacx_jax.errors import PacxError
from pacx_jax.input import dicom

CSVS = ("stage_2_train.csv", "train-rle.csv")
COPY = {"train": "stage_1_train_images.csv", "test": "stage_1_test_images.csv"}
SIDE = 1024  # pixels of the published images
NONE = "-1"
_DRAW = splits.Policy(test=0.15, val=0.15, stratified=True)
_KEEP = splits.Policy(keep=("test",), val=0.1285, stratified=True)  # 1,372 of 10,675
FACTS = published.Facts(
    title="SIIM-ACR Pneumothorax",
    markers=(*CSVS, *COPY.values()),
    labels=("Pneumothorax",),
    strict=_DRAW,
    reference=_DRAW,
    counts={},
    note="SIIM-ACR publishes no patients: splits are by image. All images are from NIH "
    "ChestX-ray14: an encoder that was pretrained on that has seen them",
)
# With pneumothorax: of stage 2's table, of stage 1's, and of the copy.
COUNTS = {
    "stage_2_train.csv": {
        "train+val+test": {"images": 12_047, "Pneumothorax": 2_669},
    },
    "train-rle.csv": {"train+val+test": {"images": 10_675, "Pneumothorax": 2_379}},
    COPY["train"]: {
        "train+val": {"images": 10_675, "Pneumothorax": 2_379},
        "test": {"images": 1_372, "Pneumothorax": 290},
    },
}


class Builder(records.RecordBuilder, skip_registration=True):
    """SIIM-ACR Pneumothorax as ArrayRecord."""

    name = "siim_acr"
    description = "SIIM-ACR chest X-rays with masks of pneumothorax."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published tables; PacxError when they are not as described."""
    root = published.find_root(source, FACTS)
    table = next(f for f in (*CSVS, *COPY.values()) if (root / f).is_file())
    copied = table not in CSVS
    facts = dataclasses.replace(FACTS, counts={"both": COUNTS.get(table, {})})
    if copied:
        facts = dataclasses.replace(facts, strict=_KEEP, reference=_KEEP)
    notes: list[str] = [f"labels are of {table}"] if not copied else []

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        yield from _copy(root, files) if copied else _rows(root / table, files, notes)

    plan = published.make_plan(source, options, facts, read)
    return dataclasses.replace(plan, notes=(*notes, *plan.notes))


def _rows(
    path: pathlib.Path, files: listings.Files, notes: list[str]
) -> Iterator[listings.Row]:
    """One row an image, in the order of their ids."""
    found: dict[str, dict[str, None]] = {}
    origins: dict[str, str] = {}
    repeated = 0
    for origin, cells in listings.read_table(path, ("ImageId", "EncodedPixels")):
        image, text = cells["ImageId"], cells["EncodedPixels"]
        if not image or not text:
            raise PacxError(
                f"{origin}: ImageId {image!r} and EncodedPixels {text!r}; give {NONE} "
                "where there is no pneumothorax"
            )
        texts = found.setdefault(image, {})
        if texts and (text == NONE) != (NONE in texts):
            raise PacxError(
                f"{origin}: {image} has a mask and {NONE}, no pneumothorax; remove one"
            )
        repeated += text in texts
        texts[text] = None
        origins.setdefault(image, origin)
    counts = collections.Counter(0 if NONE in t else len(t) for t in found.values())
    several = sum(n for masks, n in counts.items() if masks > 1)
    notes.append(
        f"{counts[0]} images without pneumothorax ({NONE}), "
        f"{len(found) - counts[0]} with, {several} of them of several masks"
    )
    if repeated:
        notes.append(f"{repeated} masks repeat another of their image")
    notes += listings.told_unlisted(files, found.keys())
    for image, texts in sorted(found.items()):
        masks = () if NONE in texts else tuple(texts)
        label = float(bool(masks))
        mask = runs.Runs(masks, SIDE, SIDE)
        row = listings.Row(
            origins[image], image, [label], stratum=label, mask=mask, study=image
        )
        file = files.find(row)
        header = dicom.view(files.root / file) if file else ""
        yield dataclasses.replace(row, views=(("DICOM", header),))


def _copy(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The rows of the copy's two tables."""
    for split, name in COPY.items():
        path = listings.first_file(root, name)
        columns = ("new_filename", "ImageId", "has_pneumo")
        for origin, cells in listings.read_table(path, columns):
            file, value = cells["new_filename"], cells["has_pneumo"]
            if value not in ("0", "1"):
                raise PacxError(f"{origin}: has_pneumo is {value!r}, not 0 or 1")
            yield listings.Row(
                origin,
                file,
                [float(value)],
                split=split,
                stratum=float(value),
                folder="png_images",
                mask=files.mask(f"png_masks/{file}"),
                study=cells["ImageId"],
            )
