"""What a conversion refuses: in one line that names the file, the key or the option."""

import os
import pickle

import numpy as np
import pytest
import safetensors.numpy

from pacx_jax.convert import files, kinds
from pacx_jax.convert.sizes import Options
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint
from tests import tiny
from tests.convert.test_files import HEADS, needs_torch, run
from tests.convert.test_kinds import OPTIONS, folder


@pytest.fixture
def mae(tmp_path):
    files.write(tmp_path / "m.safetensors", kinds.write("mae", folder("mae")), "")
    return tmp_path / "m.safetensors"


class Hyper:
    """A hyper-parameter's class, as a Lightning checkpoint may hold one."""


@needs_torch
def test_a_checkpoint_with_other_classes_names_one_and_the_way_out(tmp_path, capsys):
    import torch

    state = {k: torch.tensor(v) for k, v in kinds.write("mae", folder("mae")).items()}
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"c": Hyper()}}, file)
    args = ["--kind=mae", f"--target={tmp_path}/f", *HEADS]
    code, text = run(capsys, *args, f"--source={file}")
    assert code == 2 and "holds a tests.convert.test_refusals.Hyper" in text
    command = text.split('python -c "')[1].split('"')[0]
    here = os.getcwd()
    os.chdir(tmp_path)  # the command as it is printed
    try:
        exec(command, {})
    finally:
        os.chdir(here)
    assert run(capsys, *args, f"--source={tmp_path}/weights.pt")[0] == 0


@needs_torch
def test_numbers_of_another_type_are_named_with_their_key(tmp_path):
    import safetensors.torch
    import torch

    for dtype in (torch.float8_e4m3fn, torch.int32, torch.bool, torch.int64):
        state = {"a.weight": torch.ones(3).to(dtype)}
        torch.save(state, tmp_path / "m.pt")
        safetensors.torch.save_file(state, tmp_path / "m.safetensors")
        for name in ("m.pt", "m.safetensors"):
            with pytest.raises(PacxError, match=f"{name}: a.weight is of type "):
                files.read(tmp_path / name)


def test_bfloat16_safetensors_are_read_exactly_without_pytorch(tmp_path, monkeypatch):
    import ml_dtypes

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    value = np.random.default_rng(0).normal(size=(4, 5)).astype(ml_dtypes.bfloat16)
    half = value.astype(np.float16)
    safetensors.numpy.save_file({"a": value, "b": half}, tmp_path / "m.safetensors")
    found = files.read(tmp_path / "m.safetensors").state
    assert found["a"].dtype == found["b"].dtype == np.float32
    assert (found["a"] == value.astype(np.float32)).all()
    assert (found["b"] == half.astype(np.float32)).all()


def test_files_that_are_no_files_are_one_line(tmp_path, capsys, mae, monkeypatch):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors.index.json").touch()
    model_folder.save(tmp_path / "ours", folder("mae"), "card")
    (tmp_path / "locked.pt").write_bytes(b"PK")
    opened = type(tmp_path).open

    def locked(self, *args, **kwargs):  # tests may run as root, who may read all
        if self.name == "locked.pt":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(type(tmp_path), "open", locked)
    for name, says in (
        ("empty.pt", "empty.pt is empty"),
        ("empty.safetensors", "empty.safetensors is empty"),
        ("folder", "is a folder without model.safetensors or pytorch_model.bin"),
        ("parts", "holds its weights in several files"),
        ("ours", "is a model folder already"),
        ("locked.pt", "locked.pt cannot be read: Permission denied"),
        ("none", "no such file"),
    ):
        args = [f"--source={tmp_path / name}", f"--target={tmp_path}/f"]
        code, text = run(capsys, "--kind=mae", *args)
        assert code == 2 and says in text, text
        assert not (tmp_path / "f").exists()
    out = ["--kind=mae", "--to=torch"]
    code, text = run(capsys, *out, f"--source={mae}", f"--target={tmp_path}/o.pt")
    assert code == 2 and "m.safetensors: is a file; give a model folder" in text
    args = [f"--source={tmp_path}/ours", f"--target={tmp_path}/folder"]
    code, text = run(capsys, *out, *args)
    assert code == 2 and "is a folder: --target names the file" in text


def test_a_link_at_the_target_is_followed_and_stays(tmp_path, capsys, mae):
    (tmp_path / "disk").mkdir()
    (tmp_path / "f").symlink_to(tmp_path / "disk")
    args = ["--kind=mae", f"--source={mae}", f"--target={tmp_path}/f", *HEADS]
    assert run(capsys, *args)[0] == 0
    assert (tmp_path / "f").is_symlink()
    assert model_folder.is_ours(tmp_path / "disk")
    (tmp_path / "o.safetensors").symlink_to(tmp_path / "disk2.safetensors")
    out = ["--kind=mae", "--to=torch", f"--source={tmp_path}/f"]
    assert run(capsys, *out, f"--target={tmp_path}/o.safetensors")[0] == 0
    assert (tmp_path / "o.safetensors").is_symlink()
    assert (tmp_path / "disk2.safetensors").is_file()
    code, text = run(capsys, *out, f"--target={tmp_path}/o.safetensors")
    assert code == 2 and "exists" in text
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for args in (
        ["--kind=mae", f"--source={mae}", f"--target={tmp_path}/circle", *HEADS],
        [*out, f"--target={tmp_path}/circle"],
    ):
        assert run(capsys, *args)[0] == 2
    assert (tmp_path / "circle").is_symlink()


@pytest.mark.parametrize(
    "args, says",
    [
        ("--kind=mae --merged", "--merged is for --to=torch alone"),
        ("--kind=mae --container=model", "--container is for --to=torch alone"),
        ("--kind=mae --to=torch --num_heads=2", "--num_heads is for --to=jax alone"),
        ("--kind=mae --to=torch --preset=ours", "--preset is for --to=jax alone"),
        ("--kind=mae --to=torch --container=", "--container is for PyTorch files"),
        ("--kind=mea", "argument --kind: invalid choice: 'mea'"),
        ("--kind=mae --ln_eps=small", "argument --ln_eps: invalid float value"),
        ("--kind=mae --num=2", "unrecognized arguments: --num=2"),
    ],
)
def test_options_that_do_not_apply_are_refused_by_name(tmp_path, capsys, args, says):
    target = [f"--source={tmp_path}/m", f"--target={tmp_path}/x.safetensors"]
    code, text = run(capsys, *args.split(), *target)
    assert code == 2 and says in text and text.startswith("error: ")


@pytest.mark.parametrize(
    "kind, flags",
    [
        ("mae", "--decoder_num_heads=2"),
        ("mae", "--labels=a,b"),
        ("mae", "--alpha=8"),
        ("labs_dae", "--num_heads=2"),
        ("ecgfounder", "--mean 0 0 0"),
        ("ecgfounder", "--preset=reference"),
    ],
)
def test_options_of_a_part_that_the_file_lacks_are_refused(
    tmp_path, capsys, kind, flags
):
    state = kinds.write(kind, folder(kind, heads=kind == "labs_dae"))
    files.write(tmp_path / "m.safetensors", state, "")
    args = [f"--source={tmp_path}/m.safetensors", f"--target={tmp_path}/f"]
    args += ["--num_heads=2"] * (kind == "mae")
    code, text = run(capsys, f"--kind={kind}", *args, *flags.split())
    name = flags.split("=")[0].split()[0]
    assert code == 2 and f"{name} says nothing of {tmp_path}/m.safetensors" in text
    assert not (tmp_path / "f").exists()


def test_heads_are_never_guessed_from_a_width_that_nobody_published():
    state = kinds.write("mae", folder("mae"))
    with pytest.raises(
        PacxError, match="file: a width of 32 tells no .*: give --num_heads"
    ):
        kinds.read("mae", state, Options(decoder_num_heads=2), "file")
    with pytest.raises(
        PacxError, match="file: .* 16 tells no .*: give --decoder_num_heads"
    ):
        kinds.read("mae", state, Options(num_heads=2), "file")


def test_options_that_do_not_fit_the_file_name_it():
    state = kinds.write("probe", folder("probe"))
    with pytest.raises(
        PacxError, match="^file: 3 labels are given, and the head has 2"
    ):
        kinds.read("probe", state, Options(num_heads=2, labels=tuple("abc")), "file")


def test_positions_or_statistics_that_are_not_there_are_told():
    state = kinds.write("mae", folder("mae"))
    state["model.decoder_pos_embed"] = np.zeros((1, 17, 16), np.float32)
    with pytest.raises(
        PacxError, match="decoder_pos_embed.*all are 0.*save_pretrained"
    ):
        kinds.read("mae", state, OPTIONS, "file")
    state = kinds.write("segment", folder("segment"))
    state["std"] = np.full((1, 3, 1, 1), np.nan, np.float32)
    with pytest.raises(PacxError, match="^file does not fit: std "):
        kinds.read("segment", state, OPTIONS, "file")


def test_keys_under_several_prefixes_are_refused():
    state = kinds.write("mae", folder("mae"))
    bare = {k.removeprefix("model."): v for k, v in state.items()}
    with pytest.raises(PacxError, match="holds several encoders, model.patch_embed"):
        kinds.read("mae", state | bare, OPTIONS, "file")
    half = {k if k[:4] == "norm" else f"model.{k}": v for k, v in bare.items()}
    with pytest.raises(PacxError, match="missing model.norm.*unexpected norm."):
        kinds.read("mae", half, OPTIONS, "file")


def test_adapters_of_a_layer_that_is_not_there_are_refused():
    state = kinds.write("pacx", folder("pacx"))
    for side in "AB":
        key = "cxr_encoder.base_model.model.blocks.1.attn.qkv.lora_%s.default.weight"
        state[key.replace("blocks.1", "blocks.7") % side] = state.pop(key % side)
    with pytest.raises(PacxError, match="adapters of block_07.attn.qkv, and no such"):
        kinds.read("pacx", state, OPTIONS, "file")


def test_a_shape_that_sizes_are_read_from_is_named():
    for kind, key, shape in (
        ("mae", "model.patch_embed.proj.weight", (32, 192)),
        ("mae", "model.pos_embed", (17, 32)),
        ("mae", "model.decoder_embed.weight", (16,)),
        ("pacx", "cxr_to_ecg.mlp.1.weight", (16,)),
        ("labs_dae", "model.encoder.0.weight", (16,)),
        ("ecgfounder", "stage_list.0.block_list.0.conv2.conv.weight", (8, 8)),
        ("segment", "model.decoder.2.weight", (8,)),
        ("probe", "model.head.weight", (2,)),
    ):
        state = kinds.write(kind, folder(kind)) | {key: np.zeros(shape, np.float32)}
        with pytest.raises(PacxError) as e:
            kinds.read(kind, state, OPTIONS, "file")
        assert f"{key} is {shape}, not (" in str(e.value)


@needs_torch
def test_a_bare_pickle_of_numbers_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": 1.0}, protocol=2))
    args = [f"--source={tmp_path}/m.pkl", f"--target={tmp_path}/f"]
    code, text = run(capsys, "--kind=mae", *args)
    assert code == 2 and "m.pkl" in text


def test_an_ecg_run_without_its_labels_says_how_to_go_without(
    tmp_path, capsys, monkeypatch
):
    model = folder("ecgfounder", heads=False)
    config = tiny.config("ecg_net1d")
    config.model.update({k: tuple(v) if isinstance(v, list) else v
                         for k, v in model.architecture.items()})  # fmt: skip
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    (tmp_path / "done.json").touch()
    model_folder.save(tmp_path / "export", model, "card")
    params = {"encoder": model.params, "head": {}}
    monkeypatch.setattr(checkpoint, "read_params", lambda *args: params)
    out = ["--kind=ecgfounder", "--to=torch", f"--target={tmp_path}/o.safetensors"]
    code, text = run(capsys, *out, f"--source={tmp_path}")
    assert code == 2 and f"take {tmp_path}/export, the encoder without" in text
    assert run(capsys, *out, f"--source={tmp_path}/export")[0] == 0
    assert "dense.weight" not in files.read(tmp_path / "o.safetensors").state


def test_heads_that_a_kind_has_no_place_for_are_named(tmp_path, capsys):
    model_folder.save(tmp_path / "f", folder("mae"), "card")
    out = ["--kind=vit_timm", "--to=torch", f"--source={tmp_path}/f"]
    code, text = run(capsys, *out, f"--target={tmp_path}/o.safetensors")
    assert code == 0 and "left out: the mae heads" in text
