"""Other people's encoders: DINOv2 in two layouts (Oquab 2023), EVA-02 (Fang 2023).

  dinov2     the original's keys, as CXformer's training writes them, and timm's
  dinov2_hf  `Dinov2Model` and `Dinov2WithRegistersModel` of transformers: RAD-DINO
  eva02      timm's `Eva` with SwiGLU and rotary positions, and the original's: EVA-X

Which layout a file has, and what its model has (registers, layer scale, SwiGLU, a norm
in the MLP), its keys tell. What they do not tell must be given: image statistics,
EVA-02's pooling where its last norm is named `norm`, the task of a classifier.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pacx_jax.convert import tables
from pacx_jax.convert.options import Options
from pacx_jax.convert.shapes import NUM_HEADS, count_of, epsilons, heads_of, shape_of
from pacx_jax.errors import PacxError
from pacx_jax.models import positions

KINDS = ("dinov2", "dinov2_hf", "eva02")
# Fields of a ViT that the other kinds have no keys for -> a plain ViT's value.
PLAIN = {
    "registers": 0,
    "layer_scale": False,
    "swiglu": False,
    "mlp_norm": False,
    "mlp_dim": 0,
    "rotary_grid": [],
    "pool": "cls",
}
EVA_PATCHES = (14, 16)  # of the published EVA-02 and EVA-X, pretrained at 224 pixels
PRETRAINED_SIZE = 224
# Names of one part in the layouts that a kind may have; the first is written.
LAYER_SCALE = {"ls1": ("ls1.gamma",), "ls2": ("ls2.gamma",)}
HF = tables.Names(  # the files that transformers writes
    blocks="encoder.layer.{i}.",
    parts=tables.parts(
        "norm1", tuple(f"attention.attention.{x}" for x in ("query", "key", "value")),
        "attention.output.dense", "norm2", "mlp.fc1", "mlp.fc2",
    ) | {"ls1": ("layer_scale1.lambda1",), "ls2": ("layer_scale2.lambda1",)},
    patch="embeddings.patch_embeddings.projection",
    cls="embeddings.cls_token",
    pos="embeddings.position_embeddings",
    norm="layernorm",
    decoder="",
    decoder_blocks="",
    head="",
    registers="embeddings.register_tokens",
)  # fmt: skip
_HF5 = {  # state_dict() of transformers 5 in memory
    "qkv": tuple(f"attention.{x}_proj" for x in "qkv"),
    "proj": ("attention.o_proj",),
}
_SPLIT = tuple(f"attn.{x}_proj" for x in "qkv")


def _with(names: tables.Names, parts: dict, **fields) -> tables.Names:
    return dataclasses.replace(names, parts=names.parts | parts, **fields)


def infer(kind: str, state: dict, prefix: str, options: Options, about):
    """The architecture that a state dict has, and the names of its layout.

    Args:
      kind: one of KINDS.
      state, prefix: key -> array, and what stands before the encoder's keys.
      options: see `Options`.
      about: the entry of `layouts.KINDS`.

    Raises:
      PacxError: keys that are missing or of a wrong shape; an option that is needed.
    """
    names = {"dinov2": _dinov2, "dinov2_hf": _dinov2_hf, "eva02": _eva}[kind](
        state, prefix
    )
    a = _sizes(state, prefix, names, options, about)
    block = prefix + names.blocks.format(i=0)
    outputs = [
        shape_of(state, f"{block}{key}.weight", "out in")[0]
        for key in names.parts["fc1"]
    ]
    hidden = shape_of(state, f"{block}{names.parts['fc2'][0]}.weight", "out in")[1]
    if sum(outputs) == 2 * hidden:
        a["swiglu"] = True
    if hidden != 4 * a["width"]:
        a["mlp_dim"] = hidden
    a |= {"layer_scale": True} if "ls1" in names.parts else {}
    a |= {"mlp_norm": True} if "mlp_norm" in names.parts else {}
    key = prefix + names.registers
    if names.registers and key in state:
        a["registers"] = shape_of(state, key, "1 registers width")[1]
    if kind == "eva02":
        a |= _eva_fields(a, names, options)
    else:
        usual = _resampling(kind, a)
        chosen = options.posemb_resampling or usual
        a |= {"posemb_resampling": chosen} if chosen != "antialias" else {}
    return a, names


def _sizes(state, prefix, names, options, about) -> dict:
    """The sizes that every one of these kinds has."""
    key = f"{prefix}{names.patch}.weight"
    width, channels, patch, _ = shape_of(state, key, "width channels patch patch")
    if channels not in (1, 3):
        raise PacxError(f"{key} has {channels} channels, and 1 or 3 are needed")
    shape = shape_of(state, prefix + names.pos, "1 n width")
    cls = math.isqrt(shape[1]) ** 2 != shape[1]
    side = math.isqrt(shape[1] - cls)
    # timm's with registers add CLS's position to its token.
    merged = names.registers == _TIMM_REGISTERS
    if shape != (1, cls + side**2, width) or not side or not (cls or merged):
        raise PacxError(
            f"{prefix}{names.pos} is {shape}: positions of a square grid and a CLS "
            f"token are needed, (1, 1 + n, {width})"
        )
    a = {
        "patch_size": patch,
        "width": width,
        "depth": count_of(state, prefix + names.blocks),
        "num_heads": heads_of("num_heads", width, options.num_heads, NUM_HEADS),
        "image_size": side * patch,
        "posemb_grid": [side, side],
    } | epsilons(options, about)
    a |= {} if cls else {"posemb_cls": False}
    return a | ({"channels": 1} if channels == 1 else {})


_TIMM_REGISTERS = "reg_token"


def _dinov2(state, prefix) -> tables.Names:
    merged = f"{prefix}{_TIMM_REGISTERS}" in state
    names = dataclasses.replace(
        tables.TIMM, registers=_TIMM_REGISTERS if merged else "register_tokens"
    )
    block = prefix + "blocks.0."
    if f"{block}mlp.w12.weight" in state:
        names = _with(names, {"fc1": ("mlp.w12",), "fc2": ("mlp.w3",)})
    return _with(names, LAYER_SCALE) if f"{block}ls1.gamma" in state else names


def _dinov2_hf(state, prefix) -> tables.Names:
    block, names = prefix + "encoder.layer.0.", HF
    if f"{block}attention.q_proj.weight" in state:
        names = _with(names, _HF5)
    if f"{block}mlp.weights_in.weight" in state:
        names = _with(names, {"fc1": ("mlp.weights_in",), "fc2": ("mlp.weights_out",)})
    elif f"{block}mlp.gate_proj.weight" in state:
        pair = ("mlp.gate_proj", "mlp.up_proj")
        names = _with(names, {"fc1": pair, "fc2": ("mlp.down_proj",)})
    return names


def _eva(state, prefix) -> tables.Names:
    block = prefix + "blocks.0."

    def first(*choices: tuple[str, ...], leaf: str = ".weight") -> tuple[str, ...]:
        """The choice that block 0 has; the first if it has none, which is missing."""
        found = [c for c in choices if f"{block}{c[0]}{leaf}" in state]
        return (found or choices)[0]

    biases = ("attn.q_proj.bias", "attn.v_proj.bias"), ("attn.q_bias", "attn.v_bias")
    # The original's names stand last.
    parts = {
        "qkv": first(("attn.qkv",), _SPLIT),
        "qkv_bias": first(*biases, leaf=""),
        "fc1": first(
            ("mlp.fc1",), ("mlp.fc1_g", "mlp.fc1_x"), ("mlp.w12",), ("mlp.w1", "mlp.w2")
        ),
        "fc2": first(("mlp.fc2",), ("mlp.w3",)),
    }
    normed = first(("mlp.norm",), ("mlp.ffn_ln",))
    if f"{block}{normed[0]}.weight" in state:
        parts["mlp_norm"] = normed
    pooled = [n for n in ("fc_norm", "norm") if f"{prefix}{n}.weight" in state]
    if len(pooled) == 2:
        raise PacxError(f"{prefix}norm and {prefix}fc_norm: an encoder here has one")
    return _with(tables.TIMM, parts, norm=(pooled or ["norm"])[0])


def _eva_fields(a: dict, names: tables.Names, options: Options) -> dict:
    """What EVA-02 has beside the sizes."""
    if not a.get("swiglu"):
        raise PacxError("its MLP is no SwiGLU, as EVA-02's is: it is another model")
    pool = "mean" if names.norm == "fc_norm" else options.pool
    if pool is None:
        raise PacxError(
            "its last LayerNorm is `norm`, and no file says what it is applied to: "
            "give --pool=mean (the patches' mean, as EVA-X's authors do) or --pool=cls"
        )
    if options.pool not in (None, pool):
        raise PacxError(f"--pool={options.pool}, and its last LayerNorm is fc_norm")
    side, patch = options.rotary_grid, a["patch_size"]
    if side is None and patch not in EVA_PATCHES:
        raise PacxError(
            f"patches of {patch} pixels are no published EVA-02's: give --rotary_grid, "
            "the patches a side of the images that it was pretrained with"
        )
    side = side or PRETRAINED_SIZE // patch
    return {"rotary_grid": [side, side]} | ({"pool": pool} if pool != "cls" else {})


def _resampling(kind: str, a: dict) -> str:
    """How a kind's code resamples learned positions."""
    if a.get("registers"):
        return "antialias"
    return "bicubic" if kind == "dinov2_hf" else "offset"


# What stands beside an encoder and its embedding does without: pretraining's.
_PRETRAINING = {
    "dinov2": ("mask_token",),
    "dinov2_hf": ("embeddings.mask_token",),
    "eva02": ("mask_token", "lm_head.weight", "lm_head.bias"),
}
_HEADS = ("dino_head.", "ibot_head.")
TABLES = {"freqs_cos": 0, "freqs_sin": 1}  # of rotary positions, as EVA-02's files have


def left_out(kind: str, state: dict, prefix: str) -> list[str]:
    """Keys that the encoder does without.

    They are pretraining's heads and mask token, the classifier of transformers (of CLS
    beside the patches' mean), and EVA-02's tables of rotary positions, see `check`.
    """
    found = [prefix + name for name in _PRETRAINING[kind]]
    if kind == "dinov2_hf":
        root = prefix.removesuffix("dinov2.").removesuffix("dinov2_with_registers.")
        found += [f"{root}classifier.weight", f"{root}classifier.bias"]
    elif kind == "dinov2":
        root = prefix.removesuffix("backbone.")
        found += [k for k in state if k.startswith(tuple(root + h for h in _HEADS))]
    else:
        found += [k for k in state if k.startswith(prefix) and _is_table(k)]
    return [key for key in found if key in state]


def _is_table(key: str) -> bool:
    return key.split(".")[-2:-1] == ["rope"]


def check(kind, state: dict, left: list[str], a: dict, options: Options, source: str):
    """Checks what is given, and left out, against what the file's model needs.

    Args:
      kind, state, a: of the file.
      left: keys that were left out.
      options: what was given.
      source: the file, for messages.

    Raises:
      PacxError: image statistics that are not given, rotary positions of another grid.
    """
    if not (options.mean and options.std):
        beside = "timm's config.json"
        if kind == "dinov2_hf":
            beside = "its preprocessor_config.json"
        raise PacxError(
            f"{source} does not say how images are normalised: give --mean and --std, "
            "one number for each channel, of pixels divided by 255, or put beside it "
            f"{beside}, as it came"
        )
    for key in left:
        which = TABLES.get(key.rpartition(".")[2])
        if which is None or not _is_table(key):
            continue
        channels, reference = a["width"] // a["num_heads"], a["rotary_grid"]
        wanted = positions.rotary(a["posemb_grid"], reference, channels, 0)[which]
        value = np.asarray(state[key], np.float32)
        # Half precision is 0.004 off, another grid 1.
        if value.shape != wanted.shape or not np.abs(value - wanted).max() <= 0.01:
            raise PacxError(
                f"{source}: {key} {value.shape} are not the rotary positions of heads "
                f"of {channels} channels and {reference[0]} patches a side: give "
                "--num_heads or --rotary_grid"
            )


def told(kind: str, a: dict) -> dict:
    """What no state dict of these kinds tells: option -> the architecture's value."""
    if kind == "eva02":
        return {"pool": a.get("pool", "cls"), "rotary_grid": a["rotary_grid"][0]}
    return {"posemb_resampling": a.get("posemb_resampling", "antialias")}


def needed(told: dict, a: dict) -> dict:
    """The options among those of `kinds.told` without which a file is refused.

    Args:
      told: option -> value.
      a: the architecture.
    """
    names = ["mean", "std", "task"] + ["pool"] * (told.get("pool") == "cls")
    names += ["rotary_grid"] * (a["patch_size"] not in EVA_PATCHES)
    found = {k: told[k] for k in names if k in told}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def written(kind: str, a: dict) -> tables.Names:
    """The layout that a model of this architecture is written in.

    It is the original's for DINOv2 (timm's where CLS has no position), that of files
    for transformers, and timm's for EVA-02, split where its MLP has a norm.
    """
    if kind == "dinov2_hf":
        pair = {"fc1": ("mlp.weights_in",), "fc2": ("mlp.weights_out",)}
        return _with(HF, pair) if a.get("swiglu") else HF
    if kind == "dinov2":
        merged = not a.get("posemb_cls", True)
        parts = LAYER_SCALE if a.get("layer_scale") else {}
        if a.get("swiglu") and not merged:
            parts = parts | {"fc1": ("mlp.w12",), "fc2": ("mlp.w3",)}
        registers = _TIMM_REGISTERS if merged else "register_tokens"
        return _with(tables.TIMM, parts, registers=registers)
    parts = {"qkv_bias": ("attn.q_bias", "attn.v_bias")}
    if a.get("mlp_norm"):
        parts = {
            "qkv": _SPLIT,
            "qkv_bias": ("attn.q_proj.bias", "attn.v_proj.bias"),
            "fc1": ("mlp.fc1_g", "mlp.fc1_x"),
            "mlp_norm": ("mlp.norm",),
        }
    norm = "fc_norm" if a.get("pool") == "mean" else "norm"
    return _with(tables.TIMM, parts, norm=norm)


def parts(a: dict) -> list[str]:
    """What an architecture has that only these kinds have keys for."""
    return [f"it has {k} {a[k]}" for k, v in PLAIN.items() if a.get(k, v) != v]


def lacks(kind: str, a: dict) -> list[str]:
    """What an architecture has that a kind has no keys for, or has not and must."""
    wrong = [f"it has {k} {a[k]}" for k in ("qk_norm", "views") if a.get(k)]
    if not a.get("posemb_grid"):
        wrong.append("its positions are the fixed ones")
    if kind == "eva02":
        ours = ("registers", "layer_scale")
        if not (a.get("swiglu") and a.get("rotary_grid")):
            wrong.append("it has no SwiGLU with rotary positions")
    else:
        ours = ("mlp_norm", "rotary_grid")
        if a.get("pool", "cls") != "cls":
            wrong.append("its embedding is the patches' mean")
        if kind == "dinov2_hf" and not a.get("layer_scale"):
            wrong.append("it has no layer scale")
    if not a.get("posemb_cls", True) and (kind != "dinov2" or not a.get("registers")):
        wrong.append("its CLS token has no position")
    return wrong + [f"it has {k} {a[k]}" for k in ours if a.get(k)]
