"""Images and embeddings that travel with an exported encoder, and `embed --check`."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from data.cohort import golden_films
from pacx_jax import embed
from pacx_jax.encoders import golden, model_folder
from tests import tiny


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "encoder"
    model = tiny.folder("vit")
    model_folder.save(path, model, "card", golden.beside(model))
    return path


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "encoder")


def check(folder, capsys, *flags):
    code = embed.main([f"--encoder={folder}", "--check", *flags])
    out, err = capsys.readouterr()
    return code, out if not code else err


def test_an_export_brings_four_images_and_their_embeddings(folder, capsys):
    found = safetensors.numpy.load_file(folder / golden.FILE)
    assert found["images"].shape == (4, 64, 64) and found["images"].std() > 20
    encoder = tiny.model_folder.load(folder)
    z = golden.xray_encoder.Encoder(encoder)(list(found["images"]))
    np.testing.assert_allclose(found["embedding"], z, atol=1e-5)
    gaps = np.abs(z[:, None] - z[None]).max(-1)[np.triu_indices(4, 1)]
    assert gaps.min() > 100 * golden.TOLERANCE  # the images are not alike to it
    code, out = check(folder, capsys)
    assert not code and "4 golden images: largest difference" in out
    assert model_folder.is_ours(folder)  # and is replaced by the next export


def test_the_images_are_films_of_the_cohort():
    """Drawn again; rounding may move a grey level."""
    kept, drawn = golden.images(), golden_films.draw()
    assert kept.dtype == np.uint8 and kept.shape == drawn.shape == (4, 64, 64)
    assert np.abs(np.int32(kept) - drawn).max() <= 1


def test_other_weights_or_statistics_are_told_in_one_line(folder, capsys):
    file = folder / "model.safetensors"
    flat = safetensors.numpy.load_file(file)
    name = next(k for k in flat if k.endswith("norm.scale"))
    safetensors.numpy.save_file(flat | {name: flat[name] * np.float32(1.01)}, file)
    code, error = check(folder, capsys)
    assert code == 2 and error.count("\n") == 1
    assert "its embeddings are not those that it was exported with (image" in error
    assert "the tolerance is" in error
    safetensors.numpy.save_file(flat, file)
    assert check(folder, capsys)[0] == 0
    about = json.loads((folder / "config.json").read_text())
    about["preprocessing"]["std"] = [0.2, 0.2, 0.2]
    (folder / "config.json").write_text(json.dumps(about))
    assert "are not those that it was exported with" in check(folder, capsys)[1]


def test_golden_files_that_cannot_be_compared_are_refused(folder, capsys):
    file = folder / golden.FILE
    found = safetensors.numpy.load_file(file)
    narrow = {**found, "embedding": found["embedding"][:, :-1].copy()}
    for data, said in (
        (safetensors.numpy.save(narrow), "is of an encoder of width 31, and this one"),
        (safetensors.numpy.save({"images": found["images"]}), "is damaged"),
        (b"x", "is damaged"),
    ):
        file.write_bytes(data)
        code, error = check(folder, capsys)
        assert code == 2 and said in error and error.count("\n") == 1
    file.unlink()
    assert "has no golden.safetensors, being of an earlier" in check(folder, capsys)[1]


def test_an_older_file_is_compared_on_its_own_images(folder, capsys):
    model, file = model_folder.load(folder), folder / golden.FILE
    kept = file.read_bytes()
    others = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    found = {"images": others, "embedding": golden.embed(model, others)}
    safetensors.numpy.save_file(found, file)
    assert check(folder, capsys)[0] == 0
    found["embedding"] = found["embedding"][::-1].copy()
    safetensors.numpy.save_file(found, file)
    assert "are not those that it was exported with" in check(folder, capsys)[1]
    file.write_bytes(kept)


def test_check_takes_no_other_flags(folder, capsys):
    code, error = check(folder, capsys, "--dtype=bfloat16")
    assert code == 2 and "--dtype does not go with --check" in error
    code = embed.main([f"--encoder={folder}", f"--images={folder}"])
    assert code == 2 and "--out is missing" in capsys.readouterr().err
