"""Metrics of generated reports: BLEU-4, ROUGE-L, labels, retrieval, and plug-ins.

  python -m pacx_jax.evaluate.report_metrics --texts=texts.jsonl --out=metrics.json

Each line of the file is {"generated": "...", "true": "..."}. A plug-in is a function
of other code, given as package.module:function, which takes the lists of generated and
of true texts and returns {name: number}: for CheXbert, RadGraph, GREEN and the like.

What is not defined is NaN, never 0 or 1: a metric of no pairs, the F1 of a finding that
neither side mentions. A pair whose true text is empty says nothing about the generated
one, and is left out; an empty generated text counts, with no word right.
"""

from __future__ import annotations

import importlib
import math
import numbers
import re
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pacx_jax import cli, errors, files
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import report_labels
from pacx_jax.objectives import retrieval

PLACES = (1, 5, 10)  # of retrieval
STATUSES = {
    "present": report_labels.PRESENT,
    "absent": report_labels.ABSENT,
    "uncertain": report_labels.UNCERTAIN,
}


def score(
    generated: Sequence[str], true: Sequence[str], plugins: Sequence[str] = ()
) -> dict[str, float]:
    """All metrics of texts, of which row i of both belong together.

    Returns:
      `pairs` (that count), `empty` (generated texts without a word), `bleu4`,
      `rouge_l`, those of `label_f1`, and the plug-ins' own.

    Raises:
      PacxError: the lists differ in length, a package is missing, or a plug-in fails.
    """
    if len(generated) != len(true):
        raise PacxError(
            f"{len(generated)} generated texts do not pair with {len(true)} true ones"
        )
    kept = [(g, t) for g, t in zip(generated, true, strict=True) if words(t)]
    generated, true = [g for g, _ in kept], [t for _, t in kept]
    out = {
        "pairs": float(len(kept)),
        "empty": float(sum(not words(g) for g in generated)),
        "bleu4": bleu4(generated, true),
        "rouge_l": rouge_l(generated, true),
    }
    out |= label_f1(report_labels.label(generated), report_labels.label(true))
    for name in plugins:
        found = _called(name, generated, true)
        if twice := sorted(found.keys() & out.keys()):
            raise PacxError(f"plug-in {name}: another metric is called {twice[0]} too")
        out |= found
    return out


def words(text: str) -> list[str]:
    """Lower-case words and numbers; signs are none."""
    return re.findall(r"\w+", text.lower())


def bleu4(generated: Sequence[str], true: Sequence[str]) -> float:
    """BLEU-4 of the whole corpus (Papineni 2002), without smoothing, in [0, 1].

    0 where no four words in a row are right.
    """
    bleu = _library("nltk.translate.bleu_score")
    if not generated:
        return math.nan
    with warnings.catch_warnings():  # of no 4-gram that is right
        warnings.simplefilter("ignore")
        found = bleu.corpus_bleu(
            [[words(t)] for t in true], list(map(words, generated))
        )
    return float(found) if found > 1e-50 else 0.0


class _Words:
    """`words`, as rouge-score asks for it."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge_l(generated: Sequence[str], true: Sequence[str]) -> float:
    """Mean F1 of the longest common subsequence of words (Lin 2004)."""
    rouge = _library("rouge_score.rouge_scorer")
    scorer = rouge.RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(generated, true, strict=True)
    found = [scorer.score(t, g)["rougeL"].fmeasure for g, t in pairs]
    return float(np.mean(found)) if found else math.nan


def f1(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 2 TP / (2 TP + FP + FN) down the first axis of booleans; NaN for 0 / 0."""
    hits = (predicted & true).sum(0)
    total = predicted.sum(0) + true.sum(0)
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), math.nan)


def label_f1(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """F1 of labels (n, 14) of generated and true texts, from `report_labels`.

    Returns:
      `label_f1/NAME`, where a finding is positive if it is present, and uncertain or
      unmentioned ones are negative; `label_f1_macro`, their mean over the findings that
      either side has, and `label_f1_micro`, of all pooled. `label_f1_absent` and
      `label_f1_uncertain` are micro too, of denials and of doubts.
    """
    out = {}
    for name, status in STATUSES.items():
        a, b = predicted == status, true == status
        micro = float(f1(a.reshape(-1), b.reshape(-1)))
        if name != "present":
            out[f"label_f1_{name}"] = micro
            continue
        each = f1(a, b)
        known = each[~np.isnan(each)]
        out["label_f1_micro"] = micro
        out["label_f1_macro"] = float(known.mean()) if len(known) else math.nan
        names = zip(report_labels.FINDINGS, each, strict=True)
        out |= {f"label_f1/{finding}": float(x) for finding, x in names}
    return out


def resampled_f1(
    generated: Sequence[str], true: Sequence[str], weights: np.ndarray
) -> np.ndarray:
    """`label_f1_micro` (r,) under weightings (r, n) of the pairs; NaN for 0 / 0."""
    given, wanted = (
        report_labels.label(texts) == report_labels.PRESENT
        for texts in (generated, true)
    )
    hits = weights @ (given & wanted).sum(1)
    total = weights @ (given.sum(1) + wanted.sum(1))
    return np.divide(2 * hits, total, out=np.full(len(hits), np.nan), where=total > 0)


def recall(
    images: np.ndarray, reports: np.ndarray, ks: Sequence[int] = PLACES
) -> dict[str, float]:
    """Recall of each X-ray's own report by cosine of embeddings (n, d) each.

    Reports alike have embeddings alike: a tie counts as its expectation under random
    order. See `retrieval.recall_at_k`.
    """
    if not len(images):
        return {f"{w}@{k}": math.nan for w in ("recall", "chance") for k in ks}
    return retrieval.recall_at_k(images, reports, ks)


def recall_of_scores(
    scores: np.ndarray, ks: Sequence[int] = PLACES
) -> dict[str, float]:
    """`recall` by scores (n, n), such as log-likelihoods of reports (column) by X-ray.

    A decoder embeds no text; what it says of a text is its likelihood.
    """
    n = len(scores)
    if not n:
        return recall(scores, scores, ks)
    own = np.diagonal(scores)[:, None]
    better, tied = (scores > own).sum(1), (scores == own).sum(1)
    found = {k: np.clip((k - better) / tied, 0, 1).mean() for k in ks}
    out = {f"recall@{k}": float(found[k]) for k in ks}
    return out | {f"chance@{k}": min(k / n, 1.0) for k in ks}


def plugin(name: str) -> Callable[[list[str], list[str]], Mapping[str, float]]:
    """The function package.module:function.

    Raises:
      PacxError: no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as e:
        raise PacxError(
            f"plug-in {name!r}: {errors.one_line(e)}; give package.module:function, "
            "with its folder on PYTHONPATH"
        ) from None
    if not callable(found):
        raise PacxError(f"plug-in {name!r}: that is no function")
    return found


def _called(
    name: str, generated: Sequence[str], true: Sequence[str]
) -> dict[str, float]:
    found = plugin(name)(list(generated), list(true))
    good = isinstance(found, Mapping) and all(
        isinstance(k, str) and isinstance(v, numbers.Real) for k, v in found.items()
    )
    if not good:
        raise PacxError(
            f"plug-in {name}: it returns {found!r:.80}, not {{name: number}}"
        )
    return {k: float(v) for k, v in found.items()}


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        raise PacxError(
            f"{name.partition('.')[0]} is not installed: {errors.install('reports')}"
        ) from None


def read_texts(path: str) -> tuple[list[str], list[str]]:
    """Generated and true texts of a file; see the module.

    Raises:
      PacxError: a line is no such object.
    """
    generated, true = [], []
    lines = files.read_bytes(path).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = files.parse_json(line)
            pair = row["generated"], row["true"]
        except (ValueError, KeyError, TypeError):
            pair = ()
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise PacxError(
                f'{path}: line {number} is no {{"generated": "...", "true": "..."}}'
            )
        generated.append(pair[0])
        true.append(pair[1])
    return generated, true


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = cli.Parser(
        prog="python -m pacx_jax.evaluate.report_metrics", description=__doc__
    )
    parser.add_argument("--texts", required=True, help="lines of JSON, one a pair")
    parser.add_argument("--out", default="", help="JSON file to write the metrics to")
    parser.add_argument(
        "--plugins", default="", help="package.module:function, commas between"
    )
    args = parser.parse_args(argv)
    named = [name for name in args.plugins.split(",") if name]
    found = score(*read_texts(args.texts), named)
    for name, value in found.items():
        print(f"{name} {value:.4g}")
    if args.out:
        known = {k: None if math.isnan(v) else v for k, v in found.items()}
        files.write_json(args.out, known)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
