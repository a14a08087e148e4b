"""Reliability curves, temperature and Platt scaling."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator

from pacx_jax.evaluate import calibration, statistics
from pacx_jax.objectives.scores import sigmoid
from tests.evaluate.test_delong import tied


def logits(n=240):
    """Logits that are too sure by half, with labels."""
    y, a, _ = tied(n)
    return 1.7 * a - 0.8, y


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose logit is its one feature."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x):
        return x[:, 0]

    def predict(self, x):
        return self.classes_[np.int32(x[:, 0] > 0)]


def test_temperature_has_no_slope_and_equals_an_independent_packages():
    x, y = logits()
    found = calibration.temperature(x, y)
    assert abs(np.mean((sigmoid(x / found) - y) * x)) < 1e-12
    # netcal 1.4.0's TemperatureScaling(method="mle"), 2026-11-30, stops at 1e-5.
    assert 1 / found == pytest.approx(0.68005883, abs=1e-5)


def test_platt_scaling_equals_sklearns():
    x, y = logits()
    a, b = calibration.platt(x, y)
    given = FrozenEstimator(Given().fit(x[:, None], y))
    theirs = CalibratedClassifierCV(given, method="sigmoid").fit(x[:, None], y)
    expected = theirs.predict_proba(x[:, None])[:, 1]
    np.testing.assert_allclose(sigmoid(a * x + b), expected, atol=1e-4)
    n_positive, n_negative = y.sum(), (1 - y).sum()
    target = np.where(y > 0, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    rest = sigmoid(a * x + b) - target
    assert max(abs(rest.mean()), abs((rest * x).mean())) < 1e-9


def test_scalings_find_the_one_that_spoiled_the_logits():
    rng = np.random.default_rng(0)
    true = rng.normal(size=200_000)
    y = (rng.random(len(true)) < sigmoid(true)).astype(float)
    assert calibration.temperature(3 * true, y) == pytest.approx(3, rel=0.03)
    a, b = calibration.platt(3 * true + 1, y)
    assert (a, b) == pytest.approx((1 / 3, -1 / 3), abs=0.02)


def test_separated_or_senseless_logits_have_no_temperature_but_platts_are_finite():
    y = np.float64([0, 0, 1, 1])
    for x in (2 * y - 1, 1 - 2 * y, np.zeros(4)):
        assert np.isnan(calibration.temperature(x, y))
        assert np.isfinite(calibration.platt(x, y)).all()
    assert calibration.platt(1 - 2 * y, y)[0] < 0


def test_reliability_curve_equals_sklearns_and_holds_its_intervals():
    x, y = logits()
    drawn = statistics.bootstrap_weights(np.arange(240), 300)
    weights = np.concatenate([np.ones((1, 240)), drawn])
    rows = calibration.reliability(x, y, weights)
    true, predicted = calibration_curve(y, sigmoid(x), n_bins=15)
    assert [r["predicted"] for r in rows] == pytest.approx(predicted, abs=1e-12)
    assert [r["observed"]["value"] for r in rows] == pytest.approx(true, abs=1e-12)
    assert sum(r["n"] for r in rows) == 240
    middle = rows[len(rows) // 2]["observed"]
    assert middle["low"] < middle["value"] < middle["high"]
