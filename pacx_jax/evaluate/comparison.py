"""From probe scores to the tables: every arm, and every pair of arms.

Rows are plain dicts of strings, ints and floats (None where undefined), ready for
JSON, for the terminal and for the report.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from pacx_jax.evaluate import statistics


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All the numbers of a probe study.

    Attributes:
      summary: rows as of `pairs`, treatment - baseline: one a label group and fraction.
      table: one row an arm, fraction and label or group: arm, fraction, labels, group
        (True for a macro mean over a group), auroc, low, high, seeds, n_patients,
        n_positive, n_defined, n_labels.
      pairs: one row a pair, fraction and label or group: a, b, fraction, labels,
        group, a_auroc, b_auroc, difference (a - b), low, high, seeds, n_patients,
        n_labels.
    `n_labels` is the number of labelled training studies at that fraction.
    """

    summary: list[dict]
    table: list[dict]
    pairs: list[dict]


def compare_arms(
    scores: Mapping[tuple[str, float], np.ndarray],
    labels: np.ndarray,
    mask: np.ndarray,
    patients: np.ndarray,
    label_names: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    pairs: Sequence[tuple[str, str]],
    n_labelled: Mapping[float, int],
    baseline: str = "mae",
    treatment: str = "pacx",
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Bootstrap every arm once and read all tables off the same resamples.

    Args:
      scores: (arm, fraction) -> (s, m, c), from `probe.run_probes`.
      labels: (m, c) test labels, 0 or 1.
      mask: (m, c) 1 where a test label is known.
      patients: (m,) test patients.
      label_names: c names.
      groups: group name -> its label names; the macro means ("physiological", ...).
      pairs: (a, b) arms whose difference a - b is wanted.
      n_labelled: fraction -> labelled training studies (`subsets.subset_size`).
      baseline, treatment: the summary's arms.
      n_resamples: of patients and subset seeds.
      seed: of the resamples.

    Returns:
      Comparison; pairs and summary rows only where both arms were probed.
    """
    truth = np.where(np.asarray(mask) > 0, labels, np.nan).astype(np.float64)
    columns = _columns(label_names, groups)
    weights = statistics.bootstrap_weights(patients, n_resamples, seed)
    n_patients = len(np.unique(patients))
    values: dict[tuple[str, float, str], tuple[float, np.ndarray]] = {}
    table = []
    for (arm, fraction), arm_scores in scores.items():
        point, resampled = statistics.resampled_auroc(arm_scores, truth, weights)
        draws = statistics.seed_draws(len(point), n_resamples, seed)
        common = {
            "seeds": len(point),
            "n_patients": n_patients,
            "n_labels": int(n_labelled[fraction]),
        }
        for name, (index, group) in columns.items():
            value, drawn = statistics.macro_distribution(
                point[:, index], resampled[:, :, index], draws
            )
            values[arm, fraction, name] = (value, drawn)
            row = {"arm": arm, "fraction": fraction, "labels": name, "group": group}
            row |= _numbers("auroc", statistics.estimate(value, drawn)) | common
            row["n_positive"] = int(np.sum(truth[:, index] == 1))
            row["n_defined"] = int(np.sum(~np.isnan(point[:, index]).any(axis=0)))
            table.append(row)
    rows = {(r["arm"], r["fraction"], r["labels"]): r for r in table}
    pair_rows = [
        _pair_row(a, b, fraction, name, values, rows)
        for a, b in pairs
        for fraction in dict.fromkeys(f for _, f in scores)
        for name in columns
        if (a, fraction) in scores and (b, fraction) in scores
    ]
    summary = [
        _pair_row(treatment, baseline, fraction, name, values, rows)
        for name in groups
        for fraction in sorted({f for _, f in scores})
        if (treatment, fraction) in scores and (baseline, fraction) in scores
    ]
    return Comparison(summary, table, pair_rows)


def verdict(low: float | None, high: float | None) -> str:
    """What an interval of a difference shows: "gain", "loss" or "not shown"."""
    if low is None or high is None:
        return "not shown"
    return "gain" if low > 0 else "loss" if high < 0 else "not shown"


def _columns(
    label_names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[list[int], bool]]:
    """Group and label names -> (column indices, whether it is a group)."""
    place = {name: i for i, name in enumerate(label_names)}
    columns = {}
    for group, members in groups.items():
        missing = [name for name in members if name not in place]
        if missing or not members:
            raise ValueError(
                f"label group {group!r} names {missing or 'nothing'}; "
                f"the labels are {list(label_names)}"
            )
        if group in place:
            raise ValueError(f"label group {group!r} has the name of a label")
        columns[group] = ([place[name] for name in members], True)
    return columns | {name: ([i], False) for name, i in place.items()}


def _pair_row(a, b, fraction, name, values, rows) -> dict:
    (value_a, drawn_a), (value_b, drawn_b) = (values[x, fraction, name] for x in (a, b))
    gap = statistics.estimate(value_a - value_b, drawn_a - drawn_b)
    row, other = (rows[x, fraction, name] for x in (a, b))
    if row["seeds"] != other["seeds"]:
        raise ValueError(f"arms {a!r} and {b!r} have different subset seeds")
    keep = ("labels", "fraction", "group", "seeds", "n_patients", "n_labels")
    return (
        {"a": a, "b": b}
        | {key: row[key] for key in keep}
        | {"a_auroc": row["auroc"], "b_auroc": other["auroc"]}
        | _numbers("difference", gap)
    )


def _numbers(name: str, e: statistics.Estimate) -> dict:
    return {name: _plain(e.value), "low": _plain(e.low), "high": _plain(e.high)}


def _plain(value: float) -> float | None:
    """A JSON number: None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value)
