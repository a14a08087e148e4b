"""The MeSH terms of Open-i's reports as CheXpert's 14 labels.

A term is a heading with its qualifiers, "Opacity/lung/base/left". The table is ours: a
heading counts for a label, for some only with one of the qualifiers named. Borderline
is uncertain, -1. A sign of a disease is not the disease, as in data/padchest/terms.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from data.chexpert.chexpert_dataset_builder import LABELS

_LARGE = "enlarged, prominent"
# Label -> heading -> the qualifiers one of which it needs; "" needs none.
_TERMS = {
    "Enlarged Cardiomediastinum": {"mediastinum": _LARGE},
    "Cardiomegaly": {"cardiomegaly": "", "cardiac shadow": _LARGE, "heart": "enlarged"},
    "Lung Opacity": {
        "opacity": "",
        "airspace disease": "",
        "infiltrate": "",
        "density": "lung, retrocardiac",
        "markings": "interstitial",
        "lung": "interstitial",
        "lung diseases, interstitial": "",
        "pulmonary fibrosis": "",
    },
    "Lung Lesion": {"nodule": "", "mass": "lung", "cavitation": "lung"},
    "Edema": {"pulmonary edema": "", "pulmonary congestion": "", "heart failure": ""},
    "Consolidation": {"consolidation": ""},
    "Pneumonia": {"pneumonia": ""},
    "Atelectasis": {"pulmonary atelectasis": ""},
    "Pneumothorax": {
        "pneumothorax": "",
        "hydropneumothorax": "",
        "hemopneumothorax": "",
    },
    "Pleural Effusion": {
        "pleural effusion": "",
        "hydropneumothorax": "",
        "hemothorax": "",
        "hemopneumothorax": "",
    },
    "Pleural Other": {"thickening": "pleura"},
    "Fracture": {"fractures, bone": ""},
    "Support Devices": {
        "catheters, indwelling": "",
        "implanted medical device": "",
        "medical device": "",
        "tube, inserted": "",
        "stents": "",
    },
}
NORMAL = "normal"
# They describe the report, not the chest: with these alone the labels are missing.
SILENT = {"no indexing", "technical quality of image unsatisfactory"}


def labels(terms: Iterable[str]) -> tuple[tuple[float, ...], set[str]]:
    """Labels in the order of LABELS, and the headings that count for none.

    All are NaN without a term that says something. No Finding is 1 where the report
    is indexed as normal and nothing else counts but Support Devices.
    """
    values: dict[str, float] = {}
    unmapped, said = set(), False
    normal = False
    for term in terms:
        heading, *qualifiers = (" ".join(p.lower().split()) for p in term.split("/"))
        if not heading or heading in SILENT:
            continue
        said = True
        normal = normal or heading == NORMAL
        found = [n for n, of in _TERMS.items() if _counts(heading, qualifiers, of)]
        if not found and heading != NORMAL:
            unmapped.add(heading)
        for name in found:
            value = -1.0 if "borderline" in qualifiers else 1.0
            values[name] = max(value, values.get(name, value))
    if not said:
        return (float("nan"),) * len(LABELS), unmapped
    if normal and values.keys() <= {"Support Devices"}:
        values["No Finding"] = 1.0
    return tuple(values.get(name, 0.0) for name in LABELS), unmapped


def _counts(heading: str, qualifiers: list[str], terms: dict[str, str]) -> bool:
    needed = terms.get(heading)
    return needed is not None and (
        not needed or not {*needed.split(", ")}.isdisjoint(qualifiers)
    )
