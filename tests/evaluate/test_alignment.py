"""Retrieval and ridge alignment."""

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from pacx_jax.encoders import model_folder
from pacx_jax.evaluate import alignment
from tests import tiny
from tests.reliability import runs


def test_recall_equals_a_direct_ranking_whatever_the_chunk():
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(101, 8))
    query = keys + 1.5 * rng.normal(size=keys.shape)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, keys)]
    order = np.argsort(-(unit[0] @ unit[1].T), axis=1)
    found = alignment.recall_at_k(query, keys, chunk=17)
    for k in (1, 5, 10):
        expected = np.mean([i in order[i, :k] for i in range(101)])
        assert abs(found[f"recall@{k}"] - expected) < 1e-12
        assert found[f"chance@{k}"] == k / 101


def test_recall_of_a_collapsed_encoder_is_chance():
    keys = np.random.default_rng(0).normal(size=(40, 3))
    keys[:] = keys[0]
    found = alignment.recall_at_k(keys, keys, ks=(1, 5))
    assert abs(found["recall@1"] - 1 / 40) < 1e-12
    assert abs(found["recall@5"] - 5 / 40) < 1e-12


def test_ridge_alignment_equals_sklearn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * [1, 2, 3, 4, 5, 6]
    y = x @ rng.normal(size=(6, 4)) + rng.normal(size=(200, 4)) + 2
    ours = alignment.ridge_alignment(x[:150], y[:150], x[150:], y[150:])
    scaler = StandardScaler().fit(x[:150])
    ridge = Ridge(alpha=10).fit(scaler.transform(x[:150]), y[:150])
    predicted = ridge.predict(scaler.transform(x[150:]))
    assert abs(ours["r2"] - r2_score(y[150:], predicted)) < 1e-9
    product = np.sum(predicted * y[150:], 1)
    norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(y[150:], axis=1)
    assert abs(ours["cosine"] - np.mean(product / norms)) < 1e-9


def test_a_shared_mean_direction_raises_the_raw_cosine_but_not_the_centred():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(400, 16)) + 3
    x = rng.normal(size=(400, 5))  # tells nothing
    out = alignment.ridge_alignment(x[:200], y[:200], x[200:], y[200:])
    assert out["random_cosine"] > 0.8 and out["cosine"] > 0.8
    assert abs(out["random_cosine_centred"]) < 0.1 and abs(out["cosine_centred"]) < 0.1
    assert out["r2"] < 0.05


def _pairs(n=300, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8))
    y = x @ rng.normal(size=(8, 6)) + noise * rng.normal(size=(n, 6)) + 2
    return x[:200], y[:200], x[200:], y[200:]


def test_hits_are_of_n_and_chance_is_that_of_the_gallery():
    found = alignment.ridge_alignment(*_pairs())
    assert found["n"] == 100
    for k in (1, 5, 10):
        assert found[f"hits@{k}"] == pytest.approx(100 * found[f"recall@{k}"])
        assert found[f"chance@{k}"] == k / 100
    assert found["hits@5"] > 50


def test_intervals_hold_the_value_and_floors_show_what_it_is_worth():
    pairs = _pairs()
    plain = alignment.ridge_alignment(*pairs)
    found = alignment.with_intervals(*pairs, np.arange(100) // 2, n_resamples=200)
    for name in ("r2", "cosine", "cosine_centred", "recall@1", "recall@5", "recall@10"):
        row = found["encoder"][name]
        assert row["value"] == pytest.approx(plain[name], abs=1e-12), name
        assert row["low"] < row["value"] < row["high"], name
    assert found["encoder"]["hits@5"] == pytest.approx(plain["hits@5"])
    assert found["encoder"]["n"] == 100
    for floor in alignment.FLOORS:
        row = found[floor]
        assert row["r2"]["value"] < 0.02 and abs(row["cosine_centred"]["value"]) < 0.2
        assert row["recall@5"]["value"] < 0.2 < found["encoder"]["recall@5"]["low"]


def test_resampled_r2_equals_sklearns_of_the_rows_drawn():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(40, 3)) + 50
    predicted = truth + rng.normal(size=(40, 3))
    weights = rng.integers(0, 3, (5, 40)).astype(float)
    ours = alignment._r2(predicted, truth, weights)
    for w, value in zip(weights, ours, strict=True):
        rows = np.repeat(np.arange(40), w.astype(int))
        assert value == pytest.approx(r2_score(truth[rows], predicted[rows]), abs=1e-9)


def test_the_command_measures_a_distilled_run(tmp_path, monkeypatch, capsys):
    """Its own encoder, then another; what is printed is what is written."""
    runs.use_patients(monkeypatch)
    folders = tiny.write_folders(tmp_path / "folders")
    workdir = tmp_path / "distill"
    workdir.mkdir()
    config = runs.config("distill", folders)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    model_folder.save(workdir / "export", tiny.folder("vit", seed=3), "card")
    (workdir / "done.json").write_text('{"step": 20, "metrics": {}}')
    flags = [f"--workdir={workdir}", "--splits=train,val", f"--out={tmp_path}/a.json"]
    assert alignment.main(flags) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["splits"] == ["train", "val"] and len(found["encoder"]) == 16
    assert found["overlap"].startswith("overlap unknown: ")
    found = found["alignment"]
    assert set(found) == {"ecg", "labs"} and found["ecg"]["encoder"]["n"] == 8
    row = found["labs"]["encoder"]["r2"]
    out = capsys.readouterr().out
    assert f"labs, encoder: r2 {row['value']:.3f} ({row['low']:.3f}-" in out
    assert alignment.main([*flags, f"--encoder={folders['model_init']}"]) == 0
    other = json.loads((tmp_path / "a.json").read_text())["alignment"]
    assert other["labs"]["encoder"]["r2"] != row  # another encoder
    assert other["labs"]["random"] == found["labs"]["random"]  # not of the encoder
    monkeypatch.setattr(
        alignment.features,
        "of_teacher",
        lambda config, m, source, folder: np.full((len(source), 4), np.nan),
    )
    assert alignment.main(flags) == 2
    assert "no train example has ecg: give other --splits" in capsys.readouterr().err
    config = runs.config("mae", folders)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    assert alignment.main(flags) == 2
    error = capsys.readouterr().err
    assert "is a run of mae: give a distilled one" in error and error.count("\n") == 1
