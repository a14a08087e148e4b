"""Runs the parts of `launch/gpu_check.py` within their time, and keeps its table."""

from __future__ import annotations

import collections
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from launch.benchmarks import gpu_report
from launch.benchmarks.gpu_parts import Part
from launch.benchmarks.worker import ROOT
from pacx_jax.errors import PacxError

LEAST = 0.25  # of its limit, without which a part is not begun
KEPT = 4000  # last characters of what a failed part said


class Running:
    """A part's process, from its start to its row."""

    def __init__(self, part: Part, seconds: float, environ: dict[str, str]):
        self.part, self._seconds = part, seconds
        self._start = time.monotonic()
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            env=merged(environ, part.env),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,  # so that it ends with all that it has started
        )

    def ended(self) -> bool:
        """Whether it ended, or has to."""
        late = time.monotonic() - self._start > self._seconds
        return self._process.poll() is not None or late

    def row(self, interrupted: bool = False) -> dict[str, Any]:
        """Ends it, and says how it went."""
        code = self._process.poll()
        self.kill()
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        out, err = texts
        outcome, why = gpu_report.OK, None
        if interrupted:
            outcome, why = gpu_report.LATE, "the check itself was stopped"
        elif code is None:
            outcome = gpu_report.LATE
            why = f"stopped after {self._seconds:.0f} s"
        elif code:
            outcome, why = gpu_report.FAILED, gpu_report.reason(code, err)
        result = gpu_report.last_json(out)
        if outcome == gpu_report.OK and self.part.group == "peers":
            missing = [x for x in out.splitlines() if x.endswith("is not measured")]
            why = "; ".join(missing) or None
            if not (result or {}).get("ratios"):
                outcome = gpu_report.FAILED
        row = make_row(self.part, outcome, why, result)
        row["seconds"] = round(time.monotonic() - self._start, 1)
        row["said"] = err[-KEPT:] if why else None
        return row

    def kill(self) -> None:
        """Ends it and what it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass  # it has ended, or a driver holds it


def make_row(part: Part, outcome: str, why: str | None, result: dict | None = None):
    """A row of the report."""
    return {
        "part": part.name,
        "group": part.group,
        "outcome": outcome,
        "reason": why,
        "seconds": 0.0,
        "limit": part.limit,
        "command": shlex.join(part.command),
        "env": dict(part.env),
        "result": result,
        "said": None,
    }


def merged(environ: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Variables with more of them; what both say to XLA counts."""
    flags = " ".join(x for x in (environ.get("XLA_FLAGS"), more.get("XLA_FLAGS")) if x)
    return {**environ, **more} | ({"XLA_FLAGS": flags} if flags else {})


def allotted(part: Part, later: list[Part], left: float) -> float | None:
    """Seconds that a part may take; None if too few are left to begin it.

    At least its limit, as far as that much is left; where the limits of it and of those
    after it leave time over, its share of that too.
    """
    if left < LEAST * part.limit:
        return None
    share = left * part.limit / (part.limit + sum(p.limit for p in later))
    return min(left, max(part.limit, share))


class Check:
    """Runs parts within a budget and keeps the report up to date.

    Args:
      parts: in their order.
      report: the head of the report; `rows` is filled.
      at_once: most processes that are not timed.
    """

    def __init__(self, parts, report, out, seconds, environ, at_once):
        self._waiting = collections.deque(parts)
        self._report, self._out, self._environ = report, out, environ
        self._begun = time.monotonic()
        self._end, self._at_once = self._begun + seconds, at_once
        self._running: list[Running] = []

    def run(self) -> None:
        """Runs all, until the time is over or something asks it to stop."""
        try:
            while self._waiting or self._running:
                while self._waiting and self._may_start(self._waiting[0]):
                    self._start()
                for running in [r for r in self._running if r.ended()]:
                    self._running.remove(running)
                    self._note(running.row())
                time.sleep(0.05)
        finally:  # also after Ctrl-C and SIGTERM
            for running in self._running:
                self._note(running.row(interrupted=True))
            for part in self._waiting:
                self._note(make_row(part, gpu_report.LEFT_OUT, "the check was stopped"))

    def _may_start(self, part: Part) -> bool:
        if not self._running:
            return True
        alone = part.timed or any(r.part.timed for r in self._running)
        return not alone and len(self._running) < self._at_once

    def _start(self) -> None:
        part = self._waiting.popleft()
        left = self._end - time.monotonic()
        seconds = allotted(part, list(self._waiting), left)
        if seconds is None:
            why = (
                f"{max(left, 0):.0f} s were left of the {part.limit:.0f} that it takes"
            )
            return self._note(make_row(part, gpu_report.LEFT_OUT, why))
        self._running.append(Running(part, seconds, self._environ))

    def _note(self, row: dict[str, Any]) -> None:
        try:
            text = gpu_report.words(row)
        except (KeyError, TypeError, ValueError) as error:  # a result of another shape
            row |= {"result": None, "outcome": gpu_report.FAILED}
            row["reason"] = text = f"its result cannot be read: {error!r}"
        self._report["rows"].append(row)
        self._report["seconds"] = round(time.monotonic() - self._begun, 1)
        gpu_report.write(self._out, self._report)
        print(
            f"{row['part']}: {row['outcome']}, {row['seconds']} s; {text}", flush=True
        )
        if row["part"] == "environment" and not self._report["dry_run"]:
            backend = (row["result"] or {}).get("backend")
            late = backend is None and row["outcome"] == gpu_report.LATE
            if backend != "gpu" and not late:
                self._waiting.clear()
                why = row["reason"] or f"JAX's backend is {backend}"
                raise PacxError(f"JAX has no GPU ({why}): give --dry_run on a CPU")
