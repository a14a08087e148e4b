"""Traces of a few steps, which TensorBoard's profile plugin and Perfetto open.

A trace is a folder: plugins/profile/TIME/, with HOST.xplane.pb for TensorBoard
(`tensorboard --logdir=FOLDER`, with xprof installed) and perfetto_trace.json.gz for
https://ui.perfetto.dev.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import jax
from absl import logging

from pacx_jax.errors import PacxError

SETTLING = 2  # updates of a session before its trace: the first one compiles


@contextlib.contextmanager
def trace(folder: str | pathlib.Path) -> Iterator[None]:
    """What happens within is traced into the folder.

    Raises:
      PacxError: a folder that takes no files, a full disk, or a trace in a trace.
    """
    make_folder(folder)
    with _as_one_line(folder):
        jax.profiler.start_trace(str(folder), create_perfetto_trace=True)
    try:
        yield
    finally:
        with _as_one_line(folder):
            jax.profiler.stop_trace()


def make_folder(folder: str | pathlib.Path) -> None:
    """Makes the folder of a trace; PacxError unless files can be written there."""
    with _as_one_line(folder):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _as_one_line(folder: str | pathlib.Path) -> Iterator[None]:
    """Makes a PacxError of what the disk or the profiler raises."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as e:
        text = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise PacxError(f"{folder}: no trace can be written ({text})") from e


class StepTrace:
    """Traces some updates of a session, from its third on; each is named by its step.

    Traces none if `steps` is 0. A trace that fails later warns; the run goes on.

    Raises:
      PacxError: a folder that takes no files.
    """

    def __init__(self, steps: int, folder: str | pathlib.Path, start: int):
        self._first, self._last = start + SETTLING + 1, start + SETTLING + steps
        self._folder = folder
        self._open = contextlib.ExitStack()
        if steps:
            make_folder(folder)

    def step(self, n: int) -> contextlib.AbstractContextManager:
        """What is done within is step n."""
        if n == self._first <= self._last:
            with _going_on():
                self._open.enter_context(trace(self._folder))
        return jax.profiler.StepTraceAnnotation("train", step_num=n)

    def ends_with(self, n: int) -> bool:
        """Whether step n is the last that is traced."""
        return self._first <= self._last == n

    def close(self) -> None:
        """Ends a trace that has begun; what it has is written."""
        with _going_on():
            self._open.close()


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Says what went wrong, and no more."""
    try:
        yield
    except PacxError as e:
        logging.warning("%s; the run goes on without it", e)
