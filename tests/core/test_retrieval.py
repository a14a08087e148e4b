"""Ranks and recall among paired embeddings."""

import numpy as np

from pacx_jax import retrieval


def test_ranks_count_the_keys_that_are_nearer():
    rng = np.random.default_rng(0)
    query, keys = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    got = retrieval.ranks(query, keys, chunk=7)
    for i in range(30):
        cos = keys @ query[i] / np.linalg.norm(keys, axis=1)
        assert got[i] == sum(cos[j] > cos[i] for j in range(30) if j != i)


def test_recall_is_the_share_of_queries_within_k():
    keys = np.eye(4)
    query = keys[[0, 1, 3, 2]] + 0.4 * keys  # two of four find another one first
    assert retrieval.recall_at_k(query, keys, (1, 2, 4)) == {1: 0.5, 2: 1.0, 4: 1.0}


def test_constant_embeddings_are_no_better_than_chance():
    got = retrieval.recall_at_k(np.ones((21, 3)), np.ones((21, 3)), (1, 5, 21))
    assert got == {1: 0.0, 5: 0.0, 21: 1.0}


def test_length_of_the_embeddings_does_not_matter():
    rng = np.random.default_rng(1)
    query, keys = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    scales = rng.uniform(0.1, 10, (20, 1))
    np.testing.assert_array_equal(
        retrieval.ranks(query, keys), retrieval.ranks(query * scales, keys / scales)
    )
