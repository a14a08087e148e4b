"""Masked autoencoder (He 2022): masking, decoder, and the reconstruction loss.

Shape letters: b batch, n patches, k kept patches, p patch pixels, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.models import embeddings, positions, vit
from pacx_jax.models.dense import Dense
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, Integer, Key, Real


def random_masking(
    key: Key[jax.Array, ""], rows: Integer[Array, " b"], n: int, mask_ratio: float
) -> tuple[Int[Array, "b k"], Int[Array, "b n"], Float32[Array, "b n"]]:
    """Draws one mask per image by sorting uniform noise.

    Args:
      rows: (b,) row numbers of the images in the global batch. A mask depends only on
        the key and its image's number, not on devices or on the parts of a batch.
      n: number of patches per image.

    Returns:
      ids_keep (b, k) with k = int(n * (1 - mask_ratio)); ids_restore (b, n), the index
      of each patch in [kept, masked]; mask (b, n) float32, 1 = removed.
    """
    k = int(n * (1 - mask_ratio))
    if not 0 < k < n:
        raise PacxError(
            f"mask_ratio {mask_ratio} keeps {k} of {n} patches: keep at least one and "
            "mask at least one"
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(rows))
    noise = jax.vmap(lambda k: jax.random.uniform(k, (n,), jnp.float32))(keys)
    ids_shuffle = jnp.argsort(noise, axis=1)
    ids_restore = jnp.argsort(ids_shuffle, axis=1)
    mask = (ids_restore >= k).astype(jnp.float32)
    return ids_shuffle[:, :k], ids_restore, mask


class Decoder(nn.Module):
    """Lightweight transformer that predicts the pixels of every patch.

    Attributes:
      patch_pixels: numbers that a patch has.
      width, depth, num_heads, ln_eps, dtype, remat, attention: as in `vit.ViT`.
      qk_norm, final_ln_eps: as in `vit.ViT`.
      posemb_grid: empty for fixed sin-cos positions, CLS without one. Else positions
        are parameters of a grid, with one of the CLS token's.
      views: number of views with an embedding, added to all tokens; 0: none.
      project: whether a dense layer takes the encoder's tokens to `width`, which is
        otherwise the encoder's own.
    """

    patch_pixels: int
    width: int = 512
    depth: int = 8
    num_heads: int = 16
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    qk_norm: bool = False
    posemb_grid: tuple[int, ...] = ()
    views: int = 0
    project: bool = True
    final_ln_eps: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b kept d"],
        ids_restore: Int[Array, "b n"],
        grid: tuple[int, int],
        masked_only: bool = False,
        view: Int[Array, " views"] | None = None,
    ) -> Float[Array, "b m p"]:
        """Encoder tokens (b, 1 + k, d), ids_restore (b, n) -> pixels (b, n, p).

        With `masked_only`, returns (b, n - k, p): the patches `masked_ids`, in its
        order, which is all that the loss needs. `view` as in `vit.ViT`.
        """
        x = self._projected(tokens)
        b, n = ids_restore.shape
        mask_token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, self.width)
        )
        # Tokens stay in [CLS, kept, masked] order: blocks ignore it.
        k = tokens.shape[1] - 1
        masked = jnp.arange(1 + n)[:, None] > k
        x = jnp.pad(x, ((0, 0), (0, n - k), (0, 0)))
        x = jnp.where(masked, mask_token.astype(x.dtype), x)
        x += self._posemb(ids_restore, grid, x.dtype)
        view_embed = embeddings.of_view(self, self.views, view)
        if view_embed is not None:
            x += view_embed.astype(x.dtype)
        x = vit.stack(
            x,
            self.depth,
            self.num_heads,
            self.ln_eps,
            self.dtype,
            self.remat,
            self.attention,
            (1 + k if masked_only else 1, 1 + n),
            self.qk_norm,
            self.final_ln_eps,
        )
        x = Dense(
            self.patch_pixels, kernel_init=vit.xavier, dtype=self.dtype, name="pred"
        )(x)
        if masked_only:
            return x
        return jnp.take_along_axis(x, ids_restore[..., None], axis=1, mode="clip")

    def _projected(self, tokens: Array) -> Array:
        if self.project:
            return Dense(
                self.width, kernel_init=vit.xavier, dtype=self.dtype, name="embed"
            )(tokens)
        if tokens.shape[-1] != self.width:
            raise PacxError(
                f"a decoder of width {self.width} without a projection takes tokens of "
                f"that width, and the encoder's have {tokens.shape[-1]}: set "
                "config.model.decoder.width to that, or config.model.decoder.project"
            )
        return tokens.astype(self.dtype)

    def _posemb(self, ids_restore: Array, grid: tuple[int, int], dtype) -> Array:
        """Positions in [CLS, kept, masked] order, (b, 1 + n, d)."""
        if self.posemb_grid:
            learned = positions.learned(self, self.posemb_grid, grid, cls=True)
            place = jnp.pad(1 + ids_restore, ((0, 0), (1, 0)))
            return embeddings.permuted(learned[0].astype(dtype), place)
        # Gathering constants needs no scatter in the backward pass. CLS has no
        # position: it takes the table's row of zeros.
        table = np.pad(positions.sincos_2d(grid, self.width), ((1, 0), (0, 0)))
        order = jnp.pad(1 + jnp.argsort(ids_restore, axis=1), ((0, 0), (1, 0)))
        return jnp.take(jnp.asarray(table, dtype), order, axis=0, mode="clip")


class MAE(nn.Module):
    """Encoder on the kept patches, decoder on all patches."""

    encoder: vit.ViT
    decoder: Decoder

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        ids_keep: Int[Array, "b k"],
        ids_restore: Int[Array, "b n"],
        masked_only: bool = False,
        view: Int[Array, " views"] | None = None,
    ) -> Float[Array, "b m p"]:
        """Normalised images (b, h, w, c) -> pixels that `Decoder` predicts.

        `view` (b,) as in `vit.ViT`.
        """
        size = self.encoder.patch_size
        grid = (images.shape[1] // size, images.shape[2] // size)
        tokens = self.encoder(images, ids_keep, view=view)
        return self.decoder(tokens, ids_restore, grid, masked_only, view)


def from_config(
    model, dtype: str = "float32", ways: dict | None = None, image_size: int = 0
) -> MAE:
    """The MAE that `config.model` describes.

    Args:
      ways: as from `vit.ways`.
      image_size: pixels a side; learned positions need it.
    """
    ways = ways or {}
    encoder = vit.from_config(model, dtype, image_size).clone(**ways)
    fields = decoder_architecture(model, image_size)
    del fields["encoder_width"]
    return MAE(encoder, decoder(fields, encoder.dtype, **ways))


def decoder(fields: dict, dtype=jnp.float32, **ways) -> Decoder:
    """The module of a model folder's description, without its `encoder_width`."""
    grid = tuple(fields.get("posemb_grid", ()))
    return Decoder(**(fields | {"posemb_grid": grid}), dtype=dtype, **ways)


def decoder_architecture(model, image_size: int) -> dict:
    """`config.model.decoder` as in a model folder's description of its heads.

    Of optional fields, only those that are not the default: `posemb` ("sincos" or
    "learned") and `project` of the decoder; `qk_norm`, `views` and `final_ln_eps` of
    the model, or the decoder's own.
    """
    chosen = model.decoder
    own = {k: model.get(k, getattr(Decoder, k))
           for k in ("qk_norm", "views", "final_ln_eps")}  # fmt: skip
    own = {k: chosen.get(k, value) for k, value in own.items()}
    own["project"] = chosen.get("project", True)
    own = {k: v for k, v in own.items() if v != getattr(Decoder, k)}
    patch = model.patch_size
    grid = vit.posemb_grid(chosen, "config.model.decoder", patch, image_size)
    return {
        "width": chosen.width,
        "depth": chosen.depth,
        "num_heads": chosen.num_heads,
        "encoder_width": vit.VARIANTS[model.variant][0],
        "patch_pixels": model.get("channels", 3) * patch**2,
        "ln_eps": model.ln_eps,
    } | (own | {"posemb_grid": grid} if grid else own)


def masked_ids(
    ids_keep: Int[Array, "b k"], ids_restore: Int[Array, "b n"]
) -> Int[Array, "b n-k"]:
    """Indices of the removed patches (b, n - k), from `random_masking`'s results."""
    return jnp.argsort(ids_restore, axis=1)[:, ids_keep.shape[1] :]


def take_patches(
    patches: Float[Array, "b n p"], ids: Int[Array, "b m"]
) -> Float[Array, "b m p"]:
    """Takes the patches at `ids` (b, m) from (b, n, p): (b, m, p)."""
    return jnp.take_along_axis(patches, ids[..., None], axis=1, mode="clip")


def patch_targets(
    images: Float[Array, "b h w c"],
    patch_size: int,
    norm_pix_loss: bool,
    ids: Int[Array, "b m"] | None = None,
) -> Float[Array, "b targets p"]:
    """Pixels to predict, (b, n, p) float32, from normalised images (b, h, w, c).

    With `ids` (b, m), only of these patches. `norm_pix_loss` standardises each patch
    by its mean and *unbiased* variance.
    """
    x = vit.patchify(images, patch_size)
    if ids is not None:
        x = take_patches(x, ids)
    if norm_pix_loss:
        mean = x.mean(-1, keepdims=True)
        var = x.var(-1, keepdims=True, ddof=1)
        x = (x - mean) * jax.lax.rsqrt(var + 1e-6)
    return x


def pictures(
    images: Float[Array, "b h w c"],
    pred: Float[Array, "b n p"],
    mask: Real[Array, "b n"],
    patch_size: int,
    norm_pix_loss: bool,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Images as the encoder saw them, and images with the prediction filled in.

    Args:
      images: normalised, (b, h, w, c).
      pred: (b, n, p), the decoder's output for all patches.
      mask: (b, n), 1 for removed patches.
      norm_pix_loss: whether `pred` is standardised by each patch's own mean and std,
        which are then taken from the image.

    Returns:
      Two arrays (b, h, w, c), normalised; removed patches of the first are 0.
    """
    patches, gone = vit.patchify(images, patch_size), mask[..., None] > 0
    if norm_pix_loss:
        var = patches.var(-1, keepdims=True, ddof=1)
        pred = pred * jnp.sqrt(var + 1e-6) + patches.mean(-1, keepdims=True)
    grid = (images.shape[1] // patch_size, images.shape[2] // patch_size)
    seen = jnp.where(gone, 0, patches)
    filled = jnp.where(gone, pred, patches)
    return tuple(vit.unpatchify(x, patch_size, grid) for x in (seen, filled))


def reconstruction_loss(
    pred: Float[Array, "b m p"], target: Float[Array, "b m p"]
) -> Float[Array, " b"]:
    """Per-image loss (b,): mean squared pixel error of the masked patches (b, m, p).

    Every image masks the same number of patches, so the batch mean of this equals the
    reference's sum(loss * mask) / sum(mask) (D20).
    """
    wide = jnp.promote_types(pred.dtype, target.dtype)
    return ((pred.astype(wide) - target) ** 2).mean((-2, -1))
