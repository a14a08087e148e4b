"""A recipe's real train step with shapes for arguments: no data, no weights, no device.

Encoders that the config does not name are written as folders of zeros in the published
sizes; a batch's arrays come from the recipe's own transform, on one example made here.
"""

from __future__ import annotations

import dataclasses
import io
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import PIL.Image
import tokenizers
from jax.sharding import Mesh

from configs import ecg_net1d, labs_dae, mae_vitb16, vq_f16
from pacx_jax import objectives, optim, sharding, step
from pacx_jax.encoders import model_folder
from pacx_jax.input import tokenizer, transforms
from pacx_jax.run import setup
from pacx_jax.types import Objective

# Number of labels of recipes that take them from the data: CheXpert's, ECGFounder's.
LABELS = {"classify": 14, "ecg": 150}
WORDS = 30_522  # tokens of a vocabulary, where a recipe names no tokenizer
_VIT = {"model_init": mae_vitb16}
ENCODERS = {  # objective -> config field -> recipe of the encoder that it names
    "distill": {
        **_VIT,
        "modalities.ecg.init": ecg_net1d,
        "modalities.labs.init": labs_dae,
    },
    "classify": _VIT,
    "segment": _VIT,
    "unified": {"vq_init": vq_f16},
}


def completed(config, directory: str, preset: str = "") -> ml_collections.ConfigDict:
    """config with encoders and labels, where a run would take them from elsewhere.

    Args:
      directory: where folders of zeros are written, in the sizes of their recipes.
      preset: the recipes' argument, such as "runlocal".
    """
    config = ml_collections.ConfigDict(config.to_dict())
    for field, recipe in ENCODERS.get(config.objective, {}).items():
        if operator.attrgetter(field)(config):
            continue
        other = recipe.get_config(preset)
        if recipe in (mae_vitb16, vq_f16):
            other.data.image_size = config.data.image_size or other.data.image_size
        if recipe is mae_vitb16:
            for name in ("mean", "std"):
                other.data[name] = tuple(config.data[name]) or tuple(other.data[name])
        objective = objectives.make(other, sharding.make_mesh(1))
        shapes = jax.eval_shape(objective.init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        model = objectives.load(other.objective).export(other, params, None)
        folder = f"{directory}/{field}"
        model_folder.save(folder, dataclasses.replace(model, heads=None), "Zeros.\n")
        config.update_from_flattened_dict({field: folder})
    config = model_folder.with_image_size(config)
    if config.data.get("tokenizer") == "":
        config.data.tokenizer = f"{directory}/tokenizer.json"
        _write_tokenizer(config.data.tokenizer)
    if not config.data.label_columns:
        n = LABELS.get(config.objective, 0)
        config.data.label_columns = tuple(f"label_{i}" for i in range(n))
    return config


def _write_tokenizer(path: str) -> None:
    """A tokenizer of WORDS tokens without meaning."""
    words = [*tokenizer.SPECIAL, *map(str, range(WORDS - len(tokenizer.SPECIAL)))]
    vocabulary = {word: i for i, word in enumerate(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token=tokenizer.SPECIAL[1])
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(list(tokenizer.SPECIAL))
    made.save(path)


def train_step(config, devices) -> tuple[Callable, tuple, Mesh]:
    """A completed config's jitted step, its abstract arguments, and the devices' mesh.

    As `setup.assemble` makes it. PacxError where batch or mesh do not fit the devices.
    """
    mesh, objective = setup.place(config, devices)
    tx = optim.make(optim.settings(config), config.total_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def init(key):
        return step.make_state(objective.init(key), objective, tx)

    with sharding.tracing(mesh):
        state = jax.eval_shape(init, key)
    shardings = sharding.tree_shardings(state, mesh)
    accumulate = config.get("accumulate", 1)
    update = step.make_train_step(objective, tx, mesh, shardings, accumulate)
    return update, (state, _batch(config, objective), key), mesh


def _batch(config, objective: Objective) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a global training batch, as `batches.Data` makes them."""
    image, data = io.BytesIO(), config.data
    pixels = np.linspace(0, 255, data.image_size**2).astype(np.uint8)
    PIL.Image.fromarray(pixels.reshape(data.image_size, -1)).save(image, "PNG")
    features = config.model.features if config.objective == "labs_dae" else 50
    rng = np.random.default_rng(0)
    example = {
        "image": image.getvalue(),
        "images": [image.getvalue()],
        "views": ["PA"],
        "findings": "1 2 3",
        "impression": "1 2 3",
        "mask": image.getvalue(),
        "ecg": rng.standard_normal((5000, 12)).astype(np.float32),
        "labs": np.zeros(features, np.float32),
        "labs_mask": np.ones(features, np.float32),
        "labels": np.zeros(len(data.label_columns), np.float32),
    }
    entries, readers = objective.entries, objective.readers
    make = transforms.make(
        data.transform, data, train=True, entries=entries, readers=readers
    )
    found = dict(make(example, rng))
    for name, teacher in objective.teachers.items():
        found[f"{name}_embedding"] = np.zeros(teacher.width, np.float32)
    return {
        name: jax.ShapeDtypeStruct(
            (config.global_batch_size, *np.shape(value)), jnp.asarray(value).dtype
        )
        for name, value in found.items()
    }
