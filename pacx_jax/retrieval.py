"""Retrieval among paired embeddings."""

from __future__ import annotations

import numpy as np


def normalize_rows(x: np.ndarray, eps: float = 1e-8) -> np.ndarray:
    """Rows of (n, d) at length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), eps)


def ranks(query: np.ndarray, keys: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """How many keys are nearer (by cosine) to each query than its own: (n,) int.

    Row i of both belong together. Ties count half, rounded up, so that constant
    embeddings do not look like perfect ones.
    """
    query, keys = normalize_rows(query), normalize_rows(keys)
    out = np.empty(len(query), np.int64)
    for start in range(0, len(query), chunk):
        rows = np.arange(start, min(start + chunk, len(query)))
        similarity = query[rows] @ keys.T
        own = similarity[np.arange(len(rows)), rows][:, None]
        ahead, tied = (similarity > own).sum(1), (similarity == own).sum(1) - 1
        out[rows] = ahead + (tied + 1) // 2
    return out


def recall_at_k(
    query: np.ndarray, keys: np.ndarray, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[int, float]:
    """Share of queries (n, d) whose own key (n, d) is among the k nearest, per k."""
    r = ranks(query, keys)
    return {k: float((r < k).mean()) for k in ks}
