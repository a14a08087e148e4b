"""Every published kind, there and back, from model folders of random weights."""

import dataclasses
import pathlib

import numpy as np
import pytest

from pacx_jax import lora
from pacx_jax.convert import densenet, foreign, kinds, layouts, tables
from pacx_jax.convert.sizes import Options
from pacx_jax.encoders import model_folder, model_heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import IMAGENET_MEAN
from tests import tiny

PARITY = pathlib.Path(__file__).resolve().parents[1] / "parity"
OPTIONS = Options(num_heads=2, decoder_num_heads=2)
MAE = {
    "encoder_width": 32,
    "patch_pixels": 192,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "ln_eps": 1e-6,
}
PACX = {
    "head": "linear_ln",
    "heads": {
        "cxr_to_ecg": [32, 16],
        "cxr_to_shared": [32, 8],
        "ecg_to_shared": [16, 8],
    },
}
ADAPTED = {
    "rank": 2,
    "alpha": 16.0,
    "adapted": [f"block_{i:02d}.{m}" for i in (0, 1) for m in ("attn.qkv", "mlp.fc1")],
}
MVMAE = MAE | {
    "patch_pixels": 64,
    "width": 32,
    "project": False,
    "posemb_grid": [4, 4],
    "final_ln_eps": 1e-5,
    "qk_norm": True,
    "views": 3,
}
HEADS = {
    "mae": ("mae", MAE),
    "mvmae": ("mae", MVMAE),
    "pacx": ("pacx", PACX | ADAPTED),
    "labs_dae": ("labs_dae", {"features": 50, "hidden": 16, "latent": 8}),
    "ecgfounder": ("ecg", {"encoder_width": 16, "labels": ["AF", "LBBB", "SR"]}),
    "probe": ("classify", {"encoder_width": 32, "labels": ["a", "b"]}),
    "segment": ("segment", {"encoder_width": 32, "widths": [8, 4, 4, 2, 1]}),
}


def random_like(shapes, seed):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in sorted(shapes.items())}


def unflatten(flat):
    tree = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def folder(kind, heads=True, **architecture):
    """A model folder of random weights, with the heads of a checkpoint kind."""
    model = tiny.folder(layouts.KINDS[kind].model)
    model = tiny.mvmae_folder() if kind == "mvmae" else model
    a = model.architecture | architecture
    shapes = model_folder.shapes_of(model.kind, a)
    params = unflatten(random_like(shapes, 1))
    model = dataclasses.replace(model, architecture=a, params=params)
    if not heads or kind not in HEADS:
        return model
    name, h = HEADS[kind]
    flat = random_like(model_heads.shapes(name, h, shapes), 2)
    if "adapted" in h:  # the folder's weights are the merged ones
        adapters = unflatten(flat)["lora"]
        base = unflatten(under(flat, "base."))["base"]
        merged = lora.merge(base, adapters, h["alpha"])
        for key in h["adapted"]:
            b, layer, m = key.split(".")
            params[b][layer][m]["kernel"] = np.asarray(merged[b][layer][m]["kernel"])
    if kind == "ecgfounder":
        norms = tables.batch_norms(a)
        rng = np.random.default_rng(3)
        flat |= {
            f"unused.{k}": v if v.dtype.kind == "i" else rng.random(v.shape, np.float32)
            for k, v in norms.items()
        }
    heads = model_heads.Heads(name, h, unflatten(flat))
    return dataclasses.replace(model, heads=heads)


def dotted(tree):
    return {k.replace("/", "."): v for k, v in tiny.flat(tree).items()}


def under(flat, prefix):
    return {k: v for k, v in flat.items() if k.startswith(prefix)}


def assert_same(a, b):
    assert set(a) == set(b)
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert a[key].shape == b[key].shape, key
        assert a[key].tobytes() == b[key].tobytes(), key


def everything(model):
    flat = {f"encoder.{k}": v for k, v in dotted(model.params).items()}
    return flat | (model.heads.flat() if model.heads else {})


OTHERS = (*foreign.KINDS, *densenet.KINDS)  # which have tests of their own


@pytest.mark.parametrize("kind", [k for k in layouts.KINDS if k not in OTHERS])
def test_there_and_back_is_bit_exact(kind):
    model = folder(kind)
    state = kinds.write(kind, model)
    again, left = kinds.read(kind, state, OPTIONS, "file")
    assert not left
    assert_same(kinds.write(kind, again), state)
    ours, theirs = everything(model), everything(again)
    for name in HEADS["pacx"][1]["adapted"] if kind == "pacx" else ():
        a, b = (x.pop(f"encoder.{name}.kernel") for x in (ours, theirs))
        np.testing.assert_allclose(a, b, atol=1e-5)  # merged anew
    assert_same(ours, theirs)
    wanted = {k: v for k, v in model.architecture.items() if k != "ln_eps"}
    assert {k: v for k, v in again.architecture.items() if k != "ln_eps"} == wanted


@pytest.mark.parametrize("kind", ["mae", "vit_timm", "vit_hf", "pacx", "probe"])
def test_learned_positions_travel(kind):
    model = folder(kind, posemb_grid=[4, 4])
    state = kinds.write(kind, model)
    again, _ = kinds.read(kind, state, OPTIONS, "file")
    assert again.architecture["posemb_grid"] == [4, 4]
    assert_same(kinds.write(kind, again), state)


@pytest.mark.parametrize(
    "kind", ["mae", "mvmae", "vit_timm", "vit_hf", "pacx", "ecgfounder"]
)
def test_encoders_travel_without_heads(kind):
    model = folder(kind, heads=False)
    again, _ = kinds.read(kind, kinds.write(kind, model), OPTIONS, "file")
    assert_same(
        {k: v for k, v in everything(again).items() if k.startswith("encoder.")},
        everything(model),
    )


def test_mvmae_has_the_authors_keys_and_leaves_texts_parts_out():
    state = kinds.write("mvmae", folder("mvmae"))
    assert state["encoders.vision.pos_embedding"].shape == (16, 1, 32)
    assert state["decoders.vision.pos_embedding"].shape == (17, 1, 32)
    assert state["encoders.vision.mod_embedding"].shape == (3, 32)
    assert state["encoders.vision.patchify.weight"].shape == (32, 1, 8, 8)
    beside = dict.fromkeys(
        ("text_decoder.out_head.weight", "latent_heads.vision.bias"), np.zeros(3)
    )
    again, left = kinds.read("mvmae", state | beside, OPTIONS, "file")
    assert left == list(beside)
    assert again.preprocessing["mean"] == [0.5056]
    with pytest.raises(PacxError, match="unexpected decoders.vision.decoder_embed"):
        odd = {"decoders.vision.decoder_embed": np.zeros(3)}
        kinds.read("mvmae", state | odd, OPTIONS, "file")


def test_mvmae_without_views_or_qk_norm_travels():
    fields = {"views": 0, "qk_norm": False}
    model = folder("mvmae", heads=False, **fields)
    again, _ = kinds.read("mvmae", kinds.write("mvmae", model), OPTIONS, "file")
    assert not {"views", "qk_norm"} & set(again.architecture)
    assert_same(dotted(again.params), dotted(model.params))


@pytest.mark.parametrize(
    "kind, model, says",
    [
        ("mvmae", "mae", "as mvmae: its images have 3 channels, not 1; its positions"),
        ("mae", "mvmae", "as mae: it has channels 1; .*--kind=mvmae holds MVMAE's"),
        ("vit_timm", "mvmae", "as vit_timm: it has channels 1; it has qk_norm True"),
    ],
)
def test_models_that_a_kind_has_no_keys_for_are_refused(kind, model, says):
    with pytest.raises(PacxError, match=f"cannot be written {says}"):
        kinds.write(kind, folder(model))


def test_the_last_epsilon_is_told_on_the_way_out():
    model = folder("mvmae", heads=False)
    assert kinds.lost("mvmae", model) == ["--num_heads=2"]
    a = {k: v for k, v in model.architecture.items() if k != "final_ln_eps"}
    model = dataclasses.replace(model, architecture=a)
    assert "--final_ln_eps=1e-06" in kinds.lost("mvmae", model)
    options = dataclasses.replace(OPTIONS, final_ln_eps=1e-6)
    again, _ = kinds.read("mvmae", kinds.write("mvmae", model), options, "file")
    assert again.architecture == model.architecture
    with pytest.raises(PacxError, match="--mean has 3 numbers, and images have 1 chan"):
        options = dataclasses.replace(OPTIONS, mean=IMAGENET_MEAN)
        kinds.read("mvmae", kinds.write("mvmae", model), options, "file")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_prefixes_of_other_writers_are_known(prefix):
    state = kinds.write("mae", folder("mae"))
    renamed = {prefix + k.removeprefix("model."): v for k, v in state.items()}
    again, _ = kinds.read("mae", renamed, OPTIONS, "file")
    assert_same(kinds.write("mae", again), state)


def test_hugging_face_names_in_memory_are_known():
    model = folder("vit_hf")
    state = kinds.write("vit_hf", model)
    table = {e.keys: e for e in tables.vit(model.architecture, tables.HF5)}
    old = tables.vit(model.architecture, tables.HF)
    names = {
        key: new
        for entry, keys in zip(old, table, strict=True)
        for key, new in zip(entry.keys, keys, strict=True)
    }
    renamed = {names[k]: v for k, v in state.items()}
    assert any("q_proj" in k for k in renamed)
    again, _ = kinds.read("vit_hf", renamed, OPTIONS, "file")
    assert_same(kinds.write("vit_hf", again), state)


def test_hugging_face_mae_has_its_decoder():
    model = folder("mae")
    state = kinds.write("vit_hf", model)
    assert "decoder.decoder_layers.1.attention.attention.query.weight" in state
    assert "vit.encoder.layer.1.attention.attention.query.weight" in state
    again, _ = kinds.read("vit_hf", state, OPTIONS, "file")
    assert again.heads.kind == "mae"
    assert_same(everything(again), everything(model))


def test_a_merged_pacx_checkpoint_has_no_adapters():
    model = folder("pacx")
    state = kinds.write("pacx", model, merged=True)
    assert not [k for k in state if "lora" in k or "base_layer" in k]
    again, _ = kinds.read("pacx", state, OPTIONS, "file")
    assert "adapted" not in again.heads.architecture
    for name, value in dotted(model.params).items():
        assert value.tobytes() == dotted(again.params)[name].tobytes()


def test_lora_is_merged_with_its_alpha():
    model = folder("pacx")
    state = kinds.write("pacx", model)
    key = "cxr_encoder.base_model.model.blocks.1.attn.qkv"
    a, b = (state[f"{key}.lora_{s}.default.weight"] for s in "AB")
    base = state[f"{key}.base_layer.weight"]
    for alpha in (16.0, 2.0):
        options = dataclasses.replace(OPTIONS, alpha=alpha)
        again, _ = kinds.read("pacx", state, options, "file")
        merged = again.params["block_01"]["attn"]["qkv"]["kernel"]
        np.testing.assert_allclose(merged, (base + alpha / 2 * b @ a).T, atol=1e-5)
    with pytest.raises(PacxError, match="--alpha 0.0: give"):
        Options(alpha=0.0)


def test_layernorm_epsilon_is_the_published_one():
    for kind, eps in (("mae", 1e-6), ("pacx", 1e-5), ("vit_hf", 1e-12)):
        state = kinds.write(kind, folder(kind, heads=False))
        found, _ = kinds.read(kind, state, OPTIONS, "file")
        assert found.architecture["ln_eps"] == eps


def test_an_imagenet_vit_has_its_own_statistics():
    state = kinds.write("vit_timm", folder("vit_timm", posemb_grid=[4, 4]))
    found, _ = kinds.read("vit_timm", state, OPTIONS, "file")
    assert found.preprocessing["mean"] == [0.5, 0.5, 0.5]
    options = dataclasses.replace(OPTIONS, mean=IMAGENET_MEAN, std=IMAGENET_MEAN)
    found, _ = kinds.read("vit_timm", state, options, "file")
    assert found.preprocessing["mean"] == list(IMAGENET_MEAN)


def test_ecgfounder_has_its_509_keys():
    listing = PARITY / "ecgfounder_state_dict.txt"
    wanted = {}
    for line in listing.read_text().splitlines():
        key, _, shape = line.partition(" ")
        wanted[key] = tuple(int(x) for x in shape.strip("()").split(",") if x.strip())
    assert len(wanted) == 509
    state = {
        k: np.zeros(s, np.int64 if k.endswith("tracked") else np.float32)
        for k, s in wanted.items()
    }
    model, left = kinds.read("ecgfounder", state, Options(), "file")
    assert not left
    assert model.architecture["filters"] == [64, 160, 160, 400, 400, 1024, 1024]
    assert model.architecture["blocks"] == [2, 2, 2, 3, 3, 4, 4]
    count = sum(v.size for v in tiny.flat(model.params).values())
    assert count == 30_598_896
    again = kinds.write("ecgfounder", model)
    assert {k: v.shape for k, v in again.items()} == wanted


def published_vit(prefix, d=768, blocks=12, key="blocks"):
    for i in range(blocks):
        b = f"{prefix}{key}.{i}."
        yield from (
            (f"{b}norm{n}.{x}", (d,)) for n in (1, 2) for x in ("weight", "bias")
        )
        for name, o, n in (
            ("attn.qkv", 3 * d, d), ("attn.proj", d, d),
            ("mlp.fc1", 4 * d, d), ("mlp.fc2", d, 4 * d),
        ):  # fmt: skip
            yield from ((f"{b}{name}.weight", (o, n)), (f"{b}{name}.bias", (o,)))


def test_a_published_mae_has_the_keys_of_reference_section_8():
    wanted = dict(published_vit("model."))
    wanted |= dict(published_vit("model.", 512, 8, "decoder_blocks"))
    wanted |= {
        f"model.{k}": s
        for k, s in {
            "cls_token": (1, 1, 768), "pos_embed": (1, 197, 768),
            "mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512),
            "patch_embed.proj.weight": (768, 3, 16, 16),
            "patch_embed.proj.bias": (768,), "norm.weight": (768,),
            "norm.bias": (768,), "decoder_embed.weight": (512, 768),
            "decoder_embed.bias": (512,), "decoder_norm.weight": (512,),
            "decoder_norm.bias": (512,), "decoder_pred.weight": (768, 512),
            "decoder_pred.bias": (768,),
        }.items()
    }  # fmt: skip
    state = {k: np.zeros(s, np.float32) for k, s in wanted.items()}
    state["model.pos_embed"] = tables.positions(14, 768)
    state["model.decoder_pos_embed"] = tables.positions(14, 512)
    model, _ = kinds.read("mae", state, Options(), "file")
    assert model.architecture["num_heads"] == 12
    assert model.heads.architecture["num_heads"] == 16
    assert sum(v.size for v in state.values()) == 111_907_840
    assert {k: v.shape for k, v in kinds.write("mae", model).items()} == wanted


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: s.pop("model.norm.bias"), "missing model.norm.bias"),
        (lambda s: s.update(odd=np.zeros(3)), r"unexpected odd \(3,\)"),
        (
            lambda s: s.update({"model.norm.bias": np.zeros(31, np.float32)}),
            r"model.norm.bias \(31,\) is of a wrong shape \(encoder.norm.bias is",
        ),
        (
            lambda s: s["model.blocks.1.mlp.fc1.bias"].fill(np.nan),
            "model.blocks.1.mlp.fc1.bias has values that are not finite",
        ),
        (
            lambda s: s["model.decoder_pos_embed"].fill(1),
            "decoder_pos_embed is not the",
        ),
        (lambda s: s.pop("model.pos_embed"), "model.pos_embed"),
        (
            lambda s: s.update({"model.blocks.1.attn.qkv.weight": np.zeros((95, 32))}),
            r"model.blocks.1.attn.qkv.weight \(95, 32\) is of a wrong shape",
        ),
        (lambda s: s.clear(), "is no mae checkpoint"),
    ],
)
def test_what_does_not_fit_is_listed(change, says):
    state = {k: v.copy() for k, v in kinds.write("mae", folder("mae")).items()}
    change(state)
    with pytest.raises(PacxError, match=says):
        kinds.read("mae", state, OPTIONS, "file")


def test_another_kind_says_what_the_file_holds():
    state = kinds.write("labs_dae", folder("labs_dae"))
    with pytest.raises(PacxError, match="no pacx checkpoint.*model.decoder.0.bias"):
        kinds.read("pacx", state, OPTIONS, "file")


def test_heads_of_another_kind_cannot_be_written():
    with pytest.raises(PacxError, match="probe needs classify heads.*has mae"):
        kinds.write("probe", folder("mae"))
    with pytest.raises(PacxError, match="a vit model cannot be written as labs_dae"):
        kinds.write("labs_dae", folder("mae"))
