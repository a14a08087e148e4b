"""load_encoder and the embed command with an encoder of views and grey images."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from pacx_jax import embed, load_encoder
from pacx_jax.encoders import model_folder, model_heads
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import features, rollout
from pacx_jax.models import mae
from tests import tiny

DECODER = {
    "width": 32, "depth": 1, "num_heads": 2, "encoder_width": 32, "patch_pixels": 64,
    "ln_eps": 1e-6, "qk_norm": True, "views": 3, "final_ln_eps": 1e-5,
    "project": False, "posemb_grid": [4, 4],
}  # fmt: skip


def with_decoder(model):
    shapes = model_heads.shapes("mae", DECODER, {})
    rng = np.random.default_rng(5)
    flat = {k.replace(".", "/"): rng.normal(size=s).astype(np.float32)
            for k, s in sorted(shapes.items())}  # fmt: skip
    return dataclasses.replace(model, heads=Heads("mae", DECODER, tiny.unflat(flat)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "mvmae"
    model_folder.save(path, with_decoder(tiny.mvmae_folder()), "")
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder, batch_size=4)


def xray(seed=0, shape=(50, 40)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_folder_comes_back_with_its_fields_and_its_decoder(folder):
    was, found = with_decoder(tiny.mvmae_folder()), model_folder.load(folder, "vit")
    assert found.architecture == was.architecture == tiny.VIT | tiny.MVMAE
    assert found.preprocessing["grey"] == "one channel; colour to grey by PIL's luma"
    assert found.heads.architecture == DECODER
    for a, b in ((was.params, found.params), (was.heads.params, found.heads.params)):
        a, b = tiny.flat(a), tiny.flat(b)
        assert all(a[k].tobytes() == b[k].tobytes() for k in {*a, *b})
    fields = {k: v for k, v in DECODER.items() if k != "encoder_width"}
    assert mae.decoder(fields).posemb_grid == (4, 4)
    assert found.module().qk_norm and found.module().posemb_grid == (4, 4)


def test_embeddings_are_those_of_the_module_for_each_view(encoder, folder):
    # Bound 1e-5. Measured 7.2e-7.
    images = [xray(0), xray(1, (32, 32)), xray(2, (90, 20))]
    model = model_folder.load(folder)
    pil = [PIL.Image.fromarray(x).resize((32, 32), PIL.Image.BILINEAR) for x in images]
    x = (np.stack([np.asarray(p)[..., None] for p in pil]) / 255 - 0.5056) / 0.252
    module, view = model.module(), np.array([1, 0, 2])
    want = module.apply({"params": model.params}, np.float32(x), view=view)[:, 0]
    got = encoder(images, views=["lateral", "PA", "oblique"])
    assert tiny.worst(got, want) < 1e-5
    assert tiny.worst(encoder.tokens(images, ["LL", "AP", ""])[:, 0], want) < 1e-5


def test_no_views_are_frontal_and_one_name_is_for_all(encoder):
    images = [xray(i) for i in range(5)]
    frontal, lateral = encoder(images), encoder(images, "lateral")
    np.testing.assert_array_equal(frontal, encoder(images, ["PA"] * 5))
    np.testing.assert_array_equal(lateral, encoder(images, ["RL"] * 5))
    assert np.abs(frontal - lateral).max() > 1e-2
    assert encoder([]).shape == (0, 32)


def test_colour_becomes_grey_by_luma(encoder):
    colour = xray(1, (32, 32, 3))
    luma = np.asarray(PIL.Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(encoder.preprocess(colour)[..., 0], luma)
    triple = np.repeat(xray()[..., None], 3, -1)
    np.testing.assert_array_equal(encoder(triple), encoder(xray()))
    assert encoder.preprocess(xray()).shape == (32, 32, 1)


@pytest.mark.parametrize(
    "views, says",
    [
        (
            ["PA", "sideways"],
            "view 'sideways': this encoder knows frontal, lateral, unk",
        ),
        (["PA"], "1 views for 2 images: give one each, or one for all"),
        (["PA"] * 3, "3 views for 2 images"),
    ],
)
def test_views_that_do_not_fit_are_an_error(encoder, views, says):
    with pytest.raises(PacxError, match=says):
        encoder([xray(0), xray(1)], views)


def test_views_for_an_encoder_without_them_are_an_error(tmp_path):
    model_folder.save(tmp_path / "vit", tiny.folder("vit"), "")
    with pytest.raises(PacxError, match="this encoder has no view embeddings"):
        load_encoder(tmp_path / "vit")([xray()], ["PA"])


def test_statistics_of_other_channels_are_an_error(tmp_path):
    about = model_folder.image_preprocessing((0.5,) * 3, (0.5,) * 3)
    model = dataclasses.replace(tiny.mvmae_folder(), preprocessing=about)
    with pytest.raises(
        PacxError, match=r"mean is \[0.5, 0.5, 0.5\]; it must be one num"
    ):
        model_folder.save(tmp_path / "x", model, "")


def test_attention_and_rollout_are_of_the_view(encoder):
    images = [xray(0), xray(1)]
    maps = encoder.attentions(images, ["PA", "lateral"])
    assert [m.shape for m in maps] == [(2, 2, 17, 17)] * 2
    np.testing.assert_allclose(maps[0].sum(-1), 1, atol=1e-5)
    frontal = encoder.attentions(images)
    np.testing.assert_array_equal(maps[1][0], frontal[1][0])
    assert np.abs(maps[1][1] - frontal[1][1]).max() > 1e-4
    assert rollout.rollout_maps(maps, 32).shape == (2, 32, 32)


def test_positions_without_cls_serve_another_image_size(folder):
    other = load_encoder(folder, image_size=48)
    assert other.architecture["posemb_grid"] == [6, 6]
    assert other([xray()], ["LL"]).shape == (1, 32)
    assert other.tokens([xray()]).shape == (1, 37, 32)


def test_random_encoder_is_of_the_same_kind(folder):
    floor = features.random_encoder(model_folder.load(folder), 0)
    assert floor([xray()], "lateral").shape == (1, 32)


def test_command_embeds_a_folder_as_one_view(folder, encoder, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(3):
        PIL.Image.fromarray(xray(i)).save(tmp_path / "in" / f"{i}.png")
    flags = [f"--encoder={folder}", f"--images={tmp_path / 'in'}"]
    for view in (None, "LL"):
        out = tmp_path / f"{view}.npz"
        more = [f"--view={view}"] if view else []
        assert not embed.main([*flags, *more, f"--out={out}"])
        want = encoder([xray(i) for i in range(3)], view)
        assert tiny.worst(np.load(out)["embedding"], want) < 1e-5
    assert embed.main([*flags, "--view=sideways", f"--out={tmp_path / 'x.npz'}"])
    assert "view 'sideways': this encoder knows" in capsys.readouterr().err
