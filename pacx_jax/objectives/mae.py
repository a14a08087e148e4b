"""Stage 1, images: reconstruct the masked patches of an X-ray (paper section 3.1)."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from pacx_jax import sharding
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.models import mae, vit
from pacx_jax.types import Objective, Params

SHOWN = ("loss",)


def make(config, mesh: Mesh | None = None) -> Objective:
    """The MAE objective of `config` (model, loss.mask_ratio, loss.norm_pix_loss)."""
    del mesh
    size, patch = config.data.image_size, config.model.patch_size
    model = mae.from_config(config.model, config.dtype, vit.ways(config), size)
    channels = model.encoder.channels
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    ratio = config.loss.mask_ratio

    def init(key):
        n = (size // patch) ** 2
        images = jnp.zeros((1, size, size, channels))
        ids_keep, ids_restore, _ = mae.random_masking(key, jnp.arange(1), n, ratio)
        return model.init(key, images, ids_keep, ids_restore)["params"]

    def reconstruct(params, images, rows, key):
        n = (size // patch) ** 2
        ids_keep, ids_restore, _ = mae.random_masking(key, rows, n, ratio)
        masked = mae.masked_ids(ids_keep, ids_restore)
        target = mae.patch_targets(images, patch, config.loss.norm_pix_loss, masked)
        pred = model.apply(
            {"params": params}, images, ids_keep, ids_restore, masked_only=True
        )
        return pred, target

    def loss(params, batch, key, *, train):
        del train  # no dropout: training and evaluation compute the same
        images = normalize(batch["image"], mean, std)
        pred, target = reconstruct(params, images, sharding.row_numbers(batch), key)
        return mae.reconstruction_loss(pred, target).mean(), {}

    def outputs(params, batch, key):
        images = normalize(batch["image"], mean, std)
        pred, target = reconstruct(params, images, sharding.row_numbers(batch), key)
        # Loss of predicting each image's own mean colour: a bound to beat.
        whole = mae.patch_targets(images, patch, config.loss.norm_pix_loss)
        colour = whole.reshape(len(whole), -1, channels).mean(1)
        mean_pixel = jnp.tile(colour, (1, patch**2))[:, None]
        return {
            "loss": mae.reconstruction_loss(pred, target),
            "loss_of_mean": mae.reconstruction_loss(mean_pixel, target),
        }

    def images(params, batch, key):
        # Four X-rays: original, as the encoder sees it, and filled in.
        raw = batch["image"][:4]
        x = normalize(raw, mean, std)
        n = (size // patch) ** 2
        drawn = mae.random_masking(key, jnp.arange(len(raw)), n, ratio)
        pred = model.apply({"params": params}, x, *drawn[:2])
        shown = mae.pictures(x, pred, drawn[2], patch, config.loss.norm_pix_loss)
        pixels = [(p * jnp.asarray(std) + jnp.asarray(mean)) * 255 for p in shown]
        row = jnp.concatenate([raw, *pixels], axis=2)
        return {"reconstruction": jnp.clip(jnp.round(row), 0, 255).astype(jnp.uint8)}

    def summarize(outputs):
        return {name: float(values.mean()) for name, values in outputs.items()}

    parts = tuple(config.model_init_parts) if config.model_init else ()
    if parts:
        _check_start(config, model)
    return Objective(
        init=init,
        trainable=lambda path: True,
        loss=loss,
        outputs=outputs,
        summarize=summarize,
        pretrained={part: config.model_init for part in parts},
        weight=lambda batch: len(batch["image"]),
        images=images,
    )


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports the encoder, and the decoder beside it."""
    del labels
    a = vit.architecture(config.model, config.data.image_size)
    decoder = mae.decoder_architecture(config.model, config.data.image_size)
    preprocessing = model_folder.image_preprocessing(config.data.mean, config.data.std)
    heads = Heads("mae", decoder, {"decoder": params["decoder"]})
    return ModelFolder("vit", a, preprocessing, params["encoder"], heads)


def _check_start(config, model) -> None:
    """Refuses weights whose shapes fit but whose heads or statistics differ."""
    folder = model_folder.load(config.model_init, "vit")
    here = {"num_heads": model.encoder.num_heads, "ln_eps": model.encoder.ln_eps}
    here |= {k: list(config.data[k]) for k in ("mean", "std")}
    here["final_ln_eps"] = model.encoder.final_ln_eps
    there = {"final_ln_eps": 0.0} | folder.architecture | folder.preprocessing
    if folder.heads and folder.heads.kind == "mae":
        here["decoder.num_heads"] = model.decoder.num_heads
        there["decoder.num_heads"] = folder.heads.architecture["num_heads"]
    for name, value in here.items():
        if there[name] != value:
            raise PacxError(
                f"{config.model_init}: its {name} is {there[name]}, here {value}: "
                "set the config to what the folder says"
            )
