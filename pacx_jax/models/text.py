"""Report decoder of MVMAE-V2T: text from an X-ray's tokens (Vaswani 2017).

Post-norm transformer blocks: causal self-attention over the text, cross-attention to
image tokens, an MLP. Dense layers have no biases, and the output layer is not tied to
the token embeddings. In training it is teacher forced; `text_generation` writes texts.

Shape letters: b batch, t text tokens, m image tokens, d width, h heads, c channels of a
head. The parameter tree is an API: token_embed, pos_embed, block_NN/{self_attn/{qkv,
proj},norm1,cross_attn/{q,kv,proj},norm2,mlp/{fc1,fc2},norm3}, norm, head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import attention, transformer, vit
from pacx_jax.models.dense import Dense, gelu
from pacx_jax.models.dropout import drop, row_seeds
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, Integer, Key

POSEMB = ("none", "learned")
_PLACES = 6  # of a block where dropout acts

# (array (b, ...), place in the block) -> the array after dropout.
Drop = Callable[[Array, int], Array]


def linear(features: int, dtype, name: str | None = None) -> Dense:
    """A dense layer without a bias."""
    init = vit.xavier
    return Dense(features, use_bias=False, kernel_init=init, dtype=dtype, name=name)


def masked_attention(q: Array, k: Array, v: Array, mask: Array, dropped=None) -> Array:
    """Softmax attention, (b, h, t, c), to the keys whose mask (t, n) is True.

    The softmax is in float32. A masked key has weight 0 exactly, so it changes no bit.

    Args:
      dropped: probabilities (b, h, t, n) -> those after dropout; None: the same.
    """
    scores = jnp.einsum("bhtc,bhnc->bhtn", q * q.shape[-1] ** -0.5, k)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    probs = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
    probs = probs if dropped is None else dropped(probs)
    return attention.weighted(probs, v)


class SelfAttention(nn.Module):
    """Causal self-attention with a fused qkv, over a text or its next token."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropped=None, past=None, at=None):
        """(b, t, d) -> (b, t, d) and the keys and values (b, h, t, c).

        With `past`, keys and values (b, h, n, c) of all n places, x (b, 1, d) is the
        token at place `at`: its key and value are written there, and it attends to the
        places up to it.
        """
        d, t = x.shape[-1], x.shape[1]
        qkv = linear(3 * d, self.dtype, "qkv")(x)
        q, k, v = attention.split_heads(qkv, self.num_heads)
        mask = jnp.tril(jnp.ones((t, t), bool))
        if past is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            k, v = (
                write(old, new, at, 2) for old, new in zip(past, (k, v), strict=True)
            )
            mask = jnp.arange(k.shape[2])[None] <= at
        out = attention.join_heads(masked_attention(q, k, v, mask, dropped))
        return linear(d, self.dtype, "proj")(out), (k, v)


class CrossAttention(nn.Module):
    """Attention of text to image tokens of any width."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, memory: Array, dropped=None, kept=None) -> Array:
        """(b, t, d) and memory (b, m, e) -> (b, t, d).

        `kept` (b, h, m, c) each are the memory's keys and values from an earlier call
        of `keys_and_values`; the memory is then not read.
        """
        d = x.shape[-1]
        q = linear(d, self.dtype, "q")(x)
        q = einops.rearrange(q, "b t (h c) -> b h t c", h=self.num_heads)
        if kept is None:
            kv = linear(2 * d, self.dtype, "kv")(memory)
            kept = keys_and_values(kv, self.num_heads)
        k, v = kept
        out = masked_attention(q, k, v, jnp.ones((1, k.shape[2]), bool), dropped)
        return linear(d, self.dtype, "proj")(attention.join_heads(out))


def keys_and_values(kv: Array, num_heads: int) -> tuple[Array, Array]:
    """[k | v] of image tokens, (b, m, 2 h c) -> (b, h, m, c) each."""
    k, v = einops.rearrange(kv, "b m (kv h c) -> kv b h m c", kv=2, h=num_heads)
    return k, v


class Mlp(nn.Module):
    """Two dense layers with an exact GELU and dropout between them."""

    mlp_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropped=None) -> Array:
        d = x.shape[-1]
        x = gelu(linear(self.mlp_dim, self.dtype, "fc1")(x))
        return linear(d, self.dtype, "fc2")(x if dropped is None else dropped(x))


class Block(nn.Module):
    """Post-norm decoder block. The stream and LayerNorm are float32.

    Attributes:
      dropout: rate, at both attentions' weights and outputs and in the MLP.
    """

    num_heads: int
    mlp_dim: int
    ln_eps: float = 1e-5
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, memory: Array | None, seeds=None, cache=None, at=None):
        """(b, t, d) and memory (b, m, e) -> (b, t, d) and self-attention's k and v.

        Args:
          seeds: (places, b, 2) as `row_seeds` makes; None: no dropout.
          cache: {"past", "kept"} of one token's step, see the attentions.
        """

        def place(i):
            return None if seeds is None else lambda x: drop(x, seeds[i], self.dropout)

        def out(y, i):
            return y if seeds is None else place(i)(y)

        cache = cache or {"past": None, "kept": None}
        heads, dtype = self.num_heads, self.dtype
        attend = SelfAttention(heads, dtype, name="self_attn")
        y, past = attend(x, place(0), cache["past"], at)
        x = LayerNorm(self.ln_eps, name="norm1")(x + out(y, 1))
        attend = CrossAttention(heads, dtype, name="cross_attn")
        y = attend(x, memory, place(2), cache["kept"])
        x = LayerNorm(self.ln_eps, name="norm2")(x + out(y, 3))
        y = Mlp(self.mlp_dim, dtype, name="mlp")(x, place(4))
        return LayerNorm(self.ln_eps, name="norm3")(x + out(y, 5)), past


class TextDecoder(nn.Module):
    """Predicts each next token of a text from the tokens before it and an image.

    Attributes:
      vocab_size: number of tokens that there are.
      width, depth, num_heads, mlp_dim: of the blocks.
      dropout: rate in training.
      posemb: "none", where order comes from the causal mask alone, or "learned".
      max_length: most tokens of a text; sizes the learned positions.
      ln_eps: epsilon of every LayerNorm.
      dtype: dtype of the matrix products. Parameters are float32.
      remat: what a block computes again in the backward pass (`transformer.REMAT`).
    """

    vocab_size: int
    width: int = 768
    depth: int = 4
    num_heads: int = 8
    mlp_dim: int = 768
    dropout: float = 0.1
    posemb: str = "none"
    max_length: int = 300
    ln_eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        if self.posemb not in POSEMB:
            raise PacxError(
                f"config.caption.posemb {self.posemb!r}: choose {' or '.join(POSEMB)}"
            )
        if self.num_heads < 1 or self.width % self.num_heads:
            raise PacxError(
                f"config.caption: width {self.width} is not divisible by num_heads "
                f"{self.num_heads}"
            )
        init = nn.initializers.normal(0.02)
        self.token_embed = nn.Embed(self.vocab_size, self.width, embedding_init=init)
        if self.posemb == "learned":
            shape = (1, self.max_length, self.width)
            self.pos_embed = self.param("pos_embed", init, shape)
        block_of = transformer.with_remat(Block, self.remat)
        for i in range(self.depth):
            block = block_of(
                self.num_heads, self.mlp_dim, self.ln_eps, self.dropout, self.dtype
            )
            setattr(self, block_name(i), block)
        self.norm = LayerNorm(self.ln_eps)
        self.head = linear(self.vocab_size, self.dtype)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        memory: Float[Array, "b m e"],
        *,
        train: bool = False,
        key: Key[jax.Array, ""] | None = None,
        rows: Integer[Array, " b"] | None = None,
    ) -> Float[Array, "b t vocab"]:
        """Tokens (b, t) and memory (b, m, e) -> logits (b, t, vocab) of token t + 1.

        All logits at once are large; for the loss, see `hidden`.

        Args:
          train: turns dropout on, which needs `key`.
          rows: (b,) the rows' numbers in the global batch, by which dropout is drawn.
            None: 0 to b - 1.
        """
        x = self.hidden(tokens, memory, train=train, key=key, rows=rows)
        return self.head(x)

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        memory: Float[Array, "b m e"],
        *,
        train: bool = False,
        key: Key[jax.Array, ""] | None = None,
        rows: Integer[Array, " b"] | None = None,
    ) -> Float32[Array, "b t d"]:
        """What the output layer takes, (b, t, d) float32; arguments as of a call."""
        sharding.check_heads(self.num_heads)
        b, t = tokens.shape
        if t > self.max_length:
            raise PacxError(
                f"a text of {t} tokens, but config.data.report_length is "
                f"{self.max_length}"
            )
        seeds = [None] * self.depth
        if train and self.dropout:
            if key is None:
                raise ValueError("dropout needs a key")
            rows = jnp.arange(b) if rows is None else rows
            places = jnp.arange(self.depth * _PLACES)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
            seeds = jax.vmap(row_seeds, (0, None))(keys, rows)
            seeds = seeds.reshape(self.depth, _PLACES, b, 2)
        x = self._embed(tokens, 0)
        for i in range(self.depth):
            x = sharding.constrain_rows(x)
            x, _ = getattr(self, block_name(i))(x, memory, seeds[i])
        return self.norm(sharding.constrain_rows(x))

    def next_logits(self, tokens: Array, at: Array, cache):
        """Logits (b, vocab) after the tokens (b,) at place `at`, and the new cache.

        `text_generation` makes the first cache.
        """
        x, new = self._embed(tokens[:, None], at), []
        for i, each in enumerate(cache):
            x, past = getattr(self, block_name(i))(x, None, None, each, at)
            new.append({**each, "past": past})
        return self.head(self.norm(x))[:, 0], new

    def _embed(self, tokens: Array, at) -> Array:
        """(b, t) -> (b, t, d); the first token is at place `at`."""
        x = self.token_embed(tokens)
        if self.posemb == "learned":
            t = tokens.shape[1]
            x += jax.lax.dynamic_slice_in_dim(self.pos_embed, at, t, axis=1)
        return x


def block_name(i: int) -> str:
    """The name of block i in the parameter tree."""
    return f"block_{i:02d}"


def from_config(config, vocab_size: int, width: int = 0) -> TextDecoder:
    """The decoder that `config.caption` describes, of texts of `data.report_length`.

    Args:
      width: of the decoder; 0: `config.caption.width`, else the published 768.
    """
    c = config.caption
    return TextDecoder(
        vocab_size=vocab_size,
        width=width or c.get("width", 768),
        depth=c.depth,
        num_heads=c.num_heads,
        mlp_dim=c.mlp_dim,
        dropout=c.dropout,
        posemb=c.posemb,
        max_length=config.data.report_length,
        dtype=jnp.dtype(config.dtype),
        remat=config.get("remat", "none"),
    )
