"""What a run writes down: metrics.jsonl, timings.jsonl, TensorBoard files; maybe W&B.

`metrics.jsonl` holds deterministic values alone, one object a logged step, so that two
runs of one seed, or a resumed and a straight one, give the same bytes. Whatever depends
on the clock goes to `timings.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import secrets
import sys
from typing import Any

import numpy as np

from pacx_jax import files
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError, install


class MetricsWriter:
    """Appends rows to a workdir of a run that goes on after `start_step`.

    The row of that step is dropped with the later ones: it is written again.

    Args:
      project: of Weights & Biases, which gets metrics and timings too; "" for none.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int, project: str = ""):
        self._wandb = _wandb_run(pathlib.Path(workdir), project) if project else None
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        keep_rows(self.path, start_step - 1)
        keep_rows(self.path.with_name("timings.jsonl"), start_step)
        self._metrics = self.path.open("a", encoding="utf-8", buffering=1)
        self._timings = self.path.with_name("timings.jsonl").open(
            "a", encoding="utf-8", buffering=1
        )
        self._board = _summary_writer(
            str(self.path.parent / "tensorboard"), start_step or None
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row of deterministic values at `step`."""
        row = {"step": step} | {k: _finite(v) for k, v in values.items()}
        self._metrics.write(json.dumps(row) + "\n")
        for name, value in values.items():
            if math.isfinite(value):  # of others it would warn, in words of its own
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def write_timing(self, step: int, values: dict[str, float]) -> None:
        """One row of clock-dependent values at `step`."""
        self._timings.write(json.dumps({"step": step} | values) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"timing/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"timing/{k}": v for k, v in values.items()}, step=step)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Images uint8 (k, h, w, 3) for TensorBoard, one above the other."""
        for name, array in images.items():
            self._board.add_image(name, np.concatenate(array), step, dataformats="HWC")

    def flush(self) -> None:
        """Rows are on disk when this returns: call it before a checkpoint is saved."""
        for file in (self._metrics, self._timings):
            file.flush()
            os.fsync(file.fileno())
        self._board.flush()

    def close(self) -> None:
        self.flush()
        self._metrics.close()
        self._timings.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


class NoWriter:
    """A MetricsWriter that writes nothing: every process but the first has one."""

    def write(self, *_) -> None:
        """Nothing."""

    write_timing = write_images = flush = close = write


def writer(
    workdir: str | os.PathLike, start_step: int, project: str = ""
) -> MetricsWriter | NoWriter:
    """This process's writer: the first one writes."""
    if not processes.is_first():
        return NoWriter()
    return MetricsWriter(workdir, start_step, project)


def _wandb_run(workdir: pathlib.Path, project: str):
    """The workdir's run of Weights & Biases, begun or continued; WANDB_MODE holds."""
    try:
        import wandb  # imported lazily: an extra
    except ImportError:
        raise PacxError(
            f"config.wandb={project}: {install('wandb')}, or give --config.wandb=''"
        ) from None
    file = workdir / "wandb_id"
    if not file.exists():
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    return wandb.init(
        project=project,
        name=workdir.name,
        id=file.read_text("utf-8"),
        resume="allow",
        dir=workdir,
        config=files.read_json(workdir / "config.json"),
        settings=wandb.Settings(console="off"),
    )


def _finite(value: float) -> float | None:
    """JSON has no NaN: a value that does not exist is null."""
    value = float(value)
    return value if math.isfinite(value) else None


def keep_rows(path: pathlib.Path, last_step: int) -> None:
    """Drops rows past `last_step`, and a half-written last line, from a JSONL file."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    kept = [x for i, x in enumerate(whole, 1) if _step(path, i, x) <= last_step]
    files.write(path, b"".join(kept))


def _step(path: pathlib.Path, number: int, line: bytes) -> int:
    """The step of a row; PacxError where line `number` of the file is no row."""
    try:
        return int(files.parse_json(line.decode("utf-8"))["step"])
    except (ValueError, TypeError, KeyError, OverflowError):
        raise PacxError(
            f"{path}: line {number} is damaged: restore the file from a copy, or "
            "delete that line"
        ) from None


def read_rows(workdir: str | os.PathLike) -> list[dict]:
    """The rows of a workdir's metrics.jsonl.

    Raises:
      PacxError: there is none, or a line is damaged.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        raise PacxError(f"{path} does not exist: has the run started?")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        _step(path, number, line)
        rows.append(json.loads(line))
    return rows


def _summary_writer(folder: str, purge_step: int | None) -> Any:
    """A tensorboardX.SummaryWriter, without PyTorch.

    tensorboardX imports PyTorch wherever it is installed, to know its tensors. It is
    given none here, and the import takes each run two seconds of CPU.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # an import of it raises ImportError
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX.SummaryWriter(folder, purge_step=purge_step)
