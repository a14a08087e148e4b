"""Trains the arms of a study by several seeds, and says what the differences are worth.

  python launch/study.py configs/studies/pacx_cohort.py --target=runs/pacx_study \\
      --data=runs/demo/data/prepared --seeds=5 --jobs=2
  python launch/study.py ... --on=slurm --sbatch=--partition=gpu
  python launch/study.py ... --arms=mae,pacx --compare

Each arm is trained once a seed, with others' runs of that seed as its start where it
says so; probes then compare the encoders. The same command goes on: finished runs are
skipped, others resume, and on SLURM or GKE each call submits what can be trained next.
--compare only writes the tables, of the seeds that all arms have.

Arguments that are not listed by --help are every run's. TARGET/comparison.json holds
every number with the fingerprints of data and encoders, comparison.txt the tables,
values.csv the AUROC of each training, label subset and label, and results.json a row a
run.
Exit code: 0, 1 where runs failed, 75 where the study was stopped.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from launch import studies, sweep  # noqa: E402
from launch.sweep_runs import Run, collect  # noqa: E402
from pacx_jax import cli  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402


def plan(study: studies.Study, target: str, seeds: range, common: list[str]):
    """Every level's runs: each arm with each seed.

    Returns:
      list of lists of `sweep_runs.Run`.
    """
    levels = []
    for arms in study.levels():
        runs = []
        for arm in arms:
            about = study.arms[arm]
            if about.given:
                continue
            for seed in seeds[:1] if about.once else seeds:
                workdir = study.folder(target, arm, seed)
                starts = {
                    field: study.folder(target, start, seed)
                    for field, start in about.starts.items()
                }
                fields = {**about.fields, **starts, "seed": seed}
                arguments = (
                    f"--config={about.recipe}",
                    f"--workdir={workdir}",
                    *common,
                    *(f"--config.{k}={v}" for k, v in fields.items()),
                )
                shown = {"arm": arm, "seed": str(seed)}
                name = workdir.removeprefix(f"{target}/")
                runs.append(Run(name, shown, arguments, workdir, ""))
        if runs:  # a level may have encoders alone that are given
            levels.append(runs)
    return levels


def chosen(study: studies.Study, arms: str) -> studies.Study:
    """The study of some arms alone, and of those that they start from."""
    if not arms:
        return study
    wanted = [a for a in arms.split(",") if a]
    if unknown := [a for a in wanted if a not in study.arms]:
        raise PacxError(f"--arms={unknown[0]}: choose of {', '.join(study.arms)}")
    for arm in wanted:
        wanted += sorted(study.arms[arm].after() - {*wanted})
    there = {*wanted, *study.floors}
    missing = [a for a in (study.treatment, study.baseline) if a not in there]
    if missing:
        raise PacxError(f"--arms={arms}: {missing[0]} is what the study is about")
    return dataclasses.replace(
        study,
        arms={a: x for a, x in study.arms.items() if a in wanted},
        pairs=[pair for pair in study.pairs if set(pair) <= there],
    )


def check_needs(study: studies.Study, dry_run: bool, seeds) -> None:
    """PacxError where a file or folder is missing that an arm takes."""
    for name, arm in study.arms.items():
        for seed in seeds if arm.given and not arm.after() else ():
            folder = study.folder("", name, seed)
            there = "://" in folder or pathlib.Path(folder).exists()
            if not dry_run and not there:
                raise PacxError(f"{folder}, the arm {name!r}: no such folder")
    needed = {k: v for arm in study.arms.values() for k, v in arm.needs.items()}
    for file, command in needed.items():
        if not dry_run and not pathlib.Path(file).is_file():
            raise PacxError(f"{file}: no such file; make it by: {command}")
    table = study.probe.table
    if "person" in study.floors and not dry_run and not pathlib.Path(table).is_file():
        raise PacxError(
            f"{table}: no such file; the floor 'person' takes a table of path, age and "
            "sex: the study's docstring has where it is from"
        )


@cli.command
def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("study", help="a file of configs/studies")
    add("--data", required=True, help="folder of the prepared sets")
    add("--target", required=True, help="folder of the study")
    add("--seeds", type=int, default=5, help="training seeds of each arm")
    add("--first_seed", type=int, default=1)
    add("--arms", default="", help="some arms, a,b, and what they start from")
    add("--split", default="test", choices=("val", "test"), help="probed patients")
    add("--compare", action="store_true", help="write the tables, train nothing")
    sweep.add_flags(parser)
    flags, common = parser.parse_known_args(argv)
    wrong = [a for a in common if not a.startswith("--config.")]
    if wrong:
        raise PacxError(f"unknown argument {wrong[0]!r}: see --help")
    for name, least in (("seeds", 1), ("jobs", 1), ("gpus_per_job", 0), ("hosts", 1)):
        if getattr(flags, name) < least:
            raise PacxError(f"--{name}={getattr(flags, name)}: give at least {least}")
    study = chosen(studies.read(flags.study, flags.data), flags.arms)
    seeds = range(flags.first_seed, flags.first_seed + flags.seeds)
    target = pathlib.Path(flags.target)
    levels = plan(study, flags.target.rstrip("/"), seeds, common)
    everything = [run for runs in levels for run in runs]
    if not flags.compare:
        check_needs(study, flags.dry_run, seeds)
        for runs in levels:
            left = [run for run in runs if run.todo()]
            print(f"{len(runs)} runs, {len(runs) - len(left)} of them finished")
            code = sweep.start(left, target / "sweep", flags, runs, flags.target)
            if code:
                collect(everything, target, [])
                return code
            if left and flags.on != "local" and not flags.dry_run:
                print("give the same command again when these have ended")
                return 0
        if flags.dry_run:
            return 0
    collect(everything, target, [])
    # JAX comes with it, which takes seconds.
    from launch import study_results

    print(study_results.write(study, target, seeds, flags.split))
    return 0


if __name__ == "__main__":
    sys.exit(main())
