"""What a second view adds: where findings lie from front to back.

Folders with laterals draw these from random numbers of their own, so that no value of
the other folders changes. Coordinates: u and v as in `anatomy`, w from the front (-1)
to the back (1) of the chest as in `profile`.
"""

import dataclasses
import functools
import math

import numpy as np

from data.cohort import latents

LABELS = latents.LABELS + ("retrocardiac_opacity", "effusion")
_SEEN_FROM_FRONT = 0.10  # pleural fluid below this only fills the posterior angle


@dataclasses.dataclass(frozen=True)
class Place:
    """A focal opacity: its centre, its size and the share of air it replaces."""

    u: float
    v: float
    w: float
    size: float
    density: float

    @property
    def frontal(self) -> tuple[float, float, float, float]:
        """What the frontal needs: u, v, size, density."""
        return self.u, self.v, self.size, self.density


@dataclasses.dataclass(frozen=True)
class Depth:
    """Causes that a lateral shows and a frontal hardly.

    `retrocardiac` is the extent of an opacity of the left lower lobe behind the heart
    (0 = none, else 0.5 to 1.5), `behind` its place. `pleural` is the fluid in the
    patient's right and left pleural space; `Study.effusion` keeps what of it reaches
    the lateral angle. `clouds` are the study's consolidations.
    """

    retrocardiac: float
    behind: Place
    pleural: tuple[float, float]
    clouds: tuple[Place, ...]


@functools.lru_cache(maxsize=256)
def nodules(patient: latents.Patient) -> tuple[Place, ...]:
    """The patient's nodules: the same places and sizes at every visit."""
    fixed, deep = (
        np.random.Generator(np.random.SFC64(abs(int(patient.anatomy[i] * 1e6))))
        for i in (20, 21)
    )
    out = []
    for _ in range(patient.nodules):
        side = 1 if fixed.random() < 0.5 else -1
        u, v = side * fixed.uniform(0.34, 0.78), fixed.uniform(-0.6, 0.45)
        size = fixed.uniform(0.045, 0.085)
        out.append(Place(u, v, deep.uniform(-0.45, 0.65), size, 0.62))
    return tuple(out)


def study(key: latents.Key) -> latents.Study:
    """Draws the study of `key` with its depth and its nine labels.

    README, "From the side", states the equations.
    """
    base = latents.study(key)
    rng = key.rng("depth")
    e = rng.standard_normal(8).tolist()
    u = rng.random(24).tolist()
    sick, wet = base.inflammation, base.fluid
    chance = -2.0 + 0.9 * sick + 0.25 * wet - 0.3 * base.inspiration + 0.3 * e[0]
    extent = 0.5 + u[1] if u[0] < _sigmoid(chance) else 0.0
    behind = Place(
        u=0.14 + 0.16 * u[2],
        v=0.34 + 0.20 * u[3],
        w=0.40 + 0.26 * u[4],
        size=0.16 + 0.08 * extent * u[5],
        density=min(0.60 + 0.25 * extent + 0.08 * e[1], 1.0),
    )
    pleural = []
    for side in range(2):
        fluid = max(base.effusion[side] - 0.03, 0.0)
        little = _sigmoid(-3.1 + 0.35 * wet + 0.35 * sick)
        if u[6 + side] < little:
            fluid = max(fluid, 0.04 + 0.06 * u[8 + side])
        pleural.append(float(fluid))
    labels = base.labels | {
        "retrocardiac_opacity": int(extent > 0),
        "effusion": int(max(pleural) + 0.004 * e[2] > 0.025),
    }
    return dataclasses.replace(
        base,
        effusion=tuple(1.2 * max(f - _SEEN_FROM_FRONT, 0.0) for f in pleural),
        labels=labels,
        depth=Depth(float(extent), behind, tuple(pleural), _clouds(base, u[10:])),
    )


def _clouds(base: latents.Study, u) -> tuple[Place, ...]:
    """One or two consolidations, placed and sized as `xray` does without depth."""
    out = []
    for k in range((1 + int(u[0] < 0.35)) * (base.consolidation > 0)):
        a = u[1 + 6 * k :]
        out.append(
            Place(
                u=(1 if a[0] < 0.5 else -1) * (0.38 + 0.34 * a[1]),
                v=-0.45 + 0.95 * a[2],
                w=-0.5 + 1.1 * a[3],
                size=0.13 + 0.09 * base.consolidation * a[4],
                density=0.55 + 0.30 * a[5],
            )
        )
    return tuple(out)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
