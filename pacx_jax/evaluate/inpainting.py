"""How well an MAE or a CheXmix fills in the patches that were removed.

Its floor is the mean training image in the same places. Scores are of the removed
pixels alone (`objectives.image_scores`).
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax import sharding
from pacx_jax.encoders import forward, generator, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import generation, statistics
from pacx_jax.input.normalize import normalize
from pacx_jax.models import mae
from pacx_jax.run import finished

SCORES = {"l1": 4, "psnr": 2, "ssim": 3}  # name -> digits in a table
FILLERS = ("decoder", "mean image")
CHUNK = 512  # images that are filled in at a time


def with_decoder(path: str) -> tuple[ModelFolder | None, str]:
    """A run's encoder with its decoder of pixels, or None and the reason why not."""
    if (model := model_folder.load(path)).kind == "unified":
        return model, ""
    if not (pathlib.Path(path) / "done.json").is_file():
        heads = model.heads
        if heads is None or heads.kind != "mae":
            return None, "no decoder of pixels"
        return None, (
            "the folder does not say whether its decoder predicts standardised "
            "patches: give the run's workdir"
        )
    config = finished.read_config(path)
    if config.objective not in ("mae", "mvmae"):
        return None, "no decoder of pixels"
    if config.loss.norm_pix_loss:
        return None, (
            "its decoder predicts patches standardised by their own mean and "
            "deviation, which a removed patch does not tell"
        )
    return finished.read_run(config, path, heads=True), ""


def filled(
    model: ModelFolder,
    rows,
    mean_image: np.ndarray,
    ratio: float,
    seed: int,
    batch_size: int,
) -> np.ndarray:
    """Scores of each image by each of FILLERS, (n, fillers, scores) float32.

    Args:
      model: with heads of the kind "mae", or of kind "unified".
      rows: `masked_inputs.Rows`; masks are those that its embeddings had.
      mean_image: (s, s, c), pixels in [0, 1].
    """
    side = model.architecture["image_size"] // model.architecture["patch_size"]
    if model.kind == "unified":
        painter = generator.Generator(model, None, batch_size)

        def paint(images, hidden, views):
            return painter.paint(images, hidden)

    else:
        paint = decoder(model, batch_size)
    found = []
    for first in range(0, len(rows.images), CHUNK):
        part = slice(first, first + CHUNK)
        images, numbers = rows.images[part], rows.numbers[part]
        *_, drawn = mae.random_masking(jax.random.key(seed), numbers, side**2, ratio)
        hidden = np.asarray(drawn) > 0
        gone = generation.pixels_of(hidden, model.architecture["image_size"])
        by_mean = np.broadcast_to(mean_image, images.shape)
        each = [
            generation.pixel_scores(i, images, gone)
            for i in (paint(images, hidden, rows.views[part]), by_mean)
        ]
        found.append(np.stack([[one[name] for name in SCORES] for one in each]))
    return np.concatenate(found, -1).transpose(2, 0, 1).astype(np.float32)


def decoder(model: ModelFolder, batch_size: int) -> Callable:
    """An MAE as a function: (images, hidden, views) -> images that are filled in.

    Images are uint8 (n, s, s, c) and come back as float32 in [0, 1]; `hidden` is
    (n, k) bool, of as many patches in each row, which the encoder does not get.
    """
    fields = {k: v for k, v in model.heads.architecture.items() if k != "encoder_width"}
    autoencoder = mae.MAE(model.module(), mae.decoder(fields))
    mean, std = (jnp.asarray(model.preprocessing[k]) for k in ("mean", "std"))
    patch, views = model.architecture["patch_size"], autoencoder.encoder.views

    def fill(params, inputs):
        images, hidden, kept, restore, view = inputs
        x = normalize(images, mean, std)
        given = x, kept, restore
        pred = autoencoder.apply(
            {"params": params}, *given, view=view if views else None
        )
        _, whole = mae.pictures(x, pred, hidden, patch, norm_pix_loss=False)
        return jnp.clip(whole * std + mean, 0, 1)

    mesh = sharding.make_mesh()
    fill = forward.on_mesh(fill, mesh, "float32")
    params = {"encoder": model.params, **model.heads.params}
    params = jax.device_put(params, sharding.replicated(mesh))

    def paint(images, hidden, views=None):
        counts, grid = np.count_nonzero(hidden, axis=1), (images.shape[1] // patch) ** 2
        if len(set(counts.tolist())) > 1 or hidden.shape[1] != grid:
            raise PacxError(
                f"hidden patches of shape {hidden.shape}, {min(counts)} to "
                f"{max(counts)} a row: give as many in each, of {grid} patches"
            )
        order = np.argsort(hidden, axis=1, kind="stable").astype(np.int32)
        kept = order[:, : np.count_nonzero(~hidden[0])]
        restore = np.argsort(order, axis=1).astype(np.int32)
        views = np.zeros(len(images), np.int32) if views is None else views
        rows = zip(images, np.float32(hidden), kept, restore, views, strict=True)
        size = sharding.padded_size(batch_size, mesh)
        return forward.in_batches(fill, params, rows, images.shape[1:], size, mesh)

    return paint


def measure(
    model: ModelFolder,
    train,
    test,
    patients: np.ndarray,
    ratios: Sequence[float],
    seed: int,
    batch_size: int,
) -> list[dict]:
    """One row a share of removed patches and filler, with intervals over patients.

    Args:
      train, test: `masked_inputs.Rows`.
      patients: (n,) of the test images.
      ratios: shares; nothing is filled in at 0.

    Returns:
      Rows: removed, filled_by, and of each of SCORES value, low and high.
    """
    mean_image = np.mean(train.images, axis=0, dtype=np.float64) / 255
    drawn = statistics.bootstrap_weights(patients, seed=seed)
    weights = np.concatenate([np.ones((1, len(patients))), drawn])
    rows = []
    for ratio in filter(None, ratios):
        found = filled(model, test, mean_image, ratio, seed, batch_size)
        for i, filler in enumerate(FILLERS):
            row = {"removed": ratio, "filled_by": filler}
            for j, name in enumerate(SCORES):
                row[name] = statistics.row(
                    statistics.weighted_means(found[:, i, j], weights)
                )
            rows.append(row)
    return rows


def lines(rows: Sequence[dict], skipped: dict[str, str]) -> list[str]:
    """Lines of text: the scores on removed pixels, and why some have none."""
    told = [f"{name}: not filled in, {reason}" for name, reason in skipped.items()]
    if not rows:
        return told
    head = ["encoder", "removed", "filled by", "L1", "PSNR, dB", "SSIM"]
    body = [
        [
            *(row["encoder"], f"{row['removed']:g}", row["filled_by"]),
            *(_cell(row[name], digits) for name, digits in SCORES.items()),
        ]
        for row in rows
    ]
    width = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    text = [
        "  ".join(f"{cell:<{n}}" for cell, n in zip(row, width, strict=True)).rstrip()
        for row in (head, *body)
    ]
    return ["", "removed pixels, filled in (95% interval over patients)", *text, *told]


def _cell(found: dict, digits: int) -> str:
    if found["value"] is None:
        return "undefined"
    each = [f"{found[k]:.{digits}f}" for k in ("value", "low", "high")]
    return f"{each[0]} ({each[1]}-{each[2]})"
