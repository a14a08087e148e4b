"""A recipe's real train step with shapes for arguments: no data, no weights, no device.

What a run would load decides shapes too: encoders' sizes and the arrays of a batch.
Encoders that the config does not name are written as folders of zeros in the published
sizes; a batch's arrays come from the recipe's own transform, on one example made here.
"""

from __future__ import annotations

import dataclasses
import io
import math
import operator
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from configs import ecg_net1d, labs_dae, mae_vitb16
from pacx_jax import objectives, optim, sharding, step
from pacx_jax.encoders import model_folder
from pacx_jax.input import transforms
from pacx_jax.run import setup
from pacx_jax.types import Objective

# Number of labels of recipes that take them from the data: CheXpert's, ECGFounder's.
LABELS = {"classify": 14, "ecg": 150}
_RECIPES = {"vit": mae_vitb16, "ecg_net1d": ecg_net1d, "labs_dae": labs_dae}
FOLDERS = {  # objective -> config field -> kind of the encoder it names
    "distill": {
        "model_init": "vit",
        "modalities.ecg.init": "ecg_net1d",
        "modalities.labs.init": "labs_dae",
    },
    "classify": {"model_init": "vit"},
    "segment": {"model_init": "vit"},
}


def completed(config, directory: str) -> ml_collections.ConfigDict:
    """config with encoders and labels, where a run would take them from elsewhere.

    Args:
      directory: where folders of zeros are written.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    for field, kind in FOLDERS.get(config.objective, {}).items():
        if not operator.attrgetter(field)(config):
            folder = zero_folder(kind, directory, config.data)
            config.update_from_flattened_dict({field: folder})
    if not config.data.label_columns:
        n = LABELS.get(config.objective, 0)
        config.data.label_columns = tuple(f"label_{i}" for i in range(n))
    return config


def zero_folder(kind: str, directory: str, data, preset: str = "") -> str:
    """Writes an encoder of zeros with the sizes of its recipe; returns its folder.

    Args:
      kind: one of `kinds.KINDS`.
      data: image size, mean and std of the run that reads it.
      preset: the recipe's argument, such as "runlocal".
    """
    config = _RECIPES[kind].get_config(preset)
    if kind == "vit":
        config.data.image_size = data.image_size
        for name in ("mean", "std"):
            config.data[name] = tuple(data[name]) or tuple(config.data[name])
    objective = objectives.make(config, sharding.make_mesh(1))
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    target = str(pathlib.Path(directory) / kind)
    model = objectives.load(config.objective).export(config, params, None)
    model = dataclasses.replace(model, heads=None)
    model_folder.save(target, model, "Zeros, for shapes alone.\n")
    return target


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted step that is ready to be lowered.

    Attributes:
      function: state, batch and key -> what the run's own step gives.
      args: the abstract ones.
      loss: (params, batch, key) -> the loss alone, to tell forward from backward.
      params: abstract, trained and frozen.
      mesh: of the devices it is for.
      fixed: bytes of its state on one of them, which no batch changes.
    """

    function: Callable
    args: tuple
    loss: Callable
    params: Any
    mesh: Mesh
    fixed: int


def train_step(config, devices) -> Step:
    """The train step of a completed config, as `setup.assemble` makes it.

    Raises PacxError if batch or mesh do not fit the devices.
    """
    mesh, objective = setup.place(config, devices)
    tx = optim.make(optim.settings(config), config.total_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(objective.init, key)

    def loss(params, batch, key):
        with sharding.tracing(mesh):
            return objective.loss(params, batch, key, train=True)

    with sharding.tracing(mesh):
        state = jax.eval_shape(lambda p: step.make_state(p, objective, tx), params)
    shardings = sharding.tree_shardings(state, mesh)
    accumulate = config.get("accumulate", 1)
    update = step.make_train_step(objective, tx, mesh, shardings, accumulate)
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    fixed = sum(math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize for a, s in leaves)
    args = state, batch(config, objective), key
    return Step(update, args, loss, params, mesh, fixed)


def resized(config, rows: int) -> ml_collections.ConfigDict:
    """config with another global batch."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.global_batch_size = rows
    return config


def batch(config, objective: Objective) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a global training batch, as `batches.Data` makes them."""
    make = transforms.make(
        config.data.transform,
        config.data,
        train=True,
        entries=objective.entries,
        readers=objective.readers,
    )
    widths = {f"{m}_embedding": t.width for m, t in objective.teachers.items()}
    found: dict[str, Any] = dict(make(_example(config), np.random.default_rng(0)))
    found |= {name: np.zeros(width, np.float32) for name, width in widths.items()}
    rows = config.global_batch_size
    return {
        name: jax.ShapeDtypeStruct((rows, *np.shape(value)), jnp.asarray(value).dtype)
        for name, value in found.items()
    }


def _example(config) -> dict[str, Any]:
    side, png = config.data.image_size, io.BytesIO()
    features = config.model.features if config.objective == "labs_dae" else 50
    pixels = np.zeros((side, side), np.uint8)
    pixels[: side // 2] = 255
    PIL.Image.fromarray(pixels).save(png, "PNG")
    signal = np.random.default_rng(0).standard_normal((5000, 12))
    return {
        "image": png.getvalue(),
        "mask": png.getvalue(),
        "ecg": signal.astype(np.float32),
        "labs": np.zeros(features, np.float32),
        "labs_mask": np.ones(features, np.float32),
        "labels": np.zeros(len(config.data.label_columns), np.float32),
    }
