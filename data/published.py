"""Published sets of labelled images: what their builders share.

A builder is a page of facts: how to recognise its folder, its labels in their order,
its splits, the counts that were published, and how its tables become rows (`listings`).
Here rows are joined with their files, split, and compared with those counts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data import listings, records, splits, studies
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import images, names, patients

Counts = Mapping[str, Mapping[str, int]]  # "train" or "train+val" -> IMAGES, labels
IMAGES = "images"
SIMULATED = "cohort_layout.json"  # data/cohort writes it into what it draws
_DEPTH = 3  # folders between --source and the root of the data set


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a data set.

    Attributes:
      title: what messages call it.
      markers: files or folders (patterns) of its root; one of them is enough.
      labels: their names, in order.
      strict: splits by patient, where patients are known.
      reference: splits as the authors' code made them.
      counts: published counts for "strict", "reference", or "both".
      note: a fact about its splits that must be told.
      own_range: its 16-bit images are scaled each by its own range; see `images`.
    """

    title: str
    markers: tuple[str, ...]
    labels: tuple[str, ...]
    strict: splits.Policy
    reference: splits.Policy
    counts: Mapping[str, Counts]
    note: str = ""
    own_range: bool = False


Read = Callable[[pathlib.Path, listings.Files], Iterator[listings.Row]]


def make_plan(
    source: pathlib.Path, options: Any, facts: Facts, read: Read
) -> records.Plan:
    """Reads the tables, finds the images, splits; PacxError for what is wrong."""
    root = find_root(source, facts)
    if options.images and not pathlib.Path(options.images).is_dir():
        raise PacxError(f"--images {options.images}: no such folder")
    files = listings.Files(pathlib.Path(options.images or root))
    rows = list(read(root, files))
    paths, rows, notes = _join(files.root, files, rows, options.allow_missing)
    root = files.root
    text_names, texts, told = studies.texts(rows, paths)
    notes += told
    policy = getattr(facts, options.splits)
    people = [patients.canonical(row.patient) for row in rows]
    try:
        parts, told = splits.assign(
            policy,
            [row.split for row in rows],
            people,
            [row.stratum for row in rows],
        )
    except PacxError as error:
        raise PacxError(f"{root}: {error}") from None
    grouped = any(people)
    if facts.note:
        notes.append(facts.note)
    if "found" in vars(files) and (passed := files.found.told()):
        notes.append(passed)
    chosen: dict[str, list[tuple]] = {name: [] for name in splits.NAMES}
    digest = hashlib.sha256()
    for path, row, who, name, values in zip(
        paths, rows, people, parts, texts, strict=True
    ):
        labels = np.asarray(row.labels, np.float32)
        _identify(digest, root, path, row, name, values, labels)
        if name:
            more = (values,) if text_names else ()
            chosen[name].append((path, who, labels, row.mask, *more))
    make = MakeImage(str(root), options.size, grouped, text_names, facts.own_range)
    entries = ("image", "path") + (("patient_id",) if grouped else ())
    entries += ("labels",) if facts.labels else ()
    entries += ("mask",) if any(row.mask is not None for row in rows) else ()
    simulated = (root / SIMULATED).is_file()
    return records.Plan(
        {name: chosen[name] for name in splits.NAMES if chosen[name]},
        make,
        make.name,
        entries + text_names,
        facts.labels,
        digest.hexdigest(),
        published={} if simulated else merged_counts(facts, options.splits),
        notes=tuple(notes + told),
        identity=functools.partial(records.image_identity, str(root)),
    )


def _identify(
    digest: Any,
    root: pathlib.Path,
    path: str,
    row: listings.Row,
    split: str,
    texts: studies.Texts,
    labels: np.ndarray,
) -> None:
    """Adds what identifies a row to the digest of the source."""
    size = os.stat(root / path).st_size
    digest.update(f"{path}\0{size}\0{split}\0{row.patient}\0".encode())
    digest.update(labels.tobytes())
    if isinstance(row.mask, str):
        size = os.stat(root / row.mask).st_size
        digest.update(f"{row.mask}\0{size}\0".encode())
    elif row.mask is not None:
        digest.update(f"{row.mask.text}\0".encode())
    if texts:
        digest.update(repr(texts).encode())


@dataclasses.dataclass(frozen=True)
class MakeImage:
    """Makes the example of (path, patient, labels, mask, texts).

    The mask is its path, its runs, or None.

    Attributes:
      root: the folder of the images.
      size: their shorter side; 0 = as it is.
      grouped: whether patients are known.
      texts: names of the other entries, whose values end the row; () = it has none.
      own_range: see `Facts`.
    """

    root: str
    size: int
    grouped: bool
    texts: tuple[str, ...] = ()
    own_range: bool = False

    def name(self, row: tuple) -> str:
        return f"{self.root}/{row[0]}"

    def __call__(self, row: tuple) -> dict[str, Any]:
        path, patient, labels, mask, *texts = row
        name = self.name(row)
        data = files.read_bytes(name)
        if self.own_range:  # as pixels: the file would be read by the range of 16 bits
            data = images.decode(data, name, own_range=True)
        if mask is None:
            stored = {"image": records.store_image(data, self.size, name)}
        else:
            mask_name, mask_data = name, mask
            if isinstance(mask, str):
                mask_name = f"{self.root}/{mask}"
                mask_data = files.read_bytes(mask_name)
            stored = records.store_pair(data, mask_data, self.size, name, mask_name)
        example = stored | {"path": path}
        example |= {"labels": labels} if len(labels) else {}
        example |= dict(zip(self.texts, *texts, strict=True)) if texts else {}
        return example | ({"patient_id": patient} if self.grouped else {})


def find_root(source: pathlib.Path, facts: Facts) -> pathlib.Path:
    """The folder with one of the markers: `source`, or the one nearest below it."""
    if not source.is_dir():
        raise PacxError(f"{source}: no such folder; check --source")
    level = [source]
    for _ in range(_DEPTH + 1):
        found = [f for f in level if any(any(f.glob(m)) for m in facts.markers)]
        if len(found) > 1:
            raise PacxError(
                f"{source}: {facts.title} is both in {found[0]} and in {found[1]}; "
                "give one of them as --source"
            )
        if found:
            return found[0]
        level = [
            pathlib.Path(entry.path)
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda e: e.name)
            if entry.is_dir() and not names.hidden(entry.name)
        ]
    raise PacxError(
        f"{source}: no {' or '.join(facts.markers)} here; --source must be the folder "
        f"of {facts.title} (see data/README.md)"
    )


def differences(
    published: Counts,
    counts: Mapping[str, int],
    positives: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, list[int]]]:
    """Where counts are not the published ones: key -> what -> [here, published].

    Args:
      published: the published counts.
      counts: split -> examples.
      positives: split -> label -> positives.
    """
    different: dict[str, dict[str, list[int]]] = {}
    for key, numbers in published.items():
        for what, number in numbers.items():
            here = sum(
                counts.get(split, 0)
                if what == IMAGES
                else positives.get(split, {}).get(what, 0)
                for split in key.split("+")
            )
            if here != number:
                different.setdefault(key, {})[what] = [here, number]
    return different


def told(summary: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people: published counts, notes, and every difference."""
    for key, numbers in summary.get("published", {}).items():
        counts = ", ".join(f"{what} {number}" for what, number in numbers.items())
        yield f"  published {key}: {counts}"
    for note in summary.get("notes", ()):
        yield f"  note: {note}"
    for key, numbers in summary.get("differences", {}).items():
        pairs = (f"{what} {a}, published {b}" for what, (a, b) in numbers.items())
        yield f"  DIFFERENT from what was published: {key}: {'; '.join(pairs)}"


def merged_counts(facts: Facts, policy: str) -> dict[str, dict[str, int]]:
    """The published counts that hold under a policy."""
    merged: dict[str, dict[str, int]] = {}
    for kind in ("both", policy):
        for key, numbers in facts.counts.get(kind, {}).items():
            merged.setdefault(key, {}).update(numbers)
    return merged


def _join(
    root: pathlib.Path,
    files: listings.Files,
    rows: list[listings.Row],
    allow_missing: bool,
) -> tuple[list[str], list[listings.Row], list[str]]:
    """Paths and rows of the images that are there, each once, and what to tell."""
    found: dict[str, listings.Row] = {}
    missing, unmasked, repeated, notes = [], [], 0, []
    for row in rows:
        path = files.find(row)
        if not path:
            missing.append(row)
            continue
        if row.mask == "":
            unmasked.append(row)
            continue
        other = found.setdefault(path, row)
        if other is not row:
            if _same(other, row):
                both = dict.fromkeys(other.views + row.views)
                found[path] = dataclasses.replace(other, views=tuple(both))
            else:
                raise PacxError(
                    f"{row.origin}: {path} is also in {other.origin}, and they do not "
                    "agree; remove one"
                )
            repeated += 1
    for absent, what in (
        (missing, "listed images are not there"),
        (unmasked, "listed images have no mask there"),
    ):
        if not absent:
            continue
        told = f"{len(absent)} {what}"
        first = f"the first is {absent[0].file!r} ({absent[0].origin})"
        if not allow_missing:
            raise PacxError(
                f"{root}: {told}, {first}; add them, or give --allow_missing"
            )
        notes.append(f"{told} and left out, {first}")
    if repeated:
        notes.append(f"{repeated} rows repeat another and count once")
    if not found:
        raise PacxError(f"{root}: no image of its tables is there; check --source")
    paths, rows = list(found), list(found.values())
    keys = [(row.patient, row.study) if row.study else None for row in rows]
    again = studies.copies(root, paths, keys)
    notes += studies.told_copies(paths, again)
    for i in again:
        del found[paths[i]]
    return list(found), list(found.values()), notes


def _same(one: listings.Row, two: listings.Row) -> bool:
    labels = np.array_equal(one.labels, two.labels, equal_nan=True)
    first, second = ((r.patient, r.split, r.study, r.report) for r in (one, two))
    return labels and first == second
