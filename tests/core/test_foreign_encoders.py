"""Other people's encoders where ours are used: embed, tokens, Stage 2, probes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.sharding import PartitionSpec

from pacx_jax import embed, load_encoder, objectives, sharding
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import rollout
from pacx_jax.exporting import pytorch
from pacx_jax.exporting.source import Source
from pacx_jax.models import positions
from pacx_jax.objectives import distill
from pacx_jax.run import setup
from tests import stages, tiny

KINDS = tuple(tiny.FOREIGN)
FULL = pytest.mark.full
EACH = pytest.mark.parametrize(
    "kind", ["dinov2_hf", "eva02", pytest.param("dinov2", marks=FULL)]
)


@functools.cache
def encoder(kind):
    return Encoder(tiny.foreign_folder(kind), batch_size=8, num_devices=1)


def xrays(n=4, size=40):
    return np.random.default_rng(0).integers(0, 256, (n, size, size), np.uint8)


@EACH
def test_embedding_tokens_and_attentions_belong_together(kind, tmp_path):
    model = tiny.foreign_folder(kind)
    model_folder.save(tmp_path / kind, model, "")
    z = load_encoder(tmp_path / kind)(xrays())
    tokens = encoder(kind).tokens(xrays())
    assert z.shape == (4, 32) and tokens.shape == (4, 17, 32)
    assert tiny.worst(tokens[:, 0], z) < 1e-5
    maps = encoder(kind).attentions(xrays())
    registers = model.architecture.get("registers", 0)
    assert [m.shape for m in maps] == [(4, 2, 17 + registers, 17 + registers)] * 2
    np.testing.assert_allclose(maps[0].sum(-1), 1, atol=1e-5)
    pool = model.architecture.get("pool", "cls")
    grid = rollout.attention_rollout(maps, registers, pool)
    assert grid.shape == (4, 4, 4) and (grid > 0).all() and (grid.sum((1, 2)) < 1).all()


def test_the_mean_of_patches_is_taken_before_the_last_norm():
    model = tiny.foreign_folder("eva02")
    scale = {"scale": np.ones(32, np.float32), "bias": np.zeros(32, np.float32)}
    params = model.params | {"norm": scale}
    out, plain = (
        np.asarray(jax.jit(module.apply)({"params": params}, images()))
        for module in (model.module(), model.module().clone(pool="cls"))
    )
    np.testing.assert_allclose(out[:, 1:], plain[:, 1:], atol=1e-5)
    np.testing.assert_allclose(out[:, 0].mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out[:, 0].std(-1), 1, atol=1e-4)
    assert np.abs(out[:, 0] - plain[:, 1:].mean(1)).max() > 0.1


def images(size=32, b=2):
    return np.random.default_rng(1).normal(size=(b, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["dinov2_hf", "eva02"])
def test_kept_patches_keep_their_positions(kind):
    # All patches in another order: the same tokens in that order.
    model = tiny.foreign_folder(kind)
    ids = np.stack([np.random.default_rng(i).permutation(16) for i in range(2)])
    run = jax.jit(model.module().apply)
    whole = run({"params": model.params}, images())
    got = run({"params": model.params}, images(), jnp.asarray(ids))
    want = np.take_along_axis(np.asarray(whole[:, 1:]), ids[..., None], axis=1)
    assert tiny.worst(got[:, 1:], want) < 1e-5
    assert tiny.worst(got[:, 0], whole[:, 0]) < 1e-5
    few = run({"params": model.params}, images(), jnp.asarray(ids[:, :5]))
    assert few.shape == (2, 6, 32)


def test_rotary_positions_see_distances_alone():
    # The score of two patches is the same wherever both are moved.
    cos, sin = positions.rotary((5, 5), (5, 5), 8, 1)
    x = np.random.default_rng(0).normal(size=(1, 1, 1, 8)).astype(np.float32)
    turned = positions.turned(jnp.tile(jnp.asarray(x), (1, 26, 1, 1)), cos, sin)
    turned = np.asarray(turned)[0, :, 0]
    np.testing.assert_array_equal(turned[0], x[0, 0, 0])  # CLS
    grid = turned[1:].reshape(5, 5, 8)
    a, b = grid[0, 0] @ grid[1, 2], grid[3, 1] @ grid[4, 3]
    assert abs(a - b) < 1e-5 and abs(a - grid[0, 0] @ grid[2, 2]) > 1e-3


@pytest.mark.parametrize(
    "kind", ["dinov2", "eva02", pytest.param("dinov2_hf", marks=FULL)]
)
def test_another_image_size(kind):
    model = tiny.foreign_folder(kind)
    larger = Encoder(model_folder.at_size(model, 48), 8, num_devices=1)
    x = (larger.preprocess(xrays()[0]) / 255 - 0.53) / 0.26
    run = jax.jit(model.module().apply)
    want = run({"params": model.params}, jnp.asarray(x[None], jnp.float32))
    assert tiny.worst(larger.tokens(xrays()[:1]), want) < 1e-5


@EACH
def test_bfloat16_stays_near_float32(kind):
    half = Encoder(tiny.foreign_folder(kind), 8, "bfloat16", num_devices=1)
    assert tiny.worst(half(xrays()), encoder(kind)(xrays())) < 0.05


def test_the_embed_command_takes_them(tmp_path):
    model_folder.save(tmp_path / "eva", tiny.foreign_folder("eva02"), "")
    (tmp_path / "x").mkdir()
    PIL.Image.fromarray(xrays()[0]).save(tmp_path / "x" / "a.png")
    out = tmp_path / "z.npz"
    args = ["--encoder", "eva", "--images", "x", "--out", "z.npz"]
    args = [str(tmp_path / a) if not a.startswith("--") else a for a in args]
    assert embed.main(args) == 0
    with np.load(out) as file:
        z = file["embedding"]
    assert tiny.worst(z, encoder("eva02")(xrays()[:1])) < 1e-5


def test_formats_without_their_parts_say_so():
    for kind in KINDS:
        source = Source(tiny.foreign_folder(kind))
        assert "which timm's plain ViT has not" in pytorch.timm_lacks(source)
        assert "which transformers' ViT has not" in pytorch.hf_lacks(source)
    assert not pytorch.timm_lacks(Source(tiny.folder("vit")))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"pool": "max"}, "pool is 'max': cls, mean"),
        ({"posemb_resampling": "x"}, "posemb_resampling is 'x': antialias"),
        ({"rotary_grid": [3]}, r"rotary_grid is \[3\]: two whole numbers above 0"),
        ({"rotary_grid": [0, 3]}, r"rotary_grid is \[0, 3\]: two whole numbers"),
        ({"registers": 2}, "missing registers"),
        ({"registers": 1.5}, "registers is 1.5: a whole number"),
        ({"registers": 2**20, "width": 128}, "make too many positions"),
        ({"num_heads": 16}, "heads of 2 channels: rotary positions need a multiple"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, change, says):
    model_folder.save(tmp_path / "eva", tiny.foreign_folder("eva02"), "")
    config = tmp_path / "eva" / "config.json"
    about = model_folder.files.read_json(config)
    about["architecture"] |= change
    config.write_text(model_folder.json.dumps(about))
    with pytest.raises(PacxError, match=says):
        model_folder.load(tmp_path / "eva", "vit")


def test_norms_of_hidden_units_lie_as_these():
    mesh = sharding.make_mesh(8, 2, 2)
    tree = {"encoder": tiny.foreign_folder("eva02").params}
    found = tiny.flat(sharding.tree_shardings(tree, mesh))
    spec = {k.removeprefix("encoder/block_00/"): v.spec for k, v in found.items()}
    assert spec["mlp/norm/scale"] == PartitionSpec("tensor")
    assert spec["mlp/fc1/kernel"] == PartitionSpec("fsdp", "tensor")
    assert spec["mlp/fc2/kernel"] == PartitionSpec("tensor", "fsdp")
    tree = {"encoder": tiny.foreign_folder("dinov2_hf").params}
    found = tiny.flat(sharding.tree_shardings(tree, mesh))
    assert found["encoder/registers"].spec == PartitionSpec()
    assert found["encoder/block_00/ls1"].spec == PartitionSpec()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> model folders of a Stage 2 that starts from it."""
    path = tmp_path_factory.mktemp("foreign")
    shared = tiny.write_folders(path)
    found = {}
    for kind in KINDS:
        model_folder.save(path / kind, tiny.foreign_folder(kind), "")
        found[kind] = shared | {"model_init": str(path / kind)}
    return found


LONG = [(s, k, f) for s, f in (("distill", {}), ("distill", {"tuning": "full"}),
        ("classify", {"tuning": "full"}), ("classify", {}), ("segment", {}),
        ("distill", {"remat": "dots"})) for k in KINDS]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize(("stage", "kind", "fields"), LONG)
def test_a_step_on_a_mesh_equals_that_of_one_device(stage, kind, fields, folders):
    # Bounds 1e-12. Measured 4.6e-16 (metrics) and 2.2e-15 (gradients).
    fields = {"data__mean": (0.53,) * 3, "data__std": (0.26,) * 3} | fields
    config = stages.config(stage, folders[kind], **fields)
    with jax.enable_x64(True):
        got, want = (
            stages.one_step(config, sharding.make_mesh(*mesh), "float64", False)
            for mesh in ((8, 2, 2), (1, 1, 1))
        )
    metrics, gradients = stages.differences(got, want)
    print(f"{stage} from {kind} {fields}: {metrics:.1e}, gradients {gradients:.1e}")
    assert metrics < 1e-12 and gradients < 1e-12


@EACH
def test_stage_two_starts_from_and_exports_them(kind, folders):
    fields = {"data__mean": (0.53,) * 3, "data__std": (0.26,) * 3}
    config = stages.config("distill", folders[kind], **fields)
    config.lora.targets = ("qkv", "proj")
    objective = objectives.make(config, sharding.make_mesh(1))
    params = tiny.random_start(objective) | setup.load_parts(
        objective, jax.random.key(0)
    )
    pairs = tiny.flat(params["lora"])
    params["lora"] = tiny.unflat({k: v * k.endswith("/a") for k, v in pairs.items()})
    adapted = {k.split("/")[-2] for k in tiny.flat(params["lora"])}
    assert adapted == {"qkv", "proj"}
    exported = distill.export(config, params)
    start = tiny.foreign_folder(kind)
    about = exported.architecture
    assert {k: v for k, v in about.items() if k != "ln_eps"} == {
        k: v for k, v in start.architecture.items() if k != "ln_eps"
    }
    assert exported.preprocessing == start.preprocessing
    same = dataclasses.replace(exported, architecture=start.architecture)
    z = Encoder(same, batch_size=8, num_devices=1)(xrays())
    assert tiny.worst(z, encoder(kind)(xrays())) < 1e-5  # b is 0
