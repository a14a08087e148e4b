"""CXLSeg (Indeewara et al. 2023): 243,324 X-rays of MIMIC-CXR with lung masks.

Layout (PhysioNet, chest-x-ray-segmentation 1.0.0): CXLSeg-split.csv (dicom_id,
subject_id, study_id, split) and files/p10/p10000032/s50414267/DICOM.jpg with
DICOM-mask.jpg beside it. Files are found by these names in any folder. Its images are
cut out: outside of the lungs they are black, so that the mask is nearly seen in them;
the uncut ones, of other sizes, are those of MIMIC-CXR-JPG.

The official splits are kept (train, validate, test). An image in train of a patient who
is also in one of the others leaves train under `strict`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from pacx_jax.errors import PacxError
from pacx_jax.input import tables

COLUMNS = ("dicom_id", "subject_id", "study_id", "split")
FACTS = published.Facts(
    title="CXLSeg",
    markers=("CXLSeg-split.csv",),
    labels=(),
    strict=splits.Policy(keep=splits.NAMES, by_patient=True),
    reference=splits.Policy(keep=splits.NAMES),
    counts={  # of its authors' code, github.com/Wimukti/CXLSeg
        "both": {
            "train": {"images": 194_660},
            "val": {"images": 24_332},
            "test": {"images": 24_332},
        }
    },
    note="CXLSeg's images are black outside of the lungs: a mask is nearly seen in its "
    "image",
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The rows of CXLSeg-split.csv."""
    for origin, cells in listings.read_table(root / "CXLSeg-split.csv", COLUMNS):
        dicom, split = cells["dicom_id"], cells["split"]
        if split.lower() not in tables.SPLIT_NAMES:
            raise PacxError(f"{origin}: unknown split {split!r}")
        patient = cells["subject_id"].removeprefix("p")
        found = files.find(listings.Row(origin, f"{dicom}-mask", ()))
        split = tables.SPLIT_NAMES[split.lower()]
        study = cells["study_id"].removeprefix("s")
        yield listings.Row(origin, dicom, (), patient, split, mask=found, study=study)


class Builder(records.RecordBuilder, skip_registration=True):
    """CXLSeg as ArrayRecord."""

    name = "cxlseg"
    description = "CXLSeg chest X-rays with lung masks."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
