"""Whose patient an id names: ids of different data sets are different namespaces.

Patient "1" of one hospital is not patient "1" of another, so two ids are compared only
within one namespace: that of the data set which gave them out. Data sets cut from one
archive share its namespace: `subject_id` of Symile-MIMIC, MedMod, CXLSeg, the
laboratory events and the emergency stays are all MIMIC's.
"""

from __future__ import annotations

import re

# Name in data/prepare.py -> the archive whose ids it has; others are their own.
NAMESPACES = {
    "symile_mimic": "mimic",
    "medmod": "mimic",
    "cxlseg": "mimic",
    "mimic_labs": "mimic",
    "mimic_vitals": "mimic",
}
FOLDER = "folder"  # all folders of images whose origin nobody stated
SIMULATED = "simulated"  # the embedded cohort, which numbers everybody once


def namespace(name: str) -> str:
    """The namespace of a data set's patient ids."""
    return NAMESPACES.get(name, name)


def key(space: str, patient: str) -> str:
    """The patient's name across data sets: "mimic/10000032".

    MIMIC's ids come as 10000032, 10000032.0 and p10000032 (its folders), the cohort's
    as 7 and patient00007; these are one.
    """
    patient = patient.strip()
    numbered = space in ("mimic", SIMULATED)
    number = re.fullmatch(r"(?:p|patient)?(\d+)(\.0+)?", patient) if numbered else None
    return f"{space}/{int(number[1]) if number else patient}"
