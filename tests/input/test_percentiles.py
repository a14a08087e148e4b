"""Percentiles of laboratory values: Symile's empirical distribution function."""

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import percentiles

NAN = np.nan


def symile(train: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Their step function by its definition (statsmodels' StepFunction, side right)."""
    seen = np.sort(train[~np.isnan(train)])
    steps = np.r_[0.0, np.linspace(1 / len(seen), 1, len(seen))]
    return steps[np.searchsorted(np.r_[-np.inf, seen], x, side="right") - 1]


def test_percentiles_are_symiles_with_ties_ends_and_values_between():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 9, (40, 2)).astype(float)
    train[rng.random(train.shape) < 0.3] = NAN
    x = np.stack([np.linspace(-2, 11, 27)] * 2, 1)
    labs, mask = percentiles.fit(train, (1, 2)).apply(x)
    assert mask.all() and labs.dtype == np.float32
    for j in range(2):
        want = symile(train[:, j], x[:, j]).astype(np.float32)
        np.testing.assert_array_equal(labs[:, j], want)
    assert labs.min() == 0 and labs.max() == 1


def test_a_missing_value_has_the_mean_percentile_of_train_and_mask_0():
    train = np.array([[1.0, 5], [2, 5], [2, NAN], [4, NAN]])
    fitted = percentiles.fit(train, (1, 2))
    np.testing.assert_allclose(fitted.means, [(0.25 + 0.75 + 0.75 + 1) / 4, 1])
    labs, mask = fitted.apply(np.array([[NAN, 5.0], [2, NAN]]))
    np.testing.assert_array_equal(mask, [[0, 1], [1, 0]])
    np.testing.assert_allclose(labs, [[0.6875, 1], [0.75, 1]])


def test_an_item_that_train_lacks_counts_as_missing():
    fitted = percentiles.fit(np.array([[1.0, NAN], [2, NAN]]), (1, 2))
    labs, mask = fitted.apply(np.array([[1.0, 3.0]]))
    np.testing.assert_array_equal(mask, [[1, 0]])
    np.testing.assert_array_equal(labs, [[0.5, percentiles.NO_MEAN]])


def test_saved_percentiles_map_others_the_same(tmp_path):
    rng = np.random.default_rng(1)
    fitted = percentiles.fit(rng.normal(size=(30, 3)), (7, 8, 9))
    (tmp_path / percentiles.FILE).write_bytes(fitted.to_bytes())
    x = rng.normal(size=(5, 3))
    x[0, 0] = NAN
    for path in (tmp_path, tmp_path / percentiles.FILE):
        loaded = percentiles.load(path)
        assert loaded.items == (7, 8, 9)
        for one, two in zip(fitted.apply(x), loaded.apply(x), strict=True):
            np.testing.assert_array_equal(one, two)


def test_what_is_no_table_of_percentiles_is_one_line(tmp_path):
    path = tmp_path / percentiles.FILE
    with pytest.raises(PacxError, match="no such file"):
        percentiles.load(tmp_path)
    path.write_bytes(b"no zip")
    with pytest.raises(PacxError, match="not a table of percentiles"):
        percentiles.load(path)
    np.savez(path, items=np.zeros(3))
    with pytest.raises(PacxError, match="not a table of percentiles"):
        percentiles.load(path)
