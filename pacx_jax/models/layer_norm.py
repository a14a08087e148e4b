"""LayerNorm in two passes: exact where the mean is large beside the deviation."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.types import Array


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, in float32.

    Flax's own takes var = E[x^2] - E[x]^2, which cancels in float32 when a residual
    stream's mean is large beside its deviation; PyTorch's does not. Here the deviations
    are squared. The mean within the variance is held constant in differentiation: its
    gradient there is exactly zero, and computing it would cost a pass.

    Attributes:
      eps: added to the variance.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., d) -> (..., d), float32 (float64 where x is)."""
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,))
        bias = self.param("bias", nn.initializers.zeros, (d,))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = x.mean(-1, keepdims=True)
        var = jnp.square(x - jax.lax.stop_gradient(mean)).mean(-1, keepdims=True)
        return (x - mean) * (jax.lax.rsqrt(var + self.eps) * scale) + bias
