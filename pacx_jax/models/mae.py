"""Masked autoencoder (He 2022): masking, decoder, and the reconstruction loss.

Shape letters: b batch, n patches, k kept patches, p patch pixels, d width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.models import vit
from pacx_jax.types import Array, PacxError


def random_masking(key: jax.Array, rows: Array, n: int, mask_ratio: float):
    """Draws one mask per image by sorting uniform noise.

    Args:
      rows: (b,) row numbers of the images in the global batch. A mask depends on the
        key and its image's number alone: not on devices, nor on the parts of a batch.
      n: patches of an image.

    Returns:
      ids_keep (b, k) with k = int(n * (1 - mask_ratio)); ids_restore (b, n), the place
      of each patch in [kept, masked]; mask (b, n) float32, 1 = removed.
    """
    k = int(n * (1 - mask_ratio))
    if not 0 < k < n:
        raise PacxError(
            f"mask_ratio {mask_ratio} keeps {k} of {n} patches: keep at least one and "
            "mask at least one"
        )
    noise = jax.vmap(lambda r: jax.random.uniform(jax.random.fold_in(key, r), (n,)))
    ids_shuffle = jnp.argsort(noise(jnp.asarray(rows)), axis=1)
    ids_restore = jnp.argsort(ids_shuffle, axis=1)
    mask = (ids_restore >= k).astype(jnp.float32)
    return ids_shuffle[:, :k], ids_restore, mask


class Decoder(nn.Module):
    """Lightweight transformer that predicts the pixels of every patch."""

    patch_pixels: int
    width: int = 512
    depth: int = 8
    num_heads: int = 16
    ln_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, tokens: Array, ids_restore: Array, grid: tuple[int, int]
    ) -> Array:
        """Encoder tokens (b, 1 + k, d), ids_restore (b, n) -> pixels (b, n, p)."""
        x = nn.Dense(
            self.width, kernel_init=vit.xavier, dtype=self.dtype, name="embed"
        )(tokens)
        b, n = ids_restore.shape
        mask_token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, self.width)
        )
        cls, kept = x[:, :1], x[:, 1:]
        masked = jnp.tile(mask_token.astype(x.dtype), (b, n - kept.shape[1], 1))
        x = jnp.concatenate([kept, masked], axis=1)
        x = jnp.take_along_axis(x, ids_restore[..., None], axis=1)
        x = x + jnp.asarray(vit.posemb_sincos_2d(grid, self.width), x.dtype)[None]
        x = jnp.concatenate([cls, x], axis=1)
        x = vit.stack(
            x, self.depth, self.num_heads, self.ln_eps, self.dtype, self.remat
        )
        x = nn.Dense(
            self.patch_pixels, kernel_init=vit.xavier, dtype=self.dtype, name="pred"
        )(x)
        return x[:, 1:]


class MAE(nn.Module):
    """Encoder on the kept patches, decoder on all of them."""

    encoder: vit.ViT
    decoder: Decoder

    def __call__(self, images: Array, ids_keep: Array, ids_restore: Array) -> Array:
        """Normalised images (b, h, w, c) -> predicted pixels (b, n, p)."""
        size = self.encoder.patch_size
        grid = (images.shape[1] // size, images.shape[2] // size)
        return self.decoder(self.encoder(images, ids_keep), ids_restore, grid)


def from_config(model, dtype: str = "float32", remat: str = "none") -> MAE:
    """The MAE that `config.model` describes."""
    encoder = vit.from_config(model, dtype).clone(remat=remat)
    return MAE(
        encoder=encoder,
        decoder=Decoder(
            patch_pixels=3 * model.patch_size**2,
            width=model.decoder.width,
            depth=model.decoder.depth,
            num_heads=model.decoder.num_heads,
            ln_eps=model.ln_eps,
            dtype=encoder.dtype,
            remat=remat,
        ),
    )


def patch_targets(images: Array, patch_size: int, norm_pix_loss: bool) -> Array:
    """Pixels to predict, (b, n, p) float32, from normalised images (b, h, w, c).

    `norm_pix_loss` standardises each patch by its mean and *unbiased* variance.
    """
    x = vit.patchify(images, patch_size)
    if norm_pix_loss:
        mean = x.mean(-1, keepdims=True)
        var = x.var(-1, keepdims=True, ddof=1)
        x = (x - mean) * jax.lax.rsqrt(var + 1e-6)
    return x


def reconstruction_loss(pred: Array, target: Array, mask: Array) -> Array:
    """Per-image loss (b,): mean over masked patches of the mean squared pixel error.

    Every image masks the same number of patches, so the batch mean of this equals the
    reference's sum(loss * mask) / sum(mask) (D20).
    """
    error = (pred.astype(target.dtype) - target) ** 2
    return (error.mean(-1) * mask).sum(-1) / mask.sum(-1)
