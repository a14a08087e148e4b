"""LayerNorm in two passes: exact where the mean is large beside the deviation."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.types import Array


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, in float32.

    Flax's own takes var = E[x^2] - E[x]^2, which cancels in float32 when a residual
    stream's mean is large beside its deviation; PyTorch's does not. Here the deviations
    are squared.

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
        return normalized(x, scale, bias, self.eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalized(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """The function of `LayerNorm`. Its backward pass keeps x, and a mean and a
    deviation a row; the usual one keeps two arrays of the size of x."""
    return _forward(x, scale, bias, eps)[0]


def _forward(x, scale, bias, eps):
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * (inverse * scale) + bias, (x, mean, inverse, scale)


def _backward(eps, residuals, g):
    del eps
    x, mean, inverse, scale = residuals
    unit = (x - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    dunit = g * scale
    along = (dunit * unit).mean(-1, keepdims=True)
    dx = inverse * (dunit - dunit.mean(-1, keepdims=True) - unit * along)
    return dx, (g * unit).sum(rows), g.sum(rows)


normalized.defvjp(_forward, _backward)
