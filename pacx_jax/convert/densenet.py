"""DenseNets (Huang 2017) in torchvision's keys, which timm and torchxrayvision share.

  densenet      torchvision's and timm's, of colour images
  densenet_xrv  torchxrayvision's, of grey images

Block b, layer l of `features` is denseblock{b}.denselayer{l}; the last norm is norm5,
whatever the number of blocks. Older files write norm.1 and conv.1 for norm1 and conv1.
"""

from __future__ import annotations

import re

from pacx_jax.convert import tables
from pacx_jax.convert.shapes import count_of, shape_of
from pacx_jax.convert.state import CONV2D, Entry
from pacx_jax.errors import PacxError
from pacx_jax.models.densenet import stride

KINDS = {"densenet": 3, "densenet_xrv": 1}  # kind -> channels of its images
ANCHOR = "features.conv0.weight"
IMAGE_SIZE = 224  # pixels, of published ones
# torchxrayvision.datasets.normalize(x, 255) is (2 x / 255 - 1) 1024.
XRV = (0.5,), (1 / 2048,)
EMBEDDING = "mean of the last feature map, after its batch norm and ReLU"
CLASSIFIER = ("classifier.weight", "classifier.bias", "op_threshs")


def renamed(state: dict) -> dict:
    """A state dict with the newer names of layers; PacxError for one that has both."""
    older = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")
    names = {key: older.sub(r"\1\2", key) for key in state}
    if both := [k for k, name in names.items() if k != name and name in state]:
        raise PacxError(f"{both[0]} stands beside {names[both[0]]}: keep one")
    return {names[key]: value for key, value in state.items()}


def infer(kind: str, state: dict, prefix: str) -> dict:
    """The architecture that a state dict has.

    Raises:
      PacxError: keys that are missing or of a wrong shape, images of other channels.
    """
    key = prefix + ANCHOR
    stem, channels, *_ = shape_of(state, key, "stem channels height width")
    block = prefix + "features.denseblock{i}."
    blocks = [
        count_of(state, f"{block.format(i=i + 1)}denselayer{{i}}.")
        for i in range(count_of(state, block))
    ]
    conv2 = f"{block.format(i=1)}denselayer1.conv2.weight"
    a = {
        "image_size": IMAGE_SIZE,
        "channels": channels,
        "patch_size": stride(blocks),
        "stem": stem,
        "growth": shape_of(state, conv2, "growth in height width")[0],
        "blocks": blocks,
    }
    if IMAGE_SIZE % a["patch_size"]:
        raise PacxError(f"it has {len(blocks)} dense blocks, and 4 are the most here")
    check(kind, a)
    return a


def check(kind: str, a: dict) -> None:
    """Refuses an architecture that files of a kind do not have."""
    for name, value in (("channels", KINDS[kind]), ("image_size", IMAGE_SIZE)):
        if a[name] != value:
            other = " or ".join(KINDS.keys() - {kind})
            more = f": --kind={other} may hold it" if name == "channels" else ""
            raise PacxError(f"its {name} is {a[name]}, and {kind} has {value}{more}")


def table(a: dict, prefix: str) -> list[Entry]:
    """A DenseNet without its classifier. `a`: the architecture."""
    layers = {"stem_norm": "norm0", "stem": "conv0", "norm": "norm5"}
    for i, count in enumerate(a["blocks"]):
        if i:
            layers[f"transition_{i}_norm"] = f"transition{i}.norm"
            layers[f"transition_{i}"] = f"transition{i}.conv"
        for j in range(count):
            key = f"denseblock{i + 1}.denselayer{j + 1}"
            for part in ("norm1", "conv1", "norm2", "conv2"):
                layers[f"block_{i}_layer_{j:02d}.{part}"] = f"{key}.{part}"
    out = []
    for ours, key in layers.items():
        ours, key = f"encoder.{ours}", f"{prefix}features.{key}"
        if "norm" not in ours:
            out.append(Entry(f"{ours}.kernel", (f"{key}.weight",), CONV2D))
            continue
        out += tables.norm(ours, key)
        out += [Entry(f"{ours}.{x}", (f"{key}.running_{x}",)) for x in ("mean", "var")]
    return out


def left_out(a: dict, state: dict, prefix: str) -> list[str]:
    """Keys that the encoder does without: its classifier, counters of batch norms."""
    norms = [k for e in table(a, prefix) for k in e.keys if k.endswith("running_var")]
    found = [prefix + name for name in CLASSIFIER]
    found += [k.removesuffix("running_var") + "num_batches_tracked" for k in norms]
    return [key for key in found if key in state]
