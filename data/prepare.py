"""Prepares a data set for training: ArrayRecord files, images shrunk once.

  python data/prepare.py NAME --source=DIR --target=DIR [--size=256] [--workers=N]
      [--splits=strict|reference] [--store=encoded|raw] [--allow_missing]

data/README.md describes what each NAME expects in --source. A finished target is left
alone; one whose preparation was cut off is made anew. What cannot be read is left out
and listed in `quarantine.jsonl`; beyond --max_bad_share of a split it stops, and the
list is TARGET.quarantine.jsonl. The last line printed is JSON; where counts differ from
the published ones, lines before it say so. Bad input is one line on stderr and exit
code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As a script, this file's folder comes first, where data/wfdb would hide the package.
sys.path[:] = [p for p in sys.path if pathlib.Path(p).resolve() != ROOT / "data"]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from data import published, records, splits  # noqa: E402
from pacx_jax import disk  # noqa: E402
from pacx_jax.input import sources  # noqa: E402
from pacx_jax.types import PacxError  # noqa: E402

NAMES = (
    "chexpert",
    "symile_mimic",
    "tb",
    "vindr_cxr",
    "nih14",
    "chestx6",
    "chexchonet",
    "covid_qu_ex",
    "covidx",
    "kermany",
    "folder",
    "ecg_array",
    "mimic_labs",
    "wfdb",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}; see --help\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags; those of folders stand under their config names."""
    parser = _Parser(
        prog="data/prepare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", choices=NAMES)
    add("--source", required=True, help="folder of the data set as published")
    add("--target", required=True, help="folder to write; it must not exist yet")
    add("--size", type=int, default=256, help="shorter side in pixels; 0 = as it is")
    add(
        "--store",
        choices=("encoded", "raw"),
        default="encoded",
        help="images as JPEG and PNG, or as pixels: larger, faster to read",
    )
    add("--workers", type=int, default=0, help="threads; 0 = one for each core")
    add(
        "--max_bad_share",
        type=float,
        default=0.01,
        help="unreadable samples above this share of a split stop it",
    )
    add("--splits", choices=splits.POLICIES, default="strict")
    add("--allow_missing", action="store_true", help="leave out listed, absent images")
    add("--task", default="", help="chexchonet: composite (default) or echo")
    add("--lead_order", choices=("standard", "mimic"), default="standard")
    add("--csv", default="", help="folder, ecg_array, wfdb: CSV of labels, patients")
    add("--label_columns", default="", help="comma-separated; default: all")
    add("--label_separator", default="|")
    add("--patient_column", default="", help="'-' = split by file")
    add("--path_column", default="")
    add("--split_column", default="", help="'-' = do not use the CSV's split")
    add("--val_fraction", type=float, default=0.1)
    add("--test_fraction", type=float, default=0.0)
    add("--windows", choices=("first", "all"), default="first", help="wfdb: 10 s each")
    add("--split_seed", type=int, default=0, help="mimic_labs: draws patients anew")
    add("--units", choices=("match", "any"), default="match", help="mimic_labs")
    add("--percentiles", default="", help="mimic_labs: those of this set, not train's")
    return parser.parse_args(argv)


def prepare(options: argparse.Namespace) -> dict:
    """Writes the target unless it is there already.

    Returns:
      The summary: `target`, `status` ("prepared" or "unchanged"), `fingerprint`,
      `counts` {split: n}, `positives` {split: {label: n}}, `unreadable` {split: n},
      `published` counts, `differences` from them, `notes`, and a `report` of what
      else the builder counted.

    Raises:
      PacxError: bad input, or a target that holds something else.
    """
    target = pathlib.Path(options.target)
    if options.size < 0:
        raise PacxError(f"--size {options.size}: give pixels, or 0 for no shrinking")
    if options.workers < 0:
        raise PacxError(
            f"--workers {options.workers}: give how many threads, or 0 for one a core"
        )
    if not 0 <= options.max_bad_share <= 1:
        raise PacxError(
            f"--max_bad_share {options.max_bad_share:g}: give a number in [0, 1]"
        )
    finished = _finished(target, options)
    module = importlib.import_module(
        f"data.{options.name}.{options.name}_dataset_builder"
    )
    tasks = tuple(getattr(module, "TASKS", ()))
    if options.task and options.task not in tasks:
        known = f"give one of {', '.join(tasks)}" if tasks else "it has none to choose"
        raise PacxError(f"--task {options.task}: {options.name}: {known}")
    try:
        plan = module.make_plan(pathlib.Path(options.source), options)
    except PacxError:
        # A source may go when its preparation is done.
        if finished and not pathlib.Path(options.source).is_dir():
            return finished["summary"] | {"status": "unchanged"}
        raise
    if finished:
        if finished["source_fingerprint"] != plan.fingerprint:
            raise PacxError(
                f"{target}: was prepared when {options.source} had other contents; "
                "delete it or choose another --target"
            )
        return finished["summary"] | {"status": "unchanged"}
    plan = plan.complete() if plan.complete else plan
    if options.store == "raw":
        plan = records.with_raw_images(plan)
    return _write(module.Builder, plan, target, options)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _settings(options: argparse.Namespace) -> dict:
    """What decides the target's contents, apart from the source's."""
    ignored = {"source", "target", "workers", "max_bad_share", "percentiles"}
    return {k: v for k, v in sorted(vars(options).items()) if k not in ignored}


def _finished(target: pathlib.Path, options: argparse.Namespace) -> dict | None:
    """The manifest of a finished target; None when there is nothing yet."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    try:
        manifest = json.loads((target / sources.MANIFEST).read_text())
    except (OSError, ValueError):
        raise PacxError(
            f"{target}: exists and is not a prepared data set; choose another --target"
        ) from None
    settings = _settings(options)
    # Options that came later had their defaults.
    made = _settings(parse([options.name, "--source=", "--target="]))
    made |= manifest["settings"]
    if made != settings:
        different = sorted(key for key in made if made[key] != settings.get(key))
        raise PacxError(
            f"{target}: was prepared with other settings ({', '.join(different)}); "
            "delete it or choose another --target"
        )
    return manifest


def _write(
    builder_class: type[records.RecordBuilder],
    plan: records.Plan,
    target: pathlib.Path,
    options: argparse.Namespace,
) -> dict:
    # All is written beside the target and renamed at the end, so that a target is
    # either whole or not there.
    work = target.resolve().with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise PacxError(f"{target}: cannot be written ({error.strerror})") from None
    workers = options.workers or cores()
    builder = builder_class(
        plan=plan,
        workers=workers,
        max_bad_share=options.max_bad_share,
        data_dir=str(work),
    )
    records.tfds.disable_progress_bar()
    # A target that is not made has no folder for the list: it stands beside.
    beside = target.with_name(f"{target.name}.quarantine.jsonl")
    beside.unlink(missing_ok=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells of downloads
            builder.download_and_prepare()
    except Exception as error:
        shutil.rmtree(work, ignore_errors=True)
        if not isinstance(error, PacxError):  # TFDS raises RuntimeError of a full disk
            if disk.is_full(error):
                raise PacxError(disk.told(target)) from None
            raise
        if not builder.unreadable:
            raise
        _list_unreadable(beside, builder.unreadable)
        raise PacxError(f"{error}; all so far are listed in {beside}") from None
    built = pathlib.Path(str(builder.data_path))
    if plan.raw_images:
        records.uncompress(built)
    _list_unreadable(built / "quarantine.jsonl", builder.unreadable)
    unreadable = {
        split: sum(bad["split"] == split for bad in builder.unreadable)
        for split in builder.counts
    }
    fingerprint = _fingerprint(builder.content, plan)
    summary = {
        "target": str(target),
        "status": "prepared",
        "fingerprint": fingerprint,
        "counts": builder.counts,
        "positives": builder.positives,
        "unreadable": unreadable,
        "published": plan.published,
        "differences": published.differences(
            plan.published, builder.counts, builder.positives
        ),
        "notes": list(plan.notes),
        "report": dict(plan.report),
    }
    manifest = {
        "name": options.name,
        "settings": _settings(options),
        "source_fingerprint": plan.fingerprint,
        "fingerprint": fingerprint,
        "splits": builder.counts,
        "files": {p.name: p.stat().st_size for p in built.glob("*.array_record*")},
        "entries": plan.entries,
        "label_names": plan.label_names,
        "ecg_scale": plan.ecg_scale,
        "lead_order": plan.lead_order,
        "summary": summary,
    }
    for name, data in plan.files.items():
        (built / name).write_bytes(data)
    text = json.dumps(manifest, indent=1)
    (built / sources.MANIFEST).write_text(text + "\n")
    if target.exists():
        target.rmdir()  # it is empty
    built.rename(target)
    shutil.rmtree(work, ignore_errors=True)
    return summary


def _list_unreadable(path: pathlib.Path, unreadable: list[dict]) -> None:
    path.write_text("".join(json.dumps(bad) + "\n" for bad in unreadable))


def _fingerprint(content: str, plan: records.Plan) -> str:
    parts = (content, plan.label_names, plan.ecg_scale, plan.lead_order)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _print(summary: dict) -> None:
    done = "prepared" if summary["status"] == "prepared" else "already prepared"
    print(f"{summary['target']}: {done}")
    for split, count in summary["counts"].items():
        labels = ", ".join(f"{k} {n}" for k, n in summary["positives"][split].items())
        bad = summary["unreadable"][split]
        left_out = f", {bad} unreadable left out (quarantine.jsonl)" if bad else ""
        print(f"  {split}: {count} examples{left_out}" + (labels and f"; {labels}"))
    for line in published.told(summary):
        print(line)
    print(json.dumps(summary))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    try:
        _print(prepare(parse(argv)))
    except PacxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not disk.is_full(error):
            raise
        print(f"error: {disk.told(error.filename or 'the target')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
