"""Lists the runs under a folder: stage, step, the last evaluation, state.

  pacx runs DIR [--json]

finished  all steps are done and the encoder is exported
running   a process holds the workdir's lock
failed    the last process ended with an error, which is shown
stopped   anything else: the command that began it goes on with it
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import sys
from typing import Any

from pacx_jax import cli, files
from pacx_jax.errors import PacxError
from pacx_jax.run import fingerprints, metrics

COLUMNS = ("workdir", "stage", "step", "metric", "state")


def workdirs(root: pathlib.Path) -> list[pathlib.Path]:
    """Folders at or under `root` that hold a run's configuration, sorted."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        if _is_run(pathlib.Path(folder), names):
            found.append(pathlib.Path(folder))
            subfolders.clear()  # of a run's own
    return sorted(found)


def _is_run(folder: pathlib.Path, names: list[str]) -> bool:
    if fingerprints.FAILED in names:  # maybe before its config was recorded
        return True
    try:
        about = files.read_json(folder / fingerprints.CONFIG)
    except (OSError, ValueError):
        return False
    return "objective" in about


def describe(workdir: pathlib.Path) -> dict[str, Any]:
    """The row of a workdir: COLUMNS, and `error` of a failed run.

    `step` is a text such as "50/200"; `metric` is the last evaluation's that selects
    the best checkpoint, else its loss, "" before the first one.
    """
    failure, record = (workdir / f for f in (fingerprints.FAILED, fingerprints.CONFIG))
    about = files.read_own_json(record if record.is_file() else failure, "delete it")
    rows = []
    if (workdir / "metrics.jsonl").is_file():
        rows = metrics.read_rows(workdir)
    step = rows[-1]["step"] if rows else 0
    done = fingerprints.steps_done(str(workdir))
    row = {
        "workdir": str(workdir),
        "stage": about.get("name") or about.get("objective", "?"),
        "step": f"{max(step, done)}/{about.get('total_steps', '?')}",
        "metric": _metric(about, rows),
    }
    if _locked(workdir / "lock"):
        return row | {"state": "running"}
    if done and done == about.get("total_steps"):
        return row | {"state": "finished"}
    if failure.is_file():
        told = files.read_own_json(failure, "delete it").get("error", "")
        return row | {"state": "failed", "error": str(told)}
    return row | {"state": "stopped"}


def _metric(about: dict[str, Any], rows: list[dict]) -> str:
    evaluated = [r for r in rows if any(k.startswith("val/") for k in r)]
    if not evaluated:
        return ""
    name = about.get("best") or "val/loss"
    value = evaluated[-1].get(name)
    return f"{name} {'undefined' if value is None else f'{value:.4f}'}"


def _locked(path: pathlib.Path) -> bool:
    """Whether a process of this machine holds the lock."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(prog="pacx runs", description=__doc__)
    parser.add_argument("folder", nargs="?", default="runs", help="default: runs")
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args(argv)
    root = pathlib.Path(args.folder)
    if not root.is_dir():
        raise PacxError(f"{root}: no such folder; name the one that holds your runs")
    rows = []
    for workdir in workdirs(root):
        try:
            rows.append(describe(workdir))
        except PacxError as e:
            row = dict.fromkeys(COLUMNS, "") | {"workdir": str(workdir)}
            rows.append(row | {"state": "failed", "error": str(e)})
    if not rows:
        raise PacxError(f"{root}: no run's workdir in it, nor in its sub-folders")
    if args.json:
        print(*map(json.dumps, rows), sep="\n")
        return
    table = [COLUMNS, *(tuple(row[c] for c in COLUMNS) for row in rows)]
    widths = [max(len(line[c]) for line in table) for c in range(len(COLUMNS))]
    for line, row in zip(table, [{}, *rows], strict=True):
        cells = (f"{x:{w}}" for x, w in zip(line, widths, strict=True))
        told = f": {row['error']}" if row.get("error") else ""
        print(f"{'  '.join(cells).rstrip()}{told}")


if __name__ == "__main__":
    sys.exit(main())
