"""One form of results for labels, masks and retrieval."""

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import (
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from pacx_jax.evaluate import held_out, measures, statistics
from pacx_jax.objectives import retrieval


def classes(n=300):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    labels = np.eye(3)[truth]
    logits = rng.normal(size=(n, 3)) + labels + 2 * rng.normal(size=(n, 1))
    return {"logits": logits, "labels": labels, "label_mask": np.ones((n, 3))}


def weights(n, r=100):
    return np.float64(statistics.bootstrap_weights(np.arange(n), r))


def test_one_of_c_classes_is_measured_by_its_probability_against_the_others():
    out = classes()
    found = measures.scored(measures.examples(out, "abc", "multiclass"), weights(300))
    ranking, called = {"auroc", "ap", "brier", "ece"}, {"f1", "precision", "recall"}
    assert set(found["macro"]) == ranking | called | {"accuracy"}
    p = scipy.special.softmax(out["logits"], axis=1)
    for c, name in enumerate("abc"):
        row, y = found["labels"][name], out["labels"][:, c]
        expected = roc_auc_score(y, p[:, c])
        assert row["auroc"]["value"] == pytest.approx(expected, abs=1e-12)
        expected = brier_score_loss(y, p[:, c])
        assert row["brier"]["value"] == pytest.approx(expected, abs=1e-12)
    truth, top = out["labels"].argmax(1), out["logits"].argmax(1)
    for name, theirs in (
        ("f1", f1_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        each = [found["labels"][c][name]["value"] for c in "abc"]
        np.testing.assert_allclose(each, theirs(truth, top, average=None), atol=1e-12)
    accuracy = found["macro"]["accuracy"]
    assert accuracy["value"] == pytest.approx((truth == top).mean(), abs=1e-12)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    mean = np.mean([row["auroc"]["value"] for row in found["labels"].values()])
    assert found["macro"]["auroc"]["value"] == pytest.approx(mean)


def test_a_class_that_nobody_tested_has_can_still_be_called():
    out = classes()
    kept = out["labels"][:, 2] == 0  # c is left out of the table, and not of the calls
    out = {k: v[kept] for k, v in out.items()}
    given = measures.examples(out, "abc", "multiclass")
    found = measures.scored(given, weights(int(kept.sum())))
    truth, top = out["labels"].argmax(1), out["logits"].argmax(1)
    assert set(found["labels"]) == {"a", "b"} and (top == 2).any()
    each = recall_score(truth, top, average=None, labels=[0, 1])
    for name, value in zip("ab", each, strict=True):
        row = found["labels"][name]["recall"]
        assert row["value"] == pytest.approx(value, abs=1e-12)
    accuracy = found["macro"]["accuracy"]["value"]
    assert accuracy == pytest.approx((truth == top).mean(), abs=1e-12)


def test_examples_of_no_class_or_of_several_are_not_scored():
    out = classes()
    few = {k: v[:200] for k, v in out.items()}
    out["labels"][200:250] = 0
    out["labels"][250:] = 1
    for k in range(2):
        given = measures.examples((out, few)[k], "abc", "multiclass")
        assert measures.counts(given)["a"]["known"] == 200
    rows = [
        measures.values(measures.examples(o, "abc", "multiclass"), np.ones((1, n)))
        for o, n in ((out, 300), (few, 200))
    ]
    for name, value in rows[0].items():
        np.testing.assert_allclose(value, rows[1][name], atol=1e-12)


def paired(n=60):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 8))
    near = z + rng.normal(size=(n, 8))
    present = np.float32(np.arange(n) % 3 > 0)
    return {
        "cxr": z, "ecg": near, "labs": rng.normal(size=(n, 8)),
        "cosine_ecg": np.ones(n), "cosine_labs": np.ones(n), "ecg_present": present,
    }  # fmt: skip


def test_retrieval_has_intervals_over_patients_and_leaves_missing_out():
    out = paired()
    result = held_out.with_intervals(out, np.arange(60) // 2, (), 0, "multilabel")
    here = out["ecg_present"] > 0
    expected = retrieval.recall_at_k(out["cxr"][here], out["ecg"][here])
    for k in (1, 5, 10):
        row = result["scores"]["labels"]["ecg"][f"recall@{k}"]
        assert row["value"] == pytest.approx(expected[f"recall@{k}"], abs=1e-12)
        assert row["low"] <= row["value"] <= row["high"]
    chance = result["scores"]["labels"]["labs"]["recall@1"]
    assert chance["low"] < 0.1 and set(result) == {"intervals", "scores"}
    told = held_out.lines({"split": "val"} | result)
    assert told[0].startswith("recall@1 0.") and told[-1] == "split val"


def test_masks_divide_into_subgroups_like_labels_do():
    rng = np.random.default_rng(0)
    truth = rng.integers(50, 100, 40)
    hits = np.int64(truth * np.where(np.arange(40) % 2, 0.9, 0.5))
    out = {"hits": hits, "called": truth, "truth": truth}
    groups = {"view": ["PA" if i % 2 else "AP" for i in range(40)]}
    result = held_out.with_intervals(out, np.arange(40), (), 0, "multilabel", groups)
    gap = result["subgroups"]["view"]["gap"]["macro"]["dice_per_image"]
    assert (gap["highest"], gap["lowest"]) == ("PA", "AP")
    assert gap["value"] == pytest.approx(np.mean((hits / truth)[1::2]) - np.mean(
        (hits / truth)[::2]
    ), abs=1e-6)  # fmt: skip
    assert gap["low"] > 0.3
    told = held_out.lines({"split": "test"} | result)
    assert any(line.startswith("view: dice 0.") for line in told)


def test_a_new_measure_is_one_entry(monkeypatch):
    def share(arrays, weights):
        called = np.float64(arrays["logits"] > 0)
        return weights @ called / weights.sum(1, keepdims=True)

    entry = measures.MEASURES["multilabel"] | {"called": share}
    monkeypatch.setitem(measures.MEASURES, "multilabel", entry)
    out = classes()
    result = held_out.with_intervals(out, np.arange(300), "abc", 0, "multilabel")
    value = result["scores"]["labels"]["a"]["called"]["value"]
    assert value == pytest.approx((out["logits"][:, 0] > 0).mean())
    assert any(", called 0." in line for line in held_out.lines(result))


def test_what_no_measure_is_of_has_none():
    assert measures.examples({"loss": np.zeros(3)}, ()) is None
