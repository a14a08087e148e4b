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
import dataclasses
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from launch.benchmarks import (  # noqa: E402
    gpu_parts,
    gpu_report,
    gpu_running,
    measure,
)
from pacx_jax.errors import PacxError  # noqa: E402


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
        environ = gpu_running.merged(
            environ, {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
        )
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
            gpu_running.Check(
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
        except KeyboardInterrupt:
            return 130
    print(f"{out / 'gpu_check.json'}\n{out / 'gpu_check.md'}")
    return int(any(row["outcome"] != gpu_report.OK for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
