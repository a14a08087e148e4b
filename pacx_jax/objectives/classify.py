"""Stage 3: classification from an X-ray encoder.

With `tuning="linear"` the encoder is frozen and in evaluation mode: a linear probe.
With `data.group="study"` a study's logits are the mean over its views (`late_fusion`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import losses
from pacx_jax.encoders import image_statistics, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.models import vit
from pacx_jax.models.heads import LinearClassifier
from pacx_jax.objectives import late_fusion, scores
from pacx_jax.types import Array, Batch, Objective, Params

SHOWN = ("loss", "auroc_macro")


def make(config, mesh: Mesh | None = None) -> Objective:
    """Builds a linear layer on the CLS token, for multi-label or one-of-c labels."""
    del mesh
    if config.tuning not in ("linear", "full"):
        raise PacxError(f"config.tuning {config.tuning!r}: choose linear or full")
    if config.task not in ("multilabel", "multiclass"):
        raise PacxError(f"config.task {config.task!r}: choose multilabel or multiclass")
    if not config.model_init:
        raise PacxError(
            "config.model_init is empty: give the encoder to start from, a finished "
            "run's workdir or a folder of pacx_jax.convert"
        )
    folder = model_folder.load(config.model_init, "vit")
    image_statistics.check_size(folder, config.model_init, config.data)
    encoder = folder.module(config.dtype).clone(**vit.ways(config))
    names = tuple(config.data.label_columns)
    head = LinearClassifier(len(names))
    forward = _forward(config, folder, encoder, head)
    side = (config.data.image_size,) * 2

    def init(key):
        params = encoder.init(key, jnp.zeros((1, *side, encoder.channels)))["params"]
        head_params = head.init(key, jnp.zeros((1, encoder.width)))["params"]
        return {"encoder": params, "head": head_params}

    def loss(params, batch, key, *, train):
        del key, train  # no dropout
        y = forward(params, batch)["logits"]
        if config.task == "multilabel":
            value = losses.masked_bce(y, batch["labels"], batch["label_mask"])
        else:
            each = -jax.nn.log_softmax(losses.wide(y)) * batch["labels"]
            one = one_class(batch)
            value = (each.sum(-1) * one).sum() / losses.known(one)
        return value, {}

    def weight(batch):
        multilabel = config.task == "multilabel"
        return losses.known(batch["label_mask"] if multilabel else one_class(batch))

    def outputs(params, batch, key):
        del key
        entries = {k: batch[k] for k in ("labels", "label_mask")}
        return entries | forward(params, batch)

    summarize = summarize_multiclass(names)
    if config.task == "multilabel":
        summarize = summarize_multilabel(names, config.undefined_auroc)
    return Objective(
        init=init,
        trainable=lambda path: config.tuning == "full" or path.startswith("head/"),
        loss=loss,
        outputs=outputs,
        summarize=late_fusion.by_views(summarize),
        pretrained={"encoder": config.model_init},
        entries=("images" if _of_studies(config) else "image", "labels"),
        weight=weight,
    )


def _of_studies(config) -> bool:
    return config.data.get("group", "image") == "study"


def _forward(config, folder: ModelFolder, encoder, head):
    """Makes (params, batch) -> {"logits": (b, c)}, and what studies have besides.

    Of studies also `view_logits` (b, v, c), `view_mask` and `view` (b, v).
    """
    mean, std = image_statistics.chosen(folder, config.data)
    of_studies = _of_studies(config)
    embeds_views = folder.architecture.get("views", 0) > 0

    def classify(params, images, **view):
        images = normalize(images, mean, std)
        encoded = {"params": params["encoder"]}
        z = encoder.apply(encoded, images, cls_only=True, **view)[:, 0]
        return head.apply({"params": params["head"]}, losses.wide(z))

    def forward(params, batch):
        if not of_studies:
            return {"logits": classify(params, batch["image"])}
        images, mask = batch["images"], batch["view_mask"]
        view = {"view": batch["view"].reshape(-1)} if embeds_views else {}
        each = classify(params, images.reshape(-1, *images.shape[2:]), **view)
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


def summarize_multilabel(names: tuple[str, ...], undefined: str = "skip"):
    """Loss, the AUROC of each label, and macro means of AUROC, F1 at 0.5 and `scores`.

    A label with one class in the validation set is left out of the means ("skip"), or
    its AUROC counts as 0 ("zero"), as in torchmetrics (D35). Average precision, Brier
    score, calibration error and accuracy leave it out either way.
    """
    if undefined not in ("skip", "zero"):
        raise PacxError(f"config.undefined_auroc {undefined!r}: choose skip or zero")

    def summarize(outputs):
        import sklearn.metrics  # imported lazily: training does not need it

        y, mask = outputs["labels"], outputs["label_mask"] > 0
        x = outputs["logits"].astype(np.float64)
        bce = np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))
        metrics = {"loss": float(bce[mask].mean()) if mask.any() else float("nan")}
        aurocs, f1s, n_labels = [], [], 0
        for c, name in enumerate(names):
            m = mask[:, c]
            defined = len(np.unique(y[m, c])) == 2
            n_labels += defined
            if defined:
                auroc = float(sklearn.metrics.roc_auc_score(y[m, c], x[m, c]))
                metrics[f"auroc_{name}"] = auroc
            elif undefined == "zero" and m.any():
                auroc = 0.0
            else:
                continue
            aurocs.append(auroc)
            called = x[m, c] >= 0
            f1s.append(sklearn.metrics.f1_score(y[m, c], called, zero_division=0))
        metrics["auroc_macro"] = float(np.mean(aurocs)) if aurocs else float("nan")
        metrics["f1_macro"] = float(np.mean(f1s)) if f1s else float("nan")
        metrics["n_labels"] = float(n_labels)
        both, whole = scores.both_classes(y, mask), np.ones((1, len(y)))
        for name in ("ap", "brier", "ece", "accuracy"):
            each = scores.MEASURES[name](x, y, mask, whole)[0, both]
            metrics[f"{name}_macro"] = float(each.mean()) if both.any() else np.nan
        return metrics

    return summarize


def summarize_multiclass(names: tuple[str, ...]):
    """Cross-entropy, one-vs-rest macro AUROC, balanced accuracy, macro F1."""

    def summarize(outputs):
        import sklearn.metrics

        known = outputs["label_mask"].min(-1) > 0
        known &= outputs["labels"].sum(-1) == 1
        x = outputs["logits"][known].astype(np.float64)
        truth = outputs["labels"][known].argmax(-1)
        logp = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
        present = np.unique(truth)
        aurocs = [
            sklearn.metrics.roc_auc_score(truth == c, logp[:, c])
            for c in present
            if len(present) > 1
        ]
        recalls = [(x.argmax(-1)[truth == c] == c).mean() for c in present]
        f1 = sklearn.metrics.f1_score(
            truth, x.argmax(-1), average="macro", zero_division=0
        )
        return {
            "loss": float(-logp[np.arange(len(truth)), truth].mean()),
            "auroc_macro": float(np.mean(aurocs)) if aurocs else float("nan"),
            "acc_macro": float(np.mean(recalls)),
            "f1_macro": float(f1),
            "n_labels": float(len(aurocs)),
        }

    return summarize
