"""DeLong's and Obuchowski's variances, and the paired test."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from pacx_jax.evaluate import delong, statistics


def tied(n=240, seed=7):
    """Labels and two correlated scores, rounded so that most are tied."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(float)
    a = np.round(rng.normal(size=n) + y, 1)
    return y, a, np.round(0.6 * a + rng.normal(size=n) + 0.3 * y, 1)


# By MLstatkit 0.1.91's Delong_test(y, a, b) on `tied()`, 2026-11-30.
MLSTATKIT = {
    "auroc": (0.7724606359987649, 0.7560203766594626),
    "p": 0.6278243262341137,
    "variance_of_difference": 0.0011500256328144168,
    "a_interval": (0.7103821573636767, 0.8345391146338531),
}
# By confidenceinterval 1.0.5's delong_roc_variance, which computes in float32.
CONFIDENCEINTERVAL = (0.0010031963786445437, 0.0010574224173145977)


def test_paired_test_equals_that_of_an_independent_package():
    y, a, b = tied()
    found = delong.paired(a, b, y)
    assert (found.a, found.b) == pytest.approx(MLSTATKIT["auroc"], abs=1e-12)
    assert found.p == pytest.approx(MLSTATKIT["p"], abs=1e-12)
    _, covariance = delong.covariance(np.stack([a, b]), y)
    of_difference = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    expected = MLSTATKIT["variance_of_difference"]
    assert of_difference == pytest.approx(expected, abs=1e-15)
    z = scipy.stats.norm.ppf(0.975)
    half = z * np.sqrt(covariance[0, 0])
    ends = found.a - half, found.a + half
    assert ends == pytest.approx(MLSTATKIT["a_interval"], abs=1e-12)
    assert np.diag(covariance) == pytest.approx(CONFIDENCEINTERVAL, rel=1e-7)


def by_pairs(scores, labels, patients):
    """The same from the (positives, negatives) matrix, patient by patient."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    x, y = scores[:, positive, None], scores[:, None, negative]
    wins = (x > y) + 0.5 * (x == y)
    auroc, (m, n) = wins.mean((1, 2)), wins.shape[1:]
    k, everyone = len(scores), np.unique(patients)
    of_x, of_y = np.zeros((k, len(everyone))), np.zeros((k, len(everyone)))
    for i, who in enumerate(everyone):
        mine = patients[positive] == who
        of_x[:, i] = (wins[:, mine].mean(2) - auroc[:, None]).sum(1)
        mine = patients[negative] == who
        of_y[:, i] = (wins[:, :, mine].mean(1) - auroc[:, None]).sum(1)
    i10 = len(np.unique(patients[positive]))
    i01, i = len(np.unique(patients[negative])), len(everyone)
    s10 = i10 / ((i10 - 1) * m) * of_x @ of_x.T
    s01 = i01 / ((i01 - 1) * n) * of_y @ of_y.T
    s11 = i / (i - 1) * of_x @ of_y.T
    return auroc, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def test_clustered_covariance_equals_the_formula_over_all_pairs():
    y, a, b = tied()
    patients = np.random.default_rng(0).integers(0, 90, len(y))
    found = delong.covariance(np.stack([a, b]), y, patients)
    expected = by_pairs(np.stack([a, b]), y, patients)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-15, rtol=1e-12)


def test_one_study_a_patient_is_delong_and_copies_of_studies_add_nothing():
    y, a, b = tied()
    scores = np.stack([a, b])
    alone = delong.covariance(scores, y)
    each = delong.covariance(scores, y, np.arange(len(y)))
    copied = delong.covariance(
        np.repeat(scores, 3, axis=1), np.repeat(y, 3), np.repeat(np.arange(len(y)), 3)
    )
    for other in (each, copied):
        for one, two in zip(alone, other, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-15)
    naive = delong.covariance(np.repeat(scores, 3, axis=1), np.repeat(y, 3))[1]
    assert naive[0, 0] < 0.4 * alone[1][0, 0]


def test_clustered_standard_error_is_that_of_many_samples():
    """400 drawn test sets of 60 patients with three studies that share a deviation."""
    aurocs, errors, naive = [], [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(60), 3)
        y = (rng.random(180) < 0.1 + 0.8 * (patients < 20)).astype(float)
        x = 0.8 * y + rng.normal(size=180) + 1.5 * rng.normal(size=60)[patients]
        auroc, variance = delong.covariance(x[None], y, patients)
        aurocs.append(auroc[0])
        errors.append(variance[0, 0])
        naive.append(delong.covariance(x[None], y)[1][0, 0])
    truth = np.var(aurocs)
    # The variance of 400 values has a relative error of sqrt(2 / 400) = 7%.
    assert np.mean(errors) == pytest.approx(truth, rel=0.2)
    assert np.mean(naive) < 0.75 * truth


def test_standard_error_is_near_that_of_the_patient_bootstrap():
    y, a, _ = tied(600)
    patients = np.arange(600) // 2
    _, variance = delong.covariance(a[None], y, patients)
    weights = statistics.bootstrap_weights(patients, 2000)
    drawn = statistics.weighted_auroc(a, y, weights)
    assert np.sqrt(variance[0, 0]) == pytest.approx(drawn.std(), rel=0.1)


def test_aurocs_equal_sklearns_and_unknown_labels_are_left_out():
    y, a, b = tied()
    unknown = np.where(np.arange(len(y)) % 5 == 0, np.nan, y)
    kept = ~np.isnan(unknown)
    aurocs, covariance = delong.covariance(np.stack([a, b]), unknown)
    theirs = [roc_auc_score(y[kept], x[kept]) for x in (a, b)]
    np.testing.assert_allclose(aurocs, theirs, atol=1e-12)
    expected = delong.covariance(np.stack([a, b])[:, kept], y[kept])[1]
    np.testing.assert_array_equal(covariance, expected)


def test_interval_covers_the_truth_about_95_times_in_100():
    # Normal scores one deviation apart: AUROC = Phi(1 / sqrt 2) = 0.7602.
    covered = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        y = (np.arange(80) < 30).astype(float)
        auroc, variance = delong.covariance((rng.normal(size=80) + y)[None], y)
        low, high = delong.interval(auroc[0], variance[0, 0])
        covered += low <= 0.7602 <= high
    assert 0.925 <= covered / 400 <= 0.975  # 0.95, and 2.3 standard errors


def test_scores_without_what_they_need_have_no_numbers():
    y, a, b = tied()
    for labels in (np.zeros_like(y), np.full_like(y, np.nan)):
        assert np.isnan(delong.paired(a, b, labels).p)
    spoiled = a.copy()
    spoiled[3] = np.nan
    assert np.isnan(delong.covariance(spoiled[None], y)[0]).all()
    one = np.where(y > 0, 0, np.arange(len(y)))  # all the positives are one patient's
    auroc, variance = delong.covariance(a[None], y, one)
    assert np.isfinite(auroc).all() and np.isnan(variance).all()
    assert np.isnan(delong.interval(1.0, 0.0)).all()


def test_identical_scores_differ_in_nothing_and_certain_ones_have_no_p():
    y, a, _ = tied()
    same = delong.paired(a, 2 * a + 1, y)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert np.isnan(delong.paired(y, np.zeros_like(y), y).p)
