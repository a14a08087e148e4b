"""What is drawn with strokes from the side: ribs, sternum, shoulder blades, vessels.

Every function draws on an 8-bit canvas (h, w) of the whole film, in place, like those
of `strokes`; points are (w, v) of `profile`.
"""

import cv2
import numpy as np

from data.cohort import profile
from data.cohort.strokes import polyline, polylines


def ribs(canvas, pose, study) -> None:
    """Ten pairs of ribs, right and left a little apart, from the back to the front."""
    body = study.patient.anatomy
    gap = 0.195 * (1 + 0.05 * body[10]) * (1 + 0.05 * study.patient.inflation)
    s = np.linspace(0, 1, 16)
    k = np.arange(10)[:, None]
    v0 = -0.95 + gap * k
    width = 0.055 * (1 + 0.06 * body[12])
    for side in (-1.0, 1.0):
        start = v0 + 0.02 * side + 0.4 * pose.turn * side
        rear = profile.back(start, study) - 0.03 + 0.05 * side + 0.5 * pose.turn * side
        # Down the back first, then forwards; the lower ribs end before the front.
        reach = np.minimum(0.42 + 0.10 * k, 1.0)
        v = start + 0.10 * np.sin(s * np.pi / 2) + (0.30 + 0.035 * k) * s**1.3
        tip = profile.front(v[:, -1:]) * reach + rear * (1 - reach)
        w = rear + 0.04 * np.sin(np.pi * s) - (rear - tip) * s**1.7
        lines = np.stack([w, v], 2)
        polylines(canvas, pose, lines, 150, width * 0.9)
        polylines(canvas, pose, lines, 95, width * 0.5)
        polylines(canvas, pose, lines[:, :7], 205, width)
        polylines(canvas, pose, lines[:, :7], 110, width * 0.55)


def girdle(canvas, pose, study) -> None:
    """Sternum, and the edges of both shoulder blades with the arms above them."""
    v = np.linspace(-0.74, 0.38, 14)
    sternum = np.stack([profile.front(v) - 0.045, v], 1)
    polyline(canvas, pose, sternum, 190, 0.075)
    polyline(canvas, pose, sternum + [0.035, 0.0], 235, 0.014)
    polyline(canvas, pose, sternum - [0.040, 0.0], 220, 0.014)
    for at in (-0.44, -0.12, 0.12):  # between its pieces
        w = float(profile.front(np.array(at)))
        gap = np.array([[w - 0.09, at + 0.02], [w, at]])
        polyline(canvas, pose, gap, 60, 0.02)
    s = np.linspace(0, 1, 12)
    body = study.patient.anatomy
    for side in (-1.0, 1.0):
        w0 = 0.66 + 0.10 * side + 0.04 * body[14] + 0.6 * pose.turn * side
        edge = np.stack([w0 + 0.10 * s**2 - 0.04 * s, -0.92 + 0.80 * s], 1)
        polyline(canvas, pose, edge, 150, 0.022)
        other = np.stack([w0 - 0.26 + 0.34 * s**1.2, -0.90 + 0.80 * s], 1)
        polyline(canvas, pose, other, 90, 0.02)
        arm = np.stack([w0 - 0.34 - 0.85 * s, -0.90 - 0.80 * s + 0.04 * side], 1)
        polyline(canvas, pose, arm, 110, 0.12)


def vessels(canvas, pose, study, rng: np.random.Generator) -> None:
    """Vessels of both lungs from the hilum outwards, and the fissures."""
    fluid = float(np.clip(study.fluid, -1.5, 3.0))
    n = 30
    s = np.linspace(0, 1, 7)[:, None]
    aim = np.linspace(-np.pi, np.pi, n, endpoint=False) + 0.12 * rng.standard_normal(n)
    bend = rng.standard_normal((n, 3))
    length = (0.56 + 0.16 * np.sin(aim)) * rng.uniform(0.4, 1.2, n)
    angle = aim[:, None, None] + 0.35 * bend[:, :1, None] * s
    heading = np.concatenate([np.cos(angle) / profile.DEEP, np.sin(angle)], 2)
    root = rng.uniform([-0.06, -0.16], [0.12, 0.06], (n, 1, 2))
    start = root + 0.12 * rng.random((n, 1, 1)) * heading[:, :1]
    main = start + length[:, None, None] * s * heading
    value = np.clip(165 + 22 * fluid, 90, 250)
    calibre = max(0.014, 0.025 + 0.004 * fluid)
    twigs = []
    for j, sign in ((2, -1.0), (3, 1.0), (4, -1.0), (5, 1.0)):
        fork = aim + sign * (0.5 + 0.25 * bend[:, 1])
        way = np.stack([np.cos(fork) / profile.DEEP, np.sin(fork)], 1)
        reach = 0.34 * length * np.exp(0.3 * bend[:, 2])
        twigs.append(main[:, j : j + 1] + reach[:, None, None] * s[::2] * way[:, None])
    polylines(canvas, pose, np.concatenate(twigs), value * 0.42, calibre * 0.4)
    polylines(canvas, pose, main[:, 2:], value * 0.6, calibre * 0.55)
    polylines(canvas, pose, main[:, :3], value * 0.85, calibre)
    line = np.array([[0.80, -0.50], [0.30, -0.10], [-0.10, 0.28], [-0.52, 0.66]])
    wet = 60 + 45 * max(fluid, 0.0)
    polyline(canvas, pose, line, min(wet, 200), 0.012)
    polyline(canvas, pose, np.array([[0.02, -0.02], [-0.82, 0.04]]), wet * 0.8, 0.012)


def devices(canvas, pose, study) -> None:
    """A pacemaker's box with its lead into the right ventricle, and a central line."""
    s = np.linspace(0, 1, 14)
    if study.patient.pacemaker:
        box = np.array([-0.66, -0.62]) + 0.10 * np.array(
            [[-0.5, -1.0], [0.4, -1.0], [0.5, 0.9], [-0.4, 0.9]]
        )
        xy = box @ pose.inverse[:, :2].T + pose.inverse[:, 2]
        cv2.fillPoly(canvas, [np.round(xy).astype(np.int32)], 255, cv2.LINE_AA)
        lead = np.stack(
            [-0.62 + 0.62 * np.sin(np.pi * s) ** 0.8, -0.55 + 1.1 * s**1.3], 1
        )
        polyline(canvas, pose, lead, 200, 0.016)
    if study.device:
        line = np.stack([-0.24 + 0.16 * np.sin(2 * s), -1.0 + 1.0 * s], 1)
        polyline(canvas, pose, line, 150, 0.016)


def marker(canvas, mirrored: bool, rng: np.random.Generator) -> None:
    """The technician's lead letter: the side that stands at the plate."""
    h, w = canvas.shape
    ahead = rng.uniform(0.04, 0.12)
    x = int(w * (0.96 - ahead if mirrored else ahead))
    y = int(h * rng.uniform(0.08, 0.30))
    size = 0.5 * min(h, w) / 320 * rng.uniform(0.8, 1.2)
    text = "R" if mirrored else "L"
    thick = max(1, round(2 * min(h, w) / 320))
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(canvas, text, (x, y), font, size, 255, thick, cv2.LINE_AA)
