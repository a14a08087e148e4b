"""Where the recipes, builders and launchers are: in a clone, or inside of the wheel.

configs/, data/ and launch/ are packages of the clone's root. The wheel has them below
pacx_jax/_clone/ (setup.py), so that installing it adds no package named `data` to
anybody's environment. They come onto sys.path only for a command, or while a recipe is
imported.
"""

from __future__ import annotations

import difflib
import importlib
import pathlib
import sys
import types

from pacx_jax.errors import PacxError

_PACKAGE = pathlib.Path(__file__).parents[1]
INSTALLED = _PACKAGE / "_clone"


def root() -> pathlib.Path:
    """The folder that holds configs/, data/ and launch/; PacxError if there is none."""
    for folder in (INSTALLED, _PACKAGE.parent):
        if (folder / "configs" / "base.py").is_file():
            return folder
    raise PacxError(
        f"{_PACKAGE} has no recipes beside it: install the project from its clone, or "
        "from a wheel that was built there by pip wheel --no-deps ."
    )


def on_path() -> pathlib.Path:
    """Puts `root` in front of sys.path, for a command of its own; returns it."""
    folder = root()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder


def recipes() -> list[str]:
    """Names of the recipes."""
    return sorted(
        p.stem
        for p in (root() / "configs").glob("*.py")
        if p.stem not in ("__init__", "base")
    )


def file(given: str) -> str:
    """A path as it is if it is there, else the one in `root`, if that is there."""
    if not pathlib.Path(given).exists() and (root() / given).is_file():
        return str(root() / given)
    return given


def recipe(given: str) -> str:
    """What --config means: a recipe's file, or the name of one of `recipes`.

    Either may end in ":" and presets, as in "mae_vitb16:runlocal". `root` comes onto
    sys.path, as recipes import each other.

    Raises:
      PacxError: neither a file nor a recipe; it names the nearest.
    """
    name, colon, presets = given.partition(":")
    if pathlib.Path(name).is_file():
        return given
    found = pathlib.Path(file(name))
    if name in recipes():
        found = root() / "configs" / f"{name}.py"
    if not found.is_file():
        near = difflib.get_close_matches(pathlib.Path(name).stem, recipes(), 1)
        hint = f"did you mean {near[0]}?" if near else f"have {', '.join(recipes())}"
        raise PacxError(f"--config={name}: no such file, nor a recipe: {hint}")
    on_path()
    return f"{found}{colon}{presets}"


def module(name: str) -> types.ModuleType:
    """Imports one of configs/, whatever else is called `configs` in this process."""
    here, package = str(root()), name.partition(".")[0]
    others = {
        key: found
        for key, found in sys.modules.items()
        if key.partition(".")[0] == package
        and not str(getattr(found, "__file__", "")).startswith(here)
    }
    for key in others:
        del sys.modules[key]
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
        if others:
            ours = [k for k in sys.modules if k.partition(".")[0] == package]
            for key in ours:
                del sys.modules[key]
            sys.modules.update(others)
