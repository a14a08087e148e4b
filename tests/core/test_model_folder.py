"""Model folders: what is written comes back, and a wrong one is told as such."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from tests import tiny


@pytest.mark.parametrize("kind", ["vit", "ecg_net1d", "labs_dae"])
def test_folder_comes_back_equal(tmp_path, kind):
    model = tiny.folder(kind)
    model_folder.save(tmp_path / "m", model, "# A card\n")
    back = model_folder.load(tmp_path / "m", kind)
    assert dataclasses.replace(back, params={}) == dataclasses.replace(model, params={})
    want, got = tiny.flat(model.params), tiny.flat(back.params)
    assert want.keys() == got.keys()
    for name in want:
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], want[name])
    assert (tmp_path / "m" / "README.md").read_text() == "# A card\n"
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize(
    ("kind", "width"), [("vit", 32), ("ecg_net1d", 16), ("labs_dae", 8)]
)
def test_width_is_the_length_of_the_embedding(kind, width):
    model = tiny.folder(kind)
    args = {
        "vit": (np.zeros((1, 32, 32, 3), np.float32),),
        "ecg_net1d": (np.zeros((1, 64, 12), np.float32),),
        "labs_dae": (np.zeros((1, 50), np.float32),) * 2,
    }[kind]
    out = model.module().apply({"params": model.params}, *args)
    assert model.width == width == out.shape[-1]


def test_arrays_that_are_not_contiguous_are_written_rightly(tmp_path):
    # safetensors 0.x writes the bytes of the base array, without a word.
    model = tiny.folder("vit")
    flat = tiny.flat(model.params)
    name = "block_00/attn/qkv/kernel"
    flat[name] = np.asfortranarray(flat[name])
    flat["cls_token"] = np.repeat(flat["cls_token"], 2, axis=-1)[..., ::2]
    assert not flat[name].flags.c_contiguous
    assert not flat["cls_token"].flags.c_contiguous
    moved = dataclasses.replace(model, params=tiny.unflat(flat))
    model_folder.save(tmp_path / "m", moved, "")
    back = tiny.flat(model_folder.load(tmp_path / "m").params)
    for key in (name, "cls_token"):
        np.testing.assert_array_equal(back[key], flat[key])


def test_existing_folder_is_replaced_whole(tmp_path):
    model_folder.save(tmp_path / "m", tiny.folder("labs_dae", 0), "")
    model_folder.save(tmp_path / "m", tiny.folder("labs_dae", 1), "")
    back = model_folder.load(tmp_path / "m").params
    want = tiny.folder("labs_dae", 1).params
    np.testing.assert_array_equal(back["fc1"]["kernel"], want["fc1"]["kernel"])


def test_weights_that_do_not_fit_are_not_written(tmp_path):
    model_folder.save(tmp_path / "m", tiny.folder("labs_dae"), "old")
    wrong = dataclasses.replace(tiny.folder("labs_dae"), params={"fc1": {}})
    with pytest.raises(PacxError, match="missing fc1.bias"):
        model_folder.save(tmp_path / "m", wrong, "new")
    assert (tmp_path / "m" / "README.md").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def written(tmp_path):
    model_folder.save(tmp_path / "m", tiny.folder("labs_dae"), "")
    return tmp_path / "m"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    flat = safetensors.numpy.load_file(path)
    change(flat)
    safetensors.numpy.save_file(flat, path)


def message(folder, kind=None) -> str:
    with pytest.raises(PacxError) as error:
        model_folder.load(folder, kind)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text
    return text


def test_every_misfit_is_listed_by_name(written):
    def change(flat):
        del flat["fc1.bias"]
        flat["decoder.fc1.bias"] = np.zeros(3, np.float32)
        flat["fc2.bias"] = np.zeros(9, np.float32)
        flat["norm.scale"][3] = np.nan

    rewrite(written, change)
    text = message(written)
    assert "missing fc1.bias" in text
    assert "unexpected decoder.fc1.bias" in text
    assert "fc2.bias is (9,), not (8,)" in text
    assert "norm.scale has values that are not finite" in text


def test_long_lists_of_misfits_are_cut_with_their_number(tmp_path):
    model_folder.save(tmp_path / "m", tiny.folder("vit"), "")
    rewrite(tmp_path / "m", lambda flat: [flat.pop(k) for k in list(flat)[:12]])
    text = message(tmp_path / "m")
    assert text.count("missing") == 8 and text.endswith("and 4 more")


def test_model_of_another_kind_is_an_error(written):
    assert "holds a labs_dae model, but a vit is needed" in message(written, "vit")


def test_folder_that_is_not_there_or_holds_no_model_is_an_error(tmp_path):
    assert "no such folder" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no model.safetensors" in message(tmp_path / "empty")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"kind": "vit"}', "null", "\x00\xff"]
)
def test_damaged_description_is_an_error(written, text):
    (written / "config.json").write_text(text, encoding="latin-1")
    assert "config.json is missing or damaged" in message(written)


def test_missing_description_is_an_error(written):
    (written / "config.json").unlink()
    assert "config.json is missing or damaged" in message(written)


def change_description(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"format": 2}, "has format 2; this reads 1"),
        ({"kind": "resnet"}, "'resnet' is none of vit, densenet, ecg_net1d, labs_dae"),
        ({"architecture": {}}, "bad architecture"),
        ({"architecture": None}, "bad architecture"),
        ({"architecture": {"features": 50, "depth": 3}}, "bad architecture"),
        ({"architecture": tiny.LABS | {"hidden": "many"}}, "bad architecture"),
        ({"architecture": tiny.LABS | {"hidden": -1}}, "bad architecture"),
    ],
)
def test_description_of_another_world_is_an_error(written, fields, expected):
    change_description(written, **fields)
    with pytest.raises(PacxError, match=expected):
        model_folder.load(written)


def test_truncated_weights_are_an_error(written):
    path = written / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "model.safetensors is unreadable" in message(written)


def test_finished_run_stands_for_its_export(tmp_path):
    model_folder.save(tmp_path / "run" / "export", tiny.folder("labs_dae"), "")
    assert model_folder.resolve(tmp_path / "run") == tmp_path / "run" / "export"
    assert model_folder.load(tmp_path / "run", "labs_dae").width == 8


def test_folder_of_the_users_is_never_replaced(tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "sub").mkdir(parents=True)
    (theirs / "sub" / "thesis.txt").write_text("years of work")
    (tmp_path / "theirs.old").mkdir()
    with pytest.raises(PacxError, match="exists and is no model folder"):
        model_folder.save(theirs, tiny.folder("labs_dae"), "")
    assert (theirs / "sub" / "thesis.txt").read_text() == "years of work"
    for _ in range(2):  # a new one, then in the place of an old one
        model_folder.save(tmp_path / "ours", tiny.folder("labs_dae"), "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ours",
        "theirs",
        "theirs.old",
    ]
