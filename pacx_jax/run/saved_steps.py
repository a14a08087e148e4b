"""The saved states in a folder: written whole, proved by a manifest, kept few.

What a folder holds is described in checkpoint.py.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import threading
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from pacx_jax import files, sharding
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import manifest
from pacx_jax.stores.failures import StoreError


class Steps:
    """The saved states in one folder, by step.

    Args:
      folder: of the steps.
      keep: how many to keep; the newest ones.
      mirror: of a workdir in a store (see mirror.py).
    """

    def __init__(self, folder: pathlib.Path, keep: int, mirror=None):
        self.folder, self._keep, self._mirror = folder, keep, mirror
        if mirror:
            mirror.fetch(folder, keep)
        self.apart = mirror is not None and jax.process_count() > 1
        self._writer = _writer(self.apart)
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
            step, about, damaged = newest(self.folder)
            for number, reason in damaged:
                folder = self.folder / str(number)
                aside = folder.with_name(f"{number}.damaged")
                warn(f"{folder} is damaged ({reason}): it is moved to {aside.name}")
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
            folder = self.folder / str(step)
            if not folder.is_dir():
                raise PacxError(_not_shared(folder))
            return step, about or manifest.verify(folder)
        return None

    def holds(self, step: int) -> bool:
        """Whether a step has been saved."""
        there = (self.folder / str(step)).is_dir()
        if self._mirror and processes.is_first():
            there = there and self._mirror.holds(self.folder / str(step))
        return processes.agreed(there) == 1

    def save(self, state: Any, step: int, metrics: dict[str, float]) -> None:
        """Starts to write a state. Errors come with the next call, or `settle`."""
        self.settle()
        folder = self.folder / str(step)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        saving = folder.with_name(f"{step}.saving")
        if not self._begin(size, saving):
            return
        if not saving.is_dir():
            raise PacxError(_not_shared(saving))
        about = {"step": step, "leaves": leaves(state), "metrics": metrics}
        # Orbax copies the state to the host in its own ways.
        with jax.transfer_guard("allow"):
            self._writer.save(saving / "state", args=ocp.args.StandardSave(state))
        self._commit = threading.Thread(
            target=self._finish, args=(saving, folder, about)
        )
        self._commit.start()

    def _begin(self, size: int, saving: pathlib.Path) -> bool:
        """Whether the first process's disk has room: then the folder is made there."""
        reason = None
        if self._mirror:
            self._mirror.begin()
        if processes.is_first() or self._mirror:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                files.check_room(self.folder, size, f"the checkpoint {saving.stem}")
                _remove(saving)
                saving.mkdir()
            except PacxError as e:
                reason = e
                warn(f"{e}. The run goes on without this checkpoint")
        if self._mirror:
            return not any(processes.gathered(str(reason or "")))
        return processes.agreed(int(reason is None)) == 1

    def _finish(
        self, saving: pathlib.Path, folder: pathlib.Path, about: dict[str, Any]
    ) -> None:
        """In a thread: waits for Orbax, writes the manifest, removes old steps."""
        try:
            self._writer.wait_until_finished()
            if processes.is_first() or self._mirror:
                manifest.write(saving, about)
                _remove(folder)
                saving.rename(folder)
                files.sync(self.folder)
                if self._mirror:
                    self._mirror.save(folder, self._keep)
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
            if isinstance(failure, StoreError):
                warn(f"{failure}. The run goes on, and this checkpoint is here alone")
                return
            if not files.is_full(failure):
                raise failure
            full = files.full_disk(self.folder)
            warn(f"{full}. The run goes on without this checkpoint")
            _remove_unfinished(self.folder)

    def close(self) -> None:
        """Waits for the save under way."""
        self.settle()
        self._writer.close()


def _writer(apart: bool) -> ocp.AsyncCheckpointer:
    """Orbax's writer. `apart`: each process writes its files to a folder of its own.

    Their union is the state, for which no file may hold what two of them wrote.
    """
    if not apart:
        return ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    logging.set_verbosity(logging.ERROR)  # Orbax warns of each choice made here
    each = each_alone(apart)
    handler = ocp.StandardCheckpointHandler(
        multiprocessing_options=each, use_ocdbt=False
    )
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=each)


def each_alone(apart: bool) -> ocp.options.MultiprocessingOptions:
    """Orbax's options where each process has folders of its own.

    It keeps them for all its checkpointers of a process: one that restores without
    them has the next save wait for what only process 0 makes, in a folder of its own.
    """
    return ocp.options.MultiprocessingOptions(primary_host=None if apart else 0)


def _not_shared(folder: pathlib.Path) -> str:
    return (
        f"{folder}, which process 0 has, is not there for process "
        f"{jax.process_index()}: --workdir must be one folder that all of them share"
    )


def leaves(tree: Any) -> dict[str, list]:
    """Slash-joined path -> [shape, dtype] of every leaf."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        sharding.path_name(path): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in found
    }


def newest(folder: pathlib.Path, before: int = sys.maxsize):
    """(step, about, damaged): the newest step that verifies, and why later ones do not.

    None, None where there is none. Only steps under `before` count. Reads alone.
    """
    damaged = []
    for number in sorted((i for i in _numbers(folder) if i < before), reverse=True):
        try:
            about = manifest.verify(folder / str(number))
            if about["step"] != number:  # a folder that somebody renamed
                raise manifest.Damaged(f"it holds step {about['step']}")
            return number, about, damaged
        except manifest.Damaged as e:
            damaged.append((number, str(e)))
    return None, None, damaged


def _numbers(folder: pathlib.Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]


def _retire(folder: pathlib.Path, keep: int, newest: int) -> None:
    """Removes all but the `keep` steps up to `newest`, which has just been verified."""
    for number in retired(_numbers(folder), keep, newest):
        _remove(folder / str(number))


def retired(numbers: list[int], keep: int, newest: int) -> set[int]:
    """All but the `keep` steps up to `newest`."""
    kept = [number for number in sorted(numbers) if number <= newest][-keep:]
    return set(numbers) - set(kept)


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
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
