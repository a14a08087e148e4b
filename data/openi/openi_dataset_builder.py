"""Open-i's chest X-rays (Demner-Fushman et al. 2016, NLMCXR): 7,470 of 3,955 reports.

Layout, of the National Library of Medicine, unpacked:

  ecgen-radiology/1.xml ...              of NLMCXR_reports.tgz, here or in --reports
  NLMCXR_png/CXR1_1_IM-0001-3001.png     or NLMCXR_dcm/1/1_IM-0001-3001.dcm
  [nlmcxr_dicom_metadata.csv[.gz]]       imageid, View Position: headers of the DICOMs

Images are found by these names in any folder. Labels are the reports' major MeSH terms
by the table in terms.py. Sections are those that the XML marks; de-identified words are
XXXX there.

Views are those of the DICOM headers: of the table of them, else of the files where
these are DICOM. PNGs alone tell no view. Neither patients nor splits are published: a
report counts as a patient and as a study, and reports are drawn, 20% for test and 10%
of the rest for val.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, reports, splits
from data.chexpert.chexpert_dataset_builder import LABELS
from data.mimic_labs import events
from data.openi import terms, xmls
from pacx_jax.errors import PacxError
from pacx_jax.input import dicom

FOLDERS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "NLMCXR_reports")
METADATA = ("nlmcxr_dicom_metadata.csv", "nlmcxr_dicom_metadata.csv.gz")
_DRAW = splits.Policy(test=0.2, val=0.1, by_patient=True)
FACTS = published.Facts(
    title="Open-i's chest X-rays",
    markers=("ecgen-radiology", "NLMCXR_reports", "NLMCXR_png", "NLMCXR_dcm"),
    labels=LABELS,
    strict=_DRAW,
    reference=_DRAW,
    counts={"both": {"train+val+test": {"images": 7_470}}},
    note="Open-i publishes no patients and no splits: each report counts as a patient, "
    "and these are drawn",
)
_SHOWN = 12


class Builder(records.RecordBuilder, skip_registration=True):
    """Open-i's chest X-rays as ArrayRecord."""

    name = "openi"
    description = "Open-i's chest X-rays with labels of MeSH terms and reports."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the reports; PacxError when they are not as described."""
    notes: list[str] = []

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        yield from _rows(_reports(root, options.reports), root, files, notes)

    plan = published.make_plan(source, options, FACTS, read)
    return dataclasses.replace(plan, notes=(*notes, *plan.notes))


def _reports(root: pathlib.Path, given: str) -> list[pathlib.Path]:
    """The XML files, by number; PacxError without any."""
    if given and pathlib.Path(given).is_file():
        raise PacxError(f"--reports {given}: a file; unpack it, and give its folder")
    places = [root / name for name in FOLDERS]
    if given:
        places = [pathlib.Path(given, name) for name in ("", *FOLDERS)]
    for place in places:
        if found := [p for p in place.glob("*.xml") if p.is_file()]:
            return sorted(found, key=lambda p: (len(p.name), p.name))
    raise PacxError(
        f"{given or root}: no {FOLDERS[0]}/*.xml here; unpack NLMCXR_reports.tgz, or "
        "give its folder as --reports"
    )


def _rows(
    paths: list[pathlib.Path],
    root: pathlib.Path,
    files: listings.Files,
    notes: list[str],
) -> Iterator[listings.Row]:
    headers = _headers(root)
    tally, unmapped = reports.Tally(), collections.Counter()
    seen: dict[str, pathlib.Path] = {}
    bad, silent, alone = [], 0, 0
    for path in paths:
        try:
            report = xmls.read(path)
        except PacxError as error:
            bad.append(str(error))
            continue
        if seen.setdefault(report.name, path) is not path:
            raise PacxError(
                f"{path}: report {report.name} is also {seen[report.name]}; remove one"
            )
        tally.add(str(path), cut=report.cut)
        labels, others = terms.labels(report.terms)
        unmapped.update(others)
        silent += labels[0] != labels[0]
        alone += not report.images
        for image in report.images:
            name, claims = _find(str(path), image, headers, files)
            yield listings.Row(
                str(path),
                name,
                labels,
                report.name,
                study=report.name,
                views=claims,
                report=(report.findings, report.impression),
            )
    if len(bad) == len(paths):
        raise PacxError(bad[0])
    first = bad[0] if bad else ""
    for number, what in (
        (len(bad), f"files are no reports and are left out, the first: {first}"),
        (alone, "reports name no image and are left out"),
        (silent, "reports have no MeSH terms to go by: labels are missing"),
    ):
        notes += [f"{number} {what}"] if number else []
    if unmapped:
        most = ", ".join(f"{name} {n}" for name, n in unmapped.most_common(_SHOWN))
        notes.append(
            f"{len(unmapped)} MeSH headings are none of CheXpert's labels, in "
            f"{unmapped.total()} places: {most}, ..."
        )
    notes += tally.told()


def _headers(root: pathlib.Path) -> dict[str, str] | None:
    """Image -> the View Position of its DICOM header; None without the table."""
    table = next((root / name for name in METADATA if (root / name).is_file()), None)
    if table is None:
        return None
    rows = events.rows(table, ("imageid", "View Position"))
    return {_plain(row[i].strip()): row[j].strip() for row, (i, j) in rows}


def _plain(image: str) -> str:
    """An image's id as the DICOM files have it: CXR1_1_IM-0001-3001 is 1_IM-..."""
    return re.sub(r"^CXR(\d+)_(?:\1_)?", r"\1_", image)


def _find(
    origin: str, image: str, headers: dict[str, str] | None, files: listings.Files
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The name of an image's file, as far as it is there, and its view."""
    named = (files.find(listings.Row(origin, n, ())) for n in (image, _plain(image)))
    name = next(filter(None, named), "")
    if headers is not None:
        return name or image, (("DICOM", headers.get(_plain(image), "")),)
    text = dicom.view(files.root / name) if name else ""
    return name or image, (("DICOM", text),)
