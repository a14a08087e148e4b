"""Writes the simulated cohort: images, ECGs, laboratory values, labels.

    python data/cohort/generate.py --target=DIR --seed=0 --pretrain=6000 \
        --symile=2500 --ecg=2000 --probe_train=3000 --probe_val=1000 \
        --probe_test=2000 --workers=2 --masks=500

Sizes count studies; 0 leaves a folder out. A finished folder is kept on a rerun with
the same parameters and refused with others. README describes model and files.
"""

import argparse
import pathlib
import re
import sys

if not __package__:  # run as a script: the package is two folders up
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from data.cohort import layouts, mimic, symile, write  # noqa: E402

_MIN_SYMILE = 100  # rare tests must occur in the training split


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses and checks the command line.

    Raises:
        write.CohortError: on sizes that cannot be met.
    """
    parser = _Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--target", type=pathlib.Path, required=True, help="folder to write")
    add("--seed", type=int, default=0)
    add("--pretrain", type=int, default=6000, help="studies in chexpert/train")
    add("--pretrain_valid", type=int, help="in chexpert/valid (default 2 %%, >= 20)")
    add("--symile", type=int, default=2500, help="admissions in symile_mimic train")
    add("--symile_val", type=int, help="in val (default 10 %% of train)")
    add("--symile_test", type=int, help="test queries (default 5 %% of train)")
    add("--symile_size", type=int, default=320, help="side of cxr_*.npy in pixels")
    add("--ecg", type=int, default=2000, help="records in ecg/ (a tenth validates)")
    add("--probe_train", type=int, default=3000)
    add("--probe_val", type=int, default=1000)
    add("--probe_test", type=int, default=2000)
    add(
        "--masks",
        type=int,
        default=0,
        help="lung and heart masks in probe/; -1 for all",
    )
    add("--mimic", type=int, default=0, help="studies in mimic_cxr/, split train")
    add("--mimic_valid", type=int, help="in validate (default 5 %%, >= 8)")
    add("--mimic_test", type=int, help="in test (default 5 %%, >= 8)")
    add("--views_train", type=int, default=0, help="studies in views_probe/")
    add("--views_val", type=int, default=0)
    add("--views_test", type=int, default=0)
    add("--film_size", type=int, default=320, help="shorter side of films in these two")
    add("--workers", type=int, default=1, help="processes; does not change a byte")
    args = parser.parse_args(argv)
    if args.pretrain_valid is None:
        args.pretrain_valid = max(20, args.pretrain // 50) if args.pretrain else 0
    if args.symile_val is None:
        args.symile_val = max(symile.CANDIDATES, args.symile // 10)
    if args.symile_test is None:
        args.symile_test = max(symile.CANDIDATES, args.symile // 20)
    for name in ("mimic_valid", "mimic_test"):
        if getattr(args, name) is None:
            setattr(args, name, max(8, args.mimic // 20) if args.mimic else 0)
    _check(args)
    return args


def _check(args) -> None:
    for name, value in vars(args).items():
        low = {"target": None, "masks": -1, "workers": 1, "symile_size": 16}
        low = (low | {"film_size": 64}).get(name, 0)
        if low is not None and value < low:
            raise write.CohortError(f"--{name} is {value}, must be at least {low}")
    if 0 < args.symile < _MIN_SYMILE:
        raise write.CohortError(
            f"--symile is {args.symile}, must be 0 or at least {_MIN_SYMILE}: the"
            " percentiles of rare laboratory tests are fitted on it"
        )
    if args.symile:
        for name in ("symile_val", "symile_test"):
            if getattr(args, name) < symile.CANDIDATES:
                raise write.CohortError(
                    f"--{name} is {getattr(args, name)}, must be at least"
                    f" {symile.CANDIDATES}: a query has as many candidates"
                )
    probe = args.probe_train + args.probe_val + args.probe_test
    if probe and not args.symile:
        raise write.CohortError(
            "probe/ needs --symile > 0: its laboratory percentiles are fitted there"
        )
    if args.masks > probe:
        raise write.CohortError(f"--masks is {args.masks}, but probe/ has {probe}")
    if re.match(r"\w+:/", str(args.target)):
        raise write.CohortError(f"--target {args.target}: give a local folder")
    if args.target.exists() and not args.target.is_dir():
        raise write.CohortError(f"--target {args.target} is not a folder")


def _jobs(args) -> dict:
    """Folder name: (function that writes it, parameters that decide its content)."""
    base = {"seed": args.seed, "version": write.VERSION}
    jobs = {}
    if args.pretrain:
        jobs["chexpert"] = (
            layouts.write_chexpert,
            base
            | {
                "train": args.pretrain,
                "valid": args.pretrain_valid,
            },
        )
    if args.symile:
        jobs["symile_mimic"] = (
            symile.write_symile,
            base
            | {
                "train": args.symile,
                "val": args.symile_val,
                "test": args.symile_test,
                "image_size": args.symile_size,
            },
        )
    if args.ecg:
        held_out = args.ecg // 10
        jobs["ecg"] = (
            layouts.write_ecg,
            base
            | {
                "train": args.ecg - held_out,
                "val": held_out,
            },
        )
    if args.probe_train + args.probe_val + args.probe_test:
        jobs["probe"] = (
            layouts.write_probe,
            base
            | {
                "train": args.probe_train,
                "val": args.probe_val,
                "test": args.probe_test,
                "masks": args.masks,
                "percentiles_on": args.symile,
            },
        )
    return jobs | _jobs_of_views(args, base)


def _jobs_of_views(args, base) -> dict:
    """The folders of studies with laterals, like `_jobs`."""
    jobs = {}
    if args.mimic:
        sizes = (args.mimic, args.mimic_valid, args.mimic_test)
        own = dict(zip(mimic.SPLITS, sizes, strict=True))
        own["film_size"] = args.film_size
        jobs["mimic_cxr"] = (mimic.write_mimic, base | own)
    if args.views_train + args.views_val + args.views_test:
        own = {
            "train": args.views_train,
            "val": args.views_val,
            "test": args.views_test,
            "film_size": args.film_size,
        }
        jobs["views_probe"] = (layouts.write_views, base | own)
    return jobs


def generate(args: argparse.Namespace) -> None:
    """Writes every folder that is not there yet, then cohort.json."""
    jobs = _jobs(args)
    folders = {}
    # Every refusal comes before the first image is drawn.
    for name, (_, parameters) in jobs.items():
        folders[name] = write.finished(args.target / name, parameters)
    summary = {"version": write.VERSION, "seed": args.seed, "layouts": {}}
    with write.pool(args.workers) as run:
        for name, (job, parameters) in jobs.items():
            realised = folders[name]
            if realised is None:
                realised = job(args.target / name, parameters, run)
            else:
                print(f"{args.target / name} is complete", file=sys.stderr)
            summary["layouts"][name] = {"parameters": parameters, "realised": realised}
    args.target.mkdir(parents=True, exist_ok=True)
    write.write_json(args.target / "cohort.json", summary)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        generate(parse(argv))
    except (write.CohortError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; finished folders are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
