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

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import lora, losses, model_folder, retrieval
from pacx_jax.input.normalize import normalize
from pacx_jax.models.heads import Head
from pacx_jax.types import Objective, PacxError

SOURCES = {"ecg": "ecg_net1d", "labs": "labs_dae"}  # modality -> model kind


def make(config, mesh: Mesh) -> Objective:
    """The distillation objective; `mesh` is where InfoNCE gathers its negatives."""
    modalities = _check(config)
    encoder = load_image_encoder(config).module(config.dtype)
    sources = {m: load_source(config, m) for m in modalities}
    heads = _heads(config, {m: s.width for m, s in sources.items()})
    size, mean, std = config.data.image_size, config.data.mean, config.data.std
    use_lora = config.tuning == "lora"
    count = _count(config)

    def init(key):
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, size, size, 3))
        params = {"encoder": encoder.init(keys[0], image)["params"], "heads": {}}
        if use_lora:
            params["lora"] = lora.init(
                keys[1], params["encoder"], config.lora.targets, config.lora.rank
            )
        for i, (name, head) in enumerate(heads.items()):
            k = jax.random.fold_in(keys[2], i)
            d = sources[name.split("_")[0]].width if not name.startswith("cxr") else 0
            z = jnp.zeros((1, d or encoder.width))
            params["heads"][name] = head.init(k, z, train=False)["params"]
        params["logit_scale"] = jnp.asarray(-math.log(config.loss.temperature))
        if config.physiology == "in_graph":
            for m, source in sources.items():
                params[f"{m}_encoder"] = jax.tree.map(jnp.asarray, source.params)
        return params

    def embed(params, batch, key, train):
        """CLS token (b, d) and the frozen embeddings {m: (b, d_m)}."""
        images = normalize(batch["image"], mean, std)
        context = contextlib.nullcontext()
        if use_lora:
            context = lora.applied(
                params["lora"],
                alpha=config.lora.alpha,
                dropout=config.lora.dropout if train else 0.0,
                key=key,
            )
        with context:
            z = encoder.apply({"params": params["encoder"]}, images)[:, 0]
        targets = {}
        for m, source in sources.items():
            if config.physiology == "cached":
                targets[m] = batch[f"{m}_embedding"]
            else:
                module, weights = source.module(), {"params": params[f"{m}_encoder"]}
                targets[m] = module.apply(weights, *physiology_inputs(m, batch))
        return losses.wide(z), jax.lax.stop_gradient(targets)

    def project(params, z, targets, key, train):
        """Every head's output, {name: (b, ...)}."""
        out = {}
        for i, (name, head) in enumerate(heads.items()):
            x = z if name.startswith("cxr") else targets[name.split("_")[0]]
            rngs = {"dropout": jax.random.fold_in(key, i)}
            weights = {"params": params["heads"][name]}
            out[name] = head.apply(weights, x, train=train, rngs=rngs)
        return out

    def loss(params, batch, key, *, train):
        lora_key, head_key = jax.random.split(key)
        z, targets = embed(params, batch, lora_key, train)
        out = project(params, z, targets, head_key, train)
        scale = losses.temperature_scale(params["logit_scale"])
        metrics = {}
        for m in modalities:
            metrics[f"clip_{m}"] = losses.info_nce(
                out["cxr_to_shared"],
                out[f"{m}_to_shared"],
                scale,
                label_smoothing=config.loss.label_smoothing,
                mesh=mesh,
            )
            metrics[f"regression_{m}"] = losses.cosine_regression(
                out[f"cxr_to_{m}"], targets[m]
            )
        clip = sum(metrics[f"clip_{m}"] for m in modalities) / count
        reg = sum(metrics[f"regression_{m}"] for m in modalities) / count
        total = config.loss.clip_weight * clip + config.loss.regression_weight * reg
        scale = jnp.exp(params["logit_scale"])
        return total, metrics | {"clip": clip, "regression": reg, "logit_scale": scale}

    def outputs(params, batch, key):
        z, targets = embed(params, batch, key, False)
        out = project(params, z, targets, key, False)
        result = {"z": z, "cxr": losses.l2_normalize(out["cxr_to_shared"])}
        for m in modalities:
            result[m] = losses.l2_normalize(out[f"{m}_to_shared"])
            pred = losses.l2_normalize(out[f"cxr_to_{m}"])
            result[f"cosine_{m}"] = (pred * losses.l2_normalize(targets[m])).sum(-1)
        scale = losses.temperature_scale(params["logit_scale"])
        return result | {"scale": jnp.full(z.shape[:1], scale)}

    return Objective(
        init=jax.jit(init),
        trainable=_trainable(config, encoder.depth),
        loss=loss,
        outputs=outputs,
        summarize=_summarize(config, modalities),
        pretrained={"encoder": config.model_init},
        modalities=_entries(config, modalities),
    )


def load_image_encoder(config) -> model_folder.ModelFolder:
    """The MAE encoder that is distilled into; `config.ln_eps` > 0 overrides its own."""
    if not config.model_init:
        raise PacxError("config.model_init is empty: give the MAE run's workdir")
    folder = model_folder.load(config.model_init, "vit")
    if config.ln_eps:
        architecture = folder.architecture | {"ln_eps": config.ln_eps}
        folder = dataclasses.replace(folder, architecture=architecture)
    return folder


def load_source(config, modality: str) -> model_folder.ModelFolder:
    """The frozen encoder of a modality, from config.ecg_init or config.labs_init."""
    path = config[f"{modality}_init"]
    if not path:
        raise PacxError(
            f"config.{modality}_init is empty: give the folder of a "
            f"{SOURCES[modality]} encoder, such as that run's workdir"
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


def _summarize(config, modalities):
    """Reference.md 4.8: within-batch and dataset-level metrics of the validation set.

    "Within batch" means groups of `global_batch_size` consecutive examples.
    """
    w, smoothing = config.loss, config.loss.label_smoothing

    def summarize(out):
        metrics, clip, reg = {}, [], []
        b, scale = config.global_batch_size, float(out["scale"][0])
        for m in modalities:
            groups = [
                _group(out["cxr"][i : i + b], out[m][i : i + b], scale, smoothing)
                for i in range(0, len(out["cxr"]), b)
            ]
            sizes = np.array([g["size"] for g in groups], np.float64)
            for name in groups[0]:
                if name != "size":
                    values = [g[name] for g in groups]
                    metrics[f"{name}_{m}"] = float(np.average(values, weights=sizes))
            for k, share in retrieval.recall_at_k(out["cxr"], out[m]).items():
                metrics[f"recall@{k}_{m}"] = share
            metrics[f"cosine_sim_{m}"] = float(out[f"cosine_{m}"].mean())
            clip.append(metrics[f"clip_{m}"])
            reg.append(1 - metrics[f"cosine_sim_{m}"])
        total = w.clip_weight * sum(clip) + w.regression_weight * sum(reg)
        metrics |= {
            "loss": float(total / _count(config)),
            "z_norm": float(np.linalg.norm(out["z"], axis=-1).mean()),
            "z_std": float(out["z"].std(0).mean()),
            "logit_scale": scale,
        }
        return metrics

    return summarize


def _group(a: np.ndarray, b: np.ndarray, scale: float, smoothing: float) -> dict:
    """Metrics of one group of paired unit vectors, (n, d) each."""
    n = len(a)
    similarity = (a @ b.T).astype(np.float64)
    loss = 0.0
    for s in (similarity, similarity.T):
        logp = scale * s - np.logaddexp.reduce(scale * s, axis=1, keepdims=True)
        positive = np.diag(logp)
        loss -= ((1 - smoothing) * positive + smoothing * logp.mean(1)).mean() / 2
    rank = (similarity > np.diag(similarity)[:, None]).sum(1)
    off = similarity.sum() - np.trace(similarity)
    return {
        "size": n,
        "clip": loss,
        "top1": (rank < 1).mean(),
        "top5": (rank < 5).mean(),
        "pos_sim": np.diag(similarity).mean(),
        "neg_sim": off / max(n * (n - 1), 1),
        "mi_bound": math.log(n) - loss,
        "loss_over_log_n": loss / math.log(n) if n > 1 else 0.0,
    }
