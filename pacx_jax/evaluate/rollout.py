"""Attention rollout: which patches the CLS token drew on, through all the layers.

Abnar & Zuidema 2020; used in the paper's appendix A.2.2 to compare
where the MAE and the distilled encoder look. As a command, and with masks of organs:
`attention_shares`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import PIL.Image
import scipy.ndimage

from pacx_jax.encoders.xray_encoder import Encoder, Image, each_image

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, UInt8


def rollout(
    encoder: Encoder, images: Image | Sequence[Image], view: str | None = None
) -> Float32[np.ndarray, "n grid grid"]:
    """Which patches an encoder's embedding drew on: `attention_rollout` of images.

    Args:
      encoder: of `load_encoder`.
      images: of any size, as for a call of `Encoder`.
      view: of all images, for an encoder with view embeddings.

    Returns:
      (n, grid, grid) float32, row by row from the top left; grid is the encoder's
      image_size / patch_size. A map's shares sum to 1 less those of the CLS token and
      of registers.

    Raises:
      PacxError: as a call of `Encoder`.
    """
    a, rows = encoder.architecture, map(encoder.preprocess, each_image(images))
    grid = encoder.image_size // a["patch_size"]
    found = [np.zeros((0, grid, grid), np.float32)]
    while chunk := list(itertools.islice(rows, encoder.batch_size)):
        maps = encoder.attentions(chunk, view)
        shares = attention_rollout(maps, a.get("registers", 0), a.get("pool", "cls"))
        found.append(shares.astype(np.float32))
    return np.concatenate(found)


def attention_rollout(
    attentions: Sequence[Float[np.ndarray, "b heads n n"]],
    registers: int = 0,
    pool: str = "cls",
) -> Float64[np.ndarray, "b grid grid"]:
    """Roll attention out from the input to the CLS token of the last layer.

    With A the heads' mean, each layer mixes tokens by the row-normalised A + I (the
    identity stands for the residual branch), and R = A_L ... A_1. Only the CLS row
    is asked for, so one row vector is carried backwards instead of a matrix.

    Args:
      attentions: one (b, heads, n, n) softmax attention a layer, first layer first;
        token 0 is CLS, then come registers, and the others form a square grid.
      registers: number of tokens between CLS and the patches, as of DINOv2.
      pool: "mean" where the patches' mean is the embedding and not CLS: the mean of
        their rows is carried backwards.

    Returns:
      (b, grid, grid) float64 shares of that row; with CLS's own share and those of the
      registers they sum to 1.

    Raises:
      ValueError: no layers, or patches that do not form a square.
    """
    if not len(attentions):
        raise ValueError("attention rollout of no layers")
    batch, _, n, _ = np.shape(attentions[0])
    before = 1 + registers
    grid = round(max(n - before, 0) ** 0.5)
    if grid * grid != n - before:
        raise ValueError(f"{n - before} patch tokens do not form a square grid")
    row = np.zeros((batch, 1, n))
    if pool == "mean":
        row[:, :, before:] = 1 / (n - before)
    else:
        row[:, :, 0] = 1.0
    for attention in reversed(attentions):
        mixing = np.asarray(attention, np.float64).mean(axis=1) + np.eye(n)
        row = row @ (mixing / mixing.sum(axis=-1, keepdims=True))
    return row[:, 0, before:].reshape(batch, grid, grid)


def upsample(
    maps: Float[np.ndarray, "b grid grid"], size: int
) -> Float[np.ndarray, "b size size"]:
    """Bilinear resize, half-pixel centres: (b, grid, grid) -> (b, size, size)."""
    scale = size / maps.shape[-1]
    return scipy.ndimage.zoom(
        maps, (1, scale, scale), order=1, mode="nearest", grid_mode=True
    )


def minmax(maps: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b h w"]:
    """Scale each map of (b, h, w) to [0, 1]; a constant map becomes 0."""
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    return (maps - low) / np.where(span > 0, span, 1.0)


def rollout_maps(
    attentions: Sequence[Float[np.ndarray, "b heads n n"]],
    size: int,
    registers: int = 0,
    pool: str = "cls",
) -> Float[np.ndarray, "b size size"]:
    """The figure's map: rollout, upsampled, min-max scaled; (b, size, size)."""
    return minmax(upsample(attention_rollout(attentions, registers, pool), size))


def overlay(
    image: UInt8[np.ndarray, "h w *c"], shares: Float[np.ndarray, "grid grid"]
) -> PIL.Image.Image:
    """A decoded image in grey under its rollout in colour.

    Args:
      image: uint8 (h, w) or (h, w, 3).
      shares: (grid, grid) of `rollout`; its least is blue, its most red.

    Returns:
      RGB of the image's size.
    """
    grey = image if image.ndim == 2 else image.mean(axis=-1)
    levels = np.uint8(255 * minmax(shares[None])[0])
    size = grey.shape[1], grey.shape[0]
    levels = cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR)
    heat = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1]
    mixed = 0.6 * grey[..., None] + 0.4 * heat
    return PIL.Image.fromarray(np.uint8(mixed.round()))


def difference_map(
    mae: Float[np.ndarray, "b h w"], pacx: Float[np.ndarray, "b h w"]
) -> Float[np.ndarray, "b h w"]:
    """PaCX - MAE of two min-max scaled (b, h, w) maps, in [-1, 1] (Fig. 4)."""
    return pacx - mae


if __name__ == "__main__":
    from pacx_jax.evaluate import attention_shares  # which imports this file

    raise SystemExit(attention_shares.main())
