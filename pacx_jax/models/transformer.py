"""Transformer blocks of the ViT encoder and of the MAE's decoder.

Shape letters: b batch, n tokens, h heads, c channels of a head, d width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import attention
from pacx_jax.models.dense import Dense, gelu
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.types import Array

xavier = nn.initializers.xavier_uniform()


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
    def __call__(self, x: Array) -> Array:
        d, outputs = x.shape[-1], slice(*(self.outputs or (None,)))
        if self.num_heads < 1 or d % self.num_heads:
            raise PacxError(f"width {d} is not divisible by num_heads {self.num_heads}")
        qkv = Dense(3 * d, kernel_init=xavier, dtype=self.dtype, name="qkv")(x)
        if self.qk_norm:
            qkv = self._normalized(qkv)
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


class Mlp(nn.Module):
    """Two dense layers with an exact GELU between them."""

    mlp_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        x = Dense(self.mlp_dim, kernel_init=xavier, dtype=self.dtype, name="fc1")(x)
        return Dense(d, kernel_init=xavier, dtype=self.dtype, name="fc2")(gelu(x))


class Block(nn.Module):
    """Pre-norm transformer block. LayerNorm is in float32, products in `dtype`.

    Attributes:
      outputs: (first, last + 1) of the tokens to compute outputs for; None: all.
      qk_norm: see `Attention`.
    """

    num_heads: int
    mlp_dim: int
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    outputs: tuple[int, int] | None = None
    qk_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = LayerNorm(self.ln_eps, name="norm1")(x)
        ways = self.dtype, self.attention, self.outputs, self.qk_norm, self.ln_eps
        y = Attention(self.num_heads, *ways, name="attn")(y)
        x = (x if self.outputs is None else x[:, slice(*self.outputs)]) + y
        y = LayerNorm(self.ln_eps, name="norm2")(x)
        return x + Mlp(self.mlp_dim, self.dtype, name="mlp")(y)


# config.remat -> what a block keeps for the backward pass; the rest is computed again.
# "dots": the outputs of its four dense layers; "full": only its input.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


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
    """
    if remat not in REMAT:
        raise PacxError(f"config.remat {remat!r}: choose {', '.join(REMAT)}")
    sharding.check_heads(num_heads)
    block_of = Block if remat == "none" else nn.remat(Block, policy=REMAT[remat])
    x, width = sharding.constrain_rows(x), 4 * x.shape[-1]
    x = sharding.row_major(x)
    for i in range(depth):
        name = f"block_{i:02d}"
        ways = dtype, attention, outputs if i == depth - 1 else None, qk_norm
        x = block_of(num_heads, width, ln_eps, *ways, name=name)(x)
        x = sharding.constrain_rows(x)
    return LayerNorm(final_ln_eps or ln_eps, name="norm")(x)
