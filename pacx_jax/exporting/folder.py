"""The model folder itself, as a format like the others."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from pacx_jax import model_folder, model_heads
from pacx_jax.exporting.source import Source, classifier_of

FILES = {"config.json", "model.safetensors", "README.md", model_heads.FILE}


def write(folder: pathlib.Path, source: Source) -> None:
    """Writes the model folder, head included."""
    model_folder.save(folder, source.model, source.card)


def reopen(folder: pathlib.Path, source: Source) -> Callable:
    """The written folder as a function of uint8 images."""
    model = model_folder.load(folder, "vit")
    return Source(model, classifier_of(model)).expected


def ours(folder: pathlib.Path, name: str, about: str) -> set[str]:
    """Names of the files that an export called `name` has put into `folder`."""
    try:
        if name == "safetensors":
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return FILES if {"kind", "architecture"} <= config.keys() else set()
        written = json.loads((folder / about).read_text(encoding="utf-8"))
        return set(written["files"]) if written["format"] == name else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
