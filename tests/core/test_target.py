"""What is compiled for decides which form is taken; every form computes the same."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import lora, optim, sharding, step, target
from pacx_jax.encoders import forward
from pacx_jax.models import convolution, dense, layer_norm, vit
from pacx_jax.types import Objective
from tests import tiny

RNG = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def operations():
    """Name -> (function, its arguments), in float64."""
    x, wide = array(3, 5, 8), array(3, 5, 12)
    seeds = jnp.asarray(RNG.integers(0, 2**32, (3, 2)), jnp.uint32)
    return {
        "dense": (dense.affine, (x, array(8, 12), array(12))),
        "gelu": (dense.gelu, (wide,)),
        "silu": (dense.silu, (wide,)),
        "layer_norm": (
            lambda x, s, b: layer_norm.normalized(x, s, b, 1e-6),
            (x + 3, array(8), array(8)),
        ),
        "low_rank": (
            lambda x, a, b: lora.dropped_low_rank(x, a, b, seeds, 0.5),
            (x, array(8, 2), array(2, 12)),
        ),
        "grouped_convolution": (
            lambda x, k: convolution.conv(
                8, 4, 2, 2, dtype=None, name=None, use_bias=False
            ).apply({"params": {"kernel": k}}, x),
            (array(3, 10, 8), array(4, 4, 8)),
        ),
    }


def test_every_operation_with_two_forms_is_compared_here():
    assert {*operations(), "update_in_branch"} == set(target.HAND_WRITTEN)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("name", sorted({*target.HAND_WRITTEN} - {"update_in_branch"}))
def test_both_forms_have_the_same_value_and_gradient(monkeypatch, name, platform):
    # Measured 3e-16 to 2e-15, float64's rounding.
    monkeypatch.setattr(target, "platform", lambda: platform)
    with jax.enable_x64(True):
        function, args = operations()[name]
        args = jax.tree.map(lambda x: x.astype(jnp.float64), args)

        def both(own):
            def loss(*args):
                out = function(*args)
                return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()

            with target.forced(**{name: own}):
                value = jax.value_and_grad(loss, tuple(range(len(args))))
                return str(jax.make_jaxpr(value)(*args)), jax.jit(value)(*args)

        (own_text, own), (text, jaxs) = both(True), both(False)
        assert "custom_vjp" in text or own_text != text  # they are two forms
        for a, b in zip(*map(jax.tree.leaves, (own, jaxs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_moments_by_one_reading_are_near_whatever_the_mean_and_the_first_entry():
    # Of the deviation; the last row's bound is d x 2^-22, for sums in any order.
    rows = RNG.normal(size=(64, 768))
    far = rows.copy()
    far[:, 0] += 1e4  # the first entry sqrt(d) deviations away
    for x, bound in (rows, 1e-6), (rows + 300, 1e-4), (far, 2e-4):
        x = x.astype(np.float32)
        mean, inverse = layer_norm.moments_at_once(jnp.asarray(x), 1e-6)
        want = x.astype(np.float64).std(-1, keepdims=True)
        error = np.abs(np.asarray(1 / inverse) / want - 1).max()
        off = np.abs(np.asarray(mean) - x.astype(np.float64).mean(-1, keepdims=True))
        print(error, (off / want).max())  # measured
        assert error < bound and (off / want).max() < bound


def test_forced_refuses_what_has_no_forms():
    with pytest.raises(ValueError, match="erf: choose of dense, gelu"):
        with target.forced(erf=True):
            pass


def test_devices_are_those_of_the_mesh_that_is_traced_for():
    assert target.platform() == "" and target.device_count() == 1
    with sharding.tracing(sharding.make_mesh(4)):
        assert target.platform() == "cpu" and target.device_count() == 4
        assert target.capability() == ()
    assert target.platform() == ""


def linear(shape):
    """y = x w, with its mean square as loss."""
    return Objective(
        init=lambda key: {"w": jax.random.normal(key, shape)},
        trainable=lambda path: True,
        loss=lambda p, batch, key, train: (((batch["x"] @ p["w"]) ** 2).mean(), {}),
        outputs=None,
        summarize=None,
    )


def train_step(mesh, in_branch, shape=(3, 3)):
    objective, tx = linear(shape), optim.make(tiny.config("mae_vitb16").optim, 10)
    state = step.make_state(objective.init(jax.random.key(0)), objective, tx)
    shardings = sharding.tree_shardings(state, mesh)
    with target.forced(update_in_branch=in_branch):
        update = step.make_train_step(objective, tx, mesh, shardings)
        batch = {"x": jnp.ones((8, shape[0]))}
        lowered = update.lower(state, batch, jax.random.key(1))
    return state, lowered.compile()


@pytest.mark.parametrize("in_branch", [True, False])
def test_an_update_that_is_not_finite_changes_nothing_in_either_form(meshes, in_branch):
    state, update = train_step(meshes[1], in_branch)
    before = jax.tree.map(np.asarray, state)
    key = jax.random.key(1)
    state, _ = update(state, {"x": jnp.full((8, 3), jnp.nan)}, key)
    assert int(state.step) == 1
    for a, b in zip(
        jax.tree.leaves((state.params, state.opt_state)),
        jax.tree.leaves((before.params, before.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    state, _ = update(state, {"x": jnp.ones((8, 3))}, key)
    assert (np.asarray(state.params["w"]) != before.params["w"]).any()


def test_a_cpu_writes_the_state_in_place(meshes):
    """As the test of steps compiled for GPUs says of these."""
    copies = {}
    for in_branch in (True, False):
        _, update = train_step(meshes[1], in_branch, (512, 256))
        text = update.as_text()
        copies[in_branch] = len(re.findall(r"= f32\[512,256\]\S* copy\(", text))
    assert copies[True] == 0
    assert target.HAND_WRITTEN["update_in_branch"] == ("cpu", "tpu")


def test_a_full_device_memory_is_one_line():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jnp.zeros((2**45,)).block_until_ready()
    told = target.out_of_memory(error.value)
    assert "140737488355328 bytes more" in told and "config.accumulate" in told
    assert "\n" not in told
    assert target.out_of_memory(ValueError("wrong shape")) == ""


def test_bfloat16_on_a_gpu_without_it_is_said_once(monkeypatch, caplog):
    target.say_once.cache_clear()
    old = types.SimpleNamespace(
        platform="gpu", device_kind="Tesla V100-SXM2", compute_capability="7.0"
    )
    monkeypatch.setattr(target, "device", lambda: old)
    with caplog.at_level("WARNING"):
        for dtype in ("bfloat16", "bfloat16", "float16"):
            target.say_of_dtype(dtype)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "Tesla V100-SXM2 has no units for bfloat16" in said


def test_an_encoder_in_use_says_of_its_dtype_too(monkeypatch):
    said = []
    monkeypatch.setattr(target, "say_of_dtype", said.append)
    module = vit.ViT(8, 16, 1, 2, dtype=jnp.bfloat16)
    encode = forward.images(module, [0.5] * 3, [0.5] * 3, sharding.make_mesh(1))
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.uint8)
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    encode.lower(params, images)
    assert said == ["bfloat16"]
