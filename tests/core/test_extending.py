"""docs/extending.md: its code and commands, at a size whose numbers mean nothing."""

import json
import pathlib
import re
import shlex
import sys
import types

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics
from absl import flags
from ml_collections import config_flags

from data import croissant, prepare
from data import flags as prepare_flags
from data.cohort import generate
from data.mimic_vitals import stays
from pacx_jax import embed, load_encoder, main
from pacx_jax.encoders import kinds, model_folder
from pacx_jax.evaluate import measures, statistics
from pacx_jax.input import sources
from pacx_jax.modalities import vitals
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extending.md").read_text()
SIZES = {"symile": 100, "symile_val": 16, "symile_test": 10, "symile_size": 32}
NOTHING = ("pretrain", "ecg", "probe_train", "probe_val", "probe_test")
# What the test adds to the page's commands.
SMALL = {
    "num_devices": 1, "global_batch_size": 16, "total_steps": 2, "log_every": 1,
    "eval_every": 2, "save_every": 2, "dtype": "float32", "data.threads": 1,
    "optim.warmup_steps": 1,
}  # fmt: skip
TINY = {
    "vitals_dae": {"model.hidden": 16, "model.latent": 8},
    "distill_vitb16": {
        "data.image_size": 32, "heads.shared_dim": 16, "lora.rank": 2,
        "modalities.vitals.module": "modality_of_the_page",
    },
}  # fmt: skip


def blocks(language=""):
    """The page's blocks of code in a language."""
    found = [block.partition("\n") for block in PAGE.split("```")[1::2]]
    return [code for name, _, code in found if name == language]


def config_of(arguments):
    """The config of a command, and its --workdir."""
    name = re.search(r"--config=configs/(\w+)\.py", " ".join(arguments))[1]
    fields = SMALL | TINY[name]
    argv = [a.replace("=configs/", f"={ROOT}/configs/") for a in arguments]
    argv = ["main", *argv, *(f"--config.{k}={v}" for k, v in fields.items())]
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config, values.workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's folders of data and of encoders that are there already."""
    root = tmp_path_factory.mktemp("extending")
    argv = [f"--{k}={v}" for k, v in SIZES.items()] + [f"--{k}=0" for k in NOTHING]
    assert generate.main([f"--target={root / 'cohort'}", *argv]) == 0
    (root / "symile-mimic").mkdir()
    (root / "mimic-iv-ed/2.2").mkdir(parents=True)
    (root / "cohort/symile_mimic").rename(root / "symile-mimic/1.0.0")
    (root / "symile-mimic/1.0.0/ed").rename(root / "mimic-iv-ed/2.2/ed")
    for i, (name, kind) in enumerate(
        {"mae": "vit", "ecg": "ecg_net1d", "labs": "labs_dae"}.items()
    ):
        model_folder.save(root / "runs" / name, tiny.folder(kind, i), card="a test's")
    (root / "DIR").mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    PIL.Image.fromarray(grey).save(root / "DIR/film.png")
    return root


def test_the_page_quotes_the_code_as_it_is():
    modality, _, objective, recipe, kind, *_ = blocks("python")
    assert modality == pathlib.Path(vitals.__file__).read_text()
    assert objective == (ROOT / "tests/own/brightness.py").read_text()
    assert recipe == (ROOT / "tests/own/recipe.py").read_text()
    assert kind in pathlib.Path(kinds.__file__).read_text()


def test_the_pages_commands_distil_vital_signs_into_an_encoder_of_xrays(
    folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    modality, table, *_ = blocks("python")
    pathlib.Path("modality_of_the_page.py").write_text(modality)
    commands, teacher, *_ = blocks()
    lines = commands.replace("\\\n", " ").strip().splitlines()
    prepared, trained, distilled, embedded = (shlex.split(line)[1:] for line in lines)

    assert prepared[0] == "data/prepare.py" and embedded[1] == "pacx_jax.embed"
    assert prepare.main([*prepared[1:], "--size=32", "--workers=1"]) == 0
    main.run(*config_of(trained[2:]))
    assert model_folder.load("runs/vitals", "labs_dae").width == 8

    data = config_of(trained[2:])[0].data
    train, val = (sources.open_source(data, split) for split in ("train", "val"))
    known = sorted({*train.patients()})[:30] + val.patients()
    rows = np.random.default_rng(0).normal(size=(len(known), 5))
    exec(table, {"embed_with_my_model": lambda: (known, rows)})
    capsys.readouterr()
    config, workdir = config_of([*distilled[2:], *teacher.split()])
    main.run(config, workdir)

    found = stays.read(stays.paths(pathlib.Path("mimic-iv-ed/2.2"))).by_admission()
    without = sum(train[i]["hadm_id"] not in found for i in range(len(train)))
    others = sum(p not in known for p in train.patients())
    counts = f"ecg 0, labs 0, teacher {others}, vitals {without}"
    assert 0 < without < 20
    assert f"of 100 studies, without {counts}" in capsys.readouterr().out
    lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    for name in ("ecg", "labs", "vitals", "teacher"):
        assert last[f"clip_{name}"] > 0 and last[f"regression_{name}"] > 0

    assert embed.main(embedded[2:]) == 0
    with np.load("embeddings.npz") as file:
        assert file["path"].tolist() == ["film.png"]
        z = load_encoder(workdir)(["DIR/film.png"])
        np.testing.assert_allclose(file["embedding"], z, atol=1e-6)


def test_the_pages_data_set_is_prepared_split_by_patient_and_refuses_odd_labels(
    tmp_path, monkeypatch, capsys
):
    code = next(b for b in blocks("python") if "published.Facts(" in b)
    builder = types.ModuleType("data.valley.valley_dataset_builder")
    exec(code, vars(builder))
    monkeypatch.setitem(sys.modules, builder.__name__, builder)
    monkeypatch.setattr(prepare_flags, "NAMES", (*prepare_flags.NAMES, "valley"))
    sizes = (*prepare_flags.APPLIES["size"], "valley")
    monkeypatch.setitem(prepare_flags.APPLIES, "size", sizes)
    terms = croissant.Terms("Valley General", "", "ours")
    monkeypatch.setitem(croissant.TERMS, "valley", terms)
    source, rows = tmp_path / "source", ["file,person,Effusion,Nodule"]
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        grey = rng.integers(0, 256, (24, 24), dtype=np.uint8)
        PIL.Image.fromarray(grey).save(source / f"{i}.png")
        rows.append(f"{i}.png,p{i // 2},{i % 2},{'' if i == 3 else 0}")
    (source / "valley.csv").write_text("\n".join(rows))

    argv = ["valley", f"--source={source}", "--size=24", "--workers=1"]
    assert prepare.main([*argv, f"--target={tmp_path / 'prepared'}"]) == 0
    assert prepare.main(["--check", f"--target={tmp_path / 'prepared'}"]) == 0
    data = types.SimpleNamespace(source="prepared", path=str(tmp_path / "prepared"))
    opened = {s: sources.open_source(data, s) for s in ("train", "val", "test")}
    assert sum(map(len, opened.values())) == 40
    people = [set(source.patients()) for source in opened.values()]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    assert opened["train"].label_names == ("Effusion", "Nodule")

    (source / "valley.csv").write_text("\n".join([*rows[:-1], "39.png,p19,perhaps,0"]))
    capsys.readouterr()
    assert prepare.main([*argv, f"--target={tmp_path / 'other'}"]) == 2
    assert "row 41 has 'perhaps'" in capsys.readouterr().err


def test_the_pages_metric_is_scored_with_intervals(monkeypatch):
    code = next(b for b in blocks("python") if "def log_loss(" in b)
    known = dict(measures.MEASURES["multilabel"])
    monkeypatch.setitem(measures.MEASURES, "multilabel", known)
    exec(code, {})
    rng = np.random.default_rng(0)
    labels = np.float32(rng.random((60, 2)) < 0.4)
    mask = np.float32(rng.random((60, 2)) < 0.8)
    logits = np.float32(labels + rng.normal(size=(60, 2)))
    arrays = {"logits": logits, "labels": labels, "label_mask": mask}
    given = measures.Examples("multilabel", ("a", "b"), arrays)
    weights = statistics.bootstrap_weights(np.arange(60), 50, 0)
    found = measures.scored(given, weights)
    for c, name in enumerate(given.names):
        rows = mask[:, c] > 0
        p = 1 / (1 + np.exp(-np.float64(logits[rows, c])))
        row = found["labels"][name]["log_loss"]
        assert row["value"] == pytest.approx(
            sklearn.metrics.log_loss(labels[rows, c], p)
        )
        assert row["low"] < row["value"] < row["high"]
