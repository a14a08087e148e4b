"""What stands beside an encoder in its folder: a decoder, heads, adapters.

`heads.safetensors`, with its description under "heads" in config.json. Runs export
their encoder alone; converted checkpoints, and runs exported with their heads, have
this second file, so that training can go on from it and PyTorch can get it back.

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
KINDS = ("mae", "pacx", "labs_dae", "ecg", "classify", "segment")


@dataclasses.dataclass(frozen=True)
class Heads:
    """Parameters that belong to an encoder and are not needed for its embedding.

    Attributes:
      kind: one of `KINDS`.
      architecture: sizes, and for classifiers `labels`, the names of the outputs.
      params: numpy arrays, float32 (counters of `unused` keep their type).
    """

    kind: str
    architecture: dict
    params: Params

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
    a, key = dict(architecture), jax.random.key(0)

    def row(d):
        return jax.ShapeDtypeStruct((1, d), jnp.float32)

    def of(module, *args, **kwargs):
        def init(key, *args):
            return module.init(key, *args, **kwargs)

        return jax.eval_shape(init, key, *args)["params"]

    if kind == "mae":
        width, grid = a.pop("encoder_width"), (2, 2)
        tokens = jax.ShapeDtypeStruct((1, 3, width), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        decoder = mae.Decoder(**a)
        tree = jax.eval_shape(lambda *x: decoder.init(*x, grid), key, tokens, ids)
        tree = {"decoder": tree["params"]}
    elif kind == "labs_dae":
        module = labs_dae.Decoder(a["features"], a["hidden"])
        tree = {"decoder": of(module, row(a["latent"]))}
    elif kind == "segment":
        tokens = jax.ShapeDtypeStruct((1, 1, 1, a["encoder_width"]), jnp.float32)
        tree = {"decoder": of(heads.SegmentationDecoder(tuple(a["widths"])), tokens)}
    elif kind == "pacx":
        tree = {"heads": {}, "logit_scale": np.zeros(())}
        for name, (inputs, outputs) in a["heads"].items():
            module = heads.Head(outputs, a["head"])
            tree["heads"][name] = of(module, row(inputs), train=False)
    else:
        count = len(a["labels"])
        module = heads.LinearClassifier(count)
        tree = {"head": of(module, row(a["encoder_width"]))} if count else {}
    flat = flax.traverse_util.flatten_dict(tree, sep=".")
    flat = {k: tuple(v.shape) for k, v in flat.items()}
    for name in a.get("adapted", ()):
        d_in, d_out = encoder[f"{name}.kernel"]
        flat[f"lora.{name}.a"] = (d_in, a["rank"])
        flat[f"lora.{name}.b"] = (a["rank"], d_out)
        flat[f"base.{name}.kernel"] = (d_in, d_out)
    return flat
