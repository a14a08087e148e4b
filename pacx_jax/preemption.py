"""Preemption: after SIGTERM a run saves its state and ends with exit code 75."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

import jax

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: launchers start the same command again


class Preempted(Exception):
    """The run was asked to end, and its state is saved."""


class Preemption:
    """Whether this run has been asked to end.

    A context manager. In a run of one process it takes SIGTERM for as long as it is
    open; where there are several, JAX's coordination service does, which makes all of
    them stop at the same step.

    Attributes:
      unsaved: whether there are updates that no checkpoint holds yet. Without any, such
        as while the first step is compiled, SIGTERM ends the process at once.
    """

    def __init__(self, grace_seconds: float):
        self.unsaved = False
        self._grace = grace_seconds
        self._asked = threading.Event()
        self._over = threading.Event()
        self._ears: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Preemption:
        in_main = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main:
            # A handler in Python waits for the interpreter, which a compilation holds
            # up for minutes. What the handler in C writes to a socket, a thread hears.
            self._ears = hears, told = socket.socketpair()
            told.setblocking(False)
            self._handler = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
            self._told = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(hears,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if self._ears is not None:
            signal.set_wakeup_fd(self._told)
            signal.signal(signal.SIGTERM, self._handler)
            for ear in self._ears:
                ear.close()

    def asked(self) -> bool:
        """Whether SIGTERM has come. With several processes only `reached` knows."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raises Preempted once SIGTERM has come, in a run of one process."""
        if self.asked():
            raise Preempted

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step: the same one in every process."""
        if jax.process_count() == 1:
            return self.asked()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _listen(self, hears: socket.socket) -> None:
        try:
            while hears.recv(1) != bytes([signal.SIGTERM]):
                pass
        except OSError:  # closed: the run is over
            return
        self._asked.set()
        if self.unsaved and self._over.wait(self._grace):
            return
        if not self._over.is_set():
            at = f"{self._grace:g} s after it was asked to" if self.unsaved else "now"
            print(
                f"stopped: preempted, ending {at} without a new checkpoint; the same "
                "command goes on from the last one",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_CODE)
