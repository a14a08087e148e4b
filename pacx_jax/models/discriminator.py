"""Tells real images from made ones."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from pacx_jax.losses import wide
from pacx_jax.models.dense import Dense, silu
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.models.vq import EPS, halved
from pacx_jax.types import Array


class Discriminator(nn.Module):
    """A verdict on each patch (PatchGAN, Isola 2017).

    Attributes:
      widths: channels after each halving of the sides.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalised images (b, h, w, c) -> logits (b, h / 2^levels, w / 2^levels)."""
        for i, width in enumerate(self.widths):
            x = halved(x, width, self.dtype, f"down_{i}")
            x = silu(LayerNorm(EPS, name=f"norm_{i}")(x))
        return wide(Dense(1, dtype=self.dtype, name="out")(x)[..., 0])
