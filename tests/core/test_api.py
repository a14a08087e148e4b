"""The public functions: encoders from everywhere, recipes, training on arrays."""

import ast
import json
import pathlib
import pickle
import pydoc
import subprocess
import sys
import types
import zipfile

import numpy as np
import PIL.Image
import pytest

import pacx_jax
from pacx_jax import Classifier, export, recipes, train, training
from pacx_jax.commands import evaluate, runs
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from tests import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "vit"
    model_folder.save(path, tiny.folder("vit"), "")
    return path


def test_help_names_every_public_function_and_imports_stay_lazy():
    text = pydoc.plain(pydoc.render_doc(pacx_jax))
    for name in pacx_jax.__all__:
        assert name in text
    assert (
        "load_encoder(" in text and "fit_probe(" in text and "class Classifier" in text
    )
    code = "import sys, pacx_jax, pacx_jax.commands; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_type_checkers_see_the_names_that_are_imported_lazily():
    """They follow neither `_PUBLIC` nor an `__all__` that is computed."""
    tree = ast.parse(pathlib.Path(pacx_jax.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {a.asname: f"{n.module}.{a.name}" for n in block.body for a in n.names}
    lazy = {name: f"{where}.{name}" for name, where in pacx_jax._PUBLIC.items()}
    assert seen == lazy | {"recipes": "pacx_jax.recipes"}
    (names,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    assert ast.literal_eval(names) == sorted(lazy)


def test_pooling_chooses_the_embedding(folder, tmp_path):
    cls = pacx_jax.load_encoder(folder)
    mean = pacx_jax.load_encoder(folder, pooling="mean")
    tokens = cls.tokens(IMAGES)
    np.testing.assert_allclose(cls(IMAGES), tokens[:, 0], atol=1e-6)
    assert np.abs(mean(IMAGES) - cls(IMAGES)).max() > 0.01
    # A folder whose encoder pools so gives the same.
    own = tiny.folder("vit")
    own = model_folder.ModelFolder(
        "vit", own.architecture | {"pool": "mean"}, mean.preprocessing, own.params
    )
    model_folder.save(tmp_path / "mean", own, "")
    np.testing.assert_array_equal(
        pacx_jax.load_encoder(tmp_path / "mean")(IMAGES), mean(IMAGES)
    )
    with pytest.raises(PacxError, match="pooling 'max': give cls or mean"):
        pacx_jax.load_encoder(folder, pooling="max")


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_zip_is_an_encoder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PACX_SCRATCH", str(tmp_path))
    members = {f"run/export/{p.name}": p.read_bytes() for p in folder.iterdir()}
    members["run/checkpoints/1/x"] = b"no part of it"
    z = pacx_jax.load_encoder(zipped(tmp_path / "a.zip", members))(IMAGES)
    np.testing.assert_array_equal(z, pacx_jax.load_encoder(folder)(IMAGES))
    bomb = members | {"run/export/model.safetensors": bytes(2**25)}
    (tmp_path / "no.zip").write_bytes(b"nothing")
    for path, told in (
        (zipped(tmp_path / "b.zip", {"a.txt": b"x"}), "no model.safetensors in it"),
        (zipped(tmp_path / "c.zip", bomb), "it would unpack to 32 MiB, far more"),
        (tmp_path / "no.zip", "damaged, encrypted or no zip"),
    ):
        with pytest.raises(PacxError, match=told):
            pacx_jax.load_encoder(path)


def test_the_hub_is_asked_for_the_model_s_files_alone(folder, monkeypatch):
    asked = []

    def download(repo, revision, allow_patterns):
        asked.append((repo, revision))
        assert "model.safetensors" in allow_patterns and "*" not in allow_patterns
        if repo.startswith("nobody"):
            raise ValueError("404\nnot found")
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert pacx_jax.load_encoder("hf://me/model@v1")(IMAGES).shape == (2, 32)
    assert asked == [("me/model", "v1")]
    with pytest.raises(PacxError, match="hf://nobody/x: cannot be had .404 not found"):
        pacx_jax.load_encoder("hf://nobody/x")
    with pytest.raises(PacxError, match="give hf://OWNER/NAME"):
        pacx_jax.load_encoder("hf://x")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PacxError, match=r"pip install -e '\.\[hub\]'"):
        pacx_jax.load_encoder("hf://me/model")


def test_recipes_are_those_of_the_command_line(monkeypatch):
    recipes = pacx_jax.recipes
    assert recipes.mae_vitb16("runlocal") == tiny.config("mae_vitb16", "runlocal")
    config = recipes.mae_vitb16(**{"data.path": "DIR", "optim.peak_lr": 1})
    assert config.data.path == "DIR" and config.optim.peak_lr == 1.0
    assert set(recipes.names()) <= set(dir(recipes)) and "base" not in recipes.names()
    # Somebody else's package of that name is neither used nor lost.
    mine = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", mine)
    assert recipes.labs_dae().name == "labs_dae" and sys.modules["configs"] is mine


def test_help_of_a_recipe_is_the_recipe_s():
    recipe = pacx_jax.recipes.mae_vitb16
    text = pydoc.plain(pydoc.render_doc(recipe))
    assert "mae_vitb16(presets: " in text and "functools" not in text
    assert "MAE ViT-B/16 on CheXpert, 90% of the patches masked." in text
    assert 'config = recipes.mae_vitb16("runlocal", **{"total_steps": 100})' in text
    assert pickle.loads(pickle.dumps(recipe)) is recipe
    assert all(getattr(pacx_jax.recipes, r).__doc__ for r in pacx_jax.recipes.names())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda r: r.get("mae"), "recipe 'mae': did you mean mae_vitb16"),
        (lambda r: r.mae_vitb16("small"), r"config argument \['small'\]"),
        (lambda r: r.mae_vitb16(total_step=1), "did you mean total_steps"),
        (lambda r: r.mae_vitb16(total_steps="x"), "total_steps='x': give int, as "),
        (lambda r: pacx_jax.train({}, "x"), "config is a dict: give one of"),
        (lambda r: pacx_jax.train(r.labs_dae(), "x", labels=[1]), "go with images"),
    ],
)
def test_wrong_recipes_and_fields_are_one_line(call, told):
    with pytest.raises(PacxError, match=told):
        call(pacx_jax.recipes)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(1)
    y = np.arange(40) // 2 % 2
    images = [rng.integers(0, 100, (20, 16), dtype=np.uint8) for _ in y]
    return [np.uint8(x + 100 * k) for x, k in zip(images, y, strict=True)], y


def test_training_on_arrays_gives_a_classifier_and_goes_on(
    folder, arrays, tmp_path, capsys
):
    images, y = arrays
    fields = {"model_init": str(folder), "data.image_size": 32, "data.threads": 1,
              "total_steps": 4, "eval_every": 2, "save_every": 2, "log_every": 2,
              "data.val_fraction": 0.4, "data.test_fraction": 0.0, "num_devices": 1,
              "global_batch_size": 8, "optim.warmup_steps": 1}  # fmt: skip
    config = pacx_jax.recipes.finetune(**fields)
    given = dict(images=images, labels={"sick": y}, patients=np.arange(40) // 2)
    got = pacx_jax.train(config, tmp_path / "run", **given, quiet=True)
    assert capsys.readouterr().out == "" and 0 <= got["val/auroc_macro"] <= 1
    assert config.data.path == ""  # the caller's is left alone
    model = pacx_jax.Classifier.load(tmp_path / "run")
    assert model.predict(images[:3]).shape == (3, 1) and model.labels == ("sick",)
    assert model.calibration["labels"]["sick"]["known"] > 2
    assert pacx_jax.train(config, tmp_path / "run", **given) == got
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(PacxError, match="holds a run of another config: data.path"):
        pacx_jax.train(config, tmp_path / "run", **(given | {"images": images[::-1]}))
    config.data.source, config.data.path = "arrays", "memory:0"
    with pytest.raises(PacxError, match="in the memory of another process or call"):
        pacx_jax.train(config, tmp_path / "other")
    (row,) = map(runs.describe, runs.workdirs(tmp_path / "run"))
    assert (row["stage"], row["step"], row["state"]) == ("finetune", "4/4", "finished")
    (row,) = map(runs.describe, runs.workdirs(tmp_path / "other"))
    assert row["state"] == "failed" and "memory of another" in row["error"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": [np.zeros((4, 4))]}, "image 0: an array of dtype float64"),
        ({"images": []}, "images: there is none"),
        ({"labels": ["a"] * 40}, "row 0 of 'label_0' is 'a'"),
        ({"labels": [1]}, "1 labels for 40 images"),
        ({"patients": [1]}, "1 patients for 40 images"),
        ({"splits": ["dev"] * 40}, "splits: 'dev'; give train, val or test"),
        ({"splits": ["train"] * 40}, "the val split is empty"),
    ],
)
def test_bad_arrays_are_one_line(folder, arrays, tmp_path, change, told):
    config = pacx_jax.recipes.finetune(model_init=str(folder))
    given = dict(images=arrays[0], labels=arrays[1]) | change
    with pytest.raises(PacxError, match=told):
        pacx_jax.train(config, tmp_path / "run", **given)


def test_a_folder_pretrains_then_fine_tunes_and_is_measured_on_unseen_patients(
    tmp_path,
):
    """docs/own_data.md, in small: both stages hold out the same patients."""
    rng = np.random.default_rng(0)
    rows = ["path,patient_id,Effusion"]
    for i in range(90):
        label = i // 2 % 2
        film = rng.integers(0, 120, (40, 40)) + 100 * label * (np.arange(40) < 20)
        name = f"{i}.png"
        PIL.Image.fromarray(np.uint8(film)).save(tmp_path / name)
        rows.append(f"{name},{i // 2},{label}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    short = {"data.path": str(tmp_path), "data.source": "folder", "total_steps": 4}
    short |= {"eval_every": 2, "save_every": 2, "log_every": 2, "num_devices": 1}
    short |= {"optim.warmup_steps": 1, "global_batch_size": 8}
    mae, tuned = str(tmp_path / "runs/mae"), str(tmp_path / "runs/finetune")
    fields = short | {"data.simulated": False, "model.variant": "mu"}
    held_out = {"data.val_fraction": 0.2, "data.test_fraction": 0.2}
    train(recipes.mae_vitb16("runlocal", **fields, **held_out), mae, quiet=True)
    fields = short | {"model_init": mae, "data.csv": "labels.csv"}
    train(recipes.finetune(**fields), tuned, quiet=True)
    config = json.loads((tmp_path / "runs/finetune/config.json").read_text())
    assert config["data"]["image_size"] == 48  # the encoder's own
    overlap = json.loads((tmp_path / "runs/finetune/overlap.json").read_text())
    assert overlap["status"] == "none"
    evaluate.main([f"--workdir={tuned}", "--split=test"])
    training.measure(recipes.finetune(**fields), tuned, "test")  # as a sweep does
    assert (tmp_path / "runs/finetune/evaluation_test.json").is_file()
    assert "Not measured" in (tmp_path / "runs/finetune/export/README.md").read_text()
    asked = types.SimpleNamespace(workdir="", encoder=tuned, heads=False, format="hf")
    card = export._read_model(asked)[1]
    assert "Not measured" not in card and "`test`, " in card and "## Limits" in card
    assert Classifier.load(tuned).predict([tmp_path / "0.png"]).shape == (1, 1)
    # Pretrained on all but one in ten, it has seen most of those held out here.
    seen = str(tmp_path / "runs/seen")
    train(
        recipes.mae_vitb16(
            "runlocal", **short, **{"data.simulated": False, "model.variant": "mu"}
        ),
        seen,
        quiet=True,
    )
    with pytest.raises(PacxError, match="patients that its encoder has seen"):
        fields |= {"model_init": seen}
        train(recipes.finetune(**fields), str(tmp_path / "runs/b"), quiet=True)
