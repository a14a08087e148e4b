"""From probe scores to the tables: every arm, and every pair of arms.

Rows are plain dicts of strings, ints and floats (None where undefined), ready for
JSON, for the terminal and for the report.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import statistics

if TYPE_CHECKING:
    from jaxtyping import Real, Shaped


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All the numbers of a probe study.

    Attributes:
      summary: rows as of `pairs`, treatment - baseline: one a label group and fraction;
        p_holm is None where this is none of the pairs.
      table: one row an arm, fraction and label or group: arm, fraction, labels, group
        (True for a macro mean over a group), auroc, low, high, spread, trainings,
        subsets, n_patients, n_positive, n_defined, n_labels.
      pairs: one row a pair, fraction and label or group: a, b, fraction, labels,
        group, a_auroc, b_auroc, difference (a - b), low, high, spread, p, p_holm,
        trainings, subsets, n_patients, n_labels. p is two-sided, see
        `statistics.p_value`, and None for fewer than `MIN_TRAININGS`; p_holm corrects
        it for the rows of all groups, or of all labels.
    `trainings` counts training seeds, `spread` is the standard deviation over them
    (None for one), `subsets` counts subset seeds, `n_labels` labelled training studies.
    """

    summary: list[dict]
    table: list[dict]
    pairs: list[dict]


_KEYS = ("a", "b", "labels", "fraction")  # of a row of pairs
MIN_TRAININGS = 3  # training seeds below which no effect is claimed


def by_training(
    scores: Mapping[tuple[tuple[str, int], float], Real[np.ndarray, "_s m c"]],
) -> dict[tuple[str, float], Real[np.ndarray, "_t _s m c"]]:
    """((arm, training), fraction) -> (s, m, c) to (arm, fraction) -> (t, s, m, c)."""
    found: dict[tuple[str, float], list[np.ndarray]] = {}
    for ((arm, _), fraction), each in sorted(scores.items(), key=lambda x: x[0][0][1]):
        found.setdefault((arm, fraction), []).append(each)
    return {key: np.stack(each) for key, each in found.items()}


def compare_arms(
    scores: Mapping[tuple[str, float], Real[np.ndarray, "_t _s m c"]],
    labels: Real[np.ndarray, "m c"],
    mask: Real[np.ndarray, "m c"],
    patients: Shaped[np.ndarray, " m"],
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
      scores: (arm, fraction) -> (t, s, m, c); t training seeds, s label subsets. In a
        pair, training k of one arm stands against training k of the other; an arm with
        one training, such as a floor, against each.
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

    Raises:
      PacxError: a score of a known label is NaN.
    """
    truth = np.where(np.asarray(mask) > 0, labels, np.nan).astype(np.float64)
    columns = _columns(label_names, groups)
    weights = statistics.bootstrap_weights(patients, n_resamples, seed)
    n_patients = len(np.unique(patients))
    values: dict[tuple[str, float, str], tuple[np.ndarray, np.ndarray]] = {}
    table = []
    for (arm, fraction), arm_scores in scores.items():
        if lost := int(np.isnan(np.where(np.isnan(truth), 0, arm_scores)).sum()):
            raise PacxError(
                f"arm {arm!r}, {fraction:g}: {lost} scores of known labels are NaN; a "
                "mean without them would be of other images than the other arms': look "
                "at what the encoder embeds, or leave the arm out"
            )
        point, resampled = statistics.resampled_auroc(arm_scores, truth, weights)
        draws = statistics.seed_draws(point.shape[1], n_resamples, seed)
        common = {
            "trainings": point.shape[0],
            "subsets": point.shape[1],
            "n_patients": n_patients,
            "n_labels": int(n_labelled[fraction]),
        }
        for name, (index, group) in columns.items():
            each, drawn = statistics.macro_distribution(
                point[..., index], resampled[..., index], draws
            )
            values[arm, fraction, name] = (each, drawn)
            row = {"arm": arm, "fraction": fraction, "labels": name, "group": group}
            row |= _numbers("auroc", each, drawn, seed) | common
            row["n_positive"] = int(np.sum(truth[:, index] == 1))
            defined = ~np.isnan(point[..., index]).any(axis=(0, 1))
            row["n_defined"] = int(defined.sum())
            table.append(row)
    rows = {(r["arm"], r["fraction"], r["labels"]): r for r in table}
    pair_rows = [
        _pair_row(a, b, fraction, name, values, rows, seed)
        for a, b in pairs
        for fraction in dict.fromkeys(f for _, f in scores)
        for name in columns
        if (a, fraction) in scores and (b, fraction) in scores
    ]
    for group in (True, False):
        family = [row for row in pair_rows if row["group"] is group]
        known = [math.nan if row["p"] is None else row["p"] for row in family]
        for row, p in zip(family, statistics.holm(known), strict=True):
            row["p_holm"] = _plain(p)
    summary = [
        _pair_row(treatment, baseline, fraction, name, values, rows, seed)
        for name in groups
        for fraction in sorted({f for _, f in scores})
        if (treatment, fraction) in scores and (baseline, fraction) in scores
    ]
    adjusted = {tuple(r[k] for k in _KEYS): r["p_holm"] for r in pair_rows}
    for row in summary:  # as among all the pairs, if it is one of them
        row["p_holm"] = adjusted.get(tuple(row[k] for k in _KEYS))
    return Comparison(summary, table, pair_rows)


def verdict(row: Mapping) -> str:
    """What a row of `Comparison.pairs` shows.

    "gain", "loss", "not shown", or "not judged": so for fewer than `MIN_TRAININGS`
    training seeds, which tell too little of how another training would come out.
    """
    if row["trainings"] < MIN_TRAININGS:
        return "not judged"
    if row["low"] is None or row["high"] is None:
        return "not shown"
    return "gain" if row["low"] > 0 else "loss" if row["high"] < 0 else "not shown"


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


def _pair_row(a, b, fraction, name, values, rows, seed) -> dict:
    (each_a, drawn_a), (each_b, drawn_b) = (values[x, fraction, name] for x in (a, b))
    row, other = (rows[x, fraction, name] for x in (a, b))
    if row["subsets"] != other["subsets"]:
        raise ValueError(f"arms {a!r} and {b!r} have different subset seeds")
    trainings = {row["trainings"], other["trainings"]}
    if len(trainings - {1}) > 1:
        raise ValueError(f"arms {a!r} and {b!r} have different training seeds")
    each, drawn = each_a - each_b, drawn_a - drawn_b
    judged = max(trainings) >= MIN_TRAININGS
    p = statistics.p_value(each, drawn)
    return (
        {"a": a, "b": b}
        | {key: row[key] for key in ("labels", "fraction", "group")}
        | {"trainings": max(trainings)}
        | {key: row[key] for key in ("subsets", "n_patients", "n_labels")}
        | {"a_auroc": row["auroc"], "b_auroc": other["auroc"]}
        | _numbers("difference", each, drawn, seed)
        | {"p": _plain(p) if judged else None}
    )


def _numbers(name: str, each: np.ndarray, drawn: np.ndarray, seed: int) -> dict:
    e = statistics.over_trainings(each, drawn, seed)
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else math.nan
    found = {name: e.value, "low": e.low, "high": e.high, "spread": spread}
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: float) -> float | None:
    """A JSON number: None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value)
