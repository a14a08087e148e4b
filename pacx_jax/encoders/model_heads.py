"""What stands beside an encoder in its folder: a decoder, heads, adapters.

`heads.safetensors`, with its description under "heads" in config.json. Classifiers'
runs export it, and calibration.json; other runs export their encoder alone. Converted
checkpoints, and runs exported with their heads, have it too, so that training can go
on from it and PyTorch can get it back.

| kind | parameters |
|---|---|
| mae | decoder (of `models.mae.Decoder`) |
| pacx | heads, logit_scale; lora and base (the adapted kernels before merging) |
| labs_dae | decoder |
| ecg | head; unused (batch norms of the published file, never executed) |
| classify | head |
| segment | decoder (of `models.heads.SegmentationDecoder`) |
"""

from __future__ import annotations

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.models import heads, labs_dae, mae
from pacx_jax.types import Params

FILE = "heads.safetensors"
CALIBRATION = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Heads:
    """Parameters that belong to an encoder and are not needed for its embedding.

    Attributes:
      kind: one of `KINDS`.
      architecture: sizes, and for classifiers `labels`, the names of the outputs.
      params: numpy arrays, float32 (counters of `unused` keep their type).
      calibration: of a classifier, see `evaluate.classifier`; None where there is none.
    """

    kind: str
    architecture: dict
    params: Params
    calibration: dict | None = None

    def flat(self) -> dict[str, np.ndarray]:
        """Name, joined by ".", -> array."""
        flat = flax.traverse_util.flatten_dict(self.params, sep=".")
        flat = {k: np.asarray(v) for k, v in sorted(flat.items())}
        return {
            # safetensors writes a non-contiguous array wrongly, without a word; and
            # ascontiguousarray makes vectors of scalars.
            k: np.ascontiguousarray(
                v, v.dtype if v.dtype.kind == "i" else np.float32
            ).reshape(v.shape)
            for k, v in flat.items()
        }


def shapes(kind: str, architecture: dict, encoder: dict) -> dict[str, tuple]:
    """Name -> shape of all parameters of these heads.

    Args:
      kind, architecture: as in `Heads`.
      encoder: name -> shape of the encoder's parameters, which adapters follow.
    """
    if kind not in KINDS:
        raise PacxError(f"heads of kind {kind!r} are none of {', '.join(KINDS)}")
    tree = flax.traverse_util.flatten_dict(KINDS[kind](architecture), sep=".")
    found = {k: tuple(v.shape) for k, v in tree.items()}
    for name in architecture.get("adapted", ()):
        rank, (d_in, d_out) = architecture["rank"], encoder[f"{name}.kernel"]
        found[f"lora.{name}.a"] = (d_in, rank)
        found[f"lora.{name}.b"] = (rank, d_out)
        found[f"base.{name}.kernel"] = (d_in, d_out)
    return found


def _row(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def _init(module, *args, **kwargs) -> Params:
    def init(key, *args):
        return module.init(key, *args, **kwargs)

    return jax.eval_shape(init, jax.random.key(0), *args)["params"]


def _mae(a: dict) -> Params:
    fields = {k: v for k, v in a.items() if k != "encoder_width"}
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)

    def init(key, tokens, ids):
        return mae.decoder(fields).init(key, tokens, ids, (2, 2))

    args = (jax.random.key(0), _row(3, a["encoder_width"]), ids)
    return {"decoder": jax.eval_shape(init, *args)["params"]}


def _labs_dae(a: dict) -> Params:
    decoder = labs_dae.Decoder(a["features"], a["hidden"])
    return {"decoder": _init(decoder, _row(a["latent"]))}


def _segment(a: dict) -> Params:
    decoder = heads.SegmentationDecoder(tuple(a["widths"]))
    return {"decoder": _init(decoder, _row(1, 1, a["encoder_width"]))}


def _pacx(a: dict) -> Params:
    sizes = a["heads"].items()
    return {
        "heads": {
            name: _init(heads.Head(outputs, a["head"]), _row(inputs), train=False)
            for name, (inputs, outputs) in sizes
        },
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }


def _classifier(a: dict) -> Params:
    if not isinstance(a["labels"], list):
        raise ValueError("labels must be a list of names")
    count = len(a["labels"])
    classifier = heads.LinearClassifier(count)
    return {"head": _init(classifier, _row(a["encoder_width"]))} if count else {}


# Kind -> (architecture -> shapes of its parameters, as a tree).
KINDS = {
    "mae": _mae,
    "pacx": _pacx,
    "labs_dae": _labs_dae,
    "ecg": _classifier,
    "classify": _classifier,
    "segment": _segment,
}
