"""`pacx predict`: its table, its maps, and files that cannot be read."""

import csv

import numpy as np
import PIL.Image
import pytest

import pacx_jax
from pacx_jax.commands import predict
from pacx_jax.encoders import model_folder
from tests import tiny

NAMES = ("a.png", "deep/b.png", "deep/c.jpg")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(exist_ok=True)
        grey = rng.integers(0, 256, (40 + i, 50), dtype=np.uint8)
        PIL.Image.fromarray(grey).save(root / name)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of two labels; the second one was constant on validation."""
    root = tmp_path_factory.mktemp("model")
    model_folder.save(root / "vit", tiny.folder("vit"), "")
    encoder = pacx_jax.load_encoder(root / "vit")
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 256, (32, 32), dtype=np.uint8) for _ in range(20)]
    held = np.arange(20) < 8
    y = {"even": np.arange(20) % 2, "odd": np.where(held, 0, np.arange(20) % 2)}
    # The logits of the held-out ones agree with their labels, so that they calibrate.
    z = encoder(x)
    first = pacx_jax.fit_probe(encoder, x, y, validation=held)
    order = np.argsort(np.argsort(first.logits(z[held])[:, 0]))
    y["even"] = np.where(held, 0, y["even"])
    y["even"][held] = order >= 4
    pacx_jax.fit_probe(encoder, x, y, validation=held).save(root / "model")
    return root / "model"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_holds_what_the_classifier_says(model, images, tmp_path, capsys):
    out, maps = tmp_path / "p.csv", tmp_path / "maps"
    flags = [f"--model={model}", f"--images={images}", f"--out={out}"]
    assert predict.main([*flags, f"--rollout={maps}"]) == 0
    said = capsys.readouterr().out
    assert "NOT CALIBRATED and not called, by held-out images" in said
    assert "odd (0 of 8 positive)" in said and "called from (max_f1 on held" in said
    assert "3 predictions of even, odd in" in said and "3 maps in" in said
    found, loaded = rows(out), pacx_jax.Classifier.load(model)
    assert list(found[0]) == ["path", "even", "even_called", "odd", "odd_called"]
    assert [row["path"] for row in found] == list(NAMES)
    p = loaded.predict([images / name for name in NAMES])
    np.testing.assert_allclose([float(r["even"]) for r in found], p[:, 0], atol=1e-5)
    called = ["1" if x >= loaded.thresholds["even"] else "0" for x in p[:, 0]]
    assert [row["even_called"] for row in found] == called
    assert {row["odd_called"] for row in found} == {""}
    for name in NAMES:
        with PIL.Image.open(maps / f"{name}.png") as drawn:
            with PIL.Image.open(images / name) as image:
                assert drawn.size == image.size and drawn.mode == "RGB"
            assert len(np.unique(np.asarray(drawn))) > 9


def test_files_that_cannot_be_read_end_it_or_are_listed(
    model, images, tmp_path, capsys
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.png").write_bytes((images / "a.png").read_bytes())
    (tmp_path / "in/bad.png").write_bytes(b"\x89PNG no more")
    out = tmp_path / "p.csv"
    flags = [f"--model={model}", f"--images={tmp_path / 'in'}", f"--out={out}"]
    assert predict.main(flags) == 2
    said = capsys.readouterr().err
    assert "in/bad.png" in said and said.count("\n") == 1 and not out.exists()
    assert predict.main([*flags, "--skip_unreadable"]) == 0
    assert [row["path"] for row in rows(out)] == ["good.png"]
    assert "skipped: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out=p.npz"], "--out p.npz: name a file that ends in .csv"),
        (["--rule=max"], "threshold rule 'max': this model has max_f1, sens"),
        (["--images=/nowhere"], "/nowhere: no such folder; check --images"),
        (["--batch_size=0"], "--batch_size 0: give at least 1"),
        (["--view=lateral"], "this encoder has no view embeddings"),
    ],
)
def test_bad_flags_are_one_line(model, images, flags, told, capsys, monkeypatch):
    given = [f"--model={model}", f"--images={images}", "--out=p.csv"]
    assert predict.main([*given, *flags]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
