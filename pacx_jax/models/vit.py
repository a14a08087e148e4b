"""Vision Transformer encoder, as used by MAE (Dosovitskiy 2021; He 2022).

Shape letters: b batch, n tokens, k kept tokens, p patch pixels, d width, h w c image.
The parameter tree is an API (sharding rules, LoRA targets, conversion): patch_embed,
cls_token, block_NN/{norm1,attn/{qkv,proj},norm2,mlp/{fc1,fc2}}, norm.
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import attention
from pacx_jax.models.dense import Dense, gelu
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.types import Array

# name -> (width, depth, num_heads); mlp_dim is 4 * width. "mu" is for tests and
# "demo" for the embedded cohort on two CPU cores.
VARIANTS = {
    "mu": (32, 2, 2),
    "demo": (128, 4, 4),
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}

xavier = nn.initializers.xavier_uniform()


def architecture(model, image_size: int) -> dict[str, int | float]:
    """A recipe's ViT as in a model folder's config.json; sizes in pixels."""
    width, depth, num_heads = VARIANTS[model.variant]
    return {
        "patch_size": model.patch_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "ln_eps": model.ln_eps,
        "image_size": image_size,
    }


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for weights and biases."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def patchify(images: Array, patch_size: int) -> Array:
    """(b, h, w, c) -> (b, n, p): patches row by row, pixels ordered row, column, c."""
    return einops.rearrange(
        images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size
    )


def unpatchify(patches: Array, patch_size: int, grid: tuple[int, int]) -> Array:
    """Inverse of `patchify`: (b, n, p) -> (b, h, w, c)."""
    return einops.rearrange(
        patches,
        "b (h w) (p q c) -> b (h p) (w q) c",
        h=grid[0],
        w=grid[1],
        p=patch_size,
        q=patch_size,
    )


def posemb_sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D sin-cos positions, (grid_h * grid_w, width) float32.

    The first half of the channels encodes the column, the second half the row, each
    as [sin, cos] of pos * 10000^(-i / (width / 4)); computed in float64 (MAE).
    """
    if width % 4:
        raise PacxError(f"width {width} is not divisible by 4, as positions need")
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    rows, cols = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    parts = []
    for pos in (cols, rows):
        angle = pos.reshape(-1, 1) * omega
        parts += [np.sin(angle), np.cos(angle)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def resample_posemb(posemb: Array, grid: tuple[int, int], to: tuple[int, int]) -> Array:
    """Learned positions (1, 1 + n, d) of `grid`, CLS first, for another grid.

    Bicubic (Keys, a = -0.5) with antialiasing, like timm's; the CLS position stays.
    """
    if tuple(grid) == tuple(to):
        return posemb
    d = posemb.shape[-1]
    patches = posemb[:, 1:].reshape(1, *grid, d)
    patches = jax.image.resize(patches, (1, *to, d), "cubic", antialias=True)
    return jnp.concatenate([posemb[:, :1], patches.reshape(1, -1, d)], axis=1)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv; softmax in float32."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    outputs: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d, outputs = x.shape[-1], slice(*(self.outputs or (None,)))
        if self.num_heads < 1 or d % self.num_heads:
            raise PacxError(f"width {d} is not divisible by num_heads {self.num_heads}")
        qkv = Dense(3 * d, kernel_init=xavier, dtype=self.dtype, name="qkv")(x)
        if self.is_mutable_collection("intermediates"):  # caller wants probabilities
            q, k, v = attention.split_heads(qkv, self.num_heads)
            probs = attention.probabilities(q, k)
            self.sow("intermediates", "attention", probs)
            x = attention.join_heads(attention.weighted(probs, v))[:, outputs]
        else:
            x = attention.attend(qkv, self.num_heads, self.attention, outputs)
        return Dense(d, kernel_init=xavier, dtype=self.dtype, name="proj")(x)


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
    """

    num_heads: int
    mlp_dim: int
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    outputs: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = LayerNorm(self.ln_eps, name="norm1")(x)
        ways = self.dtype, self.attention, self.outputs
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
) -> Array:
    """Applies `depth` blocks and a LayerNorm to (b, n, d), named in the calling module.

    `remat` (REMAT) sets what the backward pass computes again, and `attention`
    (`attention.WAYS`) how attention is computed. Parameters and adapters have the same
    names either way.

    Args:
      outputs: (first, last + 1) of the tokens to return; the last block computes only
        keys and values of the others.
    """
    if remat not in REMAT:
        raise PacxError(f"config.remat {remat!r}: choose {', '.join(REMAT)}")
    sharding.check_heads(num_heads)
    block_of = Block if remat == "none" else nn.remat(Block, policy=REMAT[remat])
    x, width = sharding.constrain_rows(x), 4 * x.shape[-1]
    x = sharding.row_major(x)
    for i in range(depth):
        name = f"block_{i:02d}"
        wanted = outputs if i == depth - 1 else None
        x = block_of(num_heads, width, ln_eps, dtype, attention, wanted, name=name)(x)
        x = sharding.constrain_rows(x)
    return LayerNorm(ln_eps, name="norm")(x)


class ViT(nn.Module):
    """ViT encoder with a CLS token, for images of any size that the patch divides.

    Attributes:
      patch_size: side of a square patch, in pixels.
      width, depth, num_heads: as in `VARIANTS`; mlp_dim is 4 * width.
      ln_eps: epsilon of every LayerNorm (1e-6; imported PaCX weights: 1e-5, D6).
      dtype: dtype of the matrix products. Parameters are float32.
      posemb_grid: empty for fixed sin-cos positions on any grid. Else positions are
        parameters of a grid (rows, columns), as in converted ImageNet ViTs, and are
        resampled for other grids.
      remat: what the backward pass computes again, see `stack`.
      attention: how attention is computed, see `attention.attend`.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    posemb_grid: tuple[int, ...] = ()
    remat: str = "none"
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, images: Array, ids_keep: Array | None = None, cls_only: bool = False
    ) -> Array:
        """Normalised images (b, h, w, c) -> tokens (b, 1 + n, d), CLS first.

        With `ids_keep` (b, k), embeds only these patches: (b, 1 + k, d). With
        `cls_only`, returns (b, 1, d) and skips the last block's work for other tokens.
        """
        b, h, w, _ = images.shape
        if self.patch_size < 1 or h % self.patch_size or w % self.patch_size:
            raise PacxError(
                f"image size {h}x{w} is not divisible by patch_size {self.patch_size}"
            )
        grid = (h // self.patch_size, w // self.patch_size)
        x = patchify(images, self.patch_size)
        posemb, cls_posemb = self._posemb(grid, self.dtype)
        if ids_keep is not None:  # before the projection: masked patches cost nothing
            x = jnp.take_along_axis(x, ids_keep[..., None], axis=1, mode="clip")
            posemb = jnp.take(posemb[0], ids_keep, axis=0, mode="clip")
        x = Dense(
            self.width,
            kernel_init=xavier,
            bias_init=fan_in_uniform(x.shape[-1]),
            dtype=self.dtype,
            name="patch_embed",
        )(x)
        x = x + posemb
        cls_token = self.param(
            "cls_token", nn.initializers.normal(0.02), (1, 1, self.width)
        )
        cls_token = (cls_token + cls_posemb).astype(x.dtype)
        x = jnp.concatenate([jnp.tile(cls_token, (b, 1, 1)), x], 1)
        return stack(
            x,
            self.depth,
            self.num_heads,
            self.ln_eps,
            self.dtype,
            self.remat,
            self.attention,
            (0, 1) if cls_only else None,
        )

    def _posemb(self, grid: tuple[int, int], dtype):
        """Positions of the patches (1, n, d) and of the CLS token: 0 or (1, 1, d)."""
        if not self.posemb_grid:
            fixed = posemb_sincos_2d(grid, self.width)
            return jnp.asarray(fixed, dtype)[None], 0.0
        rows, columns = self.posemb_grid
        shape = (1, 1 + rows * columns, self.width)
        learned = self.param("pos_embed", nn.initializers.normal(0.02), shape)
        learned = resample_posemb(learned, self.posemb_grid, grid).astype(dtype)
        return learned[:, 1:], learned[:, :1]


def ways(config) -> dict[str, str]:
    """ViT attributes from config fields that change how, not what, it computes."""
    return {
        "remat": config.get("remat", "none"),
        "attention": config.get("attention", "auto"),
    }


def from_config(model, dtype: str = "float32") -> ViT:
    """The encoder that `config.model` describes (variant, patch_size, ln_eps)."""
    if model.variant not in VARIANTS:
        raise PacxError(
            f"config.model.variant is {model.variant!r}; choose one of "
            f"{', '.join(VARIANTS)}"
        )
    width, depth, num_heads = VARIANTS[model.variant]
    return ViT(
        patch_size=model.patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        ln_eps=model.ln_eps,
        dtype=jnp.dtype(dtype),
    )
