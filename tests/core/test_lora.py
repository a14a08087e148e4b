"""Low-rank adapters: what they touch, and that merging equals applying."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import lora
from pacx_jax.errors import PacxError
from pacx_jax.models import vit
from tests import tiny

TARGETS = ("qkv", "fc1", "fc2")


@pytest.fixture(scope="module")
def model():
    return vit.ViT(patch_size=8, width=32, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def params():
    return tiny.folder("vit").params


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def adapters(params):
    """Adapters as after training: b is not zero."""
    return tiny.randomized(lora.init(jax.random.key(0), params, TARGETS, 4), 1, 0.2)


@pytest.fixture(scope="module")
def forward(model):
    """Jitted forward passes with adapters, as (params, adapters, images, key, rate)."""

    def run(params, adapters, images, key, dropout):
        with lora.applied(adapters, alpha=8.0, dropout=dropout, key=key):
            return model.apply({"params": params}, images)

    return jax.jit(run, static_argnames="dropout")


def test_adapters_stand_at_the_targets_alone(params):
    got = {k.rsplit("/", 1)[0] for k in tiny.flat(lora.init(
        jax.random.key(0), params, TARGETS, 4))}  # fmt: skip
    assert got == {
        f"block_0{i}/{name}"
        for i in (0, 1)
        for name in ("attn/qkv", "mlp/fc1", "mlp/fc2")
    }  # not attn/proj, not patch_embed


def test_shapes_are_in_by_rank_and_rank_by_out(params):
    tree = tiny.flat(lora.init(jax.random.key(0), params, ("qkv",), 4))
    assert tree["block_00/attn/qkv/a"].shape == (32, 4)
    assert tree["block_00/attn/qkv/b"].shape == (4, 96)


def test_initial_values_are_those_of_peft(params):
    tree = tiny.flat(lora.init(jax.random.key(0), params, ("fc2",), 8))
    bound = 128**-0.5
    assert 0.95 * bound < np.abs(tree["block_00/mlp/fc2/a"]).max() <= bound
    assert not np.asarray(tree["block_00/mlp/fc2/b"]).any()
    a, b = tree["block_00/mlp/fc2/a"], tree["block_01/mlp/fc2/a"]
    assert not np.array_equal(a, b)  # each layer draws its own


def test_adapted_model_starts_equal_to_the_base_model(model, params, images, forward):
    fresh = lora.init(jax.random.key(0), params, TARGETS, 4)
    base = jax.jit(model.apply)({"params": params}, images)
    got = forward(params, fresh, images, jax.random.key(1), 0.1)
    # The added branch is exactly 0; only XLA's fusions differ. Measured 1.2e-7.
    assert tiny.relative(got, base) < 1e-6


def test_merging_equals_applying_without_dropout(
    model, params, adapters, images, forward
):
    # Bound 1e-6 of the norm. Measured 5.2e-7.
    applied = forward(params, adapters, images, jax.random.key(0), 0.0)
    merged = lora.merge(params, adapters, 8.0)
    got = jax.jit(model.apply)({"params": merged}, images)
    assert tiny.relative(got, applied) < 1e-6
    base = jax.jit(model.apply)({"params": params}, images)
    assert tiny.relative(base, applied) > 0.1  # the adapters do something


def test_merged_kernel_is_w_plus_alpha_over_rank_a_b(params, adapters):
    merged = tiny.flat(lora.merge(params, adapters, 8.0))
    base, pairs = tiny.flat(params), tiny.flat(adapters)
    for name, kernel in base.items():
        layer = name.rsplit("/", 1)[0]
        want = np.float64(kernel)
        if name.endswith("kernel") and f"{layer}/a" in pairs:
            want = (
                want + 8.0 / 4 * np.float64(pairs[f"{layer}/a"]) @ pairs[f"{layer}/b"]
            )
        assert np.abs(merged[name] - want).max() < 1e-6, name  # measured 9.1e-8


def test_dropout_acts_in_training_alone_and_follows_its_key(
    params, adapters, images, forward
):
    keys = jax.random.split(jax.random.key(2), 2)
    plain = [forward(params, adapters, images, k, 0.0) for k in keys]
    np.testing.assert_array_equal(*plain)
    dropped = [forward(params, adapters, images, k, 0.5) for k in keys]
    assert tiny.relative(*dropped) > 1e-2
    np.testing.assert_array_equal(
        forward(params, adapters, images, keys[0], 0.5), dropped[0]
    )


def test_dropout_is_on_the_input_of_the_adapter_with_its_mean_kept():
    # One layer: over many rows the mean output equals that without dropout. The
    # standard error is about 1 / sqrt(8192) = 0.011 of its norm; measured 0.010.
    base = {"kernel": np.zeros((16, 8), np.float32)}
    rng = np.random.default_rng(0)
    adapters = {k: rng.normal(size=s) for k, s in (("a", (16, 4)), ("b", (4, 8)))}

    class Outer(vit.nn.Module):
        @vit.nn.compact
        def __call__(self, x):
            return vit.nn.Dense(8, use_bias=False, name="fc1")(x)

    x = np.ones((8192, 16), np.float32)
    outs = []
    for rate in (0.0, 0.5):
        with lora.applied(
            {"fc1": adapters}, alpha=4.0, dropout=rate, key=jax.random.key(0)
        ):
            outs.append(np.asarray(Outer().apply({"params": {"fc1": base}}, x)))
    want = 1.0 * (x[:1] @ adapters["a"]) @ adapters["b"]  # alpha / rank = 1
    assert tiny.relative(outs[0][:1], want) < 1e-6
    assert tiny.relative(outs[1].mean(0), want[0]) < 0.05
    assert outs[1].std(0).min() > 0.1 * np.abs(want).min()


def test_dropout_without_a_key_is_an_error(adapters):
    with pytest.raises(ValueError, match="needs a key"):
        with lora.applied(adapters, alpha=1.0, dropout=0.1):
            pass


def test_target_that_names_no_layer_is_an_error(params):
    with pytest.raises(PacxError, match=r"lora targets \['q_proj'\] name no dense"):
        lora.init(jax.random.key(0), params, ("qkv", "q_proj"), 4)


def test_interception_ends_with_its_context(model, params, adapters, images):
    base = jax.jit(model.apply)({"params": params}, images)
    with lora.applied(adapters, alpha=8.0):
        pass
    got = jax.jit(lambda *args: model.apply(*args))({"params": params}, images)
    np.testing.assert_array_equal(got, base)


def test_gradient_of_adapters_is_that_of_the_merged_model(
    model, params, adapters, images, forward
):
    # Bound 1e-5 a leaf. Measured 1.6e-6.
    weight = np.random.default_rng(3).normal(size=(2, 17, 32)).astype(np.float32)

    def by_merging(adapters):
        merged = lora.merge(params, adapters, 8.0)
        return (model.apply({"params": merged}, images) * weight).sum()

    def by_applying(adapters):
        return (forward(params, adapters, images, None, 0.0) * weight).sum()

    a = tiny.flat(jax.jit(jax.grad(by_applying))(adapters))
    b = tiny.flat(jax.jit(jax.grad(by_merging))(adapters))
    assert max(tiny.relative(a[k], b[k]) for k in b) < 1e-5
    assert min(np.linalg.norm(v) for v in b.values()) > 0


def test_backward_of_its_own_is_the_usual_one():
    # All three gradients against autodiff of (x a) b. Bound 1e-6; measured 7.2e-8.
    rng = np.random.default_rng(0)
    shapes = (2, 5, 16), (16, 4), (4, 24), (2, 5, 24)
    x, a, b, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    value, pull = jax.vjp(lora.low_rank, x, a, b)
    want, usual = jax.vjp(lambda x, a, b: (x @ a) @ b, x, a, b)
    assert tiny.relative(value, want) < 1e-6
    for got, expected in zip(pull(g), usual(g), strict=True):
        assert got.shape == expected.shape
        assert tiny.relative(got, expected) < 1e-6
