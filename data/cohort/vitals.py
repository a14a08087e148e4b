"""Vital signs of one study, and MIMIC-IV-ED's tables of them."""

import datetime
import pathlib
from collections.abc import Iterable

import numpy as np

from data.cohort import write
from data.mimic_vitals.stays import COLUMNS
from pacx_jax.modalities.vitals import SIGNS

NO_STAY = 0.10  # share of studies without a stay in the emergency department
_LATER = 0.05  # share of measured signs that triage lacks and a nurse takes later
_UNMEASURED = {"temperature": 0.08, "weight": 0.35}  # share of stays, else 0.03
_START = datetime.datetime(2180, 1, 1, 12)
# Named as in MIMIC-IV-ED, in its units; weight, which it lacks, is in kg.
_TABLE_COLUMNS = [column for column, _, _ in COLUMNS.values()]


def values(study) -> np.ndarray | None:
    """Draws a study's vital signs, measured or not.

    Returns:
        (7,) float64 in the order and units of `SIGNS`; None for a study that did not
        begin in the emergency department.
    """
    rng = study.key.rng("vitals")
    if rng.random() < NO_STAY:
        return None
    e = rng.standard_normal(len(SIGNS))
    who, wet, fire = study.patient, max(study.fluid, 0.0), max(study.inflammation, 0.0)
    solid, short = study.consolidation > 0, max(who.inflation, 0.0)
    systolic = 128 + 12 * who.hypertension - 5 * fire + 11 * e[1]
    respiration = 17 + 1.8 * wet + 1.2 * fire + 0.8 * short + 2 * solid + 1.5 * e[3]
    saturation = 97.3 - 0.9 * wet - 0.9 * short - 1.8 * solid + 1.1 * e[4]
    signs = {
        "heart_rate": study.heart_rate + 5 * e[0],
        "systolic": systolic,
        "diastolic": 16 + 0.45 * systolic + 6 * e[2],
        "respiration": respiration,
        "saturation": saturation - 5 * sum(study.effusion),
        "temperature": 36.7 + 0.35 * fire + 0.3 * solid + 0.3 * e[5],
        "weight": 66 + 15 * who.male + 13 * who.habitus + 3 * wet + 4 * e[6],
    }
    low = {"heart_rate": 35, "systolic": 70, "diastolic": 35, "respiration": 8}
    low |= {"saturation": 70, "temperature": 34, "weight": 38}
    high = {"saturation": 100}
    return np.array([np.clip(signs[s], low[s], high.get(s, np.inf)) for s in SIGNS])


def write_tables(folder: pathlib.Path, studies: Iterable) -> None:
    """Writes edstays.csv, triage.csv and vitalsign.csv of (admission, study)s."""
    folder.mkdir()
    ids = ["subject_id", "stay_id"]
    stay_columns = ["subject_id", "hadm_id", "stay_id", "intime"]
    with (
        write.table(folder / "edstays.csv", stay_columns) as stays,
        write.table(folder / "triage.csv", [*ids, *_TABLE_COLUMNS]) as triage,
        write.table(
            folder / "vitalsign.csv", [*ids, "charttime", *_TABLE_COLUMNS]
        ) as later,
    ):
        for admission, study in studies:
            signs = values(study)
            if signs is None:
                continue
            person, stay = study.key.patient_id, 3 * 10**9 + admission
            time = _START + datetime.timedelta(days=90 * study.key.study)
            stays.writerow([person, admission, stay, time])
            first, second = _cells(study, signs)
            triage.writerow([person, stay, *first])
            if any(second):
                hour = time + datetime.timedelta(hours=1)
                later.writerow([person, stay, hour, *second])


def _cells(study, signs: np.ndarray) -> tuple[list[str], list[str]]:
    """The cells of triage, and of the hour after it."""
    draws = study.key.rng("vitals_measured").random(len(SIGNS))
    first, second = [], []
    for sign, value, u in zip(SIGNS, signs, draws, strict=True):
        cell = {
            "temperature": f"{32 + 1.8 * value:.1f}",  # degrees F
            "weight": f"{value:.1f}",
        }.get(sign, f"{value:.0f}")
        missing = _UNMEASURED.get(sign, 0.03)
        first.append("" if u < missing + _LATER else cell)
        second.append(cell if missing <= u < missing + _LATER else "")
    return first, second
