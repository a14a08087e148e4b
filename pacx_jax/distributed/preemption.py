"""Preemption: after SIGTERM a run saves its state and ends with exit code 75."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

from pacx_jax.distributed import peers
from pacx_jax.distributed.peers import EXIT_CODE

INTERRUPTED = 130  # as a shell says of a command that Ctrl-C ended


class Preempted(Exception):
    """The run was asked to end, and its state is saved."""


class Preemption:
    """Whether this run has been asked to end.

    A context manager that takes SIGTERM for as long as it is open.

    Attributes:
      unsaved: whether there are updates that no checkpoint holds yet. Without any, such
        as while the first step is compiled, SIGTERM ends the process at once, and with
        it the others of its run.
    """

    def __init__(
        self, grace_seconds: float, agree_to_end: Callable[[], None] | None = None
    ):
        """Of a run with several processes, `agree_to_end` starts to find a last step.

        Args:
          grace_seconds: from SIGTERM until the process ends whether it has saved or
            not.
          agree_to_end: `processes.agree_to_end`; None in a run of one process.
        """
        self.unsaved = False
        self._grace, self._agree = grace_seconds, agree_to_end
        self._asked = threading.Event()
        self._over = threading.Event()
        self._ears: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            # A handler in Python waits for the main thread, which a compilation holds
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
        return self._agree is None and self._asked.is_set()

    def check(self) -> None:
        """Raises Preempted once SIGTERM has come, in a run of one process."""
        if self.asked():
            raise Preempted

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step: the same one in every process."""
        if self._agree is None:
            return self.asked()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _listen(self, hears: socket.socket) -> None:
        try:
            while (heard := hears.recv(1)) != bytes([signal.SIGTERM]):
                if heard == bytes([signal.SIGINT]):
                    self._interrupted()
        except OSError:  # closed: the run is over
            return
        self._asked.set()
        in_time = self.unsaved
        if in_time:
            if self._agree is not None:
                self._agree()
            if self._over.wait(self._grace):
                return
        if not self._over.is_set():
            at = f"{self._grace:g} s after it was asked to" if in_time else "now"
            peers.end(
                f"stopped: preempted, ending {at} without a new checkpoint; the same "
                "command goes on from the last one",
                EXIT_CODE,
            )

    def _interrupted(self) -> None:
        """After Ctrl-C, ends a process whose main thread does not, as it compiles."""
        if not self.unsaved and not self._over.wait(2):
            peers.end("stopped: interrupted before the first step", INTERRUPTED)


def end_at_once() -> None:
    """Takes SIGTERM and Ctrl-C until a run does: there is nothing yet to be lost."""

    def end(number: int, _) -> None:
        os.write(2, b"stopped: before the run began\n")
        os._exit(INTERRUPTED if number == signal.SIGINT else EXIT_CODE)

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def raise_interrupts() -> None:
    """Makes Ctrl-C a KeyboardInterrupt again, after `end_at_once`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
