"""The kinds of encoders that a model folder can hold: one entry each in KINDS.

A new kind is one entry. The folder, its checks and heads, conversion and exports ask
this table and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.encoders import image_statistics
from pacx_jax.errors import PacxError
from pacx_jax.models import (
    densenet,
    ecg,
    labs_dae,
    positions,
    unified,
    unified_encoder,
    vit,
    vq,
)

LARGEST_POSITIONS = 2**26  # numbers: 65,536 tokens of width 1024
PATCHES = ("vit", "unified")  # kinds that see an X-ray as patches, each a token
XRAY = (*PATCHES, "densenet")  # kinds that embed X-rays
MOST_HALVINGS = 8  # of a tokenizer's images: a token of 256 pixels a side
MOST_BLOCKS = 256  # of a tokenizer


@dataclasses.dataclass(frozen=True)
class Kind:
    """How to make an encoder from its description in a folder's config.json.

    Attributes:
      module: (architecture, dtype) -> linen module.
      inputs: architecture -> shapes of the module's inputs, for one example.
      width: architecture -> length of the embedding.
      about: one sentence for the model card.
      check: architecture -> None; raises ValueError for sizes that would cost more to
        look at than the file can hold. The folder's own checks come before.
      check_preprocessing: (path, preprocessing, architecture) -> None; raises
        PacxError.
    """

    module: Callable[[dict, Any], nn.Module]
    inputs: Callable[[dict], tuple[jax.ShapeDtypeStruct, ...]]
    width: Callable[[dict], int]
    about: str
    check: Callable[[dict], None] = lambda architecture: None
    check_preprocessing: Callable[[Any, dict, dict], None] = lambda *args: None


def of(name: str) -> Kind:
    """The entry of a kind; PacxError for a name that is none."""
    if not isinstance(name, str) or name not in KINDS:
        raise PacxError(f"model kind {name!r} is none of {', '.join(KINDS)}")
    return KINDS[name]


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def _vit(architecture: dict, dtype) -> vit.ViT:
    fields = {k: v for k, v in architecture.items() if k != "image_size"}
    for name in ("posemb_grid", "rotary_grid"):
        fields[name] = tuple(fields.get(name, ()))
    return vit.ViT(**fields, dtype=dtype)


def _net1d(architecture: dict, dtype) -> ecg.Net1D:
    lists = {k: tuple(architecture[k]) for k in ("filters", "blocks")}
    return ecg.Net1D(**(architecture | lists), dtype=dtype)


def _labs_encoder(architecture: dict, dtype) -> labs_dae.Encoder:
    del dtype  # float32: it takes no time
    fields = {k: v for k, v in architecture.items() if k != "features"}
    return labs_dae.Encoder(**fields)


def _check_vit(architecture: dict) -> None:
    # Sin-cos positions are made when shapes are traced.
    channels = architecture.get("channels", 3)
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}: 1 or 3")
    a = {k: architecture[k] for k in ("image_size", "patch_size", "width")}
    registers = architecture.get("registers", 0)
    if type(registers) is not int or registers < 0:
        raise ValueError(f"registers is {registers!r}: a whole number")
    if not all(type(value) is int and value > 0 for value in a.values()):
        raise ValueError(f"{a} must be whole numbers above 0")
    tokens = (a["image_size"] // a["patch_size"]) ** 2 + registers
    if tokens * a["width"] > LARGEST_POSITIONS:
        raise ValueError(f"{a} make too many positions")
    grid = architecture.get("rotary_grid", [])
    if grid and not (len(grid) == 2 and all(type(n) is int and n > 0 for n in grid)):
        raise ValueError(f"rotary_grid is {grid!r}: two whole numbers above 0")
    for name, choices in (
        ("pool", vit.POOLS),
        ("posemb_resampling", positions.RESAMPLING),
    ):
        if architecture.get(name, choices[0]) not in choices:
            raise ValueError(f"{name} is {architecture[name]!r}: {', '.join(choices)}")


def _check_vq(architecture: dict) -> None:
    levels = [architecture[name] for name in ("widths", "blocks")]
    if not all(isinstance(level, list) for level in levels):
        raise ValueError("widths and blocks must be lists")
    sizes = [architecture[name] for name in ("image_size", "codes", "code_width")]
    if not all(type(n) is int and n > 0 for n in (*levels[0], *levels[1], *sizes)):
        raise ValueError(f"{architecture} must be whole numbers above 0")
    if len(levels[0]) != len(levels[1]) or not 0 < len(levels[0]) <= MOST_HALVINGS:
        raise ValueError(f"widths {levels[0]} and blocks {levels[1]} do not match")
    if architecture["channels"] not in (1, 3):
        raise ValueError(f"channels is {architecture['channels']!r}: 1 or 3")
    if architecture["image_size"] % 2 ** len(levels[0]):
        raise ValueError(
            f"image_size {architecture['image_size']} is not divisible by "
            f"{2 ** len(levels[0])}"
        )


def _check_unified(architecture: dict) -> None:
    a = architecture
    if not isinstance(a["vq"], dict):
        raise ValueError("vq must be an image tokenizer's description")
    _check_vq(a["vq"])
    if sum(a["vq"]["blocks"]) > MOST_BLOCKS:
        raise ValueError(f"vq.blocks {a['vq']['blocks']} are too many")
    numbers = ("image_size", "channels", "patch_size", "length", "width", "depth",
               "num_heads", "text_size")  # fmt: skip
    if not all(type(a[name]) is int and a[name] > 0 for name in numbers):
        raise ValueError(f"{', '.join(numbers)} must be whole numbers above 0")
    if any(a[name] != a["vq"][name] for name in ("image_size", "channels")):
        raise ValueError("image_size and channels are not those of vq")
    factor, layers = 2 ** len(a["vq"]["widths"]), a["layers"]
    codes = (a["image_size"] // factor) ** 2
    if a["patch_size"] != factor or a["length"] < codes + 2:
        raise ValueError(
            f"patch_size {a['patch_size']} and length {a['length']}: vq makes {codes} "
            f"codes of {factor} pixels a side"
        )
    if max(a["length"], a["text_size"]) * a["width"] > 8 * LARGEST_POSITIONS:
        raise ValueError("length, text_size and width make too large a table")
    if not (
        isinstance(layers, list)
        and len(layers) == 2
        and all(type(n) is int for n in layers)
        and 0 <= layers[0] < layers[1] <= a["depth"]
    ):
        raise ValueError(f"layers is {layers!r}: [first, last + 1] of {a['depth']}")
    ids = [a[name] for name in ("pad_id", "start_id", "end_id")]
    if not all(type(n) is int and 0 <= n < a["text_size"] for n in ids):
        raise ValueError(f"pad_id, start_id and end_id are {ids}")
    if type(a["tied"]) is not bool or a["positions"] not in unified.POSITIONS:
        raise ValueError(f"tied is {a['tied']!r} and positions {a['positions']!r}")


def _densenet(architecture: dict, dtype) -> densenet.DenseNet:
    names = ("stem", "growth", "channels")
    fields = {k: architecture[k] for k in names}
    return densenet.DenseNet(tuple(architecture["blocks"]), **fields, dtype=dtype)


def _check_densenet(architecture: dict) -> None:
    a, blocks = architecture, architecture["blocks"]
    if not isinstance(blocks, list) or not 0 < len(blocks) <= MOST_HALVINGS:
        raise ValueError(
            f"blocks is {blocks!r}: 1 to {MOST_HALVINGS} numbers of layers"
        )
    sizes = [a[name] for name in ("image_size", "stem", "growth")]
    if not all(type(n) is int and n > 0 for n in (*blocks, *sizes)):
        raise ValueError(f"{a} must be whole numbers above 0")
    if a["channels"] not in (1, 3):
        raise ValueError(f"channels is {a['channels']!r}: 1 or 3")
    cell = densenet.stride(blocks)
    if a["patch_size"] != cell or a["image_size"] % cell:
        raise ValueError(
            f"patch_size {a['patch_size']} and image_size {a['image_size']}: "
            f"{len(blocks)} blocks make cells of {cell} pixels a side"
        )


def _check_labs(architecture: dict) -> None:
    if type(architecture["features"]) is not int:
        raise ValueError("features must be a whole number")


KINDS = {
    "vit": Kind(
        module=_vit,
        inputs=lambda a: (
            _floats(a["image_size"], a["image_size"], a.get("channels", 3)),
        ),
        width=lambda a: a["width"],
        about="A chest-X-ray encoder (Vision Transformer). Its embedding is the CLS "
        "token, or with pool mean the patches' mean, after the final LayerNorm; at "
        "inference only the X-ray is needed.",
        check=_check_vit,
        check_preprocessing=image_statistics.check,
    ),
    "densenet": Kind(
        module=_densenet,
        inputs=lambda a: (_floats(a["image_size"], a["image_size"], a["channels"]),),
        width=lambda a: densenet.width(a["stem"], a["growth"], a["blocks"]),
        about="A chest-X-ray encoder (DenseNet, a convolutional network). Its "
        "embedding is the mean of the last feature map, after its batch norm and ReLU.",
        check=_check_densenet,
        check_preprocessing=image_statistics.check,
    ),
    "ecg_net1d": Kind(
        module=_net1d,
        inputs=lambda a: (_floats(5000, 12),),
        width=lambda a: a["filters"][-1],
        about="An encoder of 12-lead ECGs (a 1-D convolutional network).",
    ),
    "labs_dae": Kind(
        module=_labs_encoder,
        inputs=lambda a: (_floats(a["features"]),) * 2,
        width=lambda a: a["latent"],
        about="The encoder half of a denoising autoencoder of laboratory values.",
        check=_check_labs,
    ),
    "vq": Kind(
        module=vq.module,
        inputs=lambda a: (_floats(a["image_size"], a["image_size"], a["channels"]),),
        width=lambda a: a["code_width"],
        about="A tokenizer of chest X-rays (a convolutional autoencoder with a "
        "codebook): it turns an image into a grid of token numbers, and such a grid "
        "into an image. It gives no embedding of an image.",
        check=_check_vq,
        check_preprocessing=image_statistics.check,
    ),
    "unified": Kind(
        module=unified_encoder.module,
        inputs=lambda a: (_floats(a["image_size"], a["image_size"], a["channels"]),),
        width=lambda a: a["width"],
        about="An early-fusion model of chest X-rays and reports (CheXmix): an image "
        "tokenizer, and one causal transformer over its codes and the report's tokens. "
        "Its embedding is the mean over the image's positions of the outputs of some "
        "layers; it also writes reports and fills in images.",
        check=_check_unified,
        check_preprocessing=image_statistics.check,
    ),
}
