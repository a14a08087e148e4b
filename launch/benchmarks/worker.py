"""A process that takes turns: what is timed, and how it is asked.

The process says one line of JSON about itself, or {"error": TEXT}. Each line it then
reads, "turn STEPS" or "profile DIR", it answers with one line of JSON. Ours and the
peer have a process each, so that neither's threads and memory are in the other's way.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from launch.benchmarks import measure
from pacx_jax.errors import PacxError

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Timed(Protocol):
    """What a process times.

    Attributes:
      about: what it says of itself.
      batch: rows of a step.
    """

    about: dict[str, Any]
    batch: int

    def run(self, steps: int) -> float:
        """Takes steps and waits for the last; returns its loss, or another number."""

    def device_peak_mib(self) -> float | None:
        """The most memory that the accelerator's allocator has held so far."""

    def profile(self, folder: str, steps: int) -> None:
        """Writes a trace of steps into a folder."""


def serve(make: Callable[[], Timed], warm_up: int = 2) -> None:
    """Answers on standard output what is asked for on standard input, until its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def answer(content: dict) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        timed = make()
        timed.run(warm_up)
    except PacxError as e:
        return answer({"error": str(e)})
    peaks = measure.Peaks()
    peaks.reset()
    answer(timed.about)
    ended = time.process_time()
    for line in sys.stdin:
        what, _, value = line.strip().partition(" ")
        if what == "profile":
            answer(_profile(timed, value))
            continue
        idle = time.process_time() - ended
        answer(_turn(timed, int(value), peaks) | {"idle_processor_s": idle})
        ended = time.process_time()


def _profile(timed: Timed, folder: str) -> dict[str, str]:
    try:
        timed.profile(folder, 3)
    except PacxError as e:
        return {"error": str(e)}
    return {}


def _turn(timed: Timed, steps: int, peaks: measure.Peaks) -> measure.Turn:
    start, used = time.perf_counter(), time.process_time()
    last = timed.run(steps)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "step_s": seconds / steps,
        "images_per_s": timed.batch * steps / seconds,
        "images_per_cpu_s": timed.batch * steps / used,
        "last": last,
        "step_peak_mib": peaks.since_reset(),
        "peak_mib": peaks.whole(),
        "device_peak_mib": timed.device_peak_mib(),
    }


class Worker:
    """A process of this protocol; `about` is what it said of itself."""

    def __init__(self, module: str, *arguments: str, env: dict[str, str] | None = None):
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._name = module
        try:
            self.about = self._answer()
        except PacxError:
            self.close()
            raise

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to a line."""
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise PacxError(
                f"the process of {self._name} ended: what it said stands above; "
                "--peer=none goes without PyTorch"
            )
        content = json.loads(line)
        if "error" in content:
            raise PacxError(content["error"])
        return content

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
