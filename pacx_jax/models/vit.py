"""Vision Transformer encoder, as used by MAE (Dosovitskiy 2021; He 2022).

Shape letters: b batch, n tokens, k kept tokens, p patch pixels, d width, h w c image.
The parameter tree is an API (sharding rules, LoRA targets, conversion): patch_embed,
cls_token, block_NN/{norm1,attn/{qkv,proj},norm2,mlp/{fc1,fc2}}, norm; where the fields
ask for them attn/{q_norm,k_norm}, mlp/norm, ls1, ls2, pos_embed, view_embed and
registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.errors import PacxError
from pacx_jax.models import embeddings, positions
from pacx_jax.models.dense import Dense
from pacx_jax.models.transformer import Parts, stack, xavier
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

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


def patchify(
    images: Shaped[Array, "b h w c"], patch_size: int
) -> Shaped[Array, "b n p"]:
    """(b, h, w, c) -> (b, n, p): patches row by row, pixels ordered row, column, c."""
    return einops.rearrange(
        images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size
    )


def unpatchify(
    patches: Shaped[Array, "b n p"], patch_size: int, grid: tuple[int, int]
) -> Shaped[Array, "b h w c"]:
    """Inverse of `patchify`: (b, n, p) -> (b, h, w, c)."""
    return einops.rearrange(
        patches,
        "b (h w) (p q c) -> b (h p) (w q) c",
        h=grid[0],
        w=grid[1],
        p=patch_size,
        q=patch_size,
    )


POOLS = ("cls", "mean")  # what is returned first


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
      registers: number of learned tokens between CLS and the patches, without
        positions, which are not returned (Darcet 2023; DINOv2).
      layer_scale, swiglu, mlp_norm, mlp_dim: see `transformer.Parts`.
      rotary_grid: empty for none, else q and k of the patches are turned by their
        places, scaled to this grid (rows, columns), see `positions.rotary` (EVA-02).
      posemb_resampling: how learned positions are made for other grids
        (`positions.RESAMPLING`).
      pool: "cls", or "mean": the patches' mean before the last LayerNorm takes the
        place of the CLS token in what is returned (EVA-02's `fc_norm`).
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
    registers: int = 0
    layer_scale: bool = False
    swiglu: bool = False
    mlp_norm: bool = False
    mlp_dim: int = 0
    rotary_grid: tuple[int, ...] = ()
    posemb_resampling: str = "antialias"
    pool: str = "cls"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"],
        ids_keep: Int[Array, "b k"] | None = None,
        cls_only: bool = False,
        view: Int[Array, " views"] | None = None,
        paths: Float[Array, "b depth 2"] | None = None,
    ) -> Float[Array, "b tokens d"]:
        """Normalised images (b, h, w, c) -> tokens (b, 1 + n, d), CLS or `pool` first.

        With `ids_keep` (b, k), embeds only these patches: (b, 1 + k, d). With
        `cls_only`, returns (b, 1, d) and skips the last block's work for other tokens.
        `view` (b,) int32 numbers the images' views, (1,) those of all; None: frontal,
        0. A number from `views` on gives NaN. `paths` (b, depth, 2) multiply the
        branches of the blocks (`transformer.drop_path`).
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
        before = [jnp.tile(cls_token, (b, 1, 1))]
        if self.registers:
            shape = (1, self.registers, self.width)
            registers = self.param("registers", nn.initializers.normal(0.02), shape)
            before.append(jnp.tile(registers.astype(x.dtype), (b, 1, 1)))
        x = jnp.concatenate([*before, x], 1)
        alone = cls_only and self.pool == "cls"
        return stack(
            x,
            self.depth,
            self.num_heads,
            self.ln_eps,
            self.dtype,
            self.remat,
            self.attention,
            (0, 1) if alone else None,
            self.qk_norm,
            self.final_ln_eps,
            Parts(self.mlp_dim, self.swiglu, self.mlp_norm, self.layer_scale),
            self._turns(grid, ids_keep),
            None if alone else self._gather(cls_only),
            paths,
        )

    def _turns(self, grid: tuple[int, int], ids_keep: Array | None):
        """Rotary tables of all tokens, of those kept if any are masked; None: none."""
        if not self.rotary_grid:
            return None
        channels, prefix = self.width // self.num_heads, 1 + self.registers
        turns = positions.rotary(grid, self.rotary_grid, channels, prefix)
        if ids_keep is None:
            return turns
        ids = jnp.pad(ids_keep + prefix, ((0, 0), (prefix, 0)))
        ids = ids.at[:, :prefix].set(jnp.arange(prefix))
        return tuple(_take(jnp.asarray(table), ids) for table in turns)

    def _gather(self, cls_only: bool):
        """What is returned of the last block's tokens; None: all of them."""
        if self.pool not in POOLS:
            raise PacxError(f"pool is {self.pool!r}: choose {' or '.join(POOLS)}")
        if self.pool == "cls" and not self.registers:
            return None

        def gather(x):
            patches = x[:, 1 + self.registers :]
            first = x[:, :1]
            if self.pool == "mean":
                first = patches.mean(1, keepdims=True)
            return first if cls_only else jnp.concatenate([first, patches], 1)

        return gather

    def _posemb(self, grid: tuple[int, int], dtype):
        """Positions of the patches (1, n, d) and of the CLS token: 0 or (1, 1, d)."""
        if not self.posemb_grid:
            fixed = positions.sincos_2d(grid, self.width)
            return jnp.asarray(fixed, dtype)[None], 0.0
        choices = self.posemb_cls, self.posemb_resampling
        learned = positions.learned(self, self.posemb_grid, grid, *choices)
        learned = learned.astype(dtype)
        if not self.posemb_cls:
            return learned, 0.0
        return learned[:, 1:], learned[:, :1]


def _take(rows: Array, ids: Array) -> Array:
    return jnp.take(rows, ids, axis=0, mode="clip")


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
