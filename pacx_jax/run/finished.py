"""From a finished run to a model folder: merged weights, description, model card."""

from __future__ import annotations

import dataclasses
import pathlib

import flax
import ml_collections

from pacx_jax import files, lora
from pacx_jax.distributed import processes
from pacx_jax.encoders import image_statistics, model_folder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.models import vit
from pacx_jax.objectives import distill, segment
from pacx_jax.run import checkpoint, metrics
from pacx_jax.types import Params

CARD = """# {title}

Written by pacx_jax from the run `{name}` (objective `{objective}`, step {step}).

## What it is
{what}

## Training
- seed {seed}, global batch {batch}, {steps} steps, dtype {dtype}
- evaluation of that step on the validation split: {evaluation}

## Use
```python
from pacx_jax import load_encoder
encoder = load_encoder("path/to/this/folder")
z = encoder(["image.png"])  # (n, width) float32
```

## Limits
For research. Not a medical device, not validated for clinical use. What it was trained
on decides what it sees: measure it on your own patients, by site, sex, age and view,
before you rely on it.{simulated}

## Method
PaCX-MAE, arXiv 2606.01537. There is no optimizer state in this folder.
"""

WHAT = {
    "vit": "A chest-X-ray encoder (Vision Transformer). Its embedding is the CLS token "
    "after the final LayerNorm; at inference only the X-ray is needed.",
    "ecg_net1d": "An encoder of 12-lead ECGs (a 1-D convolutional network).",
    "labs_dae": "The encoder half of a denoising autoencoder of laboratory values.",
}


def from_workdir(
    config,
    workdir: str,
    out: str | None = None,
    which: str | None = None,
    heads: bool = False,
) -> pathlib.Path:
    """Writes the run's encoder to `out` (default WORKDIR/export); returns where.

    Args:
      config: the run's configuration.
      workdir: the finished run.
      which: "latest" or "best"; default `config.export`.
      heads: also what was trained beside the encoder (see model_heads).
    """
    which = which or config.export
    model = read_run(config, workdir, which, heads)
    target = pathlib.Path(out) if out else pathlib.Path(workdir) / "export"
    if processes.is_first():
        model_folder.save(target, model, card(config, workdir, model, which))
    return target


def read_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration that a run was trained with."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise PacxError(f"{path} does not exist: is {workdir} a run's workdir?")
    try:
        config = files.read_json(path)
        found = ml_collections.ConfigDict(config)
    except (OSError, ValueError, TypeError) as e:
        raise PacxError(f"{path} is damaged: {e}") from None
    if "objective" not in found:
        raise PacxError(f"{path} is no run's configuration: {workdir} is no workdir")
    return found


def read_run(
    config, workdir: str, which: str | None = None, heads: bool = False
) -> model_folder.ModelFolder:
    """The encoder of a run's checkpoint, and with `heads` what stands beside it."""
    params = checkpoint.read_params(workdir, which or config.export)
    model = model_of(config, params)
    if heads:
        heads = _heads(config, workdir, params, model)
        model = dataclasses.replace(model, heads=heads)
    return model


def _heads(config, workdir, params: Params, model) -> Heads:
    a = model.architecture
    if config.objective == "mae":
        architecture = {
            "encoder_width": a["width"],
            "patch_pixels": 3 * a["patch_size"] ** 2,
            "ln_eps": a["ln_eps"],
            **{k: config.model.decoder[k] for k in ("width", "depth", "num_heads")},
        }
        return Heads("mae", architecture, {"decoder": params["decoder"]})
    if config.objective == "labs_dae":
        architecture = {k: config.model[k] for k in ("features", "hidden", "latent")}
        return Heads("labs_dae", architecture, {"decoder": params["decoder"]})
    if config.objective == "segment":
        widths = segment.widths(a["patch_size"], config.decoder.width)
        architecture = {"encoder_width": a["width"], "widths": list(widths)}
        return Heads("segment", architecture, {"decoder": params["decoder"]})
    if config.objective in ("classify", "ecg"):
        file = pathlib.Path(workdir) / "labels.json"
        if not file.is_file():
            raise PacxError(
                f"{file}, the names of the head's outputs, does not exist: take "
                f"{workdir}/export, the encoder without its head, or train {workdir} "
                "again for a head"
            )
        labels = _label_names(file)
        architecture = {"encoder_width": model.width, "labels": labels}
        if config.objective == "classify":
            architecture["task"] = config.task
        head = params["head"]
        if config.objective == "ecg":  # named by its place in the classifier
            head = {"linear": head}
        return Heads(config.objective, architecture, {"head": head})
    linear = {k: v["linear"]["kernel"].shape for k, v in params["heads"].items()}
    architecture = {
        "head": config.heads.kind,
        "heads": {k: list(shape) for k, shape in linear.items()},
    }
    kept = {k: params[k] for k in ("heads", "logit_scale")}
    if "lora" in params:
        pairs = flax.traverse_util.flatten_dict(params["lora"], sep=".")
        names = sorted(k.removesuffix(".a") for k in pairs if k.endswith(".a"))
        base = flax.traverse_util.flatten_dict(params["encoder"], sep=".")
        base = {f"{k}.kernel": base[f"{k}.kernel"] for k in names}
        kept["lora"] = params["lora"]
        kept["base"] = flax.traverse_util.unflatten_dict(base, sep=".")
        lora_fields = {"rank": config.lora.rank, "alpha": config.lora.alpha}
        architecture |= lora_fields | {"adapted": names}
    return Heads("pacx", architecture, kept)


def _label_names(file: pathlib.Path) -> list[str]:
    try:
        labels = files.parse_json(file.read_text("utf-8"))
        if not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
            raise ValueError("not a list of names")
    except (OSError, ValueError) as e:
        raise PacxError(f"{file} is damaged ({e}): train the run again") from None
    return labels


def model_of(config, params: Params) -> model_folder.ModelFolder:
    if config.objective in ("mae", "distill", "classify", "segment"):
        encoder = params["encoder"]
        mean, std = config.data.mean, config.data.std
        if config.objective in ("classify", "segment"):
            start = model_folder.load(config.model_init, "vit")
            mean, std = image_statistics.chosen(start, config.data)
        preprocessing = model_folder.image_preprocessing(mean, std)
        if "lora" in params:
            encoder = lora.merge(encoder, params["lora"], config.lora.alpha)
        return model_folder.ModelFolder(
            "vit", _vit_architecture(config), preprocessing, encoder
        )
    if config.objective == "ecg":
        fields = ("base_filters", "filters", "blocks", "kernel", "groups_width")
        architecture = {f: config.model[f] for f in fields}
        architecture |= {f: list(config.model[f]) for f in ("filters", "blocks")}
        preprocessing = {"sampling_rate": 500, "decimate": config.data.ecg_decimate}
        return model_folder.ModelFolder(
            "ecg_net1d", architecture, preprocessing, params["encoder"]
        )
    fields = ("features", "hidden", "latent", "mask_inputs")
    architecture = {f: config.model[f] for f in fields}
    return model_folder.ModelFolder("labs_dae", architecture, {}, params["encoder"])


def _vit_architecture(config) -> dict:
    if config.objective == "distill":
        architecture = distill.load_image_encoder(config).architecture
        return architecture | {"image_size": config.data.image_size}
    if config.objective in ("classify", "segment"):
        architecture = model_folder.load(config.model_init, "vit").architecture
        return architecture | {"image_size": config.data.image_size}
    return vit.architecture(config.model, config.data.image_size)


def _best_step(path: pathlib.Path) -> int:
    try:
        step = files.read_json(path)["step"]
        if not isinstance(step, int):
            raise ValueError(f"step is {step!r}")
    except (OSError, ValueError, KeyError) as e:
        raise PacxError(f"{path} is damaged ({e!r}): take --which=latest") from None
    return step


def card(config, workdir, model: model_folder.ModelFolder, which: str) -> str:
    """The model card, README.md of a folder."""
    step, evaluation = config.total_steps, {}
    if which == "best":
        step = _best_step(pathlib.Path(workdir) / "best.json")
    for row in metrics.read_rows(workdir):
        found = {k: v for k, v in row.items() if k.startswith("val/")}
        if row["step"] <= step:
            evaluation = found or evaluation
    keys = ("val/loss", "val/auroc_macro", "val/dice")
    keys = [k for k in keys if evaluation.get(k) is not None]
    simulated = (
        "\nThis one was trained on SIMULATED patients: it is of no use on real ones."
        if config.data.get("simulated", False)
        else ""
    )
    return CARD.format(
        title=f"pacx_jax {model.kind}",
        name=config.name,
        objective=config.objective,
        step=step,
        what=WHAT[model.kind],
        seed=config.seed,
        batch=config.global_batch_size,
        steps=config.total_steps,
        dtype=config.dtype,
        evaluation=", ".join(f"{k} {evaluation[k]:.4f}" for k in keys) or "none",
        simulated=simulated,
    )
