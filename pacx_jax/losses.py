"""Losses of Stage 2 and of the classifiers (paper section 3.2; reference.md 4.5).

Shape letters: b global batch, m rows of one device, d embedding width, c classes.
All are computed in float32 or wider.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

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


def log_sums(rows: Array, columns: Array, chunk: int = 0) -> tuple[Array, Array]:
    """Logarithms of the sums of exponentials of rows columns^T, by row and by column.

    With `chunk`, (m, chunk) of the products exist at a time, also in the backward pass,
    which computes each block again: O(m chunk + m b / chunk) of memory, exact.

    Args:
      rows: (m, d).
      columns: (b, d); `chunk` divides b.

    Returns:
      (m,) and (b,).
    """

    def block(columns):
        # A TPU's default precision is bfloat16: too coarse under a scale of up to 100.
        logits = jnp.matmul(rows, columns.T, precision="highest")
        return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)

    if not chunk:
        return block(columns)
    b, d = columns.shape
    blocks = columns.reshape(b // chunk, chunk, d)
    by_row, by_column = jax.lax.map(jax.checkpoint(block), blocks)
    return jax.nn.logsumexp(by_row, axis=0), by_column.reshape(b)


def info_nce(
    anchor: Array,
    others: Mapping[str, Array],
    scale: Array,
    *,
    label_smoothing: float,
    mesh: Mesh,
    chunk: int = 0,
) -> dict[str, Array]:
    """Symmetric InfoNCE of an anchor with each other modality, over the global batch.

      1/2 [CE(scale za zb^T) + CE(scale zb za^T)],  rows L2-normalised

    with a positive's share of 1 - e + e/b and each negative's of e/b. A row's cross
    entropy is lse - (1 - e) positive - e mean: only lse, the logarithm of its sum of
    exponentials, needs all of its logits.

    Each device gathers the anchors of all, (b, d), once for all modalities. Its logits
    are (m, b), its rows of the other modality against every anchor, or (m, chunk) at a
    time: rows of the one cross entropy, and a part of each column of the other, whose
    sums of exponentials are added up over the devices, (b,) numbers. Nothing else is
    sent. Gradients flow through the gather; the result is that of one device.

    Args:
      anchor: (b, d) embeddings of the X-rays.
      others: name -> (b, d) embeddings; row i of all is of one patient.
      scale: () positive factor, as from `temperature_scale`.
      label_smoothing: e.
      mesh: the batch is split over its axes `sharding.ROWS`.
      chunk: how many columns of logits exist at a time, a divisor of b; 0: all.

    Returns:
      name -> () loss.
    """
    rows, axes = PartitionSpec(sharding.ROWS), sharding.ROWS

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    def local(anchor, others, scale):
        anchors = jax.lax.all_gather(anchor, axes, tiled=True)
        m = len(anchor)
        own = jnp.arange(m) + jax.lax.axis_index(axes) * m  # the positives' columns

        def loss(z):
            z = scale * z
            by_row, by_column = log_sums(z, anchors, chunk)
            top = jax.lax.pmax(jax.lax.stop_gradient(by_column), axes)
            summed = jax.lax.psum(jnp.exp(by_column - top), axes)
            by_column = (top + jnp.log(summed))[own]
            positive = (z * anchor).sum(-1)
            mean = jnp.matmul(z, anchors.mean(0), precision="highest")
            loss = (by_row + by_column) / 2 - (1 - label_smoothing) * positive
            return jax.lax.pmean((loss - label_smoothing * mean).mean(), axes)

        return jax.tree.map(loss, others)

    others = {name: l2_normalize(z) for name, z in others.items()}
    return local(l2_normalize(anchor), others, scale)


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
