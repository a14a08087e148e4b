"""Dense layers, GELU and SiLU with hand-written backward passes.

The results are the usual ones, but XLA compiles them better. The platforms of
`target.HAND_WRITTEN` use them; elsewhere JAX derives the backward pass.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import target
from pacx_jax.types import Array


class Dense(nn.Dense):
    """`nn.Dense` of `affine`: the same parameters and numbers."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., i) -> (..., features)."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if not self.use_bias:
            x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
            return matmul(x, kernel) if target.hand_written("dense") else x @ kernel
        bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return affine(x, kernel, bias)


def affine(x: Array, kernel: Array, bias: Array) -> Array:
    """x kernel + bias for x (..., i), kernel (i, o) and bias (o,).

    The hand-written backward pass computes the weight gradient x^T g by transposing the
    narrower of the two. Under JAX's rule XLA on CPU transposes g and fuses all the
    elementwise work into the copy, once for each use. For frozen weights it computes no
    gradient and keeps no x.
    """
    own = target.hand_written("dense")
    return (_own_affine if own else _affine)(x, kernel, bias)


def _affine(x, kernel, bias):
    return x @ kernel + bias


_own_affine = jax.custom_vjp(_affine)


def _affine_forward(x, kernel, bias):
    out = _affine(x.value, kernel.value, bias.value)
    return out, (x.value if kernel.perturbed else None, kernel.value)


def _affine_backward(residuals, g):
    x, kernel = residuals
    dbias = g.sum(tuple(range(g.ndim - 1)))
    if x is None:
        return _to_input(kernel, g), jnp.zeros_like(kernel), dbias
    dkernel = _to_kernel(x, g)
    return first(_to_input(kernel, g), dkernel, dbias), dkernel, dbias


_own_affine.defvjp(_affine_forward, _affine_backward, symbolic_zeros=True)


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """`affine` without a bias, always with the hand-written backward pass."""
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(residuals, g):
    x, kernel = residuals
    dkernel = _to_kernel(x, g)
    return _to_input(kernel, g), dkernel


matmul.defvjp(_matmul_forward, _matmul_backward)


def _to_input(kernel, g):
    return jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))


def _to_kernel(x, g):
    rows = tuple(range(x.ndim - 1))
    over_rows = ((rows, rows), ((), ()))
    if x.shape[-1] <= g.shape[-1]:
        return jax.lax.dot_general(x, g, over_rows)
    return jax.lax.dot_general(g, x, over_rows).T


def first(x: Array, *sums: Array) -> Array:
    """Returns x, but on one CPU device makes XLA compute `sums` before its next use.

    XLA's CPU scheduler computes parameter gradients at the end of the backward pass and
    keeps everything they sum until then. JAX's barriers do not affect it, but an addend
    does: zero, unless a gradient is not finite.
    """
    # On several devices, reading one entry would first make them agree on the whole.
    if (target.platform() or "cpu") != "cpu" or target.device_count() > 1:
        return x
    for each in sums:
        if each.size:
            x = x + (0 * each.ravel()[0]).astype(x.dtype)
    return x


def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x), in float32 or wider; the result has the dtype of x.

    Phi uses 1 + erf: for x below -3 its error is that of 1 (6e-8), like PyTorch's.
    Flax's erfc computes two series and a choice. The backward pass keeps only x.
    """
    return _own_gelu(x) if target.hand_written("gelu") else _gelu(x)


def _gelu(x):
    wide = _wide(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


_own_gelu = jax.custom_vjp(_gelu)


def _gelu_forward(x):
    return _gelu(x), x


def _gelu_backward(x, g):
    wide = _wide(first(x, g))  # else XLA keeps the forward pass's erf for it
    density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    slope = _normal_cdf(wide) + wide * density
    dx = (g * slope).astype(x.dtype)
    if target.platform() == "gpu":  # keeps the bias's sum over rows a separate kernel
        dx = jax.lax.optimization_barrier(dx)
    return (dx,)


_own_gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def silu(x: Array) -> Array:
    """SiLU, x sigmoid(x); the backward pass keeps only x."""
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
