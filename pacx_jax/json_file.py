"""JSON that others wrote, which may be damaged in any way."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from pacx_jax.types import PacxError


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON in UTF-8, nested too deeply, or no object. The caller
        says in a PacxError what the file is for.
    """
    found = loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} instead of a JSON object")
    return found


def read_own(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """The object in a file that the run itself wrote; PacxError if it is damaged."""
    try:
        return read(path)
    except (OSError, ValueError) as e:
        raise PacxError(f"{path} is damaged ({e}): {remedy}") from None


def loads(text: str) -> Any:
    """json.loads that raises ValueError alone, whatever the text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
