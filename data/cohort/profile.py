"""Geometry of the chest from the side, as soft fields.

Canonical coordinates: w from the front (-1) to the back (1) of the chest, v down as in
`anatomy`: the apex at -1, the domes near 0.65. One unit of w is DEEP units of v in an
average patient. Arrays are (h, w) float32 on the pixel grid they are given.
"""

import math

import cv2
import numpy as np

from data.cohort import anatomy
from data.cohort.anatomy import Pose, bump, step

DEEP = 0.80
RIGHT, LEFT = 0, 1

_V0, _V_STEPS = -2.0, 1024
_V = np.linspace(_V0, 2.0, _V_STEPS)


def _table(v, w) -> np.ndarray:
    """A smooth curve through (v, w), at every height of the table."""
    curve = np.interp(_V, v, w).astype(np.float32)
    return cv2.GaussianBlur(curve[None], (0, 0), 24, borderType=cv2.BORDER_REPLICATE)[0]


# The inner chest wall. The sternum slopes forwards; the back is rounded.
_FRONT = _table(
    (-1.1, -0.95, -0.8, -0.5, -0.2, 0.1, 0.4, 0.9, 1.5),
    (0.10, -0.16, -0.36, -0.64, -0.80, -0.90, -0.95, -0.97, -0.97),
)
_BACK = _table(
    (-1.6, -1.1, -0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9, 1.5),
    (0.20, 0.44, 0.66, 0.86, 0.96, 1.0, 1.0, 0.96, 0.88, 0.70),
)
# The skin around it: arms are raised, and the shoulders taper into them.
_SKIN_FRONT = _table(
    (-1.8, -1.4, -1.1, -0.9, -0.7, -0.4, -0.1, 0.2, 0.5, 1.5),
    (-0.74, -0.56, -0.56, -0.64, -0.72, -0.83, -0.94, -1.02, -1.06, -1.08),
)
_SKIN_BACK = _table(
    (-1.8, -1.4, -1.1, -0.8, -0.5, -0.2, 0.1, 0.5, 0.9, 1.5),
    (0.50, 0.72, 0.96, 1.12, 1.20, 1.24, 1.24, 1.20, 1.10, 0.92),
)


def skin(v) -> tuple[np.ndarray, np.ndarray]:
    """Where the skin of a lean body stands in front and behind at height v."""
    return _read(_SKIN_FRONT, v), _read(_SKIN_BACK, v)


def _read(table, v) -> np.ndarray:
    index = ((v - _V0) * ((_V_STEPS - 1) / 4.0)).astype(np.int32)
    return table[np.clip(index, 0, _V_STEPS - 1)]


def front(v) -> np.ndarray:
    """Where the inner chest wall stands in front at height v."""
    return _read(_FRONT, v)


def bulge(v, study) -> np.ndarray:
    """How far a bent, old back stands out at height v."""
    bent = 0.05 * (study.patient.age - 61) / 16 + 0.03 * study.patient.anatomy[22]
    return np.float32(bent) * np.maximum(1 - ((v + 0.15) / 0.9) ** 2, -0.5)


def back(v, study) -> np.ndarray:
    """Where the inner chest wall stands behind at height v."""
    return _read(_BACK, v) + bulge(v, study)


def draw_pose(study, rng: np.random.Generator, short: int, mirrored: bool) -> Pose:
    """Draws a film with shorter side `short` pixels and the pose of the patient.

    Args:
        study: the study.
        rng: the lateral's generator.
        short: pixels.
        mirrored: the right side stands at the plate, and the patient looks right.
    """
    n = rng.standard_normal(6).tolist()
    long = int(round(short * (1.0 + 0.25 * rng.random() ** 0.7)))
    h, w = (long, short) if rng.random() < 0.9 else (short, long)
    who, body = study.patient, study.patient.anatomy
    # Overinflated lungs make the chest a barrel.
    deep = DEEP * (1 + 0.05 * body[23] + 0.03 * who.habitus)
    deep *= 1 + 0.06 * max(who.inflation, -1.0)
    height = anatomy.thorax_height(study)
    scale = 0.39 * short * math.exp(0.06 * n[0])
    angle = math.radians(2.4 * n[1] + 1.5)
    shear = 0.02 * n[5]
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    centre = (w * (0.5 + 0.04 * n[2]), h * (0.48 + 0.03 * n[3]))
    inverse = np.array(
        [
            [c * deep, (-s + shear * c) * height, centre[0]],
            [s * deep, (c + shear * s) * height, centre[1]],
        ]
    )
    if mirrored:
        inverse[0] = [-inverse[0, 0], -inverse[0, 1], w - 1 - inverse[0, 2]]
    turn = 0.045 * n[4]
    return Pose(cv2.invertAffineTransform(inverse), inverse, turn, scale, (h, w))


def dome(w, study, side: int) -> np.ndarray:
    """Height of one hemidiaphragm at w: the frontal's, with its curvature."""
    top, arch = anatomy.domes(study)[side]
    away = w + np.float32(0.30)
    behind = np.float32(1.85 * arch) * np.abs(away / 1.1) ** 1.9
    before = np.float32(0.55 * arch) * (away / 0.75) ** 2
    return np.float32(top) + np.where(away > 0, behind, before)


def fluid_level(w, study, side: int) -> np.ndarray:
    """Upper border of one side's pleural fluid; far below where there is none.

    The posterior angle is the lowest place of the pleura and fills first.
    """
    volume = study.depth.pleural[side]
    if volume <= 0:
        return np.full_like(w, 9.0)
    lowest = float(dome(np.full(1, 0.86, np.float32), study, side)[0])
    high = 0.16 + 3.4 * min(volume, 0.1) + 1.5 * max(volume - 0.1, 0.0)
    climb = min(0.06 + 0.8 * volume, 0.22)
    slope = np.abs((w - 0.1) * np.float32(1 / 0.85)) ** 3
    return np.float32(lowest - high) - np.float32(climb) * slope


def heart_radius(study, rng: np.random.Generator) -> tuple[np.ndarray, tuple]:
    """Outline of the heart: radius at 256 angles, and its centre (w, v).

    Angle 0 points backwards, pi/2 down. Dilation and mass carry the left ventricle's
    border backwards over the lower spine, atrial load bulges it above, and the right
    ventricle fills the space behind the sternum in overload.
    """
    who, body = study.patient, study.patient.anatomy
    m, d = np.clip([who.lv_mass, who.dilation], -2.5, 3.2)
    theta = np.linspace(-np.pi, np.pi, 256, endpoint=False, dtype=np.float32)

    def lobe(at, width):
        return np.exp((np.cos(theta - np.float32(at)) - 1) / np.float32(width**2))

    size = 1 + 0.045 * body[4] + 0.045 * d + 0.012 * m + 0.02 * rng.standard_normal()
    upright = 0.5 * study.inspiration + 0.8 * who.inflation - 0.6 * study.ap
    tilt = math.pi - 0.72 - 0.05 * upright
    major, minor = 0.60, 0.38 * (1 - 0.02 * upright)
    ellipse = 1 / np.sqrt(
        (np.cos(theta - tilt) / major) ** 2 + (np.sin(theta - tilt) / minor) ** 2
    )
    radius = ellipse * size
    radius += (0.050 + 0.055 * d + 0.030 * m) * lobe(0.45, 0.45)
    atrial = 0.4 * study.fluid + 0.9 * study.af + 0.3 * body[7]
    radius += (0.03 + 0.026 * atrial) * lobe(-0.65, 0.35)
    radius += 0.02 * max(study.fluid, -1.0) * lobe(-math.pi + 0.35, 0.5)
    centre = (-0.44 + 0.02 * body[8] - 0.02 * who.inflation, 0.38 + 0.02 * body[9])
    return np.maximum(radius, 0.15).astype(np.float32), centre


def arch(w, v, study) -> np.ndarray:
    """The aorta: up from the heart, over the left bronchus, down before the spine."""
    who, body = study.patient, study.patient.anatomy
    a = (who.age - 61) / 16
    middle = (0.10 + 0.03 * body[15], -0.36)
    radius = 0.24 + 0.03 * a
    ring = np.hypot((w - middle[0]) * np.float32(0.9), v - middle[1])
    thick = np.float32(0.075 + 0.010 * a + 0.006 * who.hypertension)
    bow = step(1 - np.abs(ring - radius) / thick, 0.5) * step(-0.30 - v, 0.10)
    down = w - (middle[0] + radius / 0.9 + 0.06 * step(v - 0.1, 0.5))
    column = step(1 - np.abs(down) / thick, 0.5) * step(v + 0.36, 0.08)
    return np.maximum(bow, column * step(0.8 - v, 0.3) * np.float32(0.7))


def heart(w, v, radius, centre) -> np.ndarray:
    """Depth of the heart in the beam: 0 outside to 1 at its middle, a soft outline."""
    magnitude, angle = cv2.cartToPolar(w - centre[0], v - centre[1])
    index = ((angle * np.float32(128 / np.pi)).astype(np.int32) + 128) & 255
    rho = magnitude / radius[index]
    depth = np.sqrt(np.maximum(1 - rho * rho, 0))
    body = step(1 - rho, 0.11) * (np.float32(0.30) + np.float32(0.70) * depth)
    # The great vessels leave it upwards and blur its upper border.
    root = bump(w, v, centre[0] + 0.22, centre[1] - 0.40, 0.15, 0.24)
    return np.maximum(body, np.float32(0.45) * root)


def lungs(w, v, behind, study) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Depth of air across both lungs, each side's share, and what lies below.

    Args:
        w, v: canonical coordinates, (h, w).
        behind: `back` at v.
        study: the study.

    Returns:
        depth (h, w) without the diaphragm; for the right and the left lung its
        coverage in [0, 1]; share of the sides where the beam passes under the dome.
    """
    inside = np.minimum(w - front(v) - 0.03, (behind - 0.02 - w) * np.float32(0.8))
    depth = np.clip(inside * 2.6, 0, 1)
    depth = (depth * (2 - depth)) ** 0.5 * np.float32(0.72) + np.float32(0.28)
    # The shoulders and the narrow apex leave less air above than below.
    depth *= np.float32(0.38) + np.float32(0.62) * step(v + 0.35, 0.75)
    edge = step(inside, 0.05) * step(v + 0.98, 0.12)
    over = [step(dome(w, study, side) - v, 0.02) for side in (RIGHT, LEFT)]
    return depth, [edge * side for side in over], 1 - 0.5 * (over[0] + over[1])


def vertebrae(w, v, behind, study) -> np.ndarray:
    """Vertebral bodies with dense end plates, 0 to 1; discs between them."""
    along = (w - behind + np.float32(0.31)) * np.float32(1 / 0.145)
    slope = 0.10 * (v + 0.1)  # the bodies follow the curve of the back
    # Bodies grow downwards: equal steps of this phase are longer below.
    phase = 6.4 * (v - 0.12 * v * np.abs(v)) - slope * along
    phase = phase + np.float32(0.35 * study.patient.anatomy[16])
    part = np.abs(phase - np.round(phase)) * 2  # 0 in the middle, 1 in the disc
    part = part + 0.10 * (1 - along * along)  # waists and concave plates
    body = step(0.82 - part, 0.12)
    plate = body * step(part - 0.55, 0.12)
    column = step(1 - np.abs(along), 0.16)
    return (
        column
        * (0.30 + 0.38 * body + 0.32 * plate)
        * (np.float32(0.5) + np.float32(0.5) * step(v + 1.0, 0.3))
    )
