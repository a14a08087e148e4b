"""Modalities: what a study may have beside its X-ray. One file each.

A modality is a module that has

  KIND      the kind of model that embeds it (`encoders.kinds`); "" if none does
  REQUIRES  the entries of a raw example that it reads (`input.sources` lists them)
  ARRAYS    the arrays that `load` makes, in the order in which its encoder takes them
  settings(data) -> dict
            the preprocessing of an encoder trained on `config.data`, for its model
            folder
  missing(example) -> bool
            whether this study lacks it
  load(example, name, preprocessing) -> {array: numpy array}
            the arrays of one study, zeros if it is missing; raises PacxError for
            unusable values; `name` names the example in messages

`config.modalities.<name>` chooses one for distillation: a file of this folder, or your
own module by its dotted path in `config.modalities.<name>.module`. A table of
embeddings needs no module (`modalities.table`). docs/extending.md walks through the
vital signs.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError

NAMES = ("ecg", "labs", "vitals")


def get(name: str, module: str = "") -> types.ModuleType:
    """The module of a modality.

    Args:
      module: dotted path of a modality outside the library.

    Raises:
      PacxError: no such modality.
    """
    if module:
        try:
            return importlib.import_module(module)
        except ImportError as e:
            raise PacxError(
                f"config.modalities.{name}.module {module!r} cannot be imported ({e}): "
                "its folder must be on PYTHONPATH"
            ) from None
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise PacxError(
            f"modality {name!r}{hint}: choose {', '.join(NAMES)}, name a module of "
            f"your own in config.modalities.{name}.module, or give an .npz of "
            f"embeddings in config.modalities.{name}.init"
        )
    return importlib.import_module(f"pacx_jax.modalities.{name}")


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads one modality of raw examples.

    Attributes:
      name: the modality's name.
      module: its module.
      preprocessing: that of the encoder that takes the arrays.
      optional: adds `<name>_present`, 1 or 0. Otherwise a study that lacks the
        modality is an error.
    """

    name: str
    module: types.ModuleType
    preprocessing: Mapping[str, Any]
    optional: bool = False

    @property
    def requires(self) -> tuple[str, ...]:
        """The entries that an example must have."""
        return self.module.REQUIRES

    @property
    def fingerprint(self) -> str:
        """Of files besides the data by which it reads; "" without any."""
        return ""

    def load(self, example: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
        """The arrays of one example."""
        missing = self.module.missing(example)
        if missing and not self.optional:
            raise PacxError(f"{name}: it has no {self.name}; remove the row")
        arrays = self.module.load(example, name, self.preprocessing)
        if self.optional:
            arrays[f"{self.name}_present"] = np.float32(not missing)
        return arrays


def reader(name: str, data: Any) -> Reader:
    """The reader of a stage that trains the modality's own encoder.

    Args:
      name: one of NAMES, or the dotted path of a module outside the library.
    """
    module = get(name, name if "." in name else "")
    return Reader(name.rpartition(".")[2], module, module.settings(data))
