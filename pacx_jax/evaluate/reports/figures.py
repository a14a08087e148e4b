"""Figures of the report: matplotlib charts as inline SVG, images as PNG data URIs.

Charts are drawn in COLOURS, which then become the page's CSS variables of these names,
so that one drawing serves the light theme, the dark theme and print. Text stays text.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.figure import Figure
from PIL import Image

from pacx_jax.evaluate.comparison import verdict
from pacx_jax.evaluate.reports import tables
from pacx_jax.evaluate.reports.tables import Arm

COLOURS = {  # on light paper
    "ink": "#18212c",
    "muted": "#5a6675",
    "line": "#d3dbe4",
    "pacx": "#0b5cad",
    "mae": "#b3480b",
    "gain": "#0d6138",
    "loss": "#9c1d1d",
}
STYLE = {
    "svg.fonttype": "none",  # text, not paths
    "svg.hashsalt": "pacx",  # the same identifiers every time
    "text.parse_math": False,
    "font.size": 9,
    "axes.formatter.useoffset": False,
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
WIDTH = 4.7  # of a chart, in inches
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 1)))


class Line(NamedTuple):
    """One line of a chart, with its name at its right end."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]  # points that are None or not finite are left out
    colour: str  # a key of COLOURS
    dash: str | tuple = "-"
    spans: Sequence[tuple] | None = None  # (t, 2) intervals of y


def efficiency(
    table: Sequence[Mapping], arms: Mapping[str, Arm], group: str
) -> Markup | None:
    """AUROC against the share of labels, one line an arm; None without values."""
    rows = tables.cells(table)
    fractions = sorted({row["fraction"] for row in table})
    lines, dashes = [], itertools.cycle(DASHES)
    for arm in tables.arm_order(table, arms):
        shown = arms.get(arm, Arm(arm))
        found = [rows[arm, group, f] for f in fractions if (arm, group, f) in rows]
        compared = arm in ("pacx", "mae")
        colour = arm if compared else "ink" if shown.role == "ceiling" else "muted"
        x, y = ([row[key] for row in found] for key in ("fraction", "auroc"))
        spans = [(row["low"], row["high"]) for row in found] if compared else None
        dash = next(dashes) if colour == "muted" else "-"
        lines.append(Line(shown.name, x, y, colour, dash, spans))
    return _lines(lines, "share of the training labels", "AUROC", fractions)


def curves(series: Mapping[str, tuple]) -> Markup | None:
    """Values over training steps, one line a name; None without values."""
    colours = ("pacx", "mae", "muted", "ink")
    lines = [
        Line(name, *values, colours[i % 4], DASHES[i // 4 % len(DASHES)])
        for i, (name, values) in enumerate(series.items())
    ]
    return _lines(lines, "step", "value")


def forest(summary: Sequence[Mapping]) -> Markup | None:
    """PaCX - MAE with its interval, a row each; None without values."""
    rows = [
        row
        for row in summary
        if None not in (row["difference"], row["low"], row["high"])
    ]
    if not rows:
        return None
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure((WIDTH, 0.8 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        for y, row in enumerate(rows):
            kind = verdict(row["low"], row["high"])
            colour = COLOURS.get(kind, COLOURS["muted"])
            axes.hlines(y, row["low"], row["high"], color=colour, linewidth=2.2)
            axes.plot(row["difference"], y, "o", color=colour, markersize=6)
            axes.annotate(
                tables.minus(tables.number(row["difference"], True)),
                (1.02, y),
                xycoords=axes.get_yaxis_transform(),
                color=colour,
                va="center",
            )
        names = [f"{r['labels']}, {tables.percent(r['fraction'])}" for r in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("difference in AUROC")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        return _svg(figure)


def _lines(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    fractions: Sequence[float] | None = None,
) -> Markup | None:
    """A line chart; with `fractions` its x axis is logarithmic, and chance marked."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure((WIDTH, 3.2 if fractions else 2.7), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="x", visible=False)
        ends = []
        # The first lines are the important ones, so they are drawn last, on top.
        for line in reversed(lines):
            x, y = np.array(line.x, np.float64), np.array(line.y, np.float64)
            good = np.isfinite(x) & np.isfinite(y)
            if not good.any():
                continue
            colour, strong = COLOURS[line.colour], line.colour in ("pacx", "mae")
            if line.spans is not None:
                low, high = np.array(line.spans, np.float64)[good].T
                axes.vlines(x[good], low, high, color=colour, linewidth=1)
            axes.plot(
                x[good],
                y[good],
                color=colour,
                linestyle=line.dash,
                linewidth=1.8 if strong else 1.2,
                marker="o" if fractions or good.sum() == 1 else None,
                markersize=4 if strong else 3,
            )
            ends.append((y[good][-1], x[good][-1], line.name, colour))
        if not ends:
            return None
        if fractions:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(fractions, [tables.percent(f) for f in fractions])
            axes.axhline(0.5, color=COLOURS["muted"], linewidth=0.8, linestyle=":")
            ends.append((0.5, fractions[-1], "chance", COLOURS["muted"]))
        else:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel=x_label, ylabel=y_label)
        _name_ends(axes, ends)
        return _svg(figure)


def _name_ends(axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names (y, x, name, colour) ends of lines; names that would overlap move apart."""
    low, high = axes.get_ylim()
    gap = (high - low) / 15
    ends = sorted(ends)
    places: list[float] = []
    for y, *_ in ends:
        places.append(max(y, places[-1] + gap) if places else y)
    for i, (y, x, name, colour) in enumerate(ends):
        place = min(places[i], high - gap * (len(ends) - 1 - i))
        axes.annotate(
            name,
            (x, y),
            (1.06, place),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            arrowprops=dict(
                arrowstyle="-", color=colour, linewidth=0.5, relpos=(0, 0.5), shrinkA=1
            ),
            annotation_clip=False,
        )


def _svg(figure: Figure) -> Markup:
    """The figure as an <svg> element for an HTML page."""
    file = io.StringIO()
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # HTML needs no namespaces; a style element would hold for the whole page, and the
    # names of groups, that nothing refers to, would occur in every figure.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:\w+)?|id)="[^"]*[:_][^"]*"', "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)  # matplotlib escaped the texts


def png_uri(image: np.ndarray) -> str:
    """A uint8 (h, w), (h, w, 1) or (h, w, 3) image as a PNG data URI."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image, np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def attention(
    image: np.ndarray, mae: np.ndarray, pacx: np.ndarray, difference: np.ndarray
) -> list[np.ndarray]:
    """Attention maps to be seen: over their X-ray, the difference by itself.

    Args:
      image: (h, w) or (h, w, c) uint8.
      mae: (h, w) in [0, 1].
      pacx: (h, w) in [0, 1].
      difference: (h, w) in [-1, 1].

    Returns:
      Four uint8 images: the X-ray, MAE, PaCX, and red where PaCX has more.
    """
    grey = image.reshape(*image.shape[:2], -1)
    heats = [matplotlib.colormaps["inferno"](m)[..., :3] * 255 for m in (mae, pacx)]
    mixed = [np.round((grey + heat) / 2).astype(np.uint8) for heat in heats]
    shades = matplotlib.colormaps["RdBu_r"]((difference + 1) / 2, bytes=True)
    return [image, *mixed, shades[..., :3]]
