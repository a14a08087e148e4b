"""What the bench times, from the recipes: configs, encoders, and their sizes."""

from __future__ import annotations

import ast

import jax

from configs import (
    base,
    chexmix_vitb,
    distill_vitb16,
    ecg_net1d,
    labs_dae,
    mae_vitb16,
    mvmae_vitb16,
    vq_f16,
)
from pacx_jax import modalities
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.models import vit, vq
from pacx_jax.objectives import distill

RECIPES = {"mae": mae_vitb16, "distill": distill_vitb16, "ecg": ecg_net1d}
RECIPES |= {"embed": mae_vitb16, "mvmae": mvmae_vitb16}  # embed: of its encoder
RECIPES |= {"unified": chexmix_vitb}
VIEWS = 2  # of each study of a batch
SMALL = ("mu", "demo")  # variants that go with the sizes of the recipes' `:runlocal`
BATCHES = {  # on two CPU cores, and on an accelerator a device
    "mae": (16, 256),
    "mvmae": (16, 256),
    "unified": (4, 64),
    "distill": (8, 128),
    "embed": (16, 256),
    "ecg": (8, 64),
}
ECG_SECONDS = 10
WORDS = 30_522  # tokens of the reports' vocabulary
CLASSES = 150  # of ECGFounder's pretraining


def make_config(options: dict):
    """The recipe's config, with what bench.py's flags say."""
    mode, small = options["mode"], options["variant"] in SMALL
    c = RECIPES[mode].get_config("runlocal" if small else None)
    if mode == "distill":
        c.lora.dropout = RECIPES[mode].get_config().lora.dropout
        base.vit(c)  # of the encoder, which a run takes from its folder
        c.model.patch_size = 8 if small else 16
    if mode == "ecg":
        c.data.label_columns = tuple(f"label_{i}" for i in range(CLASSES))
    else:
        c.model.variant = options["variant"]
        c.data.image_size = options["image_size"] or c.data.image_size
        c.attention = options["attention"]
    if options.get("mask_ratio"):
        c.loss.mask_ratio = options["mask_ratio"]
    cpu = jax.default_backend() == "cpu"
    c.num_devices = options["devices"]
    n = options["devices"] or jax.device_count()
    usual = BATCHES[mode][0] if cpu else n * BATCHES[mode][1]
    c.dtype = options["dtype"] or ("float32" if cpu else "bfloat16")
    c.global_batch_size = options["batch"] or usual
    if mode == "mvmae":
        c.data.max_views = VIEWS
        c.global_batch_size = max(c.global_batch_size // VIEWS, 1)
        c.model.decoder.project = False
        c.model.decoder.width = vit.VARIANTS[c.model.variant][0]
    if mode == "unified":
        c.vq_init = c.data.tokenizer = ""  # made in ours.py
    for field in options["set"]:
        _set(c, field)
    return c


def _set(config, field: str) -> None:
    """Sets a field given as NAME=VALUE; PacxError if the recipe has no such field."""
    name, _, text = field.partition("=")
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    config.lock()  # otherwise an unknown field would be added
    try:
        config.update_from_flattened_dict({name: value})
    except (KeyError, TypeError) as e:
        what = str(e.args[0]).partition(". Other fields")[0]
        raise PacxError(f"--set={field}: {what}; give FIELD=VALUE") from None
    config.unlock()


def image_encoder(config) -> model_folder.ModelFolder:
    """A description of the config's ViT, as a folder has it; without weights."""
    if config.model.variant not in vit.VARIANTS:
        raise PacxError(
            f"--variant={config.model.variant}: choose of {', '.join(vit.VARIANTS)}"
        )
    architecture = vit.architecture(config.model, config.data.image_size)
    preprocessing = model_folder.image_preprocessing(config.data.mean, config.data.std)
    return model_folder.ModelFolder("vit", architecture, preprocessing, {})


def physiology_sources(config) -> dict[str, model_folder.ModelFolder]:
    """Descriptions of an ECG and a labs encoder, of the sizes of their recipes."""
    small = config.model.variant in SMALL
    m = ecg_net1d.get_config("runlocal" if small else None).model
    sizes = {
        "ecg": {k: getattr(m, k) for k in ("base_filters", "kernel", "groups_width")}
        | {"filters": list(m.filters), "blocks": list(m.blocks)},
        "labs": labs_dae.get_config().model.to_dict(),
    }
    return {
        name: model_folder.ModelFolder(modalities.get(name).KIND, sizes[name], {}, {})
        for name in distill.active(config)
    }


def image_tokenizer(config) -> dict:
    """The architecture of the image tokenizer that goes with a unified model."""
    small = config.model.variant in SMALL
    model = vq_f16.get_config("runlocal" if small else None).model
    return vq.architecture(model, config.data.channels, config.data.image_size)


def describe(config, options: dict) -> dict:
    """All that the peer, and a synthetic batch, depend on."""
    mode = options["mode"]
    trained = ("mae", "mvmae", "distill", "unified")
    train = mode in trained or options.get("train", False)
    views = VIEWS if mode == "mvmae" else 1
    batch = config.global_batch_size * views
    work = {"mode": mode, "batch": batch, "views": views, "train": train}
    work["config"] = config.to_dict()
    if mode == "ecg":
        return work | {"length": ECG_SECONDS * 500 // config.data.ecg_decimate}
    if mode == "unified":
        width, depth, num_heads = vit.VARIANTS[config.model.variant]
        work["encoder"] = {
            "image_size": config.data.image_size,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "ln_eps": config.model.ln_eps,
        }
        return work | {"vq": image_tokenizer(config), "words": WORDS}
    work["encoder"] = image_encoder(config).architecture
    if mode == "distill":
        sources = physiology_sources(config)
        work["widths"] = {m: source.width for m, source in sources.items()}
    return work
