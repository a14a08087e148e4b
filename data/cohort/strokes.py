"""What is drawn with strokes: ribs, clavicles, vessels, devices, markers.

Every function draws on an 8-bit canvas (h, w) of the whole film, in place; 255 is the
full amplitude of that canvas, which the composition scales.
"""

import cv2
import numpy as np

from data.cohort import anatomy

_SHIFT = 4  # fractional bits of cv2's point coordinates


def polylines(canvas, pose, lines, value: int, width: float) -> None:
    """Strokes canonical `lines` (k, n, 2) alike; `width` in canonical units."""
    xy = np.asarray(lines) @ pose.inverse[:, :2].T + pose.inverse[:, 2]
    xy = np.round(xy * (1 << _SHIFT)).astype(np.int32)
    thick = max(1, int(round(width * pose.scale)))
    cv2.polylines(canvas, list(xy), False, int(value), thick, cv2.LINE_AA, _SHIFT)


def polyline(canvas, pose, points, value: int, width: float) -> None:
    """Strokes canonical `points` (n, 2)."""
    polylines(canvas, pose, points[None], value, width)


_BOTH = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])  # a line and its mirror image


def ribs(back, front, pose, study) -> None:
    """Ten pairs of ribs: posterior arcs on `back`, anterior arcs on `front`.

    A rib leaves the spine, falls gently to the chest wall, turns, and comes forward
    and down more steeply; its two cortices are brighter than its middle.
    """
    body = study.patient.anatomy
    gap = 0.195 * (1 + 0.05 * body[10]) * (1 + 0.05 * study.patient.inflation)
    drop = 0.16 + 0.03 * body[11] - 0.03 * study.ap
    s = np.linspace(0, 1, 14)
    k = np.arange(10)[:, None]
    v0 = -0.98 + gap * k
    reach = anatomy.wall(np.minimum(v0 + drop + 0.1, 0.6)) * np.where(k, 1.0, 0.86)
    u_back = 0.07 + (reach - 0.05) * np.sin(s * np.pi / 2)
    v_back = v0 - 0.05 * np.sin(np.pi * s) + drop * s**2.2 * (0.55 + 0.09 * k)
    u_front = reach - (reach - 0.34) * s**1.5
    v_front = v_back[:, -1:] + (0.34 + 0.02 * k) * s**0.8
    width = 0.085 * (1 + 0.06 * body[12])
    for canvas, lines in (
        (back, np.stack([u_back, v_back], 2)),
        (front, np.stack([u_front, v_front], 2)[:7]),
    ):
        lines = np.concatenate(lines * _BOTH[:, None])
        polylines(canvas, pose, lines, 225, width)
        polylines(canvas, pose, lines, 130, width * 0.62)


def shoulder_girdle(canvas, pose, study) -> None:
    """Clavicles, and the medial border and spine of the scapulae."""
    body = study.patient.anatomy
    lift = -0.02 + 0.05 * study.ap + 0.02 * body[13]
    s = np.linspace(0, 1, 12)
    outside = 0.06 if study.ap else 0.17
    for side in (-1.0, 1.0):
        wave = 0.035 * np.sin(2 * np.pi * s)
        u = 0.13 + 1.02 * s + pose.turn * side
        clavicle = np.stack([side * u, -0.80 - lift - 0.17 * s + wave], 1)
        polyline(canvas, pose, clavicle, 235, 0.085)
        polyline(canvas, pose, clavicle, 150, 0.05)
        lateral = 0.83 + outside + 0.03 * body[14]
        blade = np.stack(
            [side * (lateral - 0.22 * s + 0.3 * s**2), -0.85 + 0.85 * s], 1
        )
        polyline(canvas, pose, blade, 105, 0.035)
        spine = np.stack([side * (lateral + 0.5 * s), -0.72 - 0.2 * s], 1)
        polyline(canvas, pose, spine, 120, 0.09)
        humerus = np.stack([side * (lateral + 0.42 + 0.12 * s), -0.85 + 1.2 * s], 1)
        polyline(canvas, pose, humerus, 120, 0.17)


def vessels(canvas, pose, study, rng: np.random.Generator) -> None:
    """Two branching trees of pulmonary vessels, from the hila outwards.

    Upright, vessels are wider below than above; fluid overload evens this out and
    then reverses it (redistribution) and fattens the central vessels.
    """
    fluid = np.clip(study.fluid, -1.5, 3.0)
    n = 18
    s = np.linspace(0, 1, 7)[:, None]
    groups = []
    for side in (-1.0, 1.0):
        root = np.array([side * 0.17 + pose.turn * 0.7, -0.10 - 0.04 * (side > 0)])
        aim = np.linspace(-1.45, 1.55, n) + 0.16 * rng.standard_normal(n)
        length = (0.70 - 0.12 * np.abs(aim)) * rng.uniform(0.55, 1.2, n)
        bend = rng.standard_normal((n, 3))
        angle = aim[:, None, None] + 0.35 * bend[:, :1, None] * s
        heading = np.concatenate([side * np.cos(angle), np.sin(angle)], 2)
        start = root + 0.10 * rng.random((n, 1, 1)) * heading[:, :1]
        main = start + length[:, None, None] * s * heading
        twigs = []
        for j, sign in ((2, -1.0), (3, 1.0), (4, -1.0), (5, 1.0)):
            fork = aim + sign * (0.5 + 0.25 * bend[:, 1])
            way = np.stack([side * np.cos(fork), np.sin(fork)], 1)
            reach = 0.34 * length * np.exp(0.3 * bend[:, 2])
            way = reach[:, None, None] * s[::2] * way[:, None]
            twigs.append(main[:, j : j + 1] + way)
        groups.append((aim < 0, main, np.stack(twigs, 1)))
    upper, main, twigs = (np.concatenate(part) for part in zip(*groups, strict=True))
    value = np.clip(165 + 22 * fluid, 90, 250)
    for above in (False, True):
        calibre = max(0.018, 0.034 + (0.009 if above else 0.003) * fluid)
        calibre -= 0.008 * above
        here = upper == above
        small = np.concatenate(twigs[here])
        polylines(canvas, pose, small, value * 0.42, calibre * 0.4)
        polylines(canvas, pose, main[here, 2:], value * 0.6, calibre * 0.55)
        polylines(canvas, pose, main[here, :4], value, calibre)


def devices(canvas, pose, study, rng: np.random.Generator) -> None:
    """Electrodes and leads, a central line, a pacemaker: bright and sharp."""
    s = np.linspace(0, 1, 14)
    if study.patient.pacemaker:
        at = np.array([0.70, -0.62]) + 0.04 * rng.standard_normal(2)
        box = at + 0.09 * np.array([[-1, -0.6], [1, -0.6], [0.9, 0.8], [-0.9, 0.8]])
        xy = box @ pose.inverse[:, :2].T + pose.inverse[:, 2]
        cv2.fillPoly(canvas, [np.round(xy).astype(np.int32)], 255, cv2.LINE_AA)
        lead = np.stack([0.62 - 0.62 * s + 0.5 * s**4, -0.6 + 1.15 * s**1.6], 1)
        polyline(canvas, pose, lead, 200, 0.016)
    if study.device:
        line = np.stack([-0.30 + 0.20 * s**0.5, -0.95 + 0.95 * s], 1)
        polyline(canvas, pose, line, 165, 0.02)
    if study.ap and rng.random() < 0.45:
        for _ in range(3):
            a, b = rng.uniform([-0.9, -0.7], [0.9, 0.9], (2, 2))
            sag = np.stack([np.zeros(14), 0.25 * np.sin(np.pi * s)], 1)
            wire = a + (b - a) * s[:, None] + sag
            polyline(canvas, pose, wire, 110, 0.01)
            spot = a @ pose.inverse[:, :2].T + pose.inverse[:, 2]
            cv2.circle(canvas, np.round(spot).astype(int).tolist(), 4, 150, -1)


def marker(canvas, study, rng: np.random.Generator) -> None:
    """The technician's lead letter in an upper corner; "AP" film says so."""
    h, w = canvas.shape
    left = rng.random() < 0.7
    x = int(w * (rng.uniform(0.86, 0.93) if left else rng.uniform(0.04, 0.10)))
    y = int(h * rng.uniform(0.08, 0.22))
    size = 0.5 * min(h, w) / 320 * rng.uniform(0.8, 1.2)
    text = "L" if left else "R"
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(canvas, text, (x, y), font, size, 255, 2, cv2.LINE_AA)
    if study.ap and rng.random() < 0.5:
        below = (x - 6, y + int(16 * size + 8))
        cv2.putText(canvas, "AP", below, font, size * 0.6, 235, 1, cv2.LINE_AA)
