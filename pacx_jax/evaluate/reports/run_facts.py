"""What runs are and what went wrong in them: configurations, bad steps, files."""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from pacx_jax.evaluate.reports.run_files import Run
from pacx_jax.evaluate.reports.run_parts import Part, Table
from pacx_jax.run import fingerprints, nonfinite, versions

LONGEST = 200  # rows of a list, beyond which they are counted


def facts(runs: Sequence[Run]) -> Part:
    """A column a run: what it is, how far it is, by which code."""
    columns = [_facts(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    printed = dict.fromkeys(k for run in runs for k in run.json(fingerprints.DATA))
    prints = [
        [name, *(str(run.json(fingerprints.DATA).get(name, "")) for run in runs)]
        for name in printed
    ]
    heads = ["fact", *(run.name for run in runs)]
    tables = [Table("What the runs are" if len(runs) > 1 else "The run", heads, rows)]
    if prints:
        told = "Fingerprints of data and starting weights"
        tables.append(Table(told, ["of", *heads[1:]], prints))
    return Part("Facts", "Nothing is known of the run.", tables=tables)


def _facts(run: Run) -> dict[str, Any]:
    config, time = run.config, run.goodput
    last = (run.lines(versions.FILE) or [{}])[-1]
    best, done = run.json("best.json"), run.json("done.json")
    found = {
        "stage": config.objective,
        "recipe": config.get("name", ""),
        "state": run.state,
        "step": f"{run.step:,} of {config.get('total_steps', 0):,}",
        "seed": config.get("seed", ""),
        "global batch": config.get("global_batch_size", ""),
        "data": plain(str(config.data.get("path", ""))),
        "starts from": plain(str(config.get("model_init", ""))) or "random weights",
        "devices": last.get("devices", "not recorded"),
        "code": _code(last),
        "hours, sessions": f"{sum(time['seconds'].values()) / 3600:.2f}, "
        f"{time['sessions']}"
        if time
        else "not recorded",
    }
    if best:
        found["best state"] = (
            f"{config.get('best', '')} {_short(best.get('value'))} at "
        )
        found["best state"] += f"step {best.get('step')}"
    if isinstance(done.get("metrics"), dict):
        loss = done["metrics"].get("val/loss")
        found["last validation loss"] = _short(loss)
    if config.get("data", {}).get("simulated"):
        found["patients"] = "simulated"
    if forced := run.lines(fingerprints.FORCED):
        told = [x for row in forced for each in row.values() for x in each]
        found["made to go on with other values"] = "; ".join(map(str, told))
    return found


def _code(session: dict[str, Any]) -> str:
    if not session:
        return "not recorded"
    commit = f" ({session['commit']})" if session.get("commit") else ""
    return f"pacx_jax {session.get('pacx_jax')}{commit}, jax {session.get('jax')}"


def _short(value: Any) -> str:
    good = isinstance(value, (int, float)) and abs(value) < 1e300
    return f"{value:.4g}" if good else "undefined"


def plain(text: str) -> str:
    """Text without the paths of this machine: of the working and the home folder."""
    home = str(pathlib.Path.home())
    text = text.replace(f"{os.getcwd()}/", "")
    return text.replace(f"{home}/", "~/") if home != "/" else text


def configurations(runs: Sequence[Run]) -> Part:
    """Fields in which compared runs differ, and every run's configuration."""
    trees = [json.loads(run.config.to_json_best_effort()) for run in runs]
    flats = [fingerprints.flat(tree) for tree in trees]
    fields = sorted({name for flat in flats for name in flat})
    missing = object()
    rows = []
    for name in fields:
        values = [flat.get(name, missing) for flat in flats]
        if any(value != values[0] for value in values):
            told = [
                "(no such field)" if v is missing else plain(repr(v)) for v in values
            ]
            rows.append([name, *told])
    tables = []
    if rows:
        told = f"Fields that differ: {len(rows):,} of {len(fields):,}"
        tables.append(Table(told, ["field", *(run.name for run in runs)], rows))
    text = ""
    if len(runs) > 1 and not rows:
        text = "The configurations of the compared runs are the same."
    whole = [
        (f"Configuration: {run.name}", plain(json.dumps(tree, indent=2)))
        for run, tree in zip(runs, trees, strict=True)
    ]
    return Part("Configuration", "There is none.", text, tables=tables, texts=whole)


def bad_steps(runs: Sequence[Run]) -> Part:
    """Steps with a loss or gradient that is not finite."""
    rows = [
        [
            run.name,
            row.get("step", ""),
            str(row.get("loss", "")),
            str(row.get("grad_norm", "")),
            _listed(row.get("samples", [])),
        ]
        for run in runs
        for row in run.lines(nonfinite.FILE)
    ]
    heads = ("run", "step", "loss", "norm of the gradient", "samples")
    return Part(
        "Steps that were not finite",
        "No step had a loss or gradient that was not finite.",
        tables=_cut("Skipped steps, or the one that stopped the run", heads, rows),
    )


def _listed(samples: Any, most: int = 3) -> str:
    if not isinstance(samples, list):
        return ""
    more = f" and {len(samples) - most} more" if len(samples) > most else ""
    return ", ".join(map(str, samples[:most])) + more


def quarantine(runs: Sequence[Run]) -> Part:
    """Files that could not be read, and why."""
    rows = [
        [run.name, *(str(row.get(k, "")) for k in ("split", "name", "reason"))]
        for run in runs
        for row in run.lines("quarantine.jsonl")
    ]
    counts = collections.Counter((row[0], row[1]) for row in rows)
    counted = [[*key, n] for key, n in sorted(counts.items())]
    tables = _cut("Unreadable samples", ("run", "split", "sample", "reason"), rows)
    if rows:
        heads = ("run", "split", "samples")
        tables.insert(0, Table("Unreadable samples by split", heads, counted))
    return Part(
        "Quarantine",
        "No sample was unreadable.",
        "Unreadable samples were replaced by others." if rows else "",
        tables=tables,
    )


def _cut(caption: str, heads: Sequence[str], rows: list[list]) -> list[Table]:
    """At most LONGEST rows of a list, which then says so."""
    if len(rows) > LONGEST:
        caption += f": the first {LONGEST:,} of {len(rows):,}"
    return [Table(caption, heads, rows[:LONGEST])] if rows else []
