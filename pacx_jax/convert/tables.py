"""Which key of a PyTorch state dict is which of our parameters, and how it is turned.

Each layout is that of the state dict its authors published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pacx_jax.convert.state import (
    CONV1D,
    CONV2D,
    LINEAR,
    POSITIONS,
    Q_AND_V_BIAS,
    SAME,
    UP,
    Entry,
    Turn,
    joined,
    patch,
)
from pacx_jax.models.positions import sincos_2d


@dataclasses.dataclass(frozen=True)
class Names:
    """A layout of Vision Transformers: the keys of its parts.

    Attributes:
      blocks: prefix of block {i}.
      parts: norm1, qkv (one key or three), proj, norm2, fc1, fc2 within a block; where
        it has them qkv_bias (keys of q's and v's), mlp_norm, ls1 and ls2.
      patch, cls, pos, norm: the rest of the encoder.
      decoder: what stands before the keys of MAE's decoder.
      decoder_blocks: prefix of its block {i}, after that.
      head: the classifier; "" for a layout without one.
      registers: tokens of their own.
    """

    blocks: str
    parts: dict[str, tuple[str, ...]]
    patch: str
    cls: str
    pos: str
    norm: str
    decoder: str
    decoder_blocks: str
    head: str
    registers: str = ""


def parts(norm1, qkv, proj, norm2, fc1, fc2):
    singles = dict(norm1=norm1, proj=proj, norm2=norm2, fc1=fc1, fc2=fc2)
    return {k: (v,) for k, v in singles.items()} | {"qkv": qkv}


TIMM = Names(  # also MAE's and PaCX's
    blocks="blocks.{i}.",
    parts=parts("norm1", ("attn.qkv",), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
    patch="patch_embed.proj",
    cls="cls_token",
    pos="pos_embed",
    norm="norm",
    decoder="",
    decoder_blocks="decoder_blocks.{i}.",
    head="head",
)
_HF_SPLIT = tuple(f"attention.attention.{x}" for x in ("query", "key", "value"))
HF = Names(  # the files that transformers writes
    blocks="encoder.layer.{i}.",
    parts=parts(
        "layernorm_before", _HF_SPLIT, "attention.output.dense",
        "layernorm_after", "intermediate.dense", "output.dense",
    ),
    patch="embeddings.patch_embeddings.projection",
    cls="embeddings.cls_token",
    pos="embeddings.position_embeddings",
    norm="layernorm",
    decoder="decoder.",
    decoder_blocks="decoder_layers.{i}.",
    head="classifier",
)  # fmt: skip
HF5 = dataclasses.replace(  # state_dict() of transformers 5 in memory
    HF,
    blocks="layers.{i}.",
    parts=parts(
        "layernorm_before", tuple(f"attention.{x}_proj" for x in "qkv"),
        "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2",
    ),
)  # fmt: skip


# The authors' modules, as https://github.com/agostini335/MVMAE publishes their code.
MVMAE = Names(
    blocks="transformer.{i}.",
    parts=TIMM.parts,
    patch="patchify",
    cls="cls_token",
    pos="pos_embedding",
    norm="layer_norm",
    decoder="decoders.vision.",
    decoder_blocks="transformer.{i}.",
    head="",
)
# Of attention with qk_norm, in timm's and in the authors' blocks.
QK_NORM = {"q_norm": ("attn.q_norm",), "k_norm": ("attn.k_norm",)}


def norm(ours: str, key: str) -> list[Entry]:
    """A LayerNorm."""
    return [
        Entry(f"{ours}.scale", (f"{key}.weight",)),
        Entry(f"{ours}.bias", (f"{key}.bias",)),
    ]


def layer(ours: str, *keys: str, turn: Turn = LINEAR) -> list[Entry]:
    """A layer of a kernel and a bias; several keys, such as q, k and v, are joined."""
    count = len(keys)
    weights, biases = (tuple(f"{k}.{x}" for k in keys) for x in ("weight", "bias"))
    return [
        Entry(f"{ours}.kernel", weights, joined(count, True) if count > 1 else turn),
        Entry(f"{ours}.bias", biases, joined(count, False) if count > 1 else SAME),
    ]


def blocks(ours: str, prefix: str, names: Names, a: dict) -> list[Entry]:
    """Transformer blocks, `ours`.block_NN; `prefix` holds {i}.

    Args:
      a: the architecture, of which `depth` and `qk_norm` count.
    """
    place = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    place |= {k: f"attn.{k}" for k in QK_NORM} | {"mlp_norm": "mlp.norm"}
    all_parts = names.parts | (QK_NORM if a.get("qk_norm") else {})
    biases = all_parts.pop("qkv_bias", ())
    entries = []
    for i in range(a["depth"]):
        before = prefix.format(i=i)
        for part, keys in all_parts.items():
            name = f"{ours}.block_{i:02d}.{place.get(part, part)}"
            keys = tuple(before + key for key in keys)
            if part in ("ls1", "ls2"):
                entries.append(Entry(name, keys))
            elif part == "qkv" and biases:
                entries.append(layer(name, *keys)[0])
                keys = tuple(before + key for key in biases)
                entries.append(Entry(f"{name}.bias", keys, Q_AND_V_BIAS))
            else:
                entries += (norm if "norm" in part else layer)(name, *keys)
    return entries


def vit(a: dict, names: Names, prefix: str = "") -> list[Entry]:
    """An encoder. `a`: the architecture of a "vit" folder."""
    key = prefix + names.pos
    if a.get("posemb_grid"):
        pos = Entry("encoder.pos_embed", (key,))
    else:
        side = a["image_size"] // a["patch_size"]
        pos = Entry("", (key,), fixed=positions(side, a["width"]))
    entries = [
        Entry("encoder.cls_token", (prefix + names.cls,)),
        pos,
        *encoder_layers(a, names, prefix),
    ]
    if a.get("registers"):
        entries.append(Entry("encoder.registers", (prefix + names.registers,)))
    return entries


def encoder_layers(a: dict, names: Names, prefix: str) -> list[Entry]:
    """An encoder without its CLS token and positions."""
    turn = patch(a.get("channels", 3))
    return [
        *layer("encoder.patch_embed", prefix + names.patch, turn=turn),
        *blocks("encoder", prefix + names.blocks, names, a),
        *norm("encoder.norm", prefix + names.norm),
    ]


def mvmae(a: dict, prefix: str) -> list[Entry]:
    """MVMAE's encoder: positions (n, 1, d), a table of views (v, d)."""
    names = MVMAE
    return [
        Entry("encoder.cls_token", (prefix + names.cls,)),
        *_mvmae_tables("encoder", a, prefix),
        *encoder_layers(a, names, prefix),
    ]


def mvmae_decoder(a: dict, root: str) -> list[Entry]:
    """MVMAE's decoder, which has no projection of the encoder's tokens."""
    key, names = root + MVMAE.decoder, MVMAE
    return [
        Entry("decoder.mask_token", (f"{key}mask_token",)),
        *_mvmae_tables("decoder", a, key),
        *blocks("decoder", key + names.decoder_blocks, names, a),
        *norm("decoder.norm", key + names.norm),
        *layer("decoder.pred", f"{key}head"),
    ]


def _mvmae_tables(ours: str, a: dict, key: str) -> list[Entry]:
    views = Entry(f"{ours}.view_embed", (f"{key}mod_embedding",))
    positions = Entry(f"{ours}.pos_embed", (key + MVMAE.pos,), POSITIONS)
    return [positions, views] if a.get("views") else [positions]


def positions(side: int, width: int) -> np.ndarray:
    """Sin-cos positions as MAE stores them, (1, 1 + n, d): first the CLS token's, 0."""
    patches = sincos_2d((side, side), width)
    return np.concatenate([np.zeros((1, width), np.float32), patches])[None]


def mae_decoder(a: dict, side: int, names: Names, prefix: str = "") -> list[Entry]:
    """MAE's decoder, for a grid of side x side patches."""
    key = prefix + names.decoder
    return [
        Entry("decoder.mask_token", (f"{key}mask_token",)),
        Entry("", (f"{key}decoder_pos_embed",), fixed=positions(side, a["width"])),
        *layer("decoder.embed", f"{key}decoder_embed"),
        *blocks("decoder", key + names.decoder_blocks, names, a),
        *norm("decoder.norm", f"{key}decoder_norm"),
        *layer("decoder.pred", f"{key}decoder_pred"),
    ]


def adapt(table: list[Entry], adapted: Sequence[str]) -> list[Entry]:
    """The table of a peft model: adapted layers are wrapped, their kernels unmerged."""
    out = []
    for entry in table:
        name = entry.ours.removeprefix("encoder.")
        module, _, leaf = name.rpartition(".")
        if module not in adapted:
            out.append(entry)
            continue
        key = entry.keys[0].rpartition(".")[0]
        wrapped = f"{key}.base_layer.{'weight' if leaf == 'kernel' else 'bias'}"
        ours = f"base.{name}" if leaf == "kernel" else entry.ours
        out.append(Entry(ours, (wrapped,), entry.turn))
        if leaf == "kernel":
            for ours, side in ((f"lora.{module}.a", "A"), (f"lora.{module}.b", "B")):
                keys = (f"{key}.lora_{side}.default.weight",)
                out.append(Entry(ours, keys, LINEAR))
    return out


def pacx_heads(a: dict) -> list[Entry]:
    """Stage 2's heads and temperature."""
    out = [Entry("logit_scale", ("loss_module.logit_scale",))]
    for name in a["heads"]:
        out += layer(f"heads.{name}.linear", f"{name}.mlp.1")
        if a["head"] == "linear_ln":
            out += norm(f"heads.{name}.norm", f"{name}.mlp.2")
    return out


def segmentation(a: dict, prefix: str) -> list[Entry]:
    """The decoder of masks: a convolution at 0, transposed ones at 2, 4, ..."""
    out = layer("decoder.conv", f"{prefix}0", turn=CONV2D)
    for i in range(len(a["widths"]) - 1):
        key = f"{prefix}{2 * i + 2}"
        out.append(Entry(f"decoder.up_{i}.kernel", (f"{key}.weight",), UP))
        out.append(Entry(f"decoder.up_{i}_bias", (f"{key}.bias",)))
    return out


def labs_dae(prefix: str) -> list[Entry]:
    """The labs autoencoder."""
    return [
        *layer("encoder.fc1", f"{prefix}encoder.0"),
        *norm("encoder.norm", f"{prefix}encoder.1"),
        *layer("encoder.fc2", f"{prefix}encoder.3"),
        *layer("decoder.fc1", f"{prefix}decoder.0"),
        *layer("decoder.fc2", f"{prefix}decoder.2"),
    ]


def net1d(a: dict, classes: int, prefix: str = "") -> list[Entry]:
    """ECGFounder. Its batch norms, never executed, are kept under "unused"."""
    table = layer("encoder.stem", f"{prefix}first_conv.conv", turn=CONV1D)
    for s, count in enumerate(a["blocks"]):
        for i in range(count):
            ours = f"encoder.stage_{s}_block_{i}"
            key = f"{prefix}stage_list.{s}.block_list.{i}"
            for c in ("conv1", "conv2", "conv3"):
                table += layer(f"{ours}.{c}", f"{key}.{c}.conv", turn=CONV1D)
            for f in ("se_fc1", "se_fc2"):
                table += layer(f"{ours}.{f}", f"{key}.{f}")
    if classes:
        table += layer("head.linear", f"{prefix}dense")
    return table + [Entry(f"unused.{k}", (prefix + k,)) for k in batch_norms(a)]


def batch_norms(a: dict) -> dict[str, np.ndarray]:
    """Keys of ECGFounder's unused batch norms, with the values that they start from."""
    widths, before = {"first_bn": a["base_filters"]}, a["base_filters"]
    for s, (width, count) in enumerate(zip(a["filters"], a["blocks"], strict=True)):
        for i in range(count):
            key = f"stage_list.{s}.block_list.{i}"
            widths |= {f"{key}.bn1": before, f"{key}.bn2": width, f"{key}.bn3": width}
            before = width
    out = {}
    for key, width in widths.items():
        for leaf, value in (
            ("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)
        ):  # fmt: skip
            out[f"{key}.{leaf}"] = np.full(width, value, np.float32)
        out[f"{key}.num_batches_tracked"] = np.zeros((), np.int64)
    return out
