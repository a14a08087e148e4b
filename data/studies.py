"""What the images of one study share: its id and report, and how they differ: views."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Hashable, Sequence

from data import listings
from pacx_jax import files
from pacx_jax.input import views

Texts = tuple[str, ...]  # the values of the entries that `texts` names, of one image


def texts(
    rows: Sequence[listings.Row], paths: Sequence[str]
) -> tuple[tuple[str, ...], list[Texts], list[str]]:
    """The text entries of each row, as far as the set has them.

    An image of a set with studies that names none is a study of its own, called by
    its path.

    Returns:
      Names of the entries; their values, of each row; lines to tell.
    """
    studied = any(row.study for row in rows)
    viewed = any(row.views for row in rows)
    reported = any(row.report is not None for row in rows)
    names = ("study_id",) * studied + ("view", "view_origin") * viewed
    names += ("findings", "impression") * reported
    tally, found = views.Tally(), []
    for row, path in zip(rows, paths, strict=True):
        values: Texts = (row.study or path,) if studied else ()
        if viewed:
            settled = tally.settle(row.views)
            values += (settled.view, settled.origin)
        found.append(values + (row.report or ("", "")) * reported)
    return names, found, _told_studies(rows) * studied + tally.told() * viewed


def _told_studies(rows: Sequence[listings.Row]) -> list[str]:
    studies = {(row.patient, row.study) for row in rows if row.study}
    lines = [f"{len(studies)} studies"]
    if alone := sum(not row.study for row in rows):
        lines.append(f"{alone} images name no study and are each one of their own")
    reported = {(r.patient, r.study): any(r.report) for r in rows if r.report}
    if reported:
        lines.append(
            f"{sum(not there for there in reported.values())} of {len(reported)} "
            "studies have no findings and no impression"
        )
    return lines


def copies(
    root: pathlib.Path, paths: Sequence[str], studies: Sequence[Hashable]
) -> list[int]:
    """Places of files with the bytes of an earlier one of the same study.

    Args:
      root: what the paths are relative to.
      paths: of the images.
      studies: what identifies the study of each; None, and it is in none.
    """
    same: dict[tuple[Hashable, int], list[int]] = collections.defaultdict(list)
    for i, (path, study) in enumerate(zip(paths, studies, strict=True)):
        if study is not None:
            same[study, os.stat(root / path).st_size].append(i)
    found = []
    for places in same.values():
        if len(places) < 2:  # other sizes are other files, which need not be read
            continue
        seen = set()
        for i in places:
            digest = files.sha256(root / paths[i])
            if digest in seen:
                found.append(i)
            seen.add(digest)
    return sorted(found)


def told_copies(paths: Sequence[str], found: Sequence[int]) -> list[str]:
    """A line on what `copies` found."""
    return [
        f"{len(found)} images have the bytes of another of their study and are left "
        f"out, the first is {paths[i]}"
        for i in found[:1]
    ]
