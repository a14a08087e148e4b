"""How well an MAE or a CheXmix fills in the patches that were removed.

Its floor is the mean training image in the same places. Scores are of the removed
pixels alone (`objectives.image_scores`).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax import sharding
from pacx_jax.encoders import forward, generator, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.evaluate import generation, statistics
from pacx_jax.input.normalize import normalize
from pacx_jax.models import mae
from pacx_jax.objectives import image_scores
from pacx_jax.run import finished

SCORES = {"l1": 4, "psnr": 2, "ssim": 3}  # name -> digits in a table
FILLERS = ("decoder", "mean image")


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
    if model.kind == "unified":
        return _by_codes(model, rows, mean_image, ratio, seed, batch_size)
    fields = {k: v for k, v in model.heads.architecture.items() if k != "encoder_width"}
    autoencoder = mae.MAE(model.module(), mae.decoder(fields))
    mean, std = (jnp.asarray(model.preprocessing[k]) for k in ("mean", "std"))
    patch, size = model.architecture["patch_size"], model.architecture["image_size"]
    views = autoencoder.encoder.views

    def score(params, inputs):
        images, view, numbers = inputs
        x = normalize(images, mean, std)
        drawn = mae.random_masking(
            jax.random.key(seed), numbers, (size // patch) ** 2, ratio
        )
        pred = autoencoder.apply(
            {"params": params["model"]}, x, *drawn[:2], view=view if views else None
        )
        _, by_decoder = mae.pictures(x, pred, drawn[2], patch, norm_pix_loss=False)
        gone = einops.repeat(
            drawn[2], "b (h w) -> b (h p) (w q)", h=size // patch, p=patch, q=patch
        )
        truth, by_decoder = (jnp.clip(i * std + mean, 0, 1) for i in (x, by_decoder))
        by_mean = jnp.where(gone[..., None] > 0, params["mean"], truth)
        found = [image_scores.scores(i, truth, gone) for i in (by_decoder, by_mean)]
        return jnp.stack(
            [jnp.stack([each[name] for name in SCORES], -1) for each in found], 1
        )

    mesh = sharding.make_mesh()
    weights = {"encoder": model.params, **model.heads.params}
    params = {"model": weights, "mean": np.asarray(mean_image, np.float32)}
    return forward.in_batches(
        forward.on_mesh(score, mesh, "float32"),
        jax.device_put(params, sharding.replicated(mesh)),
        zip(rows.images, rows.views, rows.numbers, strict=True),
        (len(FILLERS), len(SCORES)),
        sharding.padded_size(batch_size, mesh),
        mesh,
    )


def _by_codes(model, rows, mean_image, ratio, seed, batch_size) -> np.ndarray:
    """`filled` by a CheXmix, which writes the codes that are missing."""
    painter = generator.Generator(model, None, batch_size)
    n = painter.grid**2
    *_, drawn = mae.random_masking(jax.random.key(seed), rows.numbers, n, ratio)
    hidden = np.asarray(drawn) > 0
    gone = einops.repeat(
        hidden,
        "b (h w) -> b (h p) (w q)",
        h=painter.grid,
        p=painter.image_size // painter.grid,
        q=painter.image_size // painter.grid,
    )
    found = [
        generation.pixel_scores(i, rows.images, gone)
        for i in (
            painter.paint(rows.images, hidden),
            np.broadcast_to(mean_image, rows.images.shape),
        )
    ]
    return np.stack(
        [np.stack([each[name] for name in SCORES], -1) for each in found], 1
    ).astype(np.float32)


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
                row[name] = statistics.row(_means(found[:, i, j], weights))
            rows.append(row)
    return rows


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over the images that have a value."""
    known = ~np.isnan(values)
    total = weights[:, known].sum(1)
    sums = weights[:, known] @ values[known].astype(np.float64)
    return np.divide(sums, total, out=np.full(len(weights), np.nan), where=total > 0)


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
