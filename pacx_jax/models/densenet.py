"""DenseNet (Huang 2017, arXiv 1608.06993) for inference: its batch norms are frozen.

Shape letters: b batch, h w c image, n cells of the last feature map, d width.
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.losses import wide
from pacx_jax.types import Array

EPS = 1e-5  # of every batch norm
BOTTLENECK = 4  # channels between a layer's convolutions, in units of its outputs


class NormReLU(nn.Module):
    """Batch norm by running statistics, which are parameters, then ReLU."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, h, w, c) -> the same shape; computed in float32."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        starts = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        p = {name: self.param(name, f, x.shape[-1:]) for name, f in starts.items()}
        y = (wide(x) - p["mean"]) * (p["scale"] * jax.lax.rsqrt(p["var"] + EPS))
        return nn.relu(y + p["bias"]).astype(self.dtype)


def _conv(features: int, kernel: int, dtype, name: str, stride: int = 1) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((kernel // 2, kernel // 2),) * 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        name=name,
    )


class Layer(nn.Module):
    """Joins `growth` channels to its input: norm, 1x1, norm, 3x3 convolution."""

    growth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(b, h, w, c) -> (b, h, w, c + growth)."""
        y = x
        for i, (width, kernel) in enumerate(((BOTTLENECK, 1), (1, 3)), 1):
            y = NormReLU(self.dtype, name=f"norm{i}")(y)
            y = _conv(width * self.growth, kernel, self.dtype, f"conv{i}")(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """Images -> their embedding, and the cells of the last feature map.

    DenseNet-121 unless said otherwise. torchxrayvision's takes grey images.

    Attributes:
      blocks: layers of each dense block.
      growth: channels that a layer adds.
      stem: channels of the first convolution.
      channels: of the images, 1 or 3.
      dtype: of the convolutions. Parameters are float32.
    """

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: int = 64
    channels: int = 3
    dtype: jnp.dtype = jnp.float32
    views = 0  # it has no view embeddings

    @property
    def width(self) -> int:
        return width(self.stem, self.growth, self.blocks)

    @nn.compact
    def __call__(
        self,
        images: Array,
        *,
        cls_only: bool = False,
        view: None = None,
        paths: None = None,
    ) -> Array:
        """Normalised images (b, h, w, c) -> (b, 1 + n, d): the embedding, each cell.

        The cells are those of the last map, after its batch norm and ReLU, row by row;
        the embedding is their mean.

        Args:
          cls_only: the embedding alone, (b, 1, d).
          view, paths: as a ViT has them; none.
        """
        x = _conv(self.stem, 7, self.dtype, "stem", stride=2)(images)
        x = NormReLU(self.dtype, name="stem_norm")(x)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, count in enumerate(self.blocks):
            if i:
                x = NormReLU(self.dtype, name=f"transition_{i}_norm")(x)
                x = _conv(x.shape[-1] // 2, 1, self.dtype, f"transition_{i}")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for j in range(count):
                name = f"block_{i}_layer_{j:02d}"
                x = Layer(self.growth, self.dtype, name=name)(x)
        x = NormReLU(self.dtype, name="norm")(x)
        cells = wide(einops.rearrange(x, "b h w d -> b (h w) d"))
        z = cells.mean(1, keepdims=True)
        return z if cls_only else jnp.concatenate([z, cells], axis=1)


def width(stem: int, growth: int, blocks: tuple[int, ...]) -> int:
    """Channels of the last feature map: transitions halve them.

    >>> width(64, 32, (6, 12, 24, 16))
    1024
    """
    d = 2 * stem
    for count in blocks:
        d = d // 2 + growth * count
    return d


def stride(blocks: tuple[int, ...]) -> int:
    """Pixels a side of a cell of the last map: stem and pooling, then transitions.

    >>> stride((6, 12, 24, 16))
    32
    """
    return 4 * 2 ** (len(blocks) - 1)
