"""Losses of Stage 2 and of the classifiers (paper section 3.2; reference.md 4.5).

Shape letters: b global batch, m rows of one device, d embedding width, c classes.
All are computed in float32 or wider.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pacx_jax import sharding
from pacx_jax.types import Array


def wide(x: Array) -> Array:
    """float32, or float64 where x is already that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def l2_normalize(x: Array, eps: float = 1e-6) -> Array:
    """Rows of x (..., d) divided by max(norm, eps), safe in its gradient at zero."""
    squared = (wide(x) ** 2).sum(-1, keepdims=True)
    return wide(x) * jax.lax.rsqrt(jnp.maximum(squared, eps**2))


def temperature_scale(logit_scale: Array, low: float = 1.0, high: float = 100.0):
    """exp(logit_scale) clamped to [low, high]; no gradient outside of it."""
    return jnp.clip(jnp.exp(wide(logit_scale)), low, high)


def cross_entropy(logits: Array, targets: Array, label_smoothing: float) -> Array:
    """Mean over rows of the smoothed cross-entropy.

    Args:
      logits: (m, b).
      targets: (m,) column of each row's positive.
      label_smoothing: e; the positive's share is 1 - e + e/b, each other's e/b.
    """
    logp = jax.nn.log_softmax(logits, axis=-1)
    positive = jnp.take_along_axis(logp, targets[:, None], axis=-1)[:, 0]
    smooth = (1 - label_smoothing) * positive + label_smoothing * logp.mean(-1)
    return -smooth.mean()


def chunked_cross_entropy(
    rows: Array, columns: Array, targets: Array, label_smoothing: float, chunk: int
) -> Array:
    """`cross_entropy` of rows columns^T, of which (m, chunk) exist at a time.

    A row's loss is lse - (1 - e) positive - e mean, and only lse, the logarithm of its
    sum of exponentials, needs all of its logits: it is the logsumexp of those of blocks
    of columns. The backward pass computes each block again, so that the gradient is
    exact and takes no more memory: O(m chunk + m b / chunk).

    Args:
      rows: (m, d), times the scale.
      columns: (b, d); `chunk` divides b.
      targets: (m,) column of each row's positive.
      label_smoothing: as in `cross_entropy`.
    """
    b, d = columns.shape

    @jax.checkpoint
    def block_lse(block):
        logits = jnp.matmul(rows, block.T, precision="highest")
        return jax.nn.logsumexp(logits, axis=1)

    parts = jax.lax.map(block_lse, columns.reshape(b // chunk, chunk, d))
    lse = jax.nn.logsumexp(parts, axis=0)
    positive = (rows * columns[targets]).sum(-1)
    mean = jnp.matmul(rows, columns.mean(0), precision="highest")
    return (lse - (1 - label_smoothing) * positive - label_smoothing * mean).mean()


def info_nce(
    za: Array,
    zb: Array,
    scale: Array,
    *,
    label_smoothing: float,
    mesh: Mesh,
    chunk: int = 0,
) -> Array:
    """Symmetric InfoNCE over the global batch with gathered negatives.

      1/2 [CE(scale za zb^T) + CE(scale zb za^T)],  rows L2-normalised

    Each device holds its rows and gathers the others' embeddings, (b, d), so its logits
    are (m, b), or (m, chunk) at a time. Gradients flow through the gather; the result
    is that of one device.

    Args:
      za, zb: (b, d) embeddings of two modalities, row i of both from one patient.
      scale: () positive factor, as from `temperature_scale`.
      mesh: the batch is split over its axes `sharding.ROWS`.
      chunk: how many columns of logits exist at a time, a divisor of b; 0: all.
    """
    rows, axes = PartitionSpec(sharding.ROWS), sharding.ROWS

    def entropy(x, columns, targets):
        if chunk:
            return chunked_cross_entropy(x, columns, targets, label_smoothing, chunk)
        # A TPU's default precision is bfloat16: too coarse under a scale of up to 100.
        logits = jnp.matmul(x, columns.T, precision="highest")
        return cross_entropy(logits, targets, label_smoothing)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    def local(za, zb, scale):
        all_a = jax.lax.all_gather(za, axes, tiled=True)
        all_b = jax.lax.all_gather(zb, axes, tiled=True)
        m = za.shape[0]
        targets = jnp.arange(m) + jax.lax.axis_index(axes) * m
        loss = entropy(scale * za, all_b, targets)
        loss += entropy(scale * zb, all_a, targets)
        return jax.lax.pmean(loss / 2, axes)

    return local(l2_normalize(za), l2_normalize(zb), scale)


def cosine_regression(pred: Array, target: Array) -> Array:
    """1 - mean cosine of pred and stop-gradient(target), both (b, d)."""
    target = jax.lax.stop_gradient(target)
    return 1 - (l2_normalize(pred) * l2_normalize(target)).sum(-1).mean()


def masked_bce(logits: Array, labels: Array, mask: Array) -> Array:
    """Binary cross-entropy (b, c), mean over the entries whose mask is 1."""
    logits = wide(logits)
    loss = jnp.maximum(logits, 0) - logits * labels
    loss += jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return (loss * mask).sum() / known(mask)


def known(mask: Array) -> Array:
    """By what `masked_bce` divides: the entries whose mask is 1, at least one."""
    return jnp.maximum(mask.sum(), 1)
