"""The reports of MIMIC-CXR: one text file a study, in folders by patient."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
from collections.abc import Collection

from data import reports
from pacx_jax import files
from pacx_jax.errors import PacxError

FOLDER = "mimic-cxr-reports"
_FILE = re.compile(r"s0*(\d+)\.txt", re.IGNORECASE)
_PART = re.compile(r"p\d\d")  # p10 to p19


def find(root: pathlib.Path, given: str) -> pathlib.Path | None:
    """The folder that holds p10, p11, ...; None where no reports are there.

    They may lie in `given`, else in or beside the images' root, as they are when
    mimic-cxr-reports.zip is unpacked there. The archive itself is not read.

    Raises:
      PacxError: `given` is no such folder, or an archive that is not unpacked.
    """
    if given and pathlib.Path(given).is_file():
        raise PacxError(f"--reports {given}: a file; unpack it, and give its folder")
    near = (root, root.parent)
    places = [pathlib.Path(given)] if given else [p / FOLDER for p in near]
    for place in places:
        for inside in (place, place / "files", place / FOLDER / "files"):
            if inside.is_dir() and any(_PART.fullmatch(e) for e in os.listdir(inside)):
                return inside
    if given:
        raise PacxError(
            f"--reports {given}: no folders p10, p11, ... in it or in its files/; give "
            f"the folder {FOLDER} of MIMIC-CXR"
        )
    for archive in (p / f"{FOLDER}.zip" for p in near):
        if archive.is_file():
            raise PacxError(f"{archive}: unpack it where it lies, or delete it")
    return None


def read(
    folder: pathlib.Path, studies: Collection[str]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Study -> findings and impression, of those that have a report; lines to tell."""
    found: dict[str, pathlib.Path] = {}
    unnamed, other = [], 0
    for path in _text_files(folder):
        name = _FILE.fullmatch(path.name)
        if not name:
            unnamed.append(path)
        elif name[1] not in studies:
            other += 1
        elif found.setdefault(name[1], path) is not path:
            raise PacxError(
                f"{path}: study {name[1]} has also {found[name[1]]}; remove one"
            )

    tally, bad, texts = reports.Tally(), [], {}

    def read_one(path: pathlib.Path) -> tuple[reports.Sections, bool] | str:
        try:
            data = files.read_bytes(path, reports.BYTES)
        except PacxError as error:
            return str(error)
        text, other = reports.decode(data)
        return reports.sections(text), other

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for study, made in zip(found, pool.map(read_one, found.values()), strict=True):
            if isinstance(made, str):
                bad.append(made)
                continue
            cut, encoded = made
            tally.add(str(found[study]), other=encoded, cut=cut.cut)
            texts[study] = (cut.findings, cut.impression)
    told = [f"{len(texts)} of {len(studies)} studies have a report in {folder}"]
    told += tally.told()
    for number, what, first in (
        (len(unnamed), "files of the reports name no study", unnamed[:1]),
        (other, "reports are of studies without an image in the split table", []),
        (len(bad), "reports cannot be read", bad[:1]),
    ):
        first = f", the first: {first[0]}" if first else ""
        told += [f"{number} {what} and are left out{first}"] if number else []
    return texts, told


def _text_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = []
    for place, _, names in os.walk(folder):
        found += [pathlib.Path(place) / n for n in names if n.lower().endswith(".txt")]
    return sorted(found)
