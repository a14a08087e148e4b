"""Patients and studies: the hidden causes from which every modality is drawn.

A linear-Gaussian structural model (README, "Causes") gives each patient standard
normal severities; a study adds what fluctuates between visits. Everything is a
function of (seed, stream, patient, study) and nothing else, so that neither the
order of generation nor the number of workers can change a value.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

# One number a split. Patients of different streams are different people: their
# identifiers do not overlap and their random numbers share nothing.
STREAMS = {
    "chexpert_train": 1,
    "chexpert_valid": 2,
    "symile_train": 3,
    "symile_val": 4,
    "symile_test": 5,
    "ecg_train": 6,
    "ecg_val": 7,
    "probe_train": 8,
    "probe_val": 9,
    "probe_test": 10,
    "mimic_train": 11,
    "mimic_validate": 12,
    "mimic_test": 13,
    "views_train": 14,
    "views_val": 15,
    "views_test": 16,
}
_PATIENT_BASE = {
    "chexpert_train": 1,
    "chexpert_valid": 5_000_001,
    "symile_train": 10_000_001,
    "symile_val": 14_000_001,
    "symile_test": 17_000_001,
    "ecg_train": 30_000_001,
    "ecg_val": 35_000_001,
    "probe_train": 50_000_001,
    "probe_val": 60_000_001,
    "probe_test": 70_000_001,
    # MIMIC's identifiers have eight digits and begin with 1.
    "mimic_train": 11_000_001,
    "mimic_validate": 15_000_001,
    "mimic_test": 18_000_001,
    "views_train": 80_000_001,
    "views_val": 85_000_001,
    "views_test": 88_000_001,
}
_PURPOSES = {"patient": 0, "study": 1, "xray": 2, "ecg": 3, "labs": 4, "reports": 5}
_PURPOSES |= {"vitals": 6, "vitals_measured": 7, "depth": 8, "lateral": 9}
_PURPOSES |= {"xray_again": 10, "report": 11, "films": 12}
MAX_STUDIES = 6
ANATOMY_DIM = 32

PHYSIOLOGICAL = ("slvh_dlv", "heart_failure", "renal_failure", "anaemia")
ANATOMICAL = ("consolidation", "nodule", "hyperinflation")
LABELS = PHYSIOLOGICAL + ANATOMICAL


@dataclasses.dataclass(frozen=True)
class Key:
    """Who and when: seed, split stream, patient index and study index (all >= 0)."""

    seed: int
    stream: str
    patient: int
    study: int = 0

    def rng(self, purpose: str) -> np.random.Generator:
        """Returns the generator of one purpose ("xray", "ecg", ...) of this study."""
        study = 0 if purpose == "patient" else self.study
        entropy = [
            self.seed,
            STREAMS[self.stream],
            self.patient,
            study,
            _PURPOSES[purpose],
        ]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))

    @property
    def patient_id(self) -> int:
        """The patient's identifier; ranges of different streams do not overlap."""
        return _PATIENT_BASE[self.stream] + self.patient


@dataclasses.dataclass(frozen=True)
class Patient:
    """What does not change between the studies of one person.

    Severities are standard normal in the population, large = ill. `age` is in
    years. `anatomy` holds ANATOMY_DIM standard normals of normal variation that the
    X-ray and ECG models read; they are independent of every disease.
    """

    age: int
    male: bool
    hypertension: float
    renal: float
    lv_mass: float
    ischaemia: float
    dilation: float
    anaemia: float
    habitus: float
    inflation: float
    fluid: float  # the part of fluid overload that persists between studies
    inflammation: float  # likewise
    af: int  # 0 never, 1 paroxysmal, 2 permanent
    block: str  # "none", "lbbb" or "rbbb"
    av_delay: float
    nodules: int
    pacemaker: bool
    studies: int
    anatomy: tuple[float, ...]  # Python floats: numpy's would promote to float64


@dataclasses.dataclass(frozen=True)
class Study:
    """One visit: the patient, the fluctuating causes and the seven labels (0/1)."""

    key: Key
    patient: Patient
    fluid: float
    inflammation: float
    anaemia: float
    af: bool
    heart_rate: float  # beats a minute
    effusion: tuple[float, float]  # patient's right, left: share of lung height
    consolidation: float  # 0 = none, else extent, about 0.5-1.5
    ap: bool  # supine or sitting antero-posterior film, else upright PA
    inspiration: float  # standard normal, large = deep
    device: bool
    labels: dict[str, int]
    depth: Any = None  # a `depth.Depth` in folders with laterals


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@functools.lru_cache(maxsize=256)
def patient(key: Key) -> Patient:
    """Draws the patient of `key` (its study index must be 0).

    Residual weights make every severity unit-variance; README states the equations.
    """
    rng = key.rng("patient")
    e = rng.standard_normal(16)
    u = rng.random(8)
    age = int(np.clip(round(61 + 16 * e[0]), 18, 95))
    a = (age - 61) / 16
    hypertension = 0.35 * a + 0.94 * e[1]
    habitus = e[2]
    renal = 0.40 * hypertension + 0.20 * a + 0.863 * e[3]
    mass = 0.50 * hypertension + 0.20 * renal + 0.15 * habitus + 0.77 * e[4]
    ischaemia = 0.35 * a + 0.15 * hypertension + 0.905 * e[5]
    dilation = 0.30 * ischaemia + 0.10 * mass + 0.943 * e[6]
    anaemia = 0.45 * renal + 0.15 * a + 0.80 * e[7]
    fluid = 0.45 * dilation + 0.30 * renal + 0.20 * mass + 0.40 * e[8]
    inflation = 0.15 * a - 0.20 * habitus + 0.96 * e[10]
    p_af = _sigmoid(-2.6 + 0.8 * a + 0.6 * dilation + 0.3 * mass)
    p_lbbb = _sigmoid(-3.6 + 0.4 * a + 1.0 * dilation)
    p_rbbb = _sigmoid(-3.0 + 0.4 * a + 0.4 * inflation)
    block = "lbbb" if u[1] < p_lbbb else "rbbb" if u[2] < p_rbbb else "none"
    p_nodule = _sigmoid(-1.9 + 0.35 * a + 0.4 * inflation)
    p_pacemaker = _sigmoid(-3.8 + 0.6 * a + 0.6 * dilation + 0.8 * (block != "none"))
    return Patient(
        age=age,
        male=bool(u[0] < 0.54),
        hypertension=float(hypertension),
        renal=float(renal),
        lv_mass=float(mass),
        ischaemia=float(ischaemia),
        dilation=float(dilation),
        anaemia=float(anaemia),
        habitus=float(habitus),
        inflation=float(inflation),
        fluid=float(fluid),
        inflammation=float(0.5 * e[11]),
        af=0 if u[3] > p_af else 1 + int(u[4] < 0.5),
        block=block,
        av_delay=float(0.3 * a + 0.2 * ischaemia + 0.9 * e[12]),
        nodules=int(u[5] < p_nodule) * (1 + int(u[6] < 0.35)),
        pacemaker=bool(u[7] < p_pacemaker),
        studies=1 + min(int(rng.geometric(0.45)) - 1, MAX_STUDIES - 1),
        anatomy=tuple(rng.standard_normal(ANATOMY_DIM).tolist()),
    )


def study(key: Key) -> Study:
    """Draws the study of `key`, with its patient and its labels."""
    who = patient(dataclasses.replace(key, study=0))
    rng = key.rng("study")
    e = rng.standard_normal(12)
    u = rng.random(8)
    fluid = who.fluid + 0.63 * e[0]
    inflammation = who.inflammation + 0.85 * e[1]
    anaemia = who.anaemia + 0.30 * e[2] + 0.10 * inflammation
    af = who.af == 2 or (who.af == 1 and u[0] < 0.45)
    rate = 77 + 8 * e[3] + 6 * max(inflammation, -1) + 4 * anaemia + 3 * fluid
    rate += 14 * abs(e[4]) if af else 0.0
    # Failure is not the only cause of an effusion, and it is rarely symmetric.
    wet = [
        0.55 * fluid + 0.25 * inflammation - 1.0 + 0.9 * e[5 + side]
        for side in range(2)
    ]
    p_consolidation = _sigmoid(-1.75 + 1.1 * inflammation)
    consolidated = u[1] < p_consolidation
    p_ap = _sigmoid(-0.3 + 0.25 * fluid + 0.5 * inflammation)
    return Study(
        key=key,
        patient=who,
        fluid=float(fluid),
        inflammation=float(inflammation),
        anaemia=float(anaemia),
        af=bool(af),
        heart_rate=float(np.clip(rate, 42, 165)),
        effusion=tuple(float(np.clip(0.16 * w, 0, 0.6)) for w in wet),
        consolidation=float((0.5 + u[2]) if consolidated else 0.0),
        ap=bool(u[3] < p_ap),
        inspiration=float(e[7]),
        device=bool(u[4] < 0.12 + 0.12 * (who.renal > 1.3)),
        labels=_labels(who, fluid, anaemia, consolidated, e[8:12]),
    )


def _labels(who, fluid, anaemia, consolidated, noise) -> dict[str, int]:
    """Thresholds of the causes plus a little noise, as a chart review would have."""
    structure = max(who.lv_mass, who.dilation) + 0.15 * noise[0]
    failure = 0.60 * fluid + 0.50 * who.dilation + 0.25 * who.lv_mass
    return {
        "slvh_dlv": int(structure > 1.10),
        "heart_failure": int(failure + 0.20 * noise[1] > 0.76),
        "renal_failure": int(who.renal + 0.15 * noise[2] > 0.80),
        "anaemia": int(anaemia + 0.15 * noise[3] > 0.80),
        "consolidation": int(consolidated),
        "nodule": int(who.nodules > 0),
        "hyperinflation": int(who.inflation > 0.85),
    }


def plan(
    seed: int, stream: str, studies: int, most: int = MAX_STUDIES
) -> list[tuple[int, int]]:
    """Lists (patient, number of studies) until `studies` studies are reached.

    Args:
        seed: cohort seed.
        stream: a key of STREAMS.
        studies: total; the last patient's studies are cut to meet it exactly.
        most: cap on the studies of one patient.
    """
    rows, total, index = [], 0, 0
    while total < studies:
        who = patient(Key(seed, stream, index))
        n = min(who.studies, most, studies - total)
        rows.append((index, n))
        total += n
        index += 1
    return rows
