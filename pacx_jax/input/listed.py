"""A published list of the examples that keep their labels: `data.subset_list`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import names, tables
from pacx_jax.stores import staging

_TABLES = (".csv", ".tsv")
FIELD = "data.subset_list"


def read(path: str) -> list[str]:
    """The ids of a list, each once, in its order.

    One id a line; a `.csv` or `.tsv` with a column of paths (`tables.ROLES`), or one
    column; or a `.json` list of texts. An id is an image's path or name, with or
    without extension.

    Raises:
      PacxError: no such file, no ids in it, or a table without that column.
    """
    near = staging.local(path, setting=FIELD)
    if not near.is_file():
        raise PacxError(f"{FIELD} {path}: no such file")
    if near.suffix.lower() in _TABLES:
        table = tables.read_table(near)
        column = tables.columns(table, {})["path"]
        if not column and len(table.columns) == 1:
            column = table.columns[0]
        if not column:
            raise PacxError(
                f"{FIELD} {path}: no column of paths or names "
                f"({tables.ROLES['path'][0]}); it has {', '.join(table.columns)}"
            )
        found = table.column(column, FIELD)
    elif near.suffix.lower() == ".json":
        found = _texts(path, near)
    else:
        found = files.read_bytes(near).decode("utf-8-sig", "replace").splitlines()
    ids = list(dict.fromkeys(text.strip() for text in found if text.strip()))
    if not ids:
        raise PacxError(f"{FIELD} {path}: no ids in it; give one a line")
    return ids


def _texts(path: str, near: pathlib.Path) -> list[str]:
    try:
        found = files.parse_json(near.read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
            raise ValueError(f"not a list of texts: {json.dumps(found)[:80]}")
    except (OSError, ValueError) as error:
        raise PacxError(f"{FIELD} {path}: {error}") from None
    return found


def rows(
    path: str, ids: Sequence[str], paths: Sequence[str], split: str
) -> tuple[np.ndarray, str]:
    """Places of the listed examples, sorted, and a line on what was found.

    Args:
      path: of the list, for messages.
      ids: what it has.
      paths: of the split's examples; a name fits in any folder and any extension.
      split: the split's name.

    Raises:
      PacxError: no id is in the split, or one fits two of its examples.
    """
    place = {p: i for i, p in enumerate(paths)}
    known = names.Names(list(paths))
    found, missing = set(), []
    for text in ids:
        fits = known.at(text)
        if len(fits) > 1:
            raise PacxError(
                f"{FIELD} {path}: {text!r} is both {fits[0]} and {fits[1]} in the "
                f"{split} split; give paths"
            )
        if fits:
            found.add(place[fits[0]])
        else:
            missing.append(text)
    if not found:
        raise PacxError(
            f"{FIELD} {path}: none of its {len(ids):,} ids is in the {split} split; "
            f"its first is {ids[0]!r}, the split's {paths[0]!r}"
        )
    told = f"{FIELD} {path}: {len(found):,} of {len(paths):,} {split} examples keep "
    told += "their labels"
    if missing:
        told += f"; {len(missing):,} of its {len(ids):,} ids are NOT in the split, the "
        told += f"first is {missing[0]!r}"
    return np.array(sorted(found)), told
