"""An objective of one's own: predict an X-ray's mean brightness from its CLS token."""

from __future__ import annotations

import jax.numpy as jnp

from pacx_jax.encoders import model_folder
from pacx_jax.input.normalize import normalize
from pacx_jax.models import vit
from pacx_jax.types import Objective

SHOWN = ("loss", "correlation")


def make(config, mesh) -> Objective:
    """Mean squared error of a linear layer on the encoder's CLS token."""
    del mesh
    encoder = vit.from_config(config.model, config.dtype)
    size, mean, std = config.data.image_size, config.data.mean, config.data.std

    def init(key):
        images = jnp.zeros((1, size, size, 3))
        head = {"kernel": jnp.zeros((encoder.width,)), "bias": jnp.zeros(())}
        return {"encoder": encoder.init(key, images)["params"], "head": head}

    def predict(params, batch):
        images = normalize(batch["image"], mean, std)
        tokens = encoder.apply({"params": params["encoder"]}, images, cls_only=True)
        return tokens[:, 0] @ params["head"]["kernel"] + params["head"]["bias"]

    def truth(batch):
        return batch["image"].astype(jnp.float32).mean((1, 2, 3)) / 255

    def loss(params, batch, key, *, train):
        del key, train
        return ((predict(params, batch) - truth(batch)) ** 2).mean(), {}

    def outputs(params, batch, key):
        del key
        return {"predicted": predict(params, batch), "truth": truth(batch)}

    def summarize(outputs):
        error = outputs["predicted"] - outputs["truth"]
        pair = jnp.stack([outputs["predicted"], outputs["truth"]])
        return {
            "loss": float((error**2).mean()),
            "correlation": float(jnp.corrcoef(pair)[0, 1]),
        }

    return Objective(
        init=init,
        trainable=lambda path: True,
        loss=loss,
        outputs=outputs,
        summarize=summarize,
        weight=lambda batch: jnp.float32(len(batch["image"])),
    )


def export(config, params, labels=None) -> model_folder.ModelFolder:
    """The encoder; the head is not kept."""
    del labels
    architecture = vit.architecture(config.model, config.data.image_size)
    preprocessing = model_folder.image_preprocessing(config.data.mean, config.data.std)
    return model_folder.ModelFolder(
        "vit", architecture, preprocessing, params["encoder"]
    )
