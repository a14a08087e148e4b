"""A process that takes turns: ours and the peer's have one each.

So neither's threads and memory are in the other's way. It says one line of JSON about
itself, or {"error": TEXT}, and answers each line that it reads, "turn STEPS" or
"profile DIR", with one line of JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from launch.benchmarks import measure
from pacx_jax.errors import PacxError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def serve(make: Callable[[], Any], warm_up: int = 2) -> None:
    """Answers on standard output what is asked for on standard input, until its end.

    Args:
      make: () -> what is timed: its `about`, `turn(steps)` and `profile(folder)`.
      warm_up: steps that do not count.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        served = make()
        served.turn(warm_up)
        answer(served.about)
        for line in sys.stdin:
            what, _, value = line.strip().partition(" ")
            if what == "profile":
                served.profile(value)
                answer({})
            else:
                answer(served.turn(int(value)) | {"peak_mib": measure.peak_mib()})
    except PacxError as e:
        answer({"error": str(e)})


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

    def turn(self, steps: int) -> measure.Turn:
        """Its figures of so many steps."""
        return self._ask(f"turn {steps}")

    def profile(self, folder: str) -> None:
        """Has it write a trace into a folder."""
        self._ask(f"profile {os.path.abspath(folder)}")

    def _ask(self, line: str) -> dict[str, Any]:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise PacxError(
                f"the process of {self._name} ended: what it said stands above"
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
