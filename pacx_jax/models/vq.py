"""Convolutional autoencoder with a codebook: an image becomes a grid of token numbers.

VQ-VAE (van den Oord 2017), codes and features on the unit sphere (ViT-VQGAN, Yu 2022).
Shape letters: b batch, h w c image, f factor, g = h / f and u = w / f the grid,
k codes, d code width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.losses import l2_normalize
from pacx_jax.models import transformer
from pacx_jax.models.dense import Dense, silu
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, Int32

EPS = 1e-6  # of every LayerNorm


class Block(nn.Module):
    """x + two 3x3 convolutions of it, each after a LayerNorm over channels and SiLU."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w width"]) -> Float[Array, "b h w width"]:
        """(b, h, w, width) -> the same shape."""
        y = x
        for i in (1, 2):
            y = silu(LayerNorm(EPS, name=f"norm{i}")(y))
            y = nn.Conv(self.width, (3, 3), dtype=self.dtype, name=f"conv{i}")(y)
        return x + y


def halved(
    x: Float[Array, "b h w c"], width: int, dtype, name: str
) -> Float[Array, "b h//2 w//2 width"]:
    """A 4x4 convolution of stride 2, named in the calling module."""
    ways = {"strides": (2, 2), "padding": ((1, 1), (1, 1)), "dtype": dtype}
    return nn.Conv(width, (4, 4), **ways, name=name)(x)


class Encoder(nn.Module):
    """Images -> features; level i halves the sides, to widths[i] channels.

    Attributes:
      widths, blocks: channels and residual blocks of each level.
      code_width: channels of the features.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    code_width: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b g u d"]:
        """(b, h, w, c) -> (b, g, u, d)."""
        block_of = transformer.with_remat(Block, self.remat)
        block = 0
        for i, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            x = halved(x, width, self.dtype, f"down_{i}")
            for _ in range(count):
                x = block_of(width, self.dtype, name=f"block_{block:02d}")(x)
                block += 1
        x = silu(LayerNorm(EPS, name="norm")(x))
        return Dense(self.code_width, dtype=self.dtype, name="out")(x)


class Decoder(nn.Module):
    """Features -> images; the encoder's levels in reverse.

    Attributes:
      widths, blocks: the encoder's.
      channels: of the images.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    channels: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "b g u d"]) -> Float[Array, "b h w c"]:
        """(b, g, u, d) -> (b, h, w, c)."""
        block_of = transformer.with_remat(Block, self.remat)
        x = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="in")(x)
        block, outputs = 0, (*self.widths[-2::-1], self.channels)
        for i, (count, width) in enumerate(
            zip(self.blocks[::-1], outputs, strict=True)
        ):
            for _ in range(count):
                x = block_of(x.shape[-1], self.dtype, name=f"block_{block:02d}")(x)
                block += 1
            # A pixel becomes four: a transposed convolution of kernel and stride 2.
            x = silu(LayerNorm(EPS, name=f"norm_{i}")(x))
            x = Dense(4 * width, dtype=self.dtype, name=f"up_{i}")(x)
            x = einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
        return x


class Codebook(nn.Module):
    """The codes: rows of length 1, which no gradient reaches.

    Attributes:
      codes: their number k.
      width: their length d.
    """

    codes: int
    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "k d"]:
        """(k, d)."""
        return self.param("codes", _directions, (self.codes, self.width))


class VQ(nn.Module):
    """Encoder, codebook and decoder of images whose sides the factor divides.

    Attributes:
      channels: of the images, 1 or 3.
      widths: channels of each level; each halves the sides, so `factor` is 2**levels.
      blocks: residual blocks of each level.
      codes: number of codes.
      code_width: length of a code.
      dtype: of convolutions and matrix products. Parameters are float32, and features
        and codes are compared in float32.
      remat: what the backward pass computes again, see `transformer.stack`.

    `encode` and `decode` are methods for `apply`; both may be jitted:

      codes = model.apply({"params": params}, images, method="encode")
    """

    channels: int = 1
    widths: tuple[int, ...] = (64, 128, 256, 256)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    codes: int = 4096
    code_width: int = 32
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        levels = (self.widths, self.blocks)
        ways = (self.dtype, self.remat)
        self.encoder = Encoder(*levels, self.code_width, *ways)
        self.decoder = Decoder(*levels, self.channels, *ways)
        self.codebook = Codebook(self.codes, self.code_width)

    @property
    def factor(self) -> int:
        """Pixels a side that a token stands for."""
        return 2 ** len(self.widths)

    def __call__(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[
        Float[Array, "b h w c"], Float32[Array, "b g u d"], Int32[Array, "b g u"]
    ]:
        """Reconstructs normalised images (b, h, w, c), with straight-through gradients.

        The decoder gets the codes; the gradient with respect to them goes to the
        features unchanged.

        Returns:
          images (b, h, w, c); features (b, g, u, d) float32, of length 1; codes
          (b, g, u) int32.
        """
        z = self.features(images)
        codes = nearest(z, self.codebook())
        chosen = self.lookup(codes)
        return self.decoder(chosen + (z - jax.lax.stop_gradient(z))), z, codes

    def features(self, images: Float[Array, "b h w c"]) -> Float32[Array, "b g u d"]:
        """Normalised images (b, h, w, c) -> (b, g, u, d) float32, of length 1."""
        check_images(images.shape, self.channels, self.factor)
        return l2_normalize(self.encoder(images))

    def lookup(self, codes: Int[Array, "b g u"]) -> Float[Array, "b g u d"]:
        """Codes (b, g, u) -> (b, g, u, d)."""
        return jnp.take(self.codebook(), codes, axis=0, mode="clip")

    def encode(self, images: Float[Array, "b h w c"]) -> Int32[Array, "b g u"]:
        """Normalised images (b, h, w, c) -> codes (b, h / f, w / f) int32.

        Raises:
          PacxError: another number of channels, or sides that f does not divide.
        """
        return nearest(self.features(images), self.codebook())

    def decode(self, codes: Int[Array, "b g u"]) -> Float[Array, "b h w c"]:
        """Codes (b, h / f, w / f) -> normalised images (b, h, w, c).

        Codes out of range count as the nearest in range: `check_codes` before.
        """
        return self.decoder(self.lookup(codes))


def architecture(model, channels: int, image_size: int) -> dict:
    """`config.model` as in a model folder's config.json; image_size in pixels.

    Raises:
      PacxError: levels that do not match, or an image size that they do not divide.
    """
    widths, blocks = tuple(model.widths), tuple(model.blocks)
    if not widths or len(widths) != len(blocks):
        raise PacxError(
            f"config.model.widths {widths} and config.model.blocks {blocks}: give one "
            "of each for every halving of the sides"
        )
    if image_size % 2 ** len(widths):
        raise PacxError(
            f"config.data.image_size {image_size}: config.model.widths has "
            f"{len(widths)} halvings, so give a multiple of {2 ** len(widths)}"
        )
    for name in ("codes", "code_width"):
        if model[name] < 2:
            raise PacxError(f"config.model.{name} is {model[name]}: give at least 2")
    return {
        "image_size": image_size,
        "channels": channels,
        "widths": list(widths),
        "blocks": list(blocks),
        "codes": model.codes,
        "code_width": model.code_width,
    }


def module(architecture: dict, dtype=jnp.float32, remat: str = "none") -> VQ:
    """The module of a model folder's description."""
    fields = {k: v for k, v in architecture.items() if k != "image_size"}
    fields |= {k: tuple(fields[k]) for k in ("widths", "blocks")}
    return VQ(**fields, dtype=dtype, remat=remat)


def nearest(
    z: Float[Array, "*grid d"], codes: Float[Array, "k d"]
) -> Int32[Array, "*grid"]:
    """The nearest code of each feature: (..., d), (k, d) -> (...) int32.

    Both have length 1, so it has the largest inner product; of equals, the first.
    """
    score = jnp.einsum("...d,kd->...k", z, codes, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(score, axis=-1).astype(jnp.int32)


def check_images(shape: tuple[int, ...], channels: int, factor: int) -> None:
    """Refuses images (b, h, w, c) of other channels, or sides f does not divide."""
    fits = len(shape) == 4 and shape[3] == channels
    if not fits or shape[1] % factor or shape[2] % factor:
        raise PacxError(
            f"images of shape {tuple(shape)}: this tokenizer takes (n, h, w, "
            f"{channels}) with h and w multiples of {factor}"
        )


def check_codes(codes, count: int) -> Int32[np.ndarray, "n g u"]:
    """Codes (n, h / f, w / f) as int32; PacxError for others, or out of range."""
    codes = np.asarray(codes)
    if codes.ndim != 3 or codes.dtype.kind not in "iu":
        raise PacxError(
            f"codes of dtype {codes.dtype} and shape {codes.shape}: give whole numbers "
            "(n, rows, columns)"
        )
    wrong = codes[(codes < 0) | (codes >= count)]
    if wrong.size:
        raise PacxError(
            f"code {wrong[0]} is out of range: this tokenizer has codes 0 to "
            f"{count - 1} ({wrong.size} such)"
        )
    return codes.astype(np.int32)


def _directions(key, shape, dtype=jnp.float32):
    """Points drawn evenly from the unit sphere."""
    return l2_normalize(jax.random.normal(key, shape, dtype))
