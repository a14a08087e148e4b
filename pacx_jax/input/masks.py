"""Masks of images: decoding, the one rule of what is inside, and nearest resizing.

A mask is uint8 (h, w), 1 inside and 0 outside. Of a file, a pixel is inside where its
grey level is at least 128 (the reference's > 0.5), so that JPEG's ringing is
cut; where a mask has no levels but 0 and 1, it is inside where it is 1.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from pacx_jax.errors import PacxError
from pacx_jax.input import images


def decode(data: bytes | str | os.PathLike, name: str = "") -> np.ndarray:
    """Reads a mask from whatever `images.decode` reads; colour becomes grey.

    An empty mask is one. PacxError for what is unreadable, and for levels that are
    neither of the two kinds, such as those of a map of several classes.
    """
    levels = images.decode(data, name)
    if levels.ndim == 3:
        levels = np.asarray(Image.fromarray(levels).convert("L"))
    highest = int(levels.max())
    if 1 < highest < 128:
        raise PacxError(
            f"{name or 'mask'}: its highest grey level is {highest}; a mask of 0 and "
            "255, or of 0 and 1, is needed"
        )
    return (levels >= min(max(highest, 1), 128)).astype(np.uint8)


def check_size(image: np.ndarray, mask: np.ndarray, name: str) -> None:
    """PacxError when image (h, w[, 3]) and mask (h, w) differ in size."""
    if image.shape[:2] != mask.shape:
        sizes = [f"{shape[0]}x{shape[1]}" for shape in (image.shape, mask.shape)]
        raise PacxError(
            f"{name}: the image is {sizes[0]} pixels (height x width) and its mask "
            f"{sizes[1]}; they must have one size"
        )


def resize_to(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """PIL's nearest-neighbour resize."""
    if mask.shape == (height, width):
        return mask
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized)
