"""Golden outputs: four images and their embeddings, which travel with an X-ray encoder.

  golden.safetensors   images uint8 (4, 64, 64), embedding float32 (4, width)

The images are films of simulated patients, two PA and two AP, kept in the library
(data/cohort/golden_films.py drew them). They are squashed to the encoder's size and
normalised as X-rays are, so that what is compared covers weights, preprocessing and the
machine. Matrix products are in float32.
"""

from __future__ import annotations

import os
import pathlib

import jax
import numpy as np
from PIL import Image

from pacx_jax.encoders import kinds, model_folder, xray_encoder
from pacx_jax.errors import PacxError

FILE = model_folder.GOLDEN
FILMS = pathlib.Path(__file__).with_name("golden_films.png")  # side by side
TOLERANCE = 1e-4  # of the largest value of the embeddings, at least of 1


def images() -> np.ndarray:
    """uint8 (4, 64, 64): the films."""
    with Image.open(FILMS) as strip:
        return np.stack(np.split(np.asarray(strip), 4, axis=1))


def embed(model: model_folder.ModelFolder, films: np.ndarray) -> np.ndarray:
    """The embeddings of uint8 (4, h, w), float32 (4, width), by this process alone."""
    encoder = xray_encoder.Encoder(model, batch_size=4, num_devices=1)
    with jax.default_matmul_precision("highest"):
        return encoder(films)


def beside(model: model_folder.ModelFolder) -> dict[str, bytes]:
    """The file to write beside a model's others; {} for what is no X-ray encoder."""
    if model.kind not in kinds.XRAY:
        return {}
    import safetensors.numpy  # imported lazily, as in model_folder

    films = images()
    arrays = {"images": films, "embedding": embed(model, films)}
    return {FILE: safetensors.numpy.save(arrays)}


def check(path: str | os.PathLike) -> str:
    """Embeds a folder's golden images again; a line on how it went.

    Raises:
      PacxError: a folder without them, a damaged file, or embeddings that differ by
        more than TOLERANCE.
    """
    import safetensors.numpy

    folder = model_folder.resolve(path)
    model = model_folder.load(folder, kinds.XRAY)
    file = pathlib.Path(folder) / FILE
    if not file.is_file():
        raise PacxError(
            f"{path} has no {FILE}, being of an earlier version or converted: export "
            "it again by pacx_jax.export"
        )
    try:
        found = safetensors.numpy.load_file(file)
        drawn, expected = found["images"], found["embedding"]
        fits = drawn.ndim == 3 and 0 < len(drawn) == len(expected)
        if not fits or drawn.dtype != np.uint8 or expected.ndim != 2:
            raise ValueError(f"shapes {drawn.shape} and {expected.shape}")
    except Exception as e:  # a header may claim what NumPy then refuses in its way
        raise PacxError(f"{file} is damaged ({e}): export the encoder again") from None
    if expected.shape[1] != model.width:
        raise PacxError(
            f"{file} is of an encoder of width {expected.shape[1]}, and this one has "
            f"{model.width}: export the encoder again"
        )
    return _compared(path, embed(model, drawn), expected)  # an older file has its own


def _compared(path, found: np.ndarray, expected: np.ndarray) -> str:
    errors = np.abs(np.float64(found) - expected).max(axis=1)
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    worst = int(np.argmax(errors))
    differ = f"largest difference {errors[worst]:.1e}, the tolerance is {limit:.1e}"
    if not errors[worst] <= limit:  # NaN is wrong
        raise PacxError(
            f"{path}: its embeddings are not those that it was exported with (image "
            f"{worst + 1} of {len(errors)}: {differ}): the weights, their description "
            "or this machine's arithmetic changed"
        )
    return f"{len(errors)} golden images: {differ}"
