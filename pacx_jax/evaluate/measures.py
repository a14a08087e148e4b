"""Measures with intervals; classification, masks and retrieval share one form.

`examples` turns an objective's outputs into arrays with a row an example and columns:
labels, the mask, or modalities. A measure is a function of these arrays and of
weightings; a resample of patients, a subgroup, and the sample itself are all
weightings or rows. A new measure is one entry of MEASURES:

  name -> function(arrays, weights (r, n)) -> (r, c), NaN where undefined

`scored` gives {"macro": {measure: row}, "labels": {column: {measure: row}}}; a row is
{"value", "low", "high"} (`statistics.row`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pacx_jax.evaluate import statistics
from pacx_jax.objectives import retrieval, scores, segment

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int, Integer, Real, Shaped

Arrays = Mapping[str, np.ndarray]
Measure = Callable[[Arrays, np.ndarray], np.ndarray]
Scores = dict[str, dict]
KS = (1, 5, 10)  # of recall at k


@dataclasses.dataclass(frozen=True)
class Examples:
    """What is measured of a split.

    Attributes:
      kind: "multilabel", "multiclass", "masks" or "retrieval".
      names: of the c columns.
      arrays: (n, c) each. Of labels logits, labels, label_mask, and of one class of c
        also called, 1 of the class of the highest logit and -1 of others, and right, 1
        in the whole row where that is the example's; of masks hits, called, truth (see
        objectives.segment); of retrieval recall@k, NaN where the example lacks the
        modality.
    """

    kind: str
    names: tuple[str, ...]
    arrays: dict[str, Shaped[np.ndarray, "n c"]]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def rows(self, rows: Integer[np.ndarray, " m"]) -> Examples:
        """Some of the examples."""
        arrays = {k: v[rows] for k, v in self.arrays.items()}
        return dataclasses.replace(self, arrays=arrays)

    def columns(self, chosen: Sequence[int]) -> Examples:
        """Some of the columns."""
        arrays = {k: v[:, chosen] for k, v in self.arrays.items()}
        names = tuple(self.names[c] for c in chosen)
        return dataclasses.replace(self, names=names, arrays=arrays)

    def known(
        self, c: int
    ) -> tuple[
        Float64[np.ndarray, " m"], Float64[np.ndarray, " m"], Int[np.ndarray, " m"]
    ]:
        """Logits and labels of the studies that have label c, and which these are."""
        rows = np.flatnonzero(self.arrays["label_mask"][:, c] > 0)
        x, y = (self.arrays[k][rows, c] for k in ("logits", "labels"))
        return np.float64(x), np.float64(y), rows


def examples(
    outputs: Mapping[str, Shaped[np.ndarray, "n ..."]],
    names: Sequence[str],
    task: str = "multilabel",
) -> Examples | None:
    """The examples of an objective's outputs; None where nothing here measures them.

    Args:
      outputs: of `Objective.outputs`, (n, ...) each.
      names: of a classifier's labels.
      task: "multilabel" or "multiclass". One of c classes becomes c labels by
        `one_vs_rest`; an example with no class, or several, has no known label.
    """
    if "logits" in outputs:
        x, y, mask = (outputs[k] for k in ("logits", "labels", "label_mask"))
        if task == "multiclass":
            one = (y.sum(-1) == 1) & (mask.min(-1) > 0)
            mask = np.float32(one)[:, None] * np.ones_like(mask)
            x = one_vs_rest(x)
        return of_labels(names, x, y, mask, task)
    if "hits" in outputs:
        arrays = {
            k: np.float64(outputs[k])[:, None] for k in ("hits", "called", "truth")
        }
        return Examples("masks", ("mask",), arrays)
    found = tuple(k for k in outputs if f"cosine_{k}" in outputs)
    if not found:
        return None
    arrays = {
        f"recall@{k}": np.full((len(outputs["cxr"]), len(found)), np.nan) for k in KS
    }
    for c, m in enumerate(found):
        here = np.flatnonzero(outputs.get(f"{m}_present", np.ones(len(outputs[m]))) > 0)
        if len(here):
            hits = retrieval.hits_at_k(outputs["cxr"][here], outputs[m][here], KS)
            for k in KS:
                arrays[f"recall@{k}"][here, c] = hits[k]
    return Examples("retrieval", found, arrays)


def of_labels(
    names: Sequence[str],
    logits: Real[np.ndarray, "n c"],
    labels: Real[np.ndarray, "n c"],
    mask: Real[np.ndarray, "n c"],
    task: str = "multilabel",
) -> Examples:
    """The examples of (n, c) logits, labels and mask (1 where a label is known)."""
    arrays = {"logits": logits, "labels": labels, "label_mask": mask}
    if task == "multiclass":  # of all classes, also those that nobody here has
        first = np.arange(logits.shape[1]) == logits.argmax(1)[:, None]
        right = (first & (labels == 1)).any(1)[:, None]
        arrays["called"] = np.where(first, 1.0, -1.0)
        arrays["right"] = np.where(mask > 0, np.float64(right), np.nan)
    return Examples(task, tuple(names), arrays)


def one_vs_rest(logits: Real[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    """(n, c) logits of a softmax -> log p - log(1 - p) of each class."""
    x = np.asarray(logits, np.float64)
    others = [
        np.logaddexp.reduce(np.delete(x, c, 1), axis=1) for c in range(x.shape[1])
    ]
    return x - np.stack(others, 1)


def _auroc(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    x, y, mask = (arrays[k] for k in ("logits", "labels", "label_mask"))
    truth, counts = np.where(mask > 0, y, np.nan), weights
    if (weights % 1 == 0).all():
        counts = np.int32(weights)  # exact, and quicker to sum
    columns = zip(x.T, truth.T, strict=True)
    return np.stack([statistics.weighted_auroc(*xy, counts) for xy in columns], 1)


def _of_label(measure) -> Measure:
    def measured(arrays, weights):
        x, y, mask = (np.float64(arrays[k]) for k in ("logits", "labels", "label_mask"))
        return measure(x, y, mask, weights)

    return measured


def _pooled(name: str) -> Measure:
    def measured(arrays, weights):
        sums = (weights @ arrays[k] for k in ("hits", "called", "truth"))
        return segment.overlap(*sums)[name]

    return measured


def _mean(each: Callable[[Arrays], np.ndarray]) -> Measure:
    """The mean over examples of what `each` gives (n, c) of, NaN left out."""

    def measured(arrays, weights):
        values = each(arrays)
        there = ~np.isnan(values)
        total = weights @ np.where(there, values, 0.0)
        return scores.ratio(total, weights @ there.astype(np.float64))

    return measured


def per_image(
    arrays: Mapping[str, Real[np.ndarray, "n 1"]],
) -> dict[str, Float[np.ndarray, "n 1"]]:
    """Dice and IoU of each image, (n, 1)."""
    return segment.overlap(*(arrays[k] for k in ("hits", "called", "truth")))


def _of_class(measure) -> Measure:
    """`measure` of the class called, the one of highest probability."""
    return lambda arrays, weights: measure(
        arrays | {"logits": arrays["called"]}, weights
    )


_RANKING = ("auroc", "ap", "brier", "ece")  # of one class against the others, too
_CALLED = ("f1", "precision", "recall")
_BINARY = {"auroc": _auroc} | {k: _of_label(v) for k, v in scores.MEASURES.items()}
MEASURES: dict[str, dict[str, Measure]] = {
    "multilabel": _BINARY,
    "multiclass": {k: _BINARY[k] for k in _RANKING}
    | {k: _of_class(_BINARY[k]) for k in _CALLED}
    | {"accuracy": _mean(lambda a: a["right"])},  # of the task: alike in all columns
    "masks": {k: _pooled(k) for k in ("dice", "iou")}
    | {
        f"{k}_per_image": _mean(lambda a, k=k: per_image(a)[k]) for k in ("dice", "iou")
    },
    "retrieval": {f"recall@{k}": _mean(lambda a, k=k: a[f"recall@{k}"]) for k in KS},
}


def values(
    given: Examples, weights: Real[np.ndarray, "r n"]
) -> dict[str, Float[np.ndarray, "draws c"]]:
    """Measure -> (1 + r, c): on the sample, then under each of (r, n) weights."""
    rows = np.concatenate([np.ones((1, len(given))), weights])
    return {k: f(given.arrays, rows) for k, f in MEASURES[given.kind].items()}


def defined(given: Examples) -> Int[np.ndarray, " k"]:
    """Columns that can be measured: labels of both classes; all of other kinds."""
    if "label_mask" not in given.arrays:
        return np.arange(len(given.names))
    y, mask = given.arrays["labels"], given.arrays["label_mask"]
    return np.flatnonzero(scores.both_classes(y, mask))


def counts(given: Examples) -> dict[str, dict[str, int]]:
    """How many known labels and positives each label has; {} of other kinds."""
    if "label_mask" not in given.arrays:
        return {}
    known = given.arrays["label_mask"] > 0
    positive = known & (given.arrays["labels"] == 1)
    each = zip(given.names, known.sum(0), positive.sum(0), strict=True)
    return {name: {"known": int(n), "positives": int(k)} for name, n, k in each}


def scored(given: Examples, weights: Real[np.ndarray, "r n"]) -> Scores:
    """Every measure of every column, and its mean over them, with intervals.

    A label of one class is left out, also of the means (`counts` says which); a
    resample that leaves a label undefined has the mean of the others. Noise adds to
    the absolute gaps of the calibration error, and resampling adds noise: its interval
    tends to lie above its value, which is itself above the truth.

    Args:
      weights: (r, n) from `statistics.bootstrap_weights`.
    """
    given = given.columns(defined(given))
    return rows(given.names, values(given, weights) if given.names else {})


def rows(
    names: Sequence[str], found: Mapping[str, Float[np.ndarray, "draws c"]]
) -> Scores:
    """The `values` of columns as `scored` gives them."""
    macro = {k: statistics.row(statistics.mean_defined(v)) for k, v in found.items()}
    labels = {
        name: {k: statistics.row(v[:, c]) for k, v in found.items()}
        for c, name in enumerate(names)
    }
    return {"macro": macro, "labels": labels}
