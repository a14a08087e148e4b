"""Distillation into CheXmix's model: what moves, the exported folder, bad input."""

import jax
import numpy as np
import pytest

from pacx_jax import load_encoder, lora, objectives, sharding, step
from pacx_jax.encoders import golden, model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input import tokenizer
from pacx_jax.input.normalize import normalize
from pacx_jax.run import setup
from tests import tiny

MOVED = ("heads/", "lora/", "encoder/transformer/block_00/norm", "logit_scale")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Teachers, and a model whose embedding is of the first of its two blocks."""
    path = tmp_path_factory.mktemp("models")
    found = tiny.write_folders(path)
    words = tokenizer.load(str(path / "tokenizer.json"))
    model_folder.save(path / "unified", tiny.unified_folder(words), card="a test's")
    return found | {"model_init": str(path / "unified"), "vq": path / "image_tokenizer"}


def config(folders, **fields):
    given = {k: v for k, v in folders.items() if k != "vq"}
    own = {"data__image_size": 16, "data__channels": 1, "global_batch_size": 8}
    own |= {"data__mean": (0.5056,), "data__std": (0.252,), "lora__rank": 2}
    return tiny.distill_config(given, **(own | fields))


def batch(b=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (b, 16, 16, 1), dtype=np.uint8),
        "ecg_embedding": rng.normal(size=(b, 16)).astype(np.float32),
        "labs_embedding": rng.normal(size=(b, 8)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def trained(folders, meshes):
    """All parameters by path, before two steps and after them."""
    c = config(folders)
    run = setup.assemble(c, meshes[1], objectives.make(c, meshes[1]))
    state, found = run.init(), []
    for steps in (0, 2):
        for _ in range(steps):
            state, metrics = run.train_step(
                state, sharding.put_batch(batch(), meshes[1]), run.step_key
            )
            assert np.isfinite(metrics["loss"])
        whole = step.merge_params(state.params, state.frozen)
        found.append(jax.device_get(whole))
    return found


def test_adapters_heads_and_norms_of_the_blocks_that_embed_move_alone(trained):
    before, after = map(tiny.flat, trained)
    moved = {k for k in before if not np.array_equal(before[k], after[k])}
    assert moved == {k for k in before if k.startswith(MOVED)}
    assert {k.split("/")[2] for k in before if k.startswith("lora/")} == {"block_00"}
    assert "lora/transformer/block_00/attn/qkv/b" in moved
    assert "encoder/vq/codebook/codes" in before


def test_exported_folder_embeds_with_the_adapters_merged(folders, trained, tmp_path):
    # Bound 1e-5. Measured 3.6e-7.
    c, params = config(folders), trained[1]
    folder = objectives.load("distill").export(c, params)
    model_folder.save(tmp_path / "out", folder, "a test's", golden.beside(folder))
    again, start = map(model_folder.load, (tmp_path / "out", folders["model_init"]))
    assert again.kind == "unified" and again.architecture == start.architecture
    assert again.preprocessing == start.preprocessing
    images = batch(3)["image"]
    module = start.module()
    with lora.applied(params["lora"], alpha=c.lora.alpha):
        x = normalize(images, c.data.mean, c.data.std)
        want = module.apply({"params": params["encoder"]}, x, cls_only=True)[:, 0]
    z = load_encoder(tmp_path / "out")(images)
    print(np.abs(z - want).max())
    np.testing.assert_allclose(z, want, atol=1e-5)
    assert np.abs(z - load_encoder(folders["model_init"])(images)).max() > 1e-4
    jax.tree.map(np.testing.assert_array_equal, again.params["vq"], start.params["vq"])


@pytest.mark.parametrize(
    ("tuning", "moves"),
    [("full", {"token_embed", "block_00"}), ("last_n_blocks", {"block_00"})],
)
def test_other_tunings_train_no_more_than_what_embeds(folders, meshes, tuning, moves):
    objective = objectives.make(config(folders, tuning=tuning), meshes[1])
    shapes = tiny.flat(jax.eval_shape(objective.init, jax.random.key(0)))
    paths = [k.split("/") for k in shapes if objective.trainable(k)]
    assert {tuple(p[1:3]) for p in paths if p[0] == "encoder"} == {
        ("transformer", name) for name in moves
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_init": "VQ"}, "holds a vq model, but a vit or unified is needed here"),
        ({"data__image_size": 32}, "image_size is 32, but the encoder in .* has 16"),
        ({"data__channels": 3}, "channels is 3, but the encoder in .* takes 1"),
        ({"data__mean": (0.4,)}, "config.data.mean is .0.4., but the encoder"),
        (
            {"tuning": "norms", "train_norms": "final"},
            "nothing of the encoder: .* all$",
        ),
        ({"lora__targets": ("query",)}, "lora targets .'query'. name no dense layer"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(fields, message, folders, meshes):
    if fields.get("model_init"):
        fields = {"model_init": str(folders["vq"])}
    with pytest.raises(PacxError, match=message):
        objective = objectives.make(config(folders, **fields), meshes[1])
        jax.eval_shape(objective.init, jax.random.key(0))
