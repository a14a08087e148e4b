"""Parameter trees and counts at the published sizes, from shapes alone."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from pacx_jax import lora, objectives
from pacx_jax.models import ecg, labs_dae, mae, vit
from pacx_jax.objectives import distill_model
from tests import tiny

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def mae_shapes():
    model = mae.from_config(tiny.config("mae_vitb16").model)
    images = jnp.zeros((1, 224, 224, 3))
    ids = jnp.zeros((1, 19), jnp.int32), jnp.zeros((1, 196), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), images, *ids)["params"]


@pytest.fixture(scope="module")
def ecg_shapes():
    model = ecg.from_config(tiny.config("ecg_net1d").model)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5000, 12)))
    return tree["params"]


@pytest.fixture(scope="module")
def labs_shapes():
    model = labs_dae.from_config(tiny.config("labs_dae").model)
    labs = jnp.zeros((1, 50))
    return jax.eval_shape(model.init, jax.random.key(0), labs, labs)["params"]


@pytest.fixture(scope="module")
def distill_shapes(mae_shapes):
    """Every parameter of Stage 2 with cached embeddings, ViT-B and published widths."""
    config = tiny.config("distill_vitb16")
    encoder = mae_shapes["encoder"]

    def adapters(encoder):
        return lora.init(jax.random.key(0), encoder, config.lora.targets, 8)

    widths = {"ecg": 1024, "labs": 256}
    heads = {}
    for name, head in distill_model.heads_of(config, widths).items():
        d = 768 if name.startswith("cxr") else widths[name.split("_")[0]]
        z = jnp.zeros((1, d))
        heads[name] = jax.eval_shape(
            lambda key, z=z, head=head: head.init(key, z, train=False),
            jax.random.key(0),
        )["params"]
    return {
        "encoder": encoder,
        "lora": jax.eval_shape(adapters, encoder),
        "heads": heads,
        "logit_scale": jnp.zeros(()),
    }


def lines(tree) -> str:
    rows = [f"{k} {tuple(v.shape)}" for k, v in sorted(tiny.flat(tree).items())]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("name", ["mae_shapes", "ecg_shapes", "labs_shapes"])
def test_parameter_tree_is_the_golden_one(name, request):
    # Sharding rules, LoRA targets, conversion and published folders name these.
    golden = (GOLDEN / f"{name.removesuffix('_shapes')}.txt").read_text()
    assert lines(request.getfixturevalue(name)) == golden


def test_distillation_parameter_tree_is_the_golden_one(distill_shapes):
    tree = {k: v for k, v in distill_shapes.items() if k != "encoder"}
    assert lines(tree) == (GOLDEN / "distill.txt").read_text()


def test_mae_vitb16_has_the_published_number_of_parameters(mae_shapes):
    assert tiny.count(mae_shapes) == 111_655_680
    pos_embed = 197 * 768  # stored by the reference, computed here
    assert tiny.count(mae_shapes["encoder"]) == 85_798_656 - pos_embed


def test_encoder_alone_has_the_tree_of_the_mae_encoder(mae_shapes):
    model = vit.from_config(tiny.config("mae_vitb16").model)
    image = jnp.zeros((1, 224, 224, 3))
    alone = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert lines(alone) == lines(mae_shapes["encoder"])


def test_net1d_has_the_published_number_of_parameters(ecg_shapes):
    assert tiny.count(ecg_shapes) == 30_598_896


def test_labs_autoencoder_has_the_published_number_of_parameters(labs_shapes):
    assert tiny.count(labs_shapes) == 341_298


def test_lora_has_the_published_number_of_parameters_in_36_layers(distill_shapes):
    assert tiny.count(distill_shapes["lora"]) == 1_032_192
    assert len(tiny.flat(distill_shapes["lora"])) == 2 * 36


def test_heads_have_the_published_number_of_parameters(distill_shapes):
    assert tiny.count(distill_shapes["heads"]) == 1_513_472


HEADS_AND_SCALE = 1_513_472 + 1
LORA = 1_032_192
FINAL, BLOCK_NORMS = 1_536, 12 * 2 * 1_536
BLOCK = 7_087_872  # one transformer block of width 768
ENCODER = 85_647_360


@pytest.mark.parametrize(
    ("tuning", "train_norms", "expected"),
    [
        ("lora", "final", LORA + FINAL),
        ("lora", "all", LORA + FINAL + BLOCK_NORMS),
        ("lora", "none", LORA),
        ("last_n_blocks", "final", 4 * BLOCK + FINAL),
        ("last_n_blocks", "none", 4 * BLOCK + FINAL),
        ("last_n_blocks", "all", 4 * BLOCK + FINAL),
        ("full", "none", ENCODER),
        ("full", "all", ENCODER),
        ("norms", "all", FINAL + BLOCK_NORMS),
        ("norms", "final", FINAL),
    ],
)
def test_trainable_parameters_are_those_of_the_tuning(
    distill_shapes, tuning, train_norms, expected
):
    config = tiny.config("distill_vitb16", tuning=tuning, train_norms=train_norms)
    trainable = distill_model.trainable(config, depth=12)
    tree = dict(distill_shapes)
    if tuning != "lora":
        del tree["lora"]
    total = tiny.count([v for k, v in tiny.flat(tree).items() if trainable(k)])
    assert total == expected + HEADS_AND_SCALE
    if (tuning, train_norms) == ("lora", "final"):
        assert total == 2_547_201  # as in the published code


def test_fixed_temperature_is_not_trained():
    config = tiny.config("distill_vitb16", loss__learn_temperature=False)
    assert not distill_model.trainable(config, 12)("logit_scale")
    assert distill_model.trainable(tiny.config("distill_vitb16"), 12)("logit_scale")


@pytest.mark.parametrize(
    "size, grid", [pytest.param(224, 14, marks=pytest.mark.full), (448, 28)]
)
def test_vitb_mae_has_gradients_at_any_image_size(size, grid):
    # Shapes alone: docs/convert.md says what was run at 448 pixels.
    config = tiny.config("mae_vitb16", data__image_size=size)
    objective = objectives.make(config, None)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)}

    def loss(params, batch, key):
        return objective.loss(params, batch, key, train=True)[0]

    grads = jax.eval_shape(jax.grad(loss), params, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    encoder = mae.from_config(config.model).encoder
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    tokens = jax.eval_shape(encoder.apply, {"params": params["encoder"]}, images)
    assert tokens.shape == (2, 1 + grid**2, 768)
