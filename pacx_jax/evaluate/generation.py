"""What a CheXmix writes and fills in, beside floors that need no model.

`pacx generate` runs these on a prepared set. Floors: the mean training
image, the report alone, the report of the nearest training X-ray, the most frequent
one.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from pacx_jax.encoders.generator import Generator
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import probe, report_metrics, statistics
from pacx_jax.input import images, masks, reports
from pacx_jax.objectives import image_scores

SCORES = ("l1", "psnr", "ssim")
SHAPES = ("random", "block")  # of hidden patches
MOST = 200  # pairs that are retrieved


@dataclasses.dataclass(frozen=True)
class Studies:
    """Images of one split with their reports, decoded.

    Attributes:
      images: uint8 (n, s, s, c), as the model takes them.
      texts: "" where there is no report.
      masks: (n, s, s) bool, or None.
      patients: (n,) str.
    """

    images: np.ndarray
    texts: list[str]
    masks: np.ndarray | None
    patients: np.ndarray


def read(model: Generator, source, limit: int = 0) -> Studies:
    """Reads a source of images, at most `limit` of them, evenly spread; 0: all."""
    n = min(limit or len(source), len(source))
    rows = [i * len(source) // n for i in range(n)]
    decoded, texts, regions, named = [], [], [], []
    for i in rows:
        example = source[i]
        decoded.append(images.decode(example["image"], source.name(i)))
        texts.append(reports.text_of(example, model.sections))
        named.append(str(example.get("patient_id", "")) or f"row {i}")
        if "mask" in source.entries:
            mask = masks.decode(example["mask"], source.name(i))
            size = model.image_size
            regions.append(masks.resize_to(mask, size, size) > 0)
    found = np.stack(regions) if regions else None
    return Studies(model.pixels(decoded), texts, found, np.array(named))


def hidden_patches(
    n: int, side: int, share: float, shape: str = "random", seed: int = 0
) -> np.ndarray:
    """Patches to hide, (n, side^2) bool: a share of each image, by seed and row alone.

    Args:
      shape: "random" patches, or a "block" of rows and columns of about that share.

    Raises:
      PacxError: a share out of [0, 1], or another shape.
    """
    if shape not in SHAPES or not 0 <= share <= 1:
        raise PacxError(
            f"share {share} and shape {shape!r}: give 0 to 1 and {' or '.join(SHAPES)}"
        )
    out = np.zeros((n, side, side), bool)
    for row, one in enumerate(out):
        rng = np.random.default_rng([seed, row])
        if shape == "random":
            count = round(share * side**2)
            one.reshape(-1)[rng.permutation(side**2)[:count]] = True
        elif share:
            height = max(round(side * math.sqrt(share)), 1)
            top, left = rng.integers(0, side - height + 1, 2)
            one[top : top + height, left : left + height] = True
    return out.reshape(n, -1)


def inpainting(
    model: Generator,
    studies: Studies,
    mean_image: np.ndarray,
    share: float,
    shape: str = "random",
    way: str = "sequence",
    seed: int = 0,
    **how,
) -> list[dict]:
    """Scores of hidden pixels, by what fills them in and where they lie.

    Args:
      mean_image: (s, s, c) in [0, 1], of training images.
      way, how: see `Generator.paint`.

    Returns:
      Rows: share, filled_by, where ("all", "inside" and "outside" of the masks), n and
      each of SCORES as {"value", "low", "high"}, intervals over patients. "report
      alone" writes the whole image from its report; "image tokenizer" decodes the
      codes of the whole X-ray.
    """
    n, side = len(studies.images), model.grid
    hidden = hidden_patches(n, side, share, shape, seed)
    told = np.array([bool(text) for text in studies.texts])
    paint = how | {"way": way, "seed": seed}
    filled = {"model": model.paint(studies.images, hidden, **paint)}
    if told.any():
        texts, every = studies.texts, np.ones(side**2, bool)
        filled["model and report"] = model.paint(studies.images, hidden, texts, **paint)
        filled["report alone"] = model.paint(studies.images, every, texts, **paint)
    filled["mean image"] = np.broadcast_to(mean_image, studies.images.shape)
    whole = model.decode(model.codes(studies.images))
    filled["image tokenizer"] = whole
    factor = model.image_size // side
    gone = hidden.reshape(n, side, side).repeat(factor, 1).repeat(factor, 2)
    places = {"all": gone}
    if studies.masks is not None:
        places["inside"] = gone & studies.masks
        places["outside"] = gone & ~studies.masks
    drawn = statistics.bootstrap_weights(studies.patients, seed=seed)
    weights, rows = np.concatenate([np.ones((1, n)), drawn]), []
    for name, painted in filled.items():
        for where, region in places.items():
            found = pixel_scores(painted, studies.images, region)
            if "report" in name:
                found = {k: np.where(told, v, np.nan) for k, v in found.items()}
            row = {"share": share, "filled_by": name, "where": where}
            row["n"] = int((~np.isnan(found["l1"])).sum())
            for score, values in found.items():
                row[score] = statistics.row(_means(values, weights))
            rows.append(row)
    return rows


def pixel_scores(painted, truth: np.ndarray, region: np.ndarray) -> dict:
    """L1, PSNR and SSIM (n,) each of the pixels in a region, NaN where it has none.

    Args:
      painted: (n, s, s, c) in [0, 1]; truth: uint8.
      region: (n, s, s) bool.
    """
    given = np.float32(painted), np.float32(truth) / 255, np.float32(region)
    found = jax.device_get(_scored(*given))
    return {name: np.float64(found[name]) for name in SCORES}


_scored = jax.jit(image_scores.scores)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means (r,) of the values that there are."""
    known = ~np.isnan(values)
    total = weights[:, known].sum(1)
    sums = weights[:, known] @ values[known]
    return np.divide(sums, total, out=np.full(len(weights), np.nan), where=total > 0)


def written_reports(
    model: Generator,
    studies: Studies,
    train: Studies,
    shares: Sequence[float] = (0.0, 0.5, 0.9),
    seed: int = 0,
    **how,
) -> tuple[list[dict], list[dict]]:
    """Metrics of written reports, and the texts.

    Args:
      train: X-rays with reports, for the floors.
      how: of `Generator.write`.

    Returns:
      rows {"written_by", "share", metrics of `report_metrics.score`}, and of each study
      {"true", "nearest", ...}.
    """
    kept = [i for i, text in enumerate(studies.texts) if text]
    if not kept:
        raise PacxError("no study of this split has a report: there is none to compare")
    x, true = studies.images[kept], [studies.texts[i] for i in kept]
    known = [i for i, text in enumerate(train.texts) if text]
    if not known:
        raise PacxError("no study of the training split has a report: no floor")
    texts = [train.texts[i] for i in known]
    found = {}
    for share in shares:
        hidden = hidden_patches(len(x), model.grid, share, "random", seed)
        found["model", share] = model.write(x, hidden, seed=seed, **how)
    a, b = (_unit(model.layers(i).mean(1)) for i in (x, train.images[known]))
    found["nearest training X-ray", 0.0] = [texts[i] for i in (a @ b.T).argmax(1)]
    (common, _), *_ = collections.Counter(texts).most_common(1)
    found["most frequent report", 1.0] = [common] * len(x)
    rows = [
        {"written_by": name, "share": share} | report_metrics.score(each, true)
        for (name, share), each in found.items()
    ]
    columns = {f"{name}, {share:g} hidden": v for (name, share), v in found.items()}
    told = [dict(zip(("true", *columns), line, strict=True))
            for line in zip(true, *columns.values(), strict=True)]  # fmt: skip
    return rows, told


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.float64(x) - np.mean(x, axis=0)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def retrieval(model: Generator, studies: Studies, most: int = MOST) -> list[dict]:
    """Recall of a study's report by its X-ray, and of the X-ray by its report.

    By log p(report | X-ray); for an X-ray's report also less log p(report), since
    likely reports are likely beside every X-ray. Studies of the same text are not told
    apart: the first of each is taken.

    Returns:
      Rows: what, n, recall@k and chance@k.
    """
    first = {text: i for i, text in reversed(list(enumerate(studies.texts))) if text}
    kept = sorted(first.values())[:most]
    if len(kept) < 2:
        raise PacxError("retrieval needs two studies with different reports")
    texts = [studies.texts[i] for i in kept]
    found = model.log_likelihood(studies.images[kept], texts)
    given = found - model.text_log_likelihood(texts)[None]
    ways = {
        "report, log p(report | X-ray) - log p(report)": given,
        "report, log p(report | X-ray)": found,
        "X-ray, log p(report | X-ray)": found.T,
    }
    return [
        {"what": name, "n": len(kept)} | report_metrics.recall_of_scores(each)
        for name, each in ways.items()
    ]


def best_layers(model: Generator, train, val) -> list[dict]:
    """Macro AUROC on validation images of probes on the mean of a range of layers.

    Args:
      train, val: `features.ProbeSet`.

    Returns:
      Rows {"first", "last", "auroc"}, blocks first to last, best first: each block,
      each third and half in a row, and all.
    """
    z, other = model.layers(train.images), model.layers(val.images)
    depth, rows = z.shape[1], []
    lengths = sorted({1, max(depth // 3, 1), max(depth // 2, 1), depth})
    for length in lengths:
        for first in range(depth - length + 1):
            a, b = (x[:, first : first + length].mean(1) for x in (z, other))
            fitted = probe.fit(a, train.labels, train.mask, None, train.patients)
            known = np.where(val.mask > 0, val.labels, np.nan)
            scored = zip(fitted.predict(b).T, known.T, strict=True)
            each = [statistics.auroc(*one) for one in scored]
            row = {"first": first, "last": first + length - 1}
            rows.append(row | {"auroc": float(np.nanmean(each))})
    return sorted(rows, key=lambda row: -row["auroc"])
