"""Some examples of a source: a few drawn ones, or those that keep their labels."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import listed

_OF_MIXTURES = ("sets", "weights", "fingerprints", "set_labels", "set_entries")


class Subset:
    """Some examples of a source, in a given order."""

    def __init__(self, source, indices: np.ndarray):
        self._source = source
        self._indices = np.asarray(indices, np.int64)
        self.label_names = source.label_names
        self.split = source.split
        self.entries = source.entries
        self.namespace = source.namespace
        self.notes = source.notes
        self.fingerprint = digest(source.fingerprint, self._indices.tobytes())
        for name in _OF_MIXTURES:
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[int(self._indices[i])]

    def origin(self, i: int) -> tuple[Any, int]:
        """The source that this is a part of, and the example's number there."""
        return self._source, int(self._indices[i])

    def name(self, i: int) -> str:
        return self._source.name(int(self._indices[i]))

    def set_numbers(self) -> np.ndarray:
        """(n,) which set of a mixture each example is of."""
        return self._source.set_numbers()[self._indices]

    def patients(self) -> list[str] | None:
        """The patient of each example; None where the data name none."""
        found = self._source.patients()
        return None if found is None else [found[i] for i in self._indices]

    def paths(self) -> list[str]:
        """The path of each image."""
        found = self._source.paths()
        return [found[i] for i in self._indices]

    def labels(self) -> np.ndarray:
        """float32 (n, c), NaN = missing, -1 = uncertain."""
        return self._source.labels()[self._indices]


def digest(*parts: str | bytes) -> str:
    """sha256 of texts and bytes, another one where they are divided otherwise."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        hashed.update(len(data).to_bytes(8, "big") + data)
    return hashed.hexdigest()


def subset_size(n: int, n_labels: int, fraction: float) -> int:
    """Studies in a labelled subset: int(n * fraction), at least c + 1, at most n."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} is not in (0, 1]")
    return min(n, max(int(n * fraction), n_labels + 1))


def few_labels(source, data: Any):
    """The examples that keep their labels by `config.data`, of a training split.

    Args:
      source: has labels.
      data: `label_fraction` or `label_count` (0 = all), `label_draw` ("positives",
        the reference's, or "stratified"), `label_seed`, `label_columns` (() = all) and
        `uncertain`; or `subset_list`, a file that lists them ("" = none).

    A count above the labelled examples takes all of these, and a note says so. A note
    also says how many ids of a list are not in the split.
    """
    count = getattr(data, "label_count", 0)
    if not 0 < data.label_fraction <= 1:
        raise PacxError(
            f"data.label_fraction {data.label_fraction}: give a share above 0, up to 1"
        )
    if data.label_draw not in ("positives", "stratified"):
        raise PacxError(
            f"data.label_draw {data.label_draw!r}: give positives or stratified"
        )
    if count and data.label_fraction != 1:
        raise PacxError(
            f"data.label_count {count} and data.label_fraction {data.label_fraction}: "
            "give one of them"
        )
    if at := getattr(data, "subset_list", ""):
        return _listed(source, data, at)
    if data.label_fraction == 1 and not count:
        return source
    names = tuple(data.label_columns) or source.label_names
    columns = [source.label_names.index(n) for n in names if n in source.label_names]
    if not columns:
        given = f"label_count {count}" if count else ""
        given = given or f"label_fraction {data.label_fraction}"
        raise PacxError(f"data.{given}: {data.path} has no labels {', '.join(names)}")
    if count and count <= len(columns):
        raise PacxError(
            f"data.label_count {count}: give 0 (all) or more than the {len(columns)} "
            "labels, of which each has a positive drawn first"
        )
    labels, mask = known_labels(source.labels()[:, columns], data.uncertain)
    rows = label_subset(
        labels,
        mask,
        data.label_fraction,
        data.label_seed,
        stratified=data.label_draw == "stratified",
        count=count,
    )
    drawn = Subset(source, rows)
    if len(rows) < count:
        few = f"{data.path}: data.label_count is {count:,}, but the {source.split} "
        few += f"split has {len(rows):,} labelled examples: all are taken"
        drawn.notes = (*drawn.notes, few)
    return drawn


def _listed(source, data: Any, at: str) -> Subset:
    """The examples that the list `data.subset_list` names."""
    count = getattr(data, "label_count", 0)
    if count or data.label_fraction != 1:
        other = "label_count" if count else "label_fraction"
        raise PacxError(
            f"data.subset_list {at} and data.{other} {getattr(data, other)}: give one "
            "of them"
        )
    if not {"image", "path"} <= {*source.entries}:
        raise PacxError(
            f"data.subset_list {at}: it names images, and an example of {data.path} "
            f"has {', '.join(source.entries)}; give data.group=image and images"
        )
    rows, told = listed.rows(at, listed.read(at), source.paths(), source.split)
    kept = Subset(source, rows)
    kept.notes = (*kept.notes, told)
    return kept


def known_labels(labels: np.ndarray, uncertain: str) -> tuple[np.ndarray, np.ndarray]:
    """What is trained on of labels 1, 0, -1 (uncertain) and NaN (missing).

    Args:
      labels: float (..., c), as published.
      uncertain: "ignore", "zero" or "one": what -1 is, where missing labels are
        ignored. "reference": missing labels are 0, as the authors' code has it
        which knows no -1: none of its data sets has one, and here it is ignored.

    Returns:
      labels and label_mask, float32 (..., c): what is ignored is 0 in both.
    """
    labels = np.asarray(labels, np.float32)
    if uncertain in ("zero", "one"):
        labels = np.where(labels == -1, np.float32(uncertain == "one"), labels)
    elif uncertain == "reference":
        labels = np.nan_to_num(labels)
    known = ~(np.isnan(labels) | (labels == -1))
    return np.where(known, labels, 0).astype(np.float32), known.astype(np.float32)


def label_subset(
    labels: np.ndarray,
    mask: np.ndarray,
    fraction: float,
    seed: int,
    stratified: bool = False,
    count: int = 0,
) -> np.ndarray:
    """Which studies keep their labels, in a low-label experiment (D27).

    One random positive of each label, then a uniform fill, as in the reference
    (§5.2); or, stratified, the label combinations in their proportions.

    Args:
      labels: (n, c) 0 or 1.
      mask: (n, c) 1 where the label is known. Studies without any are left out.
      fraction: share of the labelled studies, in (0, 1].
      seed: of the draw; it does not depend on the arm.
      stratified: allocate by label combination instead of uniformly.
      count: number of studies instead of `fraction`, at most all; 0: by `fraction`.

    Returns:
      Sorted indices of the drawn studies.
    """
    known = np.asarray(mask) > 0
    pool = np.flatnonzero(known.any(axis=1))
    size = subset_size(len(pool), labels.shape[1], fraction)
    size = min(count, len(pool)) if count else size
    rng = np.random.default_rng((seed, size))
    order = rng.permutation(pool)
    first = []
    for c in range(labels.shape[1]):
        positives = np.flatnonzero(known[:, c] & (labels[:, c] == 1))
        if len(positives):
            first.append(rng.choice(positives))
    chosen = np.unique(np.array(first, dtype=int))
    if stratified:
        state = np.where(known, labels, -1).astype(int)
        order = _proportional_order(order, state)
    rest = order[~np.isin(order, chosen)]
    return np.sort(np.concatenate([chosen, rest[: size - len(chosen)]]))


def _proportional_order(order: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Reorder so that every prefix holds the label combinations in proportion."""
    _, stratum = np.unique(state[order], axis=0, return_inverse=True)
    position = np.empty(len(order))
    for value in np.unique(stratum):
        rows = np.flatnonzero(stratum.ravel() == value)
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(position, kind="stable")]
