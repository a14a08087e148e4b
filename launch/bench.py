"""Measures speed, beside what it replaces, in one run.

  python launch/bench.py mae|distill|embed|ecg [--train] [--batch=N] [--steps=N]
      [--repeats=5] [--dtype=float32|bfloat16] [--variant=B] [--devices=N]
      [--attention=auto|xla|pallas] [--set=FIELD=VALUE] [--other_form=OPERATION]
      [--peer=torch|none] [--peer_mode=best|eager|compile|reference]
      [--input=synthetic|drawn|DIR] [--saves] [--profile=DIR]
  python launch/bench.py input [--batch=64] [--steps=12] [--repeats=5] [--dtype=float32]
      [--peer=torch|none] [--source=DIR] [--workers=N] [--profile=DIR]
  python launch/bench.py scaling [--batch=64] [--steps=3] [--repeats=5] [--profile=DIR]

MODES mae, distill: a training step. embed, ecg: an encoder's forward pass.
MODE input: images a second of the input pipeline, from JPEG and from decoded uint8,
and of a PIL + torchvision + DataLoader pipeline. docs/performance.md holds figures.
MODE scaling: FLOPs and processor time of eight simulated devices, and of one, for the
same batch of a ViT-Ti MAE in float32.

All is measured in turns (A B A B ...), so that other load on the machine meets all
alike. A table comes first, one line of JSON last; what cannot be measured is null.
--profile traces a few steps of ours (of input: a turn of jpeg_on_device; of scaling:
eight devices) outside the turns that are measured. --saves needs real --input of a mode
that trains, and two turns to compare. Flags that a mode does not take are refused.
Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As a script, this file's folder comes first, where nothing is to be found.
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from pacx_jax import cli  # noqa: E402

# Mode -> its module, which has `run(options)`: a dict for the JSON, which begins with
# `table`, the lines for people. Each imports what it needs and no more.
MODES = {
    "mae": "launch.benchmarks.models",
    "distill": "launch.benchmarks.models",
    "embed": "launch.benchmarks.models",
    "ecg": "launch.benchmarks.models",
    "input": "launch.benchmarks.input_pipeline",
    "scaling": "launch.benchmarks.scaling",
}
DTYPES = ("float32", "bfloat16")
# What every mode's JSON has; null where it has no meaning.
KEYS = ("mode", "images_per_s", "ratio", "mfu", "peak_mib", "batch", "dtype")
KEYS += ("versions",)
_OF_MODELS = ("mask_ratio", "train", "variant", "image_size", "devices", "input")
_OF_MODELS += ("peer_mode", "peak_flops", "saves", "attention", "set", "other_form")
# Mode -> flags that it does not take: giving them would change nothing.
NOT_OF = {
    "mae": ("source",),
    "distill": ("source", "mask_ratio"),
    "embed": ("source", "mask_ratio", "train", "workers"),
    "ecg": ("source", "mask_ratio", "image_size", "attention"),
    "input": _OF_MODELS,
    "scaling": (*_OF_MODELS, "dtype", "peer", "workers", "source"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}; see --help\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = _Parser(
        prog="launch/bench.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("mode", choices=tuple(MODES))
    add("--batch", type=int, default=0, help="images of a step; 0 = the mode's own")
    add("--steps", type=int, default=0, help="of a turn; 0 = the mode's own")
    add("--repeats", type=int, default=5, help="turns of each")
    add("--dtype", choices=DTYPES, default="", help="default: float32 on CPU")
    add("--peer", choices=("torch", "none"), default="torch")
    add(
        "--peer_mode",
        choices=("best", "eager", "compile", "reference"),
        default="best",
        help="best: the faster of eager and compile; on a GPU all three in turns",
    )
    add("--variant", default="B", help="mae, distill, embed: of the ViT; mu is tiny")
    add("--image_size", type=int, default=0, help="pixels a side; 0 = the recipe's")
    add("--attention", choices=("auto", "xla", "pallas"), default="auto")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the recipe's config; can be given again",
    )
    add(
        "--other_form",
        action="append",
        default=[],
        metavar="OPERATION",
        help="of pacx_jax/target.py's HAND_WRITTEN, in the form that is not usual on "
        "the device; can be given again",
    )
    add("--mask_ratio", type=float, default=0.0, help="mae; 0 = the recipe's")
    add("--devices", type=int, default=0, help="of the mesh; 0 = all")
    add("--train", action="store_true", help="ecg: a training step, not a forward pass")
    add("--peak_flops", type=float, default=0.0, help="FLOP/s of a device, for MFU")
    add("--input", default="synthetic", help="or drawn (X-rays), or a folder: the loop")
    add("--saves", action="store_true", help="with --input: what a checkpoint costs")
    add("--profile", default="", help="folder for a trace of a few steps of ours")
    add(
        "--workers",
        type=int,
        default=-1,
        help="input, and the loop's: processes of our pipelines, 0 = threads; "
        "-1 = what is fastest, or the recipe's",
    )
    add("--source", default="", help="input: a folder of JPEGs; default: drawn ones")
    options = parser.parse_args(argv)
    for name in NOT_OF[options.mode]:
        if getattr(options, name) != parser.get_default(name):
            parser.error(
                f"--{name}: mode {options.mode} does not take it, leave it out"
            )
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    for name in ("batch", "steps", "image_size", "devices", "peak_flops"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} {getattr(options, name)}: give 0 or more")
    if not 0 <= options.mask_ratio < 1:
        parser.error(f"--mask_ratio {options.mask_ratio}: give 0 or more, below 1")
    if options.workers < -1:
        parser.error(f"--workers {options.workers}: give -1 or more")
    loop = options.input != "synthetic"
    if options.saves and (not loop or options.mode == "embed"):
        parser.error(
            "--saves is of the loop that trains: give --input=drawn or a folder, and "
            "mode mae, distill or ecg"
        )
    if options.saves and options.repeats < 2:
        parser.error(
            f"--saves with --repeats {options.repeats}: give at least 2, a save is "
            "compared with the turn before it"
        )
    if loop and options.other_form:
        parser.error("--other_form is of synthetic input: leave it or --input out")
    if loop and options.peer_mode != parser.get_default("peer_mode"):
        parser.error("--peer_mode is of synthetic input: leave it or --input out")
    if loop and options.mode == "embed" and options.attention != "auto":
        parser.error("--attention of embed is of synthetic input: leave --input out")
    if loop and options.profile and 0 < options.steps < 5 and options.mode != "embed":
        parser.error(
            f"--profile with --steps {options.steps}: give at least 5, the trace is of "
            "the third step to the fifth, in the turn that does not count"
        )
    if options.profile:  # now, and not after minutes of measuring
        try:
            pathlib.Path(options.profile).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.profile).close()
        except OSError as e:
            parser.error(f"--profile={options.profile}: {e.strerror}, give a folder")
    if not loop and options.mode != "input" and options.workers != -1:
        parser.error("--workers is of real input: give --input=drawn or a folder")
    if options.mode == "input":
        options.batch = options.batch or 64
        options.steps = options.steps or 12
        options.dtype = options.dtype or "float32"
    return options


@cli.command
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(argv)
    result = importlib.import_module(MODES[options.mode]).run(options)
    for line in result.pop("table"):
        print(line)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
