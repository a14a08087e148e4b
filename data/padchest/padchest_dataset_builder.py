"""PadChest (Bustos et al. 2020): 160,861 X-rays of 67,625 patients, Spanish reports.

Layout, of BIMCV:

  PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]
  0/IMAGE_ID.png ... 54/IMAGE_ID.png, or all images in any other folders

Findings become CheXpert's 14 labels by the table in terms.py; those that count for none
are counted. Of the labels a quarter is by physicians, the others by a network that read
the report (MethodLabel). The report is kept as `findings`, in Spanish and stemmed as it
is published; there are no sections, so that `impression` is "".

The view is Projection's: L is a lateral of either side, AP_horizontal an AP of somebody
lying, COSTAL and EXCLUDE unknown. Where a network told the projection
(MethodProjection) the origin is `guessed`, else `listed`; ViewPosition_DICOM is
compared.

The PNGs have 16 bits, of which the DICOM files had 10 or 12 (BitsStored_DICOM), and no
common scale. Public loaders do not agree on one: torchxrayvision divides by 65,535,
others divide each image by its largest level, or stretch it from its smallest to its
largest. Here it is stretched, by the rule of DICOM files without a window
(pacx_jax/input/dicom.py), and stored with 8 bits, whatever its size.

There is no official split: patients are drawn, 20% for test and 10% of the rest for
val.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, reports, splits
from data.chexpert.chexpert_dataset_builder import LABELS
from data.mimic_labs import events
from data.padchest import terms
from pacx_jax.errors import PacxError

CSV = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_DRAW = splits.Policy(test=0.2, val=0.1, by_patient=True)
FACTS = published.Facts(
    title="PadChest",
    markers=(CSV, f"{CSV}.gz"),
    labels=LABELS,
    strict=_DRAW,
    reference=_DRAW,
    counts={
        "both": {"train+val+test": {"images": 160_861 - len(terms.BROKEN)}}  # listed
    },
    note="PadChest has no official split: patients are drawn",
    own_range=True,
)
_COLUMNS = ("ImageID", "StudyID", "PatientID", "Projection", "Labels", "Report")
_OPTIONAL = ("ImageDir", "MethodProjection", "MethodLabel", "ViewPosition_DICOM")
_PROJECTIONS = {"L": "lateral"}  # `views` has it for the left side
_SHOWN = 12


class Builder(records.RecordBuilder, skip_registration=True):
    """PadChest as ArrayRecord."""

    name = "padchest"
    description = "PadChest chest X-rays with CheXpert's labels and Spanish reports."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published table; PacxError when it is not as described."""
    notes: list[str] = []

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        del files
        yield from _rows(root, notes)

    plan = published.make_plan(source, options, FACTS, read)
    return dataclasses.replace(plan, notes=(*notes, *plan.notes))


def _rows(root: pathlib.Path, notes: list[str]) -> Iterator[listings.Row]:
    table = listings.first_file(root, CSV, f"{CSV}.gz")
    methods: collections.Counter[str] = collections.Counter()
    unmapped: collections.Counter[str] = collections.Counter()
    tally, broken, silent = reports.Tally(), 0, 0
    for number, (row, at) in enumerate(
        events.rows(table, _COLUMNS, progress=True, optional=_OPTIONAL), start=2
    ):
        cells = [row[i].strip() if i >= 0 else "" for i in at]
        image, study, patient, projection, listed, report = cells[:6]
        folder, how, method, header = cells[6:]
        if image in terms.BROKEN:
            broken += 1
            continue
        origin = f"{table}: row {number}"
        found = terms.parse(listed)
        if found is None:
            raise PacxError(
                f"{origin}: Labels {listed[:80]!r} is no list such as ['normal']"
            )
        silent += found <= terms.SILENT
        unmapped.update(terms.unmapped(found))
        methods[method or "unknown"] += 1
        text, cut = reports.clip("" if report.lower() == "nan" else report)
        tally.add(f"{image} ({origin})", cut=cut)
        guessed = bool(how) and not how.lower().startswith("manual")
        claims = (
            (
                "guessed" if guessed else "listed",
                _PROJECTIONS.get(projection, projection),
            ),
            *((("DICOM", header),) if header else ()),
        )
        name = f"{folder.removesuffix('.0')}/{image}" if folder else image
        yield listings.Row(
            origin,
            name,
            terms.labels(found),
            patient,
            study=study,
            views=claims,
            report=(text, ""),
        )
    notes += _told(broken, silent, methods, unmapped) + tally.told()


def _told(broken: int, silent: int, methods: Any, unmapped: Any) -> list[str]:
    by = ", ".join(f"{name} {n}" for name, n in sorted(methods.items()))
    lines = [f"labels are by: {by}"]
    if broken:
        lines.append(f"{broken} images are known to be damaged and are left out")
    if silent:
        lines.append(f"{silent} images have no findings to go by: labels are missing")
    if unmapped:
        most = ", ".join(f"{name} {n}" for name, n in unmapped.most_common(_SHOWN))
        lines.append(
            f"{len(unmapped)} findings are none of CheXpert's labels, "
            f"{unmapped.total()} times in all: {most}, ..."
        )
    return lines
