"""Checkpoints, model folders and the files of a workdir to damage."""

from __future__ import annotations

import argparse
import functools
import io
import json
import pathlib
import sys
import types

import ml_collections
import numpy as np
import safetensors.numpy

from pacx_jax import main
from pacx_jax.convert import beside, files, kinds
from pacx_jax.encoders import golden, model_folder, model_heads
from pacx_jax.errors import PacxError
from pacx_jax.input import quarantine
from pacx_jax.run import (
    finished,
    manifest,
    metrics,
    model_card,
    overlap,
    recipe_flags,
)
from tests import tiny
from tests.convert.test_kinds import OPTIONS
from tests.convert.test_kinds import folder as made
from tests.core.test_model_card import EVALUATION
from tests.fuzz import damage
from tests.fuzz.readers import Reader


@functools.cache
def _state() -> dict[str, np.ndarray]:
    return kinds.write("vit_timm", tiny.folder("vit"))


def _safetensors() -> bytes:
    return safetensors.numpy.save(_state())


@functools.cache
def _pts() -> list[bytes]:
    import torch

    tensors = {k: torch.from_numpy(v.copy()) for k, v in _state().items()}
    kept = {"model": tensors, "args": argparse.Namespace(epochs=3), "epoch": 4}
    found = []
    for value, old in ((tensors, False), (kept, False), (tensors, True)):
        stream = io.BytesIO()
        torch.save(value, stream, _use_new_zipfile_serialization=not old)
        found.append(stream.getvalue())
    return found


def _writes(**contents):
    def draw(folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in contents.items():
            (folder / name.replace("__", ".")).write_bytes(make())

    return draw


def _convert(path: pathlib.Path) -> None:
    state = files.read(path).state
    options = OPTIONS
    folder, _ = kinds.read("vit_timm", state, options, str(path))
    assert folder.kind == "vit"


def _beside(kind: str):
    def read(path: pathlib.Path) -> None:
        fields, sizes = beside.read(kind, path.parent / "model.safetensors")
        assert isinstance(fields, dict) and isinstance(sizes, dict)

    return read


_HF = {
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-6,
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "id2label": {"0": "a", "1": "b"},
    "problem_type": "multi_label_classification",
}
_TIMM = {
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "model_args": {"num_heads": 2},
}
_PROCESSOR = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_PROCESSOR |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _dumped(value):
    return lambda: json.dumps(value).encode()


def _draw_model(kind: str):
    def draw(folder: pathlib.Path) -> None:
        model = made("pacx") if kind == "pacx" else tiny.folder(kind)
        model_folder.save(folder, model, "a test's")

    return draw


def _load(path: pathlib.Path) -> None:
    model = model_folder.load(path.parent)
    assert model.width > 0
    model.module()


_RUNS = {
    "format": overlap.FORMAT,
    "runs": [
        {"run": "a", "objective": "mae", "unknown": "no patients"},
        {"run": "b", "objective": "mae", "namespace": "mimic", "patients": 2}
        | {"start": ["f", "mimic", ""], "hashes": ["0" * 32, "1" * 32]},
    ],
}


def _overlap(path: pathlib.Path) -> None:
    chain = overlap.read(path.parent)
    config = ml_collections.ConfigDict({"model_init": ""})
    source = types.SimpleNamespace(fingerprint="f", namespace="mimic")
    overlap.is_listed(config, str(path.parent), source)
    for run in chain.runs:
        if chain.key is not None and "hashes" in run:
            set(run["hashes"])


class _Split:
    split, fingerprint = "train", "f"

    def __len__(self):
        return 1000


_BAD = b"""{"split": "train", "index": 3, "name": "a.png", "reason": "x"}
{"split": "val", "index": 5, "name": "b.png", "reason": "y"}
"""


def _quarantine(path: pathlib.Path) -> None:
    kept = quarantine.Quarantine(str(path))
    kept.record(_Split(), 7, "c.png", "unreadable")


def _best(path: pathlib.Path) -> None:
    (path.parent / "metrics.jsonl").write_text('{"step": 5, "val/loss": 0.5}\n')
    config = tiny.config("mae_vitb16")
    card = finished.card(config, str(path.parent), tiny.folder("vit"), "best")
    assert "step" in card


@functools.cache
def _golden() -> dict[str, bytes]:
    return golden.beside(tiny.folder("vit"))


def _draw_golden(folder: pathlib.Path) -> None:
    model_folder.save(folder, tiny.folder("vit"), "card", _golden())


def _check_golden(path: pathlib.Path) -> None:
    assert "golden images" in golden.check(path.parent)


def _config(path: pathlib.Path) -> None:
    config = finished.read_config(str(path.parent))
    assert isinstance(config, ml_collections.ConfigDict)


_ROWS = b'{"step": 2, "loss": 0.5}\n{"step": 4, "loss": null, "val/loss": 1.0}\n'


def _draw_step(folder: pathlib.Path) -> None:
    (folder / "state").mkdir(parents=True, exist_ok=True)
    (folder / "state" / "array").write_bytes(bytes(range(64)))
    manifest.write(folder, {"step": 3, "leaves": {}, "metrics": {}})


def _verify(path: pathlib.Path) -> None:
    try:
        assert manifest.verify(path.parent)["step"] == 3
    except manifest.Damaged as error:  # for which a resume takes the step before
        raise PacxError(f"{path.parent}: {error}") from None


_FLAGS = [
    b"--config=configs/mae_vitb16.py:runlocal --workdir=w --config.total_steps=2",
    b"--config=configs/mae_vitb16.py --workdir=w --config.data.path=x "
    b"--config.seed=3 --config.dtype=float32 --config.optim.peak_lr=0.1",
]


def _parse(path: pathlib.Path) -> None:
    text = path.read_text("utf-8", errors="surrogateescape")
    main.flags.FLAGS.unparse_flags()
    for name in list(main.flags.FLAGS):
        if name.startswith("config."):  # defined by the last example's overrides
            delattr(main.flags.FLAGS, name)
    before, sys.argv = (
        sys.argv,
        ["main", *text.split()],
    )  # where overrides are looked up
    try:
        recipe_flags.parse(sys.argv)
        if (config := main.flags.FLAGS.config) is not None:
            main.check_values(config)
    except OSError as error:  # which main makes one line, as it stands
        raise PacxError(error) from None
    finally:
        sys.argv = before


READERS = {
    "safetensors": Reader(
        "s.safetensors",
        _writes(s__safetensors=_safetensors),
        _convert,
        damage.of_safetensors,
    ),
    "pt": Reader(
        "p.pt", _writes(p__pt=lambda: _pts()[0]), _convert, seeds=lambda: _pts()[1:]
    ),
    "config.json of Hugging Face": Reader(
        "config.json", _writes(config__json=_dumped(_HF)), _beside("vit_hf"),
        damage.of_json,
    ),
    "config.json of timm": Reader(
        "config.json", _writes(config__json=_dumped(_TIMM)), _beside("vit_timm"),
        damage.of_json,
    ),
    "preprocessor_config.json": Reader(
        "preprocessor_config.json",
        _writes(preprocessor_config__json=_dumped(_PROCESSOR)),
        lambda path: beside.images(path.parent / "model.safetensors"),
        damage.of_json,
    ),
    "patients.json": Reader(
        "patients.json",
        _writes(patients__json=_dumped(_RUNS), patients__key=lambda: b"00" * 32),
        _overlap,
        damage.of_json,
    ),
    "quarantine.jsonl": Reader(
        "quarantine.jsonl", _writes(quarantine__jsonl=lambda: _BAD), _quarantine,
        damage.of_json_lines,
    ),
    "best.json": Reader(
        "best.json",
        _writes(best__json=_dumped({"step": 5, "metric": "val/loss", "value": 0.5})),
        _best,
        damage.of_json,
    ),
    "metrics.jsonl": Reader(
        "metrics.jsonl", _writes(metrics__jsonl=lambda: _ROWS),
        lambda path: metrics.read_rows(path.parent), damage.of_json_lines,
    ),
    "manifest.json": Reader(
        "manifest.json", _draw_step, _verify, damage.of_json,
    ),
    "config.json of a run": Reader(
        "config.json",
        _writes(config__json=lambda: tiny.config("mae_vitb16").to_json().encode()),
        _config,
        damage.of_json,
    ),
    "flags": Reader(
        "flags", _writes(flags=lambda: _FLAGS[0]), _parse, damage.of_text,
        seeds=lambda: _FLAGS[1:], named=" ",
    ),
}  # fmt: skip
for _kind in ("vit", "ecg_net1d", "labs_dae", "pacx"):
    READERS[f"config.json of a {_kind} folder"] = Reader(
        "config.json", _draw_model(_kind), _load, damage.of_json
    )
READERS["model.safetensors"] = Reader(
    "model.safetensors", _draw_model("vit"), _load, damage.of_safetensors
)
READERS["golden.safetensors"] = Reader(
    golden.FILE, _draw_golden, _check_golden, damage.of_safetensors
)
READERS["evaluation_test.json"] = Reader(
    "evaluation_test.json",
    _writes(evaluation_test__json=lambda: json.dumps(EVALUATION).encode()),
    lambda path: model_card.measurements(str(path.parent)),
    damage.of_json,
)
READERS["heads.safetensors"] = Reader(
    model_heads.FILE, _draw_model("pacx"), _load, damage.of_safetensors
)
