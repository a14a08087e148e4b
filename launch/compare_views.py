"""Compares the encoders of MVMAE's demo: late-fusion probes, floors, report.

  python launch/compare_views.py --target=runs/demo_mvmae [--split=test]

Writes comparison.txt, summary.json, comparison.json and report.html into the target.
`scores_of` probes any runs on any prepared set of studies.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from launch import results, spreads, view_evidence  # noqa: E402
from launch.curricula import mvmae  # noqa: E402
from launch.curricula.stage import training  # noqa: E402
from pacx_jax import cli, files, load_encoder  # noqa: E402
from pacx_jax.encoders.xray_encoder import Encoder  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402
from pacx_jax.evaluate import comparison, features, probe  # noqa: E402
from pacx_jax.evaluate.reports import report, tables, words  # noqa: E402
from pacx_jax.input import sources  # noqa: E402
from pacx_jax.run import goodput  # noqa: E402

BUDGETS = (100, 300)  # labelled training studies, besides all
SUBSETS = 10  # label subsets a budget
ONE, FRONTAL = "_one", "_frontal"  # after an arm's name; two views have nothing there
LATERAL = ("retrocardiac_opacity", "effusion")  # what lateral views show
WAYS = {
    "": ("two views", "Probe fitted and tested on frontal and lateral."),
    ONE: ("one view at test", "The same probe, tested on the frontal alone."),
    FRONTAL: ("frontal alone", "Probe fitted and tested on frontals."),
}
ENCODERS = {
    "mvmae": ("MVMAE", "Masked reconstruction of all views, which are aligned."),
    "v2t": ("MVMAE-V2T", "MVMAE that predicts the report besides."),
    "independent": ("Independent", "Masked reconstruction of each view by itself."),
}
FLOORS = {
    "random": ("Random ViT", "The same architecture, untrained."),
    "pixels": ("Pixels 24x24", "Logistic regression on raw pixels, by kind of view."),
}
VIEW = "view"  # the view labels alone
ARMS = {
    name + way: tables.Arm(
        f"{shown}, {how}",
        "floor" if name in FLOORS else "compared",
        about if not way else WAYS[way][1] if name == "mvmae" else "",
        charted=not way,
    )
    for way, (how, _) in WAYS.items()
    for name, (shown, about) in (ENCODERS | FLOORS).items()
    if name in ENCODERS or not way or (name == "random" and way == FRONTAL)
}
ARMS[VIEW] = tables.Arm(
    "View label alone", "floor", "Which views there are: PA, AP, left or right lateral."
)
PAIRS = [
    ("mvmae", "independent"),
    ("v2t", "mvmae"),
    ("mvmae" + ONE, "independent" + ONE),
    ("v2t" + ONE, "mvmae" + ONE),
    ("mvmae", "mvmae" + FRONTAL),
    ("independent", "independent" + FRONTAL),
    *((name, "random") for name in ENCODERS),
    ("mvmae", "pixels"),
    ("mvmae", VIEW),
]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Probes of several arms on the test studies.

    Attributes:
      scores: (arm, labelled studies) -> (t, s, m, c) probabilities; t trainings, s
        label subsets. An arm's name is followed by ONE or FRONTAL where it is not of
        two views.
      n_labelled: labelled studies -> the same, as `comparison.compare_arms` asks.
      test: the studies that were tested.
      label_names: c names.
    """

    scores: dict[tuple[str, int], np.ndarray]
    n_labelled: dict[int, int]
    test: features.StudySet
    label_names: Sequence[str]


def probe_source(path: str | os.PathLike, split: str):
    """One split of a prepared set of labelled studies."""
    about = {"source": "prepared", "path": str(path), "group": "study"}
    return sources.open_source(ml_collections.ConfigDict(about), split)


def scores_of(
    arms: Mapping[str, Sequence[str | os.PathLike | Encoder]],
    probe_path: str | os.PathLike,
    split: str = "test",
    budgets: Sequence[int] = BUDGETS,
    subsets: int = SUBSETS,
    floors_seed: int | None = None,
) -> Scores:
    """Probes runs in all `WAYS`, fitted on the training studies, tested on `split`.

    Args:
      arms: name -> its trainings, each a run's workdir, a model folder or an opened
        encoder, which embeds each image with its view by the CLS token.
      probe_path: a prepared set of labelled studies.
      split: "val" or "test".
      budgets: numbers of labelled training studies. Those that the set does not reach
        are left out; all of them are always a budget.
      subsets: label subsets a budget, the same for all arms.
      floors_seed: also probe the floors, with as many random encoders, of this seed
        and those after it, of the last arm's architecture; None: no floors.
    """
    source = {s: probe_source(probe_path, s) for s in ("train", split)}
    train, test = (features.read_study_set(source[s]) for s in ("train", split))
    if set(train.patients) & set(test.patients):
        raise PacxError("probe patients stand in both splits: the data are damaged")
    found = {}
    for name, trainings in arms.items():
        for k, encoder in enumerate(trainings):
            if not isinstance(encoder, Encoder):
                encoder = load_encoder(encoder)
            found[name, k] = {
                "train": encoder(train.images, train.views),
                "test": encoder(test.images, test.views),
            }
    if floors_seed is not None:
        found |= floors(encoder, train, test, floors_seed, len(trainings))
    labelled = int((train.mask > 0).any(axis=1).sum())
    fewest = len(source["train"].label_names)
    counts = [*(n for n in sorted(budgets) if fewest < n < labelled), labelled]
    scores = _scores(found, train, test, counts, subsets, set(arms))
    named = source["train"].label_names
    return Scores(scores, {n: n for n in counts}, test, named)


def floors(like, train, test, seed: int, n: int) -> dict[tuple[str, int], dict]:
    """Features without pretraining: n random encoders, pixels, view labels."""
    pixels = {"train": features.pixels(train), "test": features.pixels(test)}
    means = features.view_means(pixels["train"], train)
    sets = {"train": train, "test": test}
    apart = {k: features.by_view(pixels[k], s, means) for k, s in sets.items()}
    seen = apart["train"].any(axis=0)  # no columns of views that do not occur
    found = {
        ("pixels", 0): {k: x[:, seen] for k, x in apart.items()},
        (VIEW, 0): {k: features.view_labels(s) for k, s in sets.items()},
    }
    for i in range(n):
        encoder = features.random_like(like, seed + i)
        each = {k: encoder(s.images, s.views) for k, s in sets.items()}
        found["random", i] = each
    return found


def _scores(found, train, test, counts, subsets, trained) -> dict:
    index = {"train": train.index, "test": test.index}
    about = (train.labels, train.mask, (), range(subsets), train.patients, counts)
    out = {}
    fitted = probe.fit_probes(found, *about, index)
    for ((name, i), n), probes in fitted.items():
        for way, most in (("", 0), (ONE, 1)):
            if not way or name in trained:
                tested = probe.fuse(found[name, i]["test"], test.index, most)
                predicted = [each.predict(tested) for each in probes]
                out[(name + way, i), n] = np.stack(predicted)
    frontals = {
        (name + FRONTAL, i): {k: probe.fuse(x[k], index[k], most=1) for k in index}
        for (name, i), x in found.items()
        if name not in (VIEW, "pixels")  # as slow as all encoders together
    }
    return comparison.by_training(out | probe.run_probes(frontals, *about))


def compare(
    target: pathlib.Path, split: str, encoders: Mapping[str, list[Encoder]], seed: int
) -> comparison.Comparison:
    """All arms of the demo, and their differences."""
    found = scores_of(
        encoders,
        target / "data" / "prepared" / "views_probe",
        split,
        floors_seed=seed,
    )
    others = tuple(name for name in found.label_names if name not in LATERAL)
    test = found.test
    return comparison.compare_arms(
        found.scores,
        test.labels,
        test.mask,
        test.patients,
        found.label_names,
        {"lateral": LATERAL, "other": others},
        PAIRS,
        found.n_labelled,
        baseline="independent",
        treatment="mvmae",
    )


def headline(result: comparison.Comparison) -> list[str]:
    """Sentences on the pairs that the first paragraph does not name."""
    sentences = []
    for a, b, way in (("v2t", "mvmae", ""), ("mvmae", "independent", ONE)):
        pair = (a + way, b + way)
        rows = [r for r in result.pairs if (r["a"], r["b"]) == pair and r["group"]]
        named = {"treatment": ENCODERS[a][0], "baseline": ENCODERS[b][0]}
        says = dataclasses.replace(words.MVMAE, **named)
        sentences.append(f"{ENCODERS[a][0]} against {ENCODERS[b][0]}, {WAYS[way][0]}.")
        sentences += tables.lead(rows, says)
    return sentences


def write(target: pathlib.Path, split: str, seeds: int = 1) -> None:
    """Everything that the demo leaves behind."""
    identity = json.loads((target / "demo.json").read_text())
    progress = json.loads((target / "progress.json").read_text())
    read = time.time()
    encoders = {
        name: [load_encoder(target / training(name, k)) for k in range(seeds)]
        for name in mvmae.ARMS
    }
    result = compare(target, split, encoders, identity["seed"])
    first = {name: each[0] for name, each in encoders.items()}
    evidence = view_evidence.gather(target, first, identity["seed"])
    name = results.recorded_name("mvmae", identity["plan"] == results.plain(mvmae.DEMO))
    budget = "{:g} labelled studies".format
    spread = spreads.notes(result.summary, name, spreads.read(), budget)
    page = report.Report(
        words=words.MVMAE,
        title="MVMAE: the demonstration",
        simulated=True,
        headline=headline(result),
        summary=result.summary,
        table=result.table,
        pairs=result.pairs,
        arms=ARMS,
        curves=view_evidence.curves(target, view_evidence.LOSSES),
        alignment=view_evidence.curves(target, view_evidence.ALIGNMENT),
        configs={s: results.config(target, s) for s in ("start", *mvmae.ARMS)},
        versions=results.versions(),
        seeds=results.seeds(identity["seed"], seeds),
        seconds=results.times(progress, read),
        goodput={s: goodput.read(str(target / s)) for s in ("start", *mvmae.ARMS)},
        notes=[
            *spread,
            f"Probes are measured on the {split} patients.",
            "Every arm goes on from one start without alignment, which the curves of "
            "alignment leave out.",
            "Alignment, reconstructions, reports and retrieval are of the validation "
            "studies of pretraining, which chose no checkpoint: every arm is its run's "
            "last step.",
        ],
        **evidence,
    )
    report.write_report(target / "report.html", page)
    told = [row for row in result.pairs if (row["a"], row["b"]) in PAIRS[1:6]]
    text = tables.render_table_text(
        result.table, result.summary, ARMS, words.MVMAE, told
    )
    files.write(target / "comparison.txt", "\n".join([text, *spread]) + "\n")
    numbers = {"table": result.table, "pairs": result.pairs}
    files.write(target / "comparison.json", json.dumps(numbers, indent=1) + "\n")
    kept = {"labels": "labels", "independent": "b_auroc", "mvmae": "a_auroc"}
    kept |= {k: k for k in ("difference", "low", "high", "spread", "trainings")}
    kept |= {k: k for k in ("subsets", "n_patients", "n_labels")}
    rows = [{k: row[v] for k, v in kept.items()} for row in result.summary]
    files.write_json(target / "summary.json", {"comparison": rows})


@cli.command
def main() -> None:
    """The command line."""
    results.asked(write, __doc__)


if __name__ == "__main__":
    sys.exit(main())
