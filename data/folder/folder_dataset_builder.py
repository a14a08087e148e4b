"""Any tree of JPEG and PNG files with or without a CSV, as ArrayRecord.

It is read and split by the very code of `data.source=folder`, with studies, views and
reports where the CSV has columns of them (tables.ROLES, `folders.table_reports`). With
--masks=DIR, a folder in the source, the image a/x.jpg has the mask DIR/a/x.png, or else
DIR/x.png, under any extension.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

from data import listings, published, records
from pacx_jax.errors import PacxError
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
    masks, fingerprint, notes = {}, listing.fingerprint, listing.notes
    if options.masks:
        masks, told = _find_masks(listing, options.masks, options.allow_missing)
        notes += told
        sizes = {p: (listing.root / mask).stat().st_size for p, mask in masks.items()}
        text = repr((fingerprint, sorted(masks.items()), sorted(sizes.items())))
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
    text_names, texts = _texts(listing)
    splits: dict[str, list[tuple]] = {}
    for i, (path, split) in enumerate(zip(listing.paths, listing.splits, strict=True)):
        if options.masks and path not in masks:
            continue
        patient = listing.patients[i] if grouped else ""
        row = (path, patient, listing.labels[i], masks.get(path), *texts[i])
        splits.setdefault(split, []).append(row)
    make = published.MakeImage(str(listing.root), options.size, grouped, text_names)
    entries = ("image", "path")
    entries += ("patient_id",) if grouped else ()
    entries += ("labels",) if labelled else ()
    entries += (("mask",) if masks else ()) + text_names
    splits = {s: splits[s] for s in ("train", "val", "test") if s in splits}
    return records.Plan(
        splits,
        make,
        make.name,
        entries,
        listing.label_names,
        fingerprint,
        notes=notes,
        identity=functools.partial(records.image_identity, str(listing.root)),
    )


def _texts(listing: folders.Listing) -> tuple[tuple[str, ...], list[tuple]]:
    """Names of the entries of studies, views and reports, and each row's end."""
    names = ("study_id",) * bool(listing.studies)
    names += ("view", "view_origin") * bool(listing.views) + tuple(listing.reports)
    if not names:
        return (), [()] * len(listing.paths)
    columns = [listing.studies] if listing.studies else []
    if listing.views:
        columns += [listing.views, ["listed"] * len(listing.views)]
    columns += listing.reports.values()
    return names, [(values,) for values in zip(*columns, strict=True)]


def _find_masks(
    listing: folders.Listing, folder: str, allow_missing: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Image -> its mask, both relative to the root, and what to tell."""
    folder = pathlib.PurePosixPath(folder).as_posix()
    if folder.startswith(("/", "..")):
        raise PacxError(f"--masks {folder}: give a folder in {listing.root}")
    files = listings.Files(listing.root / folder)
    found, missing, owner = {}, [], {}
    for path in listing.paths:
        if path.startswith(f"{folder}/"):
            continue  # without a CSV, masks are listed as images too
        mask = files.mask(path) or files.mask(pathlib.PurePosixPath(path).name)
        if not mask:
            missing.append(path)
            continue
        if mask in owner:
            raise PacxError(
                f"{listing.root}: {owner[mask]} and {path} both have the mask "
                f"{folder}/{mask}; put masks in folders as the images are"
            )
        owner[mask] = path
        found[path] = f"{folder}/{mask}"
    told = f"{len(missing)} images have no mask in {folder}"
    first = f"the first is {missing[0]}" if missing else ""
    if missing and not (allow_missing and found):
        raise PacxError(
            f"{listing.root}: {told}, {first}; add them, or give --allow_missing"
        )
    return found, (f"{told} and are left out, {first}",) if missing else ()
