"""LayerNorm in two passes: exact even if the mean is large beside the deviation."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import target
from pacx_jax.models.dense import first
from pacx_jax.types import Array


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, in float32.

    Flax computes var = E[x^2] - E[x]^2, which cancels in float32 if a residual stream's
    mean is large beside its deviation; PyTorch does not. Here deviations are squared.

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
        return normalized(x, scale, bias, self.eps)


def normalized(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """The function of `LayerNorm`.

    The hand-written backward pass keeps x, and on CPUs and TPUs a mean and a deviation
    per row; JAX's keeps two arrays of the size of x.
    """
    form = _own if target.hand_written("layer_norm") else _normalized
    return form(x, scale, bias, eps)


def _normalized(x, scale, bias, eps):
    return _forward(x, scale, bias, eps)[0]


_own = jax.custom_vjp(_normalized, nondiff_argnums=(3,))


def _forward(x, scale, bias, eps):
    mean, inverse = _moments(x, eps)
    out = (_wide(x) - mean) * (inverse * scale) + bias
    return out, (x, mean, inverse, scale)


def _moments(x, eps):
    """(mean, 1 / deviation) of each row, (..., 1)."""
    x = _wide(x)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + eps)


def moments_at_once(x, eps):
    """`_moments` from one read of x.

    Deviations are from the row's first entry, which lies within sqrt(d - 1) standard
    deviations of the mean, so cancellation loses at most log2(d) of float32's 24 bits.
    """
    start = _wide(x[..., :1])
    x = _wide(x) - start
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
    return start + mean, jax.lax.rsqrt(jnp.maximum(variance, 0) + eps)


def _backward(eps, residuals, g):
    x, mean, inverse, scale = residuals
    if target.platform() == "gpu":
        # Computed again and not fused, both are small arrays for the sums over rows to
        # read. Otherwise XLA writes out g * unit for these sums, in float32.
        moments = moments_at_once(jax.lax.optimization_barrier(x), eps)
        mean, inverse = jax.lax.optimization_barrier(moments)
    unit = (_wide(x) - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    dunit = g * scale
    along = (dunit * unit).mean(-1, keepdims=True)
    dx = inverse * (dunit - dunit.mean(-1, keepdims=True) - unit * along)
    sums = (g * unit).sum(rows), g.sum(rows)
    return first(dx.astype(x.dtype), *sums), *sums


_own.defvjp(_forward, _backward)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
