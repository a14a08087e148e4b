"""A lateral chest X-ray of one study: the frontal's patient, seen from the side.

The film is a sum of attenuations like the frontal's (`xray`) in coordinates from front
to back (`profile`). README, "From the side", lists the terms.
"""

import cv2
import numpy as np

from data.cohort import depth, film, lateral_strokes, profile
from data.cohort.anatomy import bump, grid, step

cv2.setNumThreads(1)

_GRID = 2  # smooth structure is evaluated at every second pixel


def view(study) -> str:
    """Which side stands at the plate: "LL" mostly, "RL" in a twelfth of studies."""
    return "RL" if study.key.rng("lateral").random() < 1 / 12 else "LL"


def render(study, short: int = film.SHORT_SIDE) -> np.ndarray:
    """Renders the lateral film of a study.

    Args:
        study: a study from `depth.study`.
        short: the shorter side in pixels; the longer is 1 to 1.25 times that.

    Returns:
        (h, w) uint8 grey film; the patient looks left, or right where `view` is "RL".
    """
    rng = study.key.rng("lateral")
    mirrored = rng.random() < 1 / 12  # as `view`
    pose = profile.draw_pose(study, rng, short, mirrored)
    thick, air = _soft_tissue(study, pose, rng)
    h, w = pose.size
    thick, air = (
        cv2.resize(a, (w, h), interpolation=cv2.INTER_LINEAR) for a in (thick, air)
    )
    _bones(thick, air, study, pose, rng)
    habitus = study.patient.habitus
    scatter = float(np.clip(0.16 + 0.05 * habitus, 0.04, 0.4))
    unit = film.unit(pose)
    out = film.develop(thick, rng, habitus=habitus, scatter=scatter, unit=unit)
    letters = np.zeros(pose.size, np.uint8)
    lateral_strokes.marker(letters, mirrored, rng)
    return np.maximum(out, letters)


def _soft_tissue(study, pose, rng):
    """Smooth attenuation and depth of air at half resolution."""
    w, v = grid(pose, _GRID)
    unit = film.unit(pose)
    who, body = study.patient, study.patient.anatomy
    radius, centre = profile.heart_radius(study, rng)
    solid = profile.heart(w, v, radius, centre)
    aorta = profile.arch(w, v, study)
    behind = profile.back(v, study)
    chest, sides, belly = profile.lungs(w, v, behind, study)
    trunk = _trunk(w, v, study)
    aired = _aired(w, v, study, sides, rng, unit)
    air = (
        chest * aired * (1 - np.float32(0.60) * solid) * (1 - np.float32(0.22) * aorta)
    )
    air *= np.float32(1 + 0.07 * np.clip(who.inflation, -1.5, 2))
    hilum = bump(w, v, 0.04, -0.06, 0.15, 0.13)
    air *= 1 - np.float32(0.26 + 0.05 * np.clip(study.fluid, -1, 2.5)) * hilum
    bones = profile.vertebrae(w, v, behind, study)
    thick = np.float32(0.84 + 0.05 * who.habitus) + 0.07 * solid + 0.11 * belly
    # Shoulder blades and their muscles cover the upper chest behind.
    thick += np.float32(0.17) * bump(w, v, 0.45, -0.92, 0.62, 0.34)
    thick = thick * trunk + np.float32(0.125) * bones * trunk * (1 - 0.55 * belly)
    thick -= np.float32(0.10) * _trachea(w, v, pose)
    gas = bump(w, v, 0.10 + 0.08 * body[17], 0.90, 0.20, 0.09) * max(0.1, body[18])
    gas += bump(w, v, -0.55 + 0.1 * body[25], 1.02, 0.16, 0.10) * max(0.0, body[26])
    thick -= np.float32(0.13) * np.minimum(gas, 1.2) * belly
    if not who.male:
        breast = bump(w, v, -1.0, 0.46 + 0.03 * body[19], 0.26, 0.24)
        thick += np.float32(0.08 + 0.03 * max(who.habitus, -1.5)) * breast * trunk
    return thick - np.float32(0.58) * air, air


def _trunk(w, v, study) -> np.ndarray:
    """Body outline: chest wall, breasts, belly, shoulders and raised arms, neck."""
    who = study.patient
    fat = 0.04 * min(max(who.habitus, -1.5), 3)
    ahead, rear = profile.skin(v)
    ahead = ahead - np.float32(fat + 0.05 * max(who.habitus, 0)) * step(v - 0.8, 0.5)
    if not who.male:
        hill = np.exp(-0.5 * ((v - 0.48 - 0.03 * who.anatomy[19]) / 0.20) ** 2)
        ahead = ahead - np.float32(0.19 + 0.06 * max(who.habitus, -1.5)) * hill
    rear = rear + np.float32(0.8 * fat) + profile.bulge(v, study)
    body = step(w - ahead, 0.08) * step(rear - w, 0.10)
    # Raised arms and the chin: thinner than the trunk.
    body *= 1 - np.float32(0.22) * step(-1.12 - v, 0.22)
    chin = 0.55 * step(0.30 - np.hypot(w + 0.55, v + 1.50), 0.16)
    outline = np.maximum(body, chin * (who.anatomy[24] > 0))
    return outline * (np.float32(1.05) - np.float32(0.16) * np.clip(w * w, 0, 1.4))


def _trachea(w, v, pose) -> np.ndarray:
    """The windpipe: a dark oblique stripe that ends in the left bronchus' ring."""
    line = w - (0.10 + 0.14 * (v + 0.2))
    stripe = step(0.062 - np.abs(line), 0.04) * step(-0.18 - v, 0.06)
    ring = bump(w, v, 0.09, -0.10, 0.045, 0.035)
    return stripe * step(v + 1.3, 0.2) + 0.8 * ring


def _aired(w, v, study, sides, rng, unit) -> np.ndarray:
    """Share of the lungs' depth that holds air: both sides, less what is solid."""
    lung = [side.copy() for side in sides]
    for side in (profile.RIGHT, profile.LEFT):
        level = profile.fluid_level(w, study, side)
        lung[side] *= 1 - np.float32(0.94) * step(v - level, 0.05)
    for cloud in study.depth.clouds:
        _solidify(lung, w, v, cloud, cloud.density, rng, unit)
    if study.depth.retrocardiac:
        cloud = study.depth.behind
        _solidify(lung, w, v, cloud, cloud.density, rng, unit)
    for nodule in depth.nodules(study.patient):
        away = np.hypot((w - nodule.w) * np.float32(profile.DEEP), v - nodule.v)
        side = profile.LEFT if nodule.u > 0 else profile.RIGHT
        lung[side] *= 1 - 0.62 * step(1 - away / nodule.size, 0.25)
    aired = np.float32(0.5) * (lung[0] + lung[1])
    wet = max(study.fluid - 0.2, 0.0)
    if wet:
        hilar = bump(w, v, 0.08, 0.0, 0.42, 0.36)
        patchy = np.clip(1 + 0.5 * film.noise_field(w.shape, rng, 9, 9, unit), 0, 2)
        haze = 0.09 * wet * hilar * patchy + 0.015 * wet
        reticular = film.noise_field(w.shape, rng, 2, 2, unit)
        haze += 0.055 * wet * np.maximum(reticular, 0) * (0.4 + step(v - 0.1, 0.5))
        aired *= 1 - np.clip(haze, 0, 0.75)
    return aired


def _solidify(lung, w, v, cloud, density, rng, unit) -> None:
    """Takes a ragged cloud out of the air of its side, in place."""
    ragged = 1 + 0.45 * film.noise_field(w.shape, rng, 7, 7, unit)
    across = cloud.size * 1.1 / profile.DEEP
    shape = bump(w, v, cloud.w, cloud.v, across, cloud.size * 1.1) * ragged
    side = profile.LEFT if cloud.u > 0 else profile.RIGHT
    lung[side] *= 1 - np.float32(density) * step(shape - 0.42, 0.32)


def _bones(thick, air, study, pose, rng) -> None:
    """Adds ribs, sternum, shoulder blades, vessels and devices, in place."""
    ribs, girdle, tree, metal = np.zeros((4, *pose.size), np.uint8)
    lateral_strokes.ribs(ribs, pose, study)
    lateral_strokes.girdle(girdle, pose, study)
    lateral_strokes.vessels(tree, pose, study, rng)
    lateral_strokes.devices(metal, pose, study)
    bone = cv2.addWeighted(ribs, 0.42, girdle, 0.60, 0)
    bone = cv2.GaussianBlur(bone, (0, 0), 1.1 * pose.scale / 120)
    tree = cv2.GaussianBlur(tree, (0, 0), 1.0 * pose.scale / 120)
    kvp = np.exp(0.25 * rng.standard_normal())
    seen = np.float32(0.26 / 255 * kvp) * np.clip(0.45 + 0.7 * air, 0, 1)
    thick += bone * seen * (thick > 0.12)
    thick += tree * np.float32(0.24 / 255) * np.clip(air, 0, 1)
    if study.patient.pacemaker or study.device:
        thick += metal * np.float32(0.38 / 255)
