"""Everything that only a GPU can tell, in one run that ends in time.

  python launch/gpu_check.py --out=DIR [--seconds=480] [--parts=GROUP,...]
      [--wheels=DIR] [--dry_run]

It runs, in the order of what is worth most: the environment (device, driver, versions,
XLA's autotune level) and what dense products reach; the suite's numeric checks on the
GPU (attention in bfloat16, parity with recorded cases, InfoNCE on one device, resume to
the bit with deterministic operations, export); bench.py's modes alone, then beside
PyTorch; other choices for a step; the loop on drawn X-rays with saves; a trace. Each
is a process with a limit of its own: what fails, hangs or runs out of memory is a row.
DIR/gpu_check.json and DIR/gpu_check.md are written anew after every part, the trace
lies in DIR/trace. --parts takes some of: environment, numeric, bench, choices, loop,
peers, trace. --dry_run shows on a CPU, with tiny sizes, that every part works.

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
import concurrent.futures
import datetime
import functools
import itertools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from launch.benchmarks import gpu_parts, measure  # noqa: E402
from launch.benchmarks.gpu_parts import Part  # noqa: E402
from pacx_jax import cli, files  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402

OK, FAILED, LATE, LEFT_OUT = "ok", "failed", "out of time", "not run"
LEAST = 0.25  # of its limit, without which a part is not begun
KEPT = 4000  # last characters of what a failed part said
_MISSING = re.compile(r"No module named '([\w.]+)'")
_ERROR = re.compile(
    r"^(\w+\.)*\w*(Error|Exception|Interrupt)\b.*|^Fatal Python error.*"
)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags, checked."""
    parser = cli.Parser(prog="launch/gpu_check.py", description=__doc__)
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
        paths = [str(path), os.environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if options.dry_run:
        environ["JAX_PLATFORMS"] = "cpu"
        quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
        environ = merged(environ, quick)
    return environ


def merged(environ: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Variables with more of them; what both say to XLA counts."""
    flags = " ".join(x for x in (environ.get("XLA_FLAGS"), more.get("XLA_FLAGS")) if x)
    return {**environ, **more} | ({"XLA_FLAGS": flags} if flags else {})


class Check:
    """Runs parts within a budget, and keeps the table up to date.

    Args:
      report: the head of the table; `rows` is filled.
      environ: variables of all parts.
    """

    def __init__(self, out: pathlib.Path, report: dict, environ: dict[str, str]):
        self._out, self._report, self._environ = out, report, environ
        self._begun = time.monotonic()
        self._end = self._begun + report["budget"]
        self._running: set[subprocess.Popen] = set()
        self.stopped = 0  # the signal that asked for it

    def run(self, parts: list[Part], at_once: int) -> None:
        """Runs the parts in their order, those that are not timed side by side.

        Raises:
          PacxError: the first part, the environment, has found no GPU.
        """
        # Limits are of a run of everything; time that is left over is shared.
        stretch = max(1.0, self._report["budget"] / sum(p.limit for p in parts))
        row = functools.partial(self._row, stretch=stretch)
        self._note(row(parts[0]))
        dry = self._report["dry_run"]  # whose times mean nothing
        if not dry:
            self._require_gpu(self._report["rows"][0])
        for timed, group in itertools.groupby(parts[1:], lambda p: p.timed and not dry):
            with concurrent.futures.ThreadPoolExecutor(1 if timed else at_once) as pool:
                for found in pool.map(row, group):
                    self._note(found)

    def stop(self, number: int, _=None) -> None:
        """A handler of signals: ends what runs, and begins nothing more."""
        self.stopped = number
        for process in list(self._running):
            _kill(process)

    def _require_gpu(self, row: dict) -> None:
        backend = (row["result"] or {}).get("backend")
        if backend != "gpu" and row["outcome"] != LATE and not self.stopped:
            why = row["reason"] or f"JAX's backend is {backend}"
            raise PacxError(f"JAX has no GPU ({why}): give --dry_run on a CPU")

    def _row(self, part: Part, stretch: float) -> dict[str, Any]:
        """Runs a part, and returns its row."""
        start, row = time.monotonic(), {
            "part": part.name,
            "group": part.group,
            "outcome": LEFT_OUT,
            "reason": "the check was stopped",
            "seconds": 0.0,
            "limit": part.limit,
            "command": shlex.join(part.command),
            "env": dict(part.env),
            "result": None,
            "said": None,
        }  # fmt: skip
        left = self._end - start
        if self.stopped:
            return row
        if left < LEAST * part.limit:
            why = f"{max(left, 0):.0f} s were left of the {part.limit:.0f} it takes"
            return row | {"reason": why}
        seconds = min(left, stretch * part.limit)
        code, out, err = self._process(part, seconds)
        outcome, why, result = OK, None, last_json(out)
        if self.stopped:
            outcome, why = LATE, "the check itself was stopped"
        elif code is None:
            outcome, why = LATE, f"stopped after {seconds:.0f} s"
        elif code:
            outcome, why = FAILED, reason(code, err)
        elif part.group == "peers":
            missing = [x for x in out.splitlines() if x.endswith("is not measured")]
            why = "; ".join(missing) or None
            if not (result or {}).get("ratios"):
                outcome = FAILED
        row |= {"outcome": outcome, "reason": why, "result": result}
        row["seconds"] = round(time.monotonic() - start, 1)
        return row | {"said": err[-KEPT:] if why else None}

    def _process(self, part: Part, seconds: float) -> tuple[int | None, str, str]:
        """A part's exit code, None if its time was over, and what it wrote."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                [sys.executable, *part.command],
                cwd=ROOT,
                env=merged(self._environ, part.env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # so that it ends with all that it has started
            )
            self._running.add(process)
            if self.stopped:  # while it was started
                _kill(process)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            self._running.remove(process)
            _kill(process)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return code, *texts

    def _note(self, row: dict[str, Any]) -> None:
        self._report["rows"].append(row)
        self._report["seconds"] = round(time.monotonic() - self._begun, 1)
        for suffix, text in {
            "json": json.dumps(self._report, indent=1) + "\n",
            "md": markdown(self._report),
        }.items():
            files.write(self._out / f"gpu_check.{suffix}", text)
        said = f"{row['part']}: {row['outcome']}, {row['seconds']} s"
        print(f"{said}; {words(row)}", flush=True)


def _kill(process: subprocess.Popen) -> None:
    """Ends a part and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass  # it has ended, or a driver holds it


def reason(code: int, text: str) -> str:
    """Why a process failed, in one line.

    Args:
      code: its exit code, negative for a signal.
      text: what it wrote to standard error.
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if missing := _MISSING.findall(text):
        package = missing[-1].partition(".")[0]
        return f"needs {package}: carry its wheel, see --help"
    errors = [line for line in lines if _ERROR.match(line)]
    full = [x for x in lines if "RESOURCE_EXHAUSTED" in x or "OutOfMemoryError" in x]
    said = [line for line in lines if line.startswith("error: ")]
    # What a worker of the bench died of stands before the bench's own line on that.
    own = [line for line in said if "what it said stands above" not in line]
    for found in (full, own, errors, said):
        if found:
            return found[-1].removeprefix("error: ")[:300]
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}: {lines[-1][:200] if lines else 'it said nothing'}"


def last_json(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def words(row: dict[str, Any]) -> str:
    """What a row says, in one line: what went wrong, and the part's own summary."""
    summary = (row["result"] or {}).get("summary")
    return "; ".join(filter(None, (row["reason"], summary)))


def markdown(report: dict[str, Any]) -> str:
    """The table, under a line on what it was measured."""
    dry = " DRY RUN on a CPU, tiny sizes: its times mean nothing."
    lines = [
        "# GPU check",
        "",
        f"{report['date']}, commit {report['commit']}, {report['seconds']:.0f} s of "
        f"{report['budget']:.0f} s; `{report['command']}`."
        f"{dry if report['dry_run'] else ''}",
        "",
        "| part | outcome | s | |",
        "|---|---|---:|---|",
    ]
    for row in report["rows"]:
        cells = (row["part"], row["outcome"], f"{row['seconds']:.0f}", words(row))
        lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


@cli.command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse(argv)
    out, given = pathlib.Path(options.out).absolute(), argv or sys.argv[1:]
    chosen = [
        part
        for part in gpu_parts.parts(str(out), options.dry_run)
        if part.group in options.groups or part.name == "environment"
    ]
    report = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "launch/gpu_check.py", *given]),
        "commit": _commit(),
        "dry_run": options.dry_run,
        "budget": options.seconds,
        "seconds": 0.0,
        "rows": [],
    }
    with tempfile.TemporaryDirectory(prefix="pacx_gpu_check_") as folder:
        check = Check(out, report, environment(options, pathlib.Path(folder)))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, check.stop)
        cores = measure.cores()
        check.run(chosen, cores if options.dry_run else max(1, cores // 2))
    if check.stopped:
        return 128 + check.stopped
    print(f"{out / 'gpu_check.json'}\n{out / 'gpu_check.md'}")
    return int(any(row["outcome"] != OK for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
