"""Measures speed, beside what it replaces, in one run.

  python launch/bench.py mae|mvmae|unified|distill|embed|ecg|input [FLAGS]
  python launch/bench.py MODE --help

MODES mae, mvmae (studies of two views), unified (CheXmix), distill: a training step.
embed, ecg: an encoder's forward pass; ecg --train: its training step. mae
--input=drawn|DIR: the real loop on real files, without a peer.
MODE input: images a second of the input pipeline, from JPEG and from decoded uint8,
and of a PIL + torchvision + DataLoader pipeline.

All is measured in turns (A B A B ...), so that other load on the machine meets all
alike. A table comes first, one line of JSON last; what cannot be measured is null.
--profile traces a few steps of ours outside the turns that are measured.
docs/performance.md holds figures. Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pathlib
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As a script, this file's folder comes first, where nothing is to be found.
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from pacx_jax import cli  # noqa: E402

# Mode -> its module, which has `run(options)`: a dict for the JSON, and in it `table`,
# the lines for people. Each imports what it needs and no more.
MODELS = ("mae", "mvmae", "unified", "distill", "embed", "ecg")
MODES = dict.fromkeys(MODELS, "launch.benchmarks.models")
MODES |= {"input": "launch.benchmarks.input_pipeline"}
# What every mode's JSON has; null where it has no meaning.
KEYS = ("mode", "images_per_s", "ratio", "mfu", "peak_mib", "batch", "dtype")
KEYS += ("versions",)
DTYPES = ("float32", "bfloat16")
WAYS = ("best", "eager", "compile", "reference")


def _number(kind: type, least: float, below: float = math.inf) -> Callable:
    def convert(text: str):
        value = kind(text)
        if not least <= value < below:
            most = "" if below == math.inf else f", below {below:g}"
            raise argparse.ArgumentTypeError(f"{text}: give {least:g} or more{most}")
        return value

    return convert


def _of_all(add: Callable, mode: str) -> None:
    count, (batch, steps) = _number(int, 0), (0, 0) if mode in MODELS else (64, 12)
    add("--batch", type=count, default=batch, help="images of a step; 0: the mode's")
    add("--steps", type=count, default=steps, help="of a turn; 0: the mode's own")
    add("--repeats", type=_number(int, 1), default=5, help="turns of each")
    add("--peer", choices=("torch", "none"), default="torch")


def _of_models(add: Callable, mode: str) -> None:
    add("--profile", default="", help="folder for a trace of a few steps of ours")
    add("--dtype", choices=DTYPES, default="", help="default: float32 on a CPU")
    add("--variant", default="B", help="of the ViT; mu, with small sizes, is tiny")
    add("--devices", type=_number(int, 0), default=0, help="of the mesh; 0 = all")
    add("--peer_mode", choices=WAYS, default="best", help="best: all that can run")
    add("--peak_flops", type=_number(float, 0), default=0.0, help="for MFU, a device")
    text = "a field of the recipe's config, FIELD=VALUE; can be given again"
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)
    text = "of pacx_jax/target.py's HAND_WRITTEN, in the form that is not usual here"
    add("--other_form", action="append", default=[], metavar="OPERATION", help=text)
    if mode == "ecg":
        add("--train", action="store_true", help="a training step")
        return
    count = _number(int, 0)
    add("--image_size", type=count, default=0, help="pixels a side; 0: the recipe's")
    add("--attention", choices=("auto", "xla", "pallas"), default="auto")


def _of_mae(add: Callable) -> None:
    ratio = _number(float, 0, 1)
    add("--mask_ratio", type=ratio, default=0.0, help="0: the recipe's")
    add("--input", default="synthetic", help="or drawn, or a folder: the real loop")
    add("--saves", action="store_true", help="with --input: what a checkpoint costs")
    text = "with --input: processes that make batches, 0 = threads; -1: the recipe's"
    add("--workers", type=_number(int, -1), default=-1, help=text)


def _of_input(add: Callable) -> None:
    text = "processes of each pipeline, 0 = a thread; -1: one a core"
    add("--workers", type=_number(int, -1), default=-1, help=text)
    add("--source", default="", help="a folder of JPEGs; default: drawn ones")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = cli.Parser(prog="launch/bench.py", description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="MODE")
    for mode in MODES:
        add = modes.add_parser(mode).add_argument
        _of_all(add, mode)
        if mode in MODELS:
            _of_models(add, mode)
        if mode == "mae":
            _of_mae(add)
        if mode == "input":
            _of_input(add)
    options = parser.parse_args(argv)
    if options.mode == "mae":
        _check_loop(parser, options)
    return options


def _check_loop(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    loop = options.input != "synthetic"
    for name, of_loop in {
        "saves": True,
        "workers": True,
        "other_form": False,
        "peer_mode": False,
    }.items():
        given = getattr(options, name) not in (False, -1, [], "best")
        if given and loop != of_loop:
            parser.error(
                f"--{name} is of {'real' if of_loop else 'synthetic'} input: "
                f"{'give' if of_loop else 'leave out'} --input, or leave it out"
            )
    if options.saves and options.repeats < 2:
        parser.error(
            f"--saves with --repeats {options.repeats}: give at least 2, a save is "
            "compared with the turn before it"
        )
    if loop and options.profile and 0 < options.steps < 5:
        parser.error(
            f"--profile with --steps {options.steps}: give at least 5, the trace is of "
            "the third step to the fifth, in the turn that does not count"
        )


@cli.command
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(argv)
    if getattr(options, "profile", ""):  # refused now, not after minutes of measuring
        from pacx_jax.run import profiling

        profiling.make_folder(options.profile)
    result = importlib.import_module(MODES[options.mode]).run(options)
    for line in result.pop("table"):
        print(line)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
