"""Transformer blocks of the ViT encoder and of the MAE's decoder.

Shape letters: b batch, n tokens, h heads, c channels of a head, d width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import attention, dropout
from pacx_jax.models.dense import Dense, gelu, silu
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.models.positions import turned
from pacx_jax.types import Array

xavier = nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the blocks of other people's encoders have beyond a plain ViT's.

    Attributes:
      mlp_dim: hidden units; 0: 4 times the width.
      swiglu: whether the MLP is silu(gate) * value (Shazeer 2020), with `fc1` giving
        [gate | value], each of `mlp_dim`.
      mlp_norm: whether a LayerNorm stands before `fc2` (EVA-02's sub-LN).
      layer_scale: whether each branch is multiplied by a learned vector, `ls1` and
        `ls2`, before it is added (Touvron 2021; DINOv2).
    """

    mlp_dim: int = 0
    swiglu: bool = False
    mlp_norm: bool = False
    layer_scale: bool = False


PLAIN = Parts()
Tables = tuple[Array, Array]  # of positions.rotary


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv; softmax in float32.

    Attributes:
      qk_norm: whether a LayerNorm over its channels is applied to each head's q and to
        its k (Dehghani 2023), with `ln_eps`; parameters are shared by the heads.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    outputs: tuple[int, int] | None = None
    qk_norm: bool = False
    ln_eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array, positions: Tables | None = None) -> Array:
        """(b, n, d) -> (b, m, d); `positions` turn q and k, see `positions.turned`."""
        d, outputs = x.shape[-1], slice(*(self.outputs or (None,)))
        if self.num_heads < 1 or d % self.num_heads:
            raise PacxError(f"width {d} is not divisible by num_heads {self.num_heads}")
        qkv = Dense(3 * d, kernel_init=xavier, dtype=self.dtype, name="qkv")(x)
        if self.qk_norm:
            qkv = self._normalized(qkv)
        if positions is not None:
            qkv = turned_qkv(qkv, self.num_heads, positions)
        if self.is_mutable_collection("intermediates"):  # caller wants probabilities
            q, k, v = attention.split_heads(qkv, self.num_heads)
            probs = attention.probabilities(q, k)
            self.sow("intermediates", "attention", probs)
            x = attention.join_heads(attention.weighted(probs, v))[:, outputs]
        else:
            x = attention.attend(qkv, self.num_heads, self.attention, outputs)
        return Dense(d, kernel_init=xavier, dtype=self.dtype, name="proj")(x)

    def _normalized(self, qkv: Array) -> Array:
        """Fused projections (b, n, 3 h c) with normalised q and k, in their dtype.

        They stay fused, as every way of computing attention takes them.
        """
        q, k, v = jnp.split(qkv, 3, axis=-1)
        heads = (*q.shape[:-1], self.num_heads, q.shape[-1] // self.num_heads)
        normed = [
            LayerNorm(self.ln_eps, name=name)(x.reshape(heads)).reshape(x.shape)
            for name, x in (("q_norm", q), ("k_norm", k))
        ]
        return jnp.concatenate([*(x.astype(v.dtype) for x in normed), v], axis=-1)


def turned_qkv(qkv: Array, num_heads: int, positions: Tables) -> Array:
    """Fused projections (b, n, 3 h c) with q and k turned by their positions."""
    b, n, width = qkv.shape
    d = width // 3
    heads = qkv[..., : 2 * d].reshape(b, n, 2 * num_heads, -1)
    qk = turned(heads, *positions).reshape(b, n, 2 * d)
    return jnp.concatenate([qk, qkv[..., 2 * d :]], axis=-1)


class Mlp(nn.Module):
    """Two dense layers with an exact GELU between them, or as `Parts` says.

    Attributes:
      ln_eps: epsilon of the LayerNorm of `Parts.mlp_norm`.
    """

    mlp_dim: int
    dtype: jnp.dtype = jnp.float32
    parts: Parts = PLAIN
    ln_eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d, swiglu = x.shape[-1], self.parts.swiglu
        hidden = self.mlp_dim * (2 if swiglu else 1)
        x = Dense(hidden, kernel_init=xavier, dtype=self.dtype, name="fc1")(x)
        if swiglu:
            gate, value = jnp.split(x, 2, axis=-1)
            x = silu(gate) * value
        else:
            x = gelu(x)
        if self.parts.mlp_norm:
            x = LayerNorm(self.ln_eps, name="norm")(x)
        return Dense(d, kernel_init=xavier, dtype=self.dtype, name="fc2")(x)


class Block(nn.Module):
    """Pre-norm transformer block. LayerNorm is in float32, products in `dtype`.

    Attributes:
      outputs: (first, last + 1) of the tokens to compute outputs for; None: all.
      qk_norm: see `Attention`.
      parts: see `Parts`.
    """

    num_heads: int
    mlp_dim: int
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    outputs: tuple[int, int] | None = None
    qk_norm: bool = False
    parts: Parts = PLAIN

    @nn.compact
    def __call__(
        self, x: Array, positions: Tables | None = None, paths: Array | None = None
    ) -> Array:
        """(b, n, d) -> (b, m, d); `paths` (b, 2) multiply the two branches."""
        y = LayerNorm(self.ln_eps, name="norm1")(x)
        ways = self.dtype, self.attention, self.outputs, self.qk_norm, self.ln_eps
        y = Attention(self.num_heads, *ways, name="attn")(y, positions)
        y = self._scaled(y, 1, paths)
        x = (x if self.outputs is None else x[:, slice(*self.outputs)]) + y
        y = LayerNorm(self.ln_eps, name="norm2")(x)
        mlp = Mlp(self.mlp_dim, self.dtype, self.parts, self.ln_eps, name="mlp")
        return x + self._scaled(mlp(y), 2, paths)

    def _scaled(self, y: Array, branch: int, paths: Array | None) -> Array:
        """A branch's output (b, n, d), multiplied by its layer scale and its path."""
        if self.parts.layer_scale:
            scale = self.param(f"ls{branch}", nn.initializers.ones, y.shape[-1:])
            y = y * scale.astype(y.dtype)
        if paths is not None:
            y = y * paths[:, branch - 1, None, None].astype(y.dtype)
        return y


def drop_path(key: jax.Array, rows: Array, depth: int, rate: float) -> jax.Array:
    """What each image's branches are multiplied by in training, (b, depth, 2) float32.

    0 with a probability that grows evenly from 0 in the first block to `rate` in the
    last, else 1 / (1 - that) (stochastic depth, Huang 2016; DeiT). It depends on the
    image's number `rows` (b,) in the global batch.
    """
    if not 0 <= rate < 1:
        raise PacxError(f"config.drop_path is {rate}: give at least 0 and below 1")
    rates = rate * jnp.arange(depth) / max(depth - 1, 1)
    words = dropout.bits(dropout.row_seeds(key, rows), (depth, 2))
    draws = (words >> 8).astype(jnp.float32) / 2**24  # in [0, 1), exact
    return (draws >= rates[:, None]) / (1 - rates[:, None])


# config.remat -> what a block keeps for the backward pass; the rest is computed again.
# "dots": the outputs of its four dense layers; "full": only its input.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def with_remat(block: type[nn.Module], name: str) -> type[nn.Module]:
    """The block, computed again in the backward pass as `REMAT` says by this name.

    Raises:
      PacxError: no such name.
    """
    if name not in REMAT:
        raise PacxError(f"config.remat {name!r}: choose {', '.join(REMAT)}")
    return block if name == "none" else nn.remat(block, policy=REMAT[name])


def stack(
    x: Array,
    depth: int,
    num_heads: int,
    ln_eps: float,
    dtype,
    remat: str = "none",
    attention: str = "auto",
    outputs: tuple[int, int] | None = None,
    qk_norm: bool = False,
    final_ln_eps: float = 0.0,
    parts: Parts = PLAIN,
    positions: Tables | None = None,
    gather: Callable[[Array], Array] | None = None,
    paths: Array | None = None,
) -> Array:
    """Applies `depth` blocks and a LayerNorm to (b, n, d), named in the calling module.

    `remat` (REMAT) sets what the backward pass computes again, and `attention`
    (`attention.WAYS`) how attention is computed. Parameters and adapters have the same
    names either way.

    Args:
      outputs: (first, last + 1) of the tokens to return; the last block computes only
        keys and values of the others.
      qk_norm: see `Attention`.
      final_ln_eps: epsilon of the last LayerNorm; 0: `ln_eps`.
      parts: see `Parts`.
      positions: rotary ones, see `Attention`.
      gather: (b, n, d) -> (b, m, d), what the last LayerNorm is applied to; None: all.
      paths: (b, depth, 2), see `drop_path`; None: every branch counts.
    """
    block_of = with_remat(Block, remat)
    sharding.check_heads(num_heads)
    x, mlp_dim = sharding.constrain_rows(x), parts.mlp_dim or 4 * x.shape[-1]
    x = sharding.row_major(x)
    for i in range(depth):
        name = f"block_{i:02d}"
        ways = dtype, attention, outputs if i == depth - 1 else None, qk_norm
        block = block_of(num_heads, mlp_dim, ln_eps, *ways, parts, name=name)
        x = block(x, positions, None if paths is None else paths[:, i])
        x = sharding.constrain_rows(x)
    if gather is not None:
        x = gather(x)
    return LayerNorm(final_ln_eps or ln_eps, name="norm")(x)
