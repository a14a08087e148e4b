"""Figures of reports: matplotlib charts as inline SVG, images as PNG data URIs.

Charts are drawn in COLOURS, which then become the page's CSS variables of these names,
so that one drawing serves the light theme, the dark theme and print. Text stays text.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

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
    "violet": "#7b3fa0",
    "teal": "#00646d",
    "olive": "#655300",
    "pink": "#a8185f",
}
STYLE = {
    "svg.fonttype": "none",  # text, not paths
    "pdf.fonttype": 42,  # the same
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


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
      name: in the legend; "" leaves it out.
      x, y: (n,) numbers; those that are not finite are left out.
      colour: one of COLOURS.
      strong: thick, and drawn above others.
      dash: of matplotlib's line styles.
      marker: of its markers; a single point has one anyway.
      low, high: (n,) of a band around y, or nothing.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    strong: bool = True
    dash: str | tuple = "-"
    marker: str = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draws, and saves, in this module's style whatever the user's is."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def efficiency(
    table: Sequence[Mapping], arms: Mapping[str, Arm], group: str, words: Words = PACX
) -> Figure | None:
    """AUROC against the labels, one line a charted arm; None without values."""
    colours = {words.treatment_arm: "pacx", words.baseline_arm: "mae"}
    rows, dashes = tables.cells(table), itertools.cycle(DASHES)
    fractions = sorted({row["fraction"] for row in table})
    found = []
    for arm in tables.arm_order(table, arms):
        shown = arms.get(arm, Arm(arm))
        if not shown.charted:
            continue
        there = [rows[arm, group, f] for f in fractions if (arm, group, f) in rows]
        x, y = ([row[key] for row in there] for key in ("fraction", "auroc"))
        other = "ink" if shown.role == "ceiling" else "muted"
        found.append(_line(shown.name, x, y, colours.get(arm, other), dashes, "o"))
    of = "training studies with labels"
    of = of if tables.by_count(table) else "share of the training labels"
    return lines(found, of, "AUROC", fractions)


def curves(series: Mapping[str, tuple]) -> Figure | None:
    """Values over training steps, one line a name; None without values."""
    colours = itertools.cycle(("pacx", "mae", "muted", "ink"))
    dashes = itertools.cycle(DASHES)
    found = [_line(name, *series[name], next(colours), dashes) for name in series]
    return lines(found, "step", "value")


def _line(name: str, x, y, colour: str, dashes: Iterator, marker: str = "") -> Line:
    strong = colour in ("pacx", "mae")
    there = (np.isfinite(np.float64(x)) & np.isfinite(np.float64(y))).any()
    dash = "-" if strong or not there else next(dashes)
    return Line(name, x, y, colour, strong, dash, marker)


def forest(summary: Sequence[Mapping]) -> Figure | None:
    """Treatment - baseline with its interval, a row each; None without values."""
    rows = [
        row
        for row in summary
        if None not in (row["difference"], row["low"], row["high"])
    ]
    if not rows:
        return None
    with styled():
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
        return figure


def lines(
    drawn: Sequence[Line],
    x_label: str,
    y_label: str,
    fractions: Sequence[float] = (),
    beside: bool = True,
    log: bool = False,
) -> Figure | None:
    """A chart of lines over steps; None where none has a value.

    Args:
      fractions: the x axis is of these, logarithmic, and chance is marked.
      beside: the legend stands beside the chart, else below it.
      log: the y axis is logarithmic.
    """
    there = [(line, *_finite(line)) for line in drawn]
    there = [each for each in there if len(each[1])]
    if not there:
        return None
    with styled():
        named = sum(bool(line.name) for line, *_ in there)
        height = (3.2 if fractions else 2.7) + (0 if beside else 0.17 * named)
        figure = Figure((WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="x", visible=False)
        handles = []
        for z, (line, x, y, band) in enumerate(there):
            colour, order = COLOURS[line.colour], 9 - z / 99  # the first are on top
            if band:
                axes.fill_between(x, *band, color=colour, alpha=0.22, linewidth=0)
            (handle,) = axes.plot(
                x,
                y,
                label=line.name,
                color=colour,
                linestyle=line.dash,
                linewidth=1.8 if line.strong else 1.2,
                marker=line.marker or ("o" if len(x) == 1 else None),
                markersize=4 if line.strong else 3,
                zorder=order,
            )
            handles += [handle] * bool(line.name)
        if fractions:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(fractions, [tables.budget(f) for f in fractions])
            chance = {"color": COLOURS["muted"], "linewidth": 0.8, "linestyle": ":"}
            handles.append(axes.axhline(0.5, label="chance", **chance))
        else:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set(xlabel=x_label, ylabel=y_label)
        legend(figure, handles, beside)
        return figure


def _finite(line: Line) -> tuple:
    """(x, y, band) where x and y are finite; the band is () or (low, high)."""
    x, y = np.array(line.x, np.float64), np.array(line.y, np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    band = tuple(np.asarray(v)[good] for v in (line.low, line.high) if len(v))
    return x[good], y[good], band


def legend(figure: Figure, handles: Sequence, beside: bool = True) -> None:
    """The names of lines in their colours, right of a chart or below it."""
    where = "outside right upper" if beside else "outside lower left"
    if handles:
        figure.legend(handles=handles, loc=where, frameon=False, labelcolor="linecolor")


def svg(figure: Figure) -> Markup:
    """The figure as an <svg> element for an HTML page."""
    file = io.StringIO()
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with styled():
        figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # HTML needs no namespaces; a style element would hold for the whole page, and the
    # names of groups, that nothing refers to, would occur in every figure.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|id)="[^"]*[:_][^"]*"', "", text)
    own = hashlib.sha256(text.encode()).hexdigest()[:8]  # ids hold for the page too
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}-", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)  # matplotlib escaped the texts


def png_uri(image: np.ndarray) -> str:
    """A uint8 (h, w), (h, w, 1) or (h, w, 3) image as a PNG data URI."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image, np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An attention map in [0, 1], (h, w), over its X-ray: uint8 (h, w, 3)."""
    grey = image.reshape(*image.shape[:2], -1)
    shades = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    return np.round((grey + shades) / 2).astype(np.uint8)


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
    mixed = [overlay(image, heat) for heat in (mae, pacx)]
    return [image, *mixed, signed(difference)]


def signed(difference: np.ndarray) -> np.ndarray:
    """A difference of maps in [-1, 1], (h, w), as uint8 (h, w, 3): red above 0."""
    return matplotlib.colormaps["RdBu_r"]((difference + 1) / 2, bytes=True)[..., :3]
