"""Stage 1, laboratory values or vital signs: denoise and impute."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import modalities, sharding
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.models import labs_dae
from pacx_jax.types import Objective, Params

SHOWN = ("loss",)


def make(config, mesh: Mesh | None = None) -> Objective:
    """The autoencoder's objective (model, loss.corruption).

    `config.modality` names the modality it reads.
    """
    del mesh
    model = labs_dae.from_config(config.model)
    reader = modalities.reader(config.modality, config.data)
    # A study without any value adds nothing to the loss.
    reader = dataclasses.replace(reader, optional=True)
    values_name, mask_name = reader.module.ARRAYS

    def init(key):
        labs = jnp.zeros((1, config.model.features))
        return model.init(key, labs, labs)["params"]

    def corrupt(key, batch):
        rows, rate = sharding.row_numbers(batch), config.loss.corruption
        return labs_dae.corrupt(key, rows, batch[values_name], batch[mask_name], rate)

    def loss(params, batch, key, *, train):
        labs, mask = batch[values_name], batch[mask_name]
        values, bits = labs, mask
        if train:
            values, bits, _ = corrupt(key, batch)
        pred = model.apply({"params": params}, values, bits)
        return labs_dae.masked_mse(pred, labs, mask), {}

    def outputs(params, batch, key):
        labs, mask = batch[values_name], batch[mask_name]
        values, bits, drop = corrupt(key, batch)
        drop = drop.astype(labs.dtype)
        clean = model.apply({"params": params}, labs, mask)
        denoised = model.apply({"params": params}, values, bits)
        z = model.apply({"params": params}, labs, mask, method=_encode)
        return {
            "clean": ((clean - labs) ** 2 * mask).sum(-1),
            "denoising": ((denoised - labs) ** 2 * mask).sum(-1),
            "imputation": ((denoised - labs) ** 2 * drop).sum(-1),
            "observed": mask.sum(-1),
            "dropped": drop.sum(-1),
            "z": z,
        }

    def summarize(outputs):
        sums = {k: v.sum(dtype=np.float64) for k, v in outputs.items() if k != "z"}
        observed, dropped = max(sums["observed"], 1.0), max(sums["dropped"], 1.0)
        return {
            "loss": float(sums["denoising"] / observed),
            "clean_recon_mse": float(sums["clean"] / observed),
            "denoising_mse": float(sums["denoising"] / observed),
            "imputation_mse": float(sums["imputation"] / dropped),
            "z_std": float(outputs["z"].std()),
        }

    return Objective(
        init=init,
        trainable=lambda path: True,
        loss=loss,
        outputs=outputs,
        summarize=summarize,
        pretrained={part: config.model_init for part in ("encoder", "decoder")}
        if config.model_init
        else {},
        entries=(),
        readers=(reader,),
        weight=lambda batch: labs_dae.observed(batch[mask_name]),
    )


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports the encoder half, and the decoder beside it."""
    del labels
    a = {k: config.model[k] for k in ("features", "hidden", "latent")}
    heads = Heads("labs_dae", a, {"decoder": params["decoder"]})
    a = a | {"mask_inputs": config.model.mask_inputs}
    return ModelFolder("labs_dae", a, {}, params["encoder"], heads)


def _encode(model, labs, labs_mask):
    return model.encoder(labs, labs_mask)
