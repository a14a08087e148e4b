"""Losses of Stage 2 and of the classifiers (paper section 3.2).

Shape letters: b global batch, m rows of one device, d embedding width, c classes.
Losses are computed in float32 or wider.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pacx_jax import sharding
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Float, Real


def wide(x: Real[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x as float32, or as float64 if it already is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def l2_normalize(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """Divides rows of x (..., d) by max(norm, eps); the gradient is safe at zero."""
    squared = (wide(x) ** 2).sum(-1, keepdims=True)
    return wide(x) * jax.lax.rsqrt(jnp.maximum(squared, eps**2))


def temperature_scale(
    logit_scale: Float[Array, ""], low: float = 1.0, high: float = 100.0
) -> Float[Array, ""]:
    """exp(logit_scale) clamped to [low, high], without gradient outside."""
    return jnp.clip(jnp.exp(wide(logit_scale)), low, high)


def log_sums(
    rows: Float[Array, "m d"],
    columns: Float[Array, "b d"],
    chunk: int = 0,
    present: tuple[Real[Array, " m"], Real[Array, " b"]] | None = None,
) -> tuple[Float[Array, " m"], Float[Array, " b"]]:
    """Log-sum-exp of rows columns^T, by row and by column.

    With `chunk`, only (m, chunk) products exist at a time, also in the backward pass,
    which computes each block again: exact, with O(m chunk + m b / chunk) memory.

    Args:
      rows: (m, d).
      columns: (b, d); `chunk` divides b.
      present: 1 for the rows (m,) and columns (b,) that count, else 0; None: all.

    Returns:
      (m,) and (b,).
    """

    def block(columns, bias):
        # A TPU's default precision, bfloat16, is too coarse for a scale of up to 100.
        logits = jnp.matmul(rows, columns.T, precision="highest")
        by_row = by_column = logits
        if present is not None:
            by_row = logits + bias
            by_column = logits + _bias(present[0])[:, None]
        return jax.nn.logsumexp(by_row, axis=1), jax.nn.logsumexp(by_column, axis=0)

    bias = jnp.zeros(len(columns)) if present is None else _bias(present[1])
    if not chunk:
        return block(columns, bias)
    b, d = columns.shape
    blocks = columns.reshape(b // chunk, chunk, d), bias.reshape(b // chunk, chunk)
    by_row, by_column = jax.lax.map(jax.checkpoint(lambda x: block(*x)), blocks)
    return jax.nn.logsumexp(by_row, axis=0), by_column.reshape(b)


def _bias(present: Array) -> Array:
    """0 if present, else a logit whose exponential is 0."""
    return jnp.where(present > 0, 0.0, -1e30)


def info_nce(
    anchor: Float[Array, "b d"],
    others: Mapping[str, Float[Array, "b d"]],
    scale: Float[Array, ""],
    *,
    label_smoothing: float,
    mesh: Mesh,
    chunk: int = 0,
    present: Mapping[str, Real[Array, " b"]] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Symmetric InfoNCE of an anchor with each other modality, over the global batch.

      1/2 [CE(scale za zb^T) + CE(scale zb za^T)],  rows L2-normalised

    with target 1 - e + e/b for the positive and e/b for each negative. A row's cross
    entropy is lse - (1 - e) positive - e mean; only lse, its log-sum-exp, needs all of
    the row's logits.

    Each device gathers all anchors, (b, d), once for all modalities, and computes the
    logits (m, b) of its rows of the other modality against every anchor, (m, chunk) at
    a time. These are whole rows for one cross entropy, and a part of each column for
    the other, whose (b,) sums of exponentials are added over the devices. Nothing else
    is sent. Gradients flow through the gather; the result equals that of one device.

    Args:
      anchor: (b, d) embeddings of the X-rays.
      others: name -> (b, d) embeddings; row i of each belongs to the same patient.
      scale: () positive factor, as from `temperature_scale`.
      label_smoothing: e.
      mesh: the batch is split over its axes `sharding.ROWS`.
      chunk: number of logit columns that exist at a time, a divisor of b; 0: all.
      present: name -> (b,), 1 for a study that has this modality, else 0. The loss is
        that of the studies that have it: the others have no loss, get no gradient and
        are no negatives. Modalities that are not named are complete.

    Returns:
      name -> () loss; 0 for a modality that no study has.
    """
    rows, axes = PartitionSpec(sharding.ROWS), sharding.ROWS
    present = dict(present or {})

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec(), rows),
        out_specs=PartitionSpec(),
    )
    def local(anchor, others, scale, present):
        anchors = jax.lax.all_gather(anchor, axes, tiled=True)
        m = len(anchor)
        own = jnp.arange(m) + jax.lax.axis_index(axes) * m  # the positives' columns

        def loss(z, here):
            z, masks = scale * z, None
            if here is not None:
                masks = here, jax.lax.all_gather(here, axes, tiled=True)
                count = jnp.maximum(jax.lax.psum(here.sum(), axes), 1)
            by_row, by_column = log_sums(z, anchors, chunk, masks)
            top = jax.lax.pmax(jax.lax.stop_gradient(by_column), axes)
            summed = jax.lax.psum(jnp.exp(by_column - top), axes)
            by_column = (top + jnp.log(summed))[own]
            positive = (z * anchor).sum(-1)
            mean_anchor = anchors.mean(0)
            if here is not None:
                mean_anchor = (masks[1][:, None] * anchors).sum(0) / count
            mean = jnp.matmul(z, mean_anchor, precision="highest")
            loss = (by_row + by_column) / 2 - (1 - label_smoothing) * positive
            loss = loss - label_smoothing * mean
            if here is None:
                return jax.lax.pmean(loss.mean(), axes)
            return jax.lax.psum((here * loss).sum(), axes) / count

        return {name: loss(z, present.get(name)) for name, z in others.items()}

    others = {name: l2_normalize(z) for name, z in others.items()}
    return local(l2_normalize(anchor), others, scale, present)


def cosine_regression(
    pred: Float[Array, "b d"],
    target: Float[Array, "b d"],
    present: Real[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """1 - mean cosine of pred and stop-gradient(target), both (b, d).

    Args:
      present: (b,), 1 for the rows that count; None: all. If none counts, the loss is
        0.
    """
    target = jax.lax.stop_gradient(target)
    cosine = (l2_normalize(pred) * l2_normalize(target)).sum(-1)
    if present is None:
        return 1 - cosine.mean()
    return ((1 - cosine) * present).sum() / known(present)


def masked_bce(
    logits: Float[Array, "b c"], labels: Real[Array, "b c"], mask: Real[Array, "b c"]
) -> Float[Array, ""]:
    """Binary cross-entropy (b, c), mean over the entries whose mask is 1."""
    logits = wide(logits)
    loss = jnp.maximum(logits, 0) - logits * labels
    loss += jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return (loss * mask).sum() / known(mask)


def known(
    mask: Real[Array, "*shape"], axis: int | None = None
) -> Real[Array, "*counts"]:
    """Number of entries, along `axis` or in all, whose mask is 1; at least 1."""
    return jnp.maximum(mask.sum(axis), 1)
