"""Images and labels that are arrays of this process, as a source of training.

`data.source="arrays"`, whose `data.path` is "memory:" and what `Arrays.fingerprint`
begins with. They can be opened while `held` is open, in this process alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import patients as ids
from pacx_jax.input import subsets, tables

PREFIX = "memory:"
SPLITS = ("train", "val", "test")
_HELD: dict[str, Arrays] = {}


class Arrays:
    """n images, and what is known of them.

    Args:
      images: uint8 arrays (h, w) or (h, w, 1 or 3) of any sizes, or one (n, h, w) or
        (n, h, w, 3).
      labels: as for `table`; None: there are none.
      patients: n ids; None: each image is split alone.
      splits: n of "train", "val" and "test"; None: drawn by patient (data.val_fraction
        and data.test_fraction), as those of a folder.
      names: of the labels, if `labels` has none.

    Raises:
      PacxError: something of another length, or with other values.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        labels: Any = None,
        patients: Sequence[Any] | None = None,
        splits: Sequence[str] | None = None,
        names: Sequence[str] = (),
    ):
        self.images = [_image(i, image) for i, image in enumerate(images)]
        n = len(self.images)
        if not n:
            raise PacxError("images: there is none; give at least one")
        self.names, self.labels = (), np.zeros((n, 0), np.float32)
        if labels is not None:
            values, self.names = table(labels, names)
            self.labels = values.astype(np.float32)
        for what, given in (("labels", self.labels), ("patients", patients),
                            ("splits", splits)):  # fmt: skip
            if given is not None and len(given) != n:
                raise PacxError(f"{len(given)} {what} for {n} images: give one each")
        self.patients = None
        if patients is not None:
            self.patients = [ids.canonical(who) for who in patients]
        self.splits = None if splits is None else list(map(str, splits))
        if unknown := sorted({*(self.splits or ())} - {*SPLITS}):
            raise PacxError(f"splits: {unknown[0]!r}; give train, val or test")

    @functools.cached_property
    def digests(self) -> list[str]:
        """A hash of each image."""
        return [
            subsets.digest(str(image.shape), image.tobytes()) for image in self.images
        ]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Another one when anything is another."""
        known = (self.patients or ["-"], self.splits or ["-"], self.names)
        text = "\n".join("\t".join(part) for part in known)
        return subsets.digest(text, *self.digests, self.labels.tobytes())

    def places(self, split: str, data: Any) -> list[int]:
        """Which images are of a split."""
        splits = self.splits
        if splits is None:
            groups = self.digests
            if self.patients:
                groups = [
                    who or one for who, one in zip(self.patients, groups, strict=True)
                ]
            fractions = data.val_fraction, getattr(data, "test_fraction", 0.0)
            splits = tables.assign_splits(groups, *fractions)
        return [i for i, name in enumerate(splits) if name == split]


@contextlib.contextmanager
def held(arrays: Arrays) -> Iterator[str]:
    """Within, the arrays can be opened by the `data.path` that this gives."""
    path = PREFIX + arrays.fingerprint[:16]
    _HELD[path] = arrays
    try:
        yield path
    finally:
        del _HELD[path]


class ArraySource:
    """One split of arrays; see `sources.Source`."""

    def __init__(self, data: Any, split: str):
        if data.path not in _HELD:
            raise PacxError(
                f"data.source=arrays, data.path {data.path!r}: the images were in the "
                "memory of another process or call; give them to pacx_jax.train"
            )
        self._arrays = arrays = _HELD[data.path]
        self._places = arrays.places(split, data)
        self.label_names, self.split = arrays.names, split
        self.namespace = ids.FOLDER
        known = bool(arrays.patients)
        nobody = f"{data.path}: {ids.NOBODY.format(what='image')}"
        self.notes = () if known else (nobody,)
        self.entries = ("image", "path")
        self.entries += ("labels",) if self.label_names else ()
        self.entries += ("patient_id",) if known else ()
        places = np.array(self._places, np.int64).tobytes()
        self.fingerprint = subsets.digest(arrays.fingerprint, split, places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> dict[str, Any]:
        at = self._places[i]
        example = {"image": self._arrays.images[at], "path": str(at)}
        if self.label_names:
            example["labels"] = self._arrays.labels[at]
        if self._arrays.patients:
            example["patient_id"] = self._arrays.patients[at]
        return example

    def name(self, i: int) -> str:
        return f"image {self._places[i]}"

    def patients(self) -> list[str] | None:
        """The patient of each example; None where there are none."""
        known = self._arrays.patients
        return [known[at] for at in self._places] if known else None

    def paths(self) -> list[str]:
        """The number of each image, as text."""
        return [str(at) for at in self._places]

    def studies(self) -> None:
        """None: arrays are images alone."""

    def labels(self) -> np.ndarray:
        """float32 (n, c), NaN = missing, -1 = uncertain."""
        return self._arrays.labels[self._places]


def table(labels: Any, names: Sequence[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels in memory as float64 (n, c) of 1, 0, -1 (uncertain), NaN, and their names.

    Args:
      labels: (n,) or (n, c) numbers; or name -> (n,) numbers, such as a dict or a
        pandas DataFrame.
      names: of the c labels; by default those of `labels`, else label_0, ...

    Raises:
      PacxError: other values, with row and column, columns of different lengths, or
        not as many names as columns.
    """
    if isinstance(labels, Mapping) or hasattr(labels, "columns"):
        own = tuple(labels.columns if hasattr(labels, "columns") else labels)
        columns = [np.asarray(labels[name]) for name in own]
        own = tuple(map(str, own))
        if len({len(column) for column in columns}) > 1:
            pairs = zip(own, columns, strict=True)
            counts = ", ".join(f"{k} {len(v)}" for k, v in pairs)
            raise PacxError(f"labels of different lengths: {counts}")
    else:
        array = np.asarray(labels)
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2:
            raise PacxError(f"labels of shape {array.shape}: give (n,) or (n, c)")
        columns = list(array.T)
        own = tuple(f"label_{c}" for c in range(len(columns)))
    names = tuple(names) or own
    if len(names) != len(columns) or not names:
        raise PacxError(f"{len(names)} names for {len(columns)} labels: give one each")
    values = [_column(*pair) for pair in zip(columns, names, strict=True)]
    return np.stack(values, 1), names


def _column(values: np.ndarray, name: str) -> np.ndarray:
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values.tolist()):
        if value is None:
            continue
        good = isinstance(value, bool | int | float)
        if not good or not (value in (0, 1, -1) or value != value):
            raise PacxError(
                f"labels: row {row} of {name!r} is {value!r}; give 1, 0, -1 "
                "(uncertain) or NaN (unknown). One of several classes is one label for "
                "each"
            )
        found[row] = value
    return found


def _image(i: int, image: Any) -> np.ndarray:
    found = np.asarray(image)
    deep = found.ndim == 3 and found.shape[-1] in (1, 3)
    if found.dtype != np.uint8 or not (found.ndim == 2 or deep) or not found.size:
        raise PacxError(
            f"image {i}: an array of dtype {found.dtype} and shape {found.shape}; give "
            "uint8 (h, w) or (h, w, 3), channels last"
        )
    return found
