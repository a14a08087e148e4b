"""What a run's model does with X-rays: reconstructions, and where it looks.

Reconstructions are those that the run drew for TensorBoard. Attention is computed by
the saved weights, on X-rays of the run's validation split.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from pacx_jax.encoders import kinds, model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import rollout
from pacx_jax.evaluate.reports import events, figures
from pacx_jax.evaluate.reports.run_files import Run
from pacx_jax.evaluate.reports.run_parts import Part, Pictures
from pacx_jax.input import images as imageio
from pacx_jax.input import names, sources
from pacx_jax.run import finished

SIDE = 224  # pixels of an X-ray on the page, at most


@dataclasses.dataclass(frozen=True)
class Xrays:
    """X-rays to show: uint8 images, and a view's name each, "" where unknown."""

    images: list[np.ndarray]
    views: list[str]


def xrays(run: Run, count: int, folder: str = "") -> Xrays:
    """`count` X-rays of a folder, or spread over the run's validation split.

    Raises:
      PacxError: no data, or not a single X-ray that can be read.
    """
    found, failed = Xrays([], []), ""
    for load in _folder(folder) if folder else _validation(run):
        if len(found.images) == count:
            break
        try:
            image, view = load()
        except PacxError as error:
            failed = str(error)
            continue
        found.images.append(image)
        found.views.append(view)
    if not found.images:
        raise PacxError(failed or "there is no X-ray among the data")
    return found


def _folder(folder: str):
    root = names.find(folder, "--images")
    for name in root.paths:
        path = pathlib.Path(folder) / name
        yield lambda path=path: (imageio.decode(path, str(path)), "")


def _validation(run: Run):
    data = run.config.data
    source = sources.open_source(data, data.val_split)
    if not {"image", "images"} & set(source.entries):
        raise PacxError("the run's data have no X-rays")
    for i in np.random.default_rng(0).permutation(len(source))[:50]:
        yield lambda i=int(i): read(source, i)


def read(source, i: int) -> tuple[np.ndarray, str]:
    """The first X-ray of example i, uint8 (h, w[, c]), and its view."""
    example = source[i]
    view = (example.get("views") or [example.get("view", "")])[0]
    image = example["images"][0] if "images" in example else example["image"]
    return imageio.decode(image, source.name(i)), view


def small(image: np.ndarray) -> np.ndarray:
    """An X-ray of at most SIDE pixels a side."""
    return imageio.shrink(image, SIDE)


def encoder(run: Run) -> Encoder:
    """The run's X-ray encoder, of its export or else of its last state.

    Raises:
      PacxError: another kind of encoder, or nothing saved.
    """
    export = run.path / "export"
    if export.is_dir():
        return Encoder(model_folder.load(export, kinds.XRAY))
    model = finished.read_run(run.config, str(run.path), run.state_shown)
    if model.kind not in kinds.XRAY:
        raise PacxError(f"a {model.kind} embeds no X-rays")
    return Encoder(model)


# The pictures of one X-ray in TensorBoard, by an autoencoder and an image tokenizer.
PANELS = {3: ("input", "visible part", "reconstruction"), 2: ("input", "decoded")}


def reconstructions(runs: Sequence[Run]) -> Part:
    """The latest images of each run's TensorBoard files."""
    rows = []
    for run in runs:
        for tag, (step, image) in events.images(run.path / "tensorboard").items():
            of = f"{run.name}, step {step:,}"
            side = run.config.data.image_size  # X-rays stand one above the other
            told = PANELS.get(image.shape[1] / side)
            if tag != "reconstruction" or told is None:
                rows.append(Pictures(f"{of}, {tag}", [(tag, image)]))
                continue
            for k in range(image.shape[0] // side):
                row = image[k * side : (k + 1) * side]
                parts = np.split(row, len(told), axis=1)
                told = (f"{of}: input", *told[1:])
                rows.append(
                    Pictures(
                        f"{of}, X-ray {k + 1}", list(zip(told, parts, strict=True))
                    )
                )
    return Part(
        "Reconstructions",
        "The runs drew no images: masked autoencoders and image tokenizers do, every "
        "config.images_every evaluations.",
        "Held-out X-rays as the run drew them last.",
        pictures=rows,
    )


def rollouts(runs: Sequence[Run], found: Xrays | None, why: str) -> Part:
    """Attention rolled out from the CLS token, of each run on the same X-rays.

    Args:
      found: the X-rays; None where there are none.
      why: there are none.
    """
    maps: dict[str, np.ndarray] = {}
    lacking = []
    for run in runs if found else ():
        try:
            maps[run.name] = _maps(encoder(run), found)
        except PacxError as error:
            lacking.append(f"{run.name}: {error}.")
    rows = []
    for k, image in enumerate(found.images if maps else ()):
        size = next(iter(maps.values())).shape[-1]
        shown = imageio.resize(image, max(size, 96), 1)
        heats = {
            n: rollout.upsample(m[k : k + 1], shown.shape[0])[0]
            for n, m in maps.items()
        }
        row = [("X-ray", shown)]
        row += [
            (name, figures.overlay(shown, np.clip(h, 0, 1)))
            for name, h in heats.items()
        ]
        if len(heats) == 2:
            first, second = heats.values()
            told = " − ".join(reversed(list(heats)))
            row.append((told, figures.signed(np.clip(second - first, -1, 1))))
        rows.append(Pictures(f"X-ray {k + 1}", row))
    text = " ".join(lacking)
    if rows:
        text = (
            "Attention rolled out from the embedding's token through all layers, each "
            "map scaled to its own range: bright is more. It shows where information "
            "can flow, not why a prediction is made. "
            + (
                "In the difference, red is where the second run draws more. "
                if len(maps) == 2
                else ""
            )
            + text
        )
    return Part("Where the encoders look", why or text, text, pictures=rows)


def _maps(model: Encoder, found: Xrays) -> np.ndarray:
    views = None
    if model.views:
        views = [v if v not in ("", "unknown") else "frontal" for v in found.views]
    attentions = model.attentions(found.images, views)
    a = model.architecture
    return rollout.rollout_maps(
        attentions, model.image_size, a.get("registers", 0), a.get("pool", "cls")
    )
