"""Retrieval among paired embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64, Real


def normalize_rows(
    x: Real[np.ndarray, "n d"], eps: float = 1e-8
) -> Float64[np.ndarray, "n d"]:
    """Scales rows of (n, d) to length 1, float64."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), eps)


def recall_at_k(
    query: Real[np.ndarray, "n d"],
    keys: Real[np.ndarray, "n d"],
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 1024,
) -> dict[str, float]:
    """Share of queries whose own key is among the k most similar, by cosine.

    A tie counts as its expectation under random order, so an encoder that maps all
    images to one vector scores chance, not 1.

    Args:
      query: (n, d); row i belongs to row i of `keys`.
      keys: (n, d).
      ks: cut-offs.
      chunk: queries compared at a time, bounding memory to chunk * n.

    Returns:
      dict: `recall@k`, and `chance@k` = k / n, for each k.
    """
    n = len(keys)
    hits = hits_at_k(query, keys, ks, chunk)
    recall = {f"recall@{k}": float(hits[k].sum()) / n for k in ks}
    return recall | {f"chance@{k}": min(k / n, 1.0) for k in ks}


def hits_at_k(
    query: Real[np.ndarray, "n d"],
    keys: Real[np.ndarray, "n d"],
    ks: Sequence[int],
    chunk: int = 1024,
) -> dict[int, Float64[np.ndarray, " n"]]:
    """k -> (n,) of each query, whether `recall_at_k` finds its own key.

    Raises:
      ValueError: as many queries as keys are needed, and at least one.
    """
    if len(query) != len(keys) or not len(keys):
        raise ValueError(f"{len(query)} queries do not pair with {len(keys)} keys")
    query, keys = normalize_rows(query), normalize_rows(keys)
    hits: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    for start in range(0, len(keys), chunk):
        similarity = query[start : start + chunk] @ keys.T
        rows = np.arange(len(similarity))
        own = similarity[rows, start + rows][:, None]
        better = np.sum(similarity > own, axis=1)
        tied = np.sum(similarity == own, axis=1)  # at least itself
        for k in ks:
            hits[k].append(np.clip((k - better) / tied, 0.0, 1.0))
    return {k: np.concatenate(each) for k, each in hits.items()}
