"""Any tree of JPEG and PNG files with or without a CSV, as ArrayRecord.

It is read and split by the very code of `data.source=folder`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

from data import records
from pacx_jax.input import folders


class Builder(records.RecordBuilder, skip_registration=True):
    """A folder of images as ArrayRecord."""

    name = "folder"
    description = "A folder of images, shrunk once, with the labels of its CSV."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Lists the folder and joins its CSV; PacxError for what is wrong with either."""
    spec = dataclasses.replace(
        folders.FolderSpec.from_config(options), path=str(source)
    )
    listing = folders.read_folder(spec)
    labelled, grouped = bool(listing.label_names), bool(listing.patients)
    splits: dict[str, list[tuple]] = {}
    for i, (path, split) in enumerate(zip(listing.paths, listing.splits, strict=True)):
        patient = listing.patients[i] if grouped else ""
        splits.setdefault(split, []).append((path, patient, listing.labels[i]))
    make = _Make(str(listing.root), options.size, labelled, grouped)
    entries = ("image", "path")
    entries += ("patient_id",) if grouped else ()
    entries += ("labels",) if labelled else ()
    splits = {s: splits[s] for s in ("train", "val", "test") if s in splits}
    return records.Plan(
        splits,
        make,
        make.name,
        entries,
        listing.label_names,
        listing.fingerprint,
        identity=functools.partial(records.image_identity, str(listing.root)),
    )


@dataclasses.dataclass(frozen=True)
class _Make:
    root: str
    size: int
    labelled: bool
    grouped: bool

    def name(self, row: tuple) -> str:
        return f"{self.root}/{row[0]}"

    def __call__(self, row: tuple) -> dict[str, Any]:
        path, patient, labels = row
        name = self.name(row)
        image = records.store_image(records.read_bytes(name), self.size, name)
        example: dict[str, Any] = {"image": image, "path": path}
        example |= {"patient_id": patient} if self.grouped else {}
        return example | ({"labels": labels} if self.labelled else {})
