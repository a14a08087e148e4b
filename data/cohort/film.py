"""From attenuation to a film: scatter, quantum noise, exposure, collimation."""

import cv2
import numpy as np

SHORT_SIDE = 320  # pixels, as in CheXpert-v1.0-small


def noise_field(shape, rng, cell_h: int, cell_w: int, unit: float = 1) -> np.ndarray:
    """Unit-variance random field with cells of the given size.

    Args:
        shape: (h, w) of the field.
        rng: where the values come from.
        cell_h, cell_w: pixels in a cell on a film whose shorter side is SHORT_SIDE.
        unit: this film's shorter side over SHORT_SIDE.
    """
    cell_h, cell_w = (max(1, round(n * unit)) for n in (cell_h, cell_w))
    h, w = shape[0] // cell_h + 3, shape[1] // cell_w + 3
    coarse = rng.standard_normal((h, w), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def unit(pose) -> float:
    """The film's shorter side over SHORT_SIDE; 1 at the default size."""
    return min(pose.size) / SHORT_SIDE


def develop(thick: np.ndarray, rng, *, habitus: float, scatter: float, unit: float):
    """Reads the plate to 8 bits: (h, w) attenuation in, (h, w) uint8 grey out.

    Args:
        thick: attenuation along the beam; overwritten.
        rng: noise, exposure, display curve and blades are drawn from it.
        habitus: severity of the patient's; a large body makes grain.
        scatter: share of a wide blur that is mixed in.
        unit: see `noise_field`; a shrunk film has less grain.
    """
    n = rng.standard_normal(5).tolist()
    small = cv2.resize(thick, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 4.0 * unit)
    wide = cv2.resize(small, thick.shape[::-1], interpolation=cv2.INTER_LINEAR)
    thick = cv2.addWeighted(thick, 1 - scatter, wide, scatter, 0)
    grain = rng.standard_normal(thick.shape, dtype=np.float32)
    thick += cv2.GaussianBlur(grain, (3, 3), 0.6) * np.float32(
        0.020 * np.exp(0.3 * n[0] + 0.12 * habitus) * unit
    )
    low = 0.10 + 0.07 * n[1]
    high = 1.15 + 0.09 * n[2]
    gamma = np.exp(0.25 * n[3])
    lit = np.clip((thick - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    lit = cv2.pow(lit, gamma)
    out = lit * np.float32(245 + 6 * n[4])
    if rng.random() < 0.35:
        _collimate(out, rng)
    return np.minimum(out, 255).astype(np.uint8)


def _collimate(out: np.ndarray, rng) -> None:
    """Blackens borders outside the collimator's blades, in place."""
    h, w = out.shape
    top, bottom = (rng.uniform(0, 0.05, 2) * h).astype(int)
    left, right = (rng.uniform(0, 0.06, 2) * w).astype(int)
    out[:top], out[h - bottom :] = 3, 3
    out[:, :left], out[:, w - right :] = 3, 3
