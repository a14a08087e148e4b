"""LayerNorm against its formula in float64, and its gradient against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.models.layer_norm import LayerNorm

RNG = np.random.default_rng(0)


@pytest.fixture
def params():
    scale, bias = RNG.normal(size=(2, 64)).astype(np.float32)
    return {"params": {"scale": scale, "bias": bias}}


def formula(x, params, eps):
    x = x.astype(np.float64)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return y * params["params"]["scale"] + params["params"]["bias"]


@pytest.mark.parametrize("shift, bound", [(0, 2e-6), (10, 1e-5), (1000, 1e-3)])
def test_a_large_mean_does_not_cancel(params, shift, bound):
    # Measured 4.8e-7, 1.9e-6, 1.4e-4, the rounding of x; Flax's 4.8e-7, 9.1e-5, 0.47.
    x = (RNG.normal(size=(5, 64)) + shift).astype(np.float32)
    want = formula(x, params, 1e-6)
    error = np.abs(LayerNorm(1e-6).apply(params, x) - want).max()
    flax_error = np.abs(nn.LayerNorm(epsilon=1e-6).apply(params, x) - want).max()
    print(shift, error, flax_error)
    assert error < bound
    if shift == 1000:
        assert flax_error > 0.01  # the reason for an own LayerNorm


def test_gradients_are_those_of_the_formula(params):
    with jax.enable_x64(True):
        x, g = RNG.normal(size=(2, 5, 64))
        params = jax.tree.map(jnp.float64, params)

        def loss(module):
            return lambda p, x: (module.apply(p, x) * g).sum()

        ours = jax.grad(loss(LayerNorm(1e-5)), (0, 1))(params, x)
        theirs = jax.grad(loss(nn.LayerNorm(epsilon=1e-5)), (0, 1))(params, x)
        for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_low_precision_comes_out_in_float32(params):
    x = jnp.asarray(RNG.normal(size=(2, 64)), jnp.bfloat16)
    assert LayerNorm(1e-6).apply(params, x).dtype == jnp.float32
