"""How much of an ECG or of laboratory values an image embedding carries.

Retrieval by cosine, and the ridge probe of the reference's alignment study
(reference.md §5.4, D30, D31): targets raw, cosines both raw and centred, because raw
ECG embeddings share a mean direction (random pairs already agree at about 0.43).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def recall_at_k(
    query: np.ndarray,
    keys: np.ndarray,
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
    if len(query) != len(keys) or not len(keys):
        raise ValueError(f"{len(query)} queries do not pair with {len(keys)} keys")
    query, keys = _unit(query), _unit(keys)
    n = len(keys)
    hits = dict.fromkeys(ks, 0.0)
    for start in range(0, n, chunk):
        similarity = query[start : start + chunk] @ keys.T
        rows = np.arange(len(similarity))
        own = similarity[rows, start + rows][:, None]
        better = np.sum(similarity > own, axis=1)
        tied = np.sum(similarity == own, axis=1)  # at least itself
        for k in ks:
            hits[k] += float(np.clip((k - better) / tied, 0.0, 1.0).sum())
    recall = {f"recall@{k}": hits[k] / n for k in ks}
    return recall | {f"chance@{k}": min(k / n, 1.0) for k in ks}


def ridge_alignment(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    alpha: float = 10.0,
) -> dict[str, float]:
    """Predict physiological embeddings from image embeddings by ridge regression.

    Args:
      x_train: (n, d) image embeddings; standardised here by their own statistics.
      y_train: (n, f) ECG or labs embeddings, used raw (D30).
      x_test: (m, d).
      y_test: (m, f).
      alpha: ridge penalty.

    Returns:
      dict: `r2` (uniform average over f), `cosine` and `cosine_centred` (both sides
      less the test targets' mean), `random_cosine` and `random_cosine_centred` (true
      targets against a permutation of them), `recall@k` and `chance@k` of finding
      one's own target by the prediction, k in 1, 5, 10.
    """
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x_train)
    ridge = Ridge(alpha=alpha, solver="svd").fit(scaler.transform(x_train), y_train)
    predicted = ridge.predict(scaler.transform(x_test)).reshape(y_test.shape)
    mean = y_test.mean(axis=0)
    other = y_test[np.random.default_rng(0).permutation(len(y_test))]
    return {
        "r2": float(r2_score(y_test, predicted, multioutput="uniform_average")),
        "cosine": _mean_cosine(predicted, y_test),
        "cosine_centred": _mean_cosine(predicted - mean, y_test - mean),
        "random_cosine": _mean_cosine(other, y_test),
        "random_cosine_centred": _mean_cosine(other - mean, y_test - mean),
    } | recall_at_k(predicted, y_test)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.sum(_unit(a) * _unit(b), axis=1)))
