"""Everything that only a GPU can tell, in one run that ends in time.

  python launch/gpu_check.py --out=DIR [--seconds=480] [--parts=GROUP,...]
      [--wheels=DIR] [--dry_run]

It runs, in the order of what is worth most: the environment (device, driver, versions,
XLA's autotune level) and what dense products reach; the suite's numeric checks on the
GPU (attention in bfloat16, parity with recorded cases, InfoNCE on one device, resume to
the bit with deterministic operations, export); bench.py's modes alone, then beside
PyTorch; other choices for a step; the loop on drawn X-rays with saves; a trace. Each
is a process with a limit of its own: what fails, hangs or runs out of memory is a row.
DIR/gpu_check.json and DIR/gpu_check.md are written anew after every part, the trace (at
most 16 MiB) lies in DIR/trace. --parts takes some of: environment, numeric, bench,
choices, loop, peers, trace. --dry_run shows on a CPU, with tiny sizes, that every part
works.

The machine needs jax with its CUDA plugin, flax, optax and numpy, with what pip brings
along, and torch for the peers. The rest can be carried, for a machine without a
network (here for Python 3.12 on x86-64, about 81 MB; without numeric and loop, einops
and ml_collections do):

  pip download --no-deps --only-binary=:all: --python-version=3.12 \\
      --platform=manylinux_2_28_x86_64 --platform=manylinux2014_x86_64 \\
      --dest=wheels --requirement=launch/requirements.gpu_check.txt
  python launch/gpu_check.py --out=results --wheels=wheels   # there

--wheels is a folder of wheels, or one that `pip install --target` has filled. Exit
code: 0 if all that was run is well, 1 if a row says otherwise, 2 for bad flags or no
GPU.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from launch.benchmarks import gpu_parts, gpu_report, measure  # noqa: E402
from launch.benchmarks.gpu_parts import Part  # noqa: E402
from pacx_jax.types import PacxError  # noqa: E402

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
            env=_merged(environ, part.env),
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
            if not result["ratios"]:
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


def _merged(environ: dict[str, str], more) -> dict[str, str]:
    flags = " ".join(x for x in (environ.get("XLA_FLAGS"), more.get("XLA_FLAGS")) if x)
    return environ | dict(more) | ({"XLA_FLAGS": flags} if flags else {})


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
        self._report["rows"].append(row)
        self._report["seconds"] = round(time.monotonic() - self._begun, 1)
        gpu_report.write(self._out, self._report)
        text = gpu_report.words(row)
        print(
            f"{row['part']}: {row['outcome']}, {row['seconds']} s; {text}", flush=True
        )
        if row["part"] == "environment" and not self._report["dry_run"]:
            backend = (row["result"] or {}).get("backend")
            if backend != "gpu":
                self._waiting.clear()
                why = row["reason"] or f"JAX's backend is {backend}"
                raise PacxError(f"JAX has no GPU ({why}): give --dry_run on a CPU")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags, checked."""
    parser = argparse.ArgumentParser(
        prog="launch/gpu_check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"error: {message}; see --help\n")
    add = parser.add_argument
    add("--out", required=True, help="folder of the results")
    add("--seconds", type=float, default=480.0, help="that all of it may take")
    add("--parts", default="", help="groups, with commas between; default: all")
    add("--wheels", default="", help="folder of packages that the machine lacks")
    add("--dry_run", action="store_true", help="on a CPU, with tiny sizes")
    options = parser.parse_args(argv)
    known = gpu_parts.GROUPS
    options.groups = options.parts.split(",") if options.parts else list(known)
    if unknown := sorted(set(options.groups) - set(known)):
        parser.error(f"--parts={unknown[0]}: choose of {', '.join(known)}")
    if not options.seconds > 0:
        parser.error(f"--seconds={options.seconds:g}: give more than 0")
    if options.wheels and not pathlib.Path(options.wheels).is_dir():
        parser.error(f"--wheels={options.wheels}: no such folder")
    try:
        pathlib.Path(options.out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as e:
        parser.error(f"--out={options.out}: {e.strerror}, give a folder")
    return options


def environment(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, str]:
    """Variables of all parts; what they compile and unpack lies in `folder`."""
    environ = dict(os.environ) | {
        "PYTHONFAULTHANDLER": "1",  # a crash says what it was
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
    }
    if options.wheels:
        path = pathlib.Path(options.wheels).absolute()
        if wheels := sorted(path.glob("*.whl")):
            path = folder / "packages"
            for wheel in wheels:  # a wheel is a zip of what is to be imported
                zipfile.ZipFile(wheel).extractall(path)
        more = os.environ.get("PYTHONPATH")
        environ["PYTHONPATH"] = os.pathsep.join([str(path), *([more] if more else [])])
    if options.dry_run:
        environ["JAX_PLATFORMS"] = "cpu"
        environ = _merged(environ, {"XLA_FLAGS": "--xla_backend_optimization_level=0"})
    return environ


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse(argv)
    out = pathlib.Path(options.out).absolute()
    chosen = [
        dataclasses.replace(part, timed=part.timed and not options.dry_run)
        for part in gpu_parts.parts(str(out), options.dry_run)
        if part.group in options.groups or part.name == "environment"
    ]
    cores = measure.cores()
    report = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(
            ["python", "launch/gpu_check.py", *(argv or sys.argv[1:])]
        ),
        "commit": _commit(),
        "dry_run": options.dry_run,
        "budget": options.seconds,
        "seconds": 0.0,
        "rows": [],
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="pacx_gpu_check_") as folder:
        try:
            Check(
                chosen,
                report,
                out,
                options.seconds,
                environment(options, pathlib.Path(folder)),
                cores if options.dry_run else max(1, cores // 2),
            ).run()
        except PacxError as e:
            print(f"error: {e}", file=sys.stderr)
            return 2
    print(f"{out / 'gpu_check.json'}\n{out / 'gpu_check.md'}")
    return int(any(row["outcome"] != gpu_report.OK for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
