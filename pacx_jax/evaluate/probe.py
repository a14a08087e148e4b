"""Linear probes on frozen features at a fraction of the labels.

One rule for every arm: features standardised on the labelled subset, then logistic
regression with an L2 penalty whose strength is chosen inside that subset. Test labels
never come near this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pacx_jax.input.subsets import label_subset

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, on standardised x
FIXED_C = 1e-2  # where a label has too few cases for cross-validation
FOLDS = 5
MIN_CASES = 10  # patients of each class that cross-validation needs


@dataclasses.dataclass(frozen=True)
class Probe:
    """Standardisation and c logistic regressions on d features.

    Attributes:
      mean: (d,) of the training features.
      scale: (d,) their standard deviation, 1 where it is 0.
      weights: (d, c) on standardised features.
      bias: (c,).
      chosen_c: (c,) penalty C of each label, NaN where the label was constant.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    chosen_c: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(m, d) features -> (m, c) probabilities."""
        z = (np.asarray(features, np.float64) - self.mean) / self.scale
        return _sigmoid(z @ self.weights + self.bias)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray | None = None,
    c: float | None = None,
    groups: np.ndarray | None = None,
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

    Returns:
      Probe. A label with one class here predicts its smoothed rate, a constant.
    """
    features = np.asarray(features, np.float64)
    known = np.ones(labels.shape) if mask is None else (np.asarray(mask) > 0) * 1.0
    target = np.where(known > 0, labels, 0.0)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # A constant feature's deviation is rounding noise, which must not be scaled up.
    scale = np.where(scale > 1e-9 * np.maximum(np.abs(mean), 1e-30), scale, 1.0)
    solver = _Solver((features - mean) / scale)
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


def run_probes(
    arms: Mapping[str, Mapping[str, np.ndarray]],
    labels: np.ndarray,
    mask: np.ndarray,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: Sequence[int] = tuple(range(10)),
    groups: np.ndarray | None = None,
) -> dict[tuple[str, float], np.ndarray]:
    """Probe every arm on the same labelled subsets.

    Args:
      arms: name -> {"train": (n, d), "test": (m, d)} frozen features; d may differ.
      labels: (n, c) training labels, 0 or 1. Test labels are not needed here.
      mask: (n, c) 1 where a training label is known.
      fractions: of the labelled training studies.
      seeds: one labelled subset each; at 1.0 there is one subset, so one fit.
      groups: (n,) training patients, for the folds of the C rule.

    Returns:
      (arm, fraction) -> (s, m, c) probabilities on the test studies.

    Raises:
      ValueError: an arm whose rows do not match the labels, or are not finite.
    """
    for name, arm in arms.items():
        if len(arm["train"]) != len(labels):
            raise ValueError(
                f"arm {name!r} has {len(arm['train'])} training rows for "
                f"{len(labels)} label rows"
            )
        if not all(np.isfinite(part).all() for part in (arm["train"], arm["test"])):
            raise ValueError(f"arm {name!r} has features that are not finite")
    patients = np.arange(len(labels)) if groups is None else np.asarray(groups)
    scores = {}
    for fraction in fractions:
        subsets = [
            label_subset(labels, mask, fraction, seed)
            for seed in (seeds if fraction < 1 else seeds[:1])
        ]
        for name, arm in arms.items():
            probes = (
                fit(arm["train"][i], labels[i], mask[i], groups=patients[i])
                for i in subsets
            )
            scores[name, fraction] = np.stack([p.predict(arm["test"]) for p in probes])
    return scores


def folds(target: np.ndarray, groups: np.ndarray) -> np.ndarray:
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
    solver: _Solver, target: np.ndarray, known: np.ndarray, folds: np.ndarray
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


class _Solver:
    """Many L2 logistic regressions on one design matrix, solved together.

    Accelerated gradient descent (Nesterov, with restarts) preconditioned by Böhning's
    bound: the Hessian never exceeds X'X / 4 + penalty, which is diagonal in the basis
    of X's singular vectors and, as X is centred, leaves the intercept apart. So every
    label, fold and penalty shares one SVD and each iteration is two matrix products.
    """

    def __init__(self, x: np.ndarray):
        """Take the (n, d) standardised features."""
        self.x = x
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        keep = s > 1e-10 * max(s.max(initial=0.0), 1e-300)
        self.scores = np.ascontiguousarray(u[:, keep] * s[keep])  # (n, k)
        self.basis = vt[keep].T  # (d, k)
        self.curvature = s[keep] ** 2 / 4

    def solve(
        self,
        target: np.ndarray,
        rows: np.ndarray,
        penalty: np.ndarray,
        tolerance: float,
        max_steps: int = 2000,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Minimise sum(rows * log loss) + penalty / 2 * |w|^2 for each problem.

        Args:
          target: (n, q) 0 or 1.
          rows: (n, q) 1 where a study takes part.
          penalty: (q,) 1 / C.
          tolerance: on the preconditioned step's norm, relative to 1 + |w|.
          max_steps: stop there in any case.

        Returns:
          ((d, q) weights, (q,) intercepts).
        """
        k, q = len(self.curvature), target.shape[1]
        step = np.empty((k + 1, q))
        step[:k] = 1 / (self.curvature[:, None] + penalty)
        step[k] = 4 / len(target)
        rate = (rows * target).sum(axis=0) / rows.sum(axis=0)
        best = np.zeros((k + 1, q))
        best[k] = np.log(rate / (1 - rate))
        active = np.arange(q)
        w = ahead = best.copy()
        momentum = np.ones(q)
        for _ in range(max_steps):
            residual = _sigmoid(self.scores @ ahead[:k] + ahead[k]) - target[:, active]
            residual *= rows[:, active]
            gradient = np.empty_like(ahead)
            gradient[:k] = self.scores.T @ residual + penalty[active] * ahead[:k]
            gradient[k] = residual.sum(axis=0)
            moved = ahead - step[:, active] * gradient
            change = moved - w
            # Restart where momentum points uphill (O'Donoghue and Candes 2015).
            uphill = np.sum(gradient * change, axis=0) > 0
            momentum = np.where(uphill, 1.0, momentum)
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead_next = moved + (momentum - 1) / following * change
            residual_step = np.linalg.norm(moved - ahead, axis=0)
            best[:, active] = moved
            going = residual_step > tolerance * (1 + np.linalg.norm(moved, axis=0))
            if not going.any():
                break
            active, w, momentum = active[going], moved[:, going], following[going]
            ahead = ahead_next[:, going]
        return self.basis @ best[:k], best[k]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))
