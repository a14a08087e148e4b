"""Calibration of a label's probability: reliability curve, temperature, Platt scaling.

The two scalings are fitted on validation predictions and change logits alone, x / T and
a x + b, so that AUROC and average precision stay (a < 0 aside). ECE and Brier score are
in objectives/scores.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.optimize

from pacx_jax.evaluate import statistics
from pacx_jax.objectives import scores

if TYPE_CHECKING:
    from jaxtyping import Real


def temperature(
    logits: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]
) -> float:
    """T > 0 with the least mean log loss of sigmoid(x / T) (Guo et al. 2017).

    Args:
      logits: (n,) of one label; labels: (n,) 0 or 1.

    Returns:
      T, or NaN where none has the least loss: the sign of the logits is right always,
      or no better than chance.
    """
    x, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)

    def slope(scale):
        return float(np.mean((scores.sigmoid(scale * x) - y) * x))

    if slope(0.0) >= 0 or np.all((2 * y - 1) * x >= 0):
        return np.nan
    high = 1.0
    while slope(high) <= 0:  # the loss is convex and grows without bound
        high *= 2
    return float(1 / scipy.optimize.brentq(slope, 0.0, high, xtol=1e-14, rtol=1e-12))


def platt(
    logits: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"]
) -> tuple[float, float]:
    """(a, b) with the least log loss of sigmoid(a x + b) (Platt 1999).

    His targets, (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0, keep a finite
    where the classes are separated. a < 0 where a high logit speaks against the label.
    """
    x, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    n_positive, n_negative = y.sum(), (1 - y).sum()
    target = np.where(y > 0, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    spread = x.std() or 1.0
    design = np.stack([(x - x.mean()) / spread, np.ones_like(x)])

    def loss(w):
        z = w @ design
        value = np.mean(np.logaddexp(0, z) - target * z)
        return value, design @ (scores.sigmoid(z) - target) / len(x)

    def curvature(w):
        p = scores.sigmoid(w @ design)
        return (design * (p * (1 - p))) @ design.T / len(x)

    found = scipy.optimize.minimize(
        loss, (1.0, 0.0), jac=True, hess=curvature, method="trust-exact", tol=1e-10
    )
    a = found.x[0] / spread
    return float(a), float(found.x[1] - a * x.mean())


def reliability(
    logits: Real[np.ndarray, " n"],
    labels: Real[np.ndarray, " n"],
    weights: Real[np.ndarray, "draws n"],
) -> list[dict]:
    """The reliability curve: what was predicted and what was, by bins of probability.

    The bins are the ECE's: 15 of equal width, p in ((m - 1) / 15, m / 15].

    Args:
      logits, labels: (n,) of one label.
      weights: (1 + r, n); the first row is the sample's, the others resamples'.

    Returns:
      A row for each bin that has studies: `above`, `upto`, `n`, mean `predicted`
      probability, and `observed` share of positives with its interval.
    """
    p = scores.sigmoid(logits)
    bins = np.searchsorted(np.arange(1, scores.BINS) / scores.BINS, p)
    there = np.unique(bins)
    member = np.float64(bins[:, None] == there)
    positives = weights @ (member * np.asarray(labels)[:, None])
    observed = scores.ratio(positives, weights @ member)
    return [
        {
            "above": float(m / scores.BINS),
            "upto": float((m + 1) / scores.BINS),
            "n": int(member[:, k].sum()),
            "predicted": float(p[bins == m].mean()),
            "observed": statistics.row(observed[:, k]),
        }
        for k, m in enumerate(there)
    ]
