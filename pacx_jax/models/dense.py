"""Dense layers, GELU and SiLU with backward passes of their own.

The numbers are the usual ones; what differs is what XLA makes of them. Each is used on
the platforms of `target.HAND_WRITTEN`; elsewhere JAX derives the backward pass.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import target
from pacx_jax.types import Array


def dense(features: int, *, dtype, name: str, **inits) -> nn.Dense:
    """`nn.Dense` whose weight gradient x^T g transposes the narrower of x and g.

    JAX's own rule leaves it to XLA, which on CPU transposes g, together with all the
    elementwise work fused into it, which is then done again for each use.
    """
    return nn.Dense(features, dtype=dtype, dot_general=_dot_general, name=name, **inits)


def _dot_general(x, kernel, dims, precision=None, preferred_element_type=None):
    if precision is None and target.hand_written("dense"):
        return matmul(x, kernel)  # nn.Dense: the last axis with the first
    return jax.lax.dot_general(
        x,
        kernel,
        dims,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """(..., i) and (i, o) -> (..., o)."""
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(residuals, g):
    x, kernel = residuals
    rows = tuple(range(x.ndim - 1))
    over_rows = ((rows, rows), ((), ()))
    if x.shape[-1] <= g.shape[-1]:
        dkernel = jax.lax.dot_general(x, g, over_rows)
    else:
        dkernel = jax.lax.dot_general(g, x, over_rows).T
    return jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ()))), dkernel


matmul.defvjp(_matmul_forward, _matmul_backward)


def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x), in float32 or wider; the result has the dtype of x.

    Phi by 1 + erf: for x below -3 its error is that of 1 (6e-8), as PyTorch's. Flax's
    form by erfc computes two series and a choice. The backward pass keeps x alone.
    """
    return _own_gelu(x) if target.hand_written("gelu") else _gelu(x)


def _gelu(x):
    wide = _wide(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


_own_gelu = jax.custom_vjp(_gelu)


def _gelu_forward(x):
    return _gelu(x), x


def _gelu_backward(x, g):
    wide = _wide(x)
    density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    slope = _normal_cdf(wide) + wide * density
    dx = (g * slope).astype(x.dtype)
    if target.platform() == "gpu":  # the bias's sum over rows stays a kernel of its own
        dx = jax.lax.optimization_barrier(dx)
    return (dx,)


_own_gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def silu(x: Array) -> Array:
    """SiLU, x sigmoid(x); the backward pass keeps x alone."""
    return _own_silu(x) if target.hand_written("silu") else _silu(x)


def _silu(x):
    return x * jax.nn.sigmoid(x)


_own_silu = jax.custom_vjp(_silu)


def _silu_forward(x):
    return _silu(x), x


def _silu_backward(x, g):
    s = jax.nn.sigmoid(x)
    return (g * s * (1 + x * (1 - s)),)


_own_silu.defvjp(_silu_forward, _silu_backward)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
