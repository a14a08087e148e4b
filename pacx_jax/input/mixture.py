"""Several data sets as one: which set each position of the stream is drawn from.

  data.path = '("prepared/chexpert", "prepared/mimic_cxr", "folder:/data/own")'
  data.weights = "size"            each example as often as any other (the default)
                 "size^0.5"        a set as often as the root of its size says
                 "(2, 1, 1)"       shares, in the order of the paths

Labels are joined by name: a set that lacks one has it missing, which losses mask.
Patients of one namespace (input/patients.py) are one patient in whichever set they are.
"""

from __future__ import annotations

import ast
import functools
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import patients, subsets

BLOCK = 1024  # positions, within which every set has its share
_LEAST = 2 / BLOCK
_OPTIONAL = ("patient_id", "labels")  # entries that a set of a mixture may lack


def paths(path: str) -> tuple[str, ...]:
    """The paths that `data.path` names; one that is no tuple is itself alone.

    Raises:
      PacxError: a tuple that cannot be read, is empty or names a path twice.
    """
    if not str(path).lstrip().startswith("("):
        return (path,)
    try:
        found = ast.literal_eval(path)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    found = (found,) if isinstance(found, str) else found
    if not isinstance(found, tuple) or not all(isinstance(p, str) and p for p in found):
        raise PacxError(
            f"data.path {path}: give a path, or several as "
            '\'("prepared/a", "prepared/b", "folder:/data/own")\''
        )
    real = [form[1] for form in map(_real, found)]  # a/, folder:a and a link too
    twice = [p for i, p in enumerate(found) if real[i] in real[:i]]
    if twice or not found:
        problem = f"{twice[0]} stands there twice" if twice else "it names no path"
        raise PacxError(f"data.path {path}: {problem}; name each set once")
    return found


def real(path: str) -> tuple[tuple[str, str], ...]:
    """The kind and folder of each set, the same for all spellings of `data.path`."""
    return tuple(map(_real, paths(path)))


def _real(path: str) -> tuple[str, str]:
    kind, folder = _kind(path)
    return kind, os.path.realpath(folder)


def _kind(path: str) -> tuple[str, str]:
    """The kind that a path of a mixture names, "" for none, and the folder."""
    kind, _, rest = path.partition(":")
    return (kind, rest) if kind in ("folder", "prepared") and rest else ("", path)


class Part:
    """`config.data` as one set of a mixture has it: its own path and kind."""

    def __init__(self, data: Any, path: str):
        kind, self.path = _kind(path)
        self._data = data
        self.source = kind or data.source
        self.weights = "size"  # of the whole mixture too
        self.label_columns = ()  # those of the whole mixture are chosen afterwards
        self.limit = 0
        self.namespace = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def weights(text: Any, sizes: Sequence[int]) -> tuple[float, ...] | None:
    """How much of the stream each set is, 1 in all; None for `size`.

    Args:
      text: `config.data.weights`.
      sizes: number of examples of each set.

    Raises:
      PacxError: another form, another number of weights, one too small.
    """
    if text in ("", "size"):
        return None
    if isinstance(text, str) and text.startswith("size^"):
        try:
            given = [n ** float(text.removeprefix("size^")) for n in sizes]
        except (ValueError, OverflowError):
            given = None
    else:
        try:
            given = ast.literal_eval(text) if isinstance(text, str) else text
            given = [float(w) for w in given] if type(given) in (tuple, list) else None
        except (ValueError, SyntaxError, TypeError):
            given = None
    if given is None or not all(map(math.isfinite, given)):
        raise PacxError(
            f"data.weights {text!r}: give size, size^0.5 or numbers such as '(2, 1)'"
        )
    if len(given) != len(sizes):
        raise PacxError(
            f"data.weights {text!r} has {len(given)} weights for {len(sizes)} sets of "
            "data.path: give one for each"
        )
    total = sum(given)
    for i, weight in enumerate(given):
        if not total > 0 or not weight / total >= _LEAST:
            raise PacxError(
                f"data.weights {text!r}: weight {i + 1} is {weight:g}, less than "
                f"{_LEAST:.1%} of all; leave that set out of data.path or raise it"
            )
    return tuple(weight / total for weight in given)


class Mixture:
    """The examples of several sources, one set after the other.

    Attributes:
      sets: the sets' names.
      weights: of the sets in training, 1 in all; None: by their sizes.
      The others are those of `sources.Source`.
    """

    def __init__(self, sources: Sequence[Any], names: Sequence[str], weighting: Any):
        self._sources = list(sources)
        self._starts = np.cumsum([0, *map(len, sources)])
        self.sets = _names(names)
        self.weights = weights(weighting, [len(s) for s in sources])
        self.split = sources[0].split
        self.label_names = _joined_labels(self._sources, self.sets)
        self._columns = [
            [self.label_names.index(name) for name in s.label_names] for s in sources
        ]
        shared = [e for e in sources[0].entries if e not in _OPTIONAL]
        shared = [e for e in shared if all(e in s.entries for s in sources)]
        self.entries = (*shared, *(("labels",) if self.label_names else ()))
        spaces = sorted({s.namespace for s in sources})
        self.namespace = patients.BETWEEN.join(spaces)
        if all("patient_id" in s.entries for s in sources):
            self.entries += ("patient_id",)
        self.fingerprints = {
            name: s.fingerprint for name, s in zip(self.sets, sources, strict=True)
        }
        self.fingerprint = subsets.digest(*(s.fingerprint for s in sources))
        shares = self.weights or [len(s) / len(self) for s in sources]
        each = ", ".join(
            f"{name} {len(s):,} ({share:.1%})"
            for name, s, share in zip(self.sets, sources, shares, strict=True)
        )
        self.notes = (
            *(note for s in sources for note in s.notes),
            f"{self.split}: {len(self):,} examples of {len(sources)} sets: {each}",
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        k, j = self._place(i)
        example = dict(self._sources[k][j])
        if self.label_names:
            labels = np.full(len(self.label_names), np.nan, np.float32)
            if self._columns[k]:
                labels[self._columns[k]] = example["labels"]
            example["labels"] = labels
        if "patient_id" in example:
            example["patient_id"] = self._patient(k, example["patient_id"])
        return example

    def origin(self, i: int) -> tuple[Any, int]:
        """The source that an example is from, and its number there."""
        k, j = self._place(i)
        return self._sources[k], j

    def name(self, i: int) -> str:
        source, j = self.origin(i)
        return source.name(j)

    def set_numbers(self) -> np.ndarray:
        """(n,) which of `sets` each example is of."""
        return np.repeat(np.arange(len(self.sets)), np.diff(self._starts))

    def patients(self) -> list[str] | None:
        """The patient of each example, "" where a set names none; None without any."""
        found = [s.patients() for s in self._sources]
        if not any(found):
            return None
        return [
            self._patient(k, who)
            for k, ids in enumerate(found)
            for who in (ids or [""] * len(self._sources[k]))
        ]

    def labels(self) -> np.ndarray:
        """float32 (n, c), NaN = missing, -1 = uncertain."""
        joined = np.full((len(self), len(self.label_names)), np.nan, np.float32)
        for k, source in enumerate(self._sources):
            if self._columns[k]:
                rows = slice(self._starts[k], self._starts[k + 1])
                joined[rows, self._columns[k]] = source.labels()
        return joined

    def _place(self, i: int) -> tuple[int, int]:
        k = int(np.searchsorted(self._starts, i, side="right")) - 1
        return k, int(i) - int(self._starts[k])

    def _patient(self, k: int, who: str) -> str:
        space = self._sources[k].namespace
        if space == self.namespace or not patients.canonical(who):
            return who
        return patients.key(space, who)


def _names(given: Sequence[str]) -> tuple[str, ...]:
    """The last part of each path; the whole path where two have the same."""
    short = [pathlib.PurePath(p).name for p in given]
    return tuple(
        p if short.count(s) > 1 else s for p, s in zip(given, short, strict=True)
    )


def _joined_labels(sources: Sequence[Any], sets: Sequence[str]) -> tuple[str, ...]:
    """All labels, in the order in which they first occur.

    Raises:
      PacxError: a label that two sets spell differently, such as Pleural Effusion and
        pleural_effusion: whether they mean the same is not known.
    """
    seen: dict[str, tuple[str, str]] = {}
    for source, owner in zip(sources, sets, strict=True):
        for name in source.label_names:
            plain = "".join(c for c in name.lower() if c.isalnum())
            other, first = seen.setdefault(plain, (name, owner))
            if other != name:
                raise PacxError(
                    f"data.path: {first} has the label {other!r} and {owner} {name!r}; "
                    "rename one, the same if they mean the same"
                )
    return tuple(name for name, _ in seen.values())


def order(source: Any, seed: int) -> Callable[[int], int]:
    """Position of the endless training stream -> the example's number.

    A source without weights is shuffled anew in every epoch. Of weighted sets each has
    its share of every BLOCK positions, and is shuffled anew each time it is used up.
    Both are functions of (seed, position) alone.
    """
    shares = getattr(source, "weights", None)
    if shares is None:
        whole = grain.MapDataset.range(len(source)).shuffle(seed=seed % 2**32).repeat()
        return lambda position: int(whole[position])
    numbers = source.set_numbers()
    members = [np.flatnonzero(numbers == k) for k in range(len(shares))]
    empty = [source.sets[k] for k, rows in enumerate(members) if not len(rows)]
    if empty:
        raise PacxError(
            f"{empty[0]} has no example left in the {source.split} split "
            "(data.label_fraction, data.limit): leave it out of data.path"
        )
    bounds = tuple(np.cumsum([0, *shares])[:-1]) + (1.0,)

    def at(position: int) -> int:
        block, row = divmod(int(position), BLOCK)
        sets, ranks = _block(seed, block, bounds)
        k = int(sets[row])
        epoch, rank = divmod(int(ranks[row]), len(members[k]))
        return int(members[k][_permutation(seed, k, epoch, len(members[k]))[rank]])

    return at


@functools.lru_cache(maxsize=32)
def _permutation(seed: int, k: int, epoch: int, n: int) -> np.ndarray:
    """The order of set k in one of its epochs."""
    return np.random.default_rng([seed % 2**64, k, epoch]).permutation(n)


@functools.lru_cache(maxsize=64)
def _block(
    seed: int, block: int, bounds: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each position of a block its set, and how many of the set came before it.

    Cumulative shares are rounded, not a block's own, so that no error adds up.
    """
    edges = np.floor(np.outer((block, block + 1), np.multiply(bounds, BLOCK)))
    before, after = np.diff(edges.astype(np.int64), axis=1)
    counts = after - before
    sets = np.repeat(np.arange(len(counts)), counts)
    key = np.array([seed % 2**64, block + 2**63], np.uint64)  # apart from positions
    np.random.Generator(np.random.Philox(key=key)).shuffle(sets)
    ranks = np.empty(BLOCK, np.int64)
    for k, first in enumerate(before):
        rows = np.flatnonzero(sets == k)
        ranks[rows] = first + np.arange(len(rows))
    return sets, ranks
