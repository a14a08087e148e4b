"""What is chosen on validation predictions, and measured, unchanged, on another split.

Of each label: thresholds, temperature, Platt scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pacx_jax.evaluate import calibration, measures, statistics, thresholds
from pacx_jax.objectives import scores


def choose(
    given: measures.Examples, split: str, rules: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Chooses on the validation split, label by label.

    Args:
      given: its examples, of labels.
      split: its name.
      rules: of `thresholds.choose`.

    Returns:
      Label -> `chosen_on`, `known`, `positives`; where it has both classes there, also
      `thresholds` (rule -> logit) and `scalings` (name -> (a, b), the calibrated logit
      being a x + b; None for a temperature that does not exist).
    """
    counts = measures.counts(given)
    found = {name: {"chosen_on": split} | n for name, n in counts.items()}
    for c in measures.defined(given):
        x, y, _ = given.known(c)
        heat = calibration.temperature(x, y)
        found[given.names[c]] |= {
            "thresholds": {rule: thresholds.choose(x, y, rule) for rule in rules},
            "scalings": {
                "none": (1.0, 0.0),
                "temperature": None if np.isnan(heat) else (1 / heat, 0.0),
                "platt": calibration.platt(x, y),
            },
        }
    return found


def measured(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, chosen: dict[str, Any]
) -> dict[str, Any]:
    """What the choices of one label give on other studies.

    Args:
      x, y: (n,) logits and labels.
      weights: (1 + r, n), the first row the sample's.
      chosen: of `choose`, for this label.

    Returns:
      `thresholds`: rule -> logit, its probability before and after Platt scaling, and
      `thresholds.rates` with intervals;
      `calibration`: scaling -> a, b, ECE and Brier score; `decision_curve` of the
      probabilities after Platt scaling. {"not_chosen": counts} for a label that had
      one class on validation.
    """
    counts = {k: chosen[k] for k in ("chosen_on", "known", "positives")}
    if "thresholds" not in chosen:
        return {"not_chosen": counts}
    found: dict[str, Any] = {"thresholds": dict(counts), "calibration": dict(counts)}
    a, b = chosen["scalings"]["platt"]
    for rule, t in chosen["thresholds"].items():
        rates = thresholds.rates(x, y, weights, t)
        found["thresholds"][rule] = {
            "logit": t,
            "probability": float(scores.sigmoid(t)),
            "calibrated_probability": float(scores.sigmoid(a * t + b)),
        }
        found["thresholds"][rule] |= {k: statistics.row(v) for k, v in rates.items()}
    for name, scaling in chosen["scalings"].items():
        found["calibration"][name] = scaling and _calibrated(x, y, weights, *scaling)
    found["decision_curve"] = thresholds.net_benefit(a * x + b, y, weights)
    return found


def _calibrated(x, y, weights, a: float, b: float) -> dict[str, Any]:
    columns = (a * x + b)[:, None], y[:, None], np.ones((len(x), 1))
    each = {k: scores.MEASURES[k](*columns, weights)[:, 0] for k in ("ece", "brier")}
    return {"a": a, "b": b} | {k: statistics.row(v) for k, v in each.items()}
