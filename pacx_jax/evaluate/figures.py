"""Figures of the report: SVG drawn by hand, images as PNG data URIs.

Hand-drawn SVG takes its colours from the page's CSS variables, so one figure serves
the light theme, the dark theme and print, its text stays text, and its bytes depend on
nothing but the data.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

WIDTH = 440  # of every chart's view box, in CSS pixels


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
      name: for the legend.
      x: (t,) values.
      y: (t,) values; points that are not finite are left out.
      style: CSS class of the stroke ("pacx", "mae", "s1", ...), see page.CSS.
      low: (t,) lower ends of intervals, or None.
      high: (t,) upper ends, or None.
      markers: draw the points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    markers: bool = False


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    log_x: bool = False,
    reference: float | None = None,
    height: int = 270,
) -> str:
    """An SVG line chart with a legend below it.

    Args:
      series: lines.
      title: shown above and read by screen readers.
      x_label: axis label.
      y_label: shown above the axis.
      x_ticks: (value, text) of the ticks; None chooses them.
      log_x: logarithmic x axis.
      reference: value of a dashed horizontal line (chance), or None.
      height: of the view box.

    Returns:
      A <figure> element.
    """
    points = [_finite(s, log_x) for s in series]
    x_all = np.concatenate([p[0] for p in points] or [np.zeros(0)])
    ends = [v for p in points for v in p[1:]]
    y_all = np.concatenate([*ends, [reference] if reference is not None else []])
    if not len(x_all):
        return f'<p class="empty">{html.escape(title)}: no values.</p>'
    y_ticks = _nice_ticks(float(y_all.min()), float(y_all.max()))
    along = np.log10 if log_x else np.asarray
    if x_ticks is None:
        x_ticks = [(v, f"{v:,.6g}") for v in _nice_ticks(x_all.min(), x_all.max(), 4)]
        x_ticks = [t for t in x_ticks if x_all.min() <= t[0] <= x_all.max()]
    left, right, top, bottom = 52, WIDTH - 14, 34, height - 44
    place_x = _scale(along(x_all.min()), along(x_all.max()), left + 8, right - 8)
    place_y = _scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [f'<text class="axis" x="4" y="20">{html.escape(y_label)}</text>']
    for value in y_ticks:
        y = place_y(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        text = _tick_text(value, y_ticks)
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" class="end">{text}</text>')
    for value, text in x_ticks:
        x = place_x(float(along(value)))
        parts.append(f'<path class="axisline" d="M{x:.1f} {bottom}v5"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 19}" class="mid">'
            f"{html.escape(text)}</text>"
        )
    parts.append(f'<path class="axisline" d="M{left} {bottom}H{right}"/>')
    middle = (left + right) / 2
    parts.append(
        f'<text class="axis mid" x="{middle:.0f}" y="{height - 6}">'
        f"{html.escape(x_label)}</text>"
    )
    if reference is not None:
        y = place_y(reference)
        parts.append(f'<path class="reference" d="M{left} {y:.1f}H{right}"/>')
    # The first series is the important one, so it is drawn last, on top.
    for s, (x, y, low, high) in reversed(list(zip(series, points, strict=True))):
        xs = [place_x(float(v)) for v in along(x)]
        parts.append(_drawn(s, xs, place_y, y, low, high))
    legend = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true"><path class="line '
        f'{s.style}" d="M1 5H25"/></svg>{html.escape(s.name)}</li>'
        for s in series
    )
    return _figure(title, "".join(parts), height, f'<ul class="legend">{legend}</ul>')


def forest_chart(
    rows: Sequence[tuple[str, float, float, float, str]], title: str, x_label: str
) -> str:
    """Differences with their intervals, one a row, about a line at zero.

    Args:
      rows: (text, value, low, high, CSS class of the verdict).
      title: of the figure.
      x_label: axis label.

    Returns:
      A <figure> element.
    """
    if not rows:
        return f'<p class="empty">{html.escape(title)}: no values.</p>'
    step, top = 30, 34
    bottom = top + step * len(rows)
    height = bottom + 44
    ticks = _nice_ticks(
        min(0.0, *(r[2] for r in rows)), max(0.0, *(r[3] for r in rows)), 4
    )
    left, right = 158, WIDTH - 14
    place = _scale(ticks[0], ticks[-1], left, right)
    parts = []
    for value in ticks:
        x = place(value)
        kind = "axisline" if value == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{x:.1f} {top - 6}V{bottom}"/>')
        text = _tick_text(value, ticks)
        parts.append(f'<text class="mid" x="{x:.1f}" y="{bottom + 17}">{text}</text>')
    for i, (text, value, low, high, kind) in enumerate(rows):
        y = top + step * (i + 0.5)
        parts.append(
            f'<text class="end" x="{left - 12}" y="{y + 4:.1f}">'
            f"{html.escape(text)}</text>"
            f'<path class="bar {kind}" d="M{place(low):.1f} {y:.1f}'
            f'H{place(high):.1f}"/>'
            f'<circle class="dot {kind}" cx="{place(value):.1f}" cy="{y:.1f}" r="5"/>'
        )
    parts.append(
        f'<text class="axis mid" x="{(left + right) / 2:.0f}" y="{height - 6}">'
        f"{html.escape(x_label)}</text>"
    )
    return _figure(title, "".join(parts), height, "")


def png_uri(image: np.ndarray) -> str:
    """A uint8 (h, w) or (h, w, 3) image as a PNG data URI."""
    image = np.ascontiguousarray(image, np.uint8)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    kind = 0 if image.ndim == 2 else 2

    def chunk(tag: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(tag + data)
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", crc)

    data = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    )
    data += chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
DIVERGING = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130))
DIVERGING += ((178, 24, 43),)


def colourise(values: np.ndarray, anchors: Sequence[tuple[int, ...]]) -> np.ndarray:
    """(h, w) values in [0, 1] -> (h, w, 3) uint8 along evenly spaced colours."""
    table = np.asarray(anchors, np.float64)
    place = np.clip(values, 0, 1) * (len(table) - 1)
    channels = [np.interp(place, np.arange(len(table)), c) for c in table.T]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def overlay(image: np.ndarray, heat: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Blend a [0, 1] map of (h, w) over a uint8 image of the same size."""
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    mixed = (1 - share) * image + share * colourise(heat, HEAT)
    return np.round(mixed).astype(np.uint8)


def _drawn(s: Series, xs, place_y, y, low, high) -> str:
    parts = []
    if s.low is not None:
        whiskers = "".join(
            f"M{x:.1f} {place_y(a):.1f}V{place_y(b):.1f}"
            for x, a, b in zip(xs, low, high, strict=True)
        )
        parts.append(f'<path class="whisker {s.style}" d="{whiskers}"/>')
    path = "L".join(f"{x:.1f} {place_y(v):.1f}" for x, v in zip(xs, y, strict=True))
    parts.append(f'<path class="line {s.style}" d="M{path}"/>')
    if s.markers:
        parts += [
            f'<circle class="dot {s.style}" cx="{x:.1f}" cy="{place_y(v):.1f}" '
            'r="3.5"/>'
            for x, v in zip(xs, y, strict=True)
        ]
    return "".join(parts)


def _finite(s: Series, log_x: bool) -> tuple[np.ndarray, ...]:
    """(x, y, low, high) where all are finite; low = high = y without intervals."""
    x, y = np.asarray(s.x, np.float64), np.asarray(s.y, np.float64)
    low = y if s.low is None else np.asarray(s.low, np.float64)
    high = y if s.high is None else np.asarray(s.high, np.float64)
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(low) & np.isfinite(high)
    if log_x:
        good &= x > 0
    return x[good], y[good], low[good], high[good]


def _nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round tick values that cover [low, high]."""
    low, high = float(low), float(high)
    span = high - low or abs(high) or 1.0
    raw = span / about
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _tick_text(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    digits = max(0, next(d for d in range(15) if abs(round(step, d) - step) < 1e-9))
    return f"{value:,.{digits}f}".replace("-", "−")


def _scale(low: float, high: float, start: float, end: float):
    span = float(high - low) or 1.0
    if high == low:  # a single value stands in the middle
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / span * (end - start)


def _figure(title: str, drawing: str, height: int, below: str) -> str:
    text = html.escape(title)
    return (
        f'<figure class="chart"><figcaption>{text}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text}">'
        f"{drawing}</svg>{below}</figure>"
    )
