"""Files and calls as users have them: which weights are taken, and what is said."""

import argparse
import importlib.util
import os
import pathlib
import re

import numpy as np
import PIL.Image
import pytest

from pacx_jax import load_encoder
from pacx_jax.convert import __main__ as convert
from pacx_jax.convert import files, kinds
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.ecg_encoder import load_ecg_encoder
from pacx_jax.errors import PacxError
from pacx_jax.input import images
from tests import tiny
from tests.convert.test_kinds import folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None
    and not os.environ.get("PACX_REQUIRE_TORCH"),
    reason="PyTorch is not installed",
)


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def beside(raw, half):
    """Layout -> (what the file holds, the names of its sets: raw, then averaged)."""
    epoch = {"epoch": 3, "scaler": {"scale": 65536.0}}
    epoch["args"] = argparse.Namespace(lr=1e-3)
    adam = {"exp_avg": raw["cls_token"], "exp_avg_sq": raw["cls_token"]}
    epoch["optimizer"] = {"state": {0: adam}, "param_groups": [{"lr": 1e-3}]}
    center = {"center": raw["cls_token"]}  # DINO's loss holds a tensor too
    return {
        # timm, DeiT and ConvNeXt: huggingface/pytorch-image-models, train.py
        "timm": (
            epoch | {"state_dict": raw, "state_dict_ema": half},
            "state_dict",
            "state_dict_ema",
        ),
        "deit": (epoch | {"model": raw, "model_ema": half}, "model", "model_ema"),
        # facebookresearch/dino, main_dino.py
        "dino": (
            epoch
            | {
                "student": under("module.backbone.", raw),
                "teacher": under("backbone.", half),
                "dino_loss": center,
            },
            "student",
            "teacher",
        ),
        # A Lightning module that holds its average as a second network.
        "lightning": (
            epoch | {"state_dict": under("model.", raw) | under("ema_model.", half)},
            "state_dict.model",
            "state_dict.ema_model",
        ),
        "nested": (
            {"state": {"model": raw, "ema": {"shadow": half}}},
            "state.model",
            "state.ema.shadow",
        ),
    }


LAYOUTS = ["timm", "deit", "dino", "lightning", "nested"]


def to_torch(tree):
    import torch

    if isinstance(tree, dict):
        return {key: to_torch(value) for key, value in tree.items()}
    return torch.from_numpy(tree) if isinstance(tree, np.ndarray) else tree


@pytest.fixture
def raw():
    state = kinds.write("mae", folder("mae", heads=False))
    return {k.removeprefix("model."): v for k, v in state.items()}


@pytest.fixture
def half(raw):
    return {k: v if k == "pos_embed" else v * np.float32(0.5) for k, v in raw.items()}


def converted(tmp_path, capsys, held, *flags):
    import torch

    torch.save(to_torch(held), tmp_path / "m.pth")
    target = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    args = ["--kind=mae", "--num_heads=2", f"--source={tmp_path}/m.pth"]
    code = convert.main([*args, f"--target={target}", *flags])
    text = "".join(capsys.readouterr())
    assert text.count("\n") == 1
    return code, text, target


@needs_torch
@pytest.mark.parametrize("name", LAYOUTS)
def test_several_sets_of_weights_are_named_and_one_is_chosen(
    tmp_path, capsys, raw, half, name
):
    held, first, averaged = beside(raw, half)[name]
    code, text, target = converted(tmp_path, capsys, held)
    assert code == 2 and first in text and averaged in text and "--weights=" in text
    assert not target.exists()
    for flag, taken, other, state in (
        (first, first, averaged, raw),
        (averaged, averaged, first, half),
        ("model", first, averaged, raw),
        ("ema", averaged, first, half),
    ):
        code, text, target = converted(tmp_path, capsys, held, f"--weights={flag}")
        if name == "dino" and flag in ("model", "ema"):  # neither is called so
            assert code == 2 and "student, teacher" in text
            continue
        assert code == 0 and f"taken: {taken}; not taken: {other}" in text
        card = (target / "README.md").read_text()
        assert f"taken: {taken}; not taken: {other}" in card
        assert "othing was left out" not in card
        cls = model_folder.load(target).params["cls_token"]
        np.testing.assert_array_equal(cls, state["cls_token"])


@needs_torch
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "net.", "backbone."]
)
@pytest.mark.parametrize("key", ["model", "module", ""])
def test_one_set_is_found_whatever_wraps_it(tmp_path, capsys, raw, prefix, key):
    held = {key: under(prefix, raw), "epoch": 1} if key else under(prefix, raw)
    code, text, target = converted(tmp_path, capsys, held)
    assert code == 0, text
    found = kinds.write("mae", model_folder.load(target))
    for name, value in raw.items():
        np.testing.assert_array_equal(found[f"model.{name}"], value)


@needs_torch
@pytest.mark.parametrize(
    "where",
    [
        {"ema": {"decay": 0.999, "num_updates": 3, "shadow_params": 0}},  # torch_ema
        {"ema_state": {"shadow_params": 0}},
        {"averaged": 0},
    ],
)
def test_averaged_weights_in_a_list_without_keys_are_named(
    tmp_path, capsys, raw, half, where
):
    def fill(tree):
        if not isinstance(tree, dict):
            return [to_torch(v) for v in half.values()] if tree == 0 else tree
        return {key: fill(value) for key, value in tree.items()}

    name = {"ema": "ema.shadow_params", "ema_state": "ema_state.shadow_params"}.get(
        next(iter(where)), "averaged"
    )
    held = {"model": raw, "epoch": 1} | fill(where)
    for flags in ((), ("--weights=ema",)):
        code, text, target = converted(tmp_path, capsys, held, *flags)
        assert code == 2 and name in text and "--weights=model" in text
        assert not target.exists()
    code, text, target = converted(tmp_path, capsys, held, "--weights=model")
    assert code == 0 and f"taken: model; not taken: {name}" in text
    cls = model_folder.load(target).params["cls_token"]
    np.testing.assert_array_equal(cls, raw["cls_token"])


@needs_torch
@pytest.mark.parametrize("key", ["", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "model.", "averaged."])
def test_averaged_model_of_torch_is_read_without_its_counter(
    tmp_path, capsys, raw, key, prefix
):
    state = under(f"{prefix}module.", raw) | {f"{prefix}n_averaged": np.array(7)}
    code, text, target = converted(tmp_path, capsys, {key: state} if key else state)
    assert code == 0 and f"not taken: {prefix}n_averaged" in text
    found = kinds.write("mae", model_folder.load(target))
    for name, value in raw.items():
        np.testing.assert_array_equal(found[f"model.{name}"], value)


@needs_torch
@pytest.mark.parametrize("weights", ["ema", "model_ema", "teacher"])
def test_weights_that_are_not_there_are_refused(tmp_path, capsys, raw, weights):
    code, text, _ = converted(tmp_path, capsys, {"model": raw}, f"--weights={weights}")
    assert code == 2 and f"--weights={weights}: " in text
    assert "holds one set: model" in text


def test_weights_side_by_side_in_safetensors_are_chosen_too(tmp_path, raw, half):
    state = under("model.", raw) | under("ema.", half)
    files.write(tmp_path / "m.safetensors", state, "")
    anchor = "patch_embed.proj.weight"
    with pytest.raises(PacxError, match="several sets of weights, ema, model"):
        files.read(tmp_path / "m.safetensors", anchor=anchor)
    found = files.read(tmp_path / "m.safetensors", "ema", anchor)
    assert set(found.state) == set(under("ema.", half)) and found.others == ["model"]


def test_a_pointer_and_an_adapter_are_no_encoder(tmp_path):
    # a clone without git-lfs; huggingface/peft's save_pretrained
    model_folder.save(tmp_path / "vit", tiny.folder("vit"), "")
    file = tmp_path / "vit/model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    for load in (load_encoder, files.read):
        with pytest.raises(PacxError, match="git-lfs pointer: get the file by git lfs"):
            load(tmp_path / "vit")
    file.rename(tmp_path / "vit/adapter_model.safetensors")
    with pytest.raises(PacxError, match="an adapter without its model: merge them"):
        files.read(tmp_path / "vit")


def test_no_hint_names_a_package_that_nobody_registered():
    """A name that is in no registry could be registered by anybody."""
    hint = re.compile(r"pip3? install\b.*(?<!dist/)\bpacx[_-]jax")  # but for a wheel's
    own = ("pacx_jax", "configs", "data", "docs", "launch")
    paths = [ROOT / "README.md", *(p for d in own for p in (ROOT / d).rglob("*"))]
    for path in paths:
        if path.suffix not in (".py", ".md", ".sh"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not hint.search(line), (path, line)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "vit"
    model_folder.save(path, tiny.folder("vit"), "")
    return load_encoder(path, batch_size=4)


def forms(path):
    """One image and two, in every way that a call takes them."""
    rng = np.random.default_rng(0)
    two = rng.integers(0, 256, (2, 40, 30), dtype=np.uint8)
    names = [path / f"{i}.png" for i in range(2)]
    for name, image in zip(names, two, strict=True):
        PIL.Image.fromarray(image).save(name)
    one = [two[0], names[0], str(names[0]), PIL.Image.open(names[0]), two[:1]]
    one += [[two[0]], [str(names[0])], np.stack([two[0]] * 3, -1), iter([names[0]])]
    return one, [two, list(two), names, [str(x) for x in names], [two[0], names[1]]]


@pytest.mark.parametrize("method", ["__call__", "tokens", "attentions"])
def test_every_call_takes_one_image_a_list_an_array_or_paths(encoder, tmp_path, method):
    call = getattr(encoder, method)
    for count, given in enumerate(forms(tmp_path), 1):
        arrays = [call(form) for form in given]
        arrays = [a if isinstance(a, list) else [a] for a in arrays]
        assert all(len(part) == count for a in arrays for part in a)
        for other in arrays[1:]:
            for a, b in zip(arrays[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_tokens_begin_with_the_embedding(encoder):
    images = np.random.default_rng(1).integers(0, 256, (5, 40, 30), dtype=np.uint8)
    tokens = encoder.tokens(images)
    assert tokens.shape == (5, 17, 32) and tokens.dtype == np.float32
    assert tiny.relative(tokens[:, 0], encoder(images)) < 1e-6
    assert encoder.tokens([]).shape == (0, 17, 32)


def test_arrays_of_other_libraries_are_one_image(encoder):
    import jax.numpy as jnp

    image = np.random.default_rng(2).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    for array in (image, image[..., 0]):
        np.testing.assert_array_equal(encoder(jnp.asarray(array)), encoder(array))


# What np.asarray of an RGBA file gives; torch's order; a scalar.
@pytest.mark.parametrize("shape", [(40, 30, 4), (40, 30, 2), (2, 3, 40, 30), ()])
def test_rows_of_an_image_are_not_taken_for_images(encoder, shape):
    with pytest.raises(PacxError, match=r"give uint8 \(h, w\) or \(h, w, 3\), without"):
        encoder(np.zeros(shape, np.uint8))


def test_what_is_no_image_no_name_and_no_dtype_is_one_line(encoder):
    with pytest.raises(PacxError, match=r"list: no image \(.*\); give uint8"):
        encoder([[[1], [1, 2]]])
    with pytest.raises(PacxError, match=r"shape \(3, 40, 30\): if it is one image"):
        encoder(np.zeros((3, 40, 30), np.uint8))
    with pytest.raises(PacxError, match="no name of a file"):
        encoder("a\0b.png")
    for dtype in ("fp16", "int32", None):  # None would be float64
        with pytest.raises(PacxError, match=f"dtype {dtype!r}: give float32 or bf"):
            model_folder.ModelFolder("vit", tiny.VIT, {}, {}).module(dtype)


@pytest.mark.parametrize("path", [None, 3, ["a"], b"vit", ""])
def test_what_is_no_path_of_an_encoder_is_one_line(path):
    for load in (load_encoder, load_ecg_encoder):
        with pytest.raises(PacxError, match="is no path; give a model folder or a"):
            load(path)


def test_what_is_no_image_no_ecg_and_no_batch_is_one_line(encoder, tmp_path):
    for given in (None, 0, [1, 2], {"a": 1}):  # 0 would be the open file of that number
        with pytest.raises(PacxError, match="no image; give a file's path or bytes"):
            images.decode(given)
    with pytest.raises(PacxError, match="NoneType: give uint8 arrays, paths or images"):
        encoder(None)
    with pytest.raises(PacxError, match=r"image array of dtype int64 and shape \(\)"):
        encoder([1, 2])
    model_folder.save(tmp_path / "ecg", tiny.folder("ecg_net1d"), "")
    ecgs = load_ecg_encoder(tmp_path / "ecg")
    for given in (None, [1, 2], "a", [None], np.zeros((5000, 12)), [np.zeros((9, 12))]):
        with pytest.raises(PacxError, match=r"give windows of ecg.windows, each"):
            ecgs(given)
    for size in (0, -1, 2.5, "32", None):  # of 0, nothing was embedded
        with pytest.raises(PacxError, match=f"batch_size {size!r}: give a whole"):
            load_ecg_encoder(tmp_path / "ecg", batch_size=size)
