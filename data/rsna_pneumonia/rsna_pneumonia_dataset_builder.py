"""RSNA Pneumonia Detection Challenge, stage 2 (Shih et al. 2019): 26,684 X-rays.

Layout, of Kaggle (rsna-pneumonia-detection-challenge) and, for patients, of RSNA:

  stage_2_train_labels.csv         patientId, x, y, width, height, Target; a row a box
  stage_2_detailed_class_info.csv  patientId, class
  stage_2_train_images/PATIENTID.dcm, or images of these names in any folder
  pneumonia-challenge-dataset-mappings_2018.json   subset_img_id, img_id of NIH (or not)

An image has one class of three; `Lung Opacity` is the challenge's pneumonia, and such
an image has one box or more. The two tables must agree. A patientId names an image, not
a patient: all are from NIH ChestX-ray14, and RSNA's mapping says which of its images,
and so of which of its patients. Without the mapping no patients are known. Images of
stage_2_test_images have no published labels and are left out.

`reference` draws as BenchX does (Zhou et al. 2024): 70, 15 and 15% of the images in the
order of their ids, stratified.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from pacx_jax import files as filing
from pacx_jax.errors import PacxError
from pacx_jax.input import dicom, patients

TABLE = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
LABELS = {
    "Lung Opacity": 6_012,
    "No Lung Opacity / Not Normal": 11_821,
    "Normal": 8_851,
}
_BOX = ("x", "y", "width", "height")
_NIH_IMAGE = re.compile(r"(\d{8})_\d{3}(\.png)?")
FACTS = published.Facts(
    title="RSNA Pneumonia",
    markers=(TABLE,),
    labels=tuple(LABELS),
    strict=splits.Policy(test=0.15, val=0.15, by_patient=True, stratified=True),
    reference=splits.Policy(test=0.3, val=0.5, halve=True, stratified=True),
    counts={"both": {"train+val+test": {"images": 26_684} | LABELS}},
    note="all images are from NIH ChestX-ray14: an encoder that was pretrained on that "
    "has seen them",
)


class Builder(records.RecordBuilder, skip_registration=True):
    """RSNA Pneumonia as ArrayRecord."""

    name = "rsna_pneumonia"
    description = "RSNA Pneumonia chest X-rays: lung opacity, otherwise ill, or normal."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published tables; PacxError when they are not as described."""
    notes: list[str] = []

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        yield from _rows(root, files, notes)

    plan = published.make_plan(source, options, FACTS, read)
    # By the mapping the ids are those of NIH ChestX-ray14.
    namespace = patients.namespace("nih14") if "patient_id" in plan.entries else ""
    return dataclasses.replace(plan, notes=(*notes, *plan.notes), namespace=namespace)


def _rows(
    root: pathlib.Path, files: listings.Files, notes: list[str]
) -> Iterator[listings.Row]:
    """One row an image, in the order of their ids."""
    boxes, origins = _boxes(root / TABLE, notes)
    classes = _classes(listings.first_file(root, CLASSES))
    if odd := sorted(classes.keys() ^ boxes.keys()):
        where, other = (TABLE, CLASSES) if odd[0] in boxes else (CLASSES, TABLE)
        raise PacxError(
            f"{root}: {odd[0]} is in {where} and not in {other} ({len(odd)} such); "
            "take both from one download"
        )
    people = _patients(root / MAPPING, notes)
    notes += listings.told_unlisted(files, boxes.keys())
    for image in sorted(boxes):
        label, origin = classes[image], origins[image]
        if (label == "Lung Opacity") != bool(boxes[image]):
            raise PacxError(
                f"{origin}: {image} has {len(boxes[image])} boxes, and its class in "
                f"{CLASSES} is {label!r}; one of the files is not as published"
            )
        row = listings.Row(
            origin,
            image,
            listings.one_hot(tuple(LABELS), label),
            people.get(image, ""),
            stratum=float(bool(boxes[image])),
            folder="stage_2_train_images",
            study=image,
        )
        path = files.find(row)
        header = dicom.view(files.root / path) if path else ""
        yield dataclasses.replace(row, views=(("DICOM", header),))


def _boxes(path: pathlib.Path, notes: list[str]) -> tuple[dict, dict]:
    """Image -> its boxes, and image -> where its first row stands."""
    boxes: dict[str, set[tuple[float, ...]]] = {}
    origins: dict[str, str] = {}
    targets: dict[str, str] = {}
    rows = repeated = 0
    table = listings.read_table(path, ("patientId", *_BOX, "Target"))
    for origin, cells in table:
        image, target = cells["patientId"], cells["Target"]
        if target not in ("0", "1"):
            raise PacxError(f"{origin}: Target is {target!r}, not 0 or 1")
        if targets.setdefault(image, target) != target:
            raise PacxError(f"{origin}: an earlier row of {image} has another Target")
        origins.setdefault(image, origin)
        found = boxes.setdefault(image, set())
        if target == "0":
            continue
        box = _box([cells[name] for name in _BOX], origin)
        repeated += box in found
        rows += 1
        found.add(box)
    boxed = sum(map(bool, boxes.values()))
    more = f", {repeated} of them repeat another of their image" if repeated else ""
    notes.append(f"{rows} boxes (published: 9555) in {boxed} images{more}")
    return boxes, origins


def _box(cells: list[str], origin: str) -> tuple[float, ...]:
    """x, y, width and height in pixels of the published image."""
    try:
        box = tuple(map(float, cells))
    except ValueError:
        box = ()
    if not box or not all(map(math.isfinite, box)) or min(box) < 0 or not all(box[2:]):
        raise PacxError(
            f"{origin}: Target is 1 and x, y, width, height are {', '.join(cells)}: "
            "no box"
        )
    return box


def _classes(path: pathlib.Path) -> dict[str, str]:
    classes: dict[str, str] = {}
    for origin, cells in listings.read_table(path, ("patientId", "class")):
        image, label = cells["patientId"], cells["class"]
        if label not in LABELS:
            raise PacxError(
                f"{origin}: unknown class {label!r}; they are {', '.join(LABELS)}"
            )
        if classes.setdefault(image, label) != label:
            raise PacxError(f"{origin}: an earlier row of {image} has another class")
    return classes


def _patients(path: pathlib.Path, notes: list[str]) -> dict[str, str]:
    """Image -> NIH's patient; {} without the mapping."""
    if not path.is_file():
        notes.append(
            f"no {MAPPING} (RSNA publishes it): patientId names an image, so that no "
            "patients are known"
        )
        return {}
    people = {}
    for i, entry in enumerate(_entries(path)):
        image, nih = entry.get("subset_img_id"), str(entry.get("img_id"))
        found = _NIH_IMAGE.fullmatch(nih)
        if not found or not isinstance(image, str):
            raise PacxError(
                f"{path}: entry {i}: subset_img_id {image!r} and img_id {nih!r}; an id "
                "and a name such as 00000001_000.png are needed"
            )
        people[image] = found[1]
    images = collections.Counter(people.values())
    notes.append(f"{MAPPING}: {len(people)} images of {len(images)} patients of NIH")
    return people


def _entries(path: pathlib.Path) -> list[dict]:
    try:
        found = filing.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PacxError(f"{path}: no readable JSON ({error})") from None
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
        raise PacxError(f"{path}: not a list of entries with subset_img_id and img_id")
    return found
