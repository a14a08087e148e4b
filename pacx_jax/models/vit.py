"""Vision Transformer encoder, as used by MAE (Dosovitskiy 2021; He 2022).

Shape letters: b batch, n tokens, k kept tokens, p patch pixels, d width, h w c image.
The parameter tree is an API (sharding rules, LoRA targets, conversion): patch_embed,
cls_token, block_NN/{norm1,attn/{qkv,proj},norm2,mlp/{fc1,fc2}}, norm; where the fields
ask for them attn/{q_norm,k_norm}, pos_embed and view_embed.
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.models import embeddings
from pacx_jax.models.dense import Dense
from pacx_jax.models.transformer import stack, xavier
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


def architecture(model, image_size: int) -> dict:
    """A recipe's ViT as in a model folder's config.json; sizes in pixels.

    Holds only those optional fields of `config.model` that are not the default.
    """
    width, depth, num_heads = VARIANTS[model.variant]
    return {
        "patch_size": model.patch_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "ln_eps": model.ln_eps,
        "image_size": image_size,
    } | optional_fields(model, image_size)


def optional_fields(model, image_size: int) -> dict:
    """Fields of `ViT` from `config.model`'s optional ones, where not the default.

    Args:
      model: `channels` (1 or 3), `qk_norm`, `posemb` ("sincos" or "learned"),
        `posemb_cls`, `views` and `final_ln_eps`.
      image_size: pixels a side, of which learned positions need the grid; 0: unknown.

    Raises:
      PacxError: a value that is none of the choices, or no size for learned positions.
    """
    names = ("channels", "qk_norm", "views", "final_ln_eps")
    fields = {k: model.get(k, getattr(ViT, k)) for k in names}
    if fields["channels"] not in (1, 3):
        raise PacxError(f"config.model.channels is {fields['channels']}: give 1 or 3")
    if fields["views"] not in (0, 3):
        raise PacxError(
            f"config.model.views is {fields['views']}: give 0 (none) or 3 (frontal, "
            "lateral, unknown)"
        )
    grid = posemb_grid(model, "config.model", model.patch_size, image_size)
    if grid and not model.get("posemb_cls", True):
        fields["posemb_cls"] = False
    fields = {k: v for k, v in fields.items() if v != getattr(ViT, k)}
    return fields | ({"posemb_grid": grid} if grid else {})


def posemb_grid(model, name: str, patch_size: int, image_size: int) -> list[int]:
    """[rows, columns] of learned positions; empty for sin-cos ones.

    Args:
      model: a config with `posemb`.
      name: of the config, for messages.
    """
    choice = model.get("posemb", "sincos")
    if choice not in ("sincos", "learned"):
        raise PacxError(f"{name}.posemb is {choice!r}: choose sincos or learned")
    if choice == "sincos":
        return []
    if image_size < patch_size or image_size % patch_size:
        raise PacxError(
            f"{name}.posemb is learned, which needs an image size that patch_size "
            f"{patch_size} divides, and it is {image_size}"
        )
    return [image_size // patch_size] * 2


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
    """Learned positions of `grid` for another grid.

    Bicubic (Keys, a = -0.5) with antialiasing, like timm's.

    Args:
      posemb: (1, n, d), or (1, 1 + n, d) with the CLS token's first, which stays.
    """
    if tuple(grid) == tuple(to):
        return posemb
    d, cls = posemb.shape[-1], posemb.shape[1] - grid[0] * grid[1]
    patches = posemb[:, cls:].reshape(1, *grid, d)
    patches = jax.image.resize(patches, (1, *to, d), "cubic", antialias=True)
    return jnp.concatenate([posemb[:, :cls], patches.reshape(1, -1, d)], axis=1)


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
      channels: of the images, 3, or 1 for grey.
      qk_norm: whether q and k are normalised per head, see `transformer.Attention`.
      posemb_cls: whether learned positions have one for the CLS token.
      views: number of views with an embedding of their own (`input.views.COARSE`),
        which is added to every patch and not to CLS; 0: none.
      final_ln_eps: epsilon of the last LayerNorm; 0: `ln_eps`.
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
    channels: int = 3
    qk_norm: bool = False
    posemb_cls: bool = True
    views: int = 0
    final_ln_eps: float = 0.0

    @nn.compact
    def __call__(
        self,
        images: Array,
        ids_keep: Array | None = None,
        cls_only: bool = False,
        view: Array | None = None,
    ) -> Array:
        """Normalised images (b, h, w, c) -> tokens (b, 1 + n, d), CLS first.

        With `ids_keep` (b, k), embeds only these patches: (b, 1 + k, d). With
        `cls_only`, returns (b, 1, d) and skips the last block's work for other tokens.
        `view` (b,) int32 numbers the images' views, (1,) those of all; None: frontal,
        0. A number from `views` on gives NaN.
        """
        b, h, w, c = images.shape
        if c != self.channels:
            raise PacxError(
                f"images of {c} channels, and the encoder takes {self.channels}: set "
                "config.data.channels to that"
            )
        if self.patch_size < 1 or h % self.patch_size or w % self.patch_size:
            raise PacxError(
                f"image size {h}x{w} is not divisible by patch_size {self.patch_size}"
            )
        grid = (h // self.patch_size, w // self.patch_size)
        x = patchify(images, self.patch_size)
        posemb, cls_posemb = self._posemb(grid, self.dtype)
        if ids_keep is not None:  # before the projection: masked patches cost nothing
            x = jnp.take_along_axis(x, ids_keep[..., None], axis=1, mode="clip")
            take = embeddings.take_rows if self.posemb_grid else _take
            posemb = take(posemb[0], ids_keep)
        x = Dense(
            self.width,
            kernel_init=xavier,
            bias_init=fan_in_uniform(x.shape[-1]),
            dtype=self.dtype,
            name="patch_embed",
        )(x)
        x = x + posemb
        view_embed = embeddings.of_view(self, self.views, view)
        if view_embed is not None:
            x = x + view_embed.astype(x.dtype)
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
            self.qk_norm,
            self.final_ln_eps,
        )

    def _posemb(self, grid: tuple[int, int], dtype):
        """Positions of the patches (1, n, d) and of the CLS token: 0 or (1, 1, d)."""
        if not self.posemb_grid:
            fixed = posemb_sincos_2d(grid, self.width)
            return jnp.asarray(fixed, dtype)[None], 0.0
        learned = learned_posemb(self, self.posemb_grid, grid, self.posemb_cls)
        learned = learned.astype(dtype)
        if not self.posemb_cls:
            return learned, 0.0
        return learned[:, 1:], learned[:, :1]


def _take(rows: Array, ids: Array) -> Array:
    return jnp.take(rows, ids, axis=0, mode="clip")


def learned_posemb(
    module: nn.Module, of: tuple[int, ...], grid: tuple[int, int], cls: bool
) -> Array:
    """The parameter `pos_embed` of a module with a width, for `grid`.

    Args:
      of: the grid, (rows, columns), that the parameter is for.
      cls: whether the CLS token has a position, which is then the first.

    Returns:
      (1, n, d), or (1, 1 + n, d).
    """
    shape = (1, int(cls) + of[0] * of[1], module.width)
    learned = module.param("pos_embed", nn.initializers.normal(0.02), shape)
    return resample_posemb(learned, of, grid)


def ways(config) -> dict[str, str]:
    """ViT attributes from config fields that change how, not what, it computes."""
    return {
        "remat": config.get("remat", "none"),
        "attention": config.get("attention", "auto"),
    }


def from_config(model, dtype: str = "float32", image_size: int = 0) -> ViT:
    """The encoder that `config.model` describes (variant, patch_size, ln_eps).

    Args:
      model: its optional fields are those of `optional_fields`.
      image_size: pixels a side; learned positions need it.
    """
    if model.variant not in VARIANTS:
        raise PacxError(
            f"config.model.variant is {model.variant!r}; choose one of "
            f"{', '.join(VARIANTS)}"
        )
    width, depth, num_heads = VARIANTS[model.variant]
    fields = optional_fields(model, image_size)
    return ViT(
        patch_size=model.patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        ln_eps=model.ln_eps,
        dtype=jnp.dtype(dtype),
        **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()},
    )
