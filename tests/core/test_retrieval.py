"""Retrieval among paired embeddings; its ties and chance stand in test_alignment."""

import numpy as np
import pytest

from pacx_jax.objectives import retrieval


def test_own_key_is_found_whatever_the_lengths_of_the_vectors():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(40, 8))
    keys = query + rng.normal(size=(40, 8))
    scales = rng.uniform(0.1, 10, size=(40, 1))
    found = retrieval.recall_at_k(query, keys, chunk=7)
    assert found == retrieval.recall_at_k(query * scales, keys / scales)
    assert found["recall@1"] > 0.5
    assert found["recall@1"] <= found["recall@5"] <= found["recall@10"]


def test_collapsed_embeddings_score_chance():
    found = retrieval.recall_at_k(np.ones((20, 3)), np.ones((20, 3)), (1, 5, 20))
    for k in (1, 5, 20):
        assert found[f"recall@{k}"] == pytest.approx(k / 20, abs=1e-12)
        assert found[f"chance@{k}"] == k / 20
