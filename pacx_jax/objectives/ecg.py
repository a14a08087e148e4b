"""Stage 1, ECG: multi-label diagnosis, as ECGFounder was pretrained."""

from __future__ import annotations

import jax.numpy as jnp

from pacx_jax import losses
from pacx_jax.models import ecg
from pacx_jax.objectives import classify
from pacx_jax.types import Objective


def make(config) -> Objective:
    """Binary cross-entropy over `config.data.label_columns` on 12-lead ECGs."""
    num_classes = len(config.data.label_columns)
    model = ecg.Classifier(ecg.from_config(config.model, config.dtype), num_classes)

    def init(key):
        return model.init(key, jnp.zeros((1, 1000, 12)))["params"]

    def loss(params, batch, key, *, train):
        del key, train  # no dropout in the reference's configuration
        logits = model.apply({"params": params}, batch["ecg"])
        return losses.masked_bce(logits, batch["labels"], batch["label_mask"]), {}

    def outputs(params, batch, key):
        del key
        logits = model.apply({"params": params}, batch["ecg"])
        return {k: batch[k] for k in ("labels", "label_mask")} | {"logits": logits}

    return Objective(
        init=init,
        trainable=lambda path: True,
        loss=loss,
        outputs=outputs,
        summarize=classify.summarize_multilabel(tuple(config.data.label_columns)),
        # The head is for this data's labels, and starts anew.
        pretrained={"encoder": config.model_init} if config.model_init else {},
        modalities=("ecg", "labels"),
        weight=lambda batch: losses.known(batch["label_mask"]),
    )
