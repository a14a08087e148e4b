"""Every objective that has a model_init starts from it, or refuses it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from pacx_jax import load_encoder
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.objectives import ecg, labs_dae
from pacx_jax.run import setup
from tests import tiny
from tests.convert.test_kinds import folder

KEY = jax.random.key(0)


@pytest.fixture
def saved(tmp_path):
    def save(model):
        model_folder.save(tmp_path / "f", model, "card")
        return str(tmp_path / "f")

    return save


def test_an_ecg_encoder_starts_from_a_converted_one(saved):
    model = folder("ecgfounder")
    config = tiny.config("ecg_net1d", "runlocal", model_init=saved(model))
    config.model.update({k: tuple(v) if isinstance(v, list) else v
                         for k, v in model.architecture.items()})  # fmt: skip
    config.data.label_columns = ("x", "y", "z", "w")  # not those it was trained on
    loaded = setup.load_parts(ecg.make(config), KEY)
    assert set(loaded) == {"encoder"}
    same(loaded["encoder"], model.params)


def test_a_labs_autoencoder_starts_with_its_decoder(saved):
    model = folder("labs_dae")
    config = tiny.config("labs_dae", "runlocal", model_init=saved(model))
    config.model.update(hidden=16, latent=8)
    loaded = setup.load_parts(labs_dae.make(config), KEY)
    same(loaded["encoder"], model.params)
    same(loaded["decoder"], model.heads.params["decoder"])


def same(a, b):
    a, b = tiny.flat(a), tiny.flat(b)
    assert set(a) == set(b)
    assert all(np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a)


def test_a_folder_of_another_kind_is_refused(saved):
    config = tiny.config("labs_dae", "runlocal", model_init=saved(folder("mae")))
    with pytest.raises(PacxError, match="its encoder is not that of config.model"):
        setup.load_parts(labs_dae.make(config), KEY)


@pytest.mark.parametrize("name, value", [("mean", None), ("std", [0.1, 0, 0.1])])
def test_damaged_statistics_are_one_line(saved, name, value):
    path = saved(folder("vit_timm"))
    file = f"{path}/config.json"
    about = json.load(open(file))
    about["preprocessing"][name] = value
    json.dump(about, open(file, "w"))
    with pytest.raises(PacxError, match=f"preprocessing.{name} is"):
        load_encoder(path)


def test_weights_of_another_type_are_refused(saved):
    path = saved(folder("vit_timm"))
    flat = safetensors.numpy.load_file(f"{path}/model.safetensors")
    flat["norm.bias"] = flat["norm.bias"].astype(np.float16)
    safetensors.numpy.save_file(flat, f"{path}/model.safetensors")
    with pytest.raises(PacxError, match="norm.bias is float16, not float32"):
        load_encoder(path)


def test_heads_that_do_not_divide_the_width_are_one_line(saved):
    model = folder("vit_timm")
    bad = dataclasses.replace(model, architecture=model.architecture | {"num_heads": 5})
    with pytest.raises(PacxError, match="width 32 is not divisible by num_heads 5"):
        saved(bad)
