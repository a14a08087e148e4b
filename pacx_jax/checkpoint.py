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

import json
import pathlib
import shutil
import sys
import threading
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp

from pacx_jax import disk, manifest, processes, sharding
from pacx_jax.types import PacxError


class Steps:
    """The saved states in one folder, by step.

    Args:
      folder: of the steps.
      keep: how many to keep; the newest ones.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder, self._keep = folder, keep
        self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._commit: threading.Thread | None = None
        self._failure: Exception | None = None

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest step that holds what was saved, and what its manifest says.

        What a killed save has left is removed; a damaged step is moved aside, loudly.

        Raises:
          PacxError: there are saved steps, and none holds what was saved.
        """
        step = about = None
        if processes.is_first():
            _remove_unfinished(self.folder)
            step, about, damaged = _newest(self.folder)
            for number, reason in damaged:
                folder = self.folder / str(number)
                aside = folder.with_name(f"{number}.damaged")
                _warn(f"{folder} is damaged ({reason}): it is moved to {aside.name}")
                _remove(aside)
                folder.rename(aside)
            if step is None and any(self.folder.glob("*.damaged")):
                step = -2
        step = processes.agreed(-1 if step is None else step)
        if step == -2:
            raise PacxError(
                f"{self.folder}: none of the saved steps holds what was saved; restore "
                f"it from a copy, or delete {self.folder} to begin at step 0"
            )
        if step >= 0:
            return step, about or manifest.verify(self.folder / str(step))
        return None

    def holds(self, step: int) -> bool:
        """Whether a step has been saved."""
        return processes.agreed((self.folder / str(step)).is_dir()) == 1

    def save(self, state: Any, step: int, metrics: dict[str, float]) -> None:
        """Starts to write a state. Errors come with the next call, or `settle`."""
        self.settle()
        folder = self.folder / str(step)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if not self._has_room(size, folder):
            return
        saving = folder.with_name(f"{step}.saving")
        if processes.is_first():
            _remove(saving)
            saving.mkdir()
        about = {"step": step, "leaves": leaves(state), "metrics": metrics}
        self._writer.save(saving / "state", args=ocp.args.StandardSave(state))
        self._commit = threading.Thread(
            target=self._finish, args=(saving, folder, about)
        )
        self._commit.start()

    def _has_room(self, size: int, folder: pathlib.Path) -> bool:
        """Whether the first process's disk has room; a line where it has not."""
        reason = None
        if processes.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                disk.check_room(self.folder, size, f"the checkpoint {folder.name}")
            except PacxError as e:
                reason = e
                _warn(f"{e}. The run goes on without this checkpoint")
        return processes.agreed(int(reason is None)) == 1

    def _finish(
        self, saving: pathlib.Path, folder: pathlib.Path, about: dict[str, Any]
    ) -> None:
        """In a thread: waits for Orbax, writes the manifest, removes old steps."""
        try:
            self._writer.wait_until_finished()
            if processes.is_first():
                manifest.write(saving, about)
                _remove(folder)
                saving.rename(folder)
                manifest.sync(self.folder)
                _retire(self.folder, self._keep, about["step"])
        except Exception as e:  # raised again in the loop's thread, by `settle`
            self._failure = e

    def settle(self) -> None:
        """Waits for the save under way; a full disk loses it, and a line says so."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        failure, self._failure = self._failure, None
        if failure is not None:
            if not disk.is_full(failure):
                raise failure
            _warn(f"{disk.told(self.folder)}. The run goes on without this checkpoint")
            _remove_unfinished(self.folder)

    def close(self) -> None:
        """Waits for the save under way."""
        self.settle()
        self._writer.close()


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
        self._latest = Steps(self._workdir / "checkpoints", keep)
        self._metric, self._sign = best, 1 if mode == "max" else -1
        self._best = Steps(self._workdir / "best", 1) if best else None
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
        return restore(folder, about, abstract), about["metrics"]

    def save(self, state: Any, step: int, metrics: dict[str, float]) -> None:
        """Starts an asynchronous save of a state and of its step's metrics."""
        self._latest.save(state, step, metrics)

    def holds(self, step: int) -> bool:
        """Whether this step has been saved; waits for the save under way."""
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
            best = json.loads(marker.read_text())
            # A resumed run passes its own best again; later ones are not yet reached.
            if (
                best["step"] <= step
                and self._sign * value <= self._sign * best["value"]
            ):
                return
        self._best.save(state, step, metrics)
        self._best.settle()
        if self._best.holds(step) and processes.is_first():
            row = {"step": step, "metric": self._metric, "value": value}
            manifest.write_json(marker, row)

    def close(self) -> None:
        """Waits for saves under way."""
        for steps in (self._latest, self._best):
            if steps is not None:
                steps.close()
        processes.wait_for_all("saved")  # the first one names what all have written


def newest(folder: pathlib.Path, before: int) -> tuple[int, dict] | None:
    """The newest step under `before` that verifies, and what its manifest says."""
    step, about, _ = _newest(folder, before)
    return None if step is None else (step, about)


def restore(folder: pathlib.Path, about: dict, abstract: Any) -> Any:
    """The state in a verified step's folder, laid out as `abstract` says."""
    check_leaves(folder, about["leaves"], leaves(abstract))
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
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
    step, _, damaged = _newest(folder)
    for number, reason in damaged:
        _warn(f"{folder / str(number)} is damaged ({reason}): it is not read")
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


def leaves(tree: Any) -> dict[str, list]:
    """Slash-joined path -> [shape, dtype] of every leaf."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        sharding.path_name(path): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in found
    }


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


def _newest(folder: pathlib.Path, before: int = sys.maxsize):
    """(step, about, damaged): the newest step that verifies, and why later ones do not.

    None, None where there is none. Only steps under `before` count. Reads alone.
    """
    damaged = []
    for number in sorted((i for i in _numbers(folder) if i < before), reverse=True):
        try:
            return number, manifest.verify(folder / str(number)), damaged
        except manifest.Damaged as e:
            damaged.append((number, str(e)))
    return None, None, damaged


def _numbers(folder: pathlib.Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]


def _retire(folder: pathlib.Path, keep: int, newest: int) -> None:
    """Removes all but the `keep` steps up to `newest`, which has just been verified."""
    numbers = sorted(_numbers(folder))
    kept = [number for number in numbers if number <= newest][-keep:]
    for number in set(numbers) - set(kept):
        _remove(folder / str(number))


def _remove(folder: pathlib.Path) -> None:
    """Removes a folder, if it is there; half of one is never left under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what a save or a removal has left that was cut off."""
    for pattern in ("*.saving", "*.deleted"):
        for left in folder.glob(pattern):
            shutil.rmtree(left)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
