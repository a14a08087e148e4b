"""Thresholds chosen on validation, what they give elsewhere, decision curves."""

import numpy as np
import pytest
from sklearn import metrics

from pacx_jax import main
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import thresholds
from tests.evaluate.test_delong import tied


def test_threshold_of_the_best_f1_equals_sklearns_curve():
    y, a, _ = tied()
    precision, recall, at = metrics.precision_recall_curve(y, a)
    f1 = 2 * precision * recall / (precision + recall)
    best = f1[:-1].max()
    found = thresholds.choose(a, y, "max_f1")
    assert found == at[np.isclose(f1[:-1], best, atol=1e-12)].max()
    assert metrics.f1_score(y, a >= found) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95])
def test_fixed_sensitivity_and_specificity_equal_sklearns_curve(share):
    y, a, _ = tied()
    false, hits, at = metrics.roc_curve(y, a, drop_intermediate=False)
    expected = at[hits >= share].max()
    assert thresholds.choose(a, y, f"sensitivity={share}") == expected
    expected = at[(1 - false >= share - 1e-12) & np.isfinite(at)].min()
    assert thresholds.choose(a, y, f"specificity={share}") == expected


def test_a_share_of_round_counts_is_not_missed_by_rounding():
    scores = np.arange(20.0)
    labels = np.repeat([0.0, 1.0], 10)
    assert thresholds.choose(scores, labels, "specificity=0.9") == 9
    assert thresholds.choose(scores, labels, "sensitivity=0.9") == 11


def test_where_ties_leave_no_specificity_nobody_is_called():
    scores, labels = np.ones(8), np.repeat([0.0, 1.0], 4)
    found = thresholds.choose(scores, labels, "specificity=0.9")
    assert found > 1 and found == pytest.approx(1)
    rates = thresholds.rates(scores, labels, np.ones((1, 8)), found)
    assert rates["specificity"] == 1 and np.isnan(rates["ppv"]).all()


def test_rates_equal_sklearns_under_weights():
    y, a, _ = tied()
    weights = np.random.default_rng(0).integers(0, 4, (30, 240)).astype(float)
    ours = thresholds.rates(a, y, weights, 0.4)
    for r, w in enumerate(weights):
        (right, false), (missed, hits) = metrics.confusion_matrix(
            y, a >= 0.4, sample_weight=w
        )
        expected = {
            "sensitivity": hits / (hits + missed),
            "specificity": right / (right + false),
            "ppv": hits / (hits + false),
            "npv": right / (right + missed),
            "f1": metrics.f1_score(y, a >= 0.4, sample_weight=w),
        }
        assert {k: v[r] for k, v in ours.items()} == pytest.approx(expected, abs=1e-12)


def test_decision_curve_equals_an_independent_packages():
    """By dcurves 1.1.7's dca on the same data, 2026-11-30."""
    y, a, _ = tied()
    rows = {
        r["p"]: r for r in thresholds.net_benefit(1.7 * a - 0.8, y, np.ones((2, 240)))
    }
    model = {0.1: 0.269444, 0.3: 0.161310, 0.5: 0.058333, 0.8: -0.104167}
    everybody = {0.1: 0.268519, 0.3: 0.059524, 0.5: -0.316667, 0.8: -2.291667}
    for p in model:
        assert rows[p]["model"]["value"] == pytest.approx(model[p], abs=1e-6)
        assert rows[p]["treat_all"]["value"] == pytest.approx(everybody[p], abs=1e-6)
        best = model[p] - max(everybody[p], 0)
        assert rows[p]["over_others"]["value"] == pytest.approx(best, abs=2e-6)


def test_rules_that_are_none_are_refused():
    thresholds.check_rules(thresholds.RULES)
    for rule in ("f1", "max_f1=2", "sensitivity", "sensitivity=1.5", "specificity=x"):
        with pytest.raises(PacxError, match="--thresholds: .* is no rule; give max_f1"):
            thresholds.check_rules((rule,))


def test_the_flags_default_is_the_librarys():
    assert tuple(main._THRESHOLDS.default) == thresholds.RULES
