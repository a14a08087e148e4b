"""Stage 1, ECG: multi-label diagnosis, like ECGFounder's pretraining."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from pacx_jax import losses, modalities
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.models import ecg
from pacx_jax.objectives import classify_metrics
from pacx_jax.types import Objective, Params

SHOWN = ("loss", "auroc_macro")


def make(config, mesh: Mesh | None = None) -> Objective:
    """Binary cross-entropy over `config.data.label_columns` on 12-lead ECGs."""
    del mesh
    num_classes = len(config.data.label_columns)
    model = ecg.Classifier(ecg.from_config(config.model, config.dtype), num_classes)

    reader = modalities.reader("ecg", config.data)
    (array,) = reader.module.ARRAYS

    def init(key):
        return model.init(key, jnp.zeros((1, 1000, 12)))["params"]

    def loss(params, batch, key, *, train):
        del key, train  # no dropout in the reference's configuration
        logits = model.apply({"params": params}, batch[array])
        return losses.masked_bce(logits, batch["labels"], batch["label_mask"]), {}

    def outputs(params, batch, key):
        del key
        logits = model.apply({"params": params}, batch[array])
        return {k: batch[k] for k in ("labels", "label_mask")} | {"logits": logits}

    return Objective(
        init=init,
        trainable=lambda path: True,
        loss=loss,
        outputs=outputs,
        summarize=classify_metrics.multilabel(tuple(config.data.label_columns)),
        # The head is for this data's labels, so it starts fresh.
        pretrained={"encoder": config.model_init} if config.model_init else {},
        entries=("labels",),
        readers=(reader,),
        weight=lambda batch: losses.known(batch["label_mask"]),
    )


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports the encoder, and the classifier if its labels' names are known."""
    fields = ("base_filters", "filters", "blocks", "kernel", "groups_width")
    a = {f: config.model[f] for f in fields}
    a |= {f: list(config.model[f]) for f in ("filters", "blocks")}
    heads = None
    if labels is not None:
        about = {"encoder_width": a["filters"][-1], "labels": labels}
        heads = Heads("ecg", about, {"head": {"linear": params["head"]}})
    preprocessing = {"sampling_rate": 500, "decimate": config.data.ecg_decimate}
    return ModelFolder("ecg_net1d", a, preprocessing, params["encoder"], heads)
