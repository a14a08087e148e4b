"""Labelled subsets and linear probes."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import probe
from pacx_jax.input import subsets


def _study(n=300, d=12, c=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3
    odds = (x - 3) @ rng.normal(size=(d, c)) * 0.3 - 1
    return x, (rng.random((n, c)) < 1 / (1 + np.exp(-odds))).astype(float)


def test_subset_holds_a_positive_of_every_label_and_the_right_number():
    labels = np.zeros((1000, 3))
    for c in range(3):
        labels[7 * c + 1, c] = 1  # one positive each
    for seed in range(5):
        rows = subsets.label_subset(labels, np.ones_like(labels), 0.01, seed)
        assert len(rows) == len(set(rows)) == 10
        assert np.all(labels[rows].sum(axis=0) == 1)


def test_subset_is_at_least_one_more_than_the_labels():
    labels = np.eye(200, 7)
    assert len(subsets.label_subset(labels, np.ones_like(labels), 0.01, 0)) == 8
    assert subsets.subset_size(200, 7, 0.01) == 8


def test_subset_depends_on_the_seed_alone_and_is_everything_at_1():
    labels = (np.random.default_rng(0).random((400, 2)) < 0.3) * 1.0
    mask = np.ones_like(labels)
    mask[:50] = 0
    first = subsets.label_subset(labels, mask, 0.1, 3)
    assert np.array_equal(first, subsets.label_subset(labels, mask, 0.1, 3))
    assert not np.array_equal(first, subsets.label_subset(labels, mask, 0.1, 4))
    assert first.min() >= 50  # no study without a known label
    assert np.array_equal(
        subsets.label_subset(labels, mask, 1.0, 0), np.arange(50, 400)
    )


def test_stratified_subset_keeps_the_rates():
    labels = (np.random.default_rng(0).random((4000, 2)) < [0.5, 0.1]) * 1.0
    for seed in range(5):
        rows = subsets.label_subset(labels, np.ones_like(labels), 0.05, seed, True)
        rates = labels[rows].mean(axis=0) - labels.mean(axis=0)
        assert np.all(np.abs(rates) < 0.01)  # uniform draws stray by 0.035


def test_a_number_of_studies_is_drawn_as_the_same_fraction_is():
    labels = (np.random.default_rng(0).random((400, 2)) < 0.3) * 1.0
    mask = np.ones_like(labels)
    for stratified in (False, True):
        by_share = subsets.label_subset(labels, mask, 0.1, 3, stratified)
        by_count = subsets.label_subset(labels, mask, 1.0, 3, stratified, count=40)
        np.testing.assert_array_equal(by_share, by_count)
    assert len(subsets.label_subset(labels, mask, 1.0, 3, count=5000)) == 400


@pytest.mark.parametrize("penalty", [0.01, 1.0])
@pytest.mark.parametrize("n", [300, 30])  # 30: fewer studies than features
def test_probe_equals_sklearn(penalty, n):
    x, y = _study(n, d=12 if n == 300 else 40)
    fitted = probe.fit(x, y, c=penalty)
    scaler = StandardScaler().fit(x)
    for k in range(y.shape[1]):
        model = LogisticRegression(C=penalty, tol=1e-10, max_iter=5000)
        model.fit(scaler.transform(x), y[:, k])
        theirs = model.predict_proba(scaler.transform(x))[:, 1]
        np.testing.assert_allclose(fitted.predict(x)[:, k], theirs, atol=1e-5)


def test_missing_labels_take_no_part_in_the_fit():
    x, y = _study()
    x -= x.mean(axis=0)
    x /= x.std(axis=0)
    known = np.ones_like(y)
    known[::3, 0] = 0
    known[x[:, 0] < 0.5, 1] = 0  # far from centred: the bound must still hold
    spoiled = np.where(known > 0, y, np.nan)
    fitted = probe.fit(x, spoiled, known, c=0.1)
    for k in range(2):
        rows = known[:, k] > 0
        model = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000)
        model.fit(x[rows], y[rows, k])
        np.testing.assert_allclose(
            fitted.predict(x)[:, k], model.predict_proba(x)[:, 1], atol=1e-5
        )


def test_penalty_is_cross_validated_only_with_enough_cases():
    x, y = _study(400)
    y[:, 1] = 0
    y[:5, 1] = 1  # too few for folds
    y[:, 2] = 1  # constant
    fitted = probe.fit(x, y)
    assert fitted.chosen_c[0] in probe.C_GRID and fitted.chosen_c[0] > probe.FIXED_C
    assert fitted.chosen_c[1] == probe.FIXED_C
    assert np.isnan(fitted.chosen_c[2])
    assert np.ptp(fitted.predict(x)[:, 2]) == 0


def test_noise_is_penalised_more_than_signal():
    x, y = _study(400)
    noise = (np.random.default_rng(1).random(y.shape) < 0.4) * 1.0
    assert np.all(probe.fit(x, noise).chosen_c < probe.fit(x, y).chosen_c)


def test_folds_keep_the_studies_of_a_patient_together():
    patients = np.arange(60) // 3
    folds = probe.folds(np.zeros((60, 1)), patients)
    assert all(len(set(folds[patients == p])) == 1 for p in range(20))
    assert np.all(np.bincount(folds) == 12)


def test_constant_features_and_offsets_do_no_harm():
    x, y = _study()
    widened = np.concatenate([x, np.full((len(x), 2), 1e6)], axis=1)
    np.testing.assert_allclose(
        probe.fit(widened, y, c=0.1).predict(widened),
        probe.fit(x, y, c=0.1).predict(x),
        atol=1e-6,
    )


def test_run_probes_gives_every_arm_and_fraction_and_repeats_exactly():
    x, y = _study(500)
    rng = np.random.default_rng(0)
    arms = {
        "signal": {"train": x[:400], "test": x[400:]},
        "noise": {"train": rng.random((400, 5)), "test": rng.random((100, 5))},
    }
    arguments = (arms, y[:400], np.ones((400, 3)), (0.05, 1.0), range(3))
    scores = probe.run_probes(*arguments)
    assert scores["signal", 0.05].shape == (3, 100, 3)
    assert scores["noise", 1.0].shape == (1, 100, 3)
    again = probe.run_probes(*arguments)
    assert all(np.array_equal(scores[key], again[key]) for key in scores)


def test_run_probes_names_the_arm_whose_features_are_wrong():
    labels = np.ones((4, 1))
    arms = {"mae": {"train": np.ones((3, 2)), "test": np.ones((1, 2))}}
    with pytest.raises(ValueError, match="'mae' has 3 training rows for 4"):
        probe.run_probes(arms, labels, labels)
    arms = {"mae": {"train": np.full((4, 2), np.nan), "test": np.ones((1, 2))}}
    with pytest.raises(PacxError, match="'mae': 4 of 4 train images have an embedd"):
        probe.run_probes(arms, labels, labels)


def test_a_label_with_one_class_is_named_and_counted():
    labels, mask = np.array([[1, 0], [0, 0], [1, 1.0]]), np.ones((3, 2))
    probe.check_classes(labels, mask, ["a", "b"], "test images")
    mask[2, 1] = 0
    with pytest.raises(PacxError, match="'b': 0 of 2 test images have it, and an"):
        probe.check_classes(labels, mask, ["a", "b"], "test images")


def _views(n=300, d=12, c=2, seed=0):
    """Features of one to three images a study in shuffled order, its labels, index."""
    x, y = _study(n, d, c, seed)
    rng = np.random.default_rng(seed)
    index = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 4, n)))
    return x[index] + rng.normal(size=(len(index), d)), y, index


def test_fused_features_are_means_of_the_first_images_of_each_study():
    x, _, index = _views()
    for most in (0, 1, 2):
        fused = probe.fuse(x, index, most)
        for study in (0, 7, 299):
            rows = np.flatnonzero(index == study)[: most or None]
            np.testing.assert_allclose(fused[study], x[rows].mean(0))
    with pytest.raises(ValueError, match="study 1 has no image"):
        probe.fuse(x[:2], np.array([0, 2]))
    with pytest.raises(ValueError, match="5 features for 4 images"):
        probe.fuse(x[:5], np.arange(4))


def test_a_probe_of_studies_gives_the_mean_of_its_images_logits():
    x, y, index = _views()
    fitted = probe.fit_probes(
        {"arm": {"train": x, "test": x}}, y, np.ones_like(y), (1.0,), (0,),
        index={"train": index},
    )["arm", 1.0][0]  # fmt: skip
    np.testing.assert_allclose(fitted.scale, x.std(0))

    def logits(features):
        p = fitted.predict(features)
        return np.log(p / (1 - p))

    each, fused = logits(x), logits(probe.fuse(x, index))
    for study in (0, 7, 299):
        np.testing.assert_allclose(fused[study], each[index == study].mean(0))


def test_a_probe_on_the_images_scale_equals_sklearn():
    """Features scaled by images, one row a study: the loss of classify's logits."""
    x, y, index = _views()
    fused = probe.fuse(x, index)
    fitted = probe.fit(fused, y, c=0.1, images=x)
    scaled = StandardScaler().fit(x).transform(fused)
    for k in range(2):
        model = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(scaled, y[:, k])
        theirs = model.predict_proba(scaled)[:, 1]
        np.testing.assert_allclose(fitted.predict(fused)[:, k], theirs, atol=1e-5)


def test_run_probes_takes_studies_and_numbers_of_labels():
    x, y, index = _views(400)
    train, test = index < 300, index >= 300
    arms = {"a": {"train": x[train], "test": x[test]}}
    indices = {"train": index[train], "test": index[test] - 300}
    scores = probe.run_probes(
        arms, y[:300], np.ones((300, 2)), (0.5,), range(2), counts=(40, 1000),
        index=indices,
    )  # fmt: skip
    assert scores["a", 0.5].shape == scores["a", 40].shape == (2, 100, 2)
    assert scores["a", 1000].shape == (1, 100, 2)  # all there are: one subset
    with pytest.raises(ValueError, match="count 2: give more than the 2 labels"):
        probe.run_probes(arms, y[:300], np.ones((300, 2)), counts=(2,), index=indices)
    with pytest.raises(ValueError, match="training rows for 3 image rows"):
        probe.run_probes(arms, y[:300], np.ones((300, 2)), index={"train": index[:3]})
