"""Scores of binary labels beside AUROC, under many weightings of the same examples.

A weighting is a resample of patients (`evaluate.statistics.bootstrap_weights`); one row
of ones is the sample itself. An unknown label takes no part.

Shape letters: n examples, c labels, r weightings. Every function of MEASURES takes

  logits: (n, c).
  labels: (n, c) 0 or 1, anything where unknown.
  mask: (n, c) 1 where the label is known.
  weights: (r, n) non-negative, float64 for speed.

and returns (r, c), NaN where a weighting leaves it undefined.
"""

from __future__ import annotations

import numpy as np

BINS = 15  # of the calibration error
_BLOCK = 64  # weightings at once: their cumulative sums stay in cache


def average_precision(logits, labels, mask, weights) -> np.ndarray:
    """Mean precision at the positives, sum_k (R_k - R_k-1) P_k over the thresholds.

    Examples of one logit share a threshold, without interpolation, as in scikit-learn's
    `average_precision_score`. NaN without weight on positives.
    """
    found = np.full((len(weights), logits.shape[1]), np.nan)
    for c in range(logits.shape[1]):
        known = np.flatnonzero(mask[:, c] > 0)
        order = known[np.argsort(-logits[known, c], kind="stable")]
        falling = -logits[order, c]
        positive = np.flatnonzero(labels[order, c] == 1)
        # How many examples, and positives, have at least a positive's logit.
        upto = np.searchsorted(falling, falling[positive], "right") - 1
        hits = np.searchsorted(falling[positive], falling[positive], "right") - 1
        if not len(positive) or np.isnan(falling).any():
            continue
        for start in range(0, len(weights), _BLOCK):
            w = np.take(weights[start : start + _BLOCK], order, axis=1)
            mass = np.take(w, positive, axis=1)
            called = np.take(np.cumsum(w, axis=1), upto, axis=1)
            hit = np.take(np.cumsum(mass, axis=1), hits, axis=1)
            precision = ratio(hit, called, 0.0)
            found[start : start + _BLOCK, c] = ratio(
                (mass * precision).sum(1), mass.sum(1)
            )
    return found


def f1(logits, labels, mask, weights) -> np.ndarray:
    """2 tp / (2 tp + fp + fn) at a probability of 0.5; NaN where that is 0 / 0."""
    called, labels, mask, weights = _wide(logits >= 0, labels, mask, weights)
    hit = weights @ (called * labels * mask)
    return ratio(2 * hit, weights @ ((called + labels) * mask))


def precision(logits, labels, mask, weights) -> np.ndarray:
    """tp / (tp + fp) at a probability of 0.5; 0 where nobody is called.

    So it is in scikit-learn and torchmetrics. NaN without weight on positives.
    """
    called, labels, mask, weights = _wide(logits >= 0, labels, mask, weights)
    positive = (labels == 1) * mask
    value = ratio(weights @ (called * positive), weights @ (called * mask), 0.0)
    return np.where(weights @ positive > 0, value, np.nan)


def recall(logits, labels, mask, weights) -> np.ndarray:
    """tp / (tp + fn) at a probability of 0.5 (sensitivity); NaN where that is 0 / 0."""
    called, labels, mask, weights = _wide(logits >= 0, labels, mask, weights)
    positive = (labels == 1) * mask
    return ratio(weights @ (called * positive), weights @ positive)


def accuracy(logits, labels, mask, weights) -> np.ndarray:
    """Share of the examples called rightly at a probability of 0.5."""
    called, labels, mask, weights = _wide(logits >= 0, labels, mask, weights)
    return ratio(weights @ ((called == labels) * mask), weights @ mask)


def brier(logits, labels, mask, weights) -> np.ndarray:
    """Mean squared error of the probability of the label (Brier 1950, one class)."""
    p, labels, mask, weights = _wide(sigmoid(logits), labels, mask, weights)
    return ratio(weights @ ((p - labels) ** 2 * mask), weights @ mask)


def calibration_error(logits, labels, mask, weights) -> np.ndarray:
    """Expected calibration error of the label's probability p, in 15 equal bins:

      ECE = sum_m |B_m| / n |mean_{B_m} y - mean_{B_m} p|
          = sum_m |sum_{B_m} (y - p)| / n

    B_m holds the examples with p in ((m - 1) / 15, m / 15], and p = 0 is in B_1. The
    bins are those of Guo et al. 2017, equation 3; as in Naeini et al. 2015 they hold
    the probability of the positive class, not that of the class called.
    """
    p, labels, mask, weights = _wide(sigmoid(logits), labels, mask, weights)
    edges = np.arange(1, BINS) / BINS
    found = ratio(np.zeros(()), weights @ mask)  # 0, or NaN without weight
    for c in range(p.shape[1]):
        member = np.searchsorted(edges, p[:, c])[:, None] == np.arange(BINS)
        gap = weights @ (member * ((labels - p) * mask)[:, c, None])
        found[:, c] += ratio(np.abs(gap).sum(1), weights @ mask[:, c])
    return found


# Name -> function, as metrics and files call it.
MEASURES = {
    "ap": average_precision,
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "brier": brier,
    "ece": calibration_error,
    "accuracy": accuracy,
}


def sigmoid(logits) -> np.ndarray:
    """Probabilities of logits, float64."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))


def both_classes(labels, mask) -> np.ndarray:
    """(c,) whether a label has known positives and known negatives."""
    known = np.asarray(mask) > 0
    return (known & (labels == 1)).any(0) & (known & (labels == 0)).any(0)


def _wide(*arrays) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in arrays]


def ratio(part: np.ndarray, whole: np.ndarray, undefined=np.nan) -> np.ndarray:
    """part / whole, broadcast, `undefined` where whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    out = np.full(whole.shape, undefined)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
