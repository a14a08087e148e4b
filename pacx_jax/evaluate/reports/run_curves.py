"""Curves of runs: losses, metrics, learning rate, norms, speed, and where time went."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from pacx_jax import objectives
from pacx_jax.errors import PacxError
from pacx_jax.evaluate.reports import figures
from pacx_jax.evaluate.reports.figures import COLOURS, Line
from pacx_jax.evaluate.reports.run_files import Run, Series
from pacx_jax.evaluate.reports.run_parts import COLOURS as RUNS
from pacx_jax.evaluate.reports.run_parts import Chart, Part, Table

SPANS = 400  # of steps, in which a longer curve is summed up
TITLES = {
    "learning_rate": "Learning rate",
    "grad_norm": "Norm of the gradient",
    "update_norm": "Norm of the update",
    "param_norm": "Norm of the parameters",
    "adapter_share": "Adapters' share",
}
_VAL = "val/"


def parts(runs: Sequence[Run]) -> list[Part]:
    """Everything that is over steps or over seconds."""
    panels = dict.fromkeys(
        name.removeprefix(_VAL) for run in runs for name in run.metrics
    )
    shown = [name for name in _important(runs) if name in panels]
    others = [name for name in panels if name not in (*shown, *TITLES)]
    dashed = " Full lines are training, dashed ones with dots validation."
    return [
        Part(
            "Loss and metrics",
            "No metrics were logged.",
            "A curve of more than "
            f"{2 * SPANS} values is drawn as the mean, and a band from the lowest to "
            f"the highest, of {SPANS} spans of steps." + dashed,
            charts=[c for name in shown if (c := _chart(runs, name, name))],
            folded=[c for name in others if (c := _chart(runs, name, name))],
            tables=_values(runs),
        ),
        Part(
            "Learning rate and norms",
            "Neither learning rate nor norms were logged.",
            "The adapters' share is the norm of what low-rank adapters add to the "
            "weights, by the norm of those."
            if "adapter_share" in panels
            else "",
            charts=[
                c for name, title in TITLES.items() if (c := _chart(runs, name, title))
            ],
        ),
        _speed(runs),
    ]


def thinned(series: Series) -> dict[str, np.ndarray]:
    """`x`, `y` of a Line; of a long series also its band.

    Spans have as many values each, to one; those that are not finite are left out.
    """
    steps, values = (v[np.isfinite(series[1])] for v in series)
    if len(steps) <= 2 * SPANS:
        return {"x": steps, "y": values}
    starts = np.arange(SPANS) * len(steps) // SPANS
    counts = np.diff(starts, append=len(steps))
    return {
        "x": np.add.reduceat(steps, starts) / counts,
        "y": np.add.reduceat(values, starts) / counts,
        "low": np.minimum.reduceat(values, starts),
        "high": np.maximum.reduceat(values, starts),
    }


def _important(runs: Sequence[Run]) -> list[str]:
    """The metrics to show at once: the loss, what objectives show, what chose."""
    found = ["loss"]
    for run in runs:
        try:
            found += objectives.load(run.config.objective).SHOWN
        except (PacxError, AttributeError):  # of another's library
            pass
        found.append(run.config.get("best", "").removeprefix(_VAL))
    return list(dict.fromkeys(found))


def _chart(runs: Sequence[Run], name: str, title: str) -> Chart | None:
    drawn, logged = [], []
    for run, colour in zip(runs, RUNS, strict=False):
        who = run.name if len(runs) > 1 else "train"
        if name in run.metrics:
            logged.append(run.metrics[name][1])
            drawn.append(Line(who, **thinned(run.metrics[name]), colour=colour))
        if _VAL + name in run.metrics:
            logged.append(run.metrics[_VAL + name][1])
            who = f"{run.name}, validation" if len(runs) > 1 else "validation"
            more = thinned(run.metrics[_VAL + name])
            few = len(more["x"]) <= 50
            style = {"dash": (0, (4, 2)), "marker": "o" if few else ""}
            drawn.append(Line(who, **more, colour=colour, strong=False, **style))
    described = f"value by step of {', '.join(line.name for line in drawn)}"
    if [line.name for line in drawn] == ["train"]:
        drawn = [dataclasses.replace(drawn[0], name="")]
    figure = figures.lines(
        drawn, "step", name, beside=len(runs) == 1, log=_is_wide(name, logged)
    )
    return figure and Chart(title, described, figure)


def _is_wide(name: str, logged: Sequence[np.ndarray]) -> bool:
    """Whether losses or gradients are positive and span two orders of magnitude."""
    if "loss" not in name and name != "grad_norm":
        return False
    values = np.concatenate([np.empty(0), *logged])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > 100 * values.min())


def _values(runs: Sequence[Run]) -> list[Table]:
    rows = []
    for run in runs:
        for name, (steps, values) in run.metrics.items():
            good = np.flatnonzero(np.isfinite(values))
            if not len(good):
                rows.append([name, run.name, "none is finite", *[""] * 5])
                continue
            low, high = (good[f(values[good])] for f in (np.argmin, np.argmax))
            cells = [f"{v:.4g}" for i in (good[-1], low, high) for v in (values[i],)]
            at = [int(steps[i]) for i in (good[-1], low, high)]
            pairs = zip(cells, at, strict=True)
            rows.append([name, run.name, *(x for pair in pairs for x in pair)])
    heads = ("metric", "run", "last", "its step", "lowest", "step of lowest", "highest")
    heads = (*heads, "step of highest")
    return [Table("Values of every metric", heads, rows, True)] if rows else []


def _speed(runs: Sequence[Run]) -> Part:
    rates, stalls = [], []
    for run, colour in zip(runs, RUNS, strict=False):
        if "seconds" not in run.timings:
            continue
        steps, seconds = run.timings["seconds"]
        before = np.concatenate([[0], steps[:-1]])
        for began in run.timings.get("setup_seconds", ([], []))[0]:  # of each session
            if len(after := np.flatnonzero(steps > began)):
                before[after[0]] = max(before[after[0]], began)
        rate = (steps - before) * run.config.global_batch_size / seconds
        name = run.name if len(runs) > 1 else ""
        rates.append(Line(name, **thinned((steps, rate)), colour=colour))
        if "data_stall" in run.timings:
            waited = np.diff(run.timings["data_stall"][1], prepend=0)
            if len(waited) == len(seconds):
                share = np.clip(waited / seconds, 0, 1)
                stalls.append(Line(name, **thinned((steps, share)), colour=colour))
    titles = {
        "examples/s": "Examples a second",
        "share of the time": "Time in which devices wait for data",
    }
    charts = [
        Chart(title, "value by step of each run", figure)
        for (unit, title), drawn in zip(titles.items(), (rates, stalls), strict=True)
        if (figure := figures.lines(drawn, "step", unit, beside=False))
    ]
    if bars := _bars({run.name: run.goodput for run in runs if run.goodput}):
        charts.append(Chart("Where the time went", "the table has the numbers", bars))
    return Part(
        "Speed and goodput",
        "No times were recorded.",
        "Goodput is the share of all sessions' time in which new steps were computed. "
        "Examples a second count evaluations and checkpoints between two logged steps.",
        charts=charts,
        tables=_goodput(runs),
    )


def _goodput(runs: Sequence[Run]) -> list[Table]:
    found = {run.name: run.goodput for run in runs if run.goodput}
    if not found:
        return []
    kinds = next(iter(found.values()))["seconds"]
    rows = [
        [
            name,
            f"{each['goodput']:.0%}",
            *(f"{each['seconds'].get(kind, 0):,.1f}" for kind in kinds),
            each["sessions"],
        ]
        for name, each in found.items()
    ]
    heads = ["run", "goodput", *(kind.replace("_", " ") for kind in kinds), "sessions"]
    return [Table("Where the seconds went", heads, rows)]


def _bars(found: dict[str, dict]) -> Figure | None:
    """The share of each kind of time, a bar a run."""
    totals = {name: sum(each["seconds"].values()) for name, each in found.items()}
    if not any(totals.values()):
        return None
    kinds = list(next(iter(found.values()))["seconds"])
    with figures.styled():
        n = len(found)
        figure = Figure(
            (figures.WIDTH, 1 + 0.1 * len(kinds) * (1 + n)), layout="constrained"
        )
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        handles = []
        for i, (name, each) in enumerate(found.items()):
            share = [each["seconds"].get(k, 0) / totals[name] for k in kinds]
            y = np.arange(len(kinds)) + (i - (n - 1) / 2) * 0.8 / n
            colour = COLOURS[RUNS[i]]
            handles.append(axes.barh(y, share, 0.8 / n, color=colour, label=name))
        axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
        axes.set_xlabel("share of the time")
        figures.legend(figure, handles if n > 1 else (), beside=False)
        return figure
