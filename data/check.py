"""Verifies a prepared set: its files' sums, every record, and the counts it states."""

from __future__ import annotations

import collections
import contextlib
import functools
import pathlib
from typing import Any

import numpy as np
import tqdm

from data import parallel
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import images, sources
from pacx_jax.input import prepared as manifests


def check(target: pathlib.Path, workers: int, name: str = "") -> dict[str, Any]:
    """Reads all of a prepared set.

    Returns:
      `target`; `status`: "good" or "damaged"; `problems`: a line for each; `files`: how
      many; `counts` {split: readable examples} and `positives` {split: {label: n}} as
      they were found, or None where records could not be read at all.

    Raises:
      PacxError: no prepared set, or one that was not made by the builder `name`.
    """
    manifest = manifests.read(target, sizes=False)
    if name and manifest.get("name") != name:
        raise PacxError(
            f"{target}: was prepared by {manifest.get('name')}, not by {name}"
        )
    absent, problems = _check_files(target, manifest, workers)
    counts = positives = None
    if absent:
        problems.append(
            f"{target}: no record was read, as files are missing or cut off"
        )
    else:
        counts, positives = {}, {}
        for split in manifest["splits"]:
            try:
                source = sources.PreparedSource(str(target), split)
            except PacxError as error:
                problems.append(str(error))
                continue
            counts[split], positives[split] = _check_split(source, workers, problems)
            problems += _differences(manifest, split, counts[split], positives[split])
    return {
        "target": str(target),
        "status": "damaged" if problems else "good",
        "problems": problems,
        "files": len(manifest["files"]),
        "counts": counts,
        "positives": positives,
    }


def _check_files(
    target: pathlib.Path, manifest: dict, workers: int
) -> tuple[bool, list[str]]:
    """Whether records cannot be read for want of a file, and problems, in lines."""
    files = manifest["files"]
    look = functools.partial(_check_file, target, manifest)
    absent, problems = False, []
    bar = tqdm.tqdm(total=sum(files.values()), desc="files", unit="B", unit_scale=True)
    with bar, contextlib.closing(parallel.make_all(look, files, workers)) as made:
        for (found, reason), size in zip(made, files.values(), strict=True):
            bar.update(size)
            if found is None:
                problems.append(reason)
            elif found["problem"]:
                problems.append(found["problem"])
                absent = True
    return absent, problems


def _check_file(target: pathlib.Path, manifest: dict, name: str) -> dict[str, str]:
    """What makes a file useless, or ""; PacxError if it has other contents."""
    file, size = target / name, manifest["files"][name]
    try:
        if file.stat().st_size != size:
            stored = file.stat().st_size
            return {"problem": f"{file}: {stored} bytes, {size} were written"}
        digest = files.sha256(file)
    except OSError as error:
        return {"problem": f"{file}: cannot be read ({error.strerror})"}
    if digest != manifest["sha256"].get(name):
        raise PacxError(f"{file}: other contents than were written (sha256)")
    return {"problem": ""}


def _check_split(
    source: sources.PreparedSource, workers: int, problems: list[str]
) -> tuple[int, dict[str, int]]:
    """Readable examples and their positives; what is unreadable is added in lines."""
    patients = None
    try:
        patients = source.patients()
    except PacxError as error:
        problems.append(str(error))
    positives = np.zeros(len(source.label_names), np.int64)
    count = 0
    read = functools.partial(_read, source, patients)
    made = parallel.make_all(read, range(len(source)), workers)
    with contextlib.closing(made):
        bar = tqdm.tqdm(made, total=len(source), desc=source.split, unit="ex")
        for found, reason in bar:
            if found is None:
                problems.append(reason)
                continue
            count += 1
            positives += found["positive"]
    return count, dict(zip(source.label_names, positives.tolist(), strict=True))


def _read(source: sources.PreparedSource, patients: list[str] | None, i: int) -> dict:
    """Which labels of example i are 1; PacxError if anything of it is damaged."""
    example = source[i]
    name = functools.partial(source.name, i)
    if "image" in example:
        images.decode(example["image"], name())
    if patients and example["patient_id"] != patients[i]:
        raise PacxError(
            f"{name()}: patient {example['patient_id']!r}, but {patients[i]!r} in the "
            "list of patients"
        )
    for entry in ("ecg", "labs", "vitals"):
        if entry in example and not np.isfinite(example[entry]).all():
            raise PacxError(f"{name()}: {entry} with NaN or infinite values")
    return {"positive": np.asarray(example.get("labels", np.zeros(0))) == 1}


def _differences(
    manifest: dict, split: str, count: int, positives: dict[str, int]
) -> list[str]:
    stated = manifest["splits"][split]
    told = []
    if count != stated:
        told.append(f"{split}: {count} readable examples, {stated} were written")
    positives_stated = manifest.get("summary", {}).get("positives", {})
    labels = collections.Counter(positives_stated.get(split, {}))
    labels.subtract(positives)
    for label, missing in labels.items():
        if missing:
            n = positives.get(label, 0)
            told.append(f"{split}: {n} of {label} are 1, {n + missing} were written")
    return told
