"""Loss of a report decoder: cross-entropy of each next token, teacher forced.

Shape letters: b batch, t text tokens, d width, n tokens of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pacx_jax import sharding
from pacx_jax.losses import wide
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int, Real

CHUNK = 2048  # tokens whose logits exist at a time: 250 MB for 30,522 of float32


def targets(
    tokens: Int[Array, "b t"], present: Real[Array, " b"], pad_id: int
) -> tuple[Int[Array, "b t-1"], Bool[Array, "b t-1"]]:
    """What positions 0 to t - 2 predict, (b, t - 1), and whether that counts, bool.

    Padding does not count, nor does anything of a study without a report.

    Args:
      tokens: (b, t).
      present: (b,), 1 for a study that has a report, else 0.
    """
    following = tokens[:, 1:]
    return following, (following != pad_id) & (present > 0)[:, None]


def caption_loss(
    logits: Float[Array, "b t vocab"],
    tokens: Int[Array, "b t"],
    present: Real[Array, " b"],
    pad_id: int,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the cross-entropies, () float32, and the number of tokens that count, ().

    Args:
      logits: (b, t, vocab) of a decoder that was given `tokens`.
      tokens, present, pad_id: as in `targets`.
    """
    following, valid = targets(tokens, present, pad_id)
    each = cross_entropy(logits[:, :-1], following, label_smoothing)
    each = jnp.where(valid, each, 0)
    return each.sum(), valid.sum().astype(each.dtype)


def cross_entropy(
    logits: Float[Array, "*b vocab"],
    labels: Int[Array, "*b"],
    label_smoothing: float = 0.0,
) -> Float[Array, "*b"]:
    """Cross-entropy (...,) of logits (..., vocab) and labels (...,), in float32.

    With smoothing e the target is 1 - e + e / vocab for the label and e / vocab for
    every other token.
    """
    logits = wide(logits)
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]
    own = (1 - label_smoothing) * own
    if label_smoothing:
        own += label_smoothing * logits.mean(-1)
    return jax.nn.logsumexp(logits, axis=-1) - own


def chunked_caption_loss(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d vocab"],
    tokens: Int[Array, "b t"],
    present: Real[Array, " b"],
    pad_id: int,
    *,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
    dtype=jnp.float32,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`caption_loss` of logits hidden kernel, of which only a chunk exists at a time.

    Args:
      hidden: (b, t, d), from `text.TextDecoder.hidden`.
      kernel: (d, vocab), the decoder's `head/kernel`.
      tokens, present, pad_id: as in `targets`.
      label_smoothing, chunk, dtype: as in `chunked_cross_entropy`.
    """
    following, valid = targets(tokens, present, pad_id)
    how = {"label_smoothing": label_smoothing, "chunk": chunk, "dtype": dtype}
    total, count = chunked_cross_entropy(
        hidden[:, :-1], kernel, following, valid[..., None], **how
    )
    return total[0], count[0]


def chunked_cross_entropy(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d vocab"],
    labels: Int[Array, "b t"],
    valid: Bool[Array, "b t m"],
    *,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
    dtype=jnp.float32,
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Sums of cross-entropies of several kinds of tokens, and their numbers, (m,) each.

    Each device puts the tokens that count first and computes them `chunk` at a time,
    again in the backward pass. Chunks without any are left out, so the cost goes with
    the number of these tokens. The kernel's gradient is summed in float32, and over the
    devices once.

    Args:
      hidden: (b, t, d).
      kernel: (d, vocab) of the output layer.
      labels: (b, t).
      valid: (b, t, m), whether a token counts as one of each kind.
      chunk: tokens, of one device.
      dtype: of the products.
    """

    def local(hidden, kernel, labels, valid):
        hidden, valid = (x.reshape(-1, x.shape[-1]) for x in (hidden, valid))
        labels = labels.reshape(-1)
        order = jnp.argsort(~valid.any(-1), stable=True)
        size = min(chunk, len(order))
        empty = -len(order) % size

        def chunks(x):
            x = jnp.take(x, order, axis=0, mode="clip")
            x = jnp.pad(x, ((0, empty), *[(0, 0)] * (x.ndim - 1)))
            return x.reshape(-1, size, *x.shape[1:])

        arrays = tuple(map(chunks, (hidden, labels, valid)))

        def computed(x, labels, valid):
            logits = x.astype(dtype) @ kernel.astype(dtype)
            each = cross_entropy(logits, labels, label_smoothing)
            return jnp.where(valid, each[:, None], 0).sum(0)

        def none(x, labels, valid):
            zero = 0 * x[0, 0] * jnp.ones(valid.shape[-1])
            return zero.astype(jnp.promote_types(dtype, jnp.float32))

        @jax.checkpoint
        def one(arrays):
            return jax.lax.cond(arrays[2].any(), computed, none, *arrays)

        total = jax.lax.map(one, arrays).sum(0)
        return total, valid.sum(0).astype(total.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(labels) % sharding.batch_shards(mesh):
        return local(hidden, kernel, labels, valid)
    rows, whole = PartitionSpec(sharding.ROWS), PartitionSpec()

    def shared(hidden, kernel, labels, valid):
        # Varying before the loop, so that its gradient is summed after it.
        kernel = jax.lax.pcast(kernel, sharding.ROWS, to="varying")
        found = local(hidden, kernel, labels, valid)
        return jax.lax.psum(found, sharding.ROWS)

    return jax.shard_map(
        shared, in_specs=(rows, whole, rows, rows), out_specs=(whole, whole)
    )(hidden, kernel, labels, valid)


def by_row(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d vocab"],
    labels: Int[Array, "b t"],
    valid: Bool[Array, "b t m"],
) -> Float32[Array, "b m"]:
    """Each row's sum of cross-entropies, (b, m) float32, without a gradient in mind.

    Logits (b, vocab) of one place exist at a time, not t of them.

    Args:
      hidden, kernel, labels, valid: as in `chunked_cross_entropy`.
    """

    def of_place(args):
        hidden, labels = args
        return cross_entropy(hidden @ kernel.astype(hidden.dtype), labels)

    places = hidden.swapaxes(0, 1), labels.swapaxes(0, 1)
    each = jax.lax.map(of_place, places).swapaxes(0, 1)
    return jnp.where(valid, each[..., None], 0).sum(1)
