"""Geometry of one chest film: where lungs, heart and diaphragm lie, as soft fields.

Canonical coordinates: u to the image's right (the patient's left), v down; the inner
chest wall stands at |u| = 1 at its widest, the lung apex at v = -1, the domes of the
diaphragm near v = 0.75. Arrays are (h, w) float32 on the pixel grid they are given.
"""

import dataclasses
import math

import cv2
import numpy as np

# The rib cage widens from apex to base: half-width W(v) = (1 - (1 - t)^2.6)^0.62.
_V0, _V_STEPS = -2.0, 1024
_t = np.clip((np.linspace(_V0, 2.0, _V_STEPS) + 1.02) / 1.5, 0, 1)
_WALL = ((1 - (1 - _t) ** 2.6) ** 0.62).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Pose:
    """How the patient stands before the plate and how the plate is read.

    `matrix` (2, 3) maps pixels (x, y) of the whole film to canonical (u, v), with the
    patient's own thorax width and height divided out; `inverse` maps back. `turn` is
    the rotation about the long axis (mediastinal shift in u), `scale` the pixels in a
    canonical unit, `size` (height, width) of the film in pixels.
    """

    matrix: np.ndarray
    inverse: np.ndarray
    turn: float
    scale: float
    size: tuple[int, int]


def draw_pose(study, rng: np.random.Generator, short: int) -> Pose:
    """Draws a film with shorter side `short` pixels and the pose of the patient."""
    n = rng.standard_normal(6).tolist()
    ratio = 1.0 + 0.22 * rng.random() ** 0.6
    long = int(round(short * ratio))
    h, w = (short, long) if rng.random() < 0.6 else (long, short)
    body = study.patient.anatomy
    # Lung size: build, breath and habitus all move the thorax under the heart.
    width = 1 + 0.07 * body[0] + 0.02 * study.patient.habitus
    width *= 1 + 0.02 * study.inspiration
    height = thorax_height(study)
    scale = 0.375 * short * math.exp(0.085 * n[0])
    angle = math.radians(3.6 * n[1] * (1.4 if study.ap else 0.9))
    shear = 0.02 * n[5]
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    centre = (w * (0.5 + 0.05 * n[2]), h * (0.47 + 0.05 * n[3]))
    inverse = np.array(
        [
            [c * width, (-s + shear * c) * height, centre[0]],
            [s * width, (c + shear * s) * height, centre[1]],
        ]
    )
    turn = 0.035 * n[4] * (1.5 if study.ap else 1.0)
    return Pose(cv2.invertAffineTransform(inverse), inverse, turn, scale, (h, w))


def thorax_height(study) -> float:
    """Height of the thorax relative to the average, alike in every view."""
    height = 1 + 0.05 * study.patient.anatomy[1] + 0.035 * study.patient.inflation
    return height * (1 + 0.035 * study.inspiration - 0.05 * study.ap)


def grid(pose: Pose, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns u and v at every `step`-th pixel, each (h // step, w // step)."""
    h, w = (n // step for n in pose.size)
    x = (np.arange(w, dtype=np.float32) + 0.5) * step - 0.5
    y = ((np.arange(h, dtype=np.float32) + 0.5) * step - 0.5)[:, None]
    m = pose.matrix.astype(np.float32)
    return m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]


def step(x: np.ndarray, width: float) -> np.ndarray:
    """A soft edge: 0 below -width, 1 above width, cubic between. Overwrites nothing."""
    t = np.clip(x * np.float32(0.5 / width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def bump(u, v, u0, v0, su, sv) -> np.ndarray:
    """A Gaussian hill of height 1 at (u0, v0) with standard deviations (su, sv)."""
    q = ((u - np.float32(u0)) * np.float32(1 / su)) ** 2
    q = q + ((v - np.float32(v0)) * np.float32(1 / sv)) ** 2
    return np.exp(-0.5 * q)


def wall(v: np.ndarray) -> np.ndarray:
    """Half-width of the inner chest wall at height v."""
    index = ((v - _V0) * ((_V_STEPS - 1) / 4.0)).astype(np.int32)
    return _WALL[np.clip(index, 0, _V_STEPS - 1)]


def domes(study) -> list[tuple[float, float]]:
    """(height, curvature) of the diaphragm under the patient's right and left lung.

    Hyperinflation pushes the domes down and flattens them; a shallow breath or a
    supine film lifts them.
    """
    who = study.patient
    low = 0.08 * max(who.inflation, -1.5) + 0.035 * study.inspiration
    low -= 0.07 * study.ap + 0.03 * max(who.habitus, 0)
    arch = 0.25 * math.exp(-0.30 * max(who.inflation, -1.0)) + 0.015 * who.anatomy[2]
    shift = 0.03 * who.anatomy[3]
    return [(0.62 + low + shift, arch), (0.68 + low - shift, arch * 0.95)]


def diaphragm(u: np.ndarray, study) -> np.ndarray:
    """Height of the diaphragm at u: a dome a side, falling to the lateral angle."""
    (right, right_arch), (left, left_arch) = domes(study)
    sides = step(u, 0.12)
    top = right + (left - right) * sides
    arch = right_arch + (left_arch - right_arch) * sides
    away = (np.abs(u) - np.float32(0.42)) * np.float32(1 / 0.5)
    # Under the heart the dome runs level: no valley between the two domes.
    away = np.where(away < 0, 0.3 * away, away)
    return top + arch * away * away


def heart_radius(study, rng: np.random.Generator) -> tuple[np.ndarray, tuple]:
    """Outline of the heart: radius at 256 angles, and its centre (u, v).

    Angle 0 points to the patient's left, pi/2 down. Dilation lengthens the left
    ventricle and carries the apex down and outwards; hypertrophy rounds the left
    border and lifts the apex with little widening; atrial load fills the right border
    and the left atrial appendage. The size of a healthy heart varies by itself.
    """
    who = study.patient
    body = who.anatomy
    m, d = np.clip([who.lv_mass, who.dilation], -2.5, 3.2)
    theta = np.linspace(-np.pi, np.pi, 256, endpoint=False, dtype=np.float32)

    def lobe(at, width):
        return np.exp((np.cos(theta - np.float32(at)) - 1) / np.float32(width**2))

    size = 1 + 0.045 * body[4] + 0.045 * d + 0.012 * m + 0.02 * rng.standard_normal()
    size *= 1.06 if study.ap else 1.0
    # A deep breath and a long chest pull the heart narrow and upright.
    upright = 0.5 * study.inspiration + 0.8 * who.inflation - 0.6 * study.ap
    tilt = 0.60 + 0.06 * upright + 0.05 * body[5]
    major, minor = 0.50, 0.385 * (1 - 0.025 * upright)
    ellipse = 1 / np.sqrt(
        (np.cos(theta - tilt) / major) ** 2 + (np.sin(theta - tilt) / minor) ** 2
    )
    apex = 0.55 + 0.11 * d - 0.12 * m + 0.04 * body[6]
    radius = ellipse * size
    radius += (0.060 + 0.050 * d) * lobe(apex, 0.38)
    radius += (0.010 + 0.052 * m) * lobe(-0.10, 0.55)
    atrial = 0.4 * study.fluid + 0.9 * study.af + 0.3 * body[7]
    radius += 0.017 * atrial * lobe(math.pi - 0.1, 0.5)
    radius += 0.020 * atrial * lobe(-0.85, 0.30)
    centre = (0.145 + 0.012 * body[8], 0.34 + 0.02 * body[9])
    return np.maximum(radius, 0.15).astype(np.float32), centre


def heart(u, v, radius, centre) -> np.ndarray:
    """Depth of the heart in the beam, 0 outside to 1 at its middle; crisp outline."""
    magnitude, angle = cv2.cartToPolar(u - centre[0], v - centre[1])
    index = ((angle * np.float32(128 / np.pi)).astype(np.int32) + 128) & 255
    rho = magnitude / radius[index]
    depth = np.sqrt(np.maximum(1 - rho * rho, 0))
    return step(1 - rho, 0.035) * (np.float32(0.62) + np.float32(0.38) * depth)


def pedicle(um, v, study) -> np.ndarray:
    """Great vessels above the heart: caval border, aortic knob, pulmonary trunk.

    `um` is u from the mediastinum's midline. The arch uncoils with age and pressure.
    """
    who, body = study.patient, study.patient.anatomy
    a = (who.age - 61) / 16
    wide = 0.012 * min(max(study.fluid, -1), 3) + 0.012 * body[15] + 0.015 * study.ap
    knob = 0.085 + 0.014 * a + 0.008 * who.hypertension
    left = 0.10 + wide + knob * np.exp(-(((v + 0.45) / 0.10) ** 2))
    left = left + (0.12 + 0.02 * body[17]) * np.exp(-(((v + 0.06) / 0.21) ** 2))
    right = 0.13 + wide + 0.09 * np.exp(-(((v - 0.05) / 0.27) ** 2))
    column = step(left - um, 0.025) * step(right + um, 0.03) * step(v + 0.55, 0.10)
    return column * step(0.75 - v, 0.2)


def lungs(u, v, study, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """The lung fields without the heart: coverage in [0, 1] and depth of air.

    Args:
        u, v: canonical coordinates, (h, w).
        study: the study.
        shift: displacement of the mediastinum in u.
    """
    side = np.abs(u)
    lateral = wall(v) - np.float32(0.03) - side
    medial = np.abs(u - shift) - (0.10 + 0.07 * step(-0.55 - v, 0.25) * 0.6)
    floor = diaphragm(u, study) - v
    cover = step(lateral, 0.025) * step(medial, 0.05) * step(floor, 0.02)
    depth = np.sqrt(np.clip(lateral * 1.6, 0, 1)) * np.float32(0.45) + np.float32(0.55)
    depth *= np.float32(0.72) + np.float32(0.28) * step(v + 0.55, 0.5)
    return cover, cover * depth
