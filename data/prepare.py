"""Prepares a data set for training: ArrayRecord files, images shrunk once.

  python data/prepare.py NAME --source=DIR --target=DIR [--size=256] [--workers=N]
      [--splits=strict|reference] [--store=encoded|raw] [--allow_missing]
  python data/prepare.py --check --target=DIR

data/README.md describes what each NAME expects in --source. A finished target is left
alone; of one whose preparation was cut off the finished shards are kept, in
.TARGET.partial beside it, and the same command goes on from there. A target in a bucket
(gs:// or s3://) is prepared under PACX_SCRATCH and then sent; a source there, or
another folder that is read, is copied to PACX_SCRATCH first. What cannot be read
is left out and listed in `quarantine.jsonl`; beyond --max_bad_share of a split it
stops, and the list is TARGET.quarantine.jsonl. The last line printed is JSON; where
counts differ from the published ones, lines before it say so. Bad input is one line on
stderr and exit code 2.

--check reads all of a prepared set: the sums of its files, every record and image, and
the counts. A line on stderr for each problem, JSON on the last line, exit code 2 if
there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import pathlib
import shutil
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As a script, this file's folder comes first, where data/wfdb would hide the package.
sys.path[:] = [p for p in sys.path if pathlib.Path(p).resolve() != ROOT / "data"]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from data import (  # noqa: E402
    check,
    finish,
    flags,
    journal,
    parallel,
    published,
    records,
    shards,
    upload,
)
from pacx_jax import cli, files  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402
from pacx_jax.input import prepared as manifests  # noqa: E402
from pacx_jax.stores import staging, urls  # noqa: E402


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    return flags.parse(argv, __doc__)


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
    flags.check(options)
    for flag in ("source", "target"):
        if not getattr(options, flag):  # which would be the working directory
            raise PacxError(f"--{flag} is empty: name a folder")
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
    if not urls.is_remote(options.target):
        target = pathlib.Path(options.target)
        return _make(options, target, _finished(target, options))
    url = options.target.rstrip("/")
    target = upload.folder(url)
    with contextlib.ExitStack() as stack:
        found = upload.finished(url)
        if not found:
            lock = stack.enter_context(upload.held(url))
            found = upload.finished(url)  # by another, meanwhile
        if not found:
            made = _make(options, target, _finished(target, options))
            upload.send(url, target, lock)
            return made | {"status": "prepared"}
    shutil.rmtree(target, ignore_errors=True)
    return _make(options, target, _of_settings(found, url, options), url)


def _make(
    options: argparse.Namespace,
    target: pathlib.Path,
    finished: dict | None,
    shown: str = "",
) -> dict:
    """Writes a local target, unless it is `finished`, which `shown` names."""
    # All is written beside the target and renamed at the end, so that a target is
    # either whole or not there.
    work = target.resolve().with_name(f".{target.name}.partial")
    if finished:  # a process may have been killed when that was done
        shutil.rmtree(work, ignore_errors=True)
    module = importlib.import_module(
        f"data.{options.name}.{options.name}_dataset_builder"
    )
    tasks = tuple(getattr(module, "TASKS", ()))
    if options.task and options.task not in tasks:
        raise PacxError(
            f"--task {options.task}: {options.name}: give one of {', '.join(tasks)}"
        )
    try:
        given = {k: v for k in flags.FOLDERS if (v := getattr(options, k))}
        near = {k: str(staging.local(v)) for k, v in given.items()}
        options_here = argparse.Namespace(**vars(options) | near)
        plan = module.make_plan(pathlib.Path(options_here.source), options_here)
    except PacxError:
        # A source may go when its preparation is done.
        if finished and not pathlib.Path(options.source).is_dir():
            return finished["summary"] | {"status": "unchanged"}
        raise
    if finished:
        if finished["source_fingerprint"] != plan.fingerprint:
            lacks = [e for e in plan.entries if e not in finished["entries"]]
            when = f"when {options.source} had other contents"
            if lacks:  # a set of an earlier version
                when = f"without {', '.join(lacks)}, which are read now"
            raise PacxError(
                f"{shown or target}: was prepared {when}; delete it or choose another "
                "--target"
            )
        return finished["summary"] | {"status": "unchanged"}
    plan = plan.complete() if plan.complete else plan
    source = pathlib.Path(options_here.source).resolve()
    drawn = [(p / published.SIMULATED).is_file() for p in (source, source.parent)]
    plan = dataclasses.replace(plan, simulated=any(drawn))
    if options.store == "raw":
        plan = records.with_raw_images(plan)
    records.tfds.disable_progress_bar()
    builder = module.Builder(plan=plan, data_dir=str(work))
    return _prepare(builder, work, target, options)


def _settings(options: argparse.Namespace) -> dict:
    """What decides the target's contents, apart from the source's."""
    ignored = {"source", "target", "check", "given", "workers", "max_bad_share"}
    # Folders: their contents count.
    ignored |= {"percentiles", "images", "reports", "symile", "vitals"}
    return {k: v for k, v in sorted(vars(options).items()) if k not in ignored}


def _finished(target: pathlib.Path, options: argparse.Namespace) -> dict | None:
    """The manifest of a finished target; None when there is nothing yet."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / manifests.FILE).is_file():
        raise PacxError(
            f"{target}: exists and is not a prepared data set; choose another --target"
        )
    return _of_settings(manifests.read(target), target, options)


def _of_settings(manifest: dict, target, options: argparse.Namespace) -> dict:
    """The manifest; PacxError if the target was prepared with other settings."""
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


def _prepare(
    builder: records.RecordBuilder,
    work: pathlib.Path,
    target: pathlib.Path,
    options: argparse.Namespace,
) -> dict:
    """Writes the target, going on from what an earlier call finished of it."""
    # A target that is not made has no folder for the list: it stands beside.
    beside = target.with_name(f"{target.name}.quarantine.jsonl")
    workers = options.workers or parallel.cores()
    taken = f"{target}: another process is preparing it; wait for that to end"
    preparation = None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(work / journal.LOCK, taken))
        except OSError as error:
            raise PacxError(f"{target}: cannot be written ({error.strerror})") from None
        try:
            finished = _finished(target, options)  # by another process, meanwhile
            if finished:
                shutil.rmtree(work, ignore_errors=True)
                return finished["summary"] | {"status": "unchanged"}
            preparation = shards.Preparation(builder, work, _settings(options))
            start = time.monotonic()
            preparation.write(workers, options.max_bad_share)
            seconds = time.monotonic() - start
            shown = options.target
            shown = shown.rstrip("/") if urls.is_remote(shown) else str(target)
            settings = _settings(options)
            what = (options.name, builder.description, settings)
            summary = finish.finish(preparation, builder.plan, target, shown, *what)
            beside.unlink(missing_ok=True)
            shutil.rmtree(work, ignore_errors=True)
        except BaseException as error:
            kept = _kept(preparation, work)
            if isinstance(error, KeyboardInterrupt):
                raise PacxError(f"{target}: interrupted{kept}") from None
            if files.is_full(error):
                raise PacxError(f"{files.full_disk(target)}{kept}") from None
            if not isinstance(error, PacxError) or not preparation:
                raise
            if preparation.unreadable:
                finish.list_unreadable(beside, preparation.unreadable)
                kept = f"; all so far are listed in {beside}{kept}"
            raise PacxError(f"{error}{kept}") from None
    made = {
        "examples": preparation.made,
        "seconds": round(seconds, 2),
        "examples_per_second": round(preparation.made / seconds, 1),
        "workers": workers,
    }
    return summary | {"made": made}


def _kept(preparation: shards.Preparation | None, work: pathlib.Path) -> str:
    """What to say of the finished shards; without any, `work` goes."""
    if preparation is None and (work / journal.JOURNAL).exists():
        return ""  # that of other settings
    if preparation is None or not preparation.kept():
        shutil.rmtree(work, ignore_errors=True)
        return ""
    preparation.tidy()
    return (
        f"; {preparation.kept()} examples are kept in {work}, and the same command "
        "goes on from there"
    )


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
    if made := summary.get("made"):
        print(
            f"  made {made['examples']} in {made['seconds']} s, --workers="
            f"{made['workers']}: {made['examples_per_second']} examples/s"
        )
    print(json.dumps(summary))


def _check(options: argparse.Namespace) -> int:
    workers = options.workers or parallel.cores()
    target = staging.local(options.target)
    with staging.named(target, options.target):
        return _say_checked(check.check(target, workers, options.name or ""))


def _say_checked(found: dict) -> int:
    for problem in found["problems"]:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{found['target']}: {found['status']}, {found['files']} files")
    for split, count in (found["counts"] or {}).items():
        print(f"  {split}: {count} examples")
    print(json.dumps(found))
    return 2 if found["problems"] else 0


@cli.command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse(argv)
    if options.check:
        return _check(options)
    _print(prepare(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
