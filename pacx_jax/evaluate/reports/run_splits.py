"""A run on one split, for the page: what was measured, and the predictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pacx_jax.evaluate import held_out, predictions
from pacx_jax.evaluate.reports.run_files import Run
from pacx_jax.input import patients

NEED = "Evaluate with --evaluate=test"


@dataclasses.dataclass(frozen=True)
class Scored:
    """A run on a split.

    Attributes:
      name, colour: of the run.
      task: "multiclass" or anything else.
      found: of evaluation_SPLIT.json, or of the same made from predictions.
      known: label -> (truth, logit), (n,) each of the studies that have the label.
      every: label -> study -> (truth or NaN, logit); {} without predictions.
    """

    name: str
    colour: str
    task: str
    found: dict[str, Any]
    known: dict[str, tuple[np.ndarray, np.ndarray]]
    every: dict[str, dict[str, tuple[float, float]]]


def scored(run: Run, split: str, colour: str) -> Scored:
    table = run.predictions.get(split)
    every: dict[str, dict[str, tuple[float, float]]] = {}
    for (study, label), (_, truth, logit) in (table.rows if table else {}).items():
        every.setdefault(label, {})[study] = truth, logit
    known = {}
    for label, rows in every.items():
        truth, logit = np.array(list(rows.values())).T
        known[label] = truth[~np.isnan(truth)], logit[~np.isnan(truth)]
    found = run.evaluations.get(split) or _measured(table)
    task = run.config.get("task", "")
    return Scored(run.name, colour, task, found, known, every)


def _measured(table: predictions.Table) -> dict[str, Any]:
    """What `--evaluate` would say of predictions alone."""
    studies = dict.fromkeys(study for study, _ in table.rows)
    labels = tuple(dict.fromkeys(label for _, label in table.rows))
    lacking = ("", np.nan, 0.0)
    cells = [[table.rows.get((s, c), lacking) for c in labels] for s in studies]
    truth, logits = (np.array([[c[k] for c in row] for row in cells]) for k in (1, 2))
    outputs = {"logits": logits, "labels": np.nan_to_num(truth)}
    outputs["label_mask"] = np.float64(~np.isnan(truth))
    named = [max((c[0] for c in row), default="") for row in cells]
    units, _ = patients.units(named)
    found = held_out.with_intervals(outputs, np.array(units), labels, 0, "multilabel")
    return {"n": len(studies)} | found


def span(row: dict[str, Any]) -> str:
    """A row of value, low and high as 0.812 (0.79 to 0.83)."""
    value, low, high = (row.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "undefined"
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({low:.2f} to {high:.2f})"
