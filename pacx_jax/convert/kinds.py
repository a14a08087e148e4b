"""Published checkpoints as model folders, and back: what a `Spec` and its table say."""

from __future__ import annotations

import csv
import io
import shlex

import flax
import numpy as np

from pacx_jax.convert import layouts, sizes, state, tables
from pacx_jax.convert.layouts import KINDS, Spec
from pacx_jax.convert.sizes import Options
from pacx_jax.encoders import model_folder, model_heads
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)  # what timm's and Hugging Face's ImageNet ViTs are trained with


def read(kind: str, found: dict, options: Options, source: str):
    """A state dict of a published kind as a model folder's contents.

    Args:
      kind: one of `KINDS`.
      found: key -> array, as `files.read` gives it.
      options: see `Options`.
      source: where it is from, for messages.

    Returns:
      the ModelFolder, and the keys that were left out: poolers, which the encoder does
      without.

    Raises:
      PacxError: another kind of file; keys that are missing, unexpected, wrongly shaped
        or not finite, listed.
    """
    if kind not in KINDS:
        raise PacxError(f"kind {kind!r}: choose one of {', '.join(KINDS)}")
    spec = sizes.infer(kind, found, options, source)
    left = _left_out(spec, found)
    buffers = {}
    if kind == "segment":
        buffers = {k: v for k, v in found.items() if k in ("mean", "std")}
        if len(buffers) == 1:
            raise PacxError(f"{source} has one of mean and std alone")
        for key, value in buffers.items():
            if np.size(value) != 3 or not np.isfinite(value).all():
                raise PacxError(
                    f"{source} does not fit: {key} {np.shape(value)} must be three "
                    "finite numbers"
                )
    kept = {k: v for k, v in found.items() if k not in buffers and k not in left}
    encoder = model_folder.shapes_of(spec.model, spec.architecture)
    shapes = {f"encoder.{k}": v for k, v in encoder.items()}
    odd = [
        name
        for name in spec.heads_architecture.get("adapted", ())
        if f"{name}.kernel" not in encoder
    ]
    if odd:
        raise PacxError(f"{source} has adapters of {', '.join(odd)}, and no such layer")
    if spec.heads:
        shapes |= model_heads.shapes(spec.heads, spec.heads_architecture, encoder)
    flat = state.load(layouts.table(spec), kept, shapes, source)
    preprocessing = _preprocessing(spec, options, buffers)
    return _folder(spec, flat, preprocessing), left


def write(kind: str, folder: ModelFolder, merged: bool = False) -> dict:
    """The state dict of a kind, in its published layout; the inverse of `read`.

    Args:
      kind: one of `KINDS`.
      folder: what to write.
      merged: of an adapted encoder, the merged weights without adapters.

    Raises:
      PacxError: a folder that is not, or has not, what the kind holds.
    """
    spec = layouts.of_folder(kind, folder, merged)
    flat = flax.traverse_util.flatten_dict(folder.params, sep=".")
    flat = {f"encoder.{k}": v for k, v in flat.items()}
    beside = folder.heads.flat() if spec.heads else {}
    adapted = spec.heads_architecture.get("adapted", ())
    if not adapted:
        beside = {
            k: v for k, v in beside.items() if not k.startswith(("lora.", "base."))
        }
    for name in adapted:
        del flat[f"encoder.{name}.kernel"]  # base and lora stand for it
    if kind == "ecgfounder" and not any(k.startswith("unused.") for k in beside):
        norms = tables.batch_norms(folder.architecture)
        beside |= {f"unused.{k}": v for k, v in norms.items()}
    out = state.dump(layouts.table(spec), flat | beside)
    if kind == "segment":
        for name in ("mean", "std"):
            values = np.asarray(folder.preprocessing[name], np.float32)
            out[name] = values.reshape(1, 3, 1, 1)
    return out


def lost(kind: str, folder: ModelFolder, merged: bool = False) -> list[str]:
    """The flags that `read` needs to get back what a PyTorch file cannot hold."""
    spec = layouts.of_folder(kind, folder, merged)
    found, _ = read(kind, write(kind, folder, merged), _guess(spec), "it")
    a, b = folder.architecture, found.architecture
    flags = [f"--{k}={a[k]:g}" for k in ("ln_eps",) if a.get(k) != b.get(k)]
    if "num_heads" in a and a["num_heads"] != sizes.NUM_HEADS.get(a["width"]):
        flags.append(f"--num_heads={a['num_heads']}")
    h = spec.heads_architecture
    if spec.heads == "mae":
        if h["num_heads"] != sizes.DECODER_NUM_HEADS.get(h["width"]):
            flags.append(f"--decoder_num_heads={h['num_heads']}")
    if h.get("adapted") and h["alpha"] != 16:
        flags.append(f"--alpha={h['alpha']:g}")
    there = found.heads.architecture if found.heads else {}
    if h.get("labels") and h["labels"] != there["labels"]:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(h["labels"])
        flags.append(f"--labels={shlex.quote(text.getvalue())}")
    if h.get("task", there.get("task")) != there.get("task"):
        flags.append(f"--task={h['task']}")
    if a.get("mask_inputs") is False:
        flags.append("--preset=reference")
    for name in ("mean", "std", "decimate"):
        value = folder.preprocessing.get(name)
        if value != found.preprocessing.get(name):
            text = " ".join(map(str, value)) if name != "decimate" else value
            flags.append(f"--{name} {text}")
    return flags


def _guess(spec: Spec) -> Options:
    h = spec.heads_architecture
    return Options(
        num_heads=spec.architecture.get("num_heads", 0),
        decoder_num_heads=h["num_heads"] if spec.heads == "mae" else 0,
        alpha=h.get("alpha", 16.0),
        mask_inputs=spec.architecture.get("mask_inputs", True),
    )


def _left_out(spec: Spec, found: dict) -> list[str]:
    root = spec.prefix
    names = ()
    if spec.kind == "mae" and not spec.heads:
        names = (f"{root}mask_token",)
    elif spec.kind == "vit_hf":
        names = (f"{root}pooler.dense.weight", f"{root}pooler.dense.bias")
    return [name for name in names if name in found]


def _preprocessing(spec: Spec, options: Options, buffers: dict) -> dict:
    if spec.model == "ecg_net1d":
        return {"sampling_rate": 500, "decimate": options.decimate}
    if spec.model == "labs_dae":
        return {}
    # Fixed positions mark an MAE, learned ones an ImageNet classifier.
    learned = "posemb_grid" in spec.architecture
    half = spec.kind in ("vit_timm", "vit_hf") and learned
    mean, std = (HALF, HALF) if half else (IMAGENET_MEAN, IMAGENET_STD)
    if buffers:  # as short decimals: the same float32, and equal to the config's
        mean, std = (
            tuple(float(str(x)) for x in np.float32(buffers[name]).ravel())
            for name in ("mean", "std")
        )
    return model_folder.image_preprocessing(options.mean or mean, options.std or std)


def _folder(spec: Spec, flat: dict, preprocessing: dict) -> ModelFolder:
    h, heads = spec.heads_architecture, None
    for name in h.get("adapted", ()):
        a, b = flat[f"lora.{name}.a"], flat[f"lora.{name}.b"]
        low_rank = np.float32(h["alpha"] / h["rank"]) * (a @ b)
        flat[f"encoder.{name}.kernel"] = flat[f"base.{name}.kernel"] + low_rank
    tree = flax.traverse_util.unflatten_dict(flat, sep=".")
    encoder = tree.pop("encoder")
    if spec.heads:
        heads = Heads(spec.heads, h, tree)
    return ModelFolder(spec.model, spec.architecture, preprocessing, encoder, heads)
