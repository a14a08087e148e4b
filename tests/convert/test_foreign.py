"""Other people's encoders: there and back, and what is refused."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import safetensors.numpy

from pacx_jax.convert import foreign, kinds
from pacx_jax.convert.options import Options
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.models import positions
from tests import tiny
from tests.convert.test_files import run
from tests.convert.test_kinds import assert_same, everything

STATISTICS = {"mean": (0.53,) * 3, "std": (0.26,) * 3}
OPTIONS = Options(num_heads=2, rotary_grid=3, **STATISTICS)
FLAGS = ["--num_heads=2", "--mean", *["0.53"] * 3, "--std", *["0.26"] * 3]
VARIANTS = [
    ("dinov2", {}),
    ("dinov2", {"registers": 4, "posemb_resampling": "antialias"}),
    ("dinov2", {"swiglu": True, "mlp_dim": 24}),
    ("dinov2", {"layer_scale": False}),
    ("dinov2", {"channels": 1}),
    (
        "dinov2",
        {"registers": 4, "posemb_cls": False, "posemb_resampling": "antialias"},
    ),
    ("dinov2_hf", {}),
    (
        "dinov2_hf",
        {"registers": 0, "swiglu": False, "mlp_dim": 0, "posemb_resampling": "bicubic"},
    ),
    ("eva02", {}),
    ("eva02", {"mlp_norm": False}),
    ("eva02", {"pool": "cls"}),
]


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    """Each architecture is traced once: tracing takes most of these tests' time."""
    traced, found = model_folder.shapes_of, SHAPES

    def shapes_of(kind, architecture):
        key = json.dumps([kind, architecture], sort_keys=True)
        if key not in found:
            found[key] = traced(kind, architecture)
        return found[key]

    monkeypatch.setattr(model_folder, "shapes_of", shapes_of)


SHAPES = {}


@functools.cache
def made(kind, **fields):
    return tiny.foreign_folder(kind, **fields)


def plain(a: dict) -> dict:
    """An architecture without the fields that have a plain ViT's value."""
    usual = foreign.PLAIN | {"posemb_resampling": "antialias"}
    return {k: v for k, v in a.items() if usual.get(k) != v}


def statistics_of(model) -> dict:
    return {k: tuple(model.preprocessing[k]) for k in ("mean", "std")}


def with_head(model):
    rng = np.random.default_rng(1)
    linear = {"kernel": rng.normal(size=(32, 2)), "bias": rng.normal(size=2)}
    linear = {k: v.astype(np.float32) for k, v in linear.items()}
    about = {"encoder_width": 32, "labels": ["a", "b"], "task": "multilabel"}
    heads = Heads("classify", about, {"head": {"linear": linear}})
    return dataclasses.replace(model, heads=heads)


@pytest.mark.parametrize("kind, fields", VARIANTS)
def test_there_and_back_is_bit_exact(kind, fields):
    model = made(kind, **fields)
    statistics = ((0.53,), (0.26,)) if "channels" in fields else None
    if statistics:
        about = model_folder.image_preprocessing(*statistics)
        model = dataclasses.replace(model, preprocessing=about)
    state = kinds.write(kind, model)
    pool = fields.get("pool")
    options = dataclasses.replace(OPTIONS, pool=pool, **statistics_of(model))
    again, left = kinds.read(kind, state, options, "file")
    assert not left
    assert_same(everything(again), everything(model))
    assert_same(kinds.write(kind, again), state)
    assert again.preprocessing == model.preprocessing
    assert plain(again.architecture) == plain(model.architecture)


@pytest.mark.parametrize("kind, fields", VARIANTS)
def test_what_a_file_cannot_hold_is_told_as_flags(kind, fields):
    model = made(kind, **fields)
    if "channels" in fields:
        about = model_folder.image_preprocessing((0.53,), (0.26,))
        model = dataclasses.replace(model, preprocessing=about)
    flags = " ".join(kinds.lost(kind, model))
    assert "--num_heads=2 --mean 0.53" in flags and "--std 0.26" in flags
    assert ("--pool=cls" in flags) == (fields.get("pool") == "cls")
    assert ("--rotary_grid=3" in flags) == (kind == "eva02")
    assert "resampling" not in flags
    other = dataclasses.replace(
        model, architecture=model.architecture | {"posemb_resampling": "bicubic"}
    )
    expected = kind == "dinov2"
    if kind == "dinov2_hf":
        expected = bool(model.architecture["registers"])
    said = "--posemb_resampling=bicubic" in " ".join(kinds.lost(kind, other))
    assert said == expected


@pytest.mark.parametrize("kind", ["dinov2", "eva02"])
def test_classifiers_travel_and_their_task_must_be_given(kind):
    model = with_head(made(kind))
    state = kinds.write(kind, model)
    assert state["head.weight"].shape == (2, 32)
    with pytest.raises(PacxError, match="head.weight is a classifier.*--task=multil"):
        kinds.read(kind, state, OPTIONS, "file")
    options = dataclasses.replace(OPTIONS, task="multilabel", labels=("a", "b"))
    again, _ = kinds.read(kind, state, options, "file")
    assert again.heads.architecture == model.heads.architecture
    assert_same(everything(again), everything(model))
    assert "--task=multilabel" in kinds.lost(kind, model)


@pytest.mark.parametrize("kind", foreign.KINDS)
def test_what_does_not_fit_is_named(kind):
    whole = kinds.write(kind, made(kind))
    # Block 0 tells the layout, the last norm and registers what there is.
    told = (".0.", "fc_norm", "register")
    patches = ("patch_embed.proj.weight", "projection.weight")  # which tell the width
    for key, value in whole.items():
        if any(part in key for part in told):
            continue
        state = {k: v for k, v in whole.items() if k != key}
        with pytest.raises(PacxError, match=re.escape(key)):
            kinds.read(kind, state, OPTIONS, "file")
        wrong = whole | {key: np.concatenate([value, value])}
        named = "positions of a square" if key.endswith(patches) else re.escape(key)
        with pytest.raises(PacxError, match=named):
            kinds.read(kind, wrong, OPTIONS, "file")
    with pytest.raises(PacxError, match=r"unexpected odd.weight \(3,\)"):
        kinds.read(kind, whole | {"odd.weight": np.zeros(3)}, OPTIONS, "file")


@pytest.mark.parametrize(
    "kind, change, says",
    [
        (
            "dinov2",
            {"pos_embed": (1, 16, 32)},
            "pos_embed is .*a square grid and a",
        ),
        (
            "dinov2",
            {"pos_embed": (1, 19, 32)},
            "pos_embed is .*a square grid and a",
        ),
        ("dinov2", {"patch_embed.proj.weight": (32, 2, 8, 8)}, "has 2 channels, and 1"),
        (
            "dinov2",
            {"blocks.0.ls1.gamma": (31,)},
            "ls1.gamma .31,. is of a wrong",
        ),
        (
            "eva02",
            {"blocks.1.mlp.norm.weight": (32,)},
            "mlp.norm.weight .32,. is of",
        ),
        (
            "eva02",
            {"blocks.1.attn.q_proj.bias": (30,)},
            "q_proj.bias .* of a wrong",
        ),
        ("eva02", {"blocks.0.mlp.fc1_g.weight": (10, 32)}, "its MLP is no SwiGLU"),
    ],
)
def test_wrong_sizes_are_named(kind, change, says):
    state = kinds.write(kind, made(kind))
    assert set(change) <= set(state)
    state |= {k: np.ones(shape, np.float32) for k, shape in change.items()}
    with pytest.raises(PacxError, match=says):
        kinds.read(kind, state, OPTIONS, "file")


def test_what_no_file_tells_must_be_given():
    for kind in foreign.KINDS:
        state = kinds.write(kind, made(kind))
        given = Options(num_heads=2, rotary_grid=3)
        with pytest.raises(PacxError, match="give --mean and --std, one number for"):
            kinds.read(kind, state, given, "file")
    state = kinds.write("eva02", made("eva02", pool="cls"))
    with pytest.raises(PacxError, match="LayerNorm is `norm`.*give --pool=mean"):
        kinds.read("eva02", state, OPTIONS, "file")
    options = dataclasses.replace(OPTIONS, pool="mean")
    found, _ = kinds.read("eva02", state, options, "file")
    assert found.architecture["pool"] == "mean"
    assert found.preprocessing["embedding"].startswith("mean of the patches")
    options = dataclasses.replace(OPTIONS, rotary_grid=None)
    state = kinds.write("eva02", made("eva02"))
    with pytest.raises(PacxError, match="patches of 8 pixels .* give --rotary_grid"):
        kinds.read("eva02", state, options, "file")
    options = dataclasses.replace(OPTIONS, pool="cls")
    with pytest.raises(PacxError, match="--pool=cls, and its last .* is fc_norm"):
        kinds.read("eva02", state, options, "file")


def test_published_eva02_needs_no_rotary_grid():
    for patch, grid in ((14, 16), (16, 14)):
        state = kinds.write("eva02", made("eva02"))
        state["patch_embed.proj.weight"] = np.zeros((32, 3, patch, patch), np.float32)
        options = dataclasses.replace(OPTIONS, rotary_grid=None)
        found, _ = kinds.read("eva02", state, options, "file")
        assert found.architecture["rotary_grid"] == [grid, grid]


# The original's names for timm's; pretraining's keys and its rotary tables are beside.
ORIGINAL = (
    ("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3"),
    ("mlp.norm", "mlp.ffn_ln"), ("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias"),
    ("fc_norm", "norm"), ("mlp.fc1.", "mlp.w12."),
)  # fmt: skip


@pytest.mark.parametrize("mlp_norm", [True, False])
def test_the_original_eva02_keys_are_known(mlp_norm):
    model = made("eva02", mlp_norm=mlp_norm)
    state = {}
    for key, value in kinds.write("eva02", model).items():
        for ours, theirs in ORIGINAL:
            key = key.replace(ours, theirs)
        state[key] = value
    cos, sin = (np.float32(x) for x in positions.rotary((4, 4), (3, 3), 16, 0))
    beside = {
        "mask_token": np.zeros((1, 1, 32), np.float32),
        "lm_head.weight": np.zeros((8, 32), np.float32),
        "lm_head.bias": np.zeros(8, np.float32),
        "rope.freqs_cos": cos,
        "rope.freqs_sin": sin,
        "blocks.0.attn.rope.freqs_cos": cos,
    }
    options = dataclasses.replace(OPTIONS, pool="mean")
    again, left = kinds.read("eva02", state | beside, options, "file")
    assert sorted(left) == sorted(beside)
    assert_same(everything(again), everything(model))
    for wrong in ({"rotary_grid": 4}, {"num_heads": 4}):
        options = dataclasses.replace(OPTIONS, pool="mean", **wrong)
        with pytest.raises(PacxError, match="freqs_cos .* not the rotary positions"):
            kinds.read("eva02", state | beside, options, "file")


def test_keys_of_pretraining_are_left_out_and_named():
    state = kinds.write("dinov2", made("dinov2"))
    state = {f"teacher.backbone.{k}": v for k, v in state.items()}
    beside = {
        "teacher.backbone.mask_token": np.zeros((1, 32), np.float32),
        "teacher.dino_head.last_layer.weight": np.zeros((4, 32), np.float32),
    }
    _, left = kinds.read("dinov2", state | beside, OPTIONS, "file")
    assert left == list(beside)
    state = kinds.write("dinov2_hf", made("dinov2_hf"))
    beside = {
        "dinov2.embeddings.mask_token": np.zeros((1, 32), np.float32),
        "classifier.weight": np.zeros((3, 64), np.float32),
        "classifier.bias": np.zeros(3, np.float32),
    }
    state = {f"dinov2.{k}": v for k, v in state.items()}
    _, left = kinds.read("dinov2_hf", state | beside, OPTIONS, "file")
    assert left == list(beside)


@pytest.mark.parametrize(
    "kind, model, says",
    [
        (
            "vit_timm",
            "dinov2",
            "it has layer_scale True; --kind=dinov2, dinov2_hf",
        ),
        ("mae", "eva02", "it has swiglu True; .*--kind=dinov2, dinov2_hf or eva02"),
        ("dinov2", "eva02", "the patches' mean; it has mlp_norm True"),
        ("eva02", "dinov2_hf", "no SwiGLU with rotary positions; it has registers 3"),
    ],
)
def test_models_that_a_kind_has_no_keys_for_are_refused(kind, model, says):
    with pytest.raises(PacxError, match=f"cannot be written as {kind}: .*{says}"):
        kinds.write(kind, made(model))


def test_a_bias_of_k_cannot_be_written_as_eva02():
    model = tiny.foreign_folder("eva02")
    model.params["block_01"]["attn"]["qkv"]["bias"][40] = 1
    with pytest.raises(PacxError, match="attention's k has a bias, for which"):
        kinds.write("eva02", model)


RAD_DINO = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.1]}


@pytest.fixture
def hf(tmp_path):
    """A folder as transformers writes it, without torch."""
    fields = {"registers": 0, "posemb_resampling": "bicubic"}
    model = made("dinov2_hf", **fields)
    source = tmp_path / "hf"
    source.mkdir()
    state = kinds.write("dinov2_hf", model)
    safetensors.numpy.save_file(state, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(RAD_DINO))
    return source, model


def test_files_beside_tell_heads_and_statistics(tmp_path, capsys, hf):
    source, model = hf
    args = ["--kind=dinov2_hf", f"--source={source}", f"--target={tmp_path / 'out'}"]
    code, text = run(capsys, *args)
    assert code == 2 and "its preprocessor_config.json" in text
    (source / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    code, text = run(capsys, *args)
    assert code == 0, text
    found = model_folder.load(tmp_path / "out")
    assert found.preprocessing["mean"] == [0.5, 0.4, 0.3]
    assert plain(found.architecture) == plain(model.architecture)
    assert_same(everything(found), everything(model))


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"image_size": 518},
            "has image_size 32, and .* says 518",
        ),
        ({"model_type": "vit"}, "model_type is vit, and dinov2's is needed"),
        ({"model_type": "dinov2_with_registers"}, "has registers 0, and .* says 4"),
        ({"hidden_act": "relu"}, "hidden_act is relu"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path, capsys, hf, change, says):
    source, _ = hf
    (source / "config.json").write_text(json.dumps(RAD_DINO | change))
    args = [f"--source={source}", f"--target={tmp_path / 'out'}", *FLAGS]
    code, text = run(capsys, "--kind=dinov2_hf", *args)
    assert code == 2 and re.search(says, text), text


def test_timms_config_tells_statistics_and_pooling(tmp_path, capsys):
    state = kinds.write("eva02", made("eva02"))
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    args = [f"--source={tmp_path}", "--num_heads=2", "--rotary_grid=3", "--kind=eva02"]
    for config, says in (
        ({"global_pool": "token"}, "--pool=cls, and its last LayerNorm is fc_norm"),
        ({"global_pool": "map"}, "global_pool is 'map': 'avg' or 'token' is needed"),
        ({"global_pool": "avg"}, ""),
    ):
        text = json.dumps({"pretrained_cfg": about} | config)
        (tmp_path / "config.json").write_text(text)
        code, text = run(capsys, *args, f"--target={tmp_path / 'out'}")
        assert (code == 0) == (not says) and says in text, text
    assert model_folder.load(tmp_path / "out").preprocessing["mean"] == [0.1, 0.2, 0.3]


def test_an_option_of_another_kind_is_refused(tmp_path, capsys):
    state = kinds.write("dinov2", made("dinov2"))
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    args = [f"--source={tmp_path}", f"--target={tmp_path / 'out'}", *FLAGS]
    code, text = run(capsys, "--kind=dinov2", *args, "--pool=mean")
    assert code == 2 and "--pool says nothing of" in text
    code, text = run(capsys, "--kind=dinov2", *args, "--posemb_resampling=antialias")
    assert code == 0, text
    assert "posemb_resampling" not in model_folder.load(tmp_path / "out").architecture
