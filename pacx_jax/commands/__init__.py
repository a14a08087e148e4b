"""The command `pacx`: every program of the library and of the clone by one name."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import NamedTuple

from pacx_jax.errors import PacxError, install
from pacx_jax.run import clone

FAILED = 2  # as cli.FAILED, which imports more than --help needs


class Program(NamedTuple):
    """A module whose main() reads sys.argv.

    Attributes:
      does: what it does.
      example: of its use.
      extra: of setup.py, whose packages it needs.
    """

    module: str
    does: str
    example: str
    extra: str = ""


PROGRAMS = {
    "train": Program(
        "pacx_jax.main",
        "trains one stage, or goes on where it stopped",
        "pacx train --config=mae_vitb16:runlocal --workdir=runs/mae "
        "--config.data.source=folder --config.data.path=DIR "
        "--config.data.simulated=false",
    ),
    "evaluate": Program(
        "pacx_jax.commands.evaluate",
        "measures a finished run on held-out patients, with intervals",
        "pacx evaluate --workdir=runs/finetune --split=test",
    ),
    "embed": Program(
        "pacx_jax.embed",
        "embeds a folder of X-rays or ECGs",
        "pacx embed --encoder=runs/mae --images=DIR --out=embeddings.npz",
    ),
    "predict": Program(
        "pacx_jax.commands.predict",
        "gives a classifier's calibrated probabilities of a folder of X-rays",
        "pacx predict --model=runs/finetune --images=DIR --out=predictions.csv",
    ),
    "runs": Program(
        "pacx_jax.commands.runs",
        "lists the runs under a folder: stage, step, metric, state",
        "pacx runs runs",
    ),
    "export": Program(
        "pacx_jax.export",
        "writes an encoder for other software",
        "pacx export --encoder=runs/mae --images=DIR --format=onnx --out=onnx",
    ),
    "convert": Program(
        "pacx_jax.convert.__main__",
        "reads and writes published PyTorch checkpoints",
        "pacx convert --kind=mae --source=checkpoint.pth --target=mae",
    ),
    "generate": Program(
        "pacx_jax.commands.generate",
        "has a CheXmix write reports and fill in X-rays, and measures both",
        "pacx generate write --model=runs/masked --tokenizer=tokenizer.json "
        "--images=DIR --out=reports.jsonl",
    ),
    "prepare": Program(
        "data.prepare",
        "prepares a data set for training",
        "pacx prepare folder --source=DIR --target=prepared/mine",
    ),
    "audit": Program(
        "data.audit",
        "looks for copies and patients that data sets share",
        "pacx audit prepared/a prepared/b",
    ),
    "tokenizer": Program(
        "pacx_jax.commands.train_tokenizer",
        "trains a vocabulary on the training reports of a set",
        "pacx tokenizer --data=prepared/mimic_cxr --target=tokenizer.json",
    ),
    "replay": Program(
        "pacx_jax.commands.replay",
        "takes a step of a run again, from the last checkpoint before it",
        "pacx replay --workdir=runs/mae --step=1234",
    ),
    "plan": Program(
        "launch.plan",
        "predicts memory and speed of a run on chips that are not there",
        "pacx plan --config=mae_vitb16 --topology=gpu:8xH100",
    ),
    "sweep": Program(
        "launch.sweep",
        "runs a recipe for every combination of values: an ablation in one command",
        "pacx sweep --config=finetune --target=runs/ablation "
        "--grid='optim.peak_lr=1e-4;1e-3' --config.data.path=DIR "
        "--config.model_init=runs/mae",
    ),
    "report": Program(
        "pacx_jax.evaluate.reports.run_report",
        "draws a run, or compares several, as one HTML file",
        "pacx report --workdir=runs/mae",
        extra="report",
    ),
    "serve": Program(
        "pacx_jax.serving.server",
        "answers embeddings and predictions by HTTP",
        "pacx serve --model=runs/finetune",
        extra="serve",
    ),
    "demo": Program(
        "launch.demo",
        "trains and compares everything on simulated patients",
        "pacx demo --target=runs/demo",
        extra="demo",
    ),
}


def listing() -> str:
    """What `pacx --help` prints."""
    lines = [
        "pacx COMMAND [FLAGS]; pacx COMMAND --help says more",
        "",
        *(f"  {name:10s}{program.does}" for name, program in PROGRAMS.items()),
        "",
        f"Recipes for --config: {', '.join(clone.recipes())}",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs a command as `python -m` would, from any folder; returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    name, rest = (given[0], given[1:]) if given else ("--help", [])
    if name in ("--version", "-V"):
        from pacx_jax import __version__

        print(f"pacx_jax {__version__}")
        return 0
    try:
        if name in ("--help", "-h", "help"):
            print(listing())
            return 0
        program = named(name)
        clone.on_path()
    except PacxError as e:
        print(f"error: {e}", file=sys.stderr)
        return FAILED
    if os.getcwd() not in sys.path:  # for objectives and modalities of one's own
        sys.path.append(os.getcwd())
    if {"--help", "-h"} & set(rest):
        print(f"{name}: {program.does}\n\n  {program.example}\n", flush=True)
    sys.argv = [f"pacx {name}", *rest]
    try:
        found = importlib.import_module(program.module)
    except ModuleNotFoundError as e:
        if not program.extra or e.name and e.name.startswith("pacx_jax"):
            raise
        told = f"pacx {name} needs the package {e.name}: {install(program.extra)}"
        print(f"error: {told}", file=sys.stderr)
        return FAILED
    sys.modules["__main__"].__doc__ = found.__doc__
    return found.main() or 0


def named(name: str) -> Program:
    """The program of a name; PacxError with the nearest, or a recipe's, for another."""
    if name not in PROGRAMS:
        recipes = clone.recipes()
        if name.partition(":")[0] in recipes:
            raise PacxError(f"{name} is a recipe: pacx train --config={name}")
        near = difflib.get_close_matches(name, [*PROGRAMS, *recipes], 1, 0.5)
        hint = f"have {', '.join(PROGRAMS)}"
        if near:
            meant = f"pacx train --config={near[0]}" if near[0] in recipes else near[0]
            hint = f"did you mean {meant}?"
        raise PacxError(f"pacx {name}: no such command: {hint}")
    return PROGRAMS[name]


if __name__ == "__main__":
    sys.exit(main())
