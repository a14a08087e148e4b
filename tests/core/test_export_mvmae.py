"""Exports of an encoder with views, grey images and qk-norm."""

import json

import numpy as np
import PIL.Image
import pytest

from pacx_jax import export
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.exporting import source, write
from tests import tiny
from tests.core.test_export_formats import CARD, need, readme_code, with_head


@pytest.fixture(scope="module")
def images():
    shape = (4, 40, 30)
    return list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("name", ["safetensors", "stablehlo", "onnx", "timm"])
def test_reopened_export_is_the_encoder_of_its_view(
    name, images, tmp_path, monkeypatch
):
    # Bound 1e-5. Measured 2.4e-6 (timm's logits).
    need(name)
    model = with_head(tiny.mvmae_folder())
    view = "frontal" if name == "safetensors" else "LL"
    given = source.Source(model, source.classifier_of(model), CARD, view)
    report = write.export(given, name, tmp_path / "out", images)
    assert max(report.errors.values()) < 1e-5
    if name == "safetensors":
        return
    if name == "stablehlo":  # its own view's, and no other's
        frontal = given.encoder(images)
        pixels = np.stack([given.encoder.preprocess(x) for x in images])
        z, _ = write.FORMATS[name].reopen(report.path, given)(pixels)
        assert np.abs(z - frontal).max() > 1e-2
    about = json.loads((report.path / write.ABOUT).read_text())
    assert about["input"]["view"] == "LL"
    assert 1 in about["input"]["shape"]
    card = (report.path / "README.md").read_text()
    assert "grey levels, all taken for views of the kind 'LL'" in card
    monkeypatch.chdir(report.path)
    found = {}
    exec(readme_code(report.path), found)
    assert found["embedding"].shape == (3, 32)


def test_transformers_vit_has_no_place_for_it(images, tmp_path):
    need("hf")
    says = "--format hf: the encoder has qk_norm True, channels 1.*choose stablehlo"
    with pytest.raises(PacxError, match=says):
        write.export(source.Source(tiny.mvmae_folder()), "hf", tmp_path / "o", images)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--format=onnx", "--view=sideways"), "view 'sideways': this encoder knows"),
        (("--view=lateral",), "--view: a model folder keeps all views"),
    ],
)
def test_view_that_does_not_fit_is_an_error(flags, says, images, tmp_path, capsys):
    model_folder.save(tmp_path / "in", tiny.mvmae_folder(), CARD)
    (tmp_path / "x").mkdir()
    PIL.Image.fromarray(images[0]).save(tmp_path / "x" / "1.png")
    code = export.main(
        [f"--encoder={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", *flags,
         f"--images={tmp_path / 'x'}"]
    )  # fmt: skip
    assert code
    assert says in capsys.readouterr().err
