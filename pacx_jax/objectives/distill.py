"""Stage 2: distil frozen ECG and lab embeddings into the X-ray encoder.

  loss = clip_weight * mean_m InfoNCE(cxr, m) + regression_weight * mean_m (1 - cos)

over the modalities m of `config.modalities` whose weights are not 0 (paper section
3.2; D15). `config.modalities.<m>.clip_weight` and `.regression_weight` weight the two
means. A study that lacks a modality has no loss for it and is none of its negatives.
The backbone is frozen under LoRA; heads, adapters, LayerNorms and the temperature
train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re

import flax
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from pacx_jax import lora, losses, sharding
from pacx_jax.encoders import image_statistics, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.modalities import teachers
from pacx_jax.models import vit
from pacx_jax.models.heads import Head
from pacx_jax.objectives import distill_metrics
from pacx_jax.types import Array, Batch, Objective, Params

SHOWN = ("loss",)


def make(config, mesh: Mesh) -> Objective:
    """The distillation objective; `mesh` is where InfoNCE gathers its negatives."""
    names = active(config)
    folder = load_image_encoder(config)
    chosen = {m: teachers.load(m, config.modalities[m]) for m in names}
    return from_teachers(config, mesh, folder, chosen)


def from_teachers(
    config, mesh: Mesh, folder: ModelFolder, chosen: dict[str, teachers.Teacher]
) -> Objective:
    """As `make`, of an image encoder and teachers at hand."""
    names = active(config)
    _check(config)
    encoder = folder.module(config.dtype).clone(**vit.ways(config))
    heads = make_heads(config, {m: chosen[m].width for m in names})
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
        trainable=trainable(config, parts.encoder.depth),
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
    """The modalities that have a weight above 0, in the config's order.

    Raises:
      PacxError: none, or a weight below 0.
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
    """How the modalities' losses become one.

    Attributes:
      clip, regression: modality -> weight.
      counts: what the weighted sums are divided by.
      clip_weight, regression_weight: of the two means.
    """

    clip: dict[str, float]
    regression: dict[str, float]
    counts: tuple[float, float]
    clip_weight: float
    regression_weight: float

    @classmethod
    def of(cls, config) -> Weights:
        """Those of a config: 2 divides both sums in the paper's eq. 4 (D15)."""
        chosen = {m: config.modalities[m] for m in active(config)}
        clip = {m: c.clip_weight for m, c in chosen.items()}
        regression = {m: c.regression_weight for m, c in chosen.items()}
        counts = (sum(clip.values()), sum(regression.values()))
        if config.loss.reduction == "half_sum":
            counts = (2, 2)
        w = config.loss
        return cls(clip, regression, counts, w.clip_weight, w.regression_weight)

    def total(self, values: dict) -> tuple:
        """(clip, regression, loss) of `clip_<m>` and `regression_<m>`."""
        clip = self._mean(values, "clip", self.clip, self.counts[0])
        regression = self._mean(values, "regression", self.regression, self.counts[1])
        loss = self.clip_weight * clip + self.regression_weight * regression
        return clip, regression, loss

    def _mean(self, values: dict, name: str, weights: dict, count: float):
        # A loss of weight 0 is left out, whatever its value.
        terms = [w * values[f"{name}_{m}"] for m, w in weights.items() if w]
        return sum(terms) / count if terms else jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class Parts:
    """What Stage 2 is made of, and its forward pass as pure functions of parameters.

    Attributes:
      config: the run's.
      encoder: the X-ray encoder.
      teachers: modality -> its frozen embeddings.
      heads: name -> head; "cxr_to_shared", "ecg_to_shared", "cxr_to_ecg", ...
    """

    config: ml_collections.ConfigDict
    encoder: vit.ViT
    teachers: dict[str, teachers.Teacher]
    heads: dict[str, Head]

    def init(self, key: jax.Array) -> Params:
        """All parameters: encoder, lora, heads, logit_scale and, in_graph, teachers."""
        config, size = self.config, self.config.data.image_size
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, size, size, 3))
        params = {"encoder": self.encoder.init(keys[0], image)["params"], "heads": {}}
        if config.tuning == "lora":
            params["lora"] = lora.init(
                keys[1], params["encoder"], config.lora.targets, config.lora.rank
            )
        for i, (name, head) in enumerate(self.heads.items()):
            k = jax.random.fold_in(keys[2], i)
            modality = _of_head(name)
            of = self.encoder if modality == "cxr" else self.teachers[modality]
            z = jnp.zeros((1, of.width))
            params["heads"][name] = head.init(k, z, train=False)["params"]
        params["logit_scale"] = jnp.asarray(-math.log(config.loss.temperature))
        if config.physiology == "in_graph":
            for m, teacher in self.teachers.items():
                weights = teacher.folder.params
                params[f"{m}_encoder"] = jax.tree.map(jnp.asarray, weights)
        return params

    def forward(self, params: Params, batch: Batch, key: jax.Array, train: bool):
        """CLS token (b, d), frozen embeddings {m: (b, d_m)}, heads' outputs {name}."""
        lora_key, head_key = jax.random.split(key)
        z = self.embed_in_chunks(params, batch, lora_key, train)
        targets = jax.lax.stop_gradient(self.targets(params, batch))
        out = {}
        for i, (name, head) in enumerate(self.heads.items()):
            modality = _of_head(name)
            x = z if modality == "cxr" else targets[modality]
            rngs = {"dropout": jax.random.fold_in(head_key, i)}
            weights = {"params": params["heads"][name]}
            out[name] = head.apply(weights, x, train=train, rngs=rngs)
        return z, targets, out

    def embed_in_chunks(self, params, batch, key, train) -> Array:
        """`embed` of a batch, `config.encoder_chunks` parts one after another.

        In the backward pass each part is computed again, so that activations take the
        memory of one. The loss sees the embeddings of all (Gao 2021, GradCache): loss
        and gradient are those of the whole batch.
        """
        rows, count = sharding.row_numbers(batch), self.config.get("encoder_chunks", 1)
        if count == 1:
            return self.embed(params, batch["image"], rows, key, train)

        @jax.checkpoint
        def one(part):
            rows = part["row_numbers"]
            return self.embed(params, part["image"], rows, key, train)

        images = {"image": batch["image"], "row_numbers": rows}
        parts = sharding.split_rows(images, count)
        return sharding.join_rows(jax.lax.map(one, parts))

    def embed(self, params, images, rows, key, train) -> Array:
        """uint8 images (b, h, w, 3) -> CLS token (b, d), with adapters if there are.

        `rows` (b,) are the images' numbers in the global batch, for dropout.
        """
        config = self.config
        images = normalize(images, config.data.mean, config.data.std)
        context = contextlib.nullcontext()
        if config.tuning == "lora":
            context = lora.applied(
                params["lora"],
                alpha=config.lora.alpha,
                dropout=config.lora.dropout if train else 0.0,
                key=key,
                rows=rows,
            )
        with context:
            variables = {"params": params["encoder"]}
            tokens = self.encoder.apply(variables, images, cls_only=True)
        return losses.wide(tokens[:, 0])

    def targets(self, params, batch) -> dict[str, Array]:
        """The frozen embeddings, from the batch or from their encoders in the graph."""
        if self.config.physiology == "cached":
            return {m: batch[f"{m}_embedding"] for m in self.teachers}
        return {
            m: teacher.embed(params[f"{m}_encoder"], batch)
            for m, teacher in self.teachers.items()
        }


def _of_head(name: str) -> str:
    """The modality that a head takes: "cxr_to_ecg" -> "cxr"."""
    return name.partition("_to_")[0]


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """The encoder with its adapters merged; heads and adapters stand beside it."""
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
    architecture = load_image_encoder(config).architecture
    architecture = architecture | {"image_size": config.data.image_size}
    preprocessing = model_folder.image_preprocessing(config.data.mean, config.data.std)
    heads = Heads("pacx", about, kept)
    return ModelFolder("vit", architecture, preprocessing, encoder, heads)


def load_image_encoder(config) -> model_folder.ModelFolder:
    """The MAE encoder that is distilled into; `config.ln_eps` > 0 overrides its own."""
    if not config.model_init:
        raise PacxError("config.model_init is empty: give the MAE run's workdir")
    folder = model_folder.load(config.model_init, "vit")
    image_statistics.check_data(folder, config.model_init, config.data)
    if config.ln_eps:
        architecture = folder.architecture | {"ln_eps": config.ln_eps}
        folder = dataclasses.replace(folder, architecture=architecture)
    return folder


def _check(config) -> None:
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
    if config.tuning == "norms" and config.train_norms == "none":
        raise PacxError(
            "config.tuning=norms with config.train_norms=none trains nothing of the "
            "encoder: choose train_norms all or final"
        )
    tables = [m for m in active(config) if config.modalities[m].init.endswith(".npz")]
    if tables and config.physiology == "in_graph":
        raise PacxError(
            f"config.modalities.{tables[0]}.init is a table: it has no encoder to put "
            "in the graph; give --config.physiology=cached"
        )


def make_heads(config, widths: dict[str, int]) -> dict[str, Head]:
    """The projections, by name, onto teachers of these widths."""
    kind, dropout = config.heads.kind, config.heads.dropout
    sizes = {"cxr_to_shared": config.heads.shared_dim}
    for m, width in widths.items():
        sizes |= {f"{m}_to_shared": config.heads.shared_dim, f"cxr_to_{m}": width}
    return {name: Head(d, kind, dropout) for name, d in sizes.items()}


def trainable(config, depth: int):
    """Path predicate of `tuning` and `train_norms` (D2).

    `train_norms` speaks of lora and norms; last_n_blocks trains these blocks and the
    final norm, as the reference does, and full everything.
    """
    norms = {"all": r"encoder/(block_\d+/norm\d|norm)/.*", "final": r"encoder/norm/.*",
             "none": r"(?!)"}[config.train_norms]  # fmt: skip
    patterns = [r"heads/.*", r"lora/.*"]
    if config.tuning in ("lora", "norms"):
        patterns.append(norms)
    if config.loss.learn_temperature:
        patterns.append(r"logit_scale")
    if config.tuning == "full":
        patterns.append(r"encoder/.*")
    if config.tuning == "last_n_blocks":
        last = range(max(depth - config.last_n_blocks, 0), depth)
        patterns += [rf"encoder/block_{i:02d}/.*" for i in last]
        patterns.append(r"encoder/norm/.*")
    matcher = re.compile("|".join(f"(?:{p})" for p in patterns))
    return lambda path: matcher.fullmatch(path) is not None
