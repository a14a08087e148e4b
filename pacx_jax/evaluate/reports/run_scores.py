"""Scores of runs on held-out patients: tables, ROC and reliability curves, confusion.

They are what `--evaluate` wrote; a file of predictions without it is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pacx_jax.evaluate import statistics
from pacx_jax.evaluate.reports import run_figures, run_splits, run_thresholds
from pacx_jax.evaluate.reports.run_files import Run
from pacx_jax.evaluate.reports.run_parts import COLOURS, Chart, Part, Table
from pacx_jax.evaluate.reports.run_splits import NEED, Scored, span


def parts(runs: Sequence[Run]) -> list[Part]:
    """The sections on held-out patients, for each split that was measured."""
    splits = dict.fromkeys(s for r in runs for s in (*r.evaluations, *r.predictions))
    order = sorted(splits, key=lambda split: (split != "test", split))
    out = []
    for split in order or [""]:
        scored = [
            run_splits.scored(run, split, colour)
            for run, colour in zip(runs, COLOURS, strict=False)
            if split in run.evaluations or split in run.predictions
        ]
        of = f", {split}" if split else ""
        out += [
            _numbers(scored, of),
            _roc(scored, of),
            _reliability(scored, of),
            run_thresholds.confusion(scored, of),
            run_thresholds.subgroups(scored, of),
        ]
    return out


def _numbers(scored: Sequence[Scored], of: str) -> Part:
    columns = {}
    for one in scored:
        for whose, found in ({"": one.found} | one.found.get("sets", {})).items():
            measured = found.get("scores", {})
            each = measured.get("labels", {})
            whole = {"mean": measured["macro"]} if len(each) > 1 else {}
            for label, values in (whole | each).items():
                label = f"{whose}: {label}" if whose else label
                for measure, row in values.items():
                    columns.setdefault((label, measure), {})[one.name] = span(row)
    names = [one.name for one in scored]
    rows = [
        [label, measure.replace("_", " "), *(found.get(name, "") for name in names)]
        for (label, measure), found in columns.items()
    ]
    heads = ("label", "measure", *names)
    tables = [Table("Scores with 95% intervals over patients", heads, rows)]
    notes = [
        f"{one.name}: {note}." for one in scored for note in one.found.get("notes", ())
    ]
    sizes = [f"{one.name}: {one.found.get('n', 0):,} examples." for one in scored]
    return Part(
        f"Scores on held-out patients{of}",
        f"Nothing was measured on held-out patients. {NEED}.",
        " ".join(sizes + notes),
        tables=tables if rows else (),
    )


def _labels(scored: Sequence[Scored], of: str) -> list[str]:
    return list(dict.fromkeys(label for one in scored for label in getattr(one, of)))


def _roc(scored: Sequence[Scored], of: str) -> Part:
    charts = []
    for label in _labels(scored, "known"):
        drawn = []
        for one in scored:
            truth, logit = one.known.get(label, (np.zeros(0), np.zeros(0)))
            if len(set(truth)) == 2:
                area = statistics.auroc(logit, truth)
                name = f"{one.name}, AUROC {area:.3f}"
                drawn.append((name, one.colour, *roc(logit, truth)))
        if drawn:
            figure = run_figures.square(drawn, "1 - specificity", "sensitivity")
            charts.append(Chart(f"ROC, {label}{of}", _told(drawn), figure))
    return Part(
        f"ROC curves{of}",
        f"There are no predictions of labels. {NEED} --predictions.",
        charts=charts,
    )


def _told(drawn: Sequence[tuple]) -> str:
    return "; ".join(name for name, *_ in drawn)


def roc(logit: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at thresholds from above all logits down.

    Studies of one logit share a point. Of many points some 500 are kept.
    """
    order = np.argsort(-logit, kind="stable")
    falling, positive = logit[order], truth[order] == 1
    last = np.append(falling[1:] != falling[:-1], True)
    x, y = (np.cumsum(v)[last] / v.sum() for v in (~positive, positive))
    kept = np.unique(np.linspace(0, len(x) - 1, 500).round().astype(int))
    return np.append(0, x[kept]), np.append(0, y[kept])


def _reliability(scored: Sequence[Scored], of: str) -> Part:
    charts, rows = [], []
    names = dict.fromkeys(k for s in scored for k in s.found.get("reliability", {}))
    for label in names:
        drawn = []
        for one in scored:
            bins = one.found.get("reliability", {}).get(label, [])
            bins = [b for b in bins if b["observed"]["value"] is not None]
            observed = [b["observed"] for b in bins]
            values = [[o[k] for o in observed] for k in ("value", "low", "high")]
            if bins:
                x = [b["predicted"] for b in bins]
                drawn.append((one.name, one.colour, x, *values))
        if drawn:
            figure = run_figures.square(
                drawn, "predicted probability", "observed share"
            )
            charts.append(Chart(f"Reliability, {label}{of}", _told(drawn), figure))
    for one in scored:
        for label, each in one.found.get("calibration", {}).items():
            for scaling in ("none", "temperature", "platt"):
                if found := each.get(scaling):
                    measured = [span(found[k]) for k in ("ece", "brier")]
                    rows.append([label, one.name, scaling, *measured])
    heads = ("label", "run", "scaling", "ECE", "Brier score")
    return Part(
        f"Reliability{of}",
        f"Calibration was not measured. {NEED}.",
        "Bars are 95% intervals. On the diagonal, of the studies that are given a "
        "probability that share has the label."
        if charts
        else "",
        charts=charts,
        tables=[Table("Calibration, scaled on validation", heads, rows)]
        if rows
        else (),
    )
