"""What a state dict of a published kind tells of its model: sizes, layout, heads."""

from __future__ import annotations

import dataclasses
import math
import re

from pacx_jax.convert import tables
from pacx_jax.convert.layouts import KINDS, Spec, root_of
from pacx_jax.convert.state import is_fixed, shorten
from pacx_jax.errors import PacxError

# Heads by width, of the published ViT-Ti, S, B, L and H; of a kind's decoder.
NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_NUM_HEADS = {
    "mae": {512: 16},
    "vit_hf": {512: 16},
    "mvmae": {192: 3, 768: 12},
}
LIMITS = {
    "num_heads": (1, 1024),
    "decoder_num_heads": (1, 1024),
    "ln_eps": (1e-20, 0.1),
    "final_ln_eps": (1e-20, 0.1),
    "alpha": (1e-6, 1e6),
    "mean": (0, 1),  # of pixels divided by 255
    "std": (1e-6, 1),
    "decimate": (1, 100),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a state dict does not tell; None and () stand for the kind's own value.

    Attributes:
      num_heads, decoder_num_heads: heads of attention.
      ln_eps: epsilon of LayerNorms.
      final_ln_eps: epsilon of the last one.
      alpha: of LoRA; the published weights' is 16 (D3).
      mean, std: normalisation of the images.
      labels: names of a classifier's outputs.
      task: of a classifier, "multilabel" or "multiclass".
      mask_inputs: whether missing labs are zeroed at extraction (D7).
      decimate: of an ECG encoder: how many samples of 500 Hz its input averages.
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    ln_eps: float | None = None
    final_ln_eps: float | None = None
    alpha: float = 16.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    task: str | None = None
    mask_inputs: bool = True
    decimate: int = 1

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            each = value if isinstance(value, tuple) else (value,)
            good = all(isinstance(x, (int, float)) and low <= x <= high for x in each)
            if value is not None and not good:  # nor NaN
                text = " ".join(map(str, each))
                what = " (pixels divided by 255)" if name in ("mean", "std") else ""
                raise PacxError(f"--{name} {text}: give {low:g} to {high:g}{what}")
        if self.task not in (None, "multilabel", "multiclass"):
            raise PacxError(f"--task {self.task!r}: give multilabel or multiclass")


def infer(kind: str, state: dict, options: Options, source: str) -> Spec:
    """The spec of a published state dict.

    Raises:
      PacxError: a state dict without the keys that its kind is known by, keys of a
        wrong shape, or an option that the file needs or that does not go with it.
    """
    names = tables.TIMM
    if kind == "vit_hf":
        names = tables.HF5 if any(".q_proj." in k for k in state) else tables.HF
        if any(".decoder_encoder.layer." in k for k in state):  # files of version 5
            names = dataclasses.replace(
                names, decoder_blocks="decoder_encoder.layer.{i}."
            )
    about = KINDS[kind]
    found = [k for k in sorted(state) if f".{k}".endswith(f".{about.anchor}")]
    if not found:
        raise PacxError(
            f"{source} is no {kind} checkpoint: {about.prefix}{about.anchor} is not in "
            f"it. It holds {shorten(sorted(state), 5) or 'nothing'}"
        )
    if len(found) > 1:
        raise PacxError(
            f"{source} holds several encoders, {' and '.join(found)}: keep one's keys"
        )
    prefix = found[0].removesuffix(about.anchor)
    try:
        if about.model == "labs_dae":
            return Spec(kind, *_labs_dae(state, prefix, options), prefix)
        if about.model == "ecg_net1d":
            return Spec(kind, *_net1d(state, prefix, options), prefix)
        if kind == "mvmae":
            return Spec(kind, *_mvmae(state, prefix, options), prefix, tables.MVMAE)
        a = _vit(state, prefix, names, options, about)
        heads, h = _vit_heads(kind, state, prefix, names, a, options)
    except PacxError as e:
        raise PacxError(f"{source}: {e}") from None
    return Spec(kind, a, heads, h, prefix, names)


def _shape(state: dict, key: str, axes: str) -> tuple[int, ...]:
    """The shape of a key that must be there, with axes of these names."""
    if key not in state:
        raise PacxError(f"missing {key}")
    shape, names = state[key].shape, axes.split()
    if len(shape) != len(names) or 0 in shape:
        raise PacxError(f"{key} is {shape}, not ({', '.join(names)})")
    return shape


def _vit(state, prefix, names, options, about) -> dict:
    patch_key = f"{prefix}{names.patch}.weight"
    width, channels, patch, _ = _shape(state, patch_key, "width channels patch patch")
    if channels != 3:
        raise PacxError(f"{patch_key} has {channels} channels, and 3 are needed")
    pos = prefix + names.pos
    shape = _shape(state, pos, "1 n width")
    side = math.isqrt(shape[1] - 1)
    if shape != (1, 1 + side**2, width) or not side:
        raise PacxError(
            f"{pos} is {shape}: positions of a square grid and a CLS token are "
            f"needed, (1, 1 + n, {width})"
        )
    a = {
        "patch_size": patch,
        "width": width,
        "depth": _count(state, prefix + names.blocks),
        "num_heads": _heads("num_heads", width, options.num_heads, NUM_HEADS),
        "image_size": side * patch,
    } | _epsilons(options, about)
    fixed = width % 4 == 0 and is_fixed(state[pos], tables.positions(side, width))
    return a if fixed else a | {"posemb_grid": [side, side]}


def _epsilons(options: Options, about) -> dict:
    """`ln_eps`, and `final_ln_eps` where it is another."""
    eps = options.ln_eps or about.ln_eps
    final = options.final_ln_eps or about.final_ln_eps or eps
    return {"ln_eps": eps} | ({"final_ln_eps": final} if final != eps else {})


def _mvmae(state, prefix, options) -> tuple[dict, str, dict]:
    """The architecture of MVMAE's encoder; "mae" and its decoder's, if it has one."""
    names, about = tables.MVMAE, KINDS["mvmae"]
    patch_key = f"{prefix}{names.patch}.weight"
    width, channels, patch, _ = _shape(state, patch_key, "width channels patch patch")
    if channels != 1:
        raise PacxError(f"{patch_key} has {channels} channels, and 1 is needed")
    shape = _shape(state, prefix + names.pos, "n 1 width")
    side = math.isqrt(shape[0])
    if shape != (side**2, 1, width):
        raise PacxError(
            f"{prefix}{names.pos} is {shape}: positions of a square grid without a "
            f"CLS token are needed, (n, 1, {width})"
        )
    grid = {"posemb_grid": [side, side]}
    a = {
        "patch_size": patch,
        "width": width,
        "depth": _count(state, prefix + names.blocks),
        "num_heads": _heads("num_heads", width, options.num_heads, NUM_HEADS),
        "image_size": side * patch,
        "channels": 1,
        "posemb_cls": False,
    } | (grid | _epsilons(options, about) | _optional(state, prefix))
    decoder = root_of("mvmae", prefix) + names.decoder
    if f"{decoder}mask_token" not in state:
        return a, "", {}
    inner = _shape(state, f"{decoder}mask_token", "1 1 width")[-1]
    given, known = options.decoder_num_heads, DECODER_NUM_HEADS["mvmae"]
    h = {
        "encoder_width": width,
        "patch_pixels": patch**2,
        "width": inner,
        "depth": _count(state, decoder + names.decoder_blocks),
        "num_heads": _heads("decoder_num_heads", inner, given, known),
        "project": False,
    } | (grid | _epsilons(options, about) | _optional(state, decoder))
    return a, "mae", h


def _optional(state, prefix) -> dict:
    """`qk_norm` and `views` of MVMAE's, where a state dict has them."""
    found, key = {}, f"{prefix}mod_embedding"
    if f"{prefix}transformer.0.attn.q_norm.weight" in state:
        found["qk_norm"] = True
    if key in state:
        found["views"] = _shape(state, key, "views width")[0]
    return found


def _heads(name: str, width: int, given: int | None, known: dict[int, int]) -> int:
    """Heads of attention: as given, or as published for the width."""
    if not (given or width in known):
        raise PacxError(f"a width of {width} tells no number of heads: give --{name}")
    count = given or known[width]
    if width % count:
        raise PacxError(f"its width {width} is not divisible by {name} {count}")
    return count


def _vit_heads(kind, state, prefix, names, a, options) -> tuple[str, dict]:
    """The kind of heads and their architecture; "" where the file has none."""
    root, width = root_of(kind, prefix), a["width"]
    if kind == "pacx":
        return _pacx_heads(state, prefix, options)
    decoder = root + names.decoder
    if kind in ("mae", "vit_hf") and f"{decoder}decoder_embed.weight" in state:
        inner, _ = _shape(
            state, f"{decoder}decoder_embed.weight", "width encoder_width"
        )
        given, known = options.decoder_num_heads, DECODER_NUM_HEADS[kind]
        epsilons = {k: a[k] for k in ("ln_eps", "final_ln_eps") if k in a}
        return "mae", {
            "encoder_width": width,
            "patch_pixels": 3 * a["patch_size"] ** 2,
            "width": inner,
            "depth": _count(state, decoder + names.decoder_blocks),
            "num_heads": _heads("decoder_num_heads", inner, given, known),
        } | epsilons
    key = f"{root}{names.head}.weight"
    if kind == "probe" or (kind in ("vit_timm", "vit_hf") and key in state):
        count, _ = _shape(state, key, "outputs width")
        # timm's and Hugging Face's classifiers are of ImageNet: one class an image.
        task = "multilabel" if kind == "probe" else "multiclass"
        return "classify", {
            "encoder_width": width,
            "labels": _labels(count, options),
            "task": options.task or task,
        }
    if kind == "segment":
        count = _count(state, f"{root}decoder.{{i}}.")
        keys = [f"{root}decoder.{2 * i}.weight" for i in range(count)]
        shapes = [_shape(state, key, "a b height width") for key in keys]
        widths = [shapes[0][0]] + [x[1] for x in shapes[1:]]
        return "segment", {"encoder_width": width, "widths": widths}
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
        raise PacxError(
            f"{prefix}encoder.0.weight takes {inputs} features, not values + as many "
            "masks"
        )
    latent, _ = _shape(state, f"{prefix}encoder.3.weight", "latent hidden")
    h = {"features": inputs // 2, "hidden": hidden, "latent": latent}
    return h | {"mask_inputs": options.mask_inputs}, "labs_dae", h


def _net1d(state, prefix, options):
    filters, blocks = [], []
    for s in range(_count(state, prefix + "stage_list.{i}.")):
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
        raise PacxError(
            f"{len(options.labels)} labels are given, and the head has {count} outputs"
        )
    return list(options.labels) or [f"class_{i:03d}" for i in range(count)]


def _count(state: dict, prefix: str) -> int:
    """How many numbers stand at {i} of `prefix` among the keys."""
    before, after = (re.escape(part) for part in prefix.split("{i}"))
    found = {m[1] for m in (re.match(rf"{before}(\d+){after}", k) for k in state) if m}
    if not found:
        raise PacxError(f"missing {prefix.format(i=0)}*")
    return len(found)
