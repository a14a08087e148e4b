"""Measures speed, beside what it replaces, in one run.

  python launch/bench.py input [--batch=64] [--steps=12] [--repeats=5] [--dtype=float32]
      [--peer=torch|none] [--source=DIR] [--workers=N]

MODE input: images a second of the input pipeline, from JPEG and from decoded uint8,
and of a PIL + torchvision + DataLoader pipeline. docs/performance.md holds figures.

All is measured in turns (A B A B ...), so that other load on the machine meets all
alike. A table comes first, one line of JSON last; what cannot be measured is null.
Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As a script, this file's folder comes first, where nothing is to be found.
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from pacx_jax.types import PacxError  # noqa: E402

# Mode -> its module, which has `run(options)`: a dict for the JSON, which begins with
# `table`, the lines for people. Each imports what it needs and no more.
MODES = {
    "input": "launch.benchmarks.input_pipeline",
    "scaling": "launch.benchmarks.scaling",
}
DTYPES = ("float32", "bfloat16")


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
    add("--batch", type=int, default=64, help="images a batch")
    add("--steps", type=int, default=12, help="timed batches a turn")
    add("--repeats", type=int, default=5, help="turns of each")
    add("--dtype", choices=DTYPES, default="float32", help="images on the device")
    add("--peer", choices=("torch", "none"), default="torch")
    add(
        "--workers",
        type=int,
        default=-1,
        help="input: processes of our pipelines, 0 = threads; -1 = what is fastest",
    )
    add("--source", default="", help="input: a folder of JPEGs; default: drawn ones")
    options = parser.parse_args(argv)
    for name in ("batch", "steps", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: give at least 1")
    if options.workers < -1:
        parser.error(f"--workers {options.workers}: give -1 or more")
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse(argv)
    try:
        result = importlib.import_module(MODES[options.mode]).run(options)
    except PacxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in result.pop("table"):
        print(line)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
