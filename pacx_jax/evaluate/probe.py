"""Linear probes on frozen features at a fraction of the labels.

One rule for every arm: features standardised on the labelled subset, then logistic
regression with an L2 penalty whose strength is chosen inside that subset. Test labels
never come near this file.

Studies of several views are fused late, as by `objectives.classify`: a study's logits
are the mean over its views. Of a linear head that is the logit of the mean feature, so
a probe is fitted and asked on `fuse`d features; its scale stays that of images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.evaluate.logistic import Solver
from pacx_jax.input.subsets import label_subset
from pacx_jax.objectives.scores import sigmoid

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int, Integer, Real, Shaped

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, on standardised x
FIXED_C = 1e-2  # where a label has too few cases for cross-validation
FOLDS = 5
MIN_CASES = 10  # patients of each class that cross-validation needs


@dataclasses.dataclass(frozen=True)
class Probe:
    """Standardisation and c logistic regressions on d features.

    Attributes:
      mean: (d,) of the training features.
      scale: (d,) their standard deviation (of studies, that of their images' features),
        1 where it is 0.
      weights: (d, c) on standardised features.
      bias: (c,).
      chosen_c: (c,) penalty C of each label, NaN where the label was constant.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, " c"]
    chosen_c: Float[np.ndarray, " c"]

    def predict(self, features: Real[np.ndarray, "m d"]) -> Float64[np.ndarray, "m c"]:
        """(m, d) features -> (m, c) probabilities."""
        z = (np.asarray(features, np.float64) - self.mean) / self.scale
        return sigmoid(z @ self.weights + self.bias)


def fit(
    features: Real[np.ndarray, "n d"],
    labels: Real[np.ndarray, "n c"],
    mask: Shaped[np.ndarray, "n c"] | None = None,
    c: float | None = None,
    groups: Shaped[np.ndarray, " n"] | None = None,
    images: Real[np.ndarray, "k d"] | None = None,
) -> Probe:
    """Fit a linear probe for each label, missing labels left out.

    The C rule: for each label, `FOLDS`-fold cross-validation within these studies, the
    C of `C_GRID` with the least held-out log loss, if at least `MIN_CASES` patients of
    each class are here; else `FIXED_C`. It sees no other labels.

    Args:
      features: (n, d), standardised by all n studies.
      labels: (n, c) 0 or 1.
      mask: (n, c) 1 where the label is known; None: all are.
      c: a fixed C for every label (scikit-learn's convention) instead of the rule.
      groups: (n,) patients, whose studies stay in one fold; None: each its own.
      images: (k, d) features of the studies' images, where `features` are their means:
        the scale is theirs. (The mean moves the intercept alone, without a penalty.)

    Returns:
      Probe. A label with one class here predicts its smoothed rate, a constant.
    """
    features = np.asarray(features, np.float64)
    known = np.ones(labels.shape) if mask is None else (np.asarray(mask) > 0) * 1.0
    target = np.where(known > 0, labels, 0.0)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    mean = features.mean(axis=0)
    scale = np.asarray(features if images is None else images, np.float64).std(axis=0)
    # A constant feature's deviation is rounding noise, which must not be scaled up.
    scale = np.where(scale > 1e-9 * np.maximum(np.abs(mean), 1e-30), scale, 1.0)
    solver = Solver((features - mean) / scale)
    positives, count = target.sum(axis=0), known.sum(axis=0)
    varied = (positives > 0) & (positives < count)
    chosen = np.full(labels.shape[1], FIXED_C if c is None else c)
    if c is None:
        parts = folds(target, groups)
        for k in np.flatnonzero(varied):
            if _enough(target[:, k], known[:, k], groups):
                chosen[k] = _cross_validated_c(solver, target[:, k], known[:, k], parts)
    weights = np.zeros((features.shape[1], labels.shape[1]))
    bias = np.log((positives + 0.5) / (count - positives + 0.5))
    if varied.any():
        weights[:, varied], bias[varied] = solver.solve(
            target[:, varied], known[:, varied], 1 / chosen[varied], tolerance=1e-7
        )
    chosen[~varied] = np.nan
    return Probe(mean, scale, weights, bias, chosen)


def check_classes(
    labels: Real[np.ndarray, "n c"],
    mask: Shaped[np.ndarray, "n c"],
    names: Sequence[str],
    what: str,
) -> None:
    """PacxError where a label has one class alone, so that it has no AUROC.

    Args:
      labels, mask: (n, c).
      names: c.
      what: the examples, in words.
    """
    for k, name in enumerate(names):
        known = np.asarray(labels)[np.asarray(mask)[:, k] > 0, k]
        positives = int((known == 1).sum())
        if positives in (0, len(known)):
            raise PacxError(
                f"label {name!r}: {positives} of {len(known)} {what} have it, and an "
                "AUROC needs some with and some without: leave it out"
            )


def fuse(
    features: Real[np.ndarray, "k d"], index: Integer[np.ndarray, " k"], most: int = 0
) -> Float64[np.ndarray, "n d"]:
    """Mean feature of each study, whose logits are then the mean over its views.

    Args:
      features: (k, d), one row an image.
      index: (k,) the number of its study, each of 0 to n - 1 at least once.
      most: only the first so many images of a study, in the order of the rows; 0: all.

    Returns:
      (n, d) float64.

    Raises:
      ValueError: a study without an image, or another number of rows.

    >>> fuse(np.array([[1.0], [3.0], [5.0]]), np.array([0, 1, 0]))
    array([[3.],
           [3.]])
    """
    features, index = np.asarray(features, np.float64), np.asarray(index, np.int64)
    if len(features) != len(index):
        raise ValueError(f"{len(features)} features for {len(index)} images")
    count = np.bincount(index)
    if not count.all():
        raise ValueError(f"study {int(count.argmin())} has no image")
    order = np.argsort(index, kind="stable")
    start = np.cumsum(count) - count
    rank = np.arange(len(order)) - np.repeat(start, count)  # within the study
    taken = order[rank < most] if most else order
    total = np.zeros((len(count), features.shape[1]))
    np.add.at(total, index[taken], features[taken])
    return total / np.bincount(index[taken])[:, None]


def run_probes(
    arms: Mapping[str, Mapping[str, Float[np.ndarray, "_rows _d"]]],
    labels: Real[np.ndarray, "n c"],
    mask: Shaped[np.ndarray, "n c"],
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: Sequence[int] = tuple(range(10)),
    groups: Shaped[np.ndarray, " n"] | None = None,
    counts: Sequence[int] = (),
    index: Mapping[str, Integer[np.ndarray, " _images"]] | None = None,
) -> dict[tuple[str, float], Float[np.ndarray, "_s m c"]]:
    """Probe every arm on the same labelled subsets.

    Args:
      arms: name -> {"train": (n, d), "test": (m, d)} frozen features; d may differ.
      labels, mask, fractions, seeds, groups, counts, index: see `fit_probes`. With an
        index of images, `index["test"]` too.

    Returns:
      (arm, fraction or count) -> (s, m, c) probabilities on the test studies.

    Raises:
      ValueError: as `fit_probes`.
    """
    fitted = fit_probes(arms, labels, mask, fractions, seeds, groups, counts, index)
    tests = {
        name: fuse(arm["test"], index["test"]) if index else arm["test"]
        for name, arm in arms.items()
    }
    return {
        (name, budget): np.stack([p.predict(tests[name]) for p in probes])
        for (name, budget), probes in fitted.items()
    }


def fit_probes(
    arms: Mapping[str, Mapping[str, Float[np.ndarray, "_rows _d"]]],
    labels: Real[np.ndarray, "n c"],
    mask: Shaped[np.ndarray, "n c"],
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: Sequence[int] = tuple(range(10)),
    groups: Shaped[np.ndarray, " n"] | None = None,
    counts: Sequence[int] = (),
    index: Mapping[str, Integer[np.ndarray, " _images"]] | None = None,
) -> dict[tuple[str, float], list[Probe]]:
    """Fits probes of every arm on the same labelled subsets.

    One probe answers for any number of views of the test studies:
    `probe.predict(fuse(test, index["test"], most=1))`.

    Args:
      arms: name -> {"train": (n, d), "test": (m, d)} frozen features; d may differ.
      labels: (n, c) training labels, 0 or 1. Test labels are not needed here.
      mask: (n, c) 1 where a training label is known.
      fractions: of the labelled training studies.
      seeds: one labelled subset each; of all studies there is one subset, so one fit.
      groups: (n,) training patients, for the folds of the C rule.
      counts: numbers of labelled training studies, besides the fractions.
      index: {"train": (k,), ...}, the study of each image (see `fuse`), where the
        features have a row an image; labels, mask and groups have a row a study.

    Returns:
      (arm, fraction or count) -> s probes.

    Raises:
      ValueError: an arm whose rows do not match the labels; a count that has no room
        for a positive of each label.
      PacxError: an arm with embeddings that are not finite.
    """
    parts = ("train", "test")
    for name, arm in arms.items():
        rows = len(index["train"]) if index else len(labels)
        if len(arm["train"]) != rows:
            kind = "image" if index else "label"
            raise ValueError(
                f"arm {name!r} has {len(arm['train'])} training rows for "
                f"{rows} {kind} rows"
            )
        for part in parts:
            if bad := int((~np.isfinite(arm[part]).all(1)).sum()):
                raise PacxError(
                    f"arm {name!r}: {bad} of {len(arm[part])} {part} images have an "
                    "embedding that is not finite: check the encoder's training"
                )
    patients = np.arange(len(labels)) if groups is None else np.asarray(groups)
    drawn = _labelled_subsets(labels, mask, fractions, counts, seeds)
    fitted: dict[tuple[str, float], list[Probe]] = {}
    for name, arm in arms.items():
        features, images = arm["train"], None
        if index:
            features = fuse(features, index["train"])
        for budget, subsets in drawn.items():
            fitted[name, budget] = []
            for i in subsets:
                if index:
                    images = arm["train"][np.isin(index["train"], i)]
                fitted[name, budget].append(
                    fit(features[i], labels[i], mask[i], None, patients[i], images)
                )
    return fitted


def _labelled_subsets(labels, mask, fractions, counts, seeds) -> dict[float, list]:
    """Fraction or count -> which studies keep their labels, one array a seed."""
    n_labels, drawn = labels.shape[1], {}
    few = [count for count in counts if count <= n_labels]
    if few:
        raise ValueError(f"count {few[0]}: give more than the {n_labels} labels")
    for fraction in fractions:
        each = seeds if fraction < 1 else seeds[:1]
        drawn[fraction] = [label_subset(labels, mask, fraction, s) for s in each]
    labelled = int((np.asarray(mask) > 0).any(axis=1).sum())
    for count in counts:
        each = seeds if count < labelled else seeds[:1]
        drawn[count] = [label_subset(labels, mask, 1.0, s, count=count) for s in each]
    return drawn


def folds(
    target: Real[np.ndarray, "n c"], groups: Shaped[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """(n,) fold of each study: patients together, label patterns spread evenly."""
    _, index = np.unique(groups, return_inverse=True)
    index = index.ravel()
    pattern = np.zeros((index.max() + 1, target.shape[1]))
    np.maximum.at(pattern, index, target)
    shuffled = np.random.default_rng(0).permutation(len(pattern))
    dealt = shuffled[np.lexsort(pattern[shuffled].T)]
    fold = np.empty(len(pattern), int)
    fold[dealt] = np.arange(len(pattern)) % FOLDS
    return fold[index]


def _enough(target: np.ndarray, known: np.ndarray, groups: np.ndarray) -> bool:
    cases = [len(np.unique(groups[(known > 0) & (target == v)])) for v in (0, 1)]
    return min(cases) >= MIN_CASES


def _cross_validated_c(
    solver: Solver, target: np.ndarray, known: np.ndarray, folds: np.ndarray
) -> float:
    """The C of the grid with the least held-out log loss, for one label."""
    held = (folds[:, None] == np.arange(FOLDS)) & (known > 0)[:, None]  # (n, folds)
    training = known[:, None] * ~held
    cases = (training * target[:, None]).sum(axis=0)
    if np.any(cases == 0) or np.any(cases == training.sum(axis=0)):
        return FIXED_C
    tile = len(C_GRID)
    penalty = np.repeat(1 / np.array(C_GRID), FOLDS)
    weights, bias = solver.solve(
        np.repeat(target[:, None], tile * FOLDS, axis=1),
        np.tile(training, (1, tile)),
        penalty,
        tolerance=1e-3,
    )
    logits = solver.x @ weights + bias
    loss = np.logaddexp(0, logits) - target[:, None] * logits
    total = (loss * np.tile(held, (1, tile))).sum(axis=0).reshape(tile, FOLDS)
    return C_GRID[int(np.argmin(total.sum(axis=1)))]
