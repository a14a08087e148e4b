"""Fifty laboratory values of one study, their absence, and Symile's percentiles."""

import numpy as np

# Symile-MIMIC's laboratory items in ascending order of MIMIC item id.
ITEMS = {
    50802: "Base Excess",
    50804: "Calculated Total CO2",
    50813: "Lactate",
    50818: "pCO2",
    50820: "pH",
    50821: "pO2",
    50861: "ALT",
    50862: "Albumin",
    50863: "Alkaline Phosphatase",
    50868: "Anion Gap",
    50878: "AST",
    50882: "Bicarbonate",
    50885: "Bilirubin Total",
    50893: "Calcium Total",
    50902: "Chloride",
    50910: "CK",
    50912: "Creatinine",
    50931: "Glucose",
    50934: "H",
    50947: "I",
    50960: "Magnesium",
    50970: "Phosphate",
    50971: "Potassium",
    50983: "Sodium",
    51006: "Urea Nitrogen",
    51133: "Absolute Lymphocyte Count",
    51146: "Basophils",
    51200: "Eosinophils",
    51221: "Hematocrit",
    51222: "Hemoglobin",
    51237: "INR(PT)",
    51244: "Lymphocytes",
    51248: "MCH",
    51249: "MCHC",
    51250: "MCV",
    51254: "Monocytes",
    51256: "Neutrophils",
    51265: "Platelet Count",
    51274: "PT",
    51275: "PTT",
    51277: "RDW",
    51279: "Red Blood Cells",
    51301: "White Blood Cells",
    51678: "L",
    52069: "Absolute Basophil Count",
    52073: "Absolute Eosinophil Count",
    52074: "Absolute Monocyte Count",
    52075: "Absolute Neutrophil Count",
    52135: "Immature Granulocytes",
    52172: "RDW-SD",
}
ITEM_IDS = tuple(ITEMS)
_COLUMN = {item: i for i, item in enumerate(ITEM_IDS)}

_PANELS = {  # drawn together: a tube, not a test, is ordered
    "abg": (50802, 50804, 50818, 50820, 50821),
    "lactate": (50813,),
    "liver": (50861, 50863, 50878, 50885),
    "albumin": (50862,),
    "basic": (50868, 50882, 50902, 50912, 50931, 50971, 50983, 51006),
    "minerals": (50893, 50960, 50970),
    "ck": (50910,),
    "indices": (50934, 50947, 51678),
    "count": (51221, 51222, 51248, 51249, 51250, 51265, 51277, 51279, 51301),
    "clotting": (51237, 51274, 51275),
    "differential": (51146, 51200, 51244, 51254, 51256),
    "absolute": (51133, 52069, 52073, 52074, 52075),
    "immature": (52135,),
    "rdw_sd": (52172,),
}


def values(study) -> np.ndarray:
    """Draws a study's laboratory values.

    Returns:
        (50,) float64 in MIMIC's units, ordered as ITEM_IDS; NaN where not measured. At
        least one value is measured.
    """
    rng = study.key.rng("labs")
    full = _measure(study, rng.standard_normal(44))
    keep = _ordered(study, rng.random(len(_PANELS)), rng.random(50))
    if not keep.any():
        keep[[_COLUMN[item] for item in _PANELS["basic"]]] = True
    row = np.array([full[item] for item in ITEM_IDS])
    row[~keep] = np.nan
    return row


def _measure(study, e: np.ndarray) -> dict[int, float]:
    """Every value, measured or not; e (44,) is biology and assay noise."""
    who = study.patient
    renal, anaemia = who.renal, study.anaemia
    fluid, fire = study.fluid, study.inflammation
    bad = max(renal, 0.0)
    v: dict[int, float] = {}
    # Kidneys: log-linear retention, buffered bicarbonate.
    male = float(who.male) - 0.5
    creatinine = 0.90 * np.exp(
        0.12 * renal + 0.42 * bad**1.2 + 0.15 * male + 0.14 * e[0]
    )
    v[50912] = round(creatinine, 1)
    v[51006] = round(
        15 * np.exp(0.30 * renal + 0.15 * bad + 0.13 * fluid + 0.25 * e[1])
    )
    v[50971] = round(4.1 + 0.10 * renal + 0.14 * bad + 0.38 * e[2], 1)
    bicarbonate = 25.2 - 1.1 * bad - 0.5 * max(fire, 0) + 0.5 * fluid + 2.6 * e[3]
    v[50882] = round(bicarbonate)
    v[50970] = round(3.4 * np.exp(0.04 * renal + 0.13 * bad + 0.18 * e[4]), 1)
    v[50960] = round(2.0 + 0.07 * bad + 0.22 * e[5], 1)
    v[50983] = round(139 - 1.0 * fluid - 0.3 * fire + 3.4 * e[6])
    v[50868] = round(13.2 + 0.9 * bad + 0.5 * max(fire, 0) + 2.2 * e[7])
    v[50902] = v[50983] - v[50882] - v[50868]
    v[50931] = round(118 * np.exp(0.06 * fire + 0.05 * who.habitus + 0.27 * e[8]))
    albumin = 3.7 - 0.17 * fire - 0.13 * fluid - 0.10 * anaemia + 0.42 * e[9]
    v[50862] = round(max(albumin, 1.2), 1)
    calcium = 9.1 + 0.35 * (albumin - 3.7) - 0.10 * bad + 0.42 * e[10]
    v[50893] = round(calcium, 1)
    # Congested liver; muscle.
    liver = 0.35 * max(fluid, -0.5) + 0.2 * max(fire, 0) + 0.5 * e[11]
    v[50861] = round(24 * np.exp(liver + 0.35 * e[12]))
    v[50878] = round(28 * np.exp(liver + 0.30 * e[13]))
    v[50863] = round(82 * np.exp(0.12 * fluid + 0.06 * fire + 0.33 * e[14]))
    v[50885] = round(0.55 * np.exp(0.22 * fluid + 0.25 * liver + 0.45 * e[15]), 1)
    v[50910] = round(110 * np.exp(0.15 * male + 0.18 * who.ischaemia + 0.85 * e[16]))
    inr = 1.15 * np.exp(0.05 * max(fluid, 0) + 0.38 * study.af * (e[17] > -0.5))
    v[51237] = round(inr * np.exp(0.08 * e[18]), 1)
    v[51274] = round(11.0 * v[51237] * np.exp(0.03 * e[19]), 1)
    v[51275] = round(30 * (v[51237] / 1.15) ** 0.4 * np.exp(0.16 * e[20]), 1)
    _blood(v, anaemia, fire, male, e[21:36])
    _gases(v, study, bicarbonate, e[36:41])
    v[50934] = round(12 * np.exp(0.9 * e[41]))
    v[50947] = round(2.0 * v[50885] + abs(e[42]))
    v[51678] = round(9 * np.exp(0.5 * e[43] + 0.1 * who.habitus))
    return v


def _blood(v, anaemia, fire, male, e) -> None:
    """Red cells with consistent indices; white cells and their differential."""
    hb = max(12.3 + 1.0 * male - 1.65 * anaemia + 0.55 * e[0], 4.5)
    mcv = 90 - 1.2 * anaemia + 5.6 * e[1]
    mchc = 32.9 - 0.35 * anaemia + 0.9 * e[2]
    hct = 100 * hb / mchc
    red = 10 * hct / mcv
    v[51222], v[51221], v[51279] = round(hb, 1), round(hct, 1), round(red, 2)
    v[51250], v[51249] = round(mcv), round(mchc, 1)
    v[51248] = round(10 * hb / red, 1)
    rdw = 14.2 * np.exp(0.07 * anaemia + 0.02 * fire + 0.08 * e[3])
    v[51277] = round(rdw, 1)
    v[52172] = round(rdw * mcv / 28.5 + 1.2 * e[4], 1)
    white = 8.2 * np.exp(0.27 * fire + 0.26 * e[5])
    v[51301] = round(white, 1)
    v[51265] = round(222 * np.exp(0.07 * fire - 0.06 * anaemia + 0.32 * e[6]))
    shares = np.exp(
        np.array(
            [
                4.27 + 0.10 * fire + 0.06 * e[7],
                2.85 - 0.32 * fire + 0.38 * e[8],
                2.00 - 0.02 * fire + 0.30 * e[9],
                0.45 - 0.35 * fire + 0.75 * e[10],
                -0.85 + 0.45 * e[11],
                -0.70 + 0.35 * fire + 0.50 * e[12],
            ]
        )
    )
    shares *= 100 / shares.sum()
    names = (51256, 51244, 51254, 51200, 51146, 52135)
    for item, share in zip(names, shares, strict=True):
        v[item] = round(share, 1)
    counts = (52075, 51133, 52074, 52073, 52069)
    for item, share in zip(counts, shares[:5], strict=True):
        v[item] = round(white * share / 100, 2)


def _gases(v, study, bicarbonate, e) -> None:
    """Arterial gas by Henderson-Hasselbalch from bicarbonate and ventilation."""
    pco2 = (41 + 0.55 * (bicarbonate - 25)) * np.exp(
        0.06 * study.patient.inflation + 0.03 * study.fluid + 0.14 * e[0]
    )
    ph = 6.1 + np.log10(max(bicarbonate, 4) / (0.0307 * pco2)) + 0.01 * e[1]
    v[50818], v[50820] = round(pco2), round(ph, 2)
    v[50804] = round(bicarbonate + 0.0307 * pco2)
    v[50802] = round(0.93 * (bicarbonate - 24.4 + 14.8 * (ph - 7.4)))
    sick = 0.15 * study.fluid + 0.2 * (study.consolidation > 0)
    v[50821] = round(98 * np.exp(-sick + 0.42 * e[2]))
    fire = max(study.inflammation, -0.5)
    v[50813] = round(1.5 * np.exp(0.22 * fire + 0.10 * study.fluid + 0.36 * e[3]), 1)


def _ordered(study, panel: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Which values were measured, (50,) bool: panels first, then single losses."""
    who = study.patient
    ill = 0.5 * study.fluid + 0.6 * study.inflammation + 0.2 * who.renal
    odds = {
        "abg": -1.75 + 0.8 * ill,
        "lactate": -1.15 + 0.8 * ill,
        "liver": -0.30 + 0.35 * ill,
        "albumin": -0.90 + 0.35 * ill,
        "basic": 3.6,
        "minerals": 1.6 + 0.2 * ill,
        "ck": -2.0 + 0.6 * who.ischaemia,
        "indices": -1.3,
        "count": 3.3,
        "clotting": 0.6 + 0.5 * study.af,
        "differential": 0.0 + 0.35 * study.inflammation,
        "absolute": 0.9,
        "immature": -0.1,
        "rdw_sd": -0.3,
    }
    keep = np.zeros(50, bool)
    for draw, (name, items) in zip(panel, _PANELS.items(), strict=True):
        if draw < 1 / (1 + np.exp(-odds[name])):
            keep[[_COLUMN[item] for item in items]] = True
    if not keep[_COLUMN[51256]]:  # absolute counts come with a differential
        keep[[_COLUMN[item] for item in _PANELS["absolute"] + (52135,)]] = False
    return keep & (single > 0.02)


class Percentiles:
    """Symile's NaN-aware empirical distribution functions, one a laboratory item.

    F(x) = (number of training values <= x) / n: right-continuous, with the values
    linspace(1/n, 1, n) at the sorted training values and 0 below them. A missing value
    gets the training mean of its percentile and the indicator 0.
    """

    def __init__(self, train: np.ndarray):
        """Fits on (n, 50) float training values with NaN where missing.

        Raises:
            ValueError: if an item is never measured in `train`.
        """
        self._sorted = []
        for item, column in zip(ITEM_IDS, train.T, strict=True):
            seen = np.sort(column[~np.isnan(column)])
            if not len(seen):
                raise ValueError(
                    f"lab item {item} ({ITEMS[item]}) is never measured in"
                    f" {len(train)} training studies; use more"
                )
            self._sorted.append(seen)
        self.means = np.array(
            [
                np.mean(np.searchsorted(s, s, side="right") / len(s))
                for s in self._sorted
            ]
        )

    def __call__(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns percentiles (50,) float32 in [0, 1] and indicators (50,) int64."""
        observed = ~np.isnan(row)
        out = self.means.copy()
        for i in np.flatnonzero(observed):
            seen = self._sorted[i]
            out[i] = np.searchsorted(seen, row[i], side="right") / len(seen)
        return out.astype(np.float32), observed.astype(np.int64)
