"""Saving and restoring train states: Orbax writes them, a manifest proves them.

  WORKDIR/checkpoints/N/state/         what Orbax wrote
  WORKDIR/checkpoints/N/manifest.json  sha256 of every file, and the tree's leaves
  WORKDIR/checkpoints/N.saving/        a save under way, or one that was cut off
  WORKDIR/checkpoints/N.damaged/       a step that did not hold what was saved
  WORKDIR/best/, best.json             the best by config.best, in the same form

Saved at N means N updates done and N batches read. The manifest is written when all
else is on the disk, and then the folder gets its name. So whatever is called N was
whole once. If it no longer is, a line says so, and the newest step that is, is
restored.
"""

from __future__ import annotations

import pathlib
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp

from pacx_jax import files
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import saved_steps


class Checkpointer:
    """The latest checkpoints of a run, and its best.

    Args:
      workdir: the run's folder.
      keep: how many of the latest to keep.
      best: metric name to keep the best checkpoint by, "" for none.
      mode: "max" or "min".
      mirror: of a workdir in a store.
    """

    def __init__(self, workdir, *, keep=2, best="", mode="max", mirror=None):
        self._workdir = pathlib.Path(workdir).absolute()
        self._latest = saved_steps.Steps(self._workdir / "checkpoints", keep, mirror)
        self._metric, self._sign = best, 1 if mode == "max" else -1
        self._best = None
        if best:
            self._best = saved_steps.Steps(self._workdir / "best", 1, mirror)
        self._found: tuple[int, dict[str, Any]] | None = None

    def latest_step(self) -> int | None:
        """The newest step that holds what was saved, None where nothing was saved."""
        self._found = self._latest.newest()
        return None if self._found is None else self._found[0]

    def restore(self, abstract: Any) -> tuple[Any, dict[str, float]]:
        """The state of `latest_step`, laid out as the abstract state's shardings say.

        Returns:
          The state, and the metrics that it was saved with.
        """
        step, about = self._found
        folder = self._latest.folder / str(step)
        state = restore(folder, about, abstract, self._latest.apart)
        return state, about["metrics"]

    def save(self, state: Any, step: int, metrics: dict[str, float]) -> None:
        """Starts an asynchronous save of a state and of its step's metrics."""
        self._latest.save(state, step, metrics)

    def holds(self, step: int) -> bool:
        """Whether this step has been saved, in every process once it has in the first.

        Waits for the save under way.
        """
        self._latest.settle()
        return self._latest.holds(step)

    def save_if_best(self, state: Any, step: int, metrics: dict) -> None:
        """Keeps this state if its metric beats the best so far."""
        if self._best is None:
            return
        if self._metric not in metrics:
            raise PacxError(
                f"config.best {self._metric!r} is not among the evaluation's metrics: "
                f"{', '.join(sorted(metrics))}"
            )
        value = float(metrics[self._metric])
        if value != value:
            raise PacxError(
                f"config.best {self._metric!r} is not a number at step {step}: this "
                "validation split cannot measure it (one class only?). Take another "
                "config.best, or config.best='' with config.export=latest"
            )
        marker = self._workdir / "best.json"
        if marker.exists():
            best = self._so_far(marker)
            # A resumed run passes its own best again; later ones are not yet reached.
            if (
                best["step"] <= step
                and self._sign * value <= self._sign * best["value"]
            ):
                return
        # Two saves at once would meet at each other's barriers: Orbax names them by the
        # folder, which is `state` for both.
        self._latest.settle()
        self._best.save(state, step, metrics)
        self._best.settle()
        if self._best.holds(step) and processes.is_first():
            row = {"step": step, "metric": self._metric, "value": value}
            files.write_json(marker, row)

    def _so_far(self, marker: pathlib.Path) -> dict[str, Any]:
        remedy = "restore it from a copy, or delete it to take the next as the best"
        best = files.read_own_json(marker, remedy)
        if not isinstance(best.get("step"), int) or not isinstance(
            best.get("value"), (int, float)
        ):
            raise PacxError(f"{marker} is damaged (no step and value): {remedy}")
        return best

    def close(self) -> None:
        """Waits for saves under way."""
        for steps in (self._latest, self._best):
            if steps is not None:
                steps.close()


def restore(folder: pathlib.Path, about: dict, abstract: Any, apart=False) -> Any:
    """The state in a verified step's folder, laid out as `abstract` says.

    Args:
      apart: each process has a folder of its own.
    """
    check_leaves(folder, about["leaves"], saved_steps.leaves(abstract))
    each = saved_steps.each_alone(apart)
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=each)
    with ocp.Checkpointer(handler, multiprocessing_options=each) as checkpointer:
        return checkpointer.restore(
            folder / "state", args=ocp.args.StandardRestore(abstract)
        )


def read_params(workdir, which: str = "latest") -> dict:
    """All parameters (trained and frozen, one tree) of a run, as numpy on this host.

    Args:
      workdir: a run's folder.
      which: "latest" or "best".
    """
    folder = pathlib.Path(workdir).absolute()
    folder = folder / ("checkpoints" if which == "latest" else "best")
    if not folder.is_dir():
        raise PacxError(f"{folder} does not exist: is {workdir} a finished run?")
    step, _, damaged = saved_steps.newest(folder)
    for number, reason in damaged:
        saved_steps.warn(
            f"{folder / str(number)} is damaged ({reason}): it is not read"
        )
    if step is None:
        raise PacxError(f"{folder} holds no checkpoint that can be read")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        path = folder / str(step) / "state"
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            checkpointer.metadata(path).item_metadata.tree,
        )
        args = ocp.args.PyTreeRestore(restore_args=as_numpy)
        tree = checkpointer.restore(path, args=args)
    flat = {}
    for part in ("params", "frozen"):
        flat |= flax.traverse_util.flatten_dict(tree.get(part) or {})
    return flax.traverse_util.unflatten_dict(flat)


def check_leaves(folder: pathlib.Path, saved: dict, wanted: dict) -> None:
    """PacxError unless the saved leaves are those wanted. Orbax would cast a dtype."""
    wrong = [
        name
        for name in sorted(set(saved) | set(wanted))
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        there, here = saved.get(wrong[0]), wanted.get(wrong[0])
        raise PacxError(
            f"{folder} is not a state of this config: {len(wrong)} arrays differ, such "
            f"as {wrong[0]}: {there} there, {here} here; take another --workdir"
        )
