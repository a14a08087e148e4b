"""Cached embeddings: right, computed once, and never stale."""

import concurrent.futures
import dataclasses
import json
import time

import jax
import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import ecg, quarantine
from pacx_jax.modalities import teachers
from pacx_jax.run import embedding_cache
from tests import tiny


class Source:
    """Five patients in memory; example 3 has an ECG that no lead of which moves."""

    label_names, split, entries = (), "train", ("ecg", "labs", "labs_mask")

    def __init__(self, fingerprint="one"):
        rng = np.random.default_rng(0)
        self.fingerprint, self.reads = fingerprint, 0
        self.ecg = rng.normal(size=(5, 5000, 12)).astype(np.float32)
        self.ecg[3] = 1
        self.labs = rng.random((5, 50)).astype(np.float32)
        self.mask = (rng.random((5, 50)) < 0.7).astype(np.float32)

    def __len__(self):
        return 5

    def __getitem__(self, i):
        self.reads += 1
        return {"ecg": self.ecg[i], "labs": self.labs[i], "labs_mask": self.mask[i]}

    def name(self, i):
        return f"patient {i}"


@pytest.fixture
def embed(tmp_path, meshes):
    """(source, modality, encoder) -> table, cached in tmp_path."""
    data = tiny.config("distill_vitb16", data__threads=0).data

    def run(source, modality, encoder, mesh=meshes[2], bad=None):
        return embedding_cache.embeddings(
            source,
            teachers.encoder(modality, encoder),
            data,
            mesh,
            cache_dir=tmp_path / "cache",
            batch_size=4,
            quarantine=quarantine.Quarantine(None, 1.0) if bad is None else bad,
        )

    return run


def test_lab_embeddings_are_the_encoders_whatever_the_batches(embed):
    # Five rows in batches of four, over two devices. Bound 1e-6; measured 6.0e-8.
    source, encoder = Source(), tiny.folder("labs_dae")
    got = embed(source, "labs", encoder)
    apply = jax.jit(encoder.module().apply)
    want = apply({"params": encoder.params}, source.labs, source.mask)
    assert got.shape == (5, 8) and got.dtype == np.float32
    assert tiny.relative(got, want) < 1e-6


def test_ecg_embeddings_are_of_the_preprocessed_record_and_bad_ones_nan(embed):
    source = Source()
    encoder = tiny.folder("ecg_net1d")
    encoder = dataclasses.replace(
        encoder, preprocessing={"sampling_rate": 500, "decimate": 5}
    )
    bad = quarantine.Quarantine(None, 1.0)
    got = embed(source, "ecg", encoder, bad=bad)
    assert np.isnan(got[3]).all() and np.isfinite(got[[0, 1, 2, 4]]).all()
    assert len(bad) == 1 and bad.knows(source, 3)
    # The encoder's own decimation, though the config of the run says none.
    record = ecg.decimate(ecg.preprocess(source.ecg[1], 500.0, "standard", ""), 5)
    assert record.shape == (1000, 12)
    want = jax.jit(encoder.module().apply)({"params": encoder.params}, record[None])
    assert tiny.relative(got[1], want[0]) < 1e-5


def test_a_study_without_the_modality_is_no_unreadable_example(embed):
    source, bad = Source(), quarantine.Quarantine(None, 0.0)
    source.mask[2] = 0
    got = embed(source, "labs", tiny.folder("labs_dae"), bad=bad)
    assert np.isneginf(got).all(1).tolist() == [False, False, True, False, False]
    assert np.isfinite(got[[0, 1, 3, 4]]).all() and len(bad) == 0
    assert np.array_equal(embed(source, "labs", tiny.folder("labs_dae")), got)


def test_unreadable_examples_are_told_also_where_the_table_is_cached(embed, tmp_path):
    source, encoder = Source(), tiny.folder("ecg_net1d")
    listed = [tmp_path / f"{run}.jsonl" for run in ("one", "two")]
    for path in listed:
        bad = quarantine.Quarantine(str(path), 0.2)
        embed(source, "ecg", encoder, bad=bad)
        assert len(bad) == 1 and bad.knows(source, 3)
        assert json.loads(path.read_text())["name"] == "patient 3"
    assert "flat lead" in listed[0].read_text()  # what the reader said of it
    assert "has no ecg embedding" in listed[1].read_text()
    with pytest.raises(PacxError, match="1 unreadable samples of 5 in the train split"):
        embed(source, "ecg", encoder, bad=quarantine.Quarantine(None, 0.0))


def test_embedding_that_is_not_finite_is_an_unreadable_example(embed):
    encoder = tiny.folder("labs_dae")
    params = tiny.flat(encoder.params)
    broken = {k: v * np.float32(np.inf) for k, v in params.items()}
    encoder = dataclasses.replace(encoder, params=tiny.unflat(broken))
    with pytest.raises(PacxError, match="2 unreadable samples of 5"):
        embed(Source(), "labs", encoder, bad=quarantine.Quarantine(None, 0.01))


def test_of_two_calls_at_once_one_computes_and_the_other_waits(embed, monkeypatch):
    source, encoder, calls = Source(), tiny.folder("labs_dae"), []
    original = embedding_cache.compute

    def slow(*args):
        calls.append(args)
        time.sleep(0.5)
        return original(*args)

    monkeypatch.setattr(embedding_cache, "compute", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(embed, source, "labs", encoder) for _ in range(2)]
    np.testing.assert_array_equal(*(w.result() for w in waiting))
    assert len(calls) == 1


def test_second_call_reads_the_cache_and_not_the_data(embed):
    source, encoder = Source(), tiny.folder("labs_dae")
    first = embed(source, "labs", encoder)
    reads = source.reads
    np.testing.assert_array_equal(embed(source, "labs", encoder), first)
    assert reads == 5 and source.reads == reads


def test_other_weights_other_data_or_another_description_are_computed_anew(embed):
    encoder = tiny.folder("labs_dae")
    embed(Source(), "labs", encoder)
    moved = tiny.flat(encoder.params)
    moved["fc1/bias"] = moved["fc1/bias"] + np.float32(1e-6)
    for source, other in (
        (Source("two"), encoder),
        (Source(), dataclasses.replace(encoder, params=tiny.unflat(moved))),
        (
            Source(),
            dataclasses.replace(
                encoder, architecture=tiny.LABS | {"mask_inputs": False}
            ),
        ),
    ):
        embed(source, "labs", other)
        assert source.reads == 5


def test_reference_encoder_reads_missing_labs_and_ours_does_not(embed):
    # D7, end to end through the cache.
    ours = tiny.folder("labs_dae")
    theirs = dataclasses.replace(ours, architecture=tiny.LABS | {"mask_inputs": False})
    source, other = Source(), Source("two")
    other.labs = np.where(other.mask > 0, other.labs, 0.9).astype(np.float32)
    np.testing.assert_array_equal(*(embed(s, "labs", ours) for s in (source, other)))
    a, b = (embed(s, "labs", theirs) for s in (source, other))
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_damaged_cache_is_an_error_that_names_the_file(embed, tmp_path, keep):
    embed(Source(), "labs", tiny.folder("labs_dae"))
    (path,) = (tmp_path / "cache").glob("*.npy")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PacxError, match=f"{path} is damaged: delete it"):
        embed(Source(), "labs", tiny.folder("labs_dae"))


def test_cache_key_is_the_same_in_another_layout_of_the_weights():
    encoder = tiny.folder("labs_dae")
    other = dataclasses.replace(
        encoder, params=jax.tree.map(np.asfortranarray, encoder.params)
    )
    keys = {embedding_cache.cache_key(Source(), e, 4) for e in (encoder, other)}
    assert len(keys) == 1
