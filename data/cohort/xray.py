"""A frontal chest X-ray of one study: attenuation along the beam, then the film.

The film is T(x, y) = sum of attenuations (soft tissue, air, heart, bone, fluid,
opacities), blurred, with quantum noise, passed through a display curve. README,
"X-ray", lists the terms.
"""

import cv2
import numpy as np

from data.cohort import anatomy, depth, film, strokes
from data.cohort.anatomy import bump, step

cv2.setNumThreads(1)

SHORT_SIDE = film.SHORT_SIDE
_GRID = 2  # smooth structure is evaluated at every second pixel
_JPEG_QUALITY = 90


def render(study, short: int = SHORT_SIDE, *, mask: bool = False, again: bool = False):
    """Renders the film of a study.

    Args:
        study: a `latents.Study`.
        short: the shorter side in pixels; the longer is 1 to 1.22 times that.
        mask: also return the lung mask.
        again: a second film of the study, with a pose and noise of its own.

    Returns:
        (h, w) uint8 grey film, or (film, mask) with mask (h, w) uint8 of 0 and 255:
        the lung fields clear of heart, mediastinum and diaphragm; consolidated and
        effused lung belongs to the lung.
    """
    rng = study.key.rng("xray_again" if again else "xray")
    pose = anatomy.draw_pose(study, rng, short)
    thickness, air, cover = _soft_tissue(study, pose, rng)
    h, w = pose.size
    thickness, air, cover = (
        cv2.resize(a, (w, h), interpolation=cv2.INTER_LINEAR)
        for a in (thickness, air, cover)
    )
    out = _display(thickness, air, study, pose, rng)
    if not mask:
        return out
    return out, ((cover > 0.5) * np.uint8(255))


def encode(grey: np.ndarray) -> bytes:
    """JPEG bytes of an (h, w) uint8 film."""
    ok, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise RuntimeError("cv2 could not encode the film")
    return data.tobytes()


def heart_share(study, short: int = SHORT_SIDE) -> float:
    """Heart area over lung-and-heart area: what a reader would measure. For tests."""
    rng = study.key.rng("xray")
    pose = anatomy.draw_pose(study, rng, short)
    u, v = anatomy.grid(pose, _GRID)
    radius, centre = anatomy.heart_radius(study, rng)
    inside = anatomy.heart(u - pose.turn, v, radius, centre) > 0.3
    lung = anatomy.lungs(u, v, study, pose.turn)[0] > 0.5
    return float(inside.sum() / (inside | lung).sum())


def heart_mask(study, short: int = SHORT_SIDE) -> np.ndarray:
    """The heart's shadow on the film of `render`: (h, w) uint8 of 0 and 255."""
    rng = study.key.rng("xray")
    pose = anatomy.draw_pose(study, rng, short)
    u, v = anatomy.grid(pose, _GRID)
    radius, centre = anatomy.heart_radius(study, rng)
    depth = anatomy.heart(u - np.float32(pose.turn), v, radius, centre)
    h, w = pose.size
    depth = cv2.resize(depth, (w, h), interpolation=cv2.INTER_LINEAR)
    return (depth > 0.3) * np.uint8(255)


def _soft_tissue(study, pose, rng):
    """Smooth attenuation, depth of air and lung coverage at half resolution."""
    u, v = anatomy.grid(pose, _GRID)
    who, body = study.patient, study.patient.anatomy
    radius, centre = anatomy.heart_radius(study, rng)
    um = u - np.float32(pose.turn)
    heart = anatomy.heart(um, v, radius, centre)
    cover, air = anatomy.lungs(u, v, study, pose.turn)
    trunk = _trunk(u, v, study)
    unit = film.unit(pose)
    spill = _fluid(u, v, study, cover, rng, unit)
    focal = _focal(u, v, study, rng, unit)
    pedicle = anatomy.pedicle(um, v, study)
    solid = np.maximum(heart, np.float32(0.85) * pedicle)
    clear = 1 - solid
    air = air * clear * (1 - spill) * (1 - focal)
    air *= np.float32(1 + 0.07 * np.clip(who.inflation, -1.5, 2))
    belly = step(v - anatomy.diaphragm(u, study), 0.03)
    spine = np.exp(-0.5 * (u * np.float32(1 / 0.085)) ** 2)
    disc = 0.8 + 0.2 * np.cos(v * np.float32(2 * np.pi / 0.17) + np.float32(body[16]))
    trachea = step(0.045 - np.abs(um + 0.01), 0.03) * step(-0.33 - v, 0.06)
    thick = (
        np.float32(0.80 + 0.05 * who.habitus)
        + 0.08 * heart
        + 0.03 * pedicle
        + 0.17 * belly
    )
    thick = thick * trunk + np.float32(0.13) * spine * disc * trunk * (1 - 0.6 * belly)
    thick -= np.float32(0.09) * trachea
    gas = bump(u, v, 0.42 + 0.06 * body[17], 0.98, 0.10, 0.06) * max(0.0, body[18])
    thick -= np.float32(0.16) * gas * belly
    if not who.male:
        for side in (-1, 1):
            breast = bump(u, v, side * 0.55, 0.50 + 0.03 * body[19], 0.30, 0.20)
            thick += np.float32(0.07 + 0.025 * who.habitus) * breast
    if study.depth and study.depth.retrocardiac:
        thick += _behind_heart(u, v, study, rng, unit)
    return thick - np.float32(0.56) * air, air, cover * (heart < 0.3) * clear


def _behind_heart(u, v, study, rng, unit) -> np.ndarray:
    """What a solid left lower lobe adds to the heart's shadow: little, and ragged."""
    cloud = study.depth.behind
    ragged = 1 + 0.45 * film.noise_field(u.shape, rng, 7, 7, unit)
    shape = bump(u, v, cloud.u, cloud.v, cloud.size, cloud.size) * ragged
    return np.float32(0.045 * cloud.density) * step(shape - 0.42, 0.32)


def _trunk(u, v, study):
    """Body outline: chest wall, shoulders, arms and neck; 1 inside, 0 in the beam."""
    fat = 0.13 + 0.05 * min(max(study.patient.habitus, -1.5), 3)
    side = np.abs(u)
    flank = step(anatomy.wall(v + 0.25) + np.float32(fat) - side, 0.06)
    shoulder = step(v + 1.22 - 0.42 * np.maximum(side - 0.25, 0), 0.06)
    shoulder *= step(1.62 + fat - side, 0.10) * step(0.25 - v, 0.55)
    neck = step(0.33 + 0.4 * fat - side, 0.07) * step(-0.8 - v, 0.2)
    arms = 0.62 * step(side - 1.22 - fat, 0.06) * step(1.72 + fat - side, 0.08)
    arms *= step(v + 0.95, 0.2)
    outline = np.maximum(np.maximum(flank, shoulder), np.maximum(neck, arms))
    return outline * (np.float32(1.06) - np.float32(0.14) * side * side * (side < 1.2))


def _fluid(u, v, study, cover, rng, unit) -> np.ndarray:
    """Share of air replaced by pleural effusion and oedema, (h, w) in [0, 1]."""
    spill = np.zeros_like(u)
    floor = anatomy.diaphragm(np.zeros(1, np.float32), study)[0]
    for side, height in zip((-1, 1), study.effusion, strict=True):
        if height > 0:
            lateral = np.maximum(side * u, 0)
            level = floor + 0.12 - 1.5 * height - 0.35 * height * lateral**3
            layer = step(v - level, 0.07 + 0.1 * study.ap) * step(side * u, 0.02)
            spill = np.maximum(spill, layer * (0.92 - 0.25 * study.ap))
    wet = max(study.fluid - 0.2, 0.0)
    if wet:
        hilar = bump(np.abs(u), v, 0.34, 0.05, 0.26, 0.34)
        patchy = np.clip(1 + 0.5 * film.noise_field(u.shape, rng, 9, 9, unit), 0, 2)
        haze = 0.09 * wet * hilar * patchy
        reticular = film.noise_field(u.shape, rng, 2, 2, unit) * (
            0.4 + step(v - 0.1, 0.5)
        )
        kerley = film.noise_field(u.shape, rng, 2, 10, unit)
        kerley *= bump(np.abs(u), v, 0.85, 0.52, 0.10, 0.22)
        haze += 0.055 * wet * np.maximum(reticular, 0)
        haze += 0.10 * wet * np.maximum(kerley, 0) + 0.015 * wet
        spill = 1 - (1 - spill) * (1 - np.clip(haze, 0, 0.75))
    return spill


def _focal(u, v, study, rng, unit) -> np.ndarray:
    """Share of air replaced by consolidation and nodules, (h, w) in [0, 1]."""
    focal = np.zeros_like(u)
    if study.consolidation:
        known = study.depth.clouds if study.depth else ()
        count = len(known) or 1 + int(rng.random() < 0.35)
        for k in range(count):
            side = 1 if rng.random() < 0.5 else -1
            u0, v0 = side * rng.uniform(0.38, 0.72), rng.uniform(-0.45, 0.5)
            size = 0.13 + 0.09 * study.consolidation * rng.random()
            ragged = 1 + 0.45 * film.noise_field(u.shape, rng, 7, 7, unit)
            density = rng.uniform(0.55, 0.85)
            if known:
                u0, v0, size, density = known[k].frontal
            cloud = bump(u, v, u0, v0, size * 1.1, size) * ragged
            focal = np.maximum(focal, density * step(cloud - 0.42, 0.32))
    for nodule in depth.nodules(study.patient):
        ball = step(1 - np.hypot(u - nodule.u, v - nodule.v) / nodule.size, 0.25)
        focal = np.maximum(focal, 0.62 * ball)
    return focal


def _display(thick, air, study, pose, rng) -> np.ndarray:
    """Adds bones, vessels, devices and noise, then reads the plate to 8 bits."""
    layers = np.zeros((5, *pose.size), np.uint8)
    back, front, girdle, tree, metal = layers
    strokes.ribs(back, front, pose, study)
    strokes.shoulder_girdle(girdle, pose, study)
    strokes.vessels(tree, pose, study, rng)
    strokes.devices(metal, pose, study, rng)
    bone = cv2.addWeighted(back, 0.55, front, 0.30, 0)
    bone = cv2.addWeighted(bone, 1.0, girdle, 0.60, 0)
    bone = cv2.GaussianBlur(bone, (0, 0), 1.1 * pose.scale / 120)
    tree = cv2.GaussianBlur(tree, (0, 0), 1.0 * pose.scale / 120)
    kvp = np.exp(0.25 * rng.standard_normal())  # hard beams show less bone
    # Against the heart and the belly bone adds little to what is already white.
    seen = np.float32(0.30 / 255 * kvp) * np.clip(0.40 + 0.8 * air, 0, 1)
    thick += bone * seen * (thick > 0.12)
    thick += tree * np.float32(0.30 / 255) * np.clip(air, 0, 1)
    thick += metal * np.float32(0.38 / 255)
    habitus = study.patient.habitus
    # Scatter: a wide blur mixed in, more in large patients and without a grid (AP).
    scatter = np.clip(0.13 + 0.05 * habitus + 0.08 * study.ap, 0.03, 0.4)
    unit = film.unit(pose)
    out = film.develop(thick, rng, habitus=habitus, scatter=scatter, unit=unit)
    letters = np.zeros(pose.size, np.uint8)
    strokes.marker(letters, study, rng)
    return np.maximum(out, letters)
