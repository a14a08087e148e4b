"""AUROC and the paired, patient-clustered bootstrap."""

import time
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import comparison, statistics
from pacx_jax.objectives import scores


def _tied(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(float)
    return np.round(rng.normal(size=n) + labels, 1), labels, rng


def compare(a, b, labels, patients, n_resamples):
    """Macro AUROC of two arms over the same labels, as the report's tables have it."""
    names = [str(c) for c in range(labels.shape[1])]
    scores = {("a", 1.0): a, ("b", 1.0): b}
    scores = {k: x if x.ndim == 4 else x[None] for k, x in scores.items()}
    found = comparison.compare_arms(
        scores, labels, np.ones_like(labels), patients, names, {"all": names},
        [("a", "b")], {1.0: 0}, n_resamples=n_resamples,
    )  # fmt: skip
    row_a, row_b = (r for r in found.table if r["labels"] == "all")
    (pair,) = (r for r in found.pairs if r["labels"] == "all")
    return Compared(row_a, row_b, pair)


class Compared(NamedTuple):
    a: dict
    b: dict
    pair: dict


def width(row):
    return row["high"] - row["low"]


def test_auroc_equals_sklearn_with_ties():
    scores, labels, _ = _tied()
    assert abs(statistics.auroc(scores, labels) - roc_auc_score(labels, scores)) < 1e-12


def test_weighted_auroc_equals_sklearn_with_sample_weights():
    scores, labels, rng = _tied()
    for weights in (rng.integers(0, 4, (70, 300)), rng.random((70, 300))):
        ours = statistics.weighted_auroc(scores, labels, weights)
        theirs = [roc_auc_score(labels, scores, sample_weight=w) for w in weights]
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_auroc_of_one_class_is_nan_and_skipped_in_the_macro_mean():
    scores, labels, _ = _tied()
    both = np.stack([labels, np.zeros_like(labels)], axis=1)
    weights = statistics.bootstrap_weights(np.arange(300), 20)
    point, resampled = statistics.resampled_auroc(
        np.stack([scores] * 2, 1)[None, None], both, weights
    )
    draws = statistics.seed_draws(1, 20)
    macro, drawn = statistics.macro_distribution(point, resampled, draws)
    assert np.isnan(point[0, 0, 1]) and macro == point[0, 0, 0]
    np.testing.assert_array_equal(drawn, resampled[:, 0, 0, 0])


def test_unknown_labels_are_left_out():
    scores, labels, rng = _tied()
    hidden = rng.random(300) < 0.4
    unknown = np.where(hidden, np.nan, labels)
    expected = roc_auc_score(labels[~hidden], scores[~hidden])
    assert abs(statistics.auroc(scores, unknown) - expected) < 1e-12


def test_bootstrap_draws_whole_patients():
    patients = np.array(["c", "a", "a", "b", "c", "c"])
    weights = statistics.bootstrap_weights(patients, 200, seed=1)
    assert np.array_equal(weights[:, 1], weights[:, 2])
    assert np.array_equal(weights[:, 0], weights[:, 5])
    assert np.all(weights[:, [0, 1, 3]].sum(axis=1) == 3)
    assert np.array_equal(weights, statistics.bootstrap_weights(patients, 200, seed=1))


def test_interval_widens_when_studies_of_a_patient_are_copies():
    scores, labels, _ = _tied(200)
    scores, labels = np.repeat(scores, 4)[None, :, None], np.repeat(labels, 4)[:, None]
    clustered = compare(scores, scores, labels, np.repeat(np.arange(200), 4), 400)
    naive = compare(scores, scores, labels, np.arange(800), 400)
    assert 1.7 < width(clustered.a) / width(naive.a) < 2.3  # sqrt(4) in theory


def test_interval_covers_the_truth_about_95_times_in_100():
    # Normal scores one deviation apart: AUROC = Phi(1 / sqrt 2) = 0.7602.
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        labels = (np.arange(160) < 60).astype(float)
        scores = rng.normal(size=160) + labels
        weights = statistics.bootstrap_weights(np.arange(160), 300, trial)
        drawn = statistics.weighted_auroc(scores, labels, weights)
        low, high = np.percentile(drawn, [2.5, 97.5])
        covered += low <= 0.7602 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_compare_of_identical_arms_is_exactly_zero():
    rng = np.random.default_rng(0)
    labels = (rng.random((150, 2)) < 0.4).astype(float)
    scores = rng.random((3, 150, 2))
    same = compare(scores, scores, labels, np.arange(150) // 2, 100)
    assert [same.pair[k] for k in ("difference", "low", "high")] == [0, 0, 0]
    assert same.a["low"] < same.a["auroc"] < same.a["high"]
    assert [same.a[k] for k in ("subsets", "n_patients", "n_defined")] == [3, 75, 2]


def test_paired_interval_is_narrower_than_that_of_unpaired_arms():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 1)) < 0.4).astype(float)
    common = rng.normal(size=(1, 300, 1)) + labels
    better = common + 0.1 * rng.normal(size=common.shape) + 0.15 * labels
    paired = compare(better, common, labels, np.arange(300), 400)
    assert paired.pair["low"] > 0  # though the arms' own intervals overlap
    assert paired.a["low"] < paired.b["high"]


def test_subset_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 1)) < 0.4).astype(float)
    quality = np.array([0.0, 0.5, 1.0, 2.0])[:, None, None]
    scores = rng.normal(size=(1, 400, 1)) + quality * labels
    several = compare(scores, scores, labels, np.arange(400), 300).a
    one = compare(scores[2:3], scores[2:3], labels, np.arange(400), 300).a
    assert width(several) > 1.5 * width(one)


def _trainings(rng, t, labels, effect, spread):
    """Scores of two arms, the second better by `effect`, which varies by `spread`."""
    noise = rng.normal(size=(1, 1, *labels.shape))
    each = effect + spread * rng.normal(size=(t, 1, 1, 1))
    own = [0.3 * rng.normal(size=(t, 1, *labels.shape)) for _ in range(2)]
    return noise + own[0] + (1 + each) * labels, noise + own[1] + labels


@pytest.mark.parametrize("trainings", [3, 5])
def test_interval_of_several_trainings_covers_the_truth_about_95_times_in_100(
    trainings,
):
    """No effect on average, though single trainings differ by several hundredths."""
    covered, naive = 0, 0
    for trial in range(150):
        rng = np.random.default_rng(trial)
        labels = (np.arange(200) < 80).astype(float)[:, None]
        a, b = _trainings(rng, trainings, labels, 0.0, 0.4)
        row = compare(a, b, labels, np.arange(200), 200).pair
        covered += row["low"] <= 0 <= row["high"]
        one = compare(a[:1], b[:1], labels, np.arange(200), 200).pair
        naive += one["low"] <= 0 <= one["high"]
    assert 0.91 <= covered / 150 <= 1
    assert naive / 150 < 0.7  # what an interval over patients alone would say


def test_trainings_are_paired_by_their_seed_and_counted():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 1)) < 0.4).astype(float)
    a, _ = _trainings(rng, 4, labels, 0.0, 0.5)
    same = compare(a + 0.3 * labels, a, labels, np.arange(300), 200)
    assert same.a["trainings"] == same.pair["trainings"] == 4
    assert same.pair["spread"] < same.a["spread"] / 2
    assert comparison.verdict(same.pair) == "gain"
    floor = compare(a, a[:1], labels, np.arange(300), 200)
    assert (floor.b["trainings"], floor.pair["trainings"]) == (1, 4)
    assert floor.b["spread"] is None
    with pytest.raises(ValueError, match="different training seeds"):
        compare(a, a[:2], labels, np.arange(300), 10)


def test_fewer_than_three_trainings_claim_no_effect():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 1)) < 0.4).astype(float)
    a, b = _trainings(rng, 3, labels, 2.0, 0.0)
    rows = [compare(a[:t], b[:t], labels, np.arange(300), 50).pair for t in (1, 2, 3)]
    assert rows[0]["low"] > 0  # however sure the patients are
    verdicts = [comparison.verdict(row) for row in rows]
    assert verdicts == ["not judged", "not judged", "gain"]


def test_pairs_have_p_values_that_are_corrected_for_their_number():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 1)) < 0.4).astype(float)
    a, b = _trainings(rng, 5, labels, 2.0, 0.0)
    noise = 0.3 * rng.normal(size=b.shape)
    arms = {("a", 1.0): a, ("b", 1.0): b, ("c", 1.0): b + noise}
    found = comparison.compare_arms(
        arms, labels, np.ones_like(labels), np.arange(300), ["x"], {"all": ["x"]},
        [("a", "b"), ("c", "b"), ("a", "c")], {1.0: 0}, n_resamples=999,
    )  # fmt: skip
    rows = [r for r in found.pairs if r["group"]]
    assert rows[0]["p"] < 0.05
    expected = statistics.holm([r["p"] for r in rows])
    assert [r["p_holm"] for r in rows] == pytest.approx(list(expected))
    assert rows[0]["p_holm"] > rows[0]["p"]
    few = compare(a[:2], b[:2], labels, np.arange(300), 50).pair
    assert few["p"] is None and few["p_holm"] is None


def test_trainings_are_put_together_in_their_order():
    scores = {
        (("a", 10), 1.0): np.full((1, 2, 1), 10.0),
        (("a", 2), 1.0): np.full((1, 2, 1), 2.0),
        (("b", 0), 1.0): np.zeros((1, 2, 1)),
    }
    found = comparison.by_training(scores)
    assert found["a", 1.0].shape == (2, 1, 2, 1)
    assert found["a", 1.0][:, 0, 0, 0].tolist() == [2.0, 10.0]
    assert found["b", 1.0].shape == (1, 1, 2, 1)


def test_arms_with_other_subset_seeds_are_refused():
    labels = np.array([[0.0], [1.0], [0.0], [1.0]])
    with pytest.raises(ValueError, match="different subset seeds"):
        compare(np.ones((2, 4, 1)), np.ones((1, 4, 1)), labels, np.arange(4), 10)


def test_a_score_of_a_known_label_that_is_nan_is_refused():
    labels = np.array([[0.0], [1.0], [0.0], [1.0]])
    scores = np.random.default_rng(0).random((1, 4, 1))
    lost = scores.copy()
    lost[0, 1] = np.nan
    with pytest.raises(PacxError, match="arm 'a', 1: 1 scores of known labels are"):
        compare(lost, scores, labels, np.arange(4), 10)


def _labelled(n=300, c=3, seed=0):
    """Logits with ties, labels of which some are unknown, and weightings."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, c)) < 0.3).astype(float)
    logits = np.round(2 * rng.normal(size=(n, c)) + 2 * labels - 1, 1)
    mask = (rng.random((n, c)) < 0.8).astype(float)
    weights = np.concatenate([np.ones((1, n)), rng.integers(0, 4, (70, n))])
    return logits, labels, mask, weights


THEIRS = {
    "ap": metrics.average_precision_score,
    "f1": lambda y, x, sample_weight: metrics.f1_score(
        y, x >= 0, sample_weight=sample_weight
    ),
    "precision": lambda y, x, sample_weight: metrics.precision_score(
        y, x >= 0, sample_weight=sample_weight, zero_division=0
    ),
    "recall": lambda y, x, sample_weight: metrics.recall_score(
        y, x >= 0, sample_weight=sample_weight
    ),
    "brier": lambda y, x, sample_weight: metrics.brier_score_loss(
        y, scores.sigmoid(x), sample_weight=sample_weight
    ),
    "accuracy": lambda y, x, sample_weight: metrics.accuracy_score(
        y, x >= 0, sample_weight=sample_weight
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_weighted_scores_equal_sklearn(name):
    logits, labels, mask, weights = _labelled()
    spoiled = np.where(mask > 0, labels, 1 - labels)  # unknown: whatever stands there
    ours = scores.MEASURES[name](logits, spoiled, mask, weights)
    for c in range(3):
        m = mask[:, c] > 0
        theirs = [
            THEIRS[name](labels[m, c], logits[m, c], sample_weight=w[m])
            for w in weights
        ]
        np.testing.assert_allclose(ours[:, c], theirs, atol=1e-12)


def test_calibration_error_equals_sklearns_curve():
    logits, labels, mask, weights = _labelled()
    ours = scores.calibration_error(logits, labels, mask, weights)
    for c in range(3):
        for r, w in enumerate(weights):
            rows = np.repeat(np.arange(300), np.int32(w * mask[:, c]))
            p, y = scores.sigmoid(logits[rows, c]), labels[rows, c]
            true, predicted = calibration_curve(y, p, n_bins=scores.BINS)
            bins = np.ceil(p * scores.BINS).astype(int)
            share = np.bincount(bins)[np.unique(bins)] / len(rows)
            theirs = (share * np.abs(true - predicted)).sum()
            assert ours[r, c] == pytest.approx(theirs, abs=1e-12)


def test_calibration_error_of_known_probabilities():
    """A quarter of the examples called at 0.9 are not so: |0.75 - 0.9|."""
    logits = np.full((8, 1), np.log(0.9 / 0.1))
    labels = np.float64([[1], [1], [1], [0]] * 2)
    ones = np.ones((1, 8))
    value = scores.calibration_error(logits, labels, np.ones((8, 1)), ones)
    assert value[0, 0] == pytest.approx(0.15)
    sure = np.where(labels > 0, 1e3, -1e3)  # probabilities of 0 and 1
    assert scores.calibration_error(sure, labels, np.ones((8, 1)), ones)[0, 0] == 0


def test_scores_without_what_they_need_are_nan():
    logits, labels = np.zeros((4, 1)), np.zeros((4, 1))
    weights = np.float64([[1, 1, 1, 1], [0, 0, 0, 0]])
    found = {
        name: measure(logits - 1, labels, np.ones((4, 1)), weights)[:, 0]
        for name, measure in scores.MEASURES.items()
    }
    for name in ("ap", "f1", "precision", "recall"):
        assert np.isnan(found[name]).all(), name
    for name in ("brier", "ece", "accuracy"):
        assert np.isfinite(found[name][0]) and np.isnan(found[name][1]), name
    assert found["accuracy"][0] == 1


def test_holm_equals_an_independent_packages_and_leaves_nan_out():
    """By statsmodels 0.15.0's multipletests(p, method="holm"), 2026-11-30."""
    p = [0.01, 0.04, 0.03, 0.005, 0.5, 0.02]
    expected = [0.05, 0.09, 0.09, 0.03, 0.5, 0.08]
    np.testing.assert_allclose(statistics.holm(p), expected, atol=1e-15)
    found = statistics.holm([0.04, np.nan, 0.03])
    np.testing.assert_allclose(found, [0.06, np.nan, 0.06])


def test_p_is_that_of_the_normal_and_students_parts_together():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.03, 0.02, 200_000)
    values = np.array([0.01, 0.05, 0.03, 0.06, 0.0])
    moved = statistics.training_draws(values, drawn, seed=3)
    share = 2 * np.mean(moved <= 0)
    assert statistics.p_value(values, drawn) == pytest.approx(share, rel=0.03)
    # Of training alone: Student's test.
    alone = scipy.stats.ttest_1samp(values, 0).pvalue
    still = statistics.p_value(values, np.full(9, values.mean()))
    assert still == pytest.approx(alone, rel=1e-6)
    # Of patients alone: the normal's.
    same = np.full(3, 0.04)
    want = 2 * scipy.stats.norm.sf(0.04 / np.std(drawn))
    assert statistics.p_value(same, drawn) == pytest.approx(want, rel=1e-6)
    assert 0 < statistics.p_value(same + 0.1, drawn) < 1e-8
    assert statistics.p_value(np.zeros(3), np.zeros(99)) == 1
    assert statistics.p_value(-values, -drawn) == statistics.p_value(values, drawn)
    far = values + 50 * values.std()  # where Student's tail is all there is
    least = scipy.stats.ttest_1samp(far, 0).pvalue
    assert least < 1e-5 and least <= statistics.p_value(far, drawn) < 2 * least
    assert np.isnan(statistics.p_value(np.zeros(3), np.full(9, np.nan)))


def test_one_patient_has_no_resamples():
    with pytest.raises(PacxError, match="1 patient has 3 studies: an interval over"):
        statistics.bootstrap_weights(np.array(["a"] * 3))


def test_undefined_resamples_are_counted():
    found = statistics.row(np.array([0.5, 0.4, np.nan, 0.6, np.nan]))
    assert found["undefined_resamples"] == 2 and found["low"] < 0.5 < found["high"]
    assert statistics.row(np.full(4, np.nan)) == {
        "value": None, "low": None, "high": None, "undefined_resamples": 3,
    }  # fmt: skip


def test_the_bootstrap_interval_is_scipys():
    """Percentiles of 4,000 resamples each: they agree to their Monte-Carlo error.

    Over 40 seeds an end of ours had a standard deviation of 0.0017.
    """
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 150).astype(float)
    scores = rng.normal(size=150) + labels
    theirs = scipy.stats.bootstrap(
        (scores, labels),
        statistics.auroc,
        n_resamples=4000,
        paired=True,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(6),
    ).confidence_interval
    weights = statistics.bootstrap_weights(np.arange(150), 4000)
    drawn = statistics.weighted_auroc(scores, labels, weights)
    ours = statistics.estimate(statistics.auroc(scores, labels), drawn)
    assert ours.high - ours.low > 0.1
    np.testing.assert_allclose((ours.low, ours.high), theirs, atol=0.006)


@pytest.mark.full
def test_resamples_of_a_large_test_set_take_less_than_a_minute():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 9000, 25_000)
    labels = np.float64(rng.random((25_000, 14)) < 0.1)
    scores = (rng.normal(size=labels.shape) + labels)[None, None]
    start = time.process_time()
    weights = statistics.bootstrap_weights(patients, 2000)
    found, drawn = statistics.resampled_auroc(scores, labels, weights)
    assert time.process_time() - start < 60
    assert found.shape == (1, 1, 14) and drawn.shape == (2000, 1, 1, 14)
    assert drawn.std(0).max() < 0.02
