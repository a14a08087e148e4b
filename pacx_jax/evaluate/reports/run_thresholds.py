"""Confusion of runs at their thresholds, and their scores by subgroup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pacx_jax.evaluate import thresholds
from pacx_jax.evaluate.reports import run_figures
from pacx_jax.evaluate.reports.run_parts import Chart, Part, Table
from pacx_jax.evaluate.reports.run_splits import NEED, Scored, span

HALF = "probability 0.5"  # the rule where no threshold was chosen
RATES = ("sensitivity", "specificity", "ppv", "npv", "f1")


def _rules(one: Scored, label: str) -> dict[str, dict[str, Any]]:
    """Rule -> logit, probability and rates; at HALF without a chosen threshold."""
    found = one.found.get("thresholds", {}).get(label, {})
    chosen = {k: v for k, v in found.items() if isinstance(v, dict)}
    return chosen or {HALF: {"logit": 0.0, "probability": 0.5}}


def _counts(one: Scored, label: str, logit: float) -> np.ndarray | None:
    """[[hits, missed], [false alarms, right]] at a threshold; None without studies."""
    truth, x = one.known.get(label, (np.zeros(0), np.zeros(0)))
    if not len(truth):
        return None
    called = x >= logit
    return np.array(
        [[(called & y).sum(), (~called & y).sum()] for y in (truth == 1, truth == 0)]
    )


def confusion(scored: Sequence[Scored], of: str) -> Part:
    charts, rows = [], []
    for one in scored:
        matrices = {}
        for label in one.found.get("thresholds", one.known):
            for number, (rule, chosen) in enumerate(_rules(one, label).items()):
                counts = _counts(one, label, chosen["logit"])
                rows.append(_confused(one, label, rule, chosen, counts))
                if counts is not None and number == 0:
                    matrices[f"{label}, {rule}"] = counts
        if one.task == "multiclass" and one.every:
            matrices = {"classes": classes(one)}
            figure = run_figures.classes(matrices["classes"], list(one.every))
        elif matrices:
            figure = run_figures.matrices(matrices)
        if matrices:
            title = f"Confusion, {one.name}{of}"
            charts.append(Chart(title, "the table has the numbers", figure))
    heads = ("label", "run", "threshold by", "uncalibrated", "true +", "false +")
    heads += ("false −", "true −", *(r if len(r) > 3 else r.upper() for r in RATES))
    return Part(
        f"Confusion at the thresholds{of}",
        f"There is no threshold to count at. {NEED} --predictions.",
        "Thresholds were chosen on the validation split. Shades are shares of a row."
        if any("thresholds" in one.found for one in scored)
        else "",
        charts=charts,
        tables=[Table("Counts and rates (95% intervals)", heads, rows)] if rows else (),
    )


def _confused(one: Scored, label: str, rule: str, chosen: dict, counts) -> list:
    cells = ["", "", "", ""]
    rates = {k: chosen[k] for k in RATES if k in chosen}
    if counts is not None:
        (hits, missed), (false, right) = counts
        cells = [f"{int(n):,}" for n in (hits, false, missed, right)]
        if not rates:
            truth, x = one.known[label]
            each = thresholds.rates(x, truth, np.ones((1, len(x))), chosen["logit"])
            rates = {
                k: {"value": None if np.isnan(v[0]) else v[0]} for k, v in each.items()
            }
    told = [span(rates[k]) if k in rates else "" for k in RATES]
    return [label, one.name, rule, f"{chosen['probability']:.3f}", *cells, *told]


def classes(one: Scored) -> np.ndarray:
    """(c, c) counts by true class and the likeliest, of studies with one class."""
    labels = list(one.every)
    counts = np.zeros((len(labels), len(labels)), int)
    for study in one.every[labels[0]]:
        cells = [one.every[label].get(study, (np.nan, -np.inf)) for label in labels]
        truth, logit = np.array(cells).T
        if np.nansum(truth) == 1:
            counts[np.nanargmax(truth), np.argmax(logit)] += 1
    return counts


def subgroups(scored: Sequence[Scored], of: str) -> Part:
    charts, rows = [], []
    columns = dict.fromkeys(k for one in scored for k in one.found.get("subgroups", {}))
    for column in columns:
        drawn = []
        for one in scored:
            each = list(_groups(one, column))
            drawn += [(one.name, one.colour, *group[:2], group[-1]) for group in each]
            rows += [
                [column, g, one.name, f"{n:,}", m, span(row)] for g, n, m, row in each
            ]
            gap = one.found["subgroups"].get(column, {}).get("gap", {}).get("macro", {})
            for measure, row in list(gap.items())[:1]:
                told = f"gap, {row.get('highest')} − {row.get('lowest')}"
                if row["value"] is not None:
                    rows.append([column, told, one.name, "", measure, span(row)])
        if figure := run_figures.groups(drawn, "mean over labels"):
            told = f"a row a group by {column}; the table has the numbers"
            charts.append(Chart(f"By {column}{of}", told, figure))
    heads = ("by", "group", "run", "n", "measure", "mean over labels")
    return Part(
        f"Subgroups{of}",
        f"No subgroups were compared. {NEED} --groups=CSV.",
        "Means are over the labels that every group has both classes of. The gap is of "
        "the groups that turned out highest and lowest, so it is too large on average."
        if rows
        else "",
        charts=charts,
        tables=[Table("Subgroups with 95% intervals", heads, rows)] if rows else (),
    )


def _groups(one: Scored, column: str) -> Iterator[tuple[str, int, str, dict]]:
    """(group, n, measure, row) of the first measure, AUROC where there is one."""
    compared = one.found.get("subgroups", {}).get(column, {"n": {}, "scores": {}})
    for group, sizes in compared["n"].items():
        macro = compared["scores"].get(group, {}).get("macro", {})
        measure = "auroc" if "auroc" in macro else next(iter(macro), "not compared")
        row = macro.get(measure, {"value": None, "low": None, "high": None})
        yield group, sizes["n"], measure, row
