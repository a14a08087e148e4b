"""QaTa-COV19 v2 (Degerli et al. 2022): 9,258 X-rays with masks of COVID-19 pneumonia.

Layout (Kaggle, aysendegerli/qatacov19-dataset): in `QaTa-COV19-v2`,
{Train,Test} Set/Images/FILE.png and Ground-truths/mask_FILE.png. The official test set
is kept and 10% of train drawn for val (D24).

Patients are known of a part: images from BIMCV are called by its subjects, such as
sub-S03067_ses-E07350_... Every other image counts as a patient of its own.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits

FOLDERS = {"Train Set": "train", "Test Set": "test"}
_SUBJECT = re.compile(r"sub-(S\d+)_")
FACTS = published.Facts(
    title="QaTa-COV19",
    markers=tuple(f"{folder}/Images" for folder in FOLDERS),
    labels=(),
    strict=splits.Policy(keep=("test",), val=0.1, by_patient=True),
    reference=splits.Policy(keep=("test",), val=0.1),
    counts={
        "both": {"train+val": {"images": 7_145}, "test": {"images": 2_113}},
        "reference": {"train": {"images": 6_430}, "val": {"images": 715}},
    },
    note="QaTa-COV19 names subjects in the files of BIMCV alone: other images count as "
    "patients of their own, and whether they share some cannot be known",
)


def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
    """The files of both `Images`, and of `Ground-truths` beside it."""
    for path in files.paths:
        above, _, file = path.rpartition("/Images/")
        if above not in FOLDERS or "/" in file:
            continue
        subject = _SUBJECT.match(file)
        patient = subject[1] if subject else file.rsplit(".", 1)[0]
        mask = files.mask(f"{above}/Ground-truths/mask_{file}")
        split = FOLDERS[above]
        yield listings.Row(str(root / path), path, (), patient, split, mask=mask)


class Builder(records.RecordBuilder, skip_registration=True):
    """QaTa-COV19 as ArrayRecord."""

    name = "qata_cov19"
    description = "QaTa-COV19 chest X-rays with masks of infected regions."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the published files; PacxError when they are not as described."""
    return published.make_plan(source, options, FACTS, read)
