"""What a model card says of training sets, terms, measurements and shortcuts."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import mixture
from pacx_jax.run import older
from pacx_jax.stores import urls

NOT_STATED = (
    "not stated. State one before you give the model away (`config.license`): the "
    "terms of its training sets may bind the weights too."
)
SHORTCUTS = """\
An embedding of an X-ray holds more than disease: the view (AP or PA), sex, age, body
habitus, devices and tubes, letters on the film, and which hospital or data set it is
from. Where a label goes with one of these, a model can predict it without the disease:
an AP film alone tells of a patient who could not stand. Measure within a view and a
site, and beside what view, age and sex predict alone."""


def training_sets(config) -> list[str]:
    """A line on each set that the run, and those that it started from, trained on."""
    lines: dict[str, None] = {}
    todo, seen = [("", config)], set()
    while todo:
        stage, at = todo.pop(0)
        lines |= dict.fromkeys(f"{stage}{line}" for line in _own(at))
        for start in _starts(at):
            if start in seen:
                continue
            seen.add(start)
            found = _config_of(start)
            if found is None:
                what = "an encoder that it started from: its training sets are in that "
                lines[f"{what}one's card, if anywhere"] = None
            else:
                todo.append((f"{found.get('objective', '')}: ", found))
    return list(lines)


def _own(config) -> Iterator[str]:
    data = config.get("data", {})
    if data.get("simulated"):
        yield "the SIMULATED cohort of pacx_jax (Apache-2.0)"
        return
    for path in mixture.paths(data["path"]) if data.get("path") else ():
        kind, folder = mixture.kind_of(path)
        yield _described(folder, kind or data.get("source", ""))


def _described(path: str, source: str) -> str:
    """Title and terms of a prepared set, without its place."""
    unknown = "a set whose card (croissant.json) is not there: its terms are not known"
    if source == "folder":
        return "a folder of images: its terms are not known here"
    if source == "arrays":
        return "images in memory: their terms are not known here"
    if urls.is_remote(path):
        return "a set in a bucket: its card (croissant.json) has its terms"
    try:
        card = files.read_json(pathlib.Path(path) / "croissant.json")
        title, terms = str(card["alternateName"]), str(card["license"])
    except (OSError, ValueError, KeyError):
        return unknown
    more = f", {card['url']}" if isinstance(card.get("url"), str) else ""
    return f"{title} ({terms}{more})"


def _starts(config) -> list[str]:
    """The encoders that a run started from or was taught by."""
    parts = config.get("modalities") or {}
    inits = [part.get("init", "") for part in parts.values() if hasattr(part, "get")]
    named = (config.get("model_init", ""), config.get("vq_init", ""), *inits)
    return [str(at) for at in named if at]


def _config_of(start: str) -> dict[str, Any] | None:
    """The configuration of a run's workdir or export; None for any other encoder."""
    if urls.is_remote(start):
        return None
    path = pathlib.Path(start)
    for folder in (path, path.parent) if path.name == "export" else (path,):
        try:
            found = older.upgrade(files.read_json(folder / "config.json"))
        except (OSError, ValueError):
            continue
        if "objective" in found:
            return found
    return None


def measurements(workdir: str) -> str:
    """Tables of what `--evaluate` wrote: values with intervals, and subgroups."""
    parts = []
    for path in sorted(pathlib.Path(workdir).glob("evaluation_*.json")):
        if ".step_" in path.stem:  # of an earlier step: another model
            continue
        try:
            found = files.read_json(path)
            parts.append(_evaluated(found, path.stem.removeprefix("evaluation_")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PacxError(f"{path} is damaged ({error!r}): evaluate again") from None
    return "\n\n".join(parts) or (
        "Not measured on held-out patients: run it with `--evaluate=test`, and export "
        "it again."
    )


def measured_since(card: str, workdir: str | os.PathLike) -> str:
    """A card of the run with what `--evaluate` has written by now, if it has."""
    if not any(pathlib.Path(workdir).glob("evaluation_*.json")):
        return card
    return re.sub(
        r"(^## Measured\n).*?(?=^## )",
        lambda match: f"{match[1]}{measurements(workdir)}\n\n",
        card,
        flags=re.DOTALL | re.MULTILINE,
    )


def _evaluated(found: dict[str, Any], split: str) -> str:
    units = ("n_patients", "n_studies", "n_images", "n_records")
    whose = next((f", {found[k]:,} {k[2:]}" for k in units if k in found), "")
    text = f"`{split}`, {found['n']:,} examples{whose}"
    rows = []
    for name, row in found.get("intervals", {}).items():
        measure = "AUROC" if "auroc" in row else ""
        value = row["auroc"] if measure else row["value"]
        rows.append([name, measure, _number(value), _span(row)])
    if not rows:
        return f"{text}: no measure with an interval."
    head = ["", "measure", "value", "95% interval"]
    text += f":\n\n{_table(head, rows)}"
    for column, compared in found.get("subgroups", {}).items():
        text += f"\n\n{_subgroups(column, compared)}"
    return text


def _subgroups(column: str, compared: dict[str, Any]) -> str:
    """The mean over labels in each group by one column, as `--evaluate` has it."""
    rows = []
    for group, sizes in compared["n"].items():
        macro = compared["scores"].get(group, {}).get("macro", {})
        measure = "auroc" if "auroc" in macro else next(iter(macro), "")
        row = macro.get(measure, {})
        value = _number(row["value"]) if row else "not compared"
        rows.append([group, f"{sizes['n']:,}", measure, value, _span(row)])
    return _table([column, "n", "mean of", "value", "95% interval"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    cells.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _span(row: dict[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
