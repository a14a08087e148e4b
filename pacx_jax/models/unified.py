"""CheXmix's model: one causal transformer over image codes and report tokens.

One vocabulary and one table of embeddings serve both (arXiv 2604.22989):

  0 to t - 1     the tokenizer's tokens, with its [PAD], [CLS] and [SEP]
  t, t + 1       [IMG] and [/IMG], around an image
  t + 2          [MASK], in place of an input of either modality
  t + 3 on       the image tokenizer's codes

A sequence is [IMG] codes [/IMG] [CLS] text [SEP], or the text first; [CLS] begins a
text. Padding stands last, so that the causal mask alone keeps it from being read.

Shape letters: b batch, n tokens of a sequence, k codes, t text tokens, d width, h
heads, c channels. The parameter tree is an API: token_embed, pos_embed,
block_NN/{norm1,attn/{qkv,proj},norm2,mlp/{fc1,fc2}}, norm, head.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.losses import wide
from pacx_jax.models import attention, positions, transformer, vit
from pacx_jax.models.dense import Dense
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.types import Array, Params

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int, Int32

POSITIONS = ("rotary", "learned")
PAD, IMAGE, TEXT = 0, 1, 2  # kinds of tokens


@dataclasses.dataclass(frozen=True)
class Words:
    """The shared vocabulary.

    Attributes:
      text_size: t, tokens of the tokenizer.
      codes: of the image tokenizer.
      pad_id, start_id, end_id: the tokenizer's [PAD], [CLS] and [SEP].
    """

    text_size: int
    codes: int
    pad_id: int = 0
    start_id: int = 2
    end_id: int = 3

    @property
    def image_start(self) -> int:
        return self.text_size

    @property
    def image_end(self) -> int:
        return self.text_size + 1

    @property
    def mask(self) -> int:
        return self.text_size + 2

    @property
    def first_code(self) -> int:
        return self.text_size + 3

    @property
    def size(self) -> int:
        """Number of tokens that there are."""
        return self.first_code + self.codes

    def kinds(self, tokens: Int[Array, "*b n"]) -> Int[Array, "*b n"]:
        """PAD, IMAGE (with [IMG] and [/IMG]) or TEXT of each token."""
        kinds = jnp.where(tokens >= self.text_size, IMAGE, TEXT)
        return jnp.where(tokens == self.pad_id, PAD, kinds)

    def content(self, tokens: Int[Array, "*b n"]) -> Bool[Array, "*b n"]:
        """Whether a token is a code or a word: what a mask may replace."""
        kept = (self.pad_id, self.start_id, self.end_id)
        word = (tokens < self.text_size) & ~jnp.isin(tokens, jnp.array(kept))
        return word | (tokens >= self.first_code)

    def sequences(
        self,
        codes: Int[Array, "b k"],
        text: Int[Array, "b t"],
        text_first: Bool[Array, " b"],
    ) -> Int32[Array, "b k+2+t"]:
        """Codes (b, k) and texts (b, t) with [CLS] and [SEP] -> tokens (b, k + 2 + t).

        Args:
          text: padded; padding alone where there is none.
          text_first: (b,) bool.
        """
        first = jnp.full((len(codes), 1), self.image_start, jnp.int32)
        image = jnp.concatenate(
            [first, codes + self.first_code, first + 1], axis=1
        ).astype(jnp.int32)
        text = jnp.asarray(text, jnp.int32)
        both = jnp.where(
            jnp.asarray(text_first)[:, None],
            jnp.concatenate([text, image], axis=1),
            jnp.concatenate([image, text], axis=1),
        )
        order = jnp.argsort(both == self.pad_id, axis=1, stable=True)
        return jnp.take_along_axis(both, order, axis=1, mode="clip")


class Attention(nn.Module):
    """Causal self-attention with a fused qkv, over a sequence or its next token."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, turns=None, past=None, at=None):
        """(b, n, d) -> (b, n, d), and the keys and values (b, n, d) each.

        Args:
          turns: rotary tables (n, c) of these tokens; None: none.
          past: keys and values (b, m, d) of all m places; x (b, 1, d) is then the
            token at place `at`: its key and value are written there, and it attends to
            the places up to it.
        """
        d = x.shape[-1]
        dense = {"kernel_init": vit.xavier, "dtype": self.dtype}
        qkv = Dense(3 * d, name="qkv", **dense)(x)
        if turns is not None:
            qkv = transformer.turned_qkv(qkv, self.num_heads, turns)
        kept = qkv[..., d : 2 * d], qkv[..., 2 * d :]
        if past is None:
            way = self.num_heads, self.attention
            out = attention.attend(qkv, *way, causal=True)
        else:
            write = jax.lax.dynamic_update_slice_in_dim
            kept = tuple(
                write(old, new, at, 1) for old, new in zip(past, kept, strict=True)
            )
            q, k, v = (
                y.reshape(*y.shape[:2], self.num_heads, -1).swapaxes(1, 2)
                for y in (qkv[..., :d], *kept)
            )
            seen = jnp.arange(k.shape[2])[None] <= at
            probs = attention.probabilities(q, k, seen)
            out = attention.join_heads(attention.weighted(probs, v))
        return Dense(d, name="proj", **dense)(out), kept


class Block(nn.Module):
    """Pre-norm block, as `transformer.Block` but causal; see `Attention`."""

    num_heads: int
    mlp_dim: int
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, turns=None, past=None, at=None):
        y = LayerNorm(self.ln_eps, name="norm1")(x)
        attend = Attention(self.num_heads, self.dtype, self.attention, name="attn")
        y, kept = attend(y, turns, past, at)
        x = x + y
        y = LayerNorm(self.ln_eps, name="norm2")(x)
        return x + transformer.Mlp(self.mlp_dim, self.dtype, name="mlp")(y), kept


class Transformer(nn.Module):
    """Predicts each next token of a sequence from those before it.

    Attributes:
      vocab_size: of `Words`.
      length: most tokens of a sequence.
      width, depth, num_heads: of the blocks; the MLP is 4 times as wide.
      positions: one of POSITIONS, by place in the sequence.
      tied: whether the output layer is the table of embeddings.
      dtype: of the matrix products. Parameters are float32.
      remat, attention: how blocks are computed, see `transformer.stack`.
    """

    vocab_size: int
    length: int
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    positions: str = "rotary"
    tied: bool = False
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention: str = "auto"

    def setup(self):
        if self.positions not in POSITIONS:
            raise PacxError(
                f"config.model.positions {self.positions!r}: choose "
                f"{' or '.join(POSITIONS)}"
            )
        if self.num_heads < 1 or self.width % self.num_heads:
            raise PacxError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}"
            )
        init = nn.initializers.normal(0.02)
        self.token_embed = nn.Embed(self.vocab_size, self.width, embedding_init=init)
        if self.positions == "learned":
            shape = (1, self.length, self.width)
            self.pos_embed = self.param("pos_embed", init, shape)
        block_of = transformer.with_remat(Block, self.remat)
        for i in range(self.depth):
            block = block_of(
                self.num_heads,
                4 * self.width,
                self.ln_eps,
                self.dtype,
                self.attention,
            )
            setattr(self, f"block_{i:02d}", block)
        self.norm = LayerNorm(self.ln_eps)
        if not self.tied:
            self.head = Dense(
                self.vocab_size,
                use_bias=False,
                kernel_init=vit.xavier,
                dtype=self.dtype,
            )

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n vocab"]:
        """Tokens (b, n) -> logits (b, n, vocab) of each next token.

        All logits at once are large; for the loss, see `hidden`.
        """
        return self._logits(self.hidden(tokens))

    def hidden(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """What the output layer takes, (b, n, d)."""
        x, _ = self._blocks(tokens, self.depth)
        return self.norm(x)

    def mean_layers(
        self, tokens: Int[Array, "b n"], layers: tuple[int, int]
    ) -> Float32[Array, "b n d"]:
        """Mean of the outputs of blocks first to last - 1, (b, n, d), in float32."""
        first, last = layers
        each = self.layers(tokens, last)[first:]
        return sum(map(wide, each)) / (last - first)

    def layers(
        self, tokens: Int[Array, "b n"], count: int
    ) -> list[Float[Array, "b n d"]]:
        """Outputs of the first `count` blocks, (b, n, d) each."""
        return [y for y, _ in self._blocks(tokens, count)[1]]

    def start(self, tokens: Int[Array, "b n"], length: int):
        """Logits (b, vocab) after the last of the tokens (b, n), and a cache.

        The cache holds keys and values of these and has room for `length` tokens:
        ((b, length, d), (b, length, d)) of each block.
        """
        x, each = self._blocks(tokens, self.depth)
        room = ((0, 0), (0, length - tokens.shape[1]), (0, 0))
        cache = [tuple(jnp.pad(y, room) for y in kept) for _, kept in each]
        return self._logits(self.norm(x[:, -1:]))[:, 0], cache

    def next_logits(self, tokens: Int[Array, " b"], at: Int[Array, ""], cache):
        """Logits (b, vocab) after the tokens (b,) at place `at`, and the new cache."""
        x, new = self._embed(tokens[:, None], at), []
        turns = self._turns()
        if turns is not None:
            cut = jax.lax.dynamic_slice_in_dim
            turns = tuple(cut(jnp.asarray(t), at, 1) for t in turns)
        for i, past in enumerate(cache):
            x, kept = getattr(self, f"block_{i:02d}")(x, turns, past, at)
            new.append(kept)
        return self._logits(self.norm(x))[:, 0], new

    def _blocks(self, tokens: Array, count: int):
        """The last of the first blocks' output; each one's with its keys and values."""
        sharding.check_heads(self.num_heads)
        n, turns, each = tokens.shape[1], self._turns(), []
        if n > self.length:
            raise PacxError(
                f"a sequence of {n} tokens, but the model takes {self.length}"
            )
        turns = None if turns is None else tuple(t[:n] for t in turns)
        x = sharding.row_major(sharding.constrain_rows(self._embed(tokens, 0)))
        for i in range(count):
            x, kept = getattr(self, f"block_{i:02d}")(x, turns)
            x = sharding.constrain_rows(x)
            each.append((x, kept))
        return x, each

    def _turns(self):
        if self.positions != "rotary":
            return None
        return positions.rotary_1d(self.length, self.width // self.num_heads)

    def _embed(self, tokens: Array, at) -> Array:
        """(b, n) -> (b, n, d) in `dtype`; the first token is at place `at`."""
        x = self.token_embed(tokens)
        if self.positions == "learned":
            n = tokens.shape[1]
            x += jax.lax.dynamic_slice_in_dim(self.pos_embed, at, n, axis=1)
        return x.astype(self.dtype)

    def _logits(self, x: Array) -> Array:
        if self.tied:
            kernel = self.token_embed.embedding.T.astype(self.dtype)
            return x.astype(self.dtype) @ kernel
        return self.head(x)


def output_kernel(params: Params, tied: bool) -> Float[Array, "d vocab"]:
    """The output layer (d, vocab) of a `Transformer`'s parameters."""
    if tied:
        return params["token_embed"]["embedding"].T
    return params["head"]["kernel"]


def middle_third(depth: int) -> tuple[int, int]:
    """(first, last + 1) of the blocks whose outputs are the embedding by default."""
    return depth // 3, max(depth - depth // 3, depth // 3 + 1)
