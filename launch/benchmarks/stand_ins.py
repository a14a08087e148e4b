"""Stand-ins for ml_collections and einops, where a machine has neither.

On synthetic input the bench needs jax, flax, optax and numpy alone, so that it runs in
an image that was made for something else. Recipes and models use little of these two
packages: that little is here. Where the packages are installed, they are used.
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import types
from typing import Any


def install() -> list[str]:
    """Puts stand-ins where packages are missing; returns the names of these."""
    missing = [n for n in ("ml_collections", "einops") if not _is_there(n)]
    for name in missing:
        module = types.ModuleType(name)
        if name == "einops":
            module.rearrange = rearrange
        else:
            module.ConfigDict = ConfigDict
        sys.modules[name] = module
    return missing


def _is_there(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ImportError:
        return False


class ConfigDict:
    """A dict whose entries are attributes, as recipes use it."""

    def __init__(self, entries: dict[str, Any] | None = None):
        self.update(entries or {})

    def update(self, entries: dict[str, Any] | None = None, **more) -> None:
        """Sets fields; dicts become ConfigDicts."""
        for name, value in ((entries or {}) | more).items():
            setattr(self, name, ConfigDict(value) if isinstance(value, dict) else value)

    def update_from_flattened_dict(self, entries: dict[str, Any]) -> None:
        """Sets fields by dotted names."""
        for name, value in entries.items():
            *parents, last = name.split(".")
            of = self
            for parent in parents:
                of = getattr(of, parent)
            setattr(of, last, value)

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the default."""
        return getattr(self, name, default)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts all the way down."""
        return {
            k: v.to_dict() if isinstance(v, ConfigDict) else v
            for k, v in vars(self).items()
        }

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __contains__(self, name: str) -> bool:
        return name in vars(self)


def rearrange(x, pattern: str, **sizes: int):
    """einops.rearrange of one array: axes are named, split, moved and merged.

    >>> rearrange(np.arange(6), "(a b) -> b a", a=2).shape
    (3, 2)
    """
    before, after = (_groups(side) for side in pattern.split("->"))
    if len(before) != x.ndim:
        raise ValueError(f"{pattern!r} has {len(before)} axes, not {x.ndim}")
    sizes = dict(sizes)
    for group, length in zip(before, x.shape, strict=True):
        known = math.prod(sizes[n] for n in group if n in sizes)
        unknown = [n for n in group if n not in sizes]
        if len(unknown) > 1 or length % known or (not unknown and length != known):
            raise ValueError(f"{pattern!r} does not fit {tuple(x.shape)} with {sizes}")
        sizes |= {n: length // known for n in unknown}
    names = [n for group in before for n in group]
    order = [names.index(n) for group in after for n in group]
    x = x.reshape([sizes[n] for n in names]).transpose(order)
    return x.reshape([math.prod(sizes[n] for n in group) for group in after])


def _groups(side: str) -> list[list[str]]:
    """ "b (h p)" -> [["b"], ["h", "p"]]."""
    return [found.strip("()").split() for found in re.findall(r"\([^)]*\)|\w+", side)]
