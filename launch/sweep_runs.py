"""The runs of a sweep: which there are, what each has left to do, and their table."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import re

from pacx_jax.errors import PacxError
from pacx_jax.run import clone
from pacx_jax.stores import objects, staging, urls
from pacx_jax.stores.failures import Missing

RESULTS = ("results.json", "results.md")
STOPPED = 75  # what pacx_jax.main ends with when it was asked to stop and saved


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the sweep.

    Attributes:
      name: its folder in the target.
      fields: what sets it apart, field -> value as text.
      arguments: of pacx_jax.main.
      workdir: where it writes, which may be in a bucket.
      evaluate: the split that it is to be measured on, or "".
    """

    name: str
    fields: dict[str, str]
    arguments: tuple[str, ...]
    workdir: str
    evaluate: str

    def todo(self) -> tuple[str, ...]:
        """Arguments of what is to run next; none when all is done."""
        if self.result("done") is None:
            return self.arguments
        if self.evaluate and self.result(f"evaluation_{self.evaluate}") is None:
            return (*self.arguments, f"--evaluate={self.evaluate}")
        return ()

    def begun(self) -> bool:
        """Whether its workdir holds anything."""
        if urls.is_remote(self.workdir):
            return bool(objects.Store(self.workdir).list())
        return pathlib.Path(self.workdir).exists()

    def result(self, name: str) -> dict | None:
        """What the run left in the JSON file of this name, if it has."""
        try:
            if urls.is_remote(self.workdir):
                return json.loads(objects.Store(self.workdir).read(f"{name}.json")[0])
            return json.loads((pathlib.Path(self.workdir) / f"{name}.json").read_text())
        except (Missing, FileNotFoundError):
            return None


def plan(flags: argparse.Namespace, common: list[str]) -> list[Run]:
    """Every run: each arm with each combination of the grid's values.

    Raises:
      PacxError: an arm or grid that cannot be read, or two runs of one name.
    """
    arms = {"": {}}
    if flags.arms:
        arms = _read_arms(pathlib.Path(clone.file(flags.arms)))
    axes = [_axis(text) for text in flags.grid]
    target, runs = urls.absolute(flags.target), {}
    target = target if urls.is_remote(target) else str(pathlib.Path(flags.target))
    for (arm, fixed), *values in itertools.product(arms.items(), *axes):
        varied = dict(values)
        both = sorted(set(fixed) & set(varied))
        if both:
            raise PacxError(f"{flags.arms}: {both[0]} stands in --grid too: take one")
        parts = [f"{k.split('.')[-1]}_{v}" for k, v in varied.items()]
        parts = [re.sub(r"[^A-Za-z0-9.]+", "_", p).strip("_.") for p in [arm, *parts]]
        name = "-".join(filter(None, parts)) or "run"
        if name in runs or name in ("logs", "sweep"):
            raise PacxError(f"two runs would be called {name!r}: name them by --arms")
        fields = {**fixed, **varied}
        arguments = (
            f"--config={flags.config}",
            f"--workdir={target}/{name}",
            *common,
            *(f"--config.{k}={v}" for k, v in fields.items()),
        )
        shown = ({"arm": arm} if arm else {}) | fields
        runs[name] = Run(name, shown, arguments, f"{target}/{name}", flags.evaluate)
    return list(runs.values())


def _read_arms(path: pathlib.Path) -> dict[str, dict[str, str]]:
    try:
        arms = json.loads(path.read_text(encoding="utf-8"))
        # A tuple in a config is given as one on the command line.
        return {
            str(arm): {
                str(k): repr(tuple(v)) if isinstance(v, list) else str(v)
                for k, v in fields.items()
            }
            for arm, fields in arms.items()
        }
    except (OSError, ValueError, AttributeError) as e:
        raise PacxError(
            f"--arms={path}: give JSON, {{name: {{config field: value}}}} ({e})"
        ) from None


def _axis(text: str) -> list[tuple[str, str]]:
    field, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", field) or "" in values.split(";"):
        raise PacxError(f"--grid={text}: give FIELD=VALUE;VALUE, such as seed=0;1;2")
    return [(field, value) for value in values.split(";")]


def check_split(runs: list[Run]) -> None:
    """PacxError for a split that the runs' data do not have, as far as we see them.

    A prepared set may lie where only the runs are, on a cluster; they tell then.
    """
    # JAX comes with them, which takes seconds.
    from absl import flags
    from ml_collections import config_flags

    from pacx_jax.input import sources
    from pacx_jax.run import recipe_flags

    about = ("--config=", "--config.data.source=", "--config.data.path=")
    asked = {tuple(a for a in run.arguments if a.startswith(about)) for run in runs}
    for arguments in sorted(asked):
        argv, values = ["sweep", *arguments], flags.FlagValues()
        config_flags.DEFINE_config_file(
            "config", flag_values=values, lock_config=True, sys_argv=argv
        )
        recipe_flags.parse(argv, values)
        data = values.config.data
        try:
            names = sources.splits(data)
        except PacxError:
            continue
        if runs[0].evaluate not in names:
            raise PacxError(
                f"--evaluate={runs[0].evaluate}: {data.path or 'a folder'} has the "
                f"splits {', '.join(names)}"
            )


def claim(runs: list[Run], state: pathlib.Path) -> None:
    """Writes each run's arguments; refuses a target that holds other ones' results."""
    for run in runs:
        record = state / f"{run.name}.args"
        text = "".join(f"{a}\n" for a in run.arguments)
        if record.exists() and record.read_text() != text and run.begun():
            differing = set(record.read_text().splitlines()) ^ set(run.arguments)
            raise PacxError(
                f"{run.workdir} was run with other arguments: "
                f"{', '.join(sorted(differing))}. Take another --target"
            )
    state.mkdir(parents=True, exist_ok=True)
    for run in runs:
        text = "".join(f"{a}\n" for a in run.arguments)
        (state / f"{run.name}.args").write_text(text, encoding="utf-8")


def fetch(url: str, target: pathlib.Path) -> None:
    """Makes a folder hold what a sweep in a bucket has beside its runs."""
    store = objects.Store(url)
    there = {k: v for k, v in store.list().items() if _is_sweeps(k)}
    staging.bring(store, there, target, _is_sweeps)


def send(target: pathlib.Path, url: str) -> None:
    """Sends that to the bucket."""
    store = objects.Store(url)
    for file in sorted(p for p in target.rglob("*") if p.is_file()):
        name = file.relative_to(target).as_posix()
        if _is_sweeps(name):
            staging.send(store, name, file)


def _is_sweeps(name: str) -> bool:
    return name.startswith(("sweep/", "logs/")) or name in RESULTS


def collect(runs: list[Run], target: pathlib.Path, metrics: list[str]) -> list[dict]:
    """Writes results.json and results.md, one row a run, and returns the rows."""
    rows = []
    for run in runs:
        row = {"run": run.name, "fields": run.fields, "state": _state(run, target)}
        values = {}
        if done := run.result("done"):
            row["step"], values = done["step"], dict(done["metrics"])
        if run.evaluate and (measured := run.result(f"evaluation_{run.evaluate}")):
            values |= {
                f"{run.evaluate}/{k}": v
                for k, v in measured.items()
                if isinstance(v, (int, float))
            }
        if row["state"].startswith("failed"):
            row["error"] = _error(run, target)
        rows.append(row | {"metrics": values})
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows, indent=2) + "\n"
    (target / "results.json").write_text(text, encoding="utf-8")
    (target / "results.md").write_text(_markdown(rows, metrics), encoding="utf-8")
    return rows


def _state(run: Run, target: pathlib.Path) -> str:
    done = run.result("done") is not None
    if done and not run.todo():
        return "finished"
    record = target / "sweep" / f"{run.name}.exit"
    code = int(record.read_text()) if record.exists() else None
    if code not in (None, 0, STOPPED):
        return f"failed ({code})"
    if done:
        return "trained"
    return "stopped" if code == STOPPED else "not finished"


def _error(run: Run, target: pathlib.Path) -> str:
    """What a failed run said last, and the file where it did."""
    logs = [target / "logs" / f"{run.name}.log"]  # here; else that of each process
    logs += sorted(pathlib.Path(run.workdir, "logs").glob("*.log"))
    said = {log: line for log in logs if (line := _last_line(log))}
    if not said:
        return f"it said nothing (see {run.workdir})"

    def rank(log):  # the process that failed, before its peers that JAX aborted for it
        return not said[log].startswith("error:"), said[log].startswith("@ 0x")

    log = min(said, key=rank)
    return f"{said[log]} ({log})"


def _last_line(log: pathlib.Path) -> str:
    """The last line with something in it, shortened; "" without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    lines = [" ".join(line.split()) for line in lines]
    return next((line[:200] for line in reversed(lines) if line), "")


def _markdown(rows: list[dict], metrics: list[str]) -> str:
    names = metrics or sorted({k for row in rows for k in row["metrics"]})
    lines = [["run", "state", "step", *names], ["---", "---", "---:"]]
    lines[1] += ["---:"] * len(names)
    for row in rows:
        values = [row["metrics"].get(name) for name in names]
        cells = ["" if v is None else f"{v:.4g}" for v in values]
        lines.append([row["run"], row["state"], str(row.get("step", "")), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
