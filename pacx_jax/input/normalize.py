"""uint8 images to the encoder's input, on the device.

Images travel as uint8, four times less than float32, and become floats here.
"""

from __future__ import annotations

import jax.numpy as jnp

from pacx_jax.types import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: Array, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> Array:
    """uint8 (..., h, w, 3) -> float32 (float64 stays): (x / 255 - mean) / std."""
    wide = jnp.promote_types(images.dtype, jnp.float32)
    mean, std = jnp.asarray(mean, wide), jnp.asarray(std, wide)
    return (images.astype(wide) / 255 - mean) / std
