"""Objectives that start from an encoder of views and grey images, like from any MAE."""

import jax
import numpy as np
import pytest

from pacx_jax import objectives
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from tests import tiny


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "mvmae"
    model_folder.save(path, tiny.mvmae_folder(), "")
    return str(path)


def config(recipe, start, **fields):
    c = tiny.config(recipe, model_init=start, data__image_size=32, dtype="float32")
    for name, value in ({"data__channels": 1} | fields).items():
        node = c
        *path, leaf = name.split("__")
        for part in path:
            node = node[part]
        with node.unlocked():
            node[leaf] = value
    return c


def batch(b=4, **entries):
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (b, 32, 32, 1), dtype=np.uint8), **entries}


def test_a_probe_sees_the_encoders_embedding(start):
    # Bound 1e-5. Measured 9.5e-7.
    c = config("linear_probe", start, data__label_columns=("a",))
    objective, model = objectives.make(c, None), tiny.mvmae_folder()
    params = tiny.random_start(objective) | {"encoder": model.params}
    ones = np.ones((4, 1), np.float32)
    given = batch(labels=ones, label_mask=ones)
    outputs = jax.jit(lambda params, given: objective.outputs(params, given, None))
    got = outputs(params, given)["logits"]
    head = params["head"]["linear"]
    want = Encoder(model)(given["image"]) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_distillation_trains_the_norms_of_q_and_k_too(start, meshes, tmp_path):
    fields = tiny.write_folders(tmp_path)
    del fields["model_init"]
    fields |= {"data__mean": (0.5056,), "data__std": (0.252,), "lora__rank": 2}
    c = config("distill_vitb16", start, **fields)
    objective = objectives.make(c, meshes[1])
    params = jax.eval_shape(objective.init, jax.random.key(0))
    trained = [k for k in tiny.flat(params) if objective.trainable(k)]
    assert "encoder/block_00/attn/q_norm/scale" in trained
    assert "encoder/view_embed" not in trained
    rng = np.random.default_rng(0)
    given = batch(
        ecg_embedding=rng.normal(size=(4, 16)), labs_embedding=rng.normal(size=(4, 8))
    )
    out, _ = jax.eval_shape(
        lambda p: objective.loss(p, given, jax.random.key(0), train=True), params
    )
    assert out.shape == ()
    folder = objectives.load("distill").export(c, tiny.random_start(objective))
    assert folder.architecture == tiny.VIT | tiny.MVMAE
    assert folder.preprocessing["mean"] == [0.5056]


def test_masks_are_decoded_from_its_patch_tokens(start):
    c = config("segment", start, decoder__width=8)
    objective = objectives.make(c, None)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    given = batch(target=np.zeros((4, 32, 32), np.uint8))
    out = jax.eval_shape(lambda p: objective.outputs(p, given, None), params)
    assert out["bce"].shape == (4,)


def test_colour_images_for_it_are_an_error(start):
    c = config("linear_probe", start, data__channels=3, data__label_columns=("a",))
    says = "config.data.channels is 3, but the encoder in .* takes 1: set"
    with pytest.raises(PacxError, match=says):
        objectives.make(c, None)


def mae_config(start, parts=()):
    model = {
        "variant": "mu", "patch_size": 8, "channels": 1, "qk_norm": True, "views": 3,
        "posemb": "learned", "posemb_cls": False, "final_ln_eps": 1e-5,
    }  # fmt: skip
    decoder = {"width": 32, "depth": 1, "num_heads": 2, "posemb": "learned"}
    fields = {f"model__{k}": v for k, v in model.items()}
    fields |= {f"model__decoder__{k}": v for k, v in decoder.items()}
    fields |= {"model__decoder__project": False, "model_init_parts": parts}
    fields |= {"data__mean": (0.5056,), "data__std": (0.252,)}
    return config("mae_vitb16", start, **fields)


def test_an_mae_of_grey_images_trains_on_from_it_and_is_exported(start):
    c = mae_config(start, ("encoder",))
    objective = objectives.make(c, None)
    params = tiny.random_start(objective)
    key = jax.random.key(0)
    pictures = jax.eval_shape(lambda p: objective.images(p, batch(), key), params)
    assert pictures["reconstruction"].shape == (4, 32, 96, 1)
    folder = objectives.load("mae").export(c, params)
    assert folder.architecture == tiny.VIT | tiny.MVMAE
    assert folder.heads.architecture["patch_pixels"] == 64
    c.model.final_ln_eps = 0.0
    with pytest.raises(PacxError, match="its final_ln_eps is 1e-05, here 0.0: set"):
        objectives.make(c, None)
