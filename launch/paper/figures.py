"""Figures 2 to 5 as files: reconstructions, low-data gains, attention."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from launch import compare
from launch.paper import measure
from launch.paper.rows import FRACTIONS, NAMES, Row
from pacx_jax import files
from pacx_jax.evaluate import attention_shares, rollout
from pacx_jax.evaluate.reports import figures as style
from pacx_jax.input import images, subsets

_COLOURS = {"imagenet": "#5a6675", "mae": "#b3480b", "pacx": "#0b5cad"}


def _save(path: pathlib.Path, tiles: Sequence[np.ndarray]) -> None:
    """Writes rows of one width (h, w, 3) uint8 as a PNG, small ones enlarged."""
    image, times = np.concatenate(tiles), max(160 // len(tiles[0]), 1)
    image = image.repeat(times, 0).repeat(times, 1)
    with files.whole(path, "wb") as file:
        Image.fromarray(image).save(file, format="PNG")


def films_of(data: str, row: Row, split: str, count: int, positive: bool) -> list:
    """Decoded films of a split, those with a positive label first if asked."""
    source = measure.open_split(data, row, split)
    order = np.arange(len(source))
    if positive:
        names = row.labels or source.label_names
        columns = [source.label_names.index(name) for name in names]
        labels = subsets.known_labels(source.labels()[:, columns], "ignore")[0]
        order = np.argsort(-labels.max(1), kind="stable")
    chosen = [source[int(i)] for i in order[:count]]
    return [images.decode(example["image"]) for example in chosen]


def reconstructions(path: pathlib.Path, workdir: str, films: Sequence) -> None:
    """Figure 2: each film, what the MAE sees of it, and what it fills in."""
    rows = compare.reconstructions(pathlib.Path(workdir), films)
    tiles = [np.concatenate([_rgb(x) for x in row], axis=1) for row in rows]
    _save(path, tiles)


def low_data(
    path: pathlib.Path, found: Mapping[str, Mapping], published: Mapping[str, Mapping]
) -> None:
    """Figure 3: AUROC by the share of the labels, of MAE and PaCX; dotted: published.

    Args:
      found: data set -> arm -> fraction as text -> measure -> cell.
    """
    with matplotlib.style.context(["default", style.STYLE]):
        figure = Figure((2.6 * len(found), 2.6), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(found)))
        for axes, (name, arms) in zip(panels, found.items(), strict=True):
            for arm in ("mae", "pacx"):
                cells = [arms.get(arm, {}).get(str(f)) for f in FRACTIONS]
                if None in cells:
                    continue
                rows = [cell["auroc"] for cell in cells]
                value, low, high = (
                    np.array([np.nan if r[k] is None else r[k] for r in rows])
                    for k in ("value", "low", "high")
                )
                line = {"color": _COLOURS[arm], "label": NAMES[arm], "capsize": 2}
                around = [value - low, high - value]
                axes.errorbar(FRACTIONS, value, around, marker="o", **line)
            if name in published:
                mae = np.array(published[name]["mae"])
                both = {"mae": mae, "pacx": mae + published[name]["gain"]}
                for arm, value in both.items():
                    axes.plot(FRACTIONS, value, ":", color=_COLOURS[arm])
            axes.set(title=name, xscale="log", xlabel="share of the labels")
            axes.set_xticks(FRACTIONS, [f"{f:.0%}" for f in FRACTIONS])
            axes.minorticks_off()
        panels[0].set_ylabel("AUROC")
        panels[-1].legend(frameon=False)
        with files.whole(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def attention(path: pathlib.Path, encoders: Mapping, films: Sequence) -> None:
    """Figures 4 and 5: each film, rollouts of MAE and PaCX, and PaCX less MAE."""
    maps, shown = {}, []
    for arm in ("mae", "pacx"):
        encoder = encoders[arm][0]
        shown = [encoder.preprocess(film) for film in films]
        grids = attention_shares.maps_of(encoder, shown)
        maps[arm] = rollout.minmax(rollout.upsample(grids, encoder.image_size))
    gap = rollout.difference_map(maps["mae"], maps["pacx"])
    tiles = [
        np.asarray(attention_shares.picture(film, (maps["mae"][i], maps["pacx"][i], d)))
        for i, (film, d) in enumerate(zip(shown, gap, strict=True))
    ]
    _save(path, tiles)


def _rgb(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, np.uint8)
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image
