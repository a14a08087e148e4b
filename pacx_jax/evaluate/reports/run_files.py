"""A run's workdir, read for a report: what is damaged is counted and told."""

from __future__ import annotations

import array
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import predictions
from pacx_jax.run import fingerprints, finished, goodput
from pacx_jax.stores import staging, urls

Series = tuple[np.ndarray, np.ndarray]  # steps and values, (n,) float64 each
NEEDED = ("data", "total_steps", "global_batch_size")  # of a config, beside objective


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a workdir say.

    Attributes:
      name: on the page.
      path: of the workdir, or of its local copy.
      config: of `finished.read_config`.
      state: "finished" or how far it is, in words.
      step: the last one that is written down; 0 before.
      metrics, timings: name -> series, of the files of these names.
      evaluations: split -> what `--evaluate` measured.
      predictions: split -> its predictions of labels.
      notes: sentences on what cannot be read.
    """

    name: str
    path: pathlib.Path
    config: Any
    state: str
    step: int
    metrics: dict[str, Series]
    timings: dict[str, Series]
    evaluations: dict[str, dict[str, Any]]
    predictions: dict[str, predictions.Table]
    notes: tuple[str, ...]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects in a file of JSON lines; [] without it."""
        return [row for row in _rows(self.path / name) if row is not None]

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; {} without it, or where it is damaged."""
        try:
            return files.read_json(self.path / name)
        except (OSError, ValueError):
            return {}

    @property
    def goodput(self) -> dict[str, Any]:
        """goodput.json; {} without it, or where it is damaged."""
        try:
            found = goodput.read(str(self.path))
        except PacxError:
            return {}
        numbers = [found["goodput"], *found["seconds"].values()]
        good = (isinstance(x, (int, float)) and abs(x) < 1e15 for x in numbers)
        return found if all(good) else {}

    @property
    def state_shown(self) -> str:
        """ "best" if the run exports it and has one, else "latest"."""
        best = self.config.get("export") == "best" and (self.path / "best").is_dir()
        return "best" if best else "latest"


def local(workdir: str) -> pathlib.Path:
    """The workdir on a local disk: of a remote one its small files, without states."""
    if not urls.is_remote(workdir):
        return pathlib.Path(workdir)
    from pacx_jax.run import mirror  # imported lazily: it needs the stores' packages

    return staging.local(workdir, wanted=mirror.is_small, setting="--workdir")


def names(workdirs: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart: the last folder, mostly."""
    parts = [str(w).rstrip("/").split("/") for w in workdirs]
    for n in range(1, max(map(len, parts)) + 1):
        found = ["/".join(p[-n:]) for p in parts]
        if len(set(found)) == len(found):
            return found
    raise PacxError(f"{workdirs[0]}: named twice; compare different runs")


def read(workdir: str, name: str) -> Run:
    """Reads a run.

    Args:
      workdir: local or remote.
      name: on the page.

    Raises:
      PacxError: a folder that is no workdir.
    """
    path = local(workdir)
    if not path.is_dir():
        raise PacxError(f"{workdir}: no such folder; name the workdir of a run")
    config, notes = finished.read_config(str(path)), []
    lacks = [field for field in NEEDED if field not in config]
    if lacks or not hasattr(config.data, "get"):
        raise PacxError(
            f"{path}/config.json: no {', '.join(lacks) or 'fields in data'}; restore "
            "it from a copy"
        )
    metrics = _series(path / "metrics.jsonl", notes)
    timings = _series(path / "timings.jsonl", notes)
    for file in ("quarantine.jsonl", "nonfinite.jsonl", "sessions.jsonl"):
        _note_damage(path / file, [x is None for x in _rows(path / file)], notes)
    step = int(max((steps[-1] for steps, _ in metrics.values()), default=0))
    try:
        done = fingerprints.steps_done(str(path))
    except PacxError as error:
        done = 0
        notes.append(str(error))
    for file in ("goodput.json", "data.json", "best.json"):
        if (path / file).is_file() and not _is_json(path / file):
            notes.append(f"{file} is damaged; what it says is left out.")
    return Run(
        name=name,
        path=path,
        config=config,
        state="finished" if done else _unfinished(path, step, config),
        step=max(step, done),
        metrics=metrics,
        timings=timings,
        evaluations=_evaluations(path, notes),
        predictions=_predictions(path, notes),
        notes=tuple(notes),
    )


def _is_json(path: pathlib.Path) -> bool:
    try:
        return bool(files.read_json(path))
    except (OSError, ValueError):
        return False


def _unfinished(path: pathlib.Path, step: int, config) -> str:
    file = path / "metrics.jsonl"
    if not file.is_file():
        return "not begun: no step is logged"
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(file.stat().st_mtime))
    return f"unfinished: step {step:,} of {config.total_steps:,}, last written {at}"


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any] | None]:
    """The object of each line; None for a line that is none."""
    if not path.is_file():
        return
    decode = json.JSONDecoder().decode
    with path.open("rb") as file:
        for line in file:
            try:
                row = decode(line.decode("utf-8"))
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _series(path: pathlib.Path, notes: list[str]) -> dict[str, Series]:
    """Name -> steps and values of a file of metrics; null is NaN.

    Numbers are kept as 8 bytes each: a long run has a million lines.
    """
    found: dict[str, tuple[array.array, array.array]] = {}
    bad = []
    for row in _rows(path):
        try:
            step = float(row.pop("step"))
            row = {k: float("nan" if v is None else v) for k, v in row.items()}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            bad.append(True)
            continue
        bad.append(False)
        for name, value in row.items():
            if name not in found:
                found[name] = array.array("d"), array.array("d")
            steps, values = found[name]
            steps.append(step)
            values.append(value)
    _note_damage(path, bad, notes)
    return {k: (np.array(x), np.array(y)) for k, (x, y) in found.items()}


def _note_damage(path: pathlib.Path, bad: list[bool], notes: list[str]) -> None:
    if any(bad):
        notes.append(
            f"{path.name}: {sum(bad):,} of {len(bad):,} lines are damaged and left "
            f"out, the first is line {bad.index(True) + 1:,}."
        )


def _evaluations(path: pathlib.Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted(path.glob("evaluation_*.json")):
        if ".step_" in file.stem:  # of an earlier step: another model
            continue
        try:
            found[file.stem.removeprefix("evaluation_")] = files.read_json(file)
        except (OSError, ValueError):
            notes.append(f"{file.name} is damaged and left out: evaluate again.")
    return found


def _predictions(path: pathlib.Path, notes: list[str]) -> dict[str, predictions.Table]:
    found = {}
    for file in sorted(path.glob("predictions_*.csv")):
        if ".step_" in file.stem:
            continue
        with file.open("rb") as opened:
            if b"logit" not in opened.readline():  # of masks or retrieval
                continue
        try:
            table = predictions.read(str(file))
            found[file.stem.removeprefix("predictions_")] = table
        except PacxError as error:
            notes.append(f"{file.name} is left out: {error}.")
    return found
