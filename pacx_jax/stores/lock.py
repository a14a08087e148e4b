"""One writer: an object that its owner renews, and that others take when it is stale.

A clock of another machine is never believed. Who finds the lock held watches it: if it
is renewed, its owner lives, and the run is refused; if it is not for longer than the
owner may leave it, it is stale. It is taken by compare-and-swap, so by one alone. An
owner that could not renew it in time asks before it writes anything more.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable

from pacx_jax.errors import PacxError
from pacx_jax.stores.failures import Missing, StoreError
from pacx_jax.stores.objects import Store, Version

NAME = "lock.json"
SECONDS = 60.0  # without a renewal, after which a lock is stale
# It goes on while a machine sleeps, where there is one that does.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lost(PacxError):
    """Another run has taken the lock."""


class Lock:
    """The lock of a remote folder.

    Args:
      url: the folder.
      lost: called with a line, in a thread, when another run has taken it.
      remedy: the end of the line for who does not get it.

    Attributes:
      session: a name of this holder's.
      previous: that of the holder before, "" without one.
    """

    def __init__(
        self,
        url: str,
        lost: Callable[[str], None],
        remedy: str = "take another --workdir",
    ):
        self._url, self._lost, self._remedy = url, lost, remedy
        self._seconds = SECONDS
        self._store = Store(url, patience=SECONDS / 4, seconds=SECONDS / 6)
        self._owner = f"{socket.gethostname()}, process {os.getpid()}"
        self.session, self.previous = secrets.token_hex(8), ""
        self._version: Version = {}
        self._beat, self._renewed = 0, 0.0
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def acquire(self) -> None:
        """Takes the lock, and renews it until `release`.

        Raises:
          PacxError: another run has it.
        """
        while not self._version:
            began = _now()
            found = self._store.create(NAME, self._content("held"))
            if found is None:
                try:
                    data, version = self._store.read(NAME)
                except Missing:
                    continue
                about = _parsed(data)
                if about.get("state") != "free":
                    self._watch(about, version)
                began = _now()
                found = self._store.swap(NAME, self._content("held"), version)
                if found is None:
                    raise PacxError(self._refusal("another run"))
                self.previous = str(about.get("session", ""))
            self._version, self._renewed = found, began
        self._thread.start()

    def _watch(self, about: dict, version: Version) -> None:
        """Returns when the lock is stale; PacxError when its owner lives."""
        owner = str(about.get("owner", "another run"))
        seconds = about.get("seconds")
        seconds = seconds if isinstance(seconds, (int, float)) else self._seconds
        end = _now() + 1.25 * seconds
        print(
            f"{self._url}: {owner} holds its lock; waiting up to "
            f"{1.25 * seconds:.0f} s to see whether that run still lives",
            file=sys.stderr,
            flush=True,
        )
        while _now() < end:
            time.sleep(min(seconds / 8, 2.0))
            try:
                _, now = self._store.read(NAME)
            except Missing:
                now = {}
            if now != version:
                raise PacxError(self._refusal(owner))

    def _refusal(self, owner: str) -> str:
        return f"{self._url}: {owner} is writing here: {self._remedy}"

    def _content(self, state: str) -> bytes:
        self._beat += 1
        about = {"owner": self._owner, "session": self.session, "state": state}
        about |= {"seconds": self._seconds, "beat": self._beat}
        return (json.dumps(about) + "\n").encode()

    def _keep(self) -> None:
        """In a thread: renews the lock."""
        while not self._ended.wait(self._seconds / 4):
            try:
                self.renew()
            except Lost as e:
                if not self._ended.is_set():
                    self._lost(str(e))
                return
            except StoreError:  # the store may be back for the next one
                continue

    def renew(self) -> None:
        """Renews the lock now.

        Raises:
          Lost: another run has it.
          StoreError: whether that is so cannot be found out.
        """
        with self._guard:
            for _ in range(2):
                began, content = _now(), self._content("held")
                found = self._store.swap(NAME, content, self._version)
                if found is not None:
                    self._version, self._renewed = found, began
                    return
                try:
                    data, version = self._store.read(NAME)
                except Missing:
                    raise Lost(f"{self._url}: its lock was deleted") from None
                about = _parsed(data)
                if about.get("session") != self.session:
                    owner = about.get("owner", "another run")
                    raise Lost(f"{self._url}: {owner} has taken over this run")
                self._version = version  # a renewal whose answer never came
            raise StoreError(f"{self._url}: its lock cannot be renewed")

    def check(self) -> None:
        """Before anything is written: as `renew`, unless it was just renewed.

        A request on its way may still arrive after another has taken the lock: it must
        be one that does no harm then.
        """
        if _now() - self._renewed > 0.7 * self._seconds:
            self.renew()

    @property
    def held(self) -> bool:
        """Whether `acquire` took it."""
        return bool(self._version)

    def release(self) -> None:
        """Lets others have the lock at once; if that fails, once it is stale."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._guard:
            try:
                self._store.swap(NAME, self._content("free"), self._version)
            except StoreError:
                pass


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _parsed(data: bytes) -> dict:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
