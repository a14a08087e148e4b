"""Runs a recipe for every combination of config values, and puts one table together.

  python launch/sweep.py --config=configs/distill_vitb16.py --target=runs/table3 \\
      --arms=launch/table3.json --grid='seed=0;1;2' --jobs=4 --gpus_per_job=2 \\
      --config.data.path=DIR --config.model_init=runs/mae
  python launch/sweep.py ... --on=slurm --sbatch=--nodes=1 --sbatch=--partition=gpu
  python launch/sweep.py ... --on=jobset --accelerator=tpu --image=IMAGE

Arms are named sets of config fields in a JSON file, launch/table3.json being those of
the paper's Table 3; --grid='FIELD=VALUE;VALUE' multiplies them. Arguments that are not
listed by --help are every run's. A run lies in TARGET/NAME.

The same command goes on: finished runs are skipped, others resume. With
--evaluate=SPLIT a finished run is measured there, on SLURM and GKE when the command is
given again. TARGET/results.md and results.json hold one row a run; --collect only
writes them. TARGET may be gs:// or s3://, but on SLURM. The last line of a failed run's
log is printed at the end. Exit code: 0, 1 where runs failed, 75 where the sweep was
stopped.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
from concurrent import futures

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from launch import compile_cache, jobset  # noqa: E402
from launch.sweep_runs import (  # noqa: E402
    STOPPED,
    Run,
    check_split,
    claim,
    collect,
    fetch,
    plan,
    send,
)
from pacx_jax import cli  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402
from pacx_jax.run import clone  # noqa: E402
from pacx_jax.stores import staging, urls  # noqa: E402

PROGRAM = (sys.executable, "-m", "pacx_jax.main")


class Local:
    """Runs as processes of this machine, some at a time, until all are done or failed.

    Attributes:
      running: each run's process.
      stopping: set once TERM or INT came: no run starts any more.
    """

    def __init__(self, state: pathlib.Path, flags: argparse.Namespace):
        self.state, self.flags = state, flags
        self.logs = state.parent / "logs"
        self.logs.mkdir(exist_ok=True)
        self.running: dict[str, subprocess.Popen] = {}
        self.stopping = threading.Event()
        self.slots = list(range(flags.jobs))  # popping and appending are atomic

    def run(self, runs: list[Run]) -> int:
        """Exit code: 0, 1 where some failed, 75 where the sweep was stopped."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {n: signal.signal(n, self._stop) for n in numbers}
        try:
            with futures.ThreadPoolExecutor(self.flags.jobs) as pool:
                codes = list(pool.map(self._work, runs))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return STOPPED if self.stopping.is_set() else int(any(codes))

    def _stop(self, *_) -> None:
        self.stopping.set()
        for process in list(self.running.values()):
            process.terminate()

    def _work(self, run: Run) -> int:
        """Trains and measures one run, whatever of it is left to do."""
        slot, code = self.slots.pop(), 0
        with (self.logs / f"{run.name}.log").open("a") as log:
            while code == 0 and (arguments := run.todo()):
                if self.stopping.is_set():
                    code = STOPPED
                    break
                process = self.running[run.name] = subprocess.Popen(
                    [*PROGRAM, *arguments],
                    env=self._environment(slot),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C comes by _stop, once
                )
                if self.stopping.is_set():  # meanwhile: _stop may have missed it
                    process.terminate()
                code = process.wait()
                if code == -signal.SIGTERM and self.stopping.is_set():
                    code = STOPPED  # before it could answer
                if code == 0 and run.todo() == arguments:
                    code = 1  # it said that it was done, and left nothing
        self.running.pop(run.name, None)
        self.slots.append(slot)
        (self.state / f"{run.name}.exit").write_text(f"{code}\n", encoding="utf-8")
        said = "finished" if code == 0 else f"exit code {code}"
        print(f"{run.name}: {said}", flush=True)
        return code

    def _environment(self, slot: int) -> dict[str, str]:
        given = os.environ | {compile_cache.NAME: compile_cache.folder()}
        count = self.flags.gpus_per_job
        if not count:
            return given
        mine = range(slot * count, (slot + 1) * count)
        return given | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}


def submit_array(runs: list[Run], state: pathlib.Path, flags) -> int:
    """Hands all runs to SLURM as one array of launch/slurm.sbatch."""
    command = ["sbatch", "--parsable", f"--array=0-{len(runs) - 1}%{flags.jobs}"]
    command += [*flags.sbatch, "launch/slurm.sbatch", f"--sweep={state.resolve()}"]
    if flags.dry_run:
        print(shlex.join(command))
        return 0
    record = state / "slurm_job.txt"
    if record.exists():  # two arrays would share workdirs
        job = record.read_text().strip()
        if _slurm(["squeue", "--noheader", f"--jobs={job}"], missing_is_none=True):
            raise PacxError(
                f"SLURM job {job} of this sweep waits or runs: wait, or scancel {job}"
            )
    names = "".join(f"{run.name}\n" for run in runs)
    (state / "array.txt").write_text(names, encoding="utf-8")
    for run in runs:
        arguments = "".join(f"{a}\n" for a in run.todo())
        (state / f"{run.name}.todo").write_text(arguments, encoding="utf-8")
        (state / f"{run.name}.exit").unlink(missing_ok=True)
    job = _slurm(command).split(";")[0]
    record.write_text(f"{job}\n", encoding="utf-8")
    print(f"SLURM job {job}: {len(runs)} runs, {flags.jobs} at a time")
    return 0


def _slurm(command: list[str], missing_is_none: bool = False) -> str:
    """What a SLURM command printed; squeue fails for a job that is long gone."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise PacxError(f"{command[0]} is not on PATH: run on the cluster") from None
    gone = missing_is_none and "Invalid job id" in done.stderr
    if done.returncode and not gone:
        raise PacxError(f"{command[0]} refused the sweep: {done.stderr.strip()}")
    return done.stdout.strip()


def create_jobsets(runs: list[Run], flags, target: str) -> int:
    """One JobSet a run; Kueue, where the cluster has it, queues them."""
    documents = []
    sweep = re.sub(r"[^a-z0-9]+", "-", pathlib.Path(target).name.lower())
    for run in runs:
        arguments = list(run.todo())
        what = "evaluate" if any(a.startswith("--evaluate=") for a in arguments) else ""
        name = re.sub(r"[^a-z0-9]+", "-", f"{sweep}-{run.name}-{what}".lower()).strip(
            "-"
        )
        documents.append(jobset.manifest(flags, name, arguments))
    for i, document in enumerate(documents):
        if flags.dry_run and i:
            print("---")
        jobset.create(document, dry_run=flags.dry_run)
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of where runs run; a study has them too."""
    add = parser.add_argument
    add("--on", choices=("local", "slurm", "jobset"), default="local")
    add("--jobs", type=int, default=1, help="runs at a time, here or on SLURM")
    add("--gpus_per_job", type=int, default=0, help="here: GPUs of each job")
    add("--sbatch", action="append", default=[], help="an option of sbatch, repeatable")
    add("--dry-run", action="store_true", help="print what would run")
    jobset.add_flags(parser)


@cli.command
def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__, remote=("target",))
    add = parser.add_argument
    add("--config", required=True, help="the recipe")
    add("--target", required=True, help="folder of the sweep")
    add("--arms", help="JSON file of named sets of config fields")
    add("--grid", action="append", default=[], help="FIELD=VALUE;VALUE, repeatable")
    add("--evaluate", default="", help="also measure finished runs on this split")
    add("--metrics", default="", help="columns of results.md, such as val/loss")
    add("--collect", action="store_true", help="write the table, run nothing")
    add_flags(parser)
    flags, common = parser.parse_known_args(argv)
    wrong = [a for a in common if not a.startswith("--config.")]
    if wrong:
        raise PacxError(f"unknown argument {wrong[0]!r}: see --help")
    clone.recipe(flags.config)  # refuses one that is not there
    for name, least in (("jobs", 1), ("gpus_per_job", 0), ("hosts", 1)):
        if getattr(flags, name) < least:
            raise PacxError(f"--{name}={getattr(flags, name)}: give at least {least}")
    runs, target = plan(flags, common), pathlib.Path(flags.target)
    if remote := urls.is_remote(flags.target):
        if flags.on == "slurm":
            raise PacxError(
                f"--target={flags.target}: on SLURM give a folder that all nodes see"
            )
        target = staging.copy_of(flags.target, staging.scratch() / "sweeps")
        fetch(flags.target, target)
    if flags.evaluate:
        check_split(runs)
    columns = [m for m in flags.metrics.split(",") if m]
    code = 0
    open_runs = [run for run in runs if run.todo()]
    if not flags.collect:
        print(f"{len(runs)} runs, {len(runs) - len(open_runs)} of them finished")
        code = start(open_runs, target / "sweep", flags, runs, flags.target)
        if flags.dry_run:
            return 0
    rows = collect(runs, target, columns)
    if remote:
        send(target, flags.target)
    print((target / "results.md").read_text(), end="")
    for row in rows:
        if row["state"].startswith("failed"):
            print(f"failed: {row['run']}: {row['error']}", file=sys.stderr)
    return code


def start(open_runs, state: pathlib.Path, flags, runs, target: str) -> int:
    """Runs, or submits, what is left of runs.

    Args:
      state: folder of what is known of each run.
      target: the folder that the user named, after which jobs are called.

    Returns:
      An exit code.
    """
    if flags.dry_run and flags.on == "local":
        for run in open_runs:
            print(shlex.join([*PROGRAM, *run.todo()]))
        return 0
    if not flags.dry_run:
        claim(runs, state)
    if not open_runs:
        return 0
    if flags.on == "slurm":
        return submit_array(open_runs, state, flags)
    if flags.on == "jobset":
        return create_jobsets(open_runs, flags, target)
    return Local(state, flags).run(open_runs)


if __name__ == "__main__":
    sys.exit(main())
