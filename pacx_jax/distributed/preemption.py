"""Preemption: after SIGTERM or Ctrl-C a run saves its state and ends with code 75."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from pacx_jax.distributed import processes

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: launchers start the same command again
INTERRUPTED = 130  # by Ctrl-C, where nothing was saved
UNWINDING_SECONDS = 2.0  # after a Ctrl-C in a compilation, before the run just ends


class Preempted(Exception):
    """The run was asked to end, and its state is saved."""


class Preemption:
    """Context manager that tells whether a run has been asked to end.

    A run of one process handles SIGTERM inside the context. With several processes JAX
    handles it from `jax.distributed.initialize` on and finds a step after which all
    end. The first Ctrl-C (SIGINT) does the same, or raises KeyboardInterrupt if no step
    is unsaved. The second ends the process at once.

    Python calls a handler between two of its instructions, which a compilation may
    delay for minutes, so a thread listens to Ctrl-C too.

    Args:
      grace_seconds: time from the first SIGTERM until a run of one process ends, saved
        or not. Later SIGTERMs change nothing.
      goes_on: () -> from where the same command goes on, for the last line.

    Attributes:
      unsaved: whether this session has taken steps that are in no checkpoint.
    """

    def __init__(self, grace_seconds: float, goes_on: Callable[[], str]):
        self.unsaved = False
        self._asked = self._interrupted = False
        self._left = threading.Event()
        self._seconds, self._goes_on = grace_seconds, goes_on
        self._grace = threading.Timer(grace_seconds, self._give_up)
        self._grace.daemon = True
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is not threading.main_thread():
            return self
        if not jax.distributed.is_initialized():
            self._listen(signal.SIGTERM, self._ask)
        # A shell starts background jobs with SIGINT ignored: they do not hear Ctrl-C.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._listen(signal.SIGINT, self._interrupt)
            heard, self._told = os.pipe()
            os.set_blocking(self._told, False)
            self._wakeup = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(heard,), daemon=True).start()
        return self

    def _listen(self, number: signal.Signals, handler) -> None:
        self._before[number] = signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if signal.SIGINT in self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._told)  # at which the thread ends
        self._grace.cancel()

    def _ask(self, *_) -> None:
        if not self._asked:
            self._asked = True
            self._grace.start()

    def _interrupt(self, *_) -> None:
        if not self.unsaved:
            raise KeyboardInterrupt  # ignored where it meets a garbage collection
        _say("stopping: saves after this step; Ctrl-C again ends at once")
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes
        else:
            self._asked = True

    def _watch(self, heard: int) -> None:
        """In a thread: ends the process where the handler cannot, or for the second."""
        with os.fdopen(heard, "rb", buffering=0) as pipe:
            while numbers := pipe.read(1):
                if numbers[0] != signal.SIGINT:
                    continue
                again, self._interrupted = self._interrupted, True
                if again or not (self.unsaved or self._left.wait(UNWINDING_SECONDS)):
                    processes.end_at_once(f"stopped: {self._goes_on()}", INTERRUPTED)

    def _give_up(self) -> None:
        processes.end_at_once(
            f"stopped: not saved within {self._seconds:g} s of SIGTERM "
            f"(config.grace_seconds); {self._goes_on()}",
            EXIT_CODE,
        )

    def check(self) -> None:
        """Raises Preempted once the run has been asked to end, if it is one process."""
        if self._asked:
            raise Preempted

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step, which is the same on all."""
        return self._asked or multihost_utils.reached_preemption_sync_point(step)


def _say(text: str) -> None:
    """Writes a line from a signal handler, which may have interrupted a print."""
    os.write(2, f"{text}\n".encode())
