"""What a state dict of a published kind tells of its model: sizes, layout, heads."""

from __future__ import annotations

import dataclasses
import math
import re

from pacx_jax.convert import tables
from pacx_jax.convert.layouts import MODELS, PREFIXES, Spec, head_root
from pacx_jax.convert.state import is_fixed, shorten
from pacx_jax.errors import PacxError

EPS = {"vit_hf": 1e-12, "pacx": 1e-5}  # transformers' default; D6; 1e-6 for the others
# Heads by width, of the published ViT-Ti, S, B, L and H, and of MAE's decoder.
NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_NUM_HEADS = {512: 16}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a state dict does not tell; 0, "" and () stand for the kind's own value.

    Attributes:
      num_heads, decoder_num_heads: heads of attention.
      ln_eps: epsilon of LayerNorms.
      alpha: of LoRA; the published weights' is 16 (D3).
      mean, std: normalisation of the images.
      labels: names of a classifier's outputs.
      task: of a classifier, "multilabel" or "multiclass".
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
    task: str = ""
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
        if self.task not in ("", "multilabel", "multiclass"):
            raise PacxError(f"--task {self.task!r}: give multilabel or multiclass")


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
    if len(found) > 1:
        keys = " and ".join(p + anchor for p in found)
        raise PacxError(f"{source} holds several encoders, {keys}: keep one's keys")
    prefix, model = found[0], MODELS.get(kind, "vit")
    try:
        if model == "labs_dae":
            return Spec(kind, model, *_labs_dae(state, prefix, options), prefix)
        if model == "ecg_net1d":
            return Spec(kind, model, *_net1d(state, prefix, options), prefix)
        a = _vit(state, prefix, names, options, kind)
        heads, h = _vit_heads(kind, state, prefix, names, a, options)
    except _Odd as e:
        raise PacxError(f"{source} is no {kind} checkpoint: {e}") from None
    except _Untold as e:
        raise PacxError(f"{source}: {e}") from None
    return Spec(kind, model, a, heads, h, prefix, names)


class _Odd(Exception):
    """A key that is missing or of a wrong shape."""


class _Untold(Exception):
    """An option that the file needs, or that does not go with it."""


def _shape(state: dict, key: str, axes: str) -> tuple[int, ...]:
    """The shape of a key that must be there, with axes of these names."""
    if key not in state:
        raise _Odd(f"missing {key}")
    shape, names = state[key].shape, axes.split()
    if len(shape) != len(names) or 0 in shape:
        raise _Odd(f"{key} is {shape}, not ({', '.join(names)})")
    return shape


def _vit(state, prefix, names, options, kind) -> dict:
    patch_key = f"{prefix}{names.patch}.weight"
    width, channels, patch, _ = _shape(state, patch_key, "width channels patch patch")
    if channels != 3:
        raise _Odd(f"{patch_key} has {channels} channels, and 3 are needed")
    depth = _count(state, prefix + names.blocks)
    pos = prefix + names.pos
    shape = _shape(state, pos, "1 n width")
    side = math.isqrt(shape[1] - 1)
    if shape != (1, 1 + side**2, width) or not side:
        raise _Odd(
            f"{pos} is {shape}: positions of a square grid and a CLS token are "
            f"needed, (1, 1 + n, {width})"
        )
    a = {
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "num_heads": _heads("num_heads", width, options.num_heads, NUM_HEADS),
        "ln_eps": options.ln_eps or EPS.get(kind, 1e-6),
        "image_size": side * patch,
    }
    fixed = width % 4 == 0 and is_fixed(state[pos], tables.positions(side, width))
    return a if fixed else a | {"posemb_grid": [side, side]}


def _heads(name: str, width: int, given: int, known: dict[int, int]) -> int:
    """Heads of attention: as given, or as published for the width."""
    if not (given or width in known):
        raise _Untold(f"a width of {width} tells no number of heads: give --{name}")
    count = given or known[width]
    if width % count:
        raise _Untold(f"its width {width} is not divisible by {name} {count}")
    return count


def _vit_heads(kind, state, prefix, names, a, options) -> tuple[str, dict]:
    """The kind of heads and their architecture; "" where the file has none."""
    decoder = prefix.removesuffix("vit.") if kind == "vit_hf" else prefix
    embed = f"{decoder}{names.decoder}decoder_embed.weight"
    if kind in ("mae", "vit_hf") and embed in state:
        width, _ = _shape(state, embed, "width encoder_width")
        given, known = options.decoder_num_heads, DECODER_NUM_HEADS
        return "mae", {
            "encoder_width": a["width"],
            "patch_pixels": 3 * a["patch_size"] ** 2,
            "width": width,
            "depth": _count(state, decoder + names.decoder + names.decoder_blocks),
            "num_heads": _heads("decoder_num_heads", width, given, known),
            "ln_eps": a["ln_eps"],
        }
    if kind == "pacx":
        return _pacx_heads(state, prefix, options)
    key = f"{head_root(kind, prefix)}{names.head}.weight"
    if kind == "probe" or (kind in ("vit_timm", "vit_hf") and key in state):
        count, _ = _shape(state, key, "outputs width")
        # timm's and Hugging Face's classifiers are of ImageNet: one class an image.
        task = "multilabel" if kind == "probe" else "multiclass"
        return "classify", {
            "encoder_width": a["width"],
            "labels": _labels(count, options),
            "task": options.task or task,
        }
    if kind == "segment":
        key = f"{head_root(kind, prefix)}decoder."
        count = _count(state, key + "{i}.")
        shapes = [
            _shape(state, f"{key}{2 * i}.weight", "a b height width")
            for i in range(count)
        ]
        widths = [shapes[0][0]] + [x[1] for x in shapes[1:]]
        return "segment", {"encoder_width": a["width"], "widths": widths}
    return "", {}


def _pacx_heads(state, prefix, options) -> tuple[str, dict]:
    linear = {
        key.split(".")[0]: _shape(state, key, "out in")[::-1]
        for key in sorted(state)
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
        rank, _ = _shape(state, pairs[0][0], "rank in")
        h |= {"rank": rank, "alpha": options.alpha, "adapted": names}
    return "pacx", h


def _labs_dae(state, prefix, options):
    hidden, inputs = _shape(state, f"{prefix}encoder.0.weight", "hidden features")
    if inputs % 2:
        raise _Odd(f"{prefix}encoder.0.weight takes {inputs} features, not values + as "
                   "many masks")  # fmt: skip
    latent, _ = _shape(state, f"{prefix}encoder.3.weight", "latent hidden")
    h = {"features": inputs // 2, "hidden": hidden, "latent": latent}
    return h | {"mask_inputs": options.mask_inputs}, "labs_dae", h


def _net1d(state, prefix, options):
    stages = _count(state, prefix + "stage_list.{i}.")
    filters, blocks = [], []
    for s in range(stages):
        key = f"{prefix}stage_list.{s}.block_list."
        blocks.append(_count(state, key + "{i}."))
        filters.append(_shape(state, f"{key}0.conv1.conv.weight", "out in k")[0])
    grouped = f"{prefix}stage_list.0.block_list.0.conv2.conv.weight"
    _, groups_width, kernel = _shape(state, grouped, "out group k")
    a = {
        "base_filters": _shape(state, f"{prefix}first_conv.conv.weight", "out in k")[0],
        "filters": filters,
        "blocks": blocks,
        "kernel": kernel,
        "groups_width": groups_width,
    }
    dense, count = f"{prefix}dense.weight", 0
    if dense in state:
        count, _ = _shape(state, dense, "outputs width")
    h = {"encoder_width": filters[-1], "labels": _labels(count, options)}
    return a, "ecg", h


def _labels(count: int, options: Options) -> list[str]:
    if options.labels and len(options.labels) != count:
        raise _Untold(
            f"{len(options.labels)} labels are given, and the head has {count} outputs"
        )
    return list(options.labels) or [f"class_{i:03d}" for i in range(count)]


def _count(state: dict, prefix: str) -> int:
    """How many numbers stand at {i} of `prefix` among the keys."""
    before, after = (re.escape(part) for part in prefix.split("{i}"))
    found = {m[1] for m in (re.match(rf"{before}(\d+){after}", k) for k in state) if m}
    if not found:
        raise _Odd(f"missing {prefix.format(i=0)}*")
    return len(found)
