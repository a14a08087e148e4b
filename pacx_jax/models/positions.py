"""Positions of patches: fixed sin-cos, learned ones for any grid, and rotary ones.

Shape letters: b batch, n tokens, h heads, c channels of a head, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.types import Array

# How learned positions are resampled, all bicubic. "antialias": Keys' a = -0.5 with
# antialiasing, as timm, and DINOv2 with registers. "bicubic": a = -0.75 without, as
# transformers' Dinov2Model. "offset": likewise, for a grid of 0.1 patches more, as the
# original DINOv2 without registers.
RESAMPLING = ("antialias", "bicubic", "offset")
TEMPERATURE = 10000.0


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D sin-cos positions, (grid_h * grid_w, width) float32.

    The first half of the channels encodes the column, the second half the row, each
    as [sin, cos] of pos * 10000^(-i / (width / 4)); computed in float64 (MAE).
    """
    if width % 4:
        raise PacxError(f"width {width} is not divisible by 4, as positions need")
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    rows, cols = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    parts = []
    for pos in (cols, rows):
        angle = pos.reshape(-1, 1) * omega
        parts += [np.sin(angle), np.cos(angle)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def resample(
    posemb: Array,
    grid: tuple[int, int],
    to: tuple[int, int],
    resampling: str = "antialias",
) -> Array:
    """Learned positions of `grid` for another grid.

    Args:
      posemb: (1, n, d), or (1, 1 + n, d) with the CLS token's first, which stays.
      resampling: one of RESAMPLING.
    """
    if resampling not in RESAMPLING:
        raise PacxError(
            f"posemb_resampling is {resampling!r}: choose {', '.join(RESAMPLING)}"
        )
    if tuple(grid) == tuple(to):
        return posemb
    d, cls = posemb.shape[-1], posemb.shape[1] - grid[0] * grid[1]
    patches = posemb[:, cls:].reshape(1, *grid, d)
    if resampling == "antialias":
        patches = jax.image.resize(patches, (1, *to, d), "cubic", antialias=True)
    else:
        more = 0.1 if resampling == "offset" else 0.0
        rows, columns = (
            _cubic(*sizes, more).astype(posemb.dtype)
            for sizes in zip(grid, to, strict=True)
        )
        patches = jnp.einsum(
            "rh,cw,bhwd->brcd", rows, columns, patches, precision="highest"
        )
    return jnp.concatenate([posemb[:, :cls], patches.reshape(1, -1, d)], axis=1)


def _cubic(size: int, to: int, more: float) -> np.ndarray:
    """Weights (to, size) of PyTorch's bicubic interpolation: Keys' a = -0.75.

    Rows of `to + more` spread over those of `size`, half-pixel centres, the border
    repeated.
    """
    a, out = -0.75, np.zeros((to, size))
    centres = (np.arange(to) + 0.5) * size / (to + more) - 0.5
    for tap in range(-1, 3):
        place = np.floor(centres) + tap
        t = np.abs(centres - place)
        near = ((a + 2) * t - (a + 3)) * t * t + 1  # t <= 1
        far = a * (((t - 5) * t + 8) * t - 4)  # 1 < t < 2
        column = np.clip(place, 0, size - 1).astype(int)
        np.add.at(out, (np.arange(to), column), np.where(t <= 1, near, far))
    return out


def learned(
    module: nn.Module,
    of: tuple[int, ...],
    grid: tuple[int, int],
    cls: bool,
    resampling: str = "antialias",
) -> Array:
    """The parameter `pos_embed` of a module with a width, for `grid`.

    Args:
      of: the grid, (rows, columns), that the parameter is for.
      cls: whether the CLS token has a position, which is then the first.
      resampling: one of RESAMPLING.

    Returns:
      (1, n, d), or (1, 1 + n, d).
    """
    shape = (1, int(cls) + of[0] * of[1], module.width)
    table = module.param("pos_embed", nn.initializers.normal(0.02), shape)
    return resample(table, of, grid, resampling)


def rotary(
    grid: tuple[int, int], reference: Sequence[int], channels: int, prefix: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of rotary positions (Su 2021), (prefix + n, c) float64 each.

    Axial as in EVA-02 (Fang 2023): each head's channels are pairs, the first half of
    which encodes the row, the second half the column.

    Args:
      grid: (rows, columns) of the image's patches.
      reference: (rows, columns) that the model was pretrained with, to which the
        positions of any grid are scaled.
      channels: c, of a head.
      prefix: tokens before the patches, which are not turned.
    """
    if channels % 4:
        raise PacxError(
            f"heads of {channels} channels: rotary positions need a multiple of 4"
        )
    bands = TEMPERATURE ** (-np.arange(channels // 4) / (channels / 4))
    axes = (
        np.arange(count) / count * wanted
        for count, wanted in zip(grid, reference, strict=True)
    )
    places = np.meshgrid(*axes, indexing="ij")
    angles = np.concatenate([p.reshape(-1, 1) * bands for p in places], axis=1)
    angles = np.repeat(angles, 2, axis=1)  # one for each channel of a pair
    angles = np.concatenate([np.zeros((prefix, channels)), angles])
    return np.cos(angles), np.sin(angles)


def rotary_1d(length: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """`rotary` of places in a sequence, (length, c) float64 each (Su 2021)."""
    if channels % 2:
        raise PacxError(
            f"heads of {channels} channels: rotary positions need a multiple of 2"
        )
    bands = TEMPERATURE ** (-np.arange(channels // 2) / (channels / 2))
    angles = np.repeat(np.arange(length)[:, None] * bands, 2, axis=1)
    return np.cos(angles), np.sin(angles)


def turned(x: Array, cos: Array, sin: Array) -> Array:
    """Turns pairs of channels of (b, n, h, c) by `rotary`, in float32.

    A pair (x, y) of angle a becomes (x cos a - y sin a, x sin a + y cos a).

    Args:
      x: q or k of every head.
      cos, sin: (n, c), or (b, n, c) where images keep different patches.

    Returns:
      an array of the dtype of x.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    pairs = wide.reshape(*x.shape[:-1], -1, 2)
    across = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    # The same for every head.
    cos, sin = (t[..., None, :].astype(wide.dtype) for t in (cos, sin))
    return (wide * cos + across * sin).astype(x.dtype)
