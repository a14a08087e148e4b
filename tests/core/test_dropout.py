"""Masks that are hashes: as even and as unlike each other as drawn ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.models import dropout

SHAPE = (8, 100, 300)  # 240,000 entries: a share is known to 0.001


def kept(key=0, rows=None, shape=SHAPE, rate=0.1):
    rows = np.arange(shape[0]) if rows is None else rows
    seeds = dropout.row_seeds(jax.random.key(key), rows)
    return np.asarray(dropout.drop(jnp.ones(shape), seeds, rate)) > 0


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_the_share_of_dropped_entries_is_the_rate_in_every_row_and_column(rate):
    keep = kept(rate=rate)
    deviation = (rate * (1 - rate)) ** 0.5
    for axes in ((0, 1, 2), (1, 2), (0, 1), (0, 2)):
        shares = 1 - keep.mean(axes)
        count = np.prod([SHAPE[a] for a in axes])
        assert np.abs(shares - rate).max() < 5 * deviation / count**0.5


def test_masks_of_rows_keys_and_neighbours_are_not_correlated():
    a = kept().astype(float)
    others = {"another key": kept(key=1), "another row": np.roll(a, 1, 0),
              "the next token": np.roll(a, 1, 1), "the next channel": np.roll(a, 1, 2),
              "a power of two on": np.roll(a.reshape(8, -1), 1024, 1).reshape(SHAPE),
              "rows of large numbers": kept(rows=np.arange(8) + 2**30)}  # fmt: skip
    for name, b in others.items():
        correlation = np.corrcoef(a.ravel(), np.asarray(b, float).ravel())[0, 1]
        assert abs(correlation) < 5 / a.size**0.5, name


def test_every_bit_of_the_words_is_as_often_1_as_0():
    seeds = dropout.row_seeds(jax.random.key(3), np.arange(4))
    words = np.asarray(dropout.bits(seeds, (100, 250)))
    shares = [((words >> bit) & 1).mean() for bit in range(32)]
    assert np.abs(np.array(shares) - 0.5).max() < 5 * 0.5 / words.size**0.5


def test_a_rows_mask_does_not_depend_on_the_rows_beside_it():
    whole = kept()
    np.testing.assert_array_equal(kept(rows=[5, 2], shape=(2, 100, 300)), whole[[5, 2]])


def test_the_mean_is_kept_and_rate_0_changes_nothing():
    x = jnp.ones(SHAPE)
    seeds = dropout.row_seeds(jax.random.key(0), np.arange(8))
    assert abs(float(dropout.drop(x, seeds, 0.25).mean()) - 1) < 0.005
    assert dropout.drop(x, seeds, 0.0) is x
