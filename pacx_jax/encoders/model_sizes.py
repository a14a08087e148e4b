"""Refuses sizes of a model that would cost more to look at than its file can hold.

The shapes of an architecture are found by tracing it, which takes time for each block
and memory for sin-cos positions, so a config.json of a few bytes could ask for a day.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LARGEST = 2**20  # of any size: no model has one near it
LARGEST_POSITIONS = 2**26  # numbers: 65,536 tokens of width 1024


def check(kind: str, architecture: Any, flat: dict) -> None:
    """Checks the architecture of an encoder before its module is made.

    Args:
      kind: of the model folder.
      architecture: as its config.json has it.
      flat: name -> array, what its file of weights holds.

    Raises:
      ValueError: what is wrong.
    """
    _check_numbers(architecture, flat)
    if kind == "vit":
        a = {k: architecture[k] for k in ("image_size", "patch_size", "width")}
        if not all(type(value) is int and value > 0 for value in a.values()):
            raise ValueError(f"{a} must be whole numbers above 0")
        if (a["image_size"] // a["patch_size"]) ** 2 * a["width"] > LARGEST_POSITIONS:
            raise ValueError(f"{a} make too many positions")
    elif kind == "labs_dae" and type(architecture["features"]) is not int:
        raise ValueError("features must be a whole number")


def check_heads(kind: str, architecture: Any, flat: dict) -> None:
    """The same of what stands beside an encoder, such as a decoder of many blocks."""
    _check_numbers(architecture, flat)
    if kind in ("classify", "ecg") and not isinstance(architecture["labels"], list):
        raise ValueError("labels must be a list of names")


def _check_numbers(architecture: Any, flat: dict) -> None:
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
