"""Stage 2: distil frozen ECG and lab embeddings into the X-ray encoder.

  loss = clip_weight * mean_m InfoNCE(cxr, m) + regression_weight * mean_m (1 - cos)

over the active modalities m of {ecg, labs} (paper section 3.2; D15). The backbone is
frozen under LoRA; heads, adapters, LayerNorms and the temperature train.
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
from pacx_jax.models import vit
from pacx_jax.models.heads import Head
from pacx_jax.objectives import distill_metrics
from pacx_jax.types import Array, Batch, Objective, Params

SHOWN = ("loss",)
SOURCES = {"ecg": "ecg_net1d", "labs": "labs_dae"}  # modality -> model kind


def make(config, mesh: Mesh) -> Objective:
    """The distillation objective; `mesh` is where InfoNCE gathers its negatives."""
    modalities = _check(config)
    folder = load_image_encoder(config)
    return from_folders(
        config, mesh, folder, {m: load_source(config, m) for m in modalities}
    )


def from_folders(
    config,
    mesh: Mesh,
    folder: model_folder.ModelFolder,
    sources: dict[str, model_folder.ModelFolder],
) -> Objective:
    """As `make`, of an image encoder and of encoders of the modalities at hand."""
    modalities = _check(config)
    encoder = folder.module(config.dtype).clone(**vit.ways(config))
    heads = _heads(config, {m: s.width for m, s in sources.items()})
    parts = Parts(config, encoder, sources, heads)
    count, weights = _count(config), config.loss

    def loss(params, batch, key, *, train):
        z, targets, out = parts.forward(params, batch, key, train)
        scale = losses.temperature_scale(params["logit_scale"])
        contrasts = losses.info_nce(
            out["cxr_to_shared"],
            {m: out[f"{m}_to_shared"] for m in modalities},
            scale,
            label_smoothing=weights.label_smoothing,
            mesh=mesh,
            chunk=weights.get("chunk", 0),
        )
        metrics = {}
        for m in modalities:
            metrics[f"clip_{m}"] = contrasts[m]
            metrics[f"regression_{m}"] = losses.cosine_regression(
                out[f"cxr_to_{m}"], targets[m]
            )
        clip = sum(metrics[f"clip_{m}"] for m in modalities) / count
        reg = sum(metrics[f"regression_{m}"] for m in modalities) / count
        total = weights.clip_weight * clip + weights.regression_weight * reg
        scale = jnp.exp(params["logit_scale"])
        return total, metrics | {"clip": clip, "regression": reg, "logit_scale": scale}

    def outputs(params, batch, key):
        z, targets, out = parts.forward(params, batch, key, False)
        result = {"z": z, "cxr": losses.l2_normalize(out["cxr_to_shared"])}
        for m in modalities:
            result[m] = losses.l2_normalize(out[f"{m}_to_shared"])
            pred = losses.l2_normalize(out[f"cxr_to_{m}"])
            result[f"cosine_{m}"] = (pred * losses.l2_normalize(targets[m])).sum(-1)
        scale = jnp.exp(params["logit_scale"])  # the loss clamps it
        return result | {"scale": jnp.full(z.shape[:1], scale)}

    return Objective(
        init=parts.init,
        trainable=_trainable(config, parts.encoder.depth),
        loss=loss,
        outputs=outputs,
        summarize=distill_metrics.summarize(config, modalities, count),
        pretrained={"encoder": config.model_init},
        modalities=_entries(config, modalities),
    )


@dataclasses.dataclass(frozen=True)
class Parts:
    """What Stage 2 is made of, and its forward pass as pure functions of parameters.

    Attributes:
      config: the run's.
      encoder: the X-ray encoder.
      sources: modality -> frozen encoder.
      heads: name -> head; "cxr_to_shared", "ecg_to_shared", "cxr_to_ecg", ...
    """

    config: ml_collections.ConfigDict
    encoder: vit.ViT
    sources: dict[str, model_folder.ModelFolder]
    heads: dict[str, Head]

    def init(self, key: jax.Array) -> Params:
        """All parameters: encoder, lora, heads, logit_scale and, in_graph, sources."""
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
            modality = name.split("_")[0]
            of = self.encoder if modality == "cxr" else self.sources[modality]
            z = jnp.zeros((1, of.width))
            params["heads"][name] = head.init(k, z, train=False)["params"]
        params["logit_scale"] = jnp.asarray(-math.log(config.loss.temperature))
        if config.physiology == "in_graph":
            for m, source in self.sources.items():
                params[f"{m}_encoder"] = jax.tree.map(jnp.asarray, source.params)
        return params

    def forward(self, params: Params, batch: Batch, key: jax.Array, train: bool):
        """CLS token (b, d), frozen embeddings {m: (b, d_m)}, heads' outputs {name}."""
        lora_key, head_key = jax.random.split(key)
        z = self.embed_in_chunks(params, batch, lora_key, train)
        targets = jax.lax.stop_gradient(self.targets(params, batch))
        out = {}
        for i, (name, head) in enumerate(self.heads.items()):
            modality = name.split("_")[0]
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
            return {m: batch[f"{m}_embedding"] for m in self.sources}
        found = {}
        for m, source in self.sources.items():
            weights = {"params": params[f"{m}_encoder"]}
            found[m] = source.module().apply(weights, *physiology_inputs(m, batch))
        return found


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


def load_source(config, modality: str) -> model_folder.ModelFolder:
    """The frozen encoder of a modality, from config.ecg_init or config.labs_init."""
    path = config[f"{modality}_init"]
    if not path:
        raise PacxError(
            f"config.{modality}_init is empty: give the folder of an "
            f"encoder of kind {SOURCES[modality]}, such as that run's workdir"
        )
    return model_folder.load(path, SOURCES[modality])


def physiology_inputs(modality: str, batch) -> tuple:
    """The arrays of a batch that a modality's encoder takes."""
    names = {"ecg": ("ecg",), "labs": ("labs", "labs_mask")}[modality]
    return tuple(batch[name] for name in names)


def _check(config) -> tuple[str, ...]:
    modalities = tuple(config.loss.modalities)
    if not modalities or set(modalities) - set(SOURCES):
        raise PacxError(f"config.loss.modalities {modalities}: choose of ecg, labs")
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
    return modalities


def _count(config) -> int:
    """What a sum over modalities is divided by: 2 always in the paper's eq. 4 (D15)."""
    return 2 if config.loss.reduction == "half_sum" else len(config.loss.modalities)


def _entries(config, modalities) -> tuple[str, ...]:
    return ("image",) + (modalities if config.physiology == "in_graph" else ())


def _heads(config, widths: dict[str, int]) -> dict[str, Head]:
    kind, dropout = config.heads.kind, config.heads.dropout
    sizes = {"cxr_to_shared": config.heads.shared_dim}
    for m, width in widths.items():
        sizes |= {f"{m}_to_shared": config.heads.shared_dim, f"cxr_to_{m}": width}
    return {name: Head(d, kind, dropout) for name, d in sizes.items()}


def _trainable(config, depth: int):
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
