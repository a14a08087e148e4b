"""How near reconstructed images are to real ones: L1, PSNR and SSIM, image by image.

Shape letters: b batch, h w c image. Pixels are in [0, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.losses import wide
from pacx_jax.types import Array

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels
MOST_PSNR = 100.0  # dB, of images that are equal


def scores(images: Array, truth: Array, mask: Array | None = None) -> dict[str, Array]:
    """L1, PSNR and SSIM, (b,) float32 each.

    Args:
      images, truth: (b, h, w, c); sides of at least WINDOW.
      mask: (b, h, w), 1 for the pixels that count, NaN where there are none. SSIM
        compares windows, and those count whose centre does; an image's border of half
        a window has no centre.
    """
    x, y = wide(images), wide(truth)
    one = jnp.ones(x.shape[:3], x.dtype) if mask is None else wide(mask)

    def mean(values, weights):  # (b, h, w)
        return (values * weights).sum((1, 2)) / weights.sum((1, 2))

    squared = mean(jnp.square(x - y).mean(-1), one)
    edge = WINDOW // 2
    inside = one[:, edge : x.shape[1] - edge, edge : x.shape[2] - edge]
    return {
        "l1": mean(jnp.abs(x - y).mean(-1), one),
        "psnr": -10 * jnp.log10(jnp.maximum(squared, 10 ** (-MOST_PSNR / 10))),
        "ssim": mean(ssim_map(x, y), inside),
    }


def ssim_map(x: Array, y: Array) -> Array:
    """SSIM (Wang 2004) of each whole window, (b, h - 10, w - 10), mean over channels.

    (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2)), with
    C1 = 0.01^2 and C2 = 0.03^2; moments are weighted by a Gaussian.
    """
    c1, c2 = 0.01**2, 0.03**2
    mx, my = _blurred(x), _blurred(y)
    sx, sy = _blurred(x * x) - mx * mx, _blurred(y * y) - my * my
    sxy = _blurred(x * y) - mx * my
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return (luminance * (2 * sxy + c2) / (sx + sy + c2)).mean(-1)


def _blurred(x: Array) -> Array:
    """Gaussian means of whole windows, by one axis after the other."""
    at = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (at / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        n = x.shape[axis] - WINDOW + 1
        x = sum(
            w * jax.lax.slice_in_dim(x, i, i + n, axis=axis)
            for i, w in enumerate(weights.tolist())
        )
    return x
