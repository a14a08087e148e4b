"""Figures of a run's page beside lines: squares, forests, matrices, images."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pacx_jax import files
from pacx_jax.evaluate.reports import figures
from pacx_jax.evaluate.reports.figures import COLOURS, WIDTH
from pacx_jax.evaluate.reports.run_parts import Pictures

FORMATS = ("png", "svg", "pdf")  # of files


def square(drawn: Sequence[tuple], x_label: str, y_label: str) -> Figure:
    """Curves in the unit square, with its diagonal.

    Args:
      drawn: (name, colour, x, y), or (name, colour, x, y, low, high) for points with
        intervals, which lines join.
    """
    with figures.styled():
        height = WIDTH * 0.8 + 0.17 * len(drawn)
        figure = Figure((WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), ":", color=COLOURS["muted"], linewidth=0.8)
        handles = []
        for name, colour, x, y, *span in drawn:
            (line,) = axes.plot(
                x,
                y,
                color=COLOURS[colour],
                label=name,
                linewidth=1.6,
                marker="o" if span else None,
                markersize=3,
                clip_on=False,
            )
            handles.append(line)
            if span:
                low, high = np.float64(span)  # None is NaN: not drawn
                axes.vlines(x, low, high, color=COLOURS[colour], linewidth=0.9)
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
        figures.legend(figure, handles, beside=False)
        return figure


def groups(drawn: Sequence[tuple], x_label: str) -> Figure | None:
    """A forest: a row a group, a point with its interval for each run; None without.

    Args:
      drawn: (run, colour, group, n, row of value, low and high).
    """
    drawn = [each for each in drawn if each[-1]["value"] is not None]
    if not drawn:
        return None
    runs = list(dict.fromkeys(name for name, *_ in drawn))
    rows = list(dict.fromkeys(group for _, _, group, *_ in drawn))
    sizes = {group: n for _, _, group, n, _ in drawn}
    with figures.styled():
        height = 0.8 + (0.22 + 0.14 * len(runs)) * len(rows) + 0.17 * len(runs)
        figure = Figure((WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        handles = {}
        for name, colour, group, _, row in drawn:
            y = rows.index(group) + (runs.index(name) - (len(runs) - 1) / 2) * 0.25
            paint = COLOURS[colour]
            if None not in (row["low"], row["high"]):
                axes.hlines(y, row["low"], row["high"], color=paint, linewidth=2)
            (point,) = axes.plot(row["value"], y, "o", color=paint, label=name)
            handles[name] = point
        axes.set_yticks(range(len(rows)), [f"{g} (n {sizes[g]:,})" for g in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(x_label)
        figures.legend(figure, list(handles.values()) * (len(runs) > 1), beside=False)
        return figure


def matrices(found: Mapping[str, np.ndarray]) -> Figure:
    """Small 2 x 2 matrices of counts, of truth by call, one a label."""
    across = min(len(found), 3)
    down = -(-len(found) // across)
    with figures.styled():
        size = (WIDTH / 3 * max(across, 2), 1.5 * down)
        figure = Figure(size, layout="constrained")
        every = np.ravel(figure.subplots(down, across, squeeze=False))
        for axes, (name, counts) in zip(every, found.items(), strict=False):
            _matrix(axes, counts, ("yes", "no"), 8)
            axes.set_title(name, fontsize=7, color=COLOURS["ink"])
            axes.set_xlabel("called", fontsize=8)
            axes.set_ylabel("true", fontsize=8)
        for axes in every[len(found) :]:
            axes.set_axis_off()
        return figure


def classes(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """A matrix of counts, (c, c), of true by called class."""
    with figures.styled():
        side = max(WIDTH * 0.6, 0.45 * len(names))
        figure = Figure((side + 1, side), layout="constrained")
        axes = figure.subplots()
        _matrix(axes, counts, names, 8 if len(names) < 10 else 6)
        axes.tick_params(axis="x", rotation=90)
        axes.set(xlabel="called", ylabel="true")
        return figure


def _matrix(axes: Axes, counts: np.ndarray, names: Sequence[str], size: int) -> None:
    """Counts as shaded squares; a shade is a share of the row."""
    axes.grid(visible=False)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for (i, j), n in np.ndenumerate(counts):
        paint = {"color": COLOURS["pacx"], "alpha": 0.04 + 0.4 * share[i, j]}
        axes.add_patch(matplotlib.patches.Rectangle((j, i), 0.96, 0.96, lw=0, **paint))
        style = {"color": COLOURS["ink"], "fontsize": size}
        axes.text(j + 0.48, i + 0.48, f"{n:,}", ha="center", va="center", **style)
    ticks = np.arange(len(names)) + 0.48
    axes.set_xticks(ticks, names, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlim=(0, len(names)), ylim=(len(names), 0), aspect="equal")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def panel(rows: Sequence[Pictures]) -> Figure:
    """Rows of images for a paper, each with its caption above."""
    across = max(len(row.images) for row in rows)
    with figures.styled():
        size = (1.4 * across, 1.6 * len(rows))
        figure = Figure(size, layout="constrained")
        grid = figure.subplots(len(rows), across, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for line, row in zip(grid, rows, strict=True):
            for axes, (caption, image) in zip(line, row.images, strict=False):
                image = image[..., 0] if image.shape[2:] == (1,) else image
                axes.imshow(image, cmap="gray", vmin=0, vmax=255)
                axes.set_title(caption, fontsize=6)
        return figure


def save(figure: Figure, folder: pathlib.Path, name: str) -> None:
    """Writes the figure to folder/name.png, .svg and .pdf, on white paper."""
    unsaid = {"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator")}
    for kind in FORMATS:
        metadata = dict.fromkeys(unsaid.get(kind, ()))
        path = folder / f"{name}.{kind}"
        with figures.styled(), files.whole(path, "wb") as file:
            figure.savefig(file, format=kind, dpi=300, metadata=metadata)
