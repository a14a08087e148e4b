"""Thresholds chosen on validation predictions, what they give on others, net benefit.

A study is called where its logit is at least the threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import statistics
from pacx_jax.objectives import scores

if TYPE_CHECKING:
    from jaxtyping import Float, Real

RULES = ("max_f1", "sensitivity=0.9", "specificity=0.9")
PROBABILITIES = tuple(k / 20 for k in range(1, 20))  # of the decision curve


def check_rules(rules: tuple[str, ...]) -> None:
    """PacxError for a rule that `choose` does not know."""
    for rule in rules:
        name, _, value = rule.partition("=")
        try:
            good = rule == "max_f1" or 0 < float(value) < 1
        except ValueError:
            good = False
        if not good or name not in ("max_f1", "sensitivity", "specificity"):
            raise PacxError(
                f"--thresholds: {rule!r} is no rule; give max_f1, sensitivity=0.9 or "
                "specificity=0.9, with any share between 0 and 1"
            )


def choose(
    logits: Real[np.ndarray, " n"], labels: Real[np.ndarray, " n"], rule: str
) -> float:
    """The threshold by which a rule is kept on these studies, one of their logits.

    Args:
      logits: (n,) of validation studies with known labels; labels: (n,) both classes.
      rule: "max_f1", or "sensitivity=S", the highest threshold that calls at least the
        share S of the positives, or "specificity=S", the lowest that calls at most
        1 - S of the negatives: just above all logits where each calls more. Of
        thresholds with the same F1 the highest is taken.
    """
    order = np.argsort(-np.asarray(logits), kind="stable")
    falling, truth = np.asarray(logits)[order], np.asarray(labels)[order] == 1
    last = np.append(falling[1:] != falling[:-1], True)  # of each distinct score
    hits, false = np.cumsum(truth)[last], np.cumsum(~truth)[last]
    candidates, n_positive, n_negative = falling[last], hits[-1], false[-1]
    name, _, share = rule.partition("=")
    if name == "max_f1":
        return float(candidates[np.argmax(2 * hits / (hits + false + n_positive))])
    near = 1e-9  # 0.9 of 10 are 9
    if name == "sensitivity":
        return float(candidates[np.argmax(hits >= float(share) * n_positive - near)])
    allowed = np.flatnonzero(false <= (1 - float(share)) * n_negative + near)
    above = np.nextafter(candidates[0], np.inf)
    return float(candidates[allowed[-1]] if len(allowed) else above)


def rates(
    logits: Real[np.ndarray, " n"],
    labels: Real[np.ndarray, " n"],
    weights: Real[np.ndarray, "r n"],
    threshold: float,
) -> dict[str, Float[np.ndarray, " r"]]:
    """Sensitivity, specificity, PPV, NPV and F1 at a threshold, (r,) each.

    Args:
      logits, labels: (n,) of one label.
      weights: (r, n).

    Returns:
      NaN where a share is of nothing: the PPV where nobody is called.
    """
    called, truth = np.asarray(logits) >= threshold, np.asarray(labels) == 1
    kinds = np.stack([called & truth, called & ~truth, ~called & truth], 1)
    hits, false, missed = (weights @ kinds.astype(weights.dtype)).T
    right = weights.sum(1) - hits - false - missed
    return {
        "sensitivity": scores.ratio(hits, hits + missed),
        "specificity": scores.ratio(right, right + false),
        "ppv": scores.ratio(hits, hits + false),
        "npv": scores.ratio(right, right + missed),
        "f1": scores.ratio(2 * hits, 2 * hits + false + missed),
    }


def net_benefit(
    logits: Real[np.ndarray, " n"],
    labels: Real[np.ndarray, " n"],
    weights: Real[np.ndarray, "draws n"],
) -> list[dict]:
    """The decision curve (Vickers and Elkin 2006), a row a threshold probability p:

      net benefit = hits / n - false alarms / n * p / (1 - p)

    `model` treats whom it gives at least p, `treat_all` everybody; to treat nobody is
    worth 0. `over_others` is the model's less the larger of these two.

    Args:
      logits: (n,) of calibrated probabilities; labels: (n,).
      weights: (1 + r, n); the first row is the sample's.
    """
    probability, truth = scores.sigmoid(logits), np.asarray(labels) == 1
    odds = np.array([p / (1 - p) for p in PROBABILITIES])
    worth = np.where(truth[:, None], 1.0, -odds) * (
        probability[:, None] >= PROBABILITIES
    )
    total = weights.sum(1)[:, None]
    model = scores.ratio(weights @ worth, total)
    share = scores.ratio(weights @ np.float64(truth)[:, None], total)
    everybody = share - (1 - share) * odds
    others = model - np.maximum(everybody, 0)
    each = {"model": model, "treat_all": everybody, "over_others": others}
    return [
        {"p": p} | {name: statistics.row(v[:, k]) for name, v in each.items()}
        for k, p in enumerate(PROBABILITIES)
    ]
