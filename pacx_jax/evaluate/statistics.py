"""AUROC and paired, patient-clustered bootstrap intervals, exact and vectorised.

A label is 0, 1 or NaN (unknown: left out). An AUROC without both classes is NaN and
is left out of the macro mean (D35), which says over how many labels it was taken.

What an interval covers: the test patients (drawn with replacement, all the studies of a
patient together), the labelled subsets (subset seeds drawn with replacement), and the
randomness of training, where there are several training seeds. Every arm sees the same
draws, and training seeds are paired, so a difference is too. With one training seed,
nothing is known of how far another training would have come out elsewhere.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats

from pacx_jax.errors import PacxError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Int32, Real, Shaped


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with the 2.5 and 97.5 percentiles of its bootstrap distribution."""

    value: float
    low: float
    high: float


def auroc(scores: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]) -> float:
    """Area under the ROC curve, exact: P(s+ > s-) + P(s+ = s-) / 2.

    Args:
      scores: (n,) any monotone score.
      labels: (n,) 0, 1, or NaN where unknown.

    Returns:
      A value in [0, 1], or NaN where one class is absent or a score is NaN.
    """
    labels = np.asarray(labels, np.float64)
    return float(weighted_auroc(scores, labels, np.ones((1, len(labels))))[0])


def weighted_auroc(
    scores: Real[np.ndarray, " n"],
    labels: Real[np.ndarray, " n"],
    weights: Real[np.ndarray, "r n"],
) -> Float[np.ndarray, " r"]:
    """AUROC under many weightings of the same studies, exact with ties.

    Negatives are sorted once; each positive then reads how much negative weight lies
    below it and at it from a cumulative sum. Integer weights give exact counts.

    Args:
      scores: (n,).
      labels: (n,) 0, 1, or NaN where unknown.
      weights: (r, n) non-negative weights, one row a resample.

    Returns:
      (r,) AUROCs; NaN where a resample has no weight on one class.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    weights = np.asarray(weights)
    exact = np.int32 if weights.dtype.kind in "biu" else np.float64
    weights = np.ascontiguousarray(weights, exact)  # counts stay small: twice as fast
    if np.isnan(scores[~np.isnan(labels)]).any():
        return np.full(len(weights), np.nan)
    positive = np.flatnonzero(labels == 1)
    negative = np.flatnonzero(labels == 0)
    negative = negative[np.argsort(scores[negative], kind="stable")]
    ordered = scores[negative]
    below = np.searchsorted(ordered, scores[positive], "left")
    upto = np.searchsorted(ordered, scores[positive], "right")
    out = np.full(len(weights), np.nan)
    # Blocks of resamples keep the cumulative sums in cache.
    for start in range(0, len(weights), 64):
        block = weights[start : start + 64]
        cumulative = np.zeros((len(block), len(negative) + 1), exact)
        np.cumsum(np.take(block, negative, axis=1), axis=1, out=cumulative[:, 1:])
        rank = np.take(cumulative, below, axis=1) + np.take(cumulative, upto, axis=1)
        mass = np.take(block, positive, axis=1)
        pairs = mass.sum(1) * cumulative[:, -1].astype(np.float64)
        wins = np.einsum("rp,rp->r", mass, rank, dtype=np.float64) / 2
        np.divide(wins, pairs, out=out[start : start + 64], where=pairs > 0)
    return out


def bootstrap_weights(
    patients: Shaped[np.ndarray, " n"], n_resamples: int = 1000, seed: int = 0
) -> Int32[np.ndarray, "r n"]:
    """How often each study is drawn when patients are drawn with replacement.

    Args:
      patients: (n,) patient of each study, any hashable dtype.
      n_resamples: r.
      seed: of the draws.

    Returns:
      (r, n) int32 counts; studies of one patient always have the same count.

    Raises:
      PacxError: fewer than two patients, whose resamples would all be alike.
    """
    _, index = np.unique(np.asarray(patients), return_inverse=True)
    n_patients = int(index.max(initial=-1)) + 1
    if n_patients < 2:
        raise PacxError(
            f"{n_patients} patient has {len(index)} studies: an interval over patients "
            "needs at least two; measure on more"
        )
    rng = np.random.default_rng((seed, 0))
    # Uniform multinomial = counting n draws with replacement among n patients.
    counts = rng.multinomial(
        n_patients, np.full(n_patients, 1 / n_patients), n_resamples
    )
    return np.take(counts.astype(np.int32), index.ravel(), axis=1)


def seed_draws(
    n_seeds: int, n_resamples: int = 1000, seed: int = 0
) -> Int[np.ndarray, "r s"]:
    """(r, s) indices of subset seeds drawn with replacement; all 0 for one seed."""
    return np.random.default_rng((seed, 1)).integers(
        n_seeds, size=(n_resamples, n_seeds)
    )


def resampled_auroc(
    scores: Real[np.ndarray, "t s n c"],
    labels: Real[np.ndarray, "n c"],
    weights: Real[np.ndarray, "r n"],
) -> tuple[Float[np.ndarray, "t s c"], Float[np.ndarray, "r t s c"]]:
    """AUROC of every training, subset seed and label, on the sample and its resamples.

    Computed once an arm; every pairing and label group then reuses it.

    Args:
      scores: (t, s, n, c); t training seeds, s label subsets.
      labels: (n, c) 0, 1, or NaN.
      weights: (r, n) from `bootstrap_weights`.

    Returns:
      ((t, s, c) AUROCs, (r, t, s, c) resampled AUROCs), NaN where undefined.
    """
    if (
        scores.ndim != 4
        or labels.shape != scores.shape[2:]
        or weights.shape[1] != len(labels)
    ):
        raise ValueError(
            f"scores {scores.shape}, labels {labels.shape} and weights "
            f"{weights.shape} do not agree as (t, s, n, c), (n, c) and (r, n)"
        )
    t, s, _, c = scores.shape
    point, resampled = np.empty((t, s, c)), np.empty((len(weights), t, s, c))
    for place in np.ndindex(t, s):
        for k in range(c):
            given = scores[place][:, k], labels[:, k]
            point[(*place, k)] = auroc(*given)
            resampled[(slice(None), *place, k)] = weighted_auroc(*given, weights)
    return point, resampled


def macro_distribution(
    point: Float[np.ndarray, "t s c"],
    resampled: Float[np.ndarray, "r t s c"],
    draws: Int[np.ndarray, "r s"],
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " r"]]:
    """Macro AUROC averaged over subset seeds, with its bootstrap distribution.

    Resample i weights the patients by row i of the weights *and* averages over the
    subset seeds `draws[i]`. A label that a resample leaves without positives drops
    out of that resample's macro mean, in every arm alike.

    Args:
      point: (t, s, c) from `resampled_auroc`, the labels of one group.
      resampled: (r, t, s, c) likewise.
      draws: (r, s) from `seed_draws`.

    Returns:
      ((t,) values of each training, (r,) resampled means over the trainings).
    """
    values = mean_defined(mean_defined(point))
    macro = mean_defined(resampled)  # (r, t, s)
    drawn = np.take_along_axis(macro, draws[:, None], axis=2)
    return values, mean_defined(mean_defined(drawn))


def over_trainings(
    values: Float[np.ndarray, " t"],
    distribution: Float[np.ndarray, " r"],
    seed: int = 0,
) -> Estimate:
    """The mean over trainings, with an interval that covers their randomness too.

    Args:
      values, distribution, seed: as of `training_draws`.
    """
    drawn = training_draws(values, distribution, seed)
    return estimate(float(np.mean(values)), drawn)


def training_draws(
    values: Float[np.ndarray, " t"],
    distribution: Float[np.ndarray, " r"],
    seed: int = 0,
) -> Float[np.ndarray, " r"]:
    """The bootstrap distribution of a mean over trainings, with their randomness.

    To each bootstrap draw of the mean comes a draw of s / sqrt(t) times Student's t
    with t - 1 degrees of freedom, s being the standard deviation over the t trainings.
    (To resample few trainings instead would give intervals that are too narrow.)

    Args:
      values: (t,) of each training seed, on all patients.
      distribution: (r,) resampled means over the trainings.
      seed: of Student's draws.
    """
    values, trainings = np.asarray(values, np.float64), len(values)
    if trainings == 1:
        return distribution
    drawn = np.random.default_rng((seed, 2)).standard_t(
        trainings - 1, len(distribution)
    )
    return distribution + values.std(ddof=1) / np.sqrt(trainings) * drawn


def estimate(value: float, distribution: Float[np.ndarray, " r"]) -> Estimate:
    """The value with its 2.5 and 97.5 percentiles over the defined resamples."""
    with warnings.catch_warnings(action="ignore"):  # of nothing: NaN
        low, high = np.nanpercentile(distribution, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def row(values: Float[np.ndarray, " draws"]) -> dict[str, float | int | None]:
    """A measure as files have it: value, low and high, None where undefined.

    Args:
      values: (1 + r,), on the sample and on its resamples. Those that are undefined
        take no part in the interval, and are counted as `undefined_resamples`.
    """
    found = dataclasses.asdict(estimate(float(values[0]), values[1:]))
    found = {k: None if np.isnan(v) else v for k, v in found.items()}
    undefined = int(np.isnan(values[1:]).sum())
    return found | ({"undefined_resamples": undefined} if undefined else {})


def weighted_means(
    values: Float[np.ndarray, " n"], weights: Real[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """Means under many weightings of the studies whose value is defined.

    Args:
      values: (n,), NaN where undefined.
      weights: (r, n), one row a resample.

    Returns:
      (r,), NaN where no study that counts has a value.
    """
    known = ~np.isnan(values)
    total = weights[:, known].sum(1)
    sums = weights[:, known] @ values[known].astype(np.float64)
    return np.divide(sums, total, out=np.full(len(weights), np.nan), where=total > 0)


def row_over_trainings(values: Float[np.ndarray, "t draws"], seed: int = 0) -> dict:
    """`row` of the mean over trainings, whose interval covers their randomness too.

    Args:
      values: (t, 1 + r), of each training on the sample and on its resamples.
      seed: of Student's draws.
    """
    drawn = training_draws(values[:, 0], mean_defined(values[:, 1:].T), seed)
    return row(np.concatenate([[values[:, 0].mean()], drawn]))


def p_value(
    values: Float[np.ndarray, " t"], distribution: Float[np.ndarray, " r"]
) -> float:
    """Two-sided p of a mean over trainings, such as of a difference, being 0.

    The bootstrap's part of its error is taken for normal, training's for Student's t as
    in `training_draws`. (The share of draws beyond 0 cannot fall below 2 / (r + 1),
    which a correction for many comparisons multiplies.)

    Args:
      values, distribution: as of `training_draws`.

    Returns:
      p; NaN where nothing is defined.
    """
    drawn = distribution[~np.isnan(distribution)]
    if not len(drawn) or np.isnan(values).any():
        return np.nan
    trainings, mean, sd = len(values), abs(np.mean(values)), np.std(drawn)
    scale = np.std(values, ddof=1) / np.sqrt(trainings) if trainings > 1 else 0.0
    if not scale and not sd:
        return float(mean == 0)
    if scale <= 1e-6 * sd:  # patients and label subsets alone
        return float(2 * scipy.stats.norm.sf(mean / sd))
    z = np.linspace(-38, 38, 20_001)
    beyond = scipy.stats.t.sf((mean + sd * z) / scale, trainings - 1)
    weights = scipy.stats.norm.pdf(z)
    return float(2 * (weights @ beyond) / weights.sum())


def holm(p: Sequence[float]) -> Float[np.ndarray, " m"]:
    """Adjusted p of m tests by Holm (1979): one below alpha is significant at alpha.

    The k-th smallest is multiplied by m - k + 1, and never below the one before. NaN
    stays NaN, and is not counted among the m.
    """
    p = np.asarray(p, np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def mean_defined(values: Float[np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows"]:
    """Mean over the last axis without NaNs; NaN where nothing is left."""
    with warnings.catch_warnings(action="ignore"):
        return np.nanmean(values, axis=-1)
