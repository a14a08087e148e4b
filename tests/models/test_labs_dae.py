"""The laboratory autoencoder: numbers, corruption, and missing values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.models import labs_dae
from tests import tiny
from tests.models import plain


@pytest.fixture(scope="module")
def model():
    return labs_dae.from_config(tiny.config("labs_dae").model)


@pytest.fixture(scope="module")
def params(model):
    labs = jnp.zeros((1, 50))
    return tiny.random_params(model, labs, labs, seed=1)


@pytest.fixture(scope="module")
def labs():
    rng = np.random.default_rng(2)
    values = rng.random((6, 50)).astype(np.float32)
    return values, (rng.random((6, 50)) < 0.7).astype(np.float32)


def test_autoencoder_equals_plain_numpy(model, params, labs):
    # Bound 1e-5 of the largest value. Measured 4.4e-7 (z); 1.9e-7 (reconstruction).
    z = plain.labs_encoder(params["encoder"], *map(np.float64, labs))
    got = model.apply({"params": params}, *labs, method=lambda m, *a: m.encoder(*a))
    assert tiny.worst(got, z) < 1e-5
    out = np.asarray(model.apply({"params": params}, *labs))
    assert np.abs(out - plain.labs_decoder(params["decoder"], z)).max() < 1e-5
    assert (out > 0).all() and (out < 1).all()


def test_values_at_missing_entries_are_not_seen(params, labs):
    # D7: a missing value holds the training mean; extraction must not read it.
    values, mask = labs
    other = np.where(mask > 0, values, 0.123).astype(np.float32)
    encoder = labs_dae.Encoder()
    a = encoder.apply({"params": params["encoder"]}, values, mask)
    b = encoder.apply({"params": params["encoder"]}, other, mask)
    np.testing.assert_array_equal(a, b)


def test_reference_preset_reads_the_values_at_missing_entries(params, labs):
    encoder = labs_dae.from_config(tiny.config("labs_dae", "reference").model).encoder
    got = np.asarray(encoder.apply({"params": params["encoder"]}, *labs))
    want = plain.labs_encoder(params["encoder"], *map(np.float64, labs), False)
    assert tiny.worst(got, want) < 1e-5
    masked = plain.labs_encoder(params["encoder"], *map(np.float64, labs), True)
    assert np.abs(got - masked).max() > 1e-2


def test_the_mask_is_an_input_of_its_own(params, labs):
    values, mask = labs
    values = values * mask  # the same values, an entry more observed to be zero
    more = mask.copy()
    more[0, np.flatnonzero(mask[0] == 0)[0]] = 1
    encoder = labs_dae.Encoder()
    a = encoder.apply({"params": params["encoder"]}, values, mask)
    b = encoder.apply({"params": params["encoder"]}, values, more)
    assert np.abs(a[0] - b[0]).max() > 1e-4


def test_corruption_zeroes_value_and_mask_bit_of_what_it_drops(labs):
    values, mask = labs
    x, m, drop = map(
        np.asarray, labs_dae.corrupt(jax.random.key(0), np.arange(6), *labs, 0.15)
    )
    assert drop.any() and not (drop & (mask == 0)).any()
    np.testing.assert_array_equal(m, mask * ~drop)
    np.testing.assert_array_equal(x, values * mask * ~drop)
    assert (x[mask == 0] == 0).all()


def test_corruption_drops_the_stated_share_of_observed_entries():
    # 70,000 entries: s.d. 0.00135. Bound 4 s.d.; measured 0.3 s.d.
    mask = np.ones((1400, 50), np.float32)
    _, _, drop = labs_dae.corrupt(jax.random.key(1), np.arange(1400), mask, mask, 0.15)
    assert abs(np.asarray(drop).mean() - 0.15) < 4 * 0.00135


def test_loss_is_the_mean_over_originally_observed_entries(labs):
    values, mask = labs
    pred = np.random.default_rng(3).random((6, 50)).astype(np.float32)
    want = ((pred - values)[mask > 0].astype(np.float64) ** 2).mean()
    got = float(labs_dae.masked_mse(pred, values, mask))
    assert abs(got - want) / want < 1e-6
    other = np.where(mask > 0, values, 9.0)
    assert float(labs_dae.masked_mse(pred, other, mask)) == got
