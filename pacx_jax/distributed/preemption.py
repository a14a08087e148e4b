"""Preemption: on SIGTERM a run saves its state and ends with exit code 75."""

from __future__ import annotations

import signal
import threading

import jax
from jax.experimental import multihost_utils

from pacx_jax.distributed import processes

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: launchers start the same command again


class Preempted(Exception):
    """The run was asked to end, and its state is saved."""


class Preemption:
    """Context manager that tells whether a run has been asked to end.

    A run of one process handles SIGTERM inside the context. With several processes JAX
    handles it from `jax.distributed.initialize` on and finds a step after which all
    end.

    Args:
      grace_seconds: time from the first SIGTERM until a run of one process ends, saved
        or not. Later SIGTERMs change nothing.
    """

    def __init__(self, grace_seconds: float):
        self._asked = False
        self._grace = threading.Timer(grace_seconds, _give_up, (grace_seconds,))
        self._grace.daemon = True
        self._listens = (
            not jax.distributed.is_initialized()
            and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self) -> Preemption:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)
        self._grace.cancel()

    def _ask(self, *_) -> None:
        if not self._asked:
            self._asked = True
            self._grace.start()

    def check(self) -> None:
        """Raises Preempted after SIGTERM, in a run of one process."""
        if self._asked:
            raise Preempted

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step, which is the same on all."""
        return self._asked or multihost_utils.reached_preemption_sync_point(step)


def _give_up(seconds: float) -> None:
    processes.end_at_once(
        f"stopped: not saved within {seconds:g} s of SIGTERM (config.grace_seconds); "
        "the same command goes on from the last checkpoint",
        EXIT_CODE,
    )
