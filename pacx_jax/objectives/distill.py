"""Stage 2: distil frozen ECG and lab embeddings into the X-ray encoder.

  loss = clip_weight * mean_m InfoNCE(cxr, m) + regression_weight * mean_m (1 - cos)

over the modalities m of `config.modalities` with a weight above 0 (paper section 3.2;
D15). `config.modalities.<m>.clip_weight` and `.regression_weight` weight the two means.
A study that lacks a modality has no loss for it and is none of its negatives. Under
LoRA the backbone is frozen; heads, adapters, LayerNorms and the temperature train.

The encoder is a ViT, or CheXmix's model (kind "unified"): its image tokenizer stays
frozen, and what trains are the blocks that its embedding needs.
"""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax.numpy as jnp
from jax.sharding import Mesh

from pacx_jax import lora, losses
from pacx_jax.encoders import image_statistics, kinds, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.modalities import teachers
from pacx_jax.objectives import distill_metrics
from pacx_jax.objectives.distill_model import (
    Parts,
    heads_of,
    module_of,
    reads,
    trainable,
)
from pacx_jax.types import Objective, Params

SHOWN = ("loss",)


def make(config, mesh: Mesh) -> Objective:
    """Builds the distillation objective; InfoNCE gathers its negatives over `mesh`."""
    names = active(config)
    folder = load_image_encoder(config)
    chosen = {m: teachers.load(m, config.modalities[m]) for m in names}
    return from_teachers(config, mesh, folder, chosen)


def from_teachers(
    config, mesh: Mesh, folder: ModelFolder, chosen: dict[str, teachers.Teacher]
) -> Objective:
    """Like `make`, for a loaded image encoder and teachers."""
    names = active(config)
    check(config, folder.kind)
    encoder = module_of(folder, config)
    heads = heads_of(config, {m: chosen[m].width for m in names})
    parts = Parts(config, encoder, chosen, heads)
    weights = Weights.of(config)

    def loss(params, batch, key, *, train):
        z, targets, out = parts.forward(params, batch, key, train)
        scale = losses.temperature_scale(params["logit_scale"])
        present = {m: batch[f"{m}_present"] for m in names if f"{m}_present" in batch}
        contrasts = losses.info_nce(
            out["cxr_to_shared"],
            {m: out[f"{m}_to_shared"] for m in names},
            scale,
            label_smoothing=config.loss.label_smoothing,
            mesh=mesh,
            chunk=config.loss.get("chunk", 0),
            present=present,
        )
        metrics = {}
        for m in names:
            metrics[f"clip_{m}"] = contrasts[m]
            metrics[f"regression_{m}"] = losses.cosine_regression(
                out[f"cxr_to_{m}"], targets[m], present.get(m)
            )
        clip, regression, total = weights.total(metrics)
        scale = jnp.exp(params["logit_scale"])
        metrics |= {"clip": clip, "regression": regression, "logit_scale": scale}
        if len(present) == len(names):
            here = functools.reduce(jnp.maximum, present.values())
            metrics["without_modality"] = 1 - here.mean()
        return total, metrics

    def outputs(params, batch, key):
        z, targets, out = parts.forward(params, batch, key, False)
        result = {"z": z, "cxr": losses.l2_normalize(out["cxr_to_shared"])}
        for m in names:
            result[m] = losses.l2_normalize(out[f"{m}_to_shared"])
            pred = losses.l2_normalize(out[f"cxr_to_{m}"])
            result[f"cosine_{m}"] = (pred * losses.l2_normalize(targets[m])).sum(-1)
            if f"{m}_present" in batch:
                result[f"{m}_present"] = batch[f"{m}_present"]
        scale = jnp.exp(params["logit_scale"])  # the loss clamps it
        return result | {"scale": jnp.full(z.shape[:1], scale)}

    cached = config.physiology == "cached"
    return Objective(
        init=parts.init,
        trainable=trainable(config, encoder.depth, functools.partial(reads, encoder)),
        loss=loss,
        outputs=outputs,
        summarize=distill_metrics.summarize(config, names, weights.total),
        pretrained={"encoder": config.model_init},
        readers=() if cached else tuple(t.reader for t in chosen.values()),
        teachers=chosen if cached else {},
        monitor=_adapters(config) if config.tuning == "lora" else None,
    )


def _adapters(config):
    def monitor(params):
        share = lora.share(params["encoder"], params["lora"], config.lora.alpha)
        return {"adapter_share": share}

    return monitor


def active(config) -> tuple[str, ...]:
    """Modalities with a weight above 0, in the config's order.

    Raises:
      PacxError: there are none, or a weight is below 0.
    """
    found = []
    for m, chosen in config.modalities.items():
        values = {k: chosen[k] for k in ("clip_weight", "regression_weight")}
        for field, value in values.items():
            if not value >= 0:
                raise PacxError(
                    f"config.modalities.{m}.{field} is {value}: give at least 0"
                )
        if any(values.values()):
            found.append(m)
    if not found:
        raise PacxError(
            "config.modalities: all clip_weight and regression_weight are 0: give one "
            f"of {', '.join(config.modalities)} a weight"
        )
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Weights:
    """How the modalities' losses add up.

    Attributes:
      clip, regression: modality -> weight.
      counts: divisors of the two weighted sums.
      clip_weight, regression_weight: weights of the two means.
    """

    clip: dict[str, float]
    regression: dict[str, float]
    counts: tuple[float, float]
    clip_weight: float
    regression_weight: float

    @classmethod
    def of(cls, config) -> Weights:
        """The weights of a config; the paper's eq. 4 divides both sums by 2 (D15)."""
        chosen = {m: config.modalities[m] for m in active(config)}
        clip = {m: c.clip_weight for m, c in chosen.items()}
        regression = {m: c.regression_weight for m, c in chosen.items()}
        counts = (sum(clip.values()), sum(regression.values()))
        if config.loss.reduction == "half_sum":
            counts = (2, 2)
        w = config.loss
        return cls(clip, regression, counts, w.clip_weight, w.regression_weight)

    def total(self, values: dict) -> tuple:
        """`clip_<m>` and `regression_<m>` -> (clip, regression, loss)."""
        clip = self._mean(values, "clip", self.clip, self.counts[0])
        regression = self._mean(values, "regression", self.regression, self.counts[1])
        loss = self.clip_weight * clip + self.regression_weight * regression
        return clip, regression, loss

    def _mean(self, values: dict, name: str, weights: dict, count: float):
        # Leaves out losses of weight 0, whatever their value.
        terms = [w * values[f"{name}_{m}"] for m, w in weights.items() if w]
        return sum(terms) / count if terms else jnp.zeros(())


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports the encoder with adapters merged, and heads and adapters beside it."""
    del labels
    linear = {k: v["linear"]["kernel"].shape for k, v in params["heads"].items()}
    about = {
        "head": config.heads.kind,
        "heads": {k: list(shape) for k, shape in linear.items()},
    }
    kept = {k: params[k] for k in ("heads", "logit_scale")}
    encoder = params["encoder"]
    if "lora" in params:
        encoder = lora.merge(encoder, params["lora"], config.lora.alpha)
        pairs = flax.traverse_util.flatten_dict(params["lora"], sep=".")
        names = sorted(k.removesuffix(".a") for k in pairs if k.endswith(".a"))
        base = flax.traverse_util.flatten_dict(params["encoder"], sep=".")
        base = {f"{k}.kernel": base[f"{k}.kernel"] for k in names}
        kept["lora"] = params["lora"]
        kept["base"] = flax.traverse_util.unflatten_dict(base, sep=".")
        fields = {"rank": config.lora.rank, "alpha": config.lora.alpha}
        about |= fields | {"adapted": names}
    folder = load_image_encoder(config)
    architecture = folder.architecture | {"image_size": config.data.image_size}
    preprocessing = folder.preprocessing  # of a unified model; tells of reports too
    if folder.kind == "vit":
        preprocessing = model_folder.image_preprocessing(
            config.data.mean, config.data.std, architecture.get("pool", "cls")
        )
    heads = Heads("pacx", about, kept)
    return ModelFolder(folder.kind, architecture, preprocessing, encoder, heads)


def load_image_encoder(config) -> model_folder.ModelFolder:
    """The X-ray encoder to train; `config.ln_eps` > 0 overrides the folder's."""
    if not config.model_init:
        raise PacxError("config.model_init is empty: give the MAE run's workdir")
    folder = model_folder.load(config.model_init, kinds.PATCHES)
    image_statistics.check_data(folder, config.model_init, config.data)
    if config.ln_eps:
        architecture = folder.architecture | {"ln_eps": config.ln_eps}
        folder = dataclasses.replace(folder, architecture=architecture)
    return folder


def check(config, kind: str) -> None:
    """PacxError for settings that distillation into an encoder of `kind` lacks."""
    for field, value, choices in (
        ("tuning", config.tuning, ("lora", "last_n_blocks", "full", "norms")),
        ("train_norms", config.train_norms, ("all", "final", "none")),
        ("physiology", config.physiology, ("cached", "in_graph")),
        ("loss.reduction", config.loss.reduction, ("mean", "half_sum")),
    ):
        if value not in choices:
            raise PacxError(f"config.{field} {value!r}: choose {', '.join(choices)}")
    chunk = config.loss.get("chunk", 0)
    if chunk < 0 or (chunk and config.global_batch_size % chunk):
        raise PacxError(
            f"config.loss.chunk {chunk} does not divide config.global_batch_size "
            f"{config.global_batch_size}: give a divisor, or 0 for all columns at once"
        )
    # A unified model's embedding comes from before its final norm.
    norms = ("all", "final") if kind == "vit" else ("all",)
    if config.tuning == "norms" and config.train_norms not in norms:
        raise PacxError(
            f"config.tuning=norms with config.train_norms={config.train_norms} trains "
            f"nothing of the encoder: choose train_norms {' or '.join(norms)}"
        )
    tables = [m for m in active(config) if config.modalities[m].init.endswith(".npz")]
    if tables and config.physiology == "in_graph":
        raise PacxError(
            f"config.modalities.{tables[0]}.init is a table: it has no encoder to put "
            "in the graph; give --config.physiology=cached"
        )
