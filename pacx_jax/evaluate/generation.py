"""What a CheXmix writes and fills in, beside floors that need no model.

`pacx generate` runs these on a prepared set. Floors: the mean training
image, the report alone, the report of the nearest training X-ray, the most frequent
one.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

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


def pixels_of(hidden: np.ndarray, size: int) -> np.ndarray:
    """Hidden patches (n, k) as pixels (n, size, size)."""
    side = math.isqrt(hidden.shape[1])
    squares = hidden.reshape(-1, side, side)
    return squares.repeat(size // side, 1).repeat(size // side, 2)


def inpainting(
    models: Sequence[Generator],
    studies: Studies,
    mean_image: np.ndarray,
    share: float,
    shape: str = "random",
    way: str = "sequence",
    seed: int = 0,
    others: Mapping[str, Sequence[Callable]] | None = None,
    **how,
) -> list[dict]:
    """Scores of hidden pixels, by what fills them in and where they lie.

    Args:
      models: trainings of one model, with one image tokenizer.
      mean_image: (s, s, c) in [0, 1], of training images.
      way, how: see `Generator.paint`.
      others: name -> trainings of another model, as functions of (uint8 images, hidden
        patches) that give images in [0, 1] (`inpainting.decoder`).

    Returns:
      Rows: share, filled_by, where ("all", "inside" and "outside" of the masks), n,
      trainings and each of SCORES as {"value", "low", "high"}; and, of all but the
      model, "model_less": the same of the model's score less this one's. Intervals are
      over patients and, where there are several, trainings. "report alone" writes the
      whole image from its report; "image tokenizer" decodes the codes of the whole
      X-ray.
    """
    n, side, x = len(studies.images), models[0].grid, studies.images
    hidden = hidden_patches(n, side, share, shape, seed)
    told = np.array([bool(text) for text in studies.texts])
    paint = how | {"way": way, "seed": seed}
    filled = {"model": [m.paint(x, hidden, **paint) for m in models]}
    if told.any():
        with_text = [m.paint(x, hidden, studies.texts, **paint) for m in models]
        every = np.ones(side**2, bool)
        alone = [m.paint(x, every, studies.texts, **paint) for m in models]
        filled |= {"model and report": with_text, "report alone": alone}
    for name, each in (others or {}).items():
        filled[name] = [fill(x, hidden) for fill in each]
    filled["mean image"] = [np.broadcast_to(mean_image, x.shape)]
    filled["image tokenizer"] = [models[0].decode(models[0].codes(x))]
    gone = pixels_of(hidden, models[0].image_size)
    places = {"all": gone}
    if studies.masks is not None:
        places["inside"] = gone & studies.masks
        places["outside"] = gone & ~studies.masks
    drawn = statistics.bootstrap_weights(studies.patients, seed=seed)
    weights, rows = np.concatenate([np.ones((1, n)), drawn]), []
    for where, region in places.items():
        scores = {
            name: [pixel_scores(one, x, region) for one in each]
            for name, each in filled.items()
        }
        for name, each in scores.items():
            known = told if "report" in name else np.ones(n, bool)
            row = {"share": share, "filled_by": name, "where": where}
            row["n"] = int((known & ~np.isnan(each[0]["l1"])).sum())
            row["trainings"] = len(each)

            def means(given, score, known=known):
                each = [np.where(known, one[score], np.nan) for one in given]
                return np.stack([statistics.weighted_means(x, weights) for x in each])

            found = {score: means(each, score) for score in SCORES}
            row |= {s: statistics.row_over_trainings(v, seed) for s, v in found.items()}
            if name != "model":
                row["model_less"] = {
                    s: statistics.row_over_trainings(
                        means(scores["model"], s) - v, seed
                    )
                    for s, v in found.items()
                }
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


def written_reports(
    models: Sequence[Generator],
    studies: Studies,
    train: Studies,
    shares: Sequence[float] = (0.0, 0.5, 0.9),
    seed: int = 0,
    **how,
) -> tuple[list[dict], list[dict]]:
    """Metrics of written reports, and the texts of the first training.

    Args:
      models: trainings of one model.
      train: X-rays with reports, for the floors.
      how: of `Generator.write`.

    Returns:
      rows {"written_by", "share", "trainings", metrics of `report_metrics.score` as
      means over the trainings, "f1": label_f1_micro as {"value", "low", "high"}} and,
      of floors, "model_less": the same of the model's, from whole X-rays, less this
      one's; and of each study {"true", "nearest", ...}. Intervals are over patients
      and, where there are several, trainings.
    """
    kept = [i for i, text in enumerate(studies.texts) if text]
    if not kept:
        raise PacxError("no study of this split has a report: there is none to compare")
    x, true = studies.images[kept], [studies.texts[i] for i in kept]
    known = [i for i, text in enumerate(train.texts) if text]
    if not known:
        raise PacxError("no study of the training split has a report: no floor")
    texts, found = [train.texts[i] for i in known], {}
    for share in shares:
        hidden = hidden_patches(len(x), models[0].grid, share, "random", seed)
        found["model", share] = [m.write(x, hidden, seed=seed, **how) for m in models]
    found["nearest training X-ray", 0.0] = []
    for model in models:
        a, b = (_unit(model.layers(i).mean(1)) for i in (x, train.images[known]))
        nearest = [texts[i] for i in (a @ b.T).argmax(1)]
        found["nearest training X-ray", 0.0].append(nearest)
    (common, _), *_ = collections.Counter(texts).most_common(1)
    found["most frequent report", 1.0] = [[common] * len(x)]
    drawn = statistics.bootstrap_weights(studies.patients[kept], seed=seed)
    weights = np.concatenate([np.ones((1, len(x))), drawn])
    f1 = {
        key: np.stack([report_metrics.resampled_f1(one, true, weights) for one in each])
        for key, each in found.items()
    }
    rows = []
    for (name, share), each in found.items():
        scores = [report_metrics.score(one, true) for one in each]
        row = {"written_by": name, "share": share, "trainings": len(each)}
        row |= {k: float(np.mean([one[k] for one in scores])) for k in scores[0]}
        row["f1"] = statistics.row_over_trainings(f1[name, share], seed)
        if name != "model" and ("model", 0.0) in f1:
            less = f1["model", 0.0] - f1[name, share]
            row["model_less"] = {"f1": statistics.row_over_trainings(less, seed)}
        rows.append(row)
    columns = {f"{name}, {share:g} hidden": v[0] for (name, share), v in found.items()}
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
