"""Attention of whole images as a Pallas kernel for TPUs, exact, with its gradient.

Each program processes one image. It reads the projections into VMEM as the dense layer
left them, and scores and probabilities never leave VMEM. XLA writes the scores of all
images to HBM and reads them back, several times.

Letters: b batch, n tokens, h heads, c channels of a head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from pacx_jax import sharding
from pacx_jax.types import Array

LANES = 128  # width of a TPU's registers; heads that share them are read together


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def attend(
    qkv: Array, num_heads: int, interpret: bool = False, causal: bool = False
) -> Array:
    """Self-attention of fused projections, (b, n, 3 h c) -> (b, n, h c).

    Args:
      interpret: run the kernel's instructions on a machine without a TPU, slowly.
      causal: whether a token attends to itself and those before it alone.
    """
    kernel = functools.partial(_forward, num_heads=num_heads, causal=causal)
    return _by_image(kernel, qkv.shape[-1] // 3, interpret, qkv)


def _attend_forward(qkv, num_heads, interpret, causal):
    out = attend(qkv, num_heads, interpret, causal)
    return out, (qkv, out)


def _attend_backward(num_heads, interpret, causal, residuals, g):
    kernel = functools.partial(_backward, num_heads=num_heads, causal=causal)
    return (_by_image(kernel, residuals[0].shape[-1], interpret, *residuals, g),)


attend.defvjp(_attend_forward, _attend_backward)


def _by_image(kernel, width: int, interpret: bool, *args: Array) -> Array:
    """Runs the kernel on each image of the arguments (b, n, ...): (b, n, width).

    On the mesh of `sharding.tracing` each device takes its own rows, with one shard_map
    in the forward pass and one in the backward pass. `shard_map`'s own transpose would
    add up gradients over the axes that do not split rows.
    """

    def image(n, width):
        return pl.BlockSpec((1, n, width), lambda i: (i, 0, 0))

    def local(*args):
        b, n, _ = args[0].shape
        return pl.pallas_call(
            kernel,
            grid=(b,),
            in_specs=[image(n, x.shape[-1]) for x in args],
            out_specs=image(n, width),
            out_shape=jax.ShapeDtypeStruct((b, n, width), args[0].dtype),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=interpret,
        )(*args)

    if jax.sharding.get_abstract_mesh().empty:
        return local(*args)
    rows = PartitionSpec(sharding.ROWS)
    # Unchecked, since Pallas does not say over which axes its outputs vary.
    return jax.shard_map(local, in_specs=rows, out_specs=rows, check_vma=False)(*args)


def _forward(qkv_ref, out_ref, *, num_heads, causal):
    d = out_ref.shape[-1]
    for start, width, heads in _groups(d, num_heads):
        q3, k3, v3 = (_read(qkv_ref, i * d + start, width) for i in range(3))
        outs = []
        for h in heads:
            exps, total = _exponentials(q3[:, h], k3[:, h], causal)
            outs.append(_dot(exps.astype(v3.dtype), v3[:, h], 1, 0) / total)
        _write(out_ref, start, outs)


def _backward(qkv_ref, out_ref, g_ref, dqkv_ref, *, num_heads, causal):
    """Like `attention.by_image`'s: computes probabilities again (Dao 2022)."""
    d = out_ref.shape[-1]
    scale = (d // num_heads) ** -0.5
    for start, width, heads in _groups(d, num_heads):
        q3, k3, v3 = (_read(qkv_ref, i * d + start, width) for i in range(3))
        out3, g3 = (
            _read(ref, start, width).astype(jnp.float32) for ref in (out_ref, g_ref)
        )
        dq, dk, dv = [], [], []
        for h in heads:
            q, k, v = (x[:, h] for x in (q3, k3, v3))
            exps, total = _exponentials(q, k, causal)
            g = g3[:, h] / total
            along = (g * out3[:, h]).sum(-1, keepdims=True)
            g = g.astype(v.dtype)
            dscores = (exps * (_dot(g, v, 1, 1) - along)).astype(q.dtype)
            dq.append(_dot(dscores, k, 1, 0) * scale)
            dk.append(_dot(dscores, q, 0, 0) * scale)
            dv.append(_dot(exps.astype(q.dtype), g, 0, 0))
        for i, grads in enumerate((dq, dk, dv)):
            _write(dqkv_ref, i * d + start, grads)


def _groups(d: int, num_heads: int):
    """Groups of heads to read together: (first channel, channels, slice per head)."""
    c = d // num_heads
    together = max(LANES // c, 1)
    for first in range(0, num_heads, together):
        count = min(together, num_heads - first)
        yield first * c, count * c, [slice(i * c, (i + 1) * c) for i in range(count)]


def _read(ref, start: int, width: int) -> Array:
    return ref[0, :, start : start + width]


def _write(ref, start: int, heads: list[Array]) -> None:
    x = jnp.concatenate([head.astype(ref.dtype) for head in heads], -1)
    ref[0, :, start : start + x.shape[-1]] = x


def _exponentials(q: Array, k: Array, causal: bool) -> tuple[Array, Array]:
    """exp(scores - their row's maximum), (n, n), and its sums, (n, 1), in float32."""
    scores = _dot(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, 1, 1)
    if causal:
        row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, i)
                       for i in (0, 1))  # fmt: skip
        scores = jnp.where(column <= row, scores, jnp.finfo(scores.dtype).min)
    exps = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exps, exps.sum(-1, keepdims=True)


def _dot(a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> Array:
    """Product of two matrices over these axes, summed in float32."""
    axes = (((axis_of_a,), (axis_of_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
