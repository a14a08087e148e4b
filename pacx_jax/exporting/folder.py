"""The model folder itself, as a format like the others."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import flax
import numpy as np

from pacx_jax.encoders import golden, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError
from pacx_jax.exporting.source import Source, classifier_of


def write(folder: pathlib.Path, source: Source) -> None:
    """Writes the model folder, head included."""
    beside = golden.beside(source.model)
    model_folder.save(folder, source.model, source.card, beside)


def reopen(folder: pathlib.Path, source: Source) -> Callable:
    """The written folder as a function of uint8 images."""
    model = check_same(folder, source.model)
    return Source(model, classifier_of(model)).expected


def check_same(folder: pathlib.Path, model: ModelFolder) -> ModelFolder:
    """The written folder, if its arrays are the model's, heads included, bit by bit."""
    written = model_folder.load(folder, model.kind)
    was, found = _arrays(model), _arrays(written)
    wrong = sorted(set(was) ^ set(found))
    wrong += [k for k in was if k in found and was[k].tobytes() != found[k].tobytes()]
    if wrong:
        raise PacxError(
            f"the written folder differs from the model in {', '.join(wrong[:5])}"
        )
    return written


def _arrays(model: ModelFolder) -> dict[str, np.ndarray]:
    flat = flax.traverse_util.flatten_dict(model.params, sep=".")
    flat = {k: np.asarray(v, np.float32) for k, v in flat.items()}
    beside = model.heads.flat() if model.heads else {}
    return flat | {f"heads.{k}": v for k, v in beside.items()}
