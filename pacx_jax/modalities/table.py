"""Teachers from a table of embeddings, made by any model, as a modality.

An .npz file with

  id         (n,) text or integers: studies, patients (in any form that
             pacx_jax/input/patients.py makes one) or images, see `by`
  embedding  (n, d) numbers: row i belongs to id i; a row of NaN is unusable

`config.modalities.<name>.init` names it. The output of pacx_jax.embed is one too: its
`path` replaces `id`, by image.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import patients

BY = ("patient", "study", "image")
_STUDY = ("study_id", "hadm_id")  # entries that name an example's study


@dataclasses.dataclass(frozen=True)
class Table:
    """Embeddings by id.

    Attributes:
      name: the modality's name.
      path: the file.
      by: what an id names, one of BY.
      rows: id -> row of `embedding`.
      embedding: float32 (n, d).
    """

    name: str
    path: str
    by: str
    rows: dict[str, int]
    embedding: np.ndarray

    @property
    def width(self) -> int:
        """d, the length of an embedding."""
        return self.embedding.shape[1]

    def of(self, source) -> np.ndarray:
        """(len(source), d): each example's embedding, -inf where the table has none.

        Raises:
          PacxError: no example of the source is in the table, or examples of two sets
            of a mixture are one row.
        """
        named = list(ids(source, self.by))
        found = np.full((len(named), self.width), -np.inf, np.float32)
        known = [(i, self.rows[key]) for i, key in enumerate(named) if key in self.rows]
        if not known:
            example = next(iter(self.rows))
            raise PacxError(
                f"{self.path}: none of its {len(self.rows)} ids (the first: {example}) "
                f"is a {self.by} of the {source.split} split (the first: {named[0]}): "
                f"check config.modalities.{self.name}.by, one of {', '.join(BY)}"
            )
        places, rows = np.array(known).T
        if hasattr(source, "sets") and self.by != "patient":
            numbers, first = source.set_numbers(), {}
            for i in places:
                if first.setdefault(named[i], numbers[i]) != numbers[i]:
                    raise PacxError(
                        f"{self.path}: id {named[i]} names examples of several sets, "
                        f"such as {source.name(int(i))}: train on one of these sets, "
                        f"or set config.modalities.{self.name}.by=patient"
                    )
        found[places] = self.embedding[rows]
        return found


def load(name: str, path: str, by: str) -> Table:
    """Reads and checks a table.

    Raises:
      PacxError: the file is missing or has another form, ids are missing or repeated,
        or no row is usable.
    """
    if by not in BY:
        raise PacxError(f"config.modalities.{name}.by {by!r}: choose {', '.join(BY)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            key = "id" if "id" in file else "path"
            if not {key, "embedding"} <= set(file):
                raise ValueError(f"it holds {', '.join(file) or 'nothing'}")
            ids, embedding = file[key], file["embedding"]
        if ids.dtype.kind == "S":
            ids = np.char.decode(ids, "utf-8")
    except (
        *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        TypeError,  # a .npy file
    ) as e:
        reason = " ".join(str(e).split())[:200]
        raise PacxError(
            f"{path}: no table of embeddings ({reason}): give an .npz of id (n,) and "
            "embedding (n, d)"
        ) from None
    if key == "path" and by != "image":
        raise PacxError(
            f"{path} names images (`path`): set config.modalities.{name}.by=image, or "
            "give an .npz whose ids are of patients or studies"
        )
    if ids.ndim != 1 or embedding.ndim != 2 or len(ids) != len(embedding):
        raise PacxError(
            f"{path}: id of shape {ids.shape} and embedding of shape "
            f"{embedding.shape}: give (n,) and (n, d)"
        )
    if ids.dtype.kind not in "iuU" or embedding.dtype.kind not in "fiu":
        raise PacxError(
            f"{path}: id of dtype {ids.dtype} and embedding of dtype "
            f"{embedding.dtype}: give text or integers, and numbers"
        )
    form = str.strip if by == "image" else patients.canonical
    names = [form(str(i)) for i in ids]
    if "" in names:
        raise PacxError(f"{path}: id {names.index('')} (from 0) is empty: name it")
    rows = dict(zip(names, range(len(names)), strict=True))
    if len(rows) < len(names):
        twice = next(n for i, n in enumerate(names) if rows[n] != i)
        raise PacxError(
            f"{path}: {len(names) - len(rows)} ids occur more than once, such as "
            f"{twice}: give one embedding for each"
        )
    embedding = np.asarray(embedding, np.float32)
    usable = np.isfinite(embedding).all(axis=1)
    if not usable.any():
        raise PacxError(f"{path}: no row of embedding is finite")
    embedding = np.where(usable[:, None], embedding, np.nan)
    return Table(name, path, by, rows, embedding)


def ids(source, by: str):
    """The id that `by` names for every example of a source, "" if unknown.

    Those of patients and studies are in the form of `input.patients.canonical`.
    """
    if by == "patient":
        named = source.patients()
        if named is None:
            raise PacxError(
                f"the {source.split} split names no patients: give a table by study or "
                "image (config.modalities.<name>.by)"
            )
        yield from map(patients.canonical, named)
        return
    for i in range(len(source)):
        try:
            example = source[i]
        except PacxError:  # unreadable: training leaves it out and lists it
            yield ""
            continue
        yield _study(example) if by == "study" else str(example.get("path", ""))


def _study(example: dict[str, Any]) -> str:
    """The study or admission of an example; else the folder that its image lies in."""
    for entry in _STUDY:
        if known := patients.canonical(example.get(entry, "")):
            return known
    path = str(example.get("path", ""))
    folder = pathlib.PurePosixPath(path).parent.as_posix() if path else ""
    return patients.canonical(folder)
