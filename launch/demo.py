"""The whole curriculum on the embedded cohort, from nothing to a report.

  bash launch/demo.sh                # about a quarter of an hour on two cores
  bash launch/demo.sh --method=mvmae # studies of two views, and reports
  bash launch/demo.sh --seeds=5      # five trainings, whose spread intervals cover
  bash launch/demo.sh --full         # a larger cohort and model, an hour or two
  bash launch/demo.sh --tiny         # a test of the machinery, numbers without meaning

Stages run as processes, two at a time where they do not need each other, each on half
of the cores: small models gain more from that than from sharing them. What is finished
stays finished: an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import psutil
import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from launch import compile_cache  # noqa: E402
from launch.curricula import mvmae, pacx  # noqa: E402
from launch.curricula.stage import Stage  # noqa: E402
from pacx_jax import cli, files  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402

METHODS = {"pacx": pacx, "mvmae": mvmae}


class Demo:
    """Runs the stages, and keeps in the target folder what is done and how long."""

    def __init__(self, target: pathlib.Path, stages: list[Stage]):
        self.target, self.stages = target, stages
        self.record = target / "progress.json"
        self.done: dict[str, float] = {}
        self.before, self.peak = 0.0, 0.0
        if self.record.exists():
            old = json.loads(self.record.read_text())
            self.done, self.before = old["done"], old["seconds"]
            self.peak = old["peak_rss_mib"]
        for stage in stages:  # what was deleted, and what stands on it, is made again
            again = not all((target / file).exists() for file in stage.makes)
            again = again or any(need not in self.done for need in stage.needs)
            if again:
                self.done.pop(stage.name, None)
        self.started = self.saved = time.monotonic()
        self.running: dict[str, tuple[Stage, subprocess.Popen, float, list[set]]] = {}
        cores = sorted(affinity())
        half = max(len(cores) // 2, 1)
        self.free = [set(cores[:half]), set(cores[half:] or cores)]
        self.bar = tqdm.tqdm(
            total=round(sum(s.weight for s in stages)),
            bar_format="{percentage:3.0f}%|{bar:24}| {elapsed} {postfix}",
            disable=not sys.stderr.isatty(),
        )

    def run(self) -> None:
        """All stages that are not done; raises SystemExit where one fails."""
        (self.target / "logs").mkdir(parents=True, exist_ok=True)
        waiting = [s for s in self.stages if s.name not in self.done]
        try:
            while waiting or self.running:
                for stage in list(waiting):
                    ready = all(n in self.done for n in stage.needs)
                    if ready and len(self.free) >= stage.cores:
                        waiting.remove(stage)
                        self._start(stage)
                time.sleep(0.2)
                self._measure()
                for name in list(self.running):
                    self._finish(name)
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            for _, process, *_ in self.running.values():
                process.terminate()
            for _, process, *_ in self.running.values():
                process.wait()
            self._save()
            self.bar.close()

    def _interrupt(self) -> None:
        """Lets the stages that train save and end; a second Ctrl-C ends all at once."""
        print(
            f"\nstopping {' and '.join(self.running)}, which may save first; Ctrl-C "
            "again ends at once",
            flush=True,
        )
        processes = [process for _, process, *_ in self.running.values()]
        try:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()

    def preempted(self) -> list[str]:
        """The stages that were stopped and have saved where they stood."""
        return [
            name
            for name, (_, process, *_) in self.running.items()
            if process.returncode == STOPPED
        ]

    def _start(self, stage: Stage) -> None:
        halves = [self.free.pop(0) for _ in range(stage.cores)]
        environment = os.environ | {
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            compile_cache.NAME: compile_cache.folder(self.target / "cache"),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
            ),
        }
        log = (self.target / "logs" / f"{stage.name}.log").open("ab")
        mine = affinity()
        pin(set().union(*halves))  # the child inherits it
        try:
            process = subprocess.Popen(
                [sys.executable, *stage.argv], stdout=log, stderr=log,
                cwd=ROOT, env=environment, preexec_fn=die_with_parent,
                start_new_session=True,  # a terminal's Ctrl-C is the demo's to pass on
            )  # fmt: skip
        finally:
            pin(mine)
            log.close()
        self.running[stage.name] = (stage, process, time.monotonic(), halves)

    def _finish(self, name: str) -> None:
        stage, process, started, halves = self.running[name]
        code = process.poll()
        if code is None:
            return
        del self.running[name]
        self.free += halves
        if code:
            log = self.target / "logs" / f"{name}.log"
            tail = log.read_text(errors="replace").strip().splitlines()[-5:]
            self.bar.close()
            print(f"{name} failed (exit code {code}); the end of {log}:")
            print("\n".join(tail))
            raise SystemExit(1)
        seconds = time.monotonic() - started
        log = (self.target / "logs" / f"{name}.log").read_text(errors="replace")
        lines = log.strip().splitlines()
        results = [line for line in lines if re.match(r"\w+: step \d+, ", line)]
        said = stage.says or (results[-1] if results else "")
        self.bar.write(f"{name:17s}{seconds:6.0f} s  {said}", file=sys.stdout)
        sys.stdout.flush()
        self.done[name] = round(seconds, 1)
        self._save()

    def _measure(self) -> None:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak = max(self.peak, total / 2**20)
        position = sum(s.weight for s in self.stages if s.name in self.done)
        position += sum(
            min((time.monotonic() - t) / s.weight, 0.95) * s.weight
            for s, _, t, _ in self.running.values()
        )
        if time.monotonic() - self.saved > 5:
            self._save()
        self.bar.n = min(round(position), self.bar.total)
        self.bar.set_postfix_str(", ".join(self.running), refresh=False)
        self.bar.refresh()

    def _save(self) -> None:
        row = {
            "done": self.done,
            "seconds": round(self.before + time.monotonic() - self.started, 1),
            "peak_rss_mib": round(self.peak, 1),
        }
        self.saved = time.monotonic()
        files.write_json(self.record, row)


def die_with_parent() -> None:
    """In a child: be killed when the demo is, even by SIGKILL (Linux alone can)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def affinity() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def pin(cores: set[int]) -> None:
    """Keeps this process to these cores, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


STOPPED = 75  # of pacx_jax.main, when it was asked to stop and saved


@cli.command
def main() -> int:
    """The command line; returns the exit code."""
    parser = cli.Parser(description=__doc__)
    text = "folder (runs/demo, runs/full with --full; _mvmae after it for that method)"
    parser.add_argument("--target", help=text)
    text = "pacx: ECGs and labs distilled; mvmae: views aligned, reports"
    parser.add_argument("--method", choices=METHODS, default="pacx", help=text)
    parser.add_argument("--full", action="store_true", help="an hour or two")
    parser.add_argument("--tiny", action="store_true", help="a test of the machinery")
    parser.add_argument("--seed", type=int, default=1, help="of cohort and training")
    text = "trainings of each encoder, by seeds SEED, SEED + 1, ...; more may follow"
    parser.add_argument("--seeds", type=int, default=1, help=text)
    parser.add_argument(
        "--split",
        default="test",
        choices=("val", "test"),
        help="probe patients to report on; settings are chosen on val",
    )
    parser.add_argument(
        "--imagenet",
        help="a converted ImageNet ViT (pacx_jax.convert) as a further arm",
    )
    args = parser.parse_args()
    if args.seeds < 1:
        raise PacxError(f"--seeds={args.seeds}: give at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell starts background jobs with SIGINT ignored, and Python inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    method = METHODS[args.method]
    plan = method.FULL if args.full else method.TINY if args.tiny else method.DEMO
    name = "full" if args.full else "tiny" if args.tiny else "demo"
    name += "" if args.method == "pacx" else f"_{args.method}"
    target = pathlib.Path(args.target or f"runs/{name}")
    if pathlib.Path.cwd() != ROOT:  # where the stages' processes work
        target = target.absolute()
    identity = {"plan": plan, "seed": args.seed, "split": args.split}
    if args.method != "pacx":  # not in older targets
        identity["method"] = args.method
        if args.imagenet:
            print(f"error: --imagenet is no arm of {args.method}", file=sys.stderr)
            return 2
    if args.imagenet:
        args.imagenet = str(pathlib.Path(args.imagenet).absolute())
        if not (pathlib.Path(args.imagenet) / "model.safetensors").is_file():
            print(
                f"error: --imagenet {args.imagenet}: no model folder", file=sys.stderr
            )
            return 2
        identity["imagenet"] = args.imagenet
    identity = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    record = target / "demo.json"
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = (target / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the end
    except BlockingIOError:
        print(f"error: another demo is running in {target}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: --target {target}: {e.strerror}", file=sys.stderr)
        return 2
    if record.exists() and record.read_text() != identity:
        print(f"error: {target} holds a demo with other settings (see {record}): "
              "delete it or give another --target", file=sys.stderr)  # fmt: skip
        return 2
    if not record.exists():
        record.write_text(identity)
    stages = method.curriculum(target, plan, args.seed, args.split, args.seeds)
    demo = Demo(target, stages)
    try:
        demo.run()
    except KeyboardInterrupt:
        saved = "".join(f"; {name} saved its state" for name in demo.preempted())
        print(f"stopped{saved}; the same command goes on from here", flush=True)
        return 130
    except OSError as e:  # such as a full disk
        print(f"error: {target}: {e.strerror}: the same command goes on from here",
              file=sys.stderr)  # fmt: skip
        return 2
    finish(target, demo)
    return 0


def finish(target: pathlib.Path, demo: Demo) -> None:
    """Completes summary.json with time and memory, and prints the comparison."""
    path = target / "summary.json"
    summary = json.loads(path.read_text())
    record = json.loads(demo.record.read_text())
    if "seconds" not in summary:
        summary |= {k: record[k] for k in ("seconds", "peak_rss_mib")}
        path.write_text(json.dumps(summary, indent=2) + "\n")
    print((target / "comparison.txt").read_text())
    print(
        f"{summary['seconds'] / 60:.1f} minutes, at most "
        f"{summary['peak_rss_mib'] / 1024:.1f} GiB; report: {target / 'report.html'}"
    )


if __name__ == "__main__":
    sys.exit(main())
