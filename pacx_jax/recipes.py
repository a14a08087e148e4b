"""The recipes of configs/ as functions that give a run's configuration.

  recipes.mae_vitb16()                                     its recommended values
  recipes.mae_vitb16("runlocal", **{"data.path": "DIR"})   a preset, and a field
  recipes.names()                                          what there is

Fields are those that --config.FIELD=VALUE sets; `print(config)` lists them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_collections

from pacx_jax.errors import PacxError
from pacx_jax.run import clone, fingerprints, recipe_flags


def names() -> list[str]:
    """Names of the recipes."""
    return clone.recipes()


def get(
    name: str, presets: str | None = None, **fields: Any
) -> ml_collections.ConfigDict:
    """The configuration of a recipe.

    Args:
      name: one of `names`.
      presets: as after --config=NAME:, such as "runlocal" or "reference,runlocal".
      fields: dotted name -> value.

    Returns:
      ml_collections.ConfigDict, for `pacx_jax.train`.

    Raises:
      PacxError: no such recipe, preset or field, or a value of another type.
    """
    if name not in names():
        near = recipe_flags.nearest(name, names())
        hint = f"did you mean {near}?" if near else f"have {', '.join(names())}"
        raise PacxError(f"recipe {name!r}: {hint}")
    try:
        config = clone.module(f"configs.{name}").get_config(presets)
    except ValueError as e:
        raise PacxError(f"recipe {name}: {e}") from None
    known = fingerprints.flat(config.to_dict())
    for field, value in fields.items():
        if field not in known:
            near = recipe_flags.nearest(field, list(known))
            hint = f"did you mean {near}?" if near else "print the recipe to see them"
            raise PacxError(f"recipe {name}: no field {field!r}: {hint}")
        value = tuple(value) if isinstance(value, list) else value
        try:
            config.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as e:
            was = f"{type(known[field]).__name__}, as {known[field]!r} is"
            raise PacxError(f"recipe {name}: {field}={value!r}: give {was}") from e
    return config


_USE = """
Args:
  presets: as after --config={name}:, such as "runlocal".
  fields: dotted name -> value.

Returns:
  ml_collections.ConfigDict, for `pacx_jax.train`.

Example:
  config = recipes.{name}("runlocal", **{{"total_steps": 100}})
"""


@functools.cache
def _function(name: str) -> Callable[..., ml_collections.ConfigDict]:
    """`get` of one recipe, with the recipe's own docstring for `help`."""

    def recipe(presets: str | None = None, **fields: Any) -> ml_collections.ConfigDict:
        return get(name, presets, **fields)

    recipe.__name__ = recipe.__qualname__ = name
    about = clone.module(f"configs.{name}").__doc__
    recipe.__doc__ = f"{about}{_USE.format(name=name)}"
    return recipe


def __getattr__(name: str) -> Callable[..., ml_collections.ConfigDict]:
    if name.startswith("_") or name not in names():
        raise AttributeError(
            f"module {__name__!r} has no recipe {name!r}; it has {', '.join(names())}"
        )
    return _function(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *names()})
