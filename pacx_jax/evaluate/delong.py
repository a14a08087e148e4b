"""Variance of AUROCs without resampling, and the paired test of two.

Every positive's component is the share of negatives that it outscores, ties counting a
half, and a negative's likewise; the AUROC is the mean of either, and its variance
follows from theirs (DeLong et al. 1988). Midranks give them in O(n log n) (Sun and Xu
2014). Where patients have several studies, the components of a patient are summed
first, and positives and negatives of one patient covary (Obuchowski 1997, Biometrics
53:567); with one study a patient this is DeLong's estimate, exactly.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import scipy.special
import scipy.stats

if TYPE_CHECKING:
    from jaxtyping import Float, Real, Shaped

_Z = scipy.stats.norm.ppf(0.975)


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two AUROCs on the same studies, and their difference a - b.

    Attributes:
      low, high: 95% interval of the difference, normal.
      p: two-sided, that they are equal; NaN where the difference has no variance but
        is not 0, such as of a perfect score and a constant one.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float


def covariance(
    scores: Real[np.ndarray, "k n"],
    labels: Real[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"]]:
    """AUROCs of k scores of the same studies, and their covariance.

    Args:
      scores: (k, n).
      labels: (n,) 0, 1, or NaN where unknown.
      patients: (n,) patient of each study; None: each its own.

    Returns:
      ((k,), (k, k)). All NaN without both classes or with a NaN among the scores of
      known labels; a covariance of NaN where the positives, or the negatives, are of
      one patient alone.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    known = np.flatnonzero(~np.isnan(labels))
    scores, labels = scores[:, known], labels[known]
    k, (positive, negative) = len(scores), (np.flatnonzero(labels == v) for v in (1, 0))
    nothing = np.full((k, k), np.nan)
    if not len(positive) or not len(negative) or np.isnan(scores).any():
        return nothing[0], nothing
    overall = scipy.stats.rankdata(scores, axis=1)
    within = (scipy.stats.rankdata(scores[:, i], axis=1) for i in (positive, negative))
    x, y = (
        overall[:, i] - r for i, r in zip((positive, negative), within, strict=True)
    )
    x, y = x / len(negative), 1 - y / len(positive)
    aurocs = x.mean(1)
    clusters = (
        np.arange(len(known)) if patients is None else np.asarray(patients)[known]
    )
    _, cluster = np.unique(clusters, return_inverse=True)
    n_clusters = int(cluster.max()) + 1

    def summed(components, studies):
        """(k, i) sums of deviations by patient, and of how many patients there are."""
        deviations = (components - aurocs[:, None]) / len(studies)
        of = cluster[studies]
        sums = [np.bincount(of, row, minlength=n_clusters) for row in deviations]
        return np.stack(sums), len(np.unique(of))

    (x, n_x), (y, n_y) = summed(x, positive), summed(y, negative)
    if min(n_x, n_y) < 2:
        return aurocs, nothing
    crossed = x @ y.T
    found = n_x / (n_x - 1) * x @ x.T + n_y / (n_y - 1) * y @ y.T
    return aurocs, found + n_clusters / (n_clusters - 1) * (crossed + crossed.T)


def interval(auroc: float, variance: float) -> tuple[float, float]:
    """95% interval of an AUROC, normal on the logit scale, so that it lies in (0, 1).

    NaN for an AUROC of 0 or 1, whose estimated variance is 0 however few the studies.
    """
    if not 0 < auroc < 1:
        return np.nan, np.nan
    middle, wide = scipy.special.logit(auroc), _Z * np.sqrt(variance)
    wide /= auroc * (1 - auroc)
    low, high = scipy.special.expit([middle - wide, middle + wide])
    return float(low), float(high)


def paired(
    a: Real[np.ndarray, " n"],
    b: Real[np.ndarray, " n"],
    labels: Real[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"] | None = None,
) -> Paired:
    """DeLong's test of two scores of the same studies; Obuchowski's by patient.

    Args:
      a, b: (n,) scores, row by row of the same studies.
      labels, patients: as of `covariance`.
    """
    (first, second), found = covariance(np.stack([a, b]), labels, patients)
    difference = first - second
    deviation = np.sqrt(max(found[0, 0] + found[1, 1] - 2 * found[0, 1], 0.0))
    if deviation > 1e-12 or np.isnan(deviation):
        p = 2 * scipy.stats.norm.sf(abs(difference) / deviation)
    else:  # rounding of 0
        p = 1.0 if abs(difference) < 1e-12 else np.nan
    ends = difference - _Z * deviation, difference + _Z * deviation
    return Paired(*map(float, (first, second, difference, *ends, p)))
