"""A DenseNet where a ViT may stand: embeddings, probes, and what it is refused for."""

import doctest
import json

import jax
import numpy as np
import PIL.Image
import pytest

from pacx_jax import Classifier, embed, export, fit_probe, load_encoder, objectives
from pacx_jax import rollout as rollout_of
from pacx_jax.commands import predict
from pacx_jax.convert import kinds
from pacx_jax.convert.options import Options
from pacx_jax.encoders import golden, model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import features, masked_inputs
from pacx_jax.models import densenet
from pacx_jax.objectives import classify
from pacx_jax.serving import model as serving
from tests import stages, tiny

SIZE = 32  # pixels: 4 x 4 cells


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """torchxrayvision's, converted, for small images."""
    state = kinds.write("densenet_xrv", tiny.densenet_folder())
    folder, _ = kinds.read("densenet_xrv", state, Options(), "file")
    path = tmp_path_factory.mktemp("densenet") / "xrv"
    model_folder.save(path, model_folder.at_size(folder, SIZE), "")
    return path


@pytest.fixture(scope="module")
def encoder(path):
    return load_encoder(path, batch_size=8)


def xrays(n=4):
    return np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE), np.uint8)


def test_pixels_are_scaled_as_torchxrayvision_does(encoder):
    z, tokens = encoder(xrays()), encoder.tokens(xrays())
    assert z.shape == (4, 9) and tokens.shape == (4, 17, 9) and tokens.min() >= 0
    np.testing.assert_allclose(tokens[:, 1:].mean(1), z, rtol=1e-5)
    scaled = (2 * (xrays()[..., None] / np.float32(255)) - 1) * 1024
    folder = tiny.densenet_folder()
    want = jax.jit(folder.module().apply)({"params": folder.params}, scaled)
    assert tiny.worst(tokens, want) < 1e-5 and tiny.worst(z, want[:, 0]) < 1e-5


def test_bfloat16_stays_near_float32(path, encoder):
    assert (
        tiny.worst(load_encoder(path, 8, "bfloat16")(xrays()), encoder(xrays())) < 0.05
    )


def test_sizes_in_docstrings_are_true():
    result = doctest.testmod(densenet)
    assert result.attempted == 2 and result.failed == 0


def test_probes_golden_images_and_the_embed_command(path, encoder, tmp_path):
    y = np.arange(40) % 2
    images = xrays(40) // 4
    images[y == 1, :16] += 150
    classifier = fit_probe(encoder, images, y)
    truth = classifier.predict(images)[:, 0] > 0.5
    assert (truth == y).mean() > 0.9
    classifier.save(tmp_path / "probe")
    again = Classifier.load(tmp_path / "probe")
    np.testing.assert_array_equal(again.predict(images), classifier.predict(images))
    assert golden.check(tmp_path / "probe").startswith("4 golden images")
    floor = features.random_like(encoder, 0)(images)
    assert floor.shape == (40, 9) and np.isfinite(floor).all() and floor.std() > 1e-3
    PIL.Image.fromarray(images[0]).save(tmp_path / "a.png")
    args = [f"--encoder={path}", f"--images={tmp_path}", f"--out={tmp_path / 'z.npz'}"]
    assert embed.main(args) == 0
    with np.load(tmp_path / "z.npz") as file:
        assert tiny.worst(file["embedding"], encoder(images[:1])) < 1e-5


def config(path, stage="classify", **fields):
    folders = {"model_init": str(path)}
    if stage == "distill":
        folders |= {f"modalities__{m}__init": "none" for m in ("ecg", "labs")}
    fields = {"data__channels": 1, "data__image_size": SIZE} | fields
    return stages.config(stage, folders, **fields)


def test_the_linear_probe_recipe_takes_it_and_exports_it(path, encoder, meshes):
    c = config(path)
    objective = objectives.make(c, meshes[1])
    params = tiny.random_start(objective) | {"encoder": encoder.params}
    batch = stages.batch("classify") | {"image": xrays(16)[..., None]}
    logits = objective.outputs(params, batch, jax.random.key(0))["logits"]
    model = classify.export(c, params, ["a", "b"])
    linear = params["head"]["linear"]
    z = Encoder(model, 8)(xrays(16))
    assert tiny.worst(z @ linear["kernel"] + linear["bias"], logits) < 1e-5
    start = model_folder.load(path)
    assert model.kind == "densenet" and model.architecture == start.architecture
    assert model.preprocessing == start.preprocessing
    assert not any(
        map(objective.trainable, ("encoder/stem/kernel", "encoder/norm/var"))
    )


@pytest.mark.parametrize(
    ("stage", "fields", "says"),
    [
        (
            "classify",
            {"tuning": "full"},
            "a densenet, which stays .*--config.tuning=lin",
        ),
        ("classify", {"data__channels": 3}, "takes 1: set config.data.channels"),
        ("distill", {}, "holds a densenet model, but a vit or unified is needed"),
        ("segment", {}, "holds a densenet model, but a vit is needed"),
    ],
)
def test_stages_that_train_an_encoder_refuse_it(path, meshes, stage, fields, says):
    with pytest.raises(PacxError, match=says):
        objectives.make(config(path, stage, **fields), meshes[1])


def test_what_a_convolutional_network_has_not_is_one_line(
    path, encoder, tmp_path, capsys
):
    with pytest.raises(PacxError, match="of a densenet model: only a vit has maps"):
        rollout_of(encoder, xrays())
    with pytest.raises(PacxError, match="pooling 'mean': a densenet has one embedding"):
        load_encoder(path, pooling="mean")
    with pytest.raises(PacxError, match="image size 36 is not divisible"):
        load_encoder(path, image_size=36)
    with pytest.raises(PacxError, match="holds a densenet model, but a vit is needed"):
        serving.load(path)
    out = f"--out={tmp_path / 'out'}"
    other = [f"--encoder={path}", "--image_size=64", f"--out={tmp_path / 'larger'}"]
    export.main(other)
    assert load_encoder(tmp_path / "larger").architecture["image_size"] == 64
    for command, args, says in (
        (masked_inputs.main, [str(path), "--data=x", out], "holds a densenet model"),
        (export.main, [f"--encoder={path}", "--format=onnx", out], "only a vit has"),
        (export.main, [f"--encoder={path}", "--format=timm", out], "only a vit has"),
    ):
        assert command(args) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1


def test_predict_refuses_its_maps_before_it_reads_an_image(encoder, tmp_path, capsys):
    y, out = np.arange(40) % 2, tmp_path / "p.csv"
    fit_probe(encoder, xrays(40), y).save(tmp_path / "probe")
    flags = [f"--model={tmp_path / 'probe'}", "--images=/nowhere", f"--out={out}"]
    assert predict.main([*flags, f"--rollout={tmp_path / 'maps'}"]) == 2
    said = capsys.readouterr().err
    assert "a densenet has no attention maps" in said and said.count("\n") == 1
    assert not out.exists() and not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blocks": 3}, "blocks is 3: 1 to 8 numbers of layers"),
        ({"blocks": [2, -1]}, "is -1"),
        ({"blocks": [2, 0]}, "must be whole numbers above 0"),
        ({"growth": 3.0}, "must be whole numbers above 0"),
        ({"channels": 2}, "channels is 2: 1 or 3"),
        ({"image_size": 36}, "image_size 36: 2 blocks make cells of 8 pixels"),
        ({"patch_size": 4}, "patch_size 4 and .* make cells of 8 pixels a side"),
        ({"stem": 4}, "is .*6,., not .4,."),
    ],
)
def test_a_damaged_description_is_refused(path, tmp_path, change, says):
    model_folder.save(tmp_path / "x", model_folder.load(path), "")
    file = tmp_path / "x" / "config.json"
    about = json.loads(file.read_text())
    about["architecture"] |= change
    file.write_text(json.dumps(about))
    with pytest.raises(PacxError, match=says):
        load_encoder(tmp_path / "x")
