"""Files of a workdir to damage, as the report of a run reads them."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import tensorboardX

from pacx_jax.evaluate.reports import events, run_curves, run_facts, run_files
from pacx_jax.evaluate.reports import run_report as report
from tests.core.test_model_card import EVALUATION, SPAN
from tests.fuzz import damage
from tests.fuzz.readers import Reader
from tests.reliability import runs

_BINS = [{"predicted": 0.2, "observed": {"value": 0.3} | SPAN, "n": 9}]
_RULE = {"logit": 0.1, "probability": 0.52, "f1": {"value": 0.5} | SPAN}
_MEASURED = EVALUATION | {
    "scores": {"macro": {}, "labels": {"a": {"auroc": {"value": 0.8} | SPAN}}},
    "reliability": {"a": _BINS},
    "thresholds": {"a": {"chosen_on": "val", "known": 9, "max_f1": _RULE}},
}
_SECONDS = {"goodput": 0.5, "seconds": {"compile": 2.0}, "sessions": 1}
_ROWS = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null, "val/loss": 1}\n'


def _workdir(**contents: bytes):
    def draw(folder: pathlib.Path) -> None:
        folder.mkdir()
        config = json.dumps(runs.config("labs_dae", {}).to_dict())
        (folder / "config.json").write_text(config)
        for name, data in contents.items():
            (folder / name.replace("__", ".")).write_bytes(data)

    return draw


def _read(path: pathlib.Path) -> run_files.Run:
    return run_files.read(str(path.parent), "run")


def _facts(path: pathlib.Path) -> None:
    run = _read(path)
    run_facts.facts([run])
    run_curves.parts([run])


def _lists(path: pathlib.Path) -> None:
    run = _read(path)
    run_facts.bad_steps([run])
    run_facts.quarantine([run])


def _events(folder: pathlib.Path) -> None:
    folder.mkdir()
    with tensorboardX.SummaryWriter(str(folder)) as board:
        image = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
        board.add_image("drawn", image, 1, dataformats="HWC")
    (file,) = folder.glob("events*")
    file.rename(folder / "events.out.tfevents.1")


READERS = {
    "metrics.jsonl of a report": Reader(
        "metrics.jsonl", _workdir(metrics__jsonl=_ROWS), _facts, damage.of_json_lines
    ),
    "goodput.json of a report": Reader(
        "goodput.json",
        _workdir(goodput__json=json.dumps(_SECONDS | {"reached_step": 2}).encode()),
        _facts,
        damage.of_json,
    ),
    "nonfinite.jsonl of a report": Reader(
        "nonfinite.jsonl",
        _workdir(nonfinite__jsonl=b'{"step": 1, "loss": "nan", "samples": ["a"]}\n'),
        _lists,
        damage.of_json_lines,
    ),
    "evaluation_test.json of a report": Reader(
        "evaluation_test.json",
        _workdir(evaluation_test__json=json.dumps(_MEASURED).encode()),
        lambda path: report.scores([_read(path)]),
        damage.of_json,
    ),
    "events.out.tfevents": Reader(
        "events.out.tfevents.1", _events, lambda path: events.images(path.parent)
    ),
}
