"""A 12-lead ECG of one study: a moving dipole, its projection, electrodes and noise.

The heart is a vector (X left, Y inferior, Z posterior, in mV): a sum of Gaussians in
time around each beat. Dower's matrix projects it to the eight independent leads; the
four others follow from Einthoven's and Goldberger's equations, so these hold exactly
for the recorded signal, noise included.
"""

import dataclasses

import numpy as np

RATE = 500  # Hz
LENGTH = 5000  # samples: 10 s
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# MIMIC-IV-ECG, and so Symile, has aVF before aVL.
MIMIC_LEADS = LEADS[:4] + ("aVF", "aVL") + LEADS[6:]
_TO_MIMIC = [LEADS.index(name) for name in MIMIC_LEADS]

DIAGNOSES = (
    "atrial_fibrillation",
    "lbbb",
    "rbbb",
    "lvh_voltage",
    "lv_strain",
    "low_voltage",
    "tachycardia",
    "bradycardia",
    "av_block_1",
    "pvc",
    "left_axis",
    "peaked_t",
    "st_t_ischaemia",
)

# Dower 1980: rows I, II, V1-V6; columns X, Y, Z.
_DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
_TIME = (np.arange(LENGTH) / RATE).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Beat:
    """The waves of one beat and what a reader would call them.

    `onset` (k,), `width` (k,) in s and `vector` (k, 3) in mV: Gaussians centred `onset`
    after the R wave. `kind` (k,): 0 P wave, 1 QRS, 2 ST-T. `pr` in s.
    """

    onset: np.ndarray
    width: np.ndarray
    vector: np.ndarray
    kind: np.ndarray
    pr: float
    strain: float
    ischaemic: float
    potassium: float
    axis: float


def beat(study, rng: np.random.Generator) -> Beat:
    """Draws the beat of a study from mass, dilation, conduction and chemistry."""
    who, body = study.patient, study.patient.anatomy
    m, d = np.clip([who.lv_mass, who.dilation], -2.5, 3.2)
    n = rng.standard_normal(8)
    # Fluid round the heart and a thick chest wall insulate; mass amplifies.
    damp = -0.10 * max(study.fluid, -1) - 0.5 * max(study.effusion) - 0.08 * who.habitus
    gain = np.exp(0.08 + 0.26 * m + 0.07 * d + damp + 0.14 * body[21] + 0.04 * n[0])
    axis = np.deg2rad(42 - 13 * m - 8 * who.habitus + 16 * body[22] - 4 * d)
    c, s = np.cos(axis), np.sin(axis)
    spread = 1 + 0.07 * np.clip(d, -1, 3) + 0.03 * m + 0.05 * body[23]
    pr = 0.155 + 0.022 * who.av_delay + 0.004 * n[1]
    atrial = 0.15 + 0.024 * np.clip(study.fluid + 0.4 * m, -2, 4)
    back = 0.68 + 0.10 * m + 0.12 * d + 0.10 * body[24]
    waves = [  # onset, width, X, Y, Z, kind
        (-pr + 0.04, 0.020, 0.5 * atrial, 0.9 * atrial, -0.3 * atrial, 0),
        (-pr + 0.07, 0.022, 0.6 * atrial, 0.5 * atrial, 0.6 * atrial, 0),
        (-0.022, 0.009, -0.14 * gain, 0.06 * gain, -0.35 * gain, 1),
        (0.0, 0.0125 * spread, 1.20 * c * gain, 1.20 * s * gain, 0.35 * back * gain, 1),
        (0.020 * spread, 0.012 * spread, 0.18 * gain, -0.12 * gain, back * gain, 1),
        (0.040 * spread, 0.010 * spread, -0.20 * gain, -0.22 * gain, 0.25 * gain, 1),
    ]
    if who.block == "lbbb":
        waves = waves[:2] + [
            (-0.015, 0.018, 0.55 * gain, 0.20 * gain, 0.30 * gain, 1),
            (0.025, 0.022, 0.75 * gain, 0.05 * gain, 0.95 * gain, 1),
            (0.062, 0.018, 0.60 * gain, -0.10 * gain, 0.60 * gain, 1),
        ]
    elif who.block == "rbbb":
        waves.append((0.068, 0.016, -0.55 * gain, 0.05 * gain, -0.60 * gain, 1))
    strain = max(0.0, m - 0.7) + 0.25 * max(0.0, d - 1) * (m > 0)
    ischaemic = max(0.0, who.ischaemia - 0.9 + 0.35 * n[2])
    potassium = max(0.0, who.renal - 1.1 + 0.5 * n[3])
    rr = 60 / study.heart_rate
    qt = 0.30 * np.sqrt(rr) * (1 + 0.04 * body[25] + 0.03 * (who.block != "none"))
    height = 0.40 * (1 + 0.12 * body[26]) * np.exp(0.12 * n[4])
    turn = 1 - 0.75 * strain - 0.70 * ischaemic
    if who.block == "lbbb":
        turn = -0.9
    peak = 1 + 0.7 * potassium
    narrow = 1 / (1 + 0.3 * potassium)
    t_vector = np.array([height * turn, 0.55 * height * turn, -0.45 * height])
    depress = -0.10 * strain - 0.10 * ischaemic - 0.15 * (who.block == "lbbb")
    for at, width, share in ((-0.045, 0.050, 0.55), (0.0, 0.032, 0.60)):
        waves.append((qt + at * narrow, width * narrow, *(t_vector * peak * share), 2))
    st = (depress, 0.6 * depress, -0.5 * depress)
    waves.append((0.45 * qt, 0.045, *st, 2))
    table = np.array(waves)
    return Beat(
        onset=table[:, 0],
        width=table[:, 1],
        vector=table[:, 2:5],
        kind=table[:, 5].astype(int),
        pr=pr,
        strain=strain,
        ischaemic=ischaemic,
        potassium=potassium,
        axis=float(np.rad2deg(axis)),
    )


def _beats(study, rng) -> tuple[np.ndarray, np.ndarray]:
    """Times of the R waves in s, and which are ventricular ectopics."""
    mean = 60 / study.heart_rate
    n = int(12 / mean) + 6
    if study.af:
        rr = mean * np.clip(np.exp(0.22 * rng.standard_normal(n)), 0.6, 1.9)
    else:
        breath = 0.025 * np.sin(np.arange(n) * mean * 1.6 + 6.28 * rng.random())
        rr = mean * (1 + breath + 0.012 * rng.standard_normal(n))
    ectopic = np.zeros(n, bool)
    d = study.patient.dilation
    if rng.random() < 1 / (1 + np.exp(2.3 - 0.6 * d - 0.3 * study.patient.ischaemia)):
        ectopic[2:-2] = rng.random(n - 4) < 0.12
        ectopic[4 + int(2 * rng.random())] = (
            True  # the label means: one is on the strip
        )
        ectopic[1:] &= ~ectopic[:-1]
        early = np.flatnonzero(ectopic)
        rr[early - 1] *= 0.62
        rr[early] *= 1.35
    times = np.concatenate([[0], np.cumsum(rr[:-1])]) - mean * (0.4 + rng.random())
    return times, ectopic


def _dipole(study, shape: Beat, times, ectopic, rng) -> np.ndarray:
    """The heart's vector over time, (LENGTH, 3) in mV."""
    after = np.clip(np.searchsorted(times, _TIME, side="right"), 1, len(times) - 1)
    last, coming = times[after - 1], times[after]
    nearest = np.where(_TIME - last < coming - _TIME, after - 1, after)
    clocks = (_TIME - coming, _TIME - times[nearest], _TIME - last)
    wild = (ectopic[after], ectopic[nearest], ectopic[after - 1])
    out = np.zeros((LENGTH, 3), np.float32)
    level = 1 + 0.05 * np.sin(2 * np.pi * 0.27 * _TIME + 6.28 * rng.random())
    for clock, is_wild, kind in zip(clocks, wild, range(3), strict=True):
        pick = shape.kind == kind
        if kind == 0 and study.af:
            continue
        q = (clock[None] - shape.onset[pick, None]) / shape.width[pick, None]
        hills = np.exp(-0.5 * (q * q)).astype(np.float32)
        hills *= 1 - is_wild
        out += hills.T @ shape.vector[pick].astype(np.float32)
        if kind and is_wild.any():
            # An ectopic beat spreads through muscle: wide, tall, T opposite.
            at, width, sign = ((0.02, 0.030, 1.0), (0.27, 0.06, -0.45))[kind - 1]
            hill = np.exp(-0.5 * ((clock - at) / width) ** 2) * is_wild * sign
            where = np.array([0.5, -0.9, 0.9]) * (1 + 0.2 * study.patient.anatomy[27])
            out += (hill[:, None] * where).astype(np.float32)
    out *= level[:, None].astype(np.float32)
    if study.af:
        drift = np.cumsum(0.05 * rng.standard_normal(LENGTH))
        phase = 2 * np.pi * (5.2 + 1.5 * rng.random()) * _TIME + drift
        size = 0.035 * np.exp(0.35 * rng.standard_normal())
        waves = size * (np.sin(phase) + 0.4 * np.sin(1.7 * phase + 1))
        out += (waves[:, None] * np.array([0.3, 0.8, -0.9])).astype(np.float32)
    return out


def _electrodes(rng) -> np.ndarray:
    """Noise of RA, LA, LL, V1-V6 in mV, (LENGTH, 9): muscle, mains, wander, steps."""
    dirt = np.exp(0.5 * rng.standard_normal(9)).astype(np.float32)
    noise = rng.standard_normal((LENGTH, 9), dtype=np.float32)
    noise[1:] += 0.5 * noise[:-1]
    noise *= 0.007 * dirt
    t = _TIME[:, None]
    for low, high, size in ((0.08, 0.2, 0.05), (0.2, 0.4, 0.04), (0.4, 0.8, 0.012)):
        f = np.float32(rng.uniform(low, high))
        phase = rng.uniform(0, 2 * np.pi, 9).astype(np.float32)
        a = (size * rng.standard_normal(9)).astype(np.float32)
        wt = 2 * np.pi * f * t
        noise += np.sin(wt) * (a * np.cos(phase)) + np.cos(wt) * (a * np.sin(phase))
    mains = (0.004 * dirt * rng.standard_normal(9)).astype(np.float32)
    return noise + np.sin(2 * np.pi * np.float32(60) * t) * mains


def _twelve(eight: np.ndarray) -> np.ndarray:
    """Adds the derived leads to I, II, V1-V6: (t, 8) -> (t, 12) in LEADS order."""
    i, ii = eight[:, 0], eight[:, 1]
    out = np.empty((len(eight), 12), np.float32)
    out[:, 0], out[:, 1], out[:, 2] = i, ii, ii - i
    out[:, 3], out[:, 4], out[:, 5] = -(i + ii) / 2, i - ii / 2, ii - i / 2
    out[:, 6:] = eight[:, 2:]
    return out


def record(study) -> tuple[np.ndarray, dict[str, int]]:
    """Records a study's ECG.

    Returns:
        signal: (5000, 12) float32 in mV, 500 Hz, leads in the order of LEADS.
        diagnoses: 0 or 1 for every name of DIAGNOSES; voltage, axis and rhythm are read
            off the noise-free signal or the beat, as a cardiologist's over-read would.
    """
    rng = study.key.rng("ecg")
    shape = beat(study, rng)
    times, ectopic = _beats(study, rng)
    dipole = _dipole(study, shape, times, ectopic, rng)
    # Electrodes are never quite where the matrix assumes them.
    body = 0.06 * np.array(study.patient.anatomy[28:31])
    leads = _DOWER * (1 + 0.08 * rng.standard_normal((8, 1))) + body
    eight = dipole @ leads.T.astype(np.float32)
    found = _diagnose(study, shape, leads, ectopic, times)
    noise = _electrodes(rng)
    eight[:, 0] += noise[:, 1] - noise[:, 0]
    eight[:, 1] += noise[:, 2] - noise[:, 0]
    eight[:, 2:] += noise[:, 3:] - noise[:, :3].mean(1, keepdims=True)
    return _twelve(eight), found


def _diagnose(study, shape: Beat, leads, ectopic, times) -> dict[str, int]:
    """Names what the beat and the rhythm show."""
    t = np.linspace(-0.08, 0.14, 111)[:, None]
    qrs = shape.kind == 1
    hills = np.exp(-0.5 * ((t - shape.onset[qrs]) / shape.width[qrs]) ** 2)
    one = _twelve((hills @ shape.vector[qrs] @ leads.T).astype(np.float32))
    sokolow = -one[:, 6].min() + max(one[:, 10].max(), one[:, 11].max())
    cornell = one[:, 4].max() - one[:, 8].min()
    narrow = study.patient.block == "none"
    seen = ectopic & (times > 0.05) & (times < 9.95)
    found = {
        "atrial_fibrillation": study.af,
        "lbbb": study.patient.block == "lbbb",
        "rbbb": study.patient.block == "rbbb",
        "lvh_voltage": narrow and (sokolow > 3.5 or cornell > 2.8),
        "lv_strain": narrow and shape.strain > 0.5,
        "low_voltage": np.ptp(one[:, :6], axis=0).max() < 0.70,
        "tachycardia": study.heart_rate > 100,
        "bradycardia": study.heart_rate < 60,
        "av_block_1": not study.af and shape.pr > 0.185,
        "pvc": seen.any(),
        "left_axis": np.ptp(one[:, 5]) > 0 and one[:, 5].sum() < -0.1,
        "peaked_t": narrow and shape.potassium > 0.5,
        "st_t_ischaemia": narrow and shape.ischaemic > 0.5,
    }
    return {name: int(found[name]) for name in DIAGNOSES}


def to_mimic(signal: np.ndarray) -> np.ndarray:
    """Reorders the last axis from LEADS to MIMIC_LEADS (aVL and aVF change places)."""
    return signal[..., _TO_MIMIC]


def to_microvolts(signal: np.ndarray) -> np.ndarray:
    """int16 microvolts of a signal in mV; values beyond 32.767 mV are clipped."""
    return np.clip(np.round(signal * 1000), -32768, 32767).astype(np.int16)


def min_max(signal: np.ndarray) -> np.ndarray:
    """Scales a whole record to [-1, 1], as Symile stores it."""
    low, high = signal.min(), signal.max()
    return ((signal - low) * (2 / (high - low)) - 1).astype(np.float32)
