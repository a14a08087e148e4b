"""What a state dict tells of its model: sizes, layout, which heads it has.

`infer` reads a state dict of a published kind; `of_folder` says how a model folder is
laid out as one. Both give a `Spec`, of which `table` makes the table.
"""

from __future__ import annotations

import dataclasses
import math
import re

from pacx_jax.convert import tables
from pacx_jax.convert.state import Entry, is_fixed, shorten
from pacx_jax.model_folder import ModelFolder
from pacx_jax.models import vit
from pacx_jax.types import PacxError

# What stands before the encoder's keys, by kind. The first is the published layout.
PREFIXES = {
    "mae": ("model.", "", "module."),
    "vit_timm": ("", "module."),
    "vit_hf": ("", "vit."),
    "pacx": ("cxr_encoder.base_model.model.", "cxr_encoder.", "base_model.model.", ""),
    "labs_dae": ("model.", ""),
    "ecgfounder": ("", "module."),
    "probe": ("model.backbone.", "backbone."),
    "segment": ("model.backbone.", "backbone."),
}
KINDS = tuple(PREFIXES)
MODELS = {"labs_dae": "labs_dae", "ecgfounder": "ecg_net1d"}  # "vit" for the others
EPS = {"vit_hf": 1e-12, "pacx": 1e-5}  # transformers' default; D6; 1e-6 for the others


@dataclasses.dataclass(frozen=True)
class Options:
    """What a state dict does not tell; 0, "" and () stand for the kind's own value.

    Attributes:
      num_heads, decoder_num_heads: heads of attention.
      ln_eps: epsilon of LayerNorms.
      alpha: of LoRA; the published weights' is 16 (D3).
      mean, std: normalisation of the images.
      labels: names of a classifier's outputs.
      mask_inputs: whether missing labs are zeroed at extraction (D7).
      decimate: of an ECG encoder: how many samples of 500 Hz its input averages.
    """

    num_heads: int = 0
    decoder_num_heads: int = 0
    ln_eps: float = 0.0
    alpha: float = 16.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    mask_inputs: bool = True
    decimate: int = 1

    def __post_init__(self):
        for name, low, high, value in (
            ("num_heads", 0, 1024, self.num_heads),
            ("decoder_num_heads", 0, 1024, self.decoder_num_heads),
            ("ln_eps", 0, 0.1, self.ln_eps),
            ("decimate", 1, 100, self.decimate),
            ("alpha", 1e-6, 1e6, self.alpha),
        ):
            if not low <= value <= high:  # nor NaN
                raise PacxError(f"--{name} {value}: give {low} to {high}")


@dataclasses.dataclass(frozen=True)
class Spec:
    """How a model is laid out in a state dict.

    Attributes:
      kind: of the checkpoint, one of `KINDS`.
      model, architecture: of the model folder.
      heads, heads_architecture: what stands beside the encoder, "" for nothing.
      prefix: before the encoder's keys.
      names: the layout of a ViT.
    """

    kind: str
    model: str
    architecture: dict
    heads: str = ""
    heads_architecture: dict = dataclasses.field(default_factory=dict)
    prefix: str = ""
    names: tables.Names = tables.TIMM


def table(spec: Spec) -> list[Entry]:
    """The table of a spec."""
    a, h, prefix = spec.architecture, spec.heads_architecture, spec.prefix
    if spec.model == "labs_dae":
        return tables.labs_dae(prefix)
    if spec.model == "ecg_net1d":
        return tables.net1d(a, len(h["labels"]), prefix)
    entries = tables.vit(a, spec.names, prefix)
    if spec.heads == "mae":
        root = prefix.removesuffix("vit.") if spec.kind == "vit_hf" else prefix
        side = a["image_size"] // a["patch_size"]
        entries += tables.mae_decoder(h, side, spec.names, root)
    elif spec.heads == "pacx":
        entries = tables.adapt(entries, h.get("adapted", ())) + tables.pacx_heads(h)
    elif spec.heads == "classify":
        root = {"vit_hf": "", "probe": prefix.removesuffix("backbone.")}
        key = root.get(spec.kind, prefix) + spec.names.head
        entries += tables.layer("head.linear", key)
    elif spec.heads == "segment":
        root = prefix.removesuffix("backbone.")
        entries += tables.segmentation(h, f"{root}decoder.")
    return entries


def of_folder(kind: str, folder: ModelFolder, merged: bool = False) -> Spec:
    """How `folder` is laid out as a checkpoint of `kind`, as it was published.

    Args:
      merged: of an adapted encoder, the merged weights without adapters.

    Raises:
      PacxError: a folder that is not, or has not, what the kind holds.
    """
    model = MODELS.get(kind, "vit")
    if folder.kind != model:
        raise PacxError(f"a {folder.kind} model cannot be written as {kind}")
    fits = {
        "mae": ("mae",),
        "vit_timm": ("classify",),
        "vit_hf": ("mae", "classify"),
        "pacx": ("pacx",),
        "labs_dae": ("labs_dae",),
        "ecgfounder": ("ecg",),
        "probe": ("classify",),
        "segment": ("segment",),
    }[kind]
    heads = folder.heads.kind if folder.heads else ""
    if kind in ("labs_dae", "probe", "segment") and heads not in fits:
        raise PacxError(
            f"{kind} needs {fits[0]} heads, and this folder has {heads or 'none'}: "
            "give the run's workdir, or a folder written by export --heads"
        )
    heads = heads if heads in fits else ""  # others have no place in this kind
    architecture = dict(folder.heads.architecture) if heads else {}
    if merged:
        architecture.pop("adapted", None)
    if kind == "ecgfounder" and not heads:
        architecture = {"labels": []}
    prefix = PREFIXES[kind][0]
    if kind == "vit_hf" and heads:
        prefix = "vit."
    if kind == "pacx" and not architecture.get("adapted"):
        prefix = "cxr_encoder."
    names = tables.HF if kind == "vit_hf" else tables.TIMM
    return Spec(kind, model, folder.architecture, heads, architecture, prefix, names)


def infer(kind: str, state: dict, options: Options, source: str) -> Spec:
    """The spec of a published state dict.

    Raises:
      PacxError: a state dict without the keys that its kind is known by.
    """
    names = tables.TIMM
    if kind == "vit_hf":
        names = tables.HF5 if any(".q_proj." in k for k in state) else tables.HF
        if any(".decoder_encoder.layer." in k for k in state):  # files of version 5
            names = dataclasses.replace(
                names, decoder_blocks="decoder_encoder.layer.{i}."
            )
    anchor = {
        "labs_dae": "encoder.0.weight",
        "ecgfounder": "first_conv.conv.weight",
    }.get(kind, f"{names.patch}.weight")
    found = [p for p in PREFIXES[kind] if p + anchor in state]
    if not found:
        raise PacxError(
            f"{source} is no {kind} checkpoint: {PREFIXES[kind][0]}{anchor} is not in "
            f"it. It holds {shorten(sorted(state), 5) or 'nothing'}"
        )
    prefix, model = found[0], MODELS.get(kind, "vit")
    try:
        if model == "labs_dae":
            return Spec(kind, model, *_labs_dae(state, prefix, options), prefix)
        if model == "ecg_net1d":
            return Spec(kind, model, *_net1d(state, prefix, options), prefix)
        a = _vit(state, prefix, names, options, kind)
        heads, h = _vit_heads(kind, state, prefix, names, a, options)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as e:
        raise PacxError(
            f"{source} is no {kind} checkpoint: a key is missing or of a wrong shape "
            f"({e})"
        ) from None
    return Spec(kind, model, a, heads, h, prefix, names)


def _vit(state, prefix, names, options, kind) -> dict:
    width, channels, patch, _ = state[f"{prefix}{names.patch}.weight"].shape
    if channels != 3:
        raise PacxError(f"{names.patch}.weight has {channels} channels; give one of 3")
    depth = _count(state, prefix + names.blocks)
    pos = state[prefix + names.pos]
    side = math.isqrt(max(pos.shape[1] - 1, 0))
    if pos.shape != (1, 1 + side**2, width) or not side:
        raise PacxError(
            f"{prefix}{names.pos} is {pos.shape}: positions of a square grid and a "
            f"CLS token are needed, (1, 1 + n, {width})"
        )
    a = {
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "num_heads": options.num_heads or num_heads(width),
        "ln_eps": options.ln_eps or EPS.get(kind, 1e-6),
        "image_size": side * patch,
    }
    fixed = width % 4 == 0 and is_fixed(pos, tables.positions(side, width))
    return a if fixed else a | {"posemb_grid": [side, side]}


def _vit_heads(kind, state, prefix, names, a, options) -> tuple[str, dict]:
    decoder = prefix.removesuffix("vit.") if kind == "vit_hf" else prefix
    embed = f"{decoder}{names.decoder}decoder_embed.weight"
    if kind in ("mae", "vit_hf") and embed in state:
        width, _ = state[embed].shape
        heads = options.decoder_num_heads or (width // 32 if width % 32 == 0 else 0)
        if not heads:
            raise PacxError(f"give --decoder_num_heads: width {width} tells none")
        return "mae", {
            "encoder_width": a["width"],
            "patch_pixels": 3 * a["patch_size"] ** 2,
            "width": width,
            "depth": _count(state, decoder + names.decoder + names.decoder_blocks),
            "num_heads": heads,
            "ln_eps": a["ln_eps"],
        }
    if kind == "pacx":
        return _pacx_heads(state, prefix, options)
    if kind == "probe":
        head = state[f"{prefix.removesuffix('backbone.')}head.weight"]
        return "classify", {
            "encoder_width": a["width"],
            "labels": _labels(len(head), options),
        }
    if kind == "segment":
        key = f"{prefix.removesuffix('backbone.')}decoder."
        count = _count(state, key + "{i}.")
        convolutions = [state[f"{key}{2 * i}.weight"] for i in range(count)]
        widths = [len(convolutions[0])] + [x.shape[1] for x in convolutions[1:]]
        return "segment", {"encoder_width": a["width"], "widths": widths}
    return "", {}


def _pacx_heads(state, prefix, options) -> tuple[str, dict]:
    linear = {
        key.split(".")[0]: value.shape[::-1]
        for key, value in sorted(state.items())
        if re.fullmatch(r"\w+_to_\w+\.mlp\.1\.weight", key)
    }
    if not linear:  # merged encoders travel alone
        return "", {}
    normed = any(key.endswith(".mlp.2.weight") for key in state)
    h = {
        "head": "linear_ln" if normed else "linear",
        "heads": {name: list(shape) for name, shape in linear.items()},
    }
    pattern = re.escape(prefix) + r"blocks\.(\d+)\.([\w.]+)\.lora_A\.default\.weight"
    pairs = [m for m in (re.fullmatch(pattern, key) for key in state) if m]
    if pairs:
        names = sorted(f"block_{int(m[1]):02d}.{m[2]}" for m in pairs)
        rank = len(state[pairs[0][0]])
        h |= {"rank": rank, "alpha": options.alpha, "adapted": names}
    return "pacx", h


def _labs_dae(state, prefix, options):
    hidden, inputs = state[f"{prefix}encoder.0.weight"].shape
    latent = len(state[f"{prefix}encoder.3.weight"])
    h = {"features": inputs // 2, "hidden": hidden, "latent": latent}
    return h | {"mask_inputs": options.mask_inputs}, "labs_dae", h


def _net1d(state, prefix, options):
    stages = _count(state, prefix + "stage_list.{i}.")
    filters, blocks = [], []
    for s in range(stages):
        key = f"{prefix}stage_list.{s}.block_list."
        blocks.append(_count(state, key + "{i}."))
        filters.append(len(state[f"{key}0.conv1.conv.weight"]))
    _, groups_width, kernel = state[f"{prefix}stage_list.0.block_list.0.conv2.conv"
                                    ".weight"].shape  # fmt: skip
    a = {
        "base_filters": len(state[f"{prefix}first_conv.conv.weight"]),
        "filters": filters,
        "blocks": blocks,
        "kernel": kernel,
        "groups_width": groups_width,
    }
    dense = state.get(f"{prefix}dense.weight", ())
    h = {"encoder_width": filters[-1], "labels": _labels(len(dense), options)}
    return a, "ecg", h


def _labels(count: int, options: Options) -> list[str]:
    if options.labels and len(options.labels) != count:
        raise PacxError(
            f"--labels has {len(options.labels)} names, and the head {count} outputs"
        )
    return list(options.labels) or [f"class_{i:03d}" for i in range(count)]


def _count(state: dict, prefix: str) -> int:
    """How many numbers stand at {i} of `prefix` among the keys."""
    before, after = (re.escape(part) for part in prefix.split("{i}"))
    found = {m[1] for m in (re.match(rf"{before}(\d+){after}", k) for k in state) if m}
    if not found:
        raise KeyError(prefix.format(i=0) + "*")
    return len(found)


def num_heads(width: int) -> int:
    for other, _, num_heads in vit.VARIANTS.values():
        if other == width:
            return num_heads
    raise PacxError(f"give --num_heads: a width of {width} tells none")
