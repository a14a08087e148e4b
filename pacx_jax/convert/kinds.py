"""Published checkpoints as model folders, and back: what a `Spec` and its table say."""

from __future__ import annotations

import csv
import io
import shlex

import flax
import numpy as np

from pacx_jax.convert import (
    densenet,
    foreign,
    layouts,
    shapes,
    sizes,
    state,
    tables,
)
from pacx_jax.convert.layouts import Spec
from pacx_jax.convert.options import LIMITS, Options
from pacx_jax.encoders import model_folder, model_heads
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD

GREY = (0.5056,), (0.252,)  # MVMAE's mean and std
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
    if kind in densenet.KINDS:
        found = densenet.renamed(found)
    spec = sizes.infer(kind, found, options, source)
    left = _left_out(spec, found)
    if kind in foreign.KINDS:
        foreign.check(kind, found, left, spec.architecture, options, source)
    buffers = _statistics(found, source) if kind == "segment" else {}
    kept = {k: v for k, v in found.items() if k not in buffers and k not in left}
    encoder = model_folder.shapes_of(spec.model, spec.architecture)
    wanted = {f"encoder.{k}": v for k, v in encoder.items()}
    adapted = spec.heads_architecture.get("adapted", ())
    odd = [name for name in adapted if f"{name}.kernel" not in encoder]
    if odd:
        raise PacxError(f"{source} has adapters of {', '.join(odd)}, and no such layer")
    if spec.heads:
        wanted |= model_heads.shapes(spec.heads, spec.heads_architecture, encoder)
    flat = state.load(layouts.table(spec), kept, wanted, source)
    for name in adapted:
        h, a, b = spec.heads_architecture, *(flat[f"lora.{name}.{x}"] for x in "ab")
        low_rank = np.float32(h["alpha"] / h["rank"]) * (a @ b)
        flat[f"encoder.{name}.kernel"] = flat[f"base.{name}.kernel"] + low_rank
    tree = flax.traverse_util.unflatten_dict(flat, sep=".")
    params, heads = tree.pop("encoder"), None
    if spec.heads:
        heads = Heads(spec.heads, spec.heads_architecture, tree)
    about = _preprocessing(spec, options, buffers)
    return ModelFolder(spec.model, spec.architecture, about, params, heads), left


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
    flat = flax.traverse_util.flatten_dict({"encoder": folder.params}, sep=".")
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


def told(kind: str, model: ModelFolder) -> dict:
    """What no state dict of a kind tells of a model, by the option that does."""
    a, heads = model.architecture, model.heads
    h = heads.architecture if heads else {}
    names = ("ln_eps", "final_ln_eps", "num_heads", "mask_inputs")
    out = {k: a[k] for k in names if k in a}
    out |= {k: v for k, v in model.preprocessing.items() if k in LIMITS}
    if heads and heads.kind == "mae":
        out["decoder_num_heads"] = h["num_heads"]
    if h.get("adapted"):
        out["alpha"] = h["alpha"]
    if h.get("labels"):
        out |= {k: h[k] for k in ("labels", "task") if k in h}
    return out | (foreign.told(kind, a) if kind in foreign.KINDS else {})


def lost(kind: str, folder: ModelFolder, merged: bool = False) -> list[str]:
    """The flags that `read` needs to get back what a PyTorch file cannot hold."""
    spec, here = layouts.of_folder(kind, folder, merged), told(kind, folder)
    if layouts.KINDS[kind].final_ln_eps:
        here.setdefault("final_ln_eps", folder.architecture["ln_eps"])
    given = {k: v for k, v in here.items() if k.endswith("num_heads")}
    needed = foreign.needed(here, spec.architecture) if kind in foreign.KINDS else {}
    options = Options(**(given | needed))
    again, _ = read(kind, write(kind, folder, merged), options, "it")
    found, h = told(kind, again), spec.heads_architecture
    defaults = found | dict.fromkeys(needed)
    # Those heads of attention that the width does not tell.
    defaults["num_heads"] = shapes.NUM_HEADS.get(spec.architecture.get("width"))
    known = shapes.DECODER_NUM_HEADS.get(kind, {})
    defaults["decoder_num_heads"] = known.get(h.get("width"))
    flags = []
    for name, value in here.items():
        if name not in found or value == defaults[name]:
            continue
        if name == "mask_inputs":
            flags.append("--preset=reference")
        elif name in ("mean", "std"):
            flags.append(f"--{name} {' '.join(map(str, value))}")
        else:
            text = io.StringIO()
            row = value if isinstance(value, list) else [value]
            csv.writer(text, lineterminator="").writerow(row)
            flags.append(f"--{name}={shlex.quote(text.getvalue())}")
    return flags


# What an MVMAE holds beside its encoder and decoder of images: V2T's text, and heads of
# alternative alignment losses.
_BESIDE = ("text_decoder.", "encoders.text.", "decoders.text.", "latent_heads.")


def _left_out(spec: Spec, found: dict) -> list[str]:
    names = ()
    if spec.kind == "mae" and not spec.heads:
        names = ("mask_token",)
    elif spec.kind in foreign.KINDS:
        return foreign.left_out(spec.kind, found, spec.prefix)
    elif spec.kind in densenet.KINDS:
        return densenet.left_out(spec.architecture, found, spec.prefix)
    elif spec.kind == "vit_hf":
        names = ("pooler.dense.weight", "pooler.dense.bias")
    elif spec.kind == "mvmae":
        root = layouts.root_of("mvmae", spec.prefix)
        return [k for k in found if k.startswith(tuple(root + x for x in _BESIDE))]
    return [spec.prefix + name for name in names if spec.prefix + name in found]


def _statistics(found: dict, source: str) -> dict[str, np.ndarray]:
    """The buffers mean and std of a segmenter; both or neither."""
    buffers = {k: v for k, v in found.items() if k in ("mean", "std")}
    if len(buffers) == 1:
        raise PacxError(f"{source} has one of mean and std alone")
    for key, value in buffers.items():
        if np.size(value) != 3 or not np.isfinite(value).all():
            raise PacxError(
                f"{source} does not fit: {key} {np.shape(value)} must be three finite "
                "numbers"
            )
    return buffers


def _preprocessing(spec: Spec, options: Options, buffers: dict) -> dict:
    if spec.model == "ecg_net1d":
        return {"sampling_rate": 500, "decimate": options.decimate}
    if spec.model == "labs_dae":
        return {}
    # Fixed positions mark an MAE, learned ones an ImageNet classifier.
    learned = "posemb_grid" in spec.architecture
    half = spec.kind in ("vit_timm", "vit_hf") and learned
    mean, std = (HALF, HALF) if half else (IMAGENET_MEAN, IMAGENET_STD)
    pool = spec.architecture.get("pool", "cls")
    if buffers:  # as short decimals: the same float32, and equal to the config's
        mean, std = (
            tuple(float(str(x)) for x in np.float32(buffers[name]).ravel())
            for name in ("mean", "std")
        )
    if spec.kind == "mvmae":
        mean, std = GREY
    elif spec.kind == "densenet_xrv":
        mean, std = densenet.XRV
    channels = spec.architecture.get("channels", 3)
    for name, value in (("mean", options.mean), ("std", options.std)):
        if value and len(value) != channels:
            raise PacxError(
                f"--{name} has {len(value)} numbers, and images have {channels} "
                "channels: give one each"
            )
    statistics = options.mean or mean, options.std or std
    about = model_folder.image_preprocessing(*statistics, pool)
    if spec.model == "densenet":
        about["embedding"] = densenet.EMBEDDING
    return about
