"""The encoder for PyTorch users: a timm checkpoint, a Hugging Face folder.

Both are safetensors, which need no PyTorch to write; opening them again does.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable

import flax
import numpy as np
import safetensors.numpy

from pacx_jax.convert import foreign, state, tables
from pacx_jax.exporting.source import Source
from pacx_jax.input import views

WEIGHTS = "model.safetensors"
# A plain ViT that timm knows by name; any other is that one with other sizes.
TIMM = "vit_base_patch16_224"
TIMM_SIZES = {
    "img_size": 224,
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
}
TIMM_EPS = 1e-6  # of every LayerNorm by default


def write_timm(folder: pathlib.Path, source: Source) -> None:
    """Writes a state dict with timm's names, positions as `pos_embed`."""
    _save(folder, source, tables.TIMM)


def timm_call(source: Source) -> tuple[dict, float | None]:
    """Arguments of `timm.create_model(TIMM, ...)`, and epsilon if it is not timm's."""
    a = source.model.architecture
    names = ("image_size", "patch_size", "width", "depth", "num_heads")
    arguments = {
        key: a[name]
        for name, (key, usual) in zip(names, TIMM_SIZES.items(), strict=True)
        if a[name] != usual
    }
    if a.get("channels", 3) != 3:
        arguments["in_chans"] = a["channels"]
    if a.get("qk_norm"):
        arguments["qk_norm"] = True
    if not a.get("posemb_cls", True):
        arguments["no_embed_class"] = True
    arguments["num_classes"] = len(source.head.labels) if source.head else 0
    return arguments, None if a["ln_eps"] == TIMM_EPS else a["ln_eps"]


def reopen_timm(folder: pathlib.Path, source: Source) -> Callable:
    """The checkpoint in timm's own model, as a function of uint8 images."""
    import functools

    import timm
    import torch

    arguments, eps = timm_call(source)
    if eps is not None:
        arguments["norm_layer"] = functools.partial(torch.nn.LayerNorm, eps=eps)
    path = str(folder / WEIGHTS)
    model = timm.create_model(TIMM, checkpoint_path=path, **arguments).eval()
    if final := source.model.architecture.get("final_ln_eps"):
        model.norm.eps = final
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (source.mean, source.std))

    @torch.inference_mode()
    def predict(images: np.ndarray) -> tuple[np.ndarray, ...]:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        features = model.forward_features((x - mean) / std)
        z = model.forward_head(features, pre_logits=True)
        out = (z, model.head(z)) if source.head else (z,)
        return tuple(x.numpy() for x in out)

    return predict


def use_timm(source: Source) -> str:
    """How to open it, as Markdown."""
    arguments, eps = timm_call(source)
    each = [f"{k}={v!r}" for k, v in arguments.items()]
    if eps is not None:
        each.append(f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps!r})")
    each.append(f'checkpoint_path="{WEIGHTS}"')
    call = f'timm.create_model(\n    "{TIMM}",\n    ' + ",\n    ".join(each) + ",\n)"
    s, c = source.image_size, source.channels
    final = source.model.architecture.get("final_ln_eps")
    final = f"model.norm.eps = {final!r}\n" if final else ""
    colours = "RGB" if c == 3 else "grey"
    outputs = "embedding = model(images)"
    if source.head:
        outputs = (
            "features = model.forward_features(images)\n"
            "embedding = model.forward_head(features, pre_logits=True)\n"
            "logits = model.head(embedding)  # or model(images)"
        )
    return f"""```python
import functools, timm, torch

model = {call}.eval()
{final}images = torch.zeros(3, {c}, {s}, {s})  # {colours}, (x / 255 - mean) / std
with torch.inference_mode():
    {outputs.replace(chr(10), chr(10) + "    ")}
```

mean {source.mean}, std {source.std}."""


def timm_lacks(source: Source) -> str:
    """What a plain ViT of timm's has no place for; "" for nothing."""
    a = source.model.architecture
    ours = [k for k, value in foreign.PLAIN.items() if a.get(k, value) != value]
    text = ", ".join(f"{k} {a[k]}" for k in ours)
    return f"the encoder has {text}, which timm's plain ViT has not" if ours else ""


def hf_lacks(source: Source) -> str:
    """What transformers' ViT has no place for; "" for nothing."""
    a = source.model.architecture
    usual = {"qk_norm": False, "channels": 3, "views": 0, "posemb_cls": True}
    usual |= {"final_ln_eps": 0, **foreign.PLAIN}
    ours = [k for k, value in usual.items() if a.get(k, value) != value]
    text = ", ".join(f"{k} {a[k]}" for k in ours)
    return f"the encoder has {text}, which transformers' ViT has not" if ours else ""


def write_hf(folder: pathlib.Path, source: Source) -> None:
    """Writes config, weights and image processor for transformers' ViT.

    The names are those of transformers 4, which 5 writes too and maps to its own.
    """
    _save(folder, source, tables.HF, "vit." if source.head else "")
    _write_json(folder / "config.json", _hf_config(source))
    size = {"height": source.image_size, "width": source.image_size}
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 2,  # PIL's number of bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": source.mean,
        "image_std": source.std,
        "do_convert_rgb": True,
    }
    _write_json(folder / "preprocessor_config.json", processor)


def _hf_config(source: Source) -> dict:
    a = source.model.architecture
    config = {
        "architectures": ["ViTForImageClassification" if source.head else "ViTModel"],
        "model_type": "vit",
        "hidden_size": a["width"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a["num_heads"],
        "intermediate_size": 4 * a["width"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": a["ln_eps"],
        "image_size": a["image_size"],
        "patch_size": a["patch_size"],
        "num_channels": 3,
        "qkv_bias": True,
    }
    if source.head:
        labels, kind = source.head.labels, source.head.task
        config |= {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "problem_type": {"multiclass": "single_label_classification"}.get(
                kind, "multi_label_classification"
            ),
        }
    return config


def reopen_hf(folder: pathlib.Path, source: Source) -> Callable:
    """The folder in transformers, image processor included."""
    import torch
    import transformers

    # PIL's resize is ours; version 5 names it a backend, version 4 the slow one.
    new = int(transformers.__version__.split(".")[0]) >= 5
    how = {"backend": "pil"} if new else {"use_fast": False}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **how)
    with _quiet():
        model, info = transformers.ViTModel.from_pretrained(
            folder, add_pooling_layer=False, output_loading_info=True
        )
        classifier = None
        if source.head:
            classifier, info = transformers.ViTForImageClassification.from_pretrained(
                folder, output_loading_info=True
            )
    lost = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if lost:
        raise ValueError(f"transformers did not load {', '.join(lost[:5])}")

    @torch.inference_mode()
    def predict(images: np.ndarray) -> tuple[np.ndarray, ...]:
        x = processor(images=list(images), return_tensors="pt")
        z = model(**x).last_hidden_state[:, 0]
        out = (z, classifier(**x).logits) if classifier else (z,)
        return tuple(x.numpy() for x in out)

    return predict


def use_hf(source: Source) -> str:
    """How to open it, as Markdown."""
    logits = ""
    if source.head:
        logits = """
classifier = transformers.ViTForImageClassification.from_pretrained(".")
with torch.inference_mode():
    logits = classifier(**inputs).logits  # classifier.config.id2label names them
"""
    return f"""```python
import PIL.Image, torch, transformers

processor = transformers.AutoImageProcessor.from_pretrained(".", backend="pil")
model = transformers.ViTModel.from_pretrained(".", add_pooling_layer=False)
images = [PIL.Image.new("L", (500, 400)).convert("RGB")]
inputs = processor(images=images, return_tensors="pt")
with torch.inference_mode():
    embedding = model(**inputs).last_hidden_state[:, 0]
{logits}```

`backend="pil"` (`use_fast=False` in transformers 4) resizes as in training; torchvision
may differ by a grey level."""


def _save(folder: pathlib.Path, source: Source, names: tables.Names, prefix="") -> None:
    """Writes the state dict in a layout; all but the classifier begin with `prefix`."""
    a, params = _without_views(source)
    table = tables.vit(a, names, prefix)
    flat = flax.traverse_util.flatten_dict({"encoder": params}, sep=".")
    if source.head:
        table += tables.layer("head.linear", names.head)
        flat["head.linear.kernel"] = source.head.kernel
        flat["head.linear.bias"] = source.head.bias
    arrays = state.dump(table, flat)
    # transformers asks which framework wrote a file.
    safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors' are for the owner alone


def _without_views(source: Source) -> tuple[dict, dict]:
    """The same network without view embeddings, for the one view of the source.

    It is added to the positions of all patches.
    """
    a, params = dict(source.model.architecture), dict(source.model.params)
    if not a.pop("views", 0):
        return a, params
    side = a["image_size"] // a["patch_size"]
    learned = params.get("pos_embed", tables.positions(side, a["width"]))
    cls, row = learned.shape[1] - side**2, views.number(views.parse(source.view))
    added = learned[:, cls:] + params.pop("view_embed")[row]
    params["pos_embed"] = np.concatenate([learned[:, :cls], added], axis=1)
    return a | {"posemb_grid": [side, side]}, params


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet():
    """No progress bar and no report for reading a file."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
