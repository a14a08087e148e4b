"""Compares CheXmix's demo: masked-input probes, filling in, reports, retrieval.

  python launch/compare_tokens.py --target=runs/demo_chexmix [--split=test]

Writes comparison.txt, summary.json, comparison.json and report.html into the target.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from launch import results, spreads, token_evidence  # noqa: E402
from launch.curricula import chexmix  # noqa: E402
from launch.curricula.stage import training  # noqa: E402
from pacx_jax import cli, files  # noqa: E402
from pacx_jax.encoders import model_folder  # noqa: E402
from pacx_jax.encoders.generator import load_generator  # noqa: E402
from pacx_jax.evaluate import features, masked_inputs  # noqa: E402
from pacx_jax.evaluate.reports import report, tables, words  # noqa: E402
from pacx_jax.run import goodput  # noqa: E402

PAIR = ("masked", "continued")  # two stages against one
ARMS = {
    "masked": tables.Arm(
        "CheXmix, two stages", "compared", "Causal pretraining, then masked inputs."
    ),
    "continued": tables.Arm(
        "Causal alone", "compared", "Causal pretraining for as many steps."
    ),
    "mae": tables.Arm("MAE", "compared", "A masked autoencoder of the same X-rays."),
}


def renamed(row: dict) -> dict:
    """A row whose labels say how much of the X-rays is hidden, of all labels."""
    labels = "all" if row["group"] else row["labels"]
    labels += f" (X-rays {row['fraction']:.0%} hidden)"
    return row | {"labels": labels, "fraction": 1.0}


def compare(target: pathlib.Path, split: str, seeds: int):
    """`comparison.Comparison` of all arms, whose `fraction` is the share hidden."""
    arms = {
        name: [model_folder.load(target / training(name, k)) for k in range(seeds)]
        for name in reversed(chexmix.ARMS)
    }
    sources = {
        "train": token_evidence.opened(target, "probe", "train"),
        "test": token_evidence.opened(target, "probe", split),
    }
    sets = {s: features.read_probe_set(source) for s, source in sources.items()}
    paths = {s: source.paths() for s, source in sources.items()}
    return masked_inputs.curve(arms, sets, paths, sources["train"].label_names)


def write(target: pathlib.Path, split: str, seeds: int = 1) -> None:
    """Everything that the demo leaves behind."""
    identity = json.loads((target / "demo.json").read_text())
    progress = json.loads((target / "progress.json").read_text())
    read = time.time()
    found = compare(target, split, seeds)
    pairs = [row for row in found.pairs if row["group"]]
    summary = [row for row in pairs if (row["a"], row["b"]) == PAIR]
    models = [
        load_generator(target / training("masked", k), target / "tokenizer.json")
        for k in range(seeds)
    ]
    name = results.recorded_name(
        "chexmix", identity["plan"] == results.plain(chexmix.DEMO)
    )
    hidden = "X-rays {:.0%} hidden".format
    spread = spreads.notes(summary, name, spreads.read(), hidden)
    evidence, painted, written = token_evidence.gather(target, models, split)
    page = report.Report(
        words=words.CHEXMIX,
        title="CheXmix: the demonstration",
        simulated=True,
        summary=[renamed(row) for row in summary],
        table=[renamed(row) for row in found.table],
        pairs=[renamed(row) for row in pairs],
        arms=ARMS,
        curves=token_evidence.curves(target),
        configs={s: results.config(target, s) for s in ("vq", "causal", *chexmix.ARMS)},
        versions=results.versions(),
        seeds=results.seeds(identity["seed"], seeds),
        seconds=results.times(progress, read),
        goodput={s: goodput.read(str(target / s)) for s in ("causal", *chexmix.ARMS)},
        notes=[
            *spread,
            f"Probes are measured on the {split} patients, fitted on whole X-rays.",
            "The X-rays and texts shown, and retrieval, are of the first training of "
            "two stages; scores of pixels and reports are means over all.",
            *token_evidence.sentences(painted),
        ],
        **evidence,
    )
    report.write_report(target / "report.html", page)
    shares = sorted({row["fraction"] for row in found.table})
    text = [*masked_inputs.table(found.table, shares), ""]
    text += [
        f"two stages - causal alone, X-rays {row['fraction']:.0%} hidden: "
        f"{tables.number(row['difference'], True)} "
        f"({tables.interval(row['low'], row['high'], True)})"
        for row in summary
    ]
    text += [*spread, "", *token_evidence.lines(painted)]
    text += ["", *token_evidence.report_lines(written), "", "Metrics of reports"]
    text += [
        f"{name}: " + ", ".join(f"{k} {tables.number(v)}" for k, v in each.items())
        for name, each in evidence["text_scores"].items()
    ]
    files.write(target / "comparison.txt", "\n".join(text) + "\n")
    numbers = {"table": found.table, "pairs": found.pairs, "inpainting": painted}
    told = ("written_by", "share", "trainings", "f1", "model_less")
    numbers["reports"] = [{k: row[k] for k in told if k in row} for row in written]
    numbers["retrieval"] = evidence["retrieval"]
    numbers["text_scores"] = {
        name: {k: None if math.isnan(v) else v for k, v in each.items()}
        for name, each in evidence["text_scores"].items()
    }
    files.write(target / "comparison.json", json.dumps(numbers, indent=1) + "\n")
    kept = {"hidden": "fraction", "masked": "a_auroc", "continued": "b_auroc"}
    kept |= {k: k for k in ("difference", "low", "high", "spread", "trainings")}
    kept |= {k: k for k in ("n_patients", "n_labels")}
    rows = [{k: row[v] for k, v in kept.items()} for row in summary]
    files.write_json(target / "summary.json", {"comparison": rows})


@cli.command
def main() -> None:
    """The command line."""
    results.asked(write, __doc__)


if __name__ == "__main__":
    sys.exit(main())
