"""Objectives: what each stage trains. One module each, also from outside the library.

An objective is a module that has

  make(config, mesh) -> Objective
      builds the parameters, the loss and the evaluation, see `types.Objective`;
  export(config, params, labels) -> ModelFolder
      exports the trained encoder, with its heads if it keeps any; `labels` are the
      names of a classifier's outputs, None if the run has none;
  SHOWN
      names the validation metrics to print and to write on the model card.
  about(config) -> str
      if there, gives what the model card says besides; "" for nothing.

`config.objective` names it: one of MODULES, or the dotted path of your own module, such
as `my_package.my_objective`. docs/extending.md has an example.
"""

from __future__ import annotations

import difflib
import importlib
import types

from jax.sharding import Mesh

from pacx_jax.errors import PacxError
from pacx_jax.types import Objective

MODULES = ("mae", "mvmae", "labs_dae", "ecg", "distill", "classify", "segment", "vq")
MODULES += ("unified",)
_PARTS = ("make", "export", "SHOWN")


def make(config, mesh: Mesh) -> Objective:
    """The objective that `config.objective` names, on the devices of `mesh`."""
    return load(config.objective).make(config, mesh)


def load(name: str) -> types.ModuleType:
    """The module of an objective.

    Raises:
      PacxError: no such objective, or its module lacks a part.
    """
    if name in MODULES:
        return importlib.import_module(f"pacx_jax.objectives.{name}")
    if "." not in name:
        near = difflib.get_close_matches(name, MODULES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise PacxError(
            f"config.objective {name!r}{hint}: choose {', '.join(MODULES)}, or name a "
            "module of your own by its dotted path"
        )
    try:
        module = importlib.import_module(name)
    except ImportError as e:
        raise PacxError(
            f"config.objective {name!r} cannot be imported ({e}): its folder must be "
            "on PYTHONPATH"
        ) from None
    missing = [part for part in _PARTS if not hasattr(module, part)]
    if missing:
        raise PacxError(
            f"config.objective {name!r}: {module.__file__} has no {', '.join(missing)} "
            "(pacx_jax/objectives/__init__.py says what an objective has)"
        )
    return module
