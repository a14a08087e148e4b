"""What files beside the weights tell of them, and what they may not."""

import json

import numpy as np
import pytest
import safetensors.numpy

from pacx_jax.convert import beside, kinds
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from tests.convert.test_files import needs_torch, run
from tests.convert.test_kinds import assert_same, everything, folder

HF = {
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-7,
    "image_size": 32,
    "hidden_size": 32,
    "id2label": {"0": "normal", "1": "pneumonia, viral"},
    "problem_type": "multi_label_classification",
}


@pytest.fixture
def hf(tmp_path):
    """A Hugging Face folder: a classifier of learned positions, without torch."""
    model = folder("probe", posemb_grid=[4, 4], num_heads=4)
    source = tmp_path / "hf"
    source.mkdir()
    state = kinds.write("vit_hf", model)
    safetensors.numpy.save_file(state, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(HF))
    return source, model


def convert(capsys, source, *args):
    target = source.parents[0] / "out"
    return run(capsys, "--kind=vit_hf", f"--source={source}", f"--target={target}",
               *args)  # fmt: skip


def test_the_config_beside_a_file_counts_as_its_folders(tmp_path, capsys, hf):
    source, model = hf
    for given in (source, source / "model.safetensors"):
        target = tmp_path / f"out_{given.name}"
        args = [f"--source={given}", f"--target={target}"]
        assert run(capsys, "--kind=vit_hf", *args)[0] == 0
        found = model_folder.load(target)
        assert found.architecture["num_heads"] == 4
        assert found.architecture["ln_eps"] == 1e-7
        about = found.heads.architecture
        assert about["labels"] == ["normal", "pneumonia, viral"]
        assert about["task"] == "multilabel"
        assert_same(everything(found), everything(model))


def test_a_config_of_other_weights_is_refused(capsys, hf):
    source, _ = hf
    for change, says in (
        ({"image_size": 224}, "has image_size 32, and the config.json beside it says"),
        ({"hidden_size": 64}, "has width 32, and the config.json beside it says 64"),
        ({"num_attention_heads": None}, "config.json is not vit_hf's, or damaged"),
        ({"hidden_act": "relu"}, "hidden_act is relu"),
        ({"problem_type": "regression"}, "--task 'regression': give multilabel"),
    ):
        (source / "config.json").write_text(json.dumps(HF | change))
        code, text = convert(capsys, source)
        assert code == 2 and says in text, text
        assert not (source.parent / "out").exists()


@needs_torch
def test_a_folder_with_a_pytorch_file_alone_is_read(capsys, hf):
    import torch

    source, model = hf
    state = safetensors.numpy.load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    tensors = {k: torch.tensor(v) for k, v in state.items()}
    torch.save(tensors, source / "pytorch_model.bin")
    assert convert(capsys, source)[0] == 0
    found = model_folder.load(source.parent / "out")
    assert_same(everything(found), everything(model))


def test_statistics_are_the_image_processors_or_refused(tmp_path):
    weights = tmp_path / "model.safetensors"
    grey = {"image_mean": 0.4, "image_std": 0.2}
    for about, want in (
        (grey, {"mean": (0.4,) * 3, "std": (0.2,) * 3}),
        (grey | {"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        (
            {"image_mean": [0.4], "image_std": [0.2]},
            r"image_mean is \[0.4\],",
        ),
        ({}, "image_mean is None, and three numbers are needed: give --mean"),
        (grey | {"do_rescale": False}, "do_rescale is False"),
        (grey | {"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
    ):
        (tmp_path / beside.IMAGES).write_text(json.dumps(about))
        if isinstance(want, dict):
            assert beside.images(weights) == want
        else:
            with pytest.raises(PacxError, match=want):
                beside.images(weights)


def test_a_timm_folder_tells_its_statistics(tmp_path, capsys):
    state = kinds.write("vit_timm", folder("vit_timm", posemb_grid=[4, 4]))
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    config = {"architecture": "vit_mu", "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = ["--kind=vit_timm", f"--source={tmp_path}", "--num_heads=2"]
    assert run(capsys, *args, f"--target={tmp_path}/a")[0] == 0
    assert model_folder.load(tmp_path / "a").preprocessing["mean"] == about["mean"]
    args.append("--preset=reference")
    assert run(capsys, *args, f"--target={tmp_path}/b")[0] == 0
    found = model_folder.load(tmp_path / "b").preprocessing["mean"]
    assert found == [0.485, 0.456, 0.406]
    (tmp_path / "config.json").write_text(json.dumps(HF))
    code, text = run(capsys, *args, f"--target={tmp_path}/c")
    assert code == 2 and "config.json is not vit_timm's" in text


@pytest.mark.parametrize(
    "change, says",
    [
        ({"num_features": 768}, "has width 32, and the config.json"),
        ({"model_args": {"depth": 12}}, "has depth 2, and the config.json"),
        ({"global_pool": "avg"}, "global_pool is 'avg'"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "act_layer 'quick_gelu'"),
    ],
)
def test_a_timm_config_of_another_model_is_refused(tmp_path, capsys, change, says):
    state = kinds.write("vit_timm", folder("vit_timm", posemb_grid=[4, 4]))
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    about = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"num_features": 32, "global_pool": "token", "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    args = ["--kind=vit_timm", f"--source={tmp_path}", "--num_heads=2"]
    code, text = run(capsys, *args, f"--target={tmp_path}/a")
    assert code == 2 and says in text and not (tmp_path / "a").exists()


def test_a_timm_classifier_travels_with_its_names(tmp_path, capsys):
    state = kinds.write("vit_timm", folder("vit_timm", posemb_grid=[4, 4]))
    rng = np.random.default_rng(0)
    state |= {
        "head.weight": rng.normal(size=(2, 32)).astype(np.float32),
        "head.bias": rng.normal(size=2).astype(np.float32),
    }
    safetensors.numpy.save_file(state, tmp_path / "m.safetensors")
    args = ["--kind=vit_timm", f"--source={tmp_path}/m.safetensors", "--num_heads=2"]
    names = '--labels=tench,"a, b"'
    code, text = run(capsys, *args, names, f"--target={tmp_path}/a")
    assert code == 0 and "with classify heads" in text
    found = model_folder.load(tmp_path / "a").heads.architecture
    assert found["labels"] == ["tench", "a, b"] and found["task"] == "multiclass"
    for bad in ("", "tench,", "tench,tench"):
        code, text = run(capsys, *args, f"--labels={bad}", f"--target={tmp_path}/x")
        assert code == 2 and f"--labels '{bad}': give each output a name" in text
    out = ["--kind=vit_timm", "--to=torch", f"--source={tmp_path}/a"]
    code, text = run(capsys, *out, f"--target={tmp_path}/b.safetensors")
    assert code == 0 and "--labels='tench,\"a, b\"'" in text
    assert_same(safetensors.numpy.load_file(tmp_path / "b.safetensors"), state)
