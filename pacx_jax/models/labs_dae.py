"""Denoising autoencoder of 50 laboratory values (paper section 3.1).

Shape letters: b batch, f lab features (50), d latent width (256).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.models.vit import fan_in_uniform
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer, Key


def _dense(features: int, fan_in: int, name: str) -> nn.Dense:
    init = fan_in_uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


class Encoder(nn.Module):
    """Values and mask (b, f) each -> latent (b, d), without activation or norm."""

    hidden: int = 512
    latent: int = 256
    mask_inputs: bool = True

    @nn.compact
    def __call__(
        self, labs: Float[Array, "b f"], labs_mask: Float[Array, "b f"]
    ) -> Float[Array, "b d"]:
        # On disk a missing value has its training mean percentile. Training zeroes it,
        # so extraction must too (D7); `mask_inputs=False` is the reference.
        values = labs * labs_mask if self.mask_inputs else labs
        x = jnp.concatenate([values, labs_mask], axis=-1)
        x = _dense(self.hidden, x.shape[-1], "fc1")(x)
        x = nn.gelu(LayerNorm(1e-5, name="norm")(x), approximate=False)
        return _dense(self.latent, self.hidden, "fc2")(x)


class Decoder(nn.Module):
    """Latent (b, d) -> percentiles (b, f) in (0, 1); no LayerNorm (D14)."""

    features: int = 50
    hidden: int = 512

    @nn.compact
    def __call__(self, z: Float[Array, "b d"]) -> Float[Array, "b f"]:
        x = nn.gelu(_dense(self.hidden, z.shape[-1], "fc1")(z), approximate=False)
        return nn.sigmoid(_dense(self.features, self.hidden, "fc2")(x))


class LabsDAE(nn.Module):
    """Encoder and decoder; 341,298 parameters at the published size."""

    encoder: Encoder
    decoder: Decoder

    def __call__(
        self, labs: Float[Array, "b f"], labs_mask: Float[Array, "b f"]
    ) -> Float[Array, "b f"]:
        return self.decoder(self.encoder(labs, labs_mask))


def from_config(model) -> LabsDAE:
    """The autoencoder that `config.model` describes."""
    return LabsDAE(
        Encoder(model.hidden, model.latent, model.mask_inputs),
        Decoder(model.features, model.hidden),
    )


def corrupt(
    key: Key[jax.Array, ""],
    rows: Integer[Array, " b"],
    labs: Float[Array, "b f"],
    labs_mask: Float[Array, "b f"],
    rate: float,
) -> tuple[Float[Array, "b f"], Float[Array, "b f"], Bool[Array, "b f"]]:
    """Drops a share of the observed entries: the value *and* its mask bit (D13).

    The draw depends only on the key and on `rows`, (b,) row numbers in the global
    batch.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(rows))
    shape = labs.shape[1:]
    noise = jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32))(keys)
    drop = (noise < rate) & (labs_mask > 0.5)
    keep = 1.0 - drop.astype(labs.dtype)
    return labs * labs_mask * keep, labs_mask * keep, drop


def masked_mse(
    pred: Float[Array, "b f"], labs: Float[Array, "b f"], labs_mask: Float[Array, "b f"]
) -> Float[Array, ""]:
    """Squared error over observed entries, mean over the whole batch."""
    return (labs_mask * (pred - labs) ** 2).sum() / observed(labs_mask)


def observed(labs_mask: Float[Array, "b f"]) -> Float[Array, ""]:
    """Number of observed entries + 1e-6, the divisor of `masked_mse`."""
    return labs_mask.sum() + 1e-6
