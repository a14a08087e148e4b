"""Files of weights: whole, safe, and nothing written over."""

import argparse
import importlib.util
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.numpy

from pacx_jax import errors, load_encoder
from pacx_jax.convert import __main__ as command
from pacx_jax.convert import files, kinds
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from tests.convert.test_kinds import OPTIONS, assert_same, everything, folder

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None
    and not os.environ.get("PACX_REQUIRE_TORCH"),
    reason="PyTorch is not installed",
)
HEADS = ["--num_heads=2", "--decoder_num_heads=2"]


def run(capsys, *args) -> tuple[int, str]:
    try:
        code = command.main([str(a) for a in args])
    except SystemExit as ended:  # argparse's own refusals
        code = ended.code
    out = capsys.readouterr()
    text = out.out + out.err
    assert text.count("\n") == 1, text
    return code, text


@pytest.fixture
def state():
    return kinds.write("mae", folder("mae"))


def test_safetensors_need_no_pytorch(tmp_path, capsys, state, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    file, target = tmp_path / "m.safetensors", tmp_path / "folder"
    files.write(file, state, "state_dict")
    code, text = run(
        capsys, "--kind=mae", f"--source={file}", f"--target={target}", *HEADS
    )
    assert code == 0 and f"{len(state)} tensors" in text
    back = tmp_path / "back.safetensors"
    code, _ = run(
        capsys, "--kind=mae", "--to=torch", f"--source={target}", f"--target={back}"
    )
    assert code == 0
    assert_same(files.read(back).state, state)
    code, text = run(capsys, "--kind=mae", "--source=x.pt", "--target=y")
    assert code == 2 and "x.pt: no such file" in text
    (tmp_path / "x.pt").write_bytes(b"PK")
    code, text = run(
        capsys, "--kind=mae", f"--source={tmp_path}/x.pt", f"--target={tmp_path}/y"
    )
    assert code == 2 and "pip install -e '.[convert]'" in text


def test_a_converted_folder_embeds_and_starts_training(tmp_path, capsys, state):
    from pacx_jax.objectives import mae
    from pacx_jax.run import setup
    from tests import tiny

    files.write(tmp_path / "m.safetensors", state, "")
    run(
        capsys,
        "--kind=mae",
        f"--source={tmp_path}/m.safetensors",
        f"--target={tmp_path}/folder",
        *HEADS,
    )
    image = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    assert load_encoder(tmp_path / "folder")(image).shape == (1, 32)
    config = tiny.config("mae_vitb16", model_init=str(tmp_path / "folder"))
    config.model.update(variant="mu", patch_size=8)
    config.model.decoder.update(width=16, depth=2, num_heads=2)
    config.data.image_size = 32
    loaded = setup.load_parts(mae.make(config), __import__("jax").random.key(0))
    assert set(loaded) == {"encoder", "decoder"}
    token = state["model.mask_token"]
    assert loaded["decoder"]["mask_token"].tobytes() == token.tobytes()


def test_nothing_is_written_over_or_left_half_written(tmp_path, capsys, state):
    file = tmp_path / "m.safetensors"
    files.write(file, state, "")
    with pytest.raises(PacxError, match="exists: give another --target"):
        files.write(file, state, "")
    del state["model.norm.bias"]
    bad = tmp_path / "bad.safetensors"
    files.write(bad, state, "")
    code, text = run(
        capsys, "--kind=mae", f"--source={bad}", f"--target={tmp_path}/f", *HEADS
    )
    assert code == 2 and "missing model.norm.bias" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.safetensors", file.name]


def test_a_truncated_safetensors_file_is_one_line(tmp_path, capsys, state):
    file = tmp_path / "m.safetensors"
    files.write(file, state, "")
    file.write_bytes(file.read_bytes()[:-100])
    code, text = run(
        capsys, "--kind=mae", f"--source={file}", f"--target={tmp_path}/f", *HEADS
    )
    assert code == 2 and "no whole safetensors file" in text


def test_a_hugging_face_folder_tells_its_heads_and_statistics(tmp_path, capsys):
    model = folder("vit_hf", posemb_grid=[4, 4], num_heads=4)
    source = tmp_path / "hf"
    source.mkdir()
    state = kinds.write("vit_hf", model)
    safetensors.numpy.save_file(state, source / "model.safetensors")
    config = {"num_attention_heads": 4, "layer_norm_eps": 1e-7, "hidden_act": "gelu"}
    (source / "config.json").write_text(json.dumps(config))
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (source / "preprocessor_config.json").write_text(json.dumps(images))
    target = tmp_path / "out"
    code, _ = run(capsys, "--kind=vit_hf", f"--source={source}", f"--target={target}")
    assert code == 0
    found = model_folder.load(target)
    assert found.architecture["num_heads"] == 4
    assert found.architecture["ln_eps"] == 1e-7
    assert found.preprocessing["mean"] == [0.1, 0.2, 0.3]
    assert_same(everything(found), everything(model))


@needs_torch
@pytest.mark.parametrize("container", ["state_dict", "model", ""])
def test_pytorch_files_are_read_whatever_holds_the_weights(tmp_path, container, state):
    files.write(tmp_path / "m.pth", state, container)
    assert_same(files.read(tmp_path / "m.pth").state, state)


@needs_torch
def test_the_mae_repositorys_namespace_is_no_obstacle(tmp_path, state):
    import torch

    tensors = {k.removeprefix("model."): torch.tensor(v) for k, v in state.items()}
    args = argparse.Namespace(lr=1e-3, model="mae_vit_base_patch16")
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3}]}
    torch.save(
        {"model": tensors, "args": args, "optimizer": optimizer, "epoch": 3},
        tmp_path / "m.pth",
    )

    found, _ = kinds.read("mae", files.read(tmp_path / "m.pth").state, OPTIONS, "m.pth")
    assert_same(kinds.write("mae", found), state)


@needs_torch
def test_half_precision_becomes_float32(tmp_path, state):
    import torch

    for dtype in (torch.float16, torch.bfloat16):
        tensors = {k: torch.tensor(v).to(dtype) for k, v in state.items()}
        torch.save(tensors, tmp_path / "m.pth")
        found = files.read(tmp_path / "m.pth").state
        for key, value in tensors.items():
            assert found[key].dtype == np.float32
            assert (found[key] == value.float().numpy()).all()


class Hostile:
    """A pickle of it would make a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


@needs_torch
def test_a_hostile_pickle_runs_no_code(tmp_path, capsys, state):
    import torch

    trap = tmp_path / "trap"
    plain = tmp_path / "plain.pth"
    torch.save({"state_dict": {"a": Hostile(trap)}}, plain)
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(Hostile(trap)))
    for file in (plain, bare):
        code, text = run(
            capsys, "--kind=mae", f"--source={file}", f"--target={tmp_path}/f"
        )
        assert code == 2 and file.name in text
        assert "nothing of it ran" in text or "no whole PyTorch" in text
        assert "torch.load" not in text
        assert not trap.exists() and not (tmp_path / "f").exists()


@needs_torch
def test_damaged_or_other_pytorch_files_are_one_line(tmp_path, capsys, state):
    import torch

    files.write(tmp_path / "m.pth", state, "")
    whole = (tmp_path / "m.pth").read_bytes()
    cases = {
        "cut.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pth": b"hello",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "dict.pth")
    for name in (*cases, "list.pth", "dict.pth"):
        code, text = run(
            capsys,
            "--kind=mae",
            f"--source={tmp_path / name}",
            f"--target={tmp_path}/f",
        )
        assert code == 2 and name in text
    assert not (tmp_path / "f").exists()


@needs_torch
def test_a_bit_that_turned_in_a_pytorch_file_is_found_by_its_checksum(tmp_path, state):
    files.write(tmp_path / "m.pth", state, "")
    damaged = bytearray((tmp_path / "m.pth").read_bytes())
    at = damaged.index(state["model.norm.weight"].tobytes())
    damaged[at] ^= 1
    (tmp_path / "m.pth").write_bytes(damaged)
    with pytest.raises(
        PacxError, match="m.pth is damaged: the checksum of .* is wrong"
    ):
        files.read(tmp_path / "m.pth")


@pytest.fixture
def source(tmp_path, state):
    files.write(tmp_path / "m.safetensors", state, "")
    return tmp_path / "m.safetensors"


def test_a_folder_of_other_software_is_never_replaced(tmp_path, capsys, source):
    for name, file in (("hf", "config.json"), ("notes", "README.md"), ("d", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text('{"model_type": "vit"}')
        target = f"--target={tmp_path / name}"
        code, text = run(capsys, "--kind=mae", f"--source={source}", target, *HEADS)
        assert code == 2 and "exists: give another --target" in text
        with pytest.raises(PacxError, match="exists and is no model folder"):
            model_folder.save(tmp_path / name, folder("mae"), "card")
        assert (tmp_path / name / file).read_text() == '{"model_type": "vit"}'


def test_a_converted_folder_is_not_replaced_either(tmp_path, capsys, source):
    args = ["--kind=mae", f"--source={source}", f"--target={tmp_path}/f", *HEADS]
    assert run(capsys, *args)[0] == 0
    code, text = run(capsys, *args)
    assert code == 2 and "exists" in text


@pytest.mark.parametrize(
    "flags, says",
    [
        (
            ["--num_heads=5"],
            "m.safetensors: its width 32 is not divisible by num_heads 5",
        ),
        (["--num_heads=-2"], "--num_heads -2: give 1 to 1024"),
        (["--decoder_num_heads=3"], "width 16 is not divisible by decoder_num_heads 3"),
        (["--ln_eps=0"], "--ln_eps 0.0: give 1e-20 to 0.1"),
        (["--ln_eps=-1"], "--ln_eps -1.0: give 1e-20 to 0.1"),
        (["--ln_eps=nan"], "--ln_eps nan: give 1e-20 to 0.1"),
        (["--std", "0", "0", "0"], "--std 0.0 0.0 0.0: give 1e-06 to 1 (pixels div"),
        (["--mean", "nan", "0", "0"], "--mean nan 0.0 0.0: give"),
        (["--mean", "5", "5", "5"], "--mean 5.0 5.0 5.0: give 0 to 1"),
    ],
)
def test_senseless_numbers_are_one_line(tmp_path, capsys, source, flags, says):
    args = [f"--source={source}", f"--target={tmp_path}/f", *HEADS, *flags]
    code, text = run(capsys, "--kind=mae", *args)
    assert code == 2 and says in text
    assert not (tmp_path / "f").exists()


def test_what_a_pytorch_file_cannot_hold_is_told(tmp_path, capsys):
    model = folder("pacx", num_heads=4)  # PaCX's published epsilon is 1e-5
    model_folder.save(tmp_path / "f", model, "card")
    args = [
        "--to=torch",
        f"--source={tmp_path}/f",
        f"--target={tmp_path}/o.safetensors",
    ]
    code, text = run(capsys, "--kind=pacx", *args)
    assert code == 0 and "on the way back give --ln_eps=1e-06 --num_heads=4" in text

    ecg = folder("ecgfounder")
    ecg.preprocessing["decimate"] = 5
    model_folder.save(tmp_path / "e", ecg, "card")
    args = [
        "--to=torch",
        f"--source={tmp_path}/e",
        f"--target={tmp_path}/e.safetensors",
    ]
    code, text = run(capsys, "--kind=ecgfounder", *args)
    assert code == 0 and "--decimate=5 --labels=AF,LBBB,SR" in text
    args = [f"--source={tmp_path}/e.safetensors", f"--target={tmp_path}/back"]
    code, _ = run(capsys, "--kind=ecgfounder", *args, "--decimate=5")
    assert code == 0
    assert model_folder.load(tmp_path / "back").preprocessing["decimate"] == 5
    assert errors.INSTALL in (tmp_path / "back/README.md").read_text()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_positions_in_half_precision_are_still_fixed(state, half):
    import ml_dtypes

    half = getattr(ml_dtypes, half, None) or np.dtype(half)
    rounded = {k: v.astype(half).astype(np.float32) for k, v in state.items()}
    found, _ = kinds.read("mae", rounded, OPTIONS, "file")
    assert "posemb_grid" not in found.architecture
    moved = {k: v.copy() for k, v in rounded.items()}
    moved["model.pos_embed"][0, 3, 4] += 0.01  # learned, then
    found, _ = kinds.read("mae", moved, OPTIONS, "file")
    assert found.architecture["posemb_grid"] == [4, 4]


def test_learned_positions_of_a_mae_are_told(tmp_path, capsys, state):
    state["model.pos_embed"] = state["model.pos_embed"].copy()
    state["model.pos_embed"][0, 3, 4] += 0.01
    files.write(tmp_path / "m.safetensors", state, "")
    args = [f"--source={tmp_path}/m.safetensors", f"--target={tmp_path}/f", *HEADS]
    code, text = run(capsys, "--kind=mae", *args)
    assert code == 0
    assert "kept as learned: its positions, which differ from" in text
    assert "sin-cos ones by up to 0.01\n" in text


def test_a_page_or_a_pointer_is_not_accused_of_running_code(tmp_path, capsys):
    for name, content, says in (
        ("page.pth", b"<!DOCTYPE html>", "HTML or XML, such as a page that asks"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ):
        (tmp_path / name).write_bytes(content)
        args = [f"--source={tmp_path / name}", f"--target={tmp_path}/f"]
        code, text = run(capsys, "--kind=mae", *args)
        assert code == 2 and says in text


@needs_torch
def test_tensors_that_are_not_plain_are_one_line(tmp_path, capsys):
    import torch

    cases = {
        "key": ({3: torch.zeros(2)}, "the key 3 is no string"),
        "sparse": ({"a": torch.eye(3).to_sparse()}, "a is no plain tensor"),
        "meta": ({"a": torch.zeros(2, device="meta")}, "a is no plain tensor"),
        "bomb": (
            {"a": torch.zeros(1).expand(10**6, 10**6)},
            "a claims a shape that its file does not hold",
        ),
    }
    for name, (state, says) in cases.items():
        torch.save(state, tmp_path / f"{name}.pt")
        args = [f"--source={tmp_path}/{name}.pt", f"--target={tmp_path}/f"]
        code, text = run(capsys, "--kind=mae", *args)
        assert code == 2 and says in text, text


@needs_torch
def test_the_original_repositorys_layout_comes_out(tmp_path, capsys, state):
    import torch

    model_folder.save(tmp_path / "f", folder("mae"), "card")
    args = [f"--source={tmp_path}/f", f"--target={tmp_path}/o.pth", "--container=model"]
    assert run(capsys, "--kind=mae", "--to=torch", *args)[0] == 0
    found = torch.load(tmp_path / "o.pth", weights_only=True)["model"]
    assert set(found) == {k.removeprefix("model.") for k in state}


def test_a_mae_refuses_a_start_of_other_heads_or_statistics(tmp_path):
    from pacx_jax.objectives import mae
    from tests import tiny

    model_folder.save(tmp_path / "f", folder("mae", num_heads=4), "card")
    config = tiny.config("mae_vitb16", model_init=str(tmp_path / "f"))
    config.model.update(variant="mu", patch_size=8)
    config.model.decoder.update(width=16, depth=2, num_heads=2)
    with pytest.raises(PacxError, match="its num_heads is 4, here 2"):
        mae.make(config)
    model_folder.save(tmp_path / "f", folder("mae"), "card")
    config.data.std = (0.5, 0.5, 0.5)
    with pytest.raises(PacxError, match="its std is .* here"):
        mae.make(config)
