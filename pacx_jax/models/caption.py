"""Report decoder with the image it reads: text from the visible tokens of one view."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.models import embeddings, positions, text
from pacx_jax.models.dense import Dense
from pacx_jax.models.transformer import xavier
from pacx_jax.types import Array


class Memory(nn.Module):
    """What the text attends to: a view's encoder tokens, placed and named.

    Learned positions are added to the patches, and an embedding of the view to all
    tokens. Tokens of another width are projected.

    Attributes:
      width: of the text decoder.
      grid: (rows, columns) of all patches.
      views: number of kinds of views; 0: no embedding.
    """

    width: int
    grid: tuple[int, int]
    views: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, ids_keep: Array, view: Array) -> Array:
        """Tokens (b, 1 + k, e), patches (b, k), views (b,) -> (b, 1 + k, width)."""
        if tokens.shape[-1] != self.width:
            tokens = Dense(
                self.width, kernel_init=xavier, dtype=self.dtype, name="embed"
            )(tokens)
        posemb = positions.learned(self, self.grid, self.grid, cls=False)[0]
        placed = embeddings.take_rows(posemb, ids_keep)
        x = tokens + jnp.pad(placed, ((0, 0), (1, 0), (0, 0)))
        view = view if self.views else None
        named = embeddings.of_view(self, self.views, view)
        return x if named is None else x + named


class Captioner(nn.Module):
    """The memory of a view, and the text decoder that reads it."""

    memory: Memory
    text: text.TextDecoder

    def __call__(self, tokens: Array, ids_keep: Array, view: Array, report: Array):
        """Hidden states (b, t, d) before the output layer, in evaluation mode."""
        return self.hidden(tokens, ids_keep, view, report)

    def hidden(
        self,
        tokens: Array,
        ids_keep: Array,
        view: Array,
        report: Array,
        train: bool = False,
        key: jax.Array | None = None,
        rows: Array | None = None,
    ) -> Array:
        """What the output layer takes, (b, t, d); `text.TextDecoder.hidden`'s rest."""
        memory = self.memory(tokens, ids_keep, view)
        return self.text.hidden(report, memory, train=train, key=key, rows=rows)

    def remember(self, tokens: Array, ids_keep: Array, view: Array) -> Array:
        """The memory alone, for generation."""
        return self.memory(tokens, ids_keep, view)

    def start(self, tokens: Array, ids_keep: Array, view: Array, report: Array):
        """Logits, for `init`: every parameter is used."""
        return self.text(report, self.memory(tokens, ids_keep, view))
