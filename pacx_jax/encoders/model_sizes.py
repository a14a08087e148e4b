"""Refuses sizes of a model that would cost more to look at than its file can hold.

The shapes of an architecture are found by tracing it, which takes time for each block
and memory for sin-cos positions, so a config.json of a few bytes could ask for a day.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    for name, value in _numbers(architecture, ""):
        if isinstance(value, bool):
            continue
        if not 0 <= value <= LARGEST:  # NaN is neither
            raise ValueError(f"{name} is {value}")
    # Every block has arrays of its own in the file.
    blocks = architecture.get("blocks", [])
    counts = [architecture.get("depth", 0)]
    counts += blocks if isinstance(blocks, list) else []
    for count in counts:
        if type(count) is not int or count > len(flat):
            raise ValueError(f"{count} blocks, in a file of {len(flat)} arrays")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every number in a JSON value, and where it stands."""
    if isinstance(value, (int, float)):
        yield name, value
    elif isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
