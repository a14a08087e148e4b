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
import bisect
import dataclasses
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grain
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import folders, patients, reports, subsets

BLOCK = 1024  # positions, within which every set has its share
_LEAST = 2 / BLOCK
# Entries that a set of a mixture may lack; sections of reports are then empty.
_OPTIONAL = ("patient_id", "labels", *reports.SECTIONS)


def paths(path: str) -> tuple[str, ...]:
    """The paths that `data.path` names; one that is no tuple is itself alone.

    Raises:
      PacxError: a tuple that cannot be read, is empty or names a path twice, or paths
        with commas between and no tuple.
    """
    if not str(path).lstrip().startswith("("):
        parts = [kind_of(part)[1] for part in str(path).split(",")]
        if len(parts) == 1 or not all(map(os.path.exists, parts)):
            return (path,)
    found = _texts(path)
    if found is None or not all(found):
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
    kind, folder = kind_of(path)
    return kind, os.path.realpath(folder)


def kind_of(path: str) -> tuple[str, str]:
    """The kind that a path of a mixture names, "" for none, and the folder."""
    kind, _, rest = path.partition(":")
    return (kind, rest) if kind in ("folder", "prepared") and rest else ("", path)


def _texts(text: str) -> tuple[str, ...] | None:
    """The texts of a tuple as Python writes it; None for anything else."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    found = (found,) if isinstance(found, str) else found
    good = isinstance(found, tuple) and all(isinstance(x, str) for x in found)
    return found if good else None


def parts(data: Any) -> list[Part]:
    """`config.data` as each set of a mixture has it; [] of a single set."""
    path, space = getattr(data, "path", ""), getattr(data, "namespace", "")
    if (several := paths(path)) == (path,):
        return []
    spaces = _texts(space) if space else ("",) * len(several)
    if spaces is None or len(spaces) != len(several):
        raise PacxError(
            f"data.namespace {space!r}: each set of a mixture has its own; give one "
            'for each, such as \'("", "mine")\', or leave it out'
        )
    return [Part(data, p, s) for p, s in zip(several, spaces, strict=True)]


class Part:
    """`config.data` as one set has it: its own path, kind and namespace."""

    def __init__(self, data: Any, path: str, namespace: str):
        kind, self.path = kind_of(path)
        self._data = data
        self.source = kind or data.source
        self.some_labels = True  # of label_columns: another set may have the others
        if self.source == "prepared":  # what is set is for the folders
            for field in dataclasses.fields(folders.FolderSpec):
                if field.name != "path":
                    setattr(self, field.name, field.default)
        self.weights = "size"  # of the whole mixture too
        self.limit = 0
        self.namespace = namespace

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
      set_labels, set_entries: the labels and the entries of each.
      weights: of the sets in training, 1 in all; None: by their sizes.
      The others are those of `sources.Source`.
    """

    def __init__(self, sources: Iterable[Any], names: Sequence[str], weighting: Any):
        self._sources = sources = list(sources)
        self._starts = [0, *itertools.accumulate(map(len, sources))]
        self.sets = tuple(names)
        self.split = sources[0].split
        seen: dict[str, str] = {}
        for name, source in zip(names, sources, strict=True):
            if not len(source):
                raise PacxError(
                    f"data.path: the {self.split} split of {name} is empty; leave that "
                    "set out"
                )
            other = seen.setdefault(source.fingerprint, name)
            if other != name:
                raise PacxError(
                    f"data.path: {other} and {name} are copies of one set; name it once"
                )
        for name, source in zip(self.sets, sources, strict=True):
            source.set_name = name  # for its lines in quarantine.jsonl
        self.weights = weights(weighting, [len(s) for s in sources])
        self.set_labels = tuple(s.label_names for s in sources)
        self.set_entries = tuple(s.entries for s in sources)
        self.label_names = tuple(dict.fromkeys(sum(self.set_labels, ())))
        self._columns = [
            [self.label_names.index(name) for name in s.label_names] for s in sources
        ]
        shared = [e for e in sources[0].entries if e not in _OPTIONAL]
        shared = [e for e in shared if all(e in s.entries for s in sources)]
        self.entries = (*shared, *(("labels",) if self.label_names else ()))
        has = set().union(*self.set_entries)
        self._sections = tuple(s for s in reports.SECTIONS if s in has)
        self.entries += self._sections
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
        return self._starts[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        k, j = self._place(i)
        example = dict(self._sources[k][j])
        if self.label_names:
            labels = np.full(len(self.label_names), np.nan, np.float32)
            if self._columns[k]:
                labels[self._columns[k]] = example["labels"]
            example["labels"] = labels
        for section in self._sections:
            example.setdefault(section, "")
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
        named = []
        for k, ids in enumerate(found):
            keys = {who: self._patient(k, who) for who in set(ids or ())}
            named += [keys[who] for who in ids] if ids else [""] * len(self._sources[k])
        return named

    def paths(self) -> list[str]:
        """The path of each image in its set."""
        return [path for source in self._sources for path in source.paths()]

    def labels(self) -> np.ndarray:
        """float32 (n, c), NaN = missing, -1 = uncertain."""
        joined = np.full((len(self), len(self.label_names)), np.nan, np.float32)
        for k, source in enumerate(self._sources):
            if self._columns[k]:
                rows = slice(self._starts[k], self._starts[k + 1])
                joined[rows, self._columns[k]] = source.labels()
        return joined

    def _place(self, i: int) -> tuple[int, int]:
        k = bisect.bisect_right(self._starts, i) - 1
        return k, int(i) - self._starts[k]

    def _patient(self, k: int, who: str) -> str:
        space = self._sources[k].namespace
        if space == self.namespace or not patients.canonical(who):
            return who
        return patients.key(space, who)


def names(given: Sequence[str]) -> tuple[str, ...]:
    """The sets' names: the last part of each path, or the whole where two are alike."""
    short = [pathlib.PurePath(kind_of(p)[1]).name for p in given]
    return tuple(
        s if short.count(s) == 1 and s else p for p, s in zip(given, short, strict=True)
    )


def check_labels(source: Any, columns: Sequence[str], whole: str) -> None:
    """Refuses labels to train on that the sets of a mixture do not share as they must.

    Args:
      source: a mixture, or some of its examples.
      columns: the labels.
      whole: the setting by which every set must have every label, "" without one.

    Raises:
      PacxError: two spellings of one label, such as Pleural Effusion and
        pleural_effusion: whether they mean the same is not known; a set without any,
        or, with `whole`, without one.
    """
    sets = list(zip(source.sets, source.set_labels, strict=True))
    owner = {label: name for name, has in sets for label in has}
    seen: dict[str, str] = {}
    for name in columns:
        other = seen.setdefault("".join(c for c in name.lower() if c.isalnum()), name)
        if other != name:
            raise PacxError(
                f"data.path: {owner[other]} has the label {other!r} and {owner[name]} "
                f"{name!r}; rename one in its CSV if they mean the same, or name those "
                "to train on in data.label_columns"
            )
    for who, has in sets:
        lacks = [name for name in columns if name not in has]
        if whole and lacks:
            raise PacxError(
                f"data.path: {who} has no label {lacks[0]!r}, and {whole} needs "
                "every label in every set; leave that set out, or the label of "
                "data.label_columns"
            )
        if len(lacks) == len(columns):
            raise PacxError(
                f"data.path: {who} has none of the labels {', '.join(columns)}; "
                "leave it out, or name one of its own in data.label_columns too"
            )


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
            "(data.label_fraction, data.label_count, data.subset_list, data.limit): "
            "leave it out of data.path"
        )
    shuffled = [_Shuffled(rows, seed, k) for k, rows in enumerate(members)]
    bounds = tuple(np.cumsum([0, *shares])[:-1]) + (1.0,)

    def at(position: int) -> int:
        block, row = divmod(int(position), BLOCK)
        sets, ranks = _block(seed, block, bounds)
        return shuffled[sets[row]].at(int(ranks[row]))

    return at


class _Shuffled:
    """A set's examples without end, in another order each time they are used up."""

    def __init__(self, rows: np.ndarray, seed: int, k: int):
        self._rows, self._key = rows.astype(np.uint32), (seed % 2**64, k)
        self._orders: dict[int, np.ndarray] = {}  # of an epoch and its neighbours

    def at(self, rank: int) -> int:
        epoch, row = divmod(rank, len(self._rows))
        order = self._orders.get(epoch)
        if order is None:
            draws = np.random.default_rng([*self._key, epoch])
            order = self._rows[draws.permutation(len(self._rows))]
            near = {e: o for e, o in self._orders.items() if abs(e - epoch) == 1}
            self._orders = near | {epoch: order}  # as a whole, for other threads
        return int(order[row])


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
