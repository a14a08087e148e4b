"""Long runs of what CI tests briefly: damaged input, for minutes or for a night.

  python launch/soak.py [--mode=readers|checkpoints] [--minutes=15] [--seed=0]
      [--target=runs/soak] [--only=NAME,NAME] [--seconds=120] [--replay=FILE]

`readers` draws damaged files (tests/fuzz) and reads them as the project does. Each
must give a valid result or one line of error within a time and a memory. The bytes of
one that does not are kept in --target, with its stack beside them; --replay reads such
a file again. `checkpoints` damages saved steps and kills processes that save: the
newest whole one must be found, and be what was saved. The last line printed is JSON;
the exit code is 1 where something failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ROUND = 100  # examples of a reader before the next one's turn
ADDRESS_SPACE = 6 << 30  # bytes beyond what the imports take: the machine's safety


def readers(args: argparse.Namespace) -> dict:
    """Counts of all examples and the failures, by reader; see the module's docstring.

    The examples are read in a second process, so that a hang, a crash or an exhausted
    memory ends that and not this one.
    """
    args.target.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    counts, failures, seed = collections.Counter(), {}, args.seed
    while time.monotonic() < end:
        left = (end - time.monotonic()) / 60
        seed += 1000
        work = pathlib.Path(tempfile.mkdtemp(prefix="pacx_soak_"))
        command = [sys.executable, __file__, "--worker", f"--work={work}"]
        command += [f"--minutes={left}", f"--seed={seed}", f"--target={args.target}"]
        command += [f"--only={args.only}", f"--seconds={args.seconds}"]
        with (args.target / "worker.log").open("a") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
            )
            last = ""
            for line in process.stdout:
                said = json.loads(line)
                last = said.get("starts", last)
                counts.update(said.get("counts", {}))
                for name, reason in said.get("failures", {}).items():
                    failures.setdefault(name, reason)
            code = process.wait()
        if code:
            kept = _keep(args.target, last, (work / "example").read_bytes())
            failures.setdefault(kept.name, f"{last}: the process ended with {code}")
            print(f"{kept}: the process ended with {code}", flush=True)
        shutil.rmtree(work, ignore_errors=True)
    return {"examples": dict(sorted(counts.items())), "failures": failures}


def checkpoints(args: argparse.Namespace) -> dict:
    """Damages saved steps and kills processes that save."""
    from launch import soak_checkpoints

    return soak_checkpoints.soak(args.minutes, args.seed) | {"failures": {}}


MODES = {"readers": readers, "checkpoints": checkpoints}


def _keep(target: pathlib.Path, name: str, data: bytes) -> pathlib.Path:
    """Writes an example that failed; its name says whose it is."""
    digest = hashlib.sha256(data).hexdigest()[:12]
    path = target / f"{name.replace(' ', '_').replace('/', '_')}-{digest}.bin"
    path.write_bytes(data)
    return path


def _worker(args: argparse.Namespace) -> None:
    """Reads examples until the time is over; says on stdout, in JSON, what happened."""
    import hypothesis

    from tests.fuzz import readers as fuzz

    out, sys.stdout = sys.stdout, io.StringIO()
    fuzz.SECONDS = args.seconds
    chosen = fuzz.readers()
    if args.only:
        chosen = {k: v for k, v in chosen.items() if k in args.only.split(",")}
    for i, reader in enumerate(chosen.values()):
        reader.draw(args.work / str(i))
    _limit_memory()
    end, seen, turn = time.monotonic() + 60 * args.minutes, set(), 0
    while time.monotonic() < end:
        for i, (name, reader) in enumerate(chosen.items()):
            if time.monotonic() > end:
                break
            print(json.dumps({"starts": name}), file=out, flush=True)
            folder = args.work / str(i)
            sound = (folder / reader.file).read_bytes()
            counts, failures = collections.Counter(), {}
            turn += 1

            @hypothesis.seed(args.seed + turn)
            @hypothesis.settings(
                max_examples=ROUND,
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(reader.damage([sound, *reader.seeds()]))
            def one(data):
                if time.monotonic() > end:
                    return
                (args.work / "example").write_bytes(data)
                try:
                    counts[f"{name}: {fuzz.check(reader, folder, data)}"] += 1
                except Exception as error:
                    counts[f"{name}: FAILED"] += 1
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    kind = (name, type(error).__name__, where.filename, where.lineno)
                    if kind not in seen:
                        seen.add(kind)
                        path = _keep(args.target, name, data)
                        path.with_suffix(".txt").write_text(traceback.format_exc())
                        failures[path.name] = f"{type(error).__name__}: {error}"[:500]

            one()
            (folder / reader.file).write_bytes(sound)
            said = {"counts": counts, "failures": failures}
            print(json.dumps(said), file=out, flush=True)


def _limit_memory() -> None:
    """Beyond it, allocations fail here, before others' programs are killed."""
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = used * os.sysconf("SC_PAGE_SIZE") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _replay(path: pathlib.Path) -> None:
    """Reads a kept example again; prints the outcome, or raises what it raised."""
    from tests.fuzz import readers as fuzz

    spelled = {k.replace(" ", "_").replace("/", "_"): k for k in fuzz.readers()}
    reader = fuzz.readers()[spelled[path.name.rsplit("-", 1)[0]]]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT):
        reader.draw(pathlib.Path(folder, "set"))
        _limit_memory()
        print(fuzz.check(reader, pathlib.Path(folder, "set"), path.read_bytes()))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--mode", choices=tuple(MODES), default="readers")
    add("--minutes", type=float, default=15)
    add("--seed", type=int, default=0)
    add("--target", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    add("--only", default="", help="readers: these alone, separated by commas")
    # By the clock: a soak beside other work may wait long for its turn.
    add("--seconds", type=float, default=120, help="readers: for one example")
    add("--replay", type=pathlib.Path, help="readers: a kept example")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    add("--work", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.target = args.target.absolute()
    if args.replay:
        _replay(args.replay.absolute())
        return 0
    if args.worker:
        _worker(args)
        return 0
    summary = {"mode": args.mode, "minutes": args.minutes, "seed": args.seed}
    summary |= MODES[args.mode](args)
    print(json.dumps(summary, indent=1))
    return int(bool(summary["failures"]))


if __name__ == "__main__":
    sys.exit(main())
