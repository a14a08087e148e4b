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
from pacx_jax.evaluate.reports.words import PACX, Words

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


def efficiency(
    table: Sequence[Mapping], arms: Mapping[str, Arm], group: str, words: Words = PACX
) -> Markup | None:
    """AUROC against the labels, one line a charted arm; None without values."""
    colours = {words.treatment_arm: "pacx", words.baseline_arm: "mae"}
    rows = tables.cells(table)
    fractions = sorted({row["fraction"] for row in table})
    lines = []
    for arm in tables.arm_order(table, arms):
        shown = arms.get(arm, Arm(arm))
        if not shown.charted:
            continue
        found = [rows[arm, group, f] for f in fractions if (arm, group, f) in rows]
        x, y = ([row[key] for row in found] for key in ("fraction", "auroc"))
        other = "ink" if shown.role == "ceiling" else "muted"
        lines.append((shown.name, x, y, colours.get(arm, other)))
    of = "training studies with labels"
    of = of if tables.by_count(table) else "share of the training labels"
    return _lines(lines, of, "AUROC", fractions)


def curves(series: Mapping[str, tuple]) -> Markup | None:
    """Values over training steps, one line a name; None without values."""
    colours = itertools.cycle(("pacx", "mae", "muted", "ink"))
    lines = [(name, *series[name], next(colours)) for name in series]
    return _lines(lines, "step", "value")


def forest(summary: Sequence[Mapping]) -> Markup | None:
    """Treatment - baseline with its interval, a row each; None without values."""
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
            kind = verdict(row)
            colour = COLOURS.get(kind, COLOURS["muted"])
            axes.hlines(y, row["low"], row["high"], color=colour, linewidth=2.2)
            axes.plot(row["difference"], y, "o", color=colour, markersize=6)
        names = [f"{r['labels']}, {tables.budget(r['fraction'])}" for r in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("difference in AUROC")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        return _svg(figure)


def _lines(
    lines: Sequence[tuple],
    x_label: str,
    y_label: str,
    fractions: Sequence[float] | None = None,
) -> Markup | None:
    """A chart of lines (name, x, y, colour's name); None where none has a value.

    With `fractions` its x axis is logarithmic, and chance is marked.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure((WIDTH, 3.2 if fractions else 2.7), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="x", visible=False)
        drawn, dashes = [], itertools.cycle(DASHES)
        for z, (name, x, y, colour) in enumerate(lines):
            x, y = np.array(x, np.float64), np.array(y, np.float64)
            good, strong = np.isfinite(x) & np.isfinite(y), colour in ("pacx", "mae")
            if not good.any():
                continue
            drawn += axes.plot(
                x[good],
                y[good],
                label=name,
                color=COLOURS[colour],
                linestyle="-" if strong else next(dashes),
                linewidth=1.8 if strong else 1.2,
                marker="o" if fractions or good.sum() == 1 else None,
                markersize=4 if strong else 3,
                zorder=9 - z / 99,  # the first lines are the important ones
            )
        if not drawn:
            return None
        if fractions:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(fractions, [tables.budget(f) for f in fractions])
            chance = {"color": COLOURS["muted"], "linewidth": 0.8, "linestyle": ":"}
            drawn.append(axes.axhline(0.5, label="chance", **chance))
        else:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel=x_label, ylabel=y_label)
        figure.legend(
            handles=drawn,
            loc="outside right upper",
            frameon=False,
            labelcolor="linecolor",
        )
        return _svg(figure)


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
