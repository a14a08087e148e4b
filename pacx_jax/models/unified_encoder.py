"""CheXmix as an encoder of X-rays: image tokenizer, then the transformer's layers.

Shape letters: b batch, h w c image, k codes, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from pacx_jax.models import unified, vq
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int, Int32


class Encoder(nn.Module):
    """Mean over the image's positions of the outputs of some layers (arXiv 2604.22989).

    Attributes:
      vq: the image tokenizer, frozen.
      transformer: over codes and words.
      words: the vocabulary.
      layers: (first, last + 1) of the blocks whose outputs are averaged.
    """

    vq: vq.VQ
    transformer: unified.Transformer
    words: unified.Words
    layers: tuple[int, int]
    views = 0  # it has no view embeddings

    @property
    def dtype(self):
        return self.transformer.dtype

    @property
    def channels(self) -> int:
        return self.vq.channels

    @property
    def width(self) -> int:
        return self.transformer.width

    @property
    def depth(self) -> int:
        """Number of blocks that the embedding needs."""
        return self.layers[1]

    def reads(self, path: str) -> bool:
        """Whether the embedding has a gradient for a parameter of this path, a/b/c."""
        part, _, rest = path.partition("/")
        last = range(self.depth, self.transformer.depth)
        idle = ("norm", "head", *(f"block_{i:02d}" for i in last))
        return part == "transformer" and rest.partition("/")[0] not in idle

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        ids_keep: Int[Array, "b m"] | None = None,
        *,
        cls_only: bool = False,
        view: None = None,
    ) -> Float[Array, "b tokens d"]:
        """Normalised images (b, h, w, c) -> (b, 1 + k, d): the embedding, each code's.

        Args:
          ids_keep: (b, m), numbers of the codes that are seen. The pixels of the others
            are grey before the image is encoded, and their tokens are [MASK].
          cls_only: the embedding alone, (b, 1, d).
        """
        if self.is_initializing():  # every parameter
            self.vq(images)
            self.transformer(jnp.zeros((1, 2), jnp.int32))
        tokens = self.tokens(images, ids_keep)
        each = self.transformer.mean_layers(tokens, self.layers)[:, 1:-1]
        z = each.mean(1, keepdims=True)
        return z if cls_only else jnp.concatenate([z, each], axis=1)

    def each_layer(
        self, images: Float[Array, "b h w c"]
    ) -> Float32[Array, "b depth d"]:
        """Mean over the image's positions of each block's output, (b, depth, d)."""
        each = self.transformer.layers(self.tokens(images), self.transformer.depth)
        return jnp.stack([y[:, 1:-1].mean(1) for y in each], 1).astype(jnp.float32)

    def tokens(
        self, images: Float[Array, "b h w c"], ids_keep: Int[Array, "b m"] | None = None
    ) -> Int32[Array, "b n"]:
        """[IMG] codes [/IMG] of images, (b, k + 2) int32; see a call."""
        hidden = None
        if ids_keep is not None:
            n = images.shape[1] * images.shape[2] // self.vq.factor**2
            rows = jnp.arange(len(images))[:, None]
            hidden = ~jnp.zeros((len(images), n), bool).at[rows, ids_keep].set(True)
        codes = self.codes(images, hidden)
        none = jnp.full((len(images), 1), self.words.pad_id, jnp.int32)
        tokens = self.words.sequences(codes, none, jnp.zeros(len(images), bool))
        if hidden is not None:
            hidden = jnp.pad(hidden, ((0, 0), (1, 2)))
            tokens = jnp.where(hidden, self.words.mask, tokens)
        return tokens[:, :-1]

    def codes(
        self, images: Float[Array, "b h w c"], hidden: Bool[Array, "b k"] | None = None
    ) -> Int32[Array, "b k"]:
        """Codes (b, k) of images (b, h, w, c), row by row.

        Args:
          hidden: (b, k) bool. The pixels of these patches are grey (0) before the image
            is encoded, so that no other code tells of them; None: none.
        """
        b, h, w, _ = images.shape
        if hidden is not None:
            f = self.vq.factor
            grid = hidden.reshape(b, h // f, w // f)
            pixels = jnp.repeat(jnp.repeat(grid, f, 1), f, 2)
            images = jnp.where(pixels[..., None], 0, images)
        return self.vq.encode(images).reshape(b, -1)


def module(architecture: dict, dtype=jnp.float32) -> Encoder:
    """The module of a model folder's description, see `architecture`."""
    a = architecture
    words = words_of(a)
    transformer = unified.Transformer(
        vocab_size=words.size,
        **{k: a[k] for k in ("length", "width", "depth", "num_heads", "positions")},
        **{k: a[k] for k in ("tied", "ln_eps")},
        dtype=dtype,
    )
    return Encoder(vq.module(a["vq"]), transformer, words, tuple(a["layers"]))


def words_of(architecture: dict) -> unified.Words:
    """The vocabulary of a model folder's description."""
    names = ("text_size", "pad_id", "start_id", "end_id")
    kept = {k: architecture[k] for k in names}
    return unified.Words(codes=architecture["vq"]["codes"], **kept)


def architecture(
    of_vq: dict,
    words: unified.Words,
    transformer: unified.Transformer,
    layers: tuple[int, int],
) -> dict:
    """A trained model as in a model folder's config.json; sizes in pixels.

    Args:
      of_vq: the image tokenizer's.
    """
    names = ("length", "width", "depth", "num_heads", "positions", "tied", "ln_eps")
    return {
        "image_size": of_vq["image_size"],
        "channels": of_vq["channels"],
        "patch_size": 2 ** len(of_vq["widths"]),
        "layers": list(layers),
        **{k: getattr(words, k) for k in ("text_size", "pad_id", "start_id", "end_id")},
        **{k: getattr(transformer, k) for k in names},
        "vq": of_vq,
    }
