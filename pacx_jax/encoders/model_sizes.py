"""Refuses sizes of a model that would cost more to look at than its file can hold.

The shapes of an architecture are found by tracing it, which takes time for each block
and memory for sin-cos positions, so a config.json of a few bytes could ask for a day.
"""

from __future__ import annotations

from typing import Any

import jax

LARGEST = 2**20  # of any size: no model has one near it


def check(architecture: Any, flat: dict) -> None:
    """Checks a description's numbers before a module is made of them.

    Args:
      architecture: of an encoder or of heads, as its config.json has it.
      flat: name -> array, what its file of weights holds.

    Raises:
      ValueError: what is wrong.
    """
    if not isinstance(architecture, dict):
        raise ValueError("no JSON object")
    for path, value in jax.tree_util.tree_leaves_with_path(architecture):
        if isinstance(value, (int, float)) and not 0 <= value <= LARGEST:  # nor NaN
            raise ValueError(f"{jax.tree_util.keystr(path)} is {value}")
    # Every block has arrays of its own in the file.
    blocks = architecture.get("blocks", [])
    counts = [architecture.get("depth", 0)]
    counts += blocks if isinstance(blocks, list) else []
    for count in counts:
        if type(count) is not int or count > len(flat):
            raise ValueError(f"{count} blocks, in a file of {len(flat)} arrays")
