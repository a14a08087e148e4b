"""What the comparisons of all demonstrations write besides their numbers."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import psutil

from pacx_jax import cli
from pacx_jax.run import host_memory, metrics

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def asked(write: Callable[[pathlib.Path, str, int], None], description: str) -> None:
    """Writes a demonstration's results as its comparison's command line asks.

    Args:
      write: (target, split, trainings of each arm) -> what it leaves behind.
      description: of the command.
    """
    parser = cli.Parser(description=description)
    parser.add_argument("--target", required=True, help="the demonstration's folder")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each arm")
    args = parser.parse_args()
    host_memory.keep_freed()
    write(pathlib.Path(args.target), args.split, args.seeds)


def recorded_name(method: str, of_demo_size: bool) -> str:
    """Under which `spreads` has the spread of demonstrations of this size."""
    if of_demo_size:
        return f"demo_{method}" if method else "demo"
    return "a demo of this size"


def plain(plan: dict) -> dict:
    """A plan as demo.json has it."""
    return json.loads(json.dumps(plan))


def versions() -> dict[str, str]:
    """The packages that numbers may depend on."""
    return {p: importlib.metadata.version(p) for p in PACKAGES}


def times(progress: dict, read: float) -> dict[str, float]:
    """Seconds of every stage, and of what there was before the report was written.

    Its own end cannot stand in a report. The whole may be 5 seconds short: that often
    does the demo write its record.

    Args:
      progress: the demo's record.
      read: when it was read, in seconds of the epoch.
    """
    own = time.time() - psutil.Process().create_time()
    found = {k: v for k, v in progress["done"].items() if not k.startswith("compare")}
    found["compare, up to this report"] = round(own, 1)
    found["all (stages overlap), up to this report"] = round(
        progress["seconds"] + time.time() - read, 1
    )
    return found


def seeds(first: int, n: int) -> dict[str, int | str]:
    """The seeds, as a report lists them."""
    if n == 1:
        return {"cohort and training": first}
    return {"cohort": first, "trainings": f"{first} to {first + n - 1}"}


def config(target: pathlib.Path, stage: str) -> dict:
    """A stage's configuration; paths are the demo's, as reports are passed on."""
    text = (target / stage / "config.json").read_text()
    return json.loads(text.replace(f"{target}/", ""))


LOSSES = {"loss": "train", "val/loss": "validation"}


def curves(
    target: pathlib.Path,
    stages: Sequence[str],
    shown: dict[str, str] = LOSSES,
    panel: str = "{}",
) -> dict[str, tuple]:
    """Metrics of the stages that recorded them, as "panel/name" -> (steps, values).

    Args:
      shown: metric -> its name on the page.
      panel: of a stage, whose name it takes.
    """
    out = {}
    for stage in stages:
        rows = metrics.read_rows(target / stage)
        for key, name in shown.items():
            found = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
            if found:
                out[f"{panel.format(stage)}/{name}"] = tuple(zip(*found, strict=True))
    return out
