"""Saving and restoring train states with Orbax.

A workdir holds `checkpoints/` (the latest ones) and, where config.best names a metric,
`best/` (the one best by it). Saved at N means N updates done and N batches read.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp

from pacx_jax import disk
from pacx_jax.types import PacxError


class Checkpointer:
    """The latest checkpoints of a run, and its best.

    Args:
      workdir: the run's folder.
      keep: how many of the latest to keep.
      best: metric name to keep the best checkpoint by, "" for none.
      mode: "max" or "min".
    """

    def __init__(self, workdir, *, keep: int = 2, best: str = "", mode: str = "max"):
        if mode not in ("max", "min"):
            raise PacxError(f"config.best_mode {mode!r}: choose max or min")
        self._workdir = pathlib.Path(workdir).absolute()
        self._latest = _manager(self._workdir / "checkpoints", keep)
        self._metric, self._sign = best, 1 if mode == "max" else -1
        self._best = _manager(self._workdir / "best", 1) if best else None

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, None where there is none."""
        return self._latest.latest_step()

    def restore(self, abstract: Any) -> Any:
        """The newest checkpoint, laid out as the abstract state's shardings say."""
        args = ocp.args.StandardRestore(abstract)
        step = self._latest.latest_step()
        try:
            return self._latest.restore(step, args=args)
        except (ValueError, OSError, KeyError, TypeError) as e:
            folder = self._workdir / "checkpoints" / str(step)
            reason = " ".join(str(e).split())[:200]
            raise PacxError(
                f"{folder} cannot be restored ({reason}): delete it, and the run goes "
                "on from the checkpoint before it"
            ) from None

    def save(self, state: Any, step: int) -> None:
        """Starts an asynchronous save."""
        if step in self._latest.all_steps():
            return
        self._check_room(self._latest, state, step)
        if not self._latest.save(step, args=ocp.args.StandardSave(state)):
            raise PacxError(f"{self._workdir}: the checkpoint of step {step} not saved")

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
            best = json.loads(marker.read_text())
            # A resumed run passes its own best again; later ones are not yet reached.
            if (
                best["step"] <= step
                and self._sign * value <= self._sign * best["value"]
            ):
                return
        for stale in self._best.all_steps():
            if stale >= step:  # Orbax saves nothing older than what it has
                self._best.delete(stale)
        self._check_room(self._best, state, step)
        if not self._best.save(step, args=ocp.args.StandardSave(state)):
            raise PacxError(f"{self._workdir}: the best checkpoint, {step}, not saved")
        self._best.wait_until_finished()
        if jax.process_index() == 0:
            row = {"step": step, "metric": self._metric, "value": value}
            temporary = marker.with_suffix(".tmp")
            temporary.write_text(json.dumps(row) + "\n")
            temporary.replace(marker)

    def _check_room(self, manager, state: Any, step: int) -> None:
        manager.wait_until_finished()  # what it still writes takes room too
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        disk.check_room(manager.directory, size, f"the checkpoint of step {step}")

    def close(self) -> None:
        """Waits for saves under way."""
        for manager in (self._latest, self._best):
            if manager is not None:
                manager.wait_until_finished()
                manager.close()


def _manager(folder: pathlib.Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(folder, options=options)


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
    reader = ocp.PyTreeCheckpointHandler()
    with ocp.CheckpointManager(folder, item_handlers=reader) as manager:
        step = manager.latest_step()
        if step is None:
            raise PacxError(f"{folder} holds no checkpoint")
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            manager.item_metadata(step).tree,
        )
        args = ocp.args.PyTreeRestore(restore_args=as_numpy)
        tree = manager.restore(step, args=args)
    flat = {}
    for part in ("params", "frozen"):
        flat |= flax.traverse_util.flatten_dict(tree.get(part) or {})
    return flax.traverse_util.unflatten_dict(flat)
