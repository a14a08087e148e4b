"""Net1D against plain numpy, written from the published facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.models import ecg
from tests import tiny
from tests.models import plain

FILTERS, BLOCKS, WIDTH = (8, 20, 20), (2, 1, 2), 4


@pytest.fixture(scope="module")
def model():
    return ecg.Net1D(
        base_filters=8, filters=FILTERS, blocks=BLOCKS, kernel=16, groups_width=WIDTH
    )


@pytest.fixture(scope="module")
def params(model):
    return tiny.random_params(model, jnp.zeros((1, 64, 12)), seed=1, noise=0.1)


# Lengths after the stem and the three stages; odd inputs meet the zero of the pool.
@pytest.mark.parametrize(
    ("length", "lengths"),
    [
        (64, [32, 16, 8, 4]),
        (61, [31, 16, 8, 4]),
        (77, [39, 20, 10, 5]),
        (69, [35, 18, 9, 5]),
    ],
)
def test_net1d_equals_plain_numpy_at_even_and_odd_lengths(
    model, params, length, lengths
):
    # Bound 1e-5 of the largest value. Measured 3.1e-7.
    record = np.random.default_rng(length).normal(size=(2, length, 12))
    got = np.asarray(
        jax.jit(model.apply)({"params": params}, record.astype(np.float32))
    )
    want = np.stack(
        [plain.net1d(params, r, FILTERS, BLOCKS, WIDTH) for r in np.float32(record)]
    )
    assert got.shape == (2, 20)
    assert tiny.worst(got, want) < 1e-5
    halves = [length]
    while len(halves) <= len(lengths):
        halves.append(-(-halves[-1] // 2))
    assert halves[1:] == lengths  # so the cases hold what they say


def test_max_pool_pads_odd_lengths_with_zero():
    x = -jnp.arange(1.0, 6.0).reshape(1, 5, 1)
    assert np.asarray(ecg.max_pool(x)).ravel().tolist() == [-1, -3, 0]
    assert np.asarray(ecg.max_pool(x[:, :4])).ravel().tolist() == [-1, -3]


def test_embedding_of_5000_samples_is_the_mean_of_the_last_20():
    model = ecg.from_config(tiny.config("ecg_net1d").model)

    def lengths(x):
        _, state = model.apply(
            model.init(jax.random.key(0), x), x, capture_intermediates=True
        )
        return state["intermediates"]

    shapes = jax.eval_shape(lengths, jnp.zeros((1, 5000, 12)))
    last = [shapes[f"stage_{s}_block_0"]["__call__"][0].shape[1] for s in range(7)]
    assert [shapes["stem"]["__call__"][0].shape[1], *last] == [
        2500, 1250, 625, 313, 157, 79, 40, 20,
    ]  # fmt: skip
    assert shapes["__call__"][0].shape == (1, 1024)


def test_classifier_is_a_linear_layer_on_the_embedding(model, params):
    head = {
        "kernel": np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32),
        "bias": np.array([1.0, -2.0, 3.0], np.float32),
    }
    record = np.random.default_rng(1).normal(size=(2, 40, 12)).astype(np.float32)
    both = {"encoder": params, "head": head}
    got = jax.jit(ecg.Classifier(model, 3).apply)({"params": both}, record)
    z = np.asarray(jax.jit(model.apply)({"params": params}, record))
    want = z @ head["kernel"] + head["bias"]
    assert tiny.relative(got, want) < 1e-6
