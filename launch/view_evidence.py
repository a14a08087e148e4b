"""What MVMAE's demo shows of its held-out studies, besides the probes.

Both views reconstructed, generated reports beside the true ones, and retrieval of the
other view. All from the validation studies of pretraining.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from launch import results
from pacx_jax import objectives, sharding
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.evaluate import features, report_labels, report_metrics
from pacx_jax.input import images, reports, sources, views
from pacx_jax.objectives import retrieval
from pacx_jax.run import checkpoint, finished

# Panel of charts -> metric -> its name there.
LOSSES = {
    "{}, reconstruction": {"reconstruction": "train", "val/loss": "validation"},
    "{}, report": {"caption": "train", "val/caption": "validation"},
}
ALIGNMENT = {
    "{}, cosine": {
        "val/cosine": "views of one study",
        "val/cosine_of_others": "of two studies",
    },
    "{}, alignment loss": {"align": "train"},
}
NAMES = {"independent": "Independent", "mvmae": "MVMAE", "v2t": "MVMAE-V2T"}
RECONSTRUCTED, TEXTS, PLACES = 2, 3, (1, 5)
KINDS = ("frontal", "lateral")


@dataclasses.dataclass(frozen=True)
class Study:
    """A held-out study.

    Attributes:
      images: coarse view -> its first image, uint8.
      views: coarse view -> the fine name.
      text: the sections of its report that a decoder learns; "": it has none.
    """

    images: dict[str, np.ndarray]
    views: dict[str, str]
    text: str


def curves(target: pathlib.Path, panels: dict[str, dict[str, str]]) -> dict:
    """Metrics of the runs that recorded them, as `report.Report` shows them."""
    found = {}
    for panel, shown in panels.items():
        for arm, name in NAMES.items():
            found |= results.curves(target, [arm], shown, panel.format(name))
    return found


def gather(target: pathlib.Path, encoders: Mapping[str, Encoder], seed: int) -> dict:
    """Fields of `report.Report`: reconstructions, texts and retrieval."""
    config = finished.read_config(str(target / "v2t"))
    studies = read(sources.open_source(config.data, "val"), config)
    both = [s for s in studies if len(s.images) == len(KINDS)]
    shown = [s for s in both if s.text] or both  # reconstructions beside their texts
    pictures, names = reconstructions(
        target / "mvmae", encoders["mvmae"], shown[:RECONSTRUCTED]
    )
    texts, scores = generated(target / "v2t", encoders["v2t"], studies, shown[:TEXTS])
    return {
        "reconstructions": pictures,
        "reconstructed": names,
        "texts": texts,
        "text_scores": scores,
        "retrieval": other_view(encoders, both, seed),
    }


def read(source, config) -> list[Study]:
    """Reads all studies of a source, with the first image of each kind of view."""
    found = []
    for i in range(len(source)):
        example, first = source[i], {}
        for place, name in enumerate(example["views"]):
            first.setdefault(views.coarse(name), place)
        first = {kind: first[kind] for kind in KINDS if kind in first}
        decoded = {
            k: images.decode(example["images"][p], source.name(i))
            for k, p in first.items()
        }
        text = reports.text_of(example, config.data.report_sections)
        named = {k: example["views"][p] for k, p in first.items()}
        found.append(Study(decoded, named, text))
    return found


def reconstructions(
    workdir: pathlib.Path, encoder: Encoder, studies: Sequence[Study]
) -> tuple[list[tuple], list[str]]:
    """Input, visible part and reconstruction of both views of at most two studies."""
    if not studies:
        return [], []
    config = finished.read_config(str(workdir))
    x = [[encoder.preprocess(s.images[k]) for k in KINDS] for s in studies]
    view = [[encoder.view_number(s.views[k]) for k in KINDS] for s in studies]
    batch = {"images": np.array(x), "view": np.array(view, np.int32)}
    objective = objectives.make(config, sharding.make_mesh(1))
    params = checkpoint.read_params(workdir)
    rows = jax.jit(objective.images)(params, batch, jax.random.key(0))
    rows = np.asarray(rows["reconstruction"])
    names = [
        f"study {i}, {s.views[k]}" for i, s in enumerate(studies, 1) for k in KINDS
    ]
    return [tuple(np.split(row, 3, axis=1)) for row in rows], names


def generated(
    workdir: pathlib.Path,
    encoder: Encoder,
    studies: Sequence[Study],
    shown: Sequence[Study],
) -> tuple[list[dict[str, str]], dict[str, dict[str, float]]]:
    """Greedy reports from whole X-rays, and how their findings agree with true ones.

    Returns:
      Of each study to be shown, names and texts; and the scores over all studies that
      have a report, from each kind of view, and of the true reports of other studies.
    """
    captioner = finished.read_captioner(str(workdir))
    params = checkpoint.read_params(workdir)
    rows, scores = [{"true report": s.text} for s in shown], {}
    told = [s for s in studies if s.text]
    for kind in KINDS:
        seen = [s for s in told if kind in s.images]
        if not seen:
            continue
        films, names = [s.images[kind] for s in seen], [s.views[kind] for s in seen]
        tokens = encoder.tokens(films, names)
        whole = np.tile(np.arange(tokens.shape[1] - 1), (len(seen), 1))
        numbers = np.array([encoder.view_number(name) for name in names])
        texts = captioner.write(params, tokens, whole, numbers)
        title = f"generated from the {kind}"
        scores[title] = text_scores(texts, [s.text for s in seen])
        written = {id(s): text for s, text in zip(seen, texts, strict=True)}
        for study, row in zip(shown, rows, strict=True):
            if id(study) in written:
                row[title] = written[id(study)]
    if len(told) > 1:
        true, half = [s.text for s in told], len(told) // 2  # of another patient
        scores["true, of another study"] = text_scores(true[half:] + true[:half], true)
    return rows, scores


def text_scores(texts: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """Numbers on generated texts; NaN where neither side has a finding."""
    labels = [report_labels.label(each) for each in (texts, true)]
    for each in labels:  # a text that says nothing has "No Finding" too
        each[:, report_labels.FINDINGS.index(report_labels.NO_FINDING)] = np.nan
    found = report_metrics.label_f1(*labels)
    return {
        "studies": len(texts),
        "BLEU-4": report_metrics.bleu4(texts, true),
        "ROUGE-L": report_metrics.rouge_l(texts, true),
        "F1 of findings": found["label_f1_micro"],
        "mean over findings": found["label_f1_macro"],
        "F1 of denials": found["label_f1_absent"],
    }


def other_view(
    encoders: Mapping[str, Encoder], studies: Sequence[Study], seed: int
) -> list[dict]:
    """Recall of a study's other view by the exported encoders, over both directions."""
    if len(studies) < 2:
        return []
    named = {name: encoders[arm] for arm, name in NAMES.items()}
    named["Random ViT"] = features.random_like(encoders["mvmae"], seed)
    rows = []
    for name, encoder in named.items():
        tokens = [
            encoder.tokens(
                [s.images[k] for s in studies], [s.views[k] for s in studies]
            )
            for k in KINDS
        ]
        for how, z in (
            ("CLS", [x[:, 0] for x in tokens]),
            ("mean of tokens", [x.mean(axis=1) for x in tokens]),
        ):
            ways = [retrieval.recall_at_k(*pair, PLACES) for pair in (z, z[::-1])]
            row = {"encoder": f"{name}, {how}", "target": "the other view"}
            row["n"] = len(studies)
            rows.append(row | {k: (ways[0][k] + ways[1][k]) / 2 for k in ways[0]})
    return rows
