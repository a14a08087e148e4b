"""1-D convolutions: values and gradients are those of `jax.lax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.models import convolution
from pacx_jax.models.dense import silu

RNG = np.random.default_rng(0)
LAYOUT = ("NHC", "HIO", "NHC")


def value_and_gradients(function, *args):
    """The sine of the results, summed, and its gradient by each argument."""
    argnums = tuple(range(len(args)))
    loss = jax.value_and_grad(lambda *a: jnp.sin(function(*a)).sum(), argnums)
    return jax.jit(loss)(*args)


def differences(one, other):
    return [
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    ]


@pytest.mark.parametrize(
    "t, k, stride, groups, width",
    [
        (64, 16, 2, 3, 4),
        (61, 16, 2, 2, 5),
        (33, 16, 1, 4, 2),
        (1, 16, 2, 2, 4),  # most of the kernel meets padding
        (20, 6, 3, 2, 4),
        (17, 4, 4, 2, 3),
    ],
)
def test_grouped_gradients_are_those_of_jax(t, k, stride, groups, width):
    # Bound 1e-12. Measured 3.6e-15.
    with jax.enable_x64(True):
        c = groups * width
        x, kernel = (
            jnp.array(RNG.normal(size=(3, t, c))),
            RNG.normal(size=(k, width, c)),
        )
        kernel = jnp.array(kernel)
        ours = value_and_gradients(
            lambda x, w: convolution.grouped(x, w, stride, groups), x, kernel
        )
        plain = value_and_gradients(
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (stride,), "SAME", None, None, LAYOUT, feature_group_count=groups
            ),
            x,
            kernel,
        )
        assert max(differences(ours, plain)) < 1e-12


@pytest.mark.parametrize(
    "kernel, stride, groups", [(16, 2, 4), (1, 1, 1), (16, 2, 1), (1, 2, 1)]
)
def test_layer_is_that_of_flax_at_every_shape(kernel, stride, groups):
    layer = convolution.conv(8, kernel, stride, groups, dtype=None, name=None)
    plain = layer.clone(conv_general_dilated=None)
    with jax.enable_x64(True):
        x = jnp.array(RNG.normal(size=(2, 37, 8)))
        params = jax.tree.map(jnp.float64, plain.init(jax.random.key(0), x))
        ours, theirs = (
            value_and_gradients(lambda p, x, m=m: m.apply(p, x), params, x)
            for m in (layer, plain)
        )
        assert max(differences(ours, theirs)) < 1e-12


def test_one_cpu_device_takes_the_fast_gradient():
    layer = convolution.conv(8, 16, 2, 4, dtype=None, name=None)
    x = jnp.ones((2, 32, 8))
    params = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda p: layer.apply(p, x).sum()))
    assert "batch_group_count = 1 " in gradient.lower(params).as_text()
    assert "batch_group_count = 4 " not in gradient.lower(params).as_text()


def test_silu_is_that_of_jax():
    # Bound 1e-12. Measured 2.2e-16.
    with jax.enable_x64(True):
        x = jnp.array(RNG.normal(size=1000) * 5)
        ours, theirs = value_and_gradients(silu, x), value_and_gradients(jax.nn.silu, x)
        assert max(differences(ours, theirs)) < 1e-12
