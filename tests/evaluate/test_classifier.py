"""A classifier from images and labels in memory, its folder, and what it refuses."""

import json

import numpy as np
import pytest

import pacx_jax
from pacx_jax import errors
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import classifier
from tests import tiny

N = 60


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "vit"
    model_folder.save(path, tiny.folder("vit"), "")
    return pacx_jax.load_encoder(path)


@pytest.fixture(scope="module")
def data():
    """60 images of 30 patients; the upper or left half of the sick is brighter."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 2, (N // 2, 2)), 2, axis=0)
    images = rng.integers(0, 40, (N, 32, 32), dtype=np.uint8)
    images[y[:, 0] == 1, :16] += 150
    images[y[:, 1] == 1, :, :16] += 60
    return list(images), {"top": y[:, 0], "left": y[:, 1]}, np.arange(N) // 2


@pytest.fixture(scope="module")
def fitted(encoder, data):
    images, labels, patients = data
    return pacx_jax.fit_probe(encoder, images, labels, patients)


def test_fit_probe_learns_and_calibrates_on_held_out_patients(fitted, data):
    images, labels, _ = data
    p = fitted.predict(images)
    assert p.shape == (N, 2) and 0 < p.min() < p.max() < 1
    truth = np.stack(list(labels.values()), 1)
    assert (fitted.decide(p) == truth).mean() > 0.9
    assert fitted.labels == ("top", "left")
    about = fitted.calibration["labels"]["top"]
    assert about["known"] == N // 5 and about["calibrated"]
    assert fitted.thresholds["top"] == about["thresholds"]["max_f1"]["probability"]
    assert set(about["thresholds"]) == {"max_f1", "sensitivity=0.9", "specificity=0.9"}


def test_held_out_patients_are_not_fitted_on(encoder, data):
    images, labels, patients = data
    held = patients % 3 == 0
    one = pacx_jax.fit_probe(encoder, images, labels, patients, validation=held)
    wrong = {k: np.where(held, 1 - y, y) for k, y in labels.items()}
    other = pacx_jax.fit_probe(encoder, images, wrong, patients, validation=held)
    z = encoder(images[:4])
    np.testing.assert_array_equal(one.logits(z), other.logits(z))
    assert one.calibration != other.calibration


def test_folder_gives_the_same_classifier_back(fitted, data, tmp_path):
    images, _, _ = data
    fitted.save(tmp_path / "model")
    again = pacx_jax.Classifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(images), fitted.predict(images))
    assert again.thresholds == fitted.thresholds and again.labels == fitted.labels
    z = pacx_jax.load_encoder(tmp_path / "model")(images[:2])  # an encoder as well
    np.testing.assert_array_equal(z, fitted.encoder(images[:2]))
    again.save(tmp_path / "model")  # written over
    card = (tmp_path / "model/README.md").read_text()
    assert card.count(errors.INSTALL) == 1 and "(n, 2) probabilities" in card


def test_a_study_has_the_mean_logits_of_its_images(fitted, data):
    images = data[0][:4]
    logits = fitted.logits(fitted.encoder(images))
    found = fitted.predict(images, studies=["b", "a", "b", "a"])
    means = np.stack([logits[[0, 2]].mean(0), logits[[1, 3]].mean(0)])
    np.testing.assert_allclose(found, fitted.probabilities(means), atol=1e-12)
    with pytest.raises(PacxError, match="1 studies for 4 images"):
        fitted.predict(images, studies=["a"])


def test_damaged_and_missing_calibrations(fitted, data, tmp_path):
    fitted.save(tmp_path / "model")
    file = tmp_path / "model" / "calibration.json"
    about = json.loads(file.read_text())
    about["labels"]["top"]["a"] = float("nan")
    for damaged in ("{", '{"format": 2}', json.dumps(about), '{"format": 1}'):
        file.write_text(damaged)
        with pytest.raises(PacxError, match=r"calibration\.json is damaged"):
            pacx_jax.Classifier.load(tmp_path / "model")
    file.unlink()
    bare = pacx_jax.Classifier.load(tmp_path / "model")
    p = bare.predict(data[0][:2])
    assert bare.thresholds == {} and np.isnan(bare.decide(p)).all()
    raw = fitted.logits(fitted.encoder(data[0][:2]))
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-raw)), atol=1e-12)


def test_an_encoder_without_a_classifier_is_one_line(tmp_path):
    model_folder.save(tmp_path / "vit", tiny.folder("vit"), "")
    with pytest.raises(PacxError, match="an encoder without a classifier: train one"):
        pacx_jax.Classifier.load(tmp_path / "vit")


def test_several_classes_sum_to_one_and_the_most_probable_is_called(encoder):
    rng = np.random.default_rng(0)
    chosen = {
        name: {"known": 9, "positives": 3, "thresholds": {"max_f1": 0.0},
               "scalings": {"platt": (0.5 + i, 0.1)}}
        for i, name in enumerate("abc")
    }  # fmt: skip
    about = classifier.calibration_of(chosen, "val", "multiclass")
    kernel = rng.normal(size=(encoder.width, 3))
    found = pacx_jax.Classifier(encoder, kernel, [0] * 3, "abc", "multiclass", about)
    p = found.predict([np.full((32, 32), 9 * i, np.uint8) for i in range(5)])
    np.testing.assert_allclose(p.sum(1), 1)
    assert found.thresholds == {}
    np.testing.assert_array_equal(found.decide(p).argmax(1), p.argmax(1))


def test_a_label_ranked_no_better_than_chance_is_not_calibrated():
    chosen = {
        "a": {"known": 9, "positives": 3, "thresholds": {"max_f1": 0.0},
              "scalings": {"platt": (-0.5, 0.1)}},
        "b": {"known": 9, "positives": 0},
    }  # fmt: skip
    labels = classifier.calibration_of(chosen, "val")["labels"]
    for about in labels.values():
        assert not about["calibrated"] and about["thresholds"] == {}
        assert (about["a"], about["b"]) == (1.0, 0.0)


def test_rollout_is_a_map_of_shares(encoder, data):
    maps = pacx_jax.rollout(encoder, data[0][:3])
    assert maps.shape == (3, 4, 4) and maps.dtype == np.float32
    assert ((0 < maps.sum((1, 2))) & (maps.sum((1, 2)) < 1)).all()
    assert pacx_jax.rollout(encoder, []).shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": {"sick": ["yes"] * N}}, "row 0 of 'sick' is 'yes'; give 1, 0, -1"),
        ({"labels": [2] * N}, "row 0 of 'label_0' is 2; give 1, 0"),
        ({"labels": [1] * N}, "label 'label_0': .* positive, both classes are needed"),
        ({"labels": [0, 1]}, "60 images for 2 labels"),
        ({"labels": {"sick": []}, "images": []}, "no labels: give a row for each"),
        ({"labels": {"a": [0, 1], "b": [1]}}, "labels of different lengths: a 2, b 1"),
        ({"patients": [1]}, "1 patients for 60 labels"),
        ({"names": ["a"]}, "1 names for 2 labels"),
        ({"validation": [True] * N}, "positive, both classes"),
        ({"validation": np.arange(N) % 2 == 0}, "both held out and fitted on"),
        ({"validation": [1] * N}, "give 60 truth values"),
        ({"encoder": "/nowhere"}, "no such folder"),
    ],
)
def test_bad_input_of_fit_probe_is_one_line(encoder, data, change, told):
    images, labels, patients = data
    given = {"encoder": encoder, "images": images, "labels": labels}
    if "labels" not in change:
        given["patients"] = patients
    with pytest.raises(PacxError, match=told):
        pacx_jax.fit_probe(**(given | change))
