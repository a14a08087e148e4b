"""A run whose workdir lies in a store: it works in a local copy, which is mirrored.

  URL/lock.json                 one writer (pacx_jax/stores/lock.py)
  URL/checkpoints, URL/best     saved states (remote_steps.py)
  URL/metrics.jsonl, export/... everything else, as it is on the local disk

Small files are sent before the manifest of the checkpoint that they belong to, and when
the run ends. What could not be sent stays in the local copy, and the same command on
the same machine goes on from it, unless another run came in between.

A run that was stopped for longer than its lock lasts asks for the lock before it writes
on. A request of its that arrives after all does no harm: small files and manifests are
written by compare-and-swap, a state's data under names of their own, and what it
removes is what was there when it had the lock.

Several processes have a copy each: every one sends its own files of a state.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import pathlib
import secrets
import shutil
from collections.abc import Callable

import jax

from pacx_jax import files
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import manifest, remote_steps, saved_steps
from pacx_jax.stores import lock, objects, staging
from pacx_jax.stores.failures import StoreError

STEPS = ("checkpoints", "best")
_OWN = (*STEPS, "cache", "wandb", "lock", lock.NAME, staging.REMOTE)
_SESSION = ".session"
_TRIES = 3  # of a state that arrives changed


class Mirror:
    """The local copy of a remote workdir, and what of it has been sent.

    Attributes:
      url: the workdir.
      local: its copy.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        count, index = jax.process_count(), jax.process_index()
        mark = f"-{index}of{count}"
        self.local = staging.copy_of(self.url, staging.scratch() / "runs", mark)
        end = functools.partial(processes.end_at_once, code=2)
        self._lock = lock.Lock(self.url, lambda text: end(f"error: {text}"))
        fence = self._lock.check if processes.is_first() else lambda: None
        self._store = objects.Store(self.url, fence=fence)
        self._versions: dict[str, objects.Version] = {}
        self._sent: dict[str, tuple] = {}
        self._attempt = ""
        self._steps: set[tuple[str, int]] = set()
        self.failure: StoreError | None = None
        self._alone = contextlib.ExitStack()

    def open(self) -> None:
        """Takes the lock, in process 0, and makes the copy what the store holds."""
        together(self._take)
        together(self._fetch)

    def _take(self) -> None:
        file = self.local.with_name(f".{self.local.name}.lock")
        refusal = f"{self.url}: another run of this machine is writing here: take "
        self._alone.enter_context(files.locked(file, f"{refusal}another --workdir"))
        if processes.is_first():
            self._lock.acquire()

    def _fetch(self) -> None:
        session = self.local / _SESSION
        goes_on = session.is_file() and session.read_text() == self._lock.previous
        alone = jax.process_count() == 1
        items = {k: v for k, v in self._store.list().items() if is_small(k)}
        if processes.is_first():
            self._versions = {name: self._store.version(name) for name in items}
        if alone and goes_on and self._lock.previous:
            self._sent = dict.fromkeys(items, ())
        else:
            shutil.rmtree(self.local, ignore_errors=True)
            staging.bring(self._store, items, self.local)
            self._sent = {name: _stamp(self.local / name) for name in items}
        files.write(session, self._lock.session)
        files.write_json(self.local / staging.REMOTE, {"url": self.url})

    def push(self) -> None:
        """Sends the small files that have changed, and removes those that are gone."""
        if not processes.is_first():
            return
        found = (p for p in self.local.rglob("*") if p.is_file())
        names = {p.relative_to(self.local).as_posix() for p in found}
        names = {name for name in names if is_small(name)}
        for name in sorted(names, key=lambda name: (name == "done.json", name)):
            file = self.local / name
            stamp = _stamp(file)
            if self._sent.get(name) == stamp:
                continue
            known = self._versions.get(name, {})
            self._versions[name] = remote_steps.replace(
                self._store, name, _bytes(file), known, self._lock.renew
            )
            self._sent[name] = stamp
        gone = set(self._sent) - names
        self._store.delete(gone)
        for name in gone:
            del self._sent[name]
            self._versions.pop(name, None)

    def begin(self) -> None:
        """Before a state is saved: one name for what all processes send of it."""
        self._attempt = processes.gathered(secrets.token_hex(8))[0]

    def save(self, folder: pathlib.Path, keep: int) -> None:
        """Sends a state that is whole on the disk; in the saver's thread.

        Raises:
          StoreError: it could not be sent; the local one stays.
        """
        kind, number, store = folder.parent.name, int(folder.name), self._store
        attempt, count = self._attempt, jax.process_count()
        try:
            self.push()
            remote_steps.upload(store, folder, attempt, jax.process_index())
            if not processes.is_first():
                return
            remote_steps.commit(store, folder, attempt, count, self._lock.renew)
            there = remote_steps.numbers(store, kind)
            for old in saved_steps.retired(there, keep, number):
                remote_steps.remove(store, kind, old)
        except StoreError as e:
            self.failure = e
            raise
        self.failure = None
        self._steps.add((kind, number))

    def holds(self, folder: pathlib.Path) -> bool:
        """In process 0: whether the store has a step."""
        return (folder.parent.name, int(folder.name)) in self._steps

    def fetch(self, folder: pathlib.Path, keep: int) -> None:
        """Makes a folder of steps hold the newest one that is whole.

        Args:
          keep: how many the store keeps.

        Raises:
          PacxError: there are checkpoints, and none holds what was saved.
        """
        found = [-1]
        if processes.is_first():
            together(lambda: found.append(self._newest(folder, keep)))
        else:
            together(lambda: None)
        number = processes.agreed(found[-1])
        if number >= 0:
            self._others_fetch(folder, number)

    def _others_fetch(self, folder: pathlib.Path, number: int) -> None:
        """Makes the copies of the other processes hold a step, whole."""
        together(
            lambda: processes.is_first() or fetch_step(self._store, folder, number)
        )

    def _newest(self, folder: pathlib.Path, keep: int) -> int:
        """The newest whole step, which is then in the first process's copy; or -1."""
        remote_steps.remove_unfinished(self._store, folder.name)
        number = self._continued(folder, keep)
        if number < 0:
            number = self._first_whole(folder)
        self._steps.add((folder.name, number))
        return number

    def _continued(self, folder: pathlib.Path, keep: int) -> int:
        """The newest local step of a run that goes on here, sent if need be; or -1."""
        number, _, _ = saved_steps.newest(folder)
        there = remote_steps.numbers(self._store, folder.name)
        if number is None or (there and there[-1] > number):
            return -1
        if number not in there:
            self._attempt = secrets.token_hex(8)
            self.save(folder / str(number), keep)
        return number

    def _first_whole(self, folder: pathlib.Path) -> int:
        there = remote_steps.numbers(self._store, folder.name)
        for number in reversed(there):
            try:
                fetch_step(self._store, folder, number)
                return number
            except manifest.Damaged as e:
                self._lock.check()  # what is missing may be what another run removed
                saved_steps.warn(
                    f"{self.url}/{folder.name}/{number} is damaged ({e}): it is marked "
                    "as such"
                )
                remote_steps.mark_damaged(self._store, folder.name, number, str(e))
        bad = any(
            f"/{remote_steps.DAMAGED}" in n for n in self._store.list(folder.name)
        )
        if bad and folder.name == "checkpoints":
            raise PacxError(
                f"{self.url}/{folder.name}: none of the saved steps holds what was "
                f"saved; restore it from a copy, or delete {self.url} to begin at 0"
            )
        return -1

    def complete(self) -> None:
        """Makes every process's copy hold the newest states whole, not in part."""
        if jax.process_count() == 1:
            return
        for kind in STEPS:
            folder = self.local / kind
            number, _, _ = saved_steps.newest(folder)
            number = processes.agreed(-1 if number is None else number)
            if number >= 0:
                together(lambda: fetch_step(self._store, folder, number))

    def close(self, finished: bool) -> None:
        """Sends what is left and lets others have the lock."""
        with self._alone:
            if processes.is_first():
                finished = self._lock.held and self._send_rest(finished)
            if finished:
                shutil.rmtree(self.local, ignore_errors=True)

    def _send_rest(self, finished: bool) -> bool:
        """Whether nothing of a finished run is here alone."""
        try:
            self.push()
        except StoreError as e:
            if finished:
                raise PacxError(
                    f"{e}. The run is finished, and kept in {self.local}: the same "
                    "command on this machine sends it"
                ) from None
            saved_steps.warn(f"{e}. What is not sent stays in {self.local}")
        finally:
            self._lock.release()
        return finished


def fetch_step(store: objects.Store, folder: pathlib.Path, number: int) -> None:
    """Fetches a step; Damaged only if it arrives so each time."""
    for last in range(_TRIES):
        try:
            return remote_steps.fetch(store, folder, number)
        except manifest.Damaged:
            if last == _TRIES - 1:
                raise


def is_small(name: str) -> bool:
    first, _, _ = name.partition("/")
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and first not in _OWN


def _bytes(file: pathlib.Path) -> bytes | mmap.mmap:
    """A file's bytes, which stay on the disk where they are many."""
    if file.stat().st_size <= objects.PART:
        return file.read_bytes()
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def together(action: Callable[[], None]) -> None:
    """Does it in every process; what one of them refuses, all of them do."""
    text = ""
    try:
        action()
    except PacxError as e:
        if jax.process_count() == 1:
            raise
        text = str(e) or "refused"
    for found in processes.gathered(text):
        if found:
            raise PacxError(found)
