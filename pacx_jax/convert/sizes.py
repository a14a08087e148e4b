"""What a state dict of a published kind tells of its model: sizes, layout, heads."""

from __future__ import annotations

import dataclasses
import math
import re

from pacx_jax.convert import densenet, foreign, tables
from pacx_jax.convert.layouts import KINDS, Spec, root_of
from pacx_jax.convert.options import Options
from pacx_jax.convert.shapes import (
    DECODER_NUM_HEADS,
    NUM_HEADS,
    count_of,
    epsilons,
    heads_of,
    shape_of,
)
from pacx_jax.convert.state import is_fixed, shorten
from pacx_jax.errors import PacxError


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
        if about.model == "densenet":
            return Spec(kind, densenet.infer(kind, state, prefix), prefix=prefix)
        if kind == "mvmae":
            return Spec(kind, *_mvmae(state, prefix, options), prefix, tables.MVMAE)
        if kind in foreign.KINDS:
            a, names = foreign.infer(kind, state, prefix, options, about)
            heads, h = _vit_heads(kind, state, prefix, names, a, options)
            return Spec(kind, a, heads, h, prefix, names)
        a = _vit(state, prefix, names, options, about)
        heads, h = _vit_heads(kind, state, prefix, names, a, options)
    except PacxError as e:
        raise PacxError(f"{source}: {e}") from None
    return Spec(kind, a, heads, h, prefix, names)


def _vit(state, prefix, names, options, about) -> dict:
    patch_key = f"{prefix}{names.patch}.weight"
    width, channels, patch, _ = shape_of(state, patch_key, "width channels patch patch")
    if channels != 3:
        raise PacxError(f"{patch_key} has {channels} channels, and 3 are needed")
    pos = prefix + names.pos
    shape = shape_of(state, pos, "1 n width")
    side = math.isqrt(shape[1] - 1)
    if shape != (1, 1 + side**2, width) or not side:
        raise PacxError(
            f"{pos} is {shape}: positions of a square grid and a CLS token are "
            f"needed, (1, 1 + n, {width})"
        )
    a = {
        "patch_size": patch,
        "width": width,
        "depth": count_of(state, prefix + names.blocks),
        "num_heads": heads_of("num_heads", width, options.num_heads, NUM_HEADS),
        "image_size": side * patch,
    } | epsilons(options, about)
    fixed = width % 4 == 0 and is_fixed(state[pos], tables.positions(side, width))
    return a if fixed else a | {"posemb_grid": [side, side]}


def _mvmae(state, prefix, options) -> tuple[dict, str, dict]:
    """The architecture of MVMAE's encoder; "mae" and its decoder's, if it has one."""
    names, about = tables.MVMAE, KINDS["mvmae"]
    patch_key = f"{prefix}{names.patch}.weight"
    width, channels, patch, _ = shape_of(state, patch_key, "width channels patch patch")
    if channels != 1:
        raise PacxError(f"{patch_key} has {channels} channels, and 1 is needed")
    shape = shape_of(state, prefix + names.pos, "n 1 width")
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
        "depth": count_of(state, prefix + names.blocks),
        "num_heads": heads_of("num_heads", width, options.num_heads, NUM_HEADS),
        "image_size": side * patch,
        "channels": 1,
        "posemb_cls": False,
    } | (grid | epsilons(options, about) | _optional(state, prefix))
    decoder = root_of("mvmae", prefix) + names.decoder
    if f"{decoder}mask_token" not in state:
        return a, "", {}
    inner = shape_of(state, f"{decoder}mask_token", "1 1 width")[-1]
    given, known = options.decoder_num_heads, DECODER_NUM_HEADS["mvmae"]
    h = {
        "encoder_width": width,
        "patch_pixels": patch**2,
        "width": inner,
        "depth": count_of(state, decoder + names.decoder_blocks),
        "num_heads": heads_of("decoder_num_heads", inner, given, known),
        "project": False,
    } | (grid | epsilons(options, about) | _optional(state, decoder))
    return a, "mae", h


def _optional(state, prefix) -> dict:
    """`qk_norm` and `views` of MVMAE's, where a state dict has them."""
    found, key = {}, f"{prefix}mod_embedding"
    if f"{prefix}transformer.0.attn.q_norm.weight" in state:
        found["qk_norm"] = True
    if key in state:
        found["views"] = shape_of(state, key, "views width")[0]
    return found


def _vit_heads(kind, state, prefix, names, a, options) -> tuple[str, dict]:
    """The kind of heads and their architecture; "" where the file has none."""
    root, width = root_of(kind, prefix), a["width"]
    if kind == "pacx":
        return _pacx_heads(state, prefix, options)
    decoder = root + names.decoder
    if kind in ("mae", "vit_hf") and f"{decoder}decoder_embed.weight" in state:
        inner, _ = shape_of(
            state, f"{decoder}decoder_embed.weight", "width encoder_width"
        )
        given, known = options.decoder_num_heads, DECODER_NUM_HEADS[kind]
        epsilons = {k: a[k] for k in ("ln_eps", "final_ln_eps") if k in a}
        return "mae", {
            "encoder_width": width,
            "patch_pixels": 3 * a["patch_size"] ** 2,
            "width": inner,
            "depth": count_of(state, decoder + names.decoder_blocks),
            "num_heads": heads_of("decoder_num_heads", inner, given, known),
        } | epsilons
    key = f"{root}{names.head}.weight"
    of_file = "classify" in KINDS[kind].heads and names.head and key in state
    if kind == "probe" or of_file:
        count, _ = shape_of(state, key, "outputs width")
        if kind in foreign.KINDS and not options.task:
            raise PacxError(
                f"{key} is a classifier, and no file says of what kind: give "
                "--task=multilabel (several findings an image) or --task=multiclass"
            )
        # timm's and Hugging Face's classifiers are of ImageNet: one class an image.
        task = "multilabel" if kind == "probe" else "multiclass"
        return "classify", {
            "encoder_width": width,
            "labels": _labels(count, options),
            "task": options.task or task,
        }
    if kind == "segment":
        count = count_of(state, f"{root}decoder.{{i}}.")
        keys = [f"{root}decoder.{2 * i}.weight" for i in range(count)]
        shapes = [shape_of(state, key, "a b height width") for key in keys]
        widths = [shapes[0][0]] + [x[1] for x in shapes[1:]]
        return "segment", {"encoder_width": width, "widths": widths}
    return "", {}


def _pacx_heads(state, prefix, options) -> tuple[str, dict]:
    linear = {
        key.split(".")[0]: shape_of(state, key, "out in")[::-1]
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
        rank, _ = shape_of(state, pairs[0][0], "rank in")
        h |= {"rank": rank, "alpha": options.alpha, "adapted": names}
    return "pacx", h


def _labs_dae(state, prefix, options):
    hidden, inputs = shape_of(state, f"{prefix}encoder.0.weight", "hidden features")
    if inputs % 2:
        raise PacxError(
            f"{prefix}encoder.0.weight takes {inputs} features, not values + as many "
            "masks"
        )
    latent, _ = shape_of(state, f"{prefix}encoder.3.weight", "latent hidden")
    h = {"features": inputs // 2, "hidden": hidden, "latent": latent}
    return h | {"mask_inputs": options.mask_inputs}, "labs_dae", h


def _net1d(state, prefix, options):
    filters, blocks = [], []
    for s in range(count_of(state, prefix + "stage_list.{i}.")):
        key = f"{prefix}stage_list.{s}.block_list."
        blocks.append(count_of(state, key + "{i}."))
        filters.append(shape_of(state, f"{key}0.conv1.conv.weight", "out in k")[0])
    grouped = f"{prefix}stage_list.0.block_list.0.conv2.conv.weight"
    _, groups_width, kernel = shape_of(state, grouped, "out group k")
    stem = shape_of(state, f"{prefix}first_conv.conv.weight", "out in k")
    a = {
        "base_filters": stem[0],
        "filters": filters,
        "blocks": blocks,
        "kernel": kernel,
        "groups_width": groups_width,
    }
    dense, count = f"{prefix}dense.weight", 0
    if dense in state:
        count, _ = shape_of(state, dense, "outputs width")
    h = {"encoder_width": filters[-1], "labels": _labels(count, options)}
    return a, "ecg", h


def _labels(count: int, options: Options) -> list[str]:
    if options.labels and len(options.labels) != count:
        raise PacxError(
            f"{len(options.labels)} labels are given, and the head has {count} outputs"
        )
    return list(options.labels) or [f"class_{i:03d}" for i in range(count)]
