"""Stage 3: classification from an X-ray encoder.

With `tuning="linear"` the encoder is frozen and in evaluation mode: a linear probe.
With `data.group="study"` a study's logits are the mean over its views (`late_fusion`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pacx_jax import losses, sharding
from pacx_jax.encoders import image_statistics, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.models import vit
from pacx_jax.models.heads import LinearClassifier
from pacx_jax.models.transformer import drop_path
from pacx_jax.objectives import classify_metrics, late_fusion
from pacx_jax.types import Array, Batch, Objective, Params

SHOWN = ("loss", "auroc_macro")


def make(config, mesh: Mesh | None = None) -> Objective:
    """Builds a linear layer on the CLS token, for multi-label or one-of-c labels."""
    del mesh
    if config.tuning not in ("linear", "full"):
        raise PacxError(f"config.tuning {config.tuning!r}: choose linear or full")
    if config.task not in ("multilabel", "multiclass"):
        raise PacxError(f"config.task {config.task!r}: choose multilabel or multiclass")
    _check_tuning(config)
    if not config.model_init:
        raise PacxError(
            "config.model_init is empty: give the encoder to start from, a finished "
            "run's workdir or a folder of pacx_jax.convert"
        )
    folder = model_folder.load(config.model_init, ("vit", "densenet"))
    image_statistics.check_size(folder, config.model_init, config.data)
    encoder = folder.module(config.dtype)
    if folder.kind == "vit":
        encoder = encoder.clone(**vit.ways(config))
    elif config.tuning != "linear":
        raise PacxError(
            f"config.tuning is {config.tuning}, and {config.model_init} holds a "
            f"{folder.kind}, which stays frozen: give --config.tuning=linear"
        )
    names = tuple(config.data.label_columns)
    head = LinearClassifier(len(names))
    forward = _forward(config, folder, encoder, head)
    side = (config.data.image_size,) * 2

    def init(key):
        params = encoder.init(key, jnp.zeros((1, *side, encoder.channels)))["params"]
        head_params = head.init(key, jnp.zeros((1, encoder.width)))["params"]
        return {"encoder": params, "head": head_params}

    drop, alpha = config.get("drop_path", 0.0), config.get("mixup", 0.0)

    def error(y, batch):
        if config.task == "multilabel":
            return losses.masked_bce(y, batch["labels"], batch["label_mask"])
        each = -jax.nn.log_softmax(losses.wide(y)) * batch["labels"]
        one = one_class(batch)
        return (each.sum(-1) * one).sum() / losses.known(one)

    def loss(params, batch, key, *, train):
        how = {}
        if train and drop:
            rows = sharding.row_numbers(batch)
            path_key = jax.random.fold_in(key, 0)
            how["paths"] = drop_path(path_key, rows, encoder.depth, drop)
        if not (train and alpha):
            return error(forward(params, batch, **how)["logits"], batch), {}
        share = jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha)
        y = forward(params, batch, share=share, **how)["logits"]
        other = {k: batch[k][::-1] for k in ("labels", "label_mask")}
        return share * error(y, batch) + (1 - share) * error(y, other), {}

    def weight(batch):
        multilabel = config.task == "multilabel"
        return losses.known(batch["label_mask"] if multilabel else one_class(batch))

    def outputs(params, batch, key):
        del key
        entries = {k: batch[k] for k in ("labels", "label_mask")}
        return entries | forward(params, batch)

    summarize = classify_metrics.multiclass(names)
    if config.task == "multilabel":
        summarize = classify_metrics.multilabel(names, config.undefined_auroc)
    return Objective(
        init=init,
        trainable=lambda path: config.tuning == "full" or path.startswith("head/"),
        loss=loss,
        outputs=outputs,
        summarize=late_fusion.by_views(summarize),
        pretrained={"encoder": config.model_init},
        entries=("images" if _of_studies(config) else "image", "labels"),
        weight=None if alpha else weight,  # a part of a batch has other pairs
    )


def _check_tuning(config) -> None:
    """PacxError for mixup or drop-path where they cannot be."""
    drop, alpha = config.get("drop_path", 0.0), config.get("mixup", 0.0)
    if alpha < 0:
        raise PacxError(f"config.mixup is {alpha}: give 0 (off) or more, such as 0.8")
    if alpha and _of_studies(config):
        raise PacxError(
            "config.mixup mixes single images, and config.data.group is study: give "
            "--config.mixup=0"
        )
    if drop and config.tuning != "full":
        raise PacxError(
            f"config.drop_path is {drop}, and the encoder is frozen: give 0, or "
            "--config.tuning=full"
        )


def _of_studies(config) -> bool:
    return config.data.get("group", "image") == "study"


def _forward(config, folder: ModelFolder, encoder, head):
    """Makes (params, batch) -> {"logits": (b, c)}, and what studies have besides.

    In training also of `paths` (b, depth, 2), see `transformer.drop_path`, and of the
    `share` of an image in a mixture with that of the row opposite.

    Of studies also `view_logits` (b, v, c), `view_mask` and `view` (b, v).
    """
    mean, std = image_statistics.chosen(folder, config.data)
    of_studies = _of_studies(config)
    embeds_views = folder.architecture.get("views", 0) > 0

    def classify(params, images, share=None, **how):
        images = normalize(images, mean, std)
        if share is not None:  # of each image, the rest is another's (Zhang 2018)
            images = share * images + (1 - share) * images[::-1]
        encoded = {"params": params["encoder"]}
        z = encoder.apply(encoded, images, cls_only=True, **how)[:, 0]
        return head.apply({"params": params["head"]}, losses.wide(z))

    def forward(params, batch, paths=None, share=None):
        if not of_studies:
            return {"logits": classify(params, batch["image"], share, paths=paths)}
        images, mask = batch["images"], batch["view_mask"]
        how = {"view": batch["view"].reshape(-1)} if embeds_views else {}
        if paths is not None:  # a study's views go the same way
            how["paths"] = jnp.repeat(paths, images.shape[1], axis=0)
        each = classify(params, images.reshape(-1, *images.shape[2:]), **how)
        each = each.reshape(*mask.shape, -1)
        found = {"view_logits": each, "view_mask": mask, "view": batch["view"]}
        return found | {"logits": late_fusion.mean_logits(each, mask)}

    return forward


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports the encoder, and the classifier if its labels' names are known."""
    model = model_folder.trained_further(config, params["encoder"])
    if labels is None:
        return model
    about = {"encoder_width": model.width, "labels": labels, "task": config.task}
    heads = Heads("classify", about, {"head": params["head"]})
    return dataclasses.replace(model, heads=heads)


def about(config) -> str:
    """What a model card adds: how logits of images become those of a study."""
    if not _of_studies(config):
        return ""
    return (
        "Its classifier was trained on studies: the logits of a study are the mean of "
        "the logits of its images, each of which is classified alone (late fusion)."
    )


def one_class(batch: Batch) -> Array:
    """(b,), 1 for rows with exactly one class; other rows have no loss."""
    one = (batch["labels"].sum(-1) == 1) & (batch["label_mask"].min(-1) > 0)
    return one.astype(batch["label_mask"].dtype)
