"""TBX11K (Liu et al. 2020): 11,200 X-rays: healthy, sick, or with tuberculosis.

Layouts, of its authors, and of a smaller copy (Kaggle, vbookshelf/tbx11k-simplified),
which BenchX reads:

  lists/TBX11K_{train,val}.txt   lines such as tb/tb0003.png
  imgs/{health,sick,tb}/FILE.png
  annotations/json/TBX11K_{train,val}.json, else annotations/xml/FILE.xml   boxes

  data.csv   fname, source, target, tb_type, image_type; a row a box
  images/FILE.png

An image is healthy, sick without tuberculosis, or has tuberculosis; of the last the
boxes say whether it is active, latent (ObsoletePulmonaryTuberculosis) or both. An image
with tuberculosis and no box (tb1199 as published) has these two labels missing, one
whose boxes are all of PulmonaryTuberculosis has them uncertain. The labels of the
official test images are not published, so that the official val is `test` here. No
patients are published.

`reference` draws as BenchX does (Zhou et al. 2024): train and val in one pool in the
order of their names, 70, 15 and 15%, stratified by tuberculosis.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data import listings, published, records, splits
from data.openi import xmls
from pacx_jax import files as filing
from pacx_jax.errors import PacxError

LISTS = {"train": "lists/TBX11K_train.txt", "val": "lists/TBX11K_val.txt"}
COPY = "data.csv"
LABELS = ("Healthy", "Sick", "Tuberculosis", "Active TB", "Latent TB")
FOLDERS = {"health": "Healthy", "sick": "Sick", "tb": "Tuberculosis"}
KINDS = {
    "ActiveTuberculosis": "Active TB",
    "ObsoletePulmonaryTuberculosis": "Latent TB",
    "PulmonaryTuberculosis": "",  # of a kind that is not known
}
_COPY_KINDS = {"active_tb": "Active TB", "latent_tb": "Latent TB"}
_COPY_TYPES = {"healthy": "Healthy", "sick_but_no_tb": "Sick", "tb": "Tuberculosis"}
_PARTS = {"train": "train", "val": "test"}  # official list -> split here


def _counts(*numbers: int) -> dict[str, int]:
    return dict(zip(("images", *LABELS), numbers, strict=True))


FACTS = published.Facts(
    title="TBX11K",
    markers=(LISTS["train"], COPY),
    labels=LABELS,
    strict=splits.Policy(keep=("test",), val=0.15, stratified=True),
    reference=splits.Policy(test=0.3, val=0.5, halve=True, stratified=True),
    counts={
        "strict": {
            "train+val": _counts(6_600, 3_000, 3_000, 600, 496, 126),
            "test": _counts(1_800, 800, 800, 200, 164, 43),
        },
        "reference": {"train+val+test": _counts(8_400, 3_800, 3_800, 800, 660, 169)},
    },
    note="TBX11K publishes no patients: splits are by image; under `strict` test is "
    "the official val, as the labels of the official test are not published",
)


class Builder(records.RecordBuilder, skip_registration=True):
    """TBX11K as ArrayRecord."""

    name = "tbx11k"
    description = "TBX11K chest X-rays: healthy, sick, or with tuberculosis."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    notes: list[str] = []

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        original = (root / LISTS["train"]).is_file()
        rows = (_listed if original else _copied)(root, files)
        boxless = uncertain = 0
        found = sorted(rows, key=lambda row: row.file.rsplit("/", 1)[-1])
        for row in found:
            sick = row.labels[2] == 1
            boxless += sick and row.labels[3] != row.labels[3]
            uncertain += sick and row.labels[3] == -1
            yield row
        if boxless:
            notes.append(f"{boxless} images with tuberculosis have no box")
        if uncertain:
            notes.append(f"{uncertain} images have tuberculosis of an unknown kind")
        stems = {pathlib.PurePath(row.file).stem for row in found}
        notes.extend(listings.told_unlisted(files, stems))

    plan = published.make_plan(source, options, FACTS, read)
    return replace(plan, notes=(*notes, *plan.notes))


def labels(kind: str, boxes: set[str] | None) -> list[float]:
    """Values of LABELS.

    Args:
      kind: one of the first three.
      boxes: values of KINDS; None or empty where there is no box.
    """
    values = [float(kind == name) for name in LABELS]
    if kind == "Tuberculosis":
        boxes = boxes or set()
        other = (-1.0 if "" in boxes else 0.0) if boxes else float("nan")
        values[3:] = [1.0 if name in boxes else other for name in LABELS[3:]]
    return values


def _row(origin: str, file: str, kind: str, boxes: set[str] | None, part: str):
    if boxes and kind != "Tuberculosis":
        raise PacxError(
            f"{origin}: {file} has boxes of tuberculosis, and is of the kind {kind}; "
            "one of the files is not as published"
        )
    tuberculosis = float(kind == "Tuberculosis")
    values = labels(kind, boxes)
    return listings.Row(origin, file, values, split=_PARTS[part], stratum=tuberculosis)


def _listed(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The images of the official lists, with the boxes of the JSON or XML files."""
    for part, name in LISTS.items():
        path = listings.first_file(root, name)
        boxes = _json_boxes(root / f"annotations/json/TBX11K_{part}.json")
        for number, line in enumerate(listings.read_lines(path), start=1):
            origin = f"{path}: line {number}"
            kinds = [FOLDERS[f] for f in line.split("/")[:-1] if f in FOLDERS]
            if len(kinds) != 1:
                raise PacxError(
                    f"{origin}: {line!r} is in none of the folders {', '.join(FOLDERS)}"
                )
            stem = pathlib.PurePath(line).stem
            if boxes is None:
                found = _xml_boxes(root / f"annotations/xml/{stem}.xml")
            else:
                found = boxes.get(stem)
            yield _row(origin, line, kinds[0], found, part)


def _json_boxes(path: pathlib.Path) -> dict[str, set[str]] | None:
    """Name without extension -> kinds of its boxes; None without the file."""
    if not path.is_file():
        return None
    boxes: dict[str, set[str]] = collections.defaultdict(set)
    try:
        found = filing.read_json(path)
        names = {x["id"]: _kind(x["name"], path) for x in found["categories"]}
        stems = {x["id"]: pathlib.PurePath(x["file_name"]) for x in found["images"]}
        for box in found["annotations"]:
            boxes[stems[box["image_id"]].stem].add(names[box["category_id"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PacxError(f"{path}: no boxes as in COCO's format ({error!r})") from None
    return boxes


def _xml_boxes(path: pathlib.Path) -> set[str] | None:
    """Kinds of the boxes of one image; None without the file."""
    if not path.is_file():
        return None
    objects = xmls.tree(path, "XML file of boxes").iter("object")
    return {_kind((box.findtext("name") or "").strip(), path) for box in objects}


def _kind(name: Any, path: pathlib.Path) -> str:
    if name not in KINDS:
        raise PacxError(
            f"{path}: boxes of the kind {name!r}; they are {', '.join(KINDS)}"
        )
    return KINDS[name]


def _copied(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The rows of the copy's table, each image once."""
    del files
    columns = ("fname", "source", "target", "tb_type", "image_type")
    found: dict[str, tuple[str, str, str, set[str]]] = {}
    for origin, cells in listings.read_table(root / COPY, columns):
        file, part, type_ = (cells[k] for k in ("fname", "source", "image_type"))
        if part not in _PARTS or type_ not in _COPY_TYPES:
            raise PacxError(
                f"{origin}: source {part!r} and image_type {type_!r}; they are "
                f"{', '.join(_PARTS)} and {', '.join(_COPY_TYPES)}"
            )
        same = found.setdefault(file, (origin, part, type_, set()))
        if same[1:3] != (part, type_):
            raise PacxError(
                f"{origin}: an earlier row of {file} has another source or image_type"
            )
        if (cells["target"] == "tb") != (cells["tb_type"] in _COPY_KINDS):
            raise PacxError(
                f"{origin}: target {cells['target']!r} and tb_type "
                f"{cells['tb_type']!r} do not agree"
            )
        if cells["tb_type"] in _COPY_KINDS:
            same[3].add(_COPY_KINDS[cells["tb_type"]])
    for file, (origin, part, type_, boxes) in found.items():
        yield _row(origin, file, _COPY_TYPES[type_], boxes, part)
