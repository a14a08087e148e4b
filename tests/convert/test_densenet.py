"""DenseNets of torchvision, timm and torchxrayvision: there and back, and refusals."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from pacx_jax.convert import densenet, kinds
from pacx_jax.convert.options import Options
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from tests import tiny
from tests.convert.test_files import run
from tests.convert.test_kinds import assert_same, everything

KINDS = tuple(densenet.KINDS)
OPTIONS = Options()
CLASSIFIER = {
    "classifier.weight": np.zeros((18, 9), np.float32),
    "classifier.bias": np.zeros(18, np.float32),
    "op_threshs": np.full(18, np.nan, np.float32),  # of labels without one
}
COUNTER = "features.denseblock1.denselayer2.norm2.num_batches_tracked"


def made(kind):
    return tiny.densenet_folder(densenet.KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bit_exact(kind):
    model = made(kind)
    state = kinds.write(kind, model)
    again, left = kinds.read(kind, state, OPTIONS, "file")
    assert not left and not kinds.lost(kind, model)
    assert_same(everything(again), everything(model))
    assert again.architecture == model.architecture
    assert again.preprocessing == model.preprocessing


def test_older_names_and_others_prefixes_are_known():
    state = kinds.write("densenet", made("densenet"))
    older = {
        "module.model." + re.sub(r"(denselayer\d\.\w+)([12])", r"\1.\2", key): value
        for key, value in state.items()
    }
    assert "module.model.features.denseblock1.denselayer1.norm.1.weight" in older
    again, left = kinds.read("densenet", older, OPTIONS, "file")
    assert not left
    assert_same(everything(again), everything(made("densenet")))
    key = "features.denseblock1.denselayer1.norm1.bias"
    with pytest.raises(PacxError, match=r"norm.1.bias stands beside .*norm1.bias"):
        kinds.read("densenet", older | {"module.model." + key: state[key]}, OPTIONS, "")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_classifier_and_counters_are_left_out_and_named(prefix):
    beside = CLASSIFIER | {COUNTER: np.array(7)}
    state = kinds.write("densenet_xrv", made("densenet_xrv")) | beside
    state = {prefix + key: value for key, value in state.items()}
    again, left = kinds.read("densenet_xrv", state, OPTIONS, "file")
    assert left == [prefix + key for key in beside] and again.heads is None


@pytest.mark.parametrize(
    "change, says",
    [
        ({"classifier.0.weight": (18, 9)}, "unexpected classifier.0.weight"),
        ({"features.norm6.num_batches_tracked": ()}, "unexpected features.norm6.num"),
        ({"features.norm5.running_var": None}, "missing features.norm5.running_var"),
        ({"features.norm5.running_var": (8,)}, "running_var .8,. is of a wrong shape"),
        ({"features.conv0.weight": (6, 3, 7, 7)}, "its channels is 3, and densenet_xrv "
         "has 1: --kind=densenet may hold it"),
        ({"features.conv0.weight": None}, "features.conv0.weight is not in it"),
        ({"features.transition1.conv.weight": (5, 12, 1, 1)}, "is of a wrong shape"),
        ({"features.denseblock1.denselayer1.conv2.weight": None}, "missing .*conv2"),
        ({f"features.denseblock{i}.denselayer1.x": () for i in (3, 4, 5)},
         "it has 5 dense blocks, and 4 are the most"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, says):
    state = kinds.write("densenet_xrv", made("densenet_xrv"))
    new = {k: np.zeros(v, np.float32) for k, v in change.items() if v is not None}
    state = {k: v for k, v in (state | new).items() if change.get(k, 0) is not None}
    with pytest.raises(PacxError, match=says):
        kinds.read("densenet_xrv", state, OPTIONS, "file")


def test_what_a_kind_does_not_hold_is_not_written():
    with pytest.raises(PacxError, match="its channels is 3, and densenet_xrv has 1"):
        kinds.write("densenet_xrv", made("densenet"))
    larger = model_folder.at_size(made("densenet"), 256)
    with pytest.raises(PacxError, match="its image_size is 256, and densenet has 224"):
        kinds.write("densenet", larger)
    with pytest.raises(PacxError, match="a vit model cannot be written as densenet"):
        kinds.write("densenet", tiny.folder("vit"))


def test_the_command_converts_both_ways(tmp_path, capsys):
    state = kinds.write("densenet_xrv", made("densenet_xrv"))
    source, target = tmp_path / "xrv.safetensors", tmp_path / "out"
    safetensors.numpy.save_file(state | CLASSIFIER, source)
    args = ["--kind=densenet_xrv", f"--source={source}"]
    code, text = run(capsys, *args, f"--target={tmp_path / 'no'}", "--num_heads=2")
    assert code == 2 and "--num_heads says nothing of" in text
    code, text = run(capsys, *args, f"--target={target}")
    assert code == 0 and "a densenet model" in text
    assert "left out: classifier.weight; classifier.bias; op_threshs" in text
    again = tmp_path / "again.safetensors"
    args = ["--kind=densenet_xrv", "--to=torch", f"--source={target}"]
    code, text = run(capsys, *args, f"--target={again}")
    assert code == 0, text
    assert_same(safetensors.numpy.load_file(again), state)


def test_timms_config_tells_statistics_and_what_cannot_be(tmp_path, capsys):
    state = kinds.write("densenet", made("densenet"))
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    args = [f"--source={tmp_path}", "--kind=densenet", f"--target={tmp_path / 'out'}"]
    for more, says in (
        ({"global_pool": "max"}, "global_pool is 'max'; a DenseNet here has"),
        ({"model_args": {"act_layer": "silu"}}, "act_layer is 'silu'"),
        ({"model_args": {"growth_rate": 3}}, ""),
    ):
        text = json.dumps({"pretrained_cfg": about} | more)
        (tmp_path / "config.json").write_text(text)
        code, text = run(capsys, *args)
        assert (code == 0) == (not says) and says in text, text
    assert model_folder.load(tmp_path / "out").preprocessing["mean"] == [0.1, 0.2, 0.3]
