"""The encoder for PyTorch users: a timm checkpoint, a Hugging Face folder.

Both are safetensors, which need no PyTorch to write; opening them again does.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable

import numpy as np
import safetensors.numpy

from pacx_jax.exporting.source import Source, positions

WEIGHTS = "model.safetensors"
# (patch_size, embed_dim, depth, num_heads) of the plain ViTs that timm knows by name.
TIMM = {
    "vit_base_patch16_224": (16, 768, 12, 12),
    "vit_tiny_patch16_224": (16, 192, 12, 3),
    "vit_small_patch16_224": (16, 384, 12, 6),
    "vit_small_patch8_224": (8, 384, 12, 6),
    "vit_base_patch8_224": (8, 768, 12, 12),
    "vit_large_patch16_224": (16, 1024, 24, 16),
    "vit_large_patch14_224": (14, 1024, 24, 16),
    "vit_huge_patch14_224": (14, 1280, 32, 16),
}
TIMM_EPS = 1e-6  # of every LayerNorm, unless it is told


def write_timm(folder: pathlib.Path, source: Source) -> None:
    """Writes a state dict with timm's names, positions as `pos_embed`."""
    _save(folder, timm_state_dict(source))


def timm_call(source: Source) -> tuple[str, dict, float | None]:
    """Name and arguments of `timm.create_model`, and epsilon if it is not timm's."""
    a = source.model.architecture
    sizes = {
        "patch_size": a["patch_size"],
        "embed_dim": a["width"],
        "depth": a["depth"],
        "num_heads": a["num_heads"],
    }
    name, known = next(iter(TIMM.items()))
    for other, its_sizes in TIMM.items():
        if its_sizes == tuple(sizes.values()):
            name, known = other, its_sizes
    arguments = {} if source.image_size == 224 else {"img_size": source.image_size}
    for (key, value), its_value in zip(sizes.items(), known, strict=True):
        if value != its_value:
            arguments[key] = value
    arguments["num_classes"] = len(source.head.labels) if source.head else 0
    return name, arguments, None if a["ln_eps"] == TIMM_EPS else a["ln_eps"]


def reopen_timm(folder: pathlib.Path, source: Source) -> Callable:
    """The checkpoint in timm's own model, as a function of uint8 images."""
    import functools

    import timm
    import torch

    name, arguments, eps = timm_call(source)
    if eps is not None:
        arguments["norm_layer"] = functools.partial(torch.nn.LayerNorm, eps=eps)
    path = str(folder / WEIGHTS)
    model = timm.create_model(name, checkpoint_path=path, **arguments).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (source.mean, source.std))

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
    name, arguments, eps = timm_call(source)
    each = [f"{k}={v!r}" for k, v in arguments.items()]
    if eps is not None:
        each.append(f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps!r})")
    each.append(f'checkpoint_path="{WEIGHTS}"')
    call = f'timm.create_model(\n    "{name}",\n    ' + ",\n    ".join(each) + ",\n)"
    s = source.image_size
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
images = torch.zeros(3, 3, {s}, {s})  # RGB, (x / 255 - mean) / std
with torch.inference_mode():
    {outputs.replace(chr(10), chr(10) + "    ")}
```

mean {source.mean}, std {source.std}."""


def write_hf(folder: pathlib.Path, source: Source) -> None:
    """Writes config, weights and image processor for transformers' ViT.

    The names are those of transformers 4, which 5 writes too and maps to its own.
    """
    prefix = "vit." if source.head else ""
    _save(folder, hf_state_dict(source, prefix))
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
rounds differently, by a grey level."""


def timm_state_dict(source: Source) -> dict[str, np.ndarray]:
    """timm's names -> arrays."""
    params, a = source.model.params, source.model.architecture
    p, width = a["patch_size"], a["width"]
    out = {
        "cls_token": params["cls_token"],
        "pos_embed": positions(source.model),
        # Patches are ordered row, column, channel; a convolution has channels first.
        "patch_embed.proj.weight": params["patch_embed"]["kernel"]
        .reshape(p, p, 3, width)
        .transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": params["patch_embed"]["bias"],
    }
    for i in range(a["depth"]):
        block = params[f"block_{i:02d}"]
        for part in ("norm1", "norm2"):
            out |= _norm(f"blocks.{i}.{part}", block[part])
        for part, layer in (("attn", "qkv"), ("attn", "proj")):
            out |= _dense(f"blocks.{i}.{part}.{layer}", block[part][layer])
        for layer in ("fc1", "fc2"):
            out |= _dense(f"blocks.{i}.mlp.{layer}", block["mlp"][layer])
    out |= _norm("norm", params["norm"])
    if source.head:
        head = {"kernel": source.head.kernel, "bias": source.head.bias}
        out |= _dense("head", head)
    return out


def hf_state_dict(source: Source, prefix: str = "") -> dict[str, np.ndarray]:
    """transformers' names -> arrays; all but the classifier's begin with `prefix`."""
    renamed = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    inner = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    out = {}
    for name, array in timm_state_dict(source).items():
        stem, _, leaf = name.rpartition(".")
        if name in renamed:
            out[prefix + renamed[name]] = array
        elif stem in renamed:
            out[f"{prefix}{renamed[stem]}.{leaf}"] = array
        elif stem == "head":
            out[f"classifier.{leaf}"] = array
        else:
            _, i, part = stem.split(".", 2)
            layer = f"{prefix}encoder.layer.{i}."
            if part == "attn.qkv":
                thirds = zip(("query", "key", "value"), np.split(array, 3), strict=True)
                for which, third in thirds:
                    out[f"{layer}attention.attention.{which}.{leaf}"] = third
            else:
                out[f"{layer}{inner[part]}.{leaf}"] = array
    return out


def _norm(name: str, norm: dict) -> dict[str, np.ndarray]:
    return {f"{name}.weight": norm["scale"], f"{name}.bias": norm["bias"]}


def _dense(name: str, dense: dict) -> dict[str, np.ndarray]:
    return {f"{name}.weight": dense["kernel"].T, f"{name}.bias": dense["bias"]}


def _save(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    # safetensors writes a non-contiguous array wrongly, without a word.
    arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}
    # transformers asks which framework wrote a file.
    safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})


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
