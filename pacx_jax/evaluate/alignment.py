"""How much of an ECG or of laboratory values an image embedding carries.

Retrieval by cosine, and the ridge probe of the reference's alignment study
(D30, D31): targets raw, cosines both raw and centred, because raw
ECG embeddings share a mean direction (random pairs already agree at about 0.43).
"""

from __future__ import annotations

import numpy as np

from pacx_jax.objectives.retrieval import normalize_rows, recall_at_k


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


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.sum(normalize_rows(a) * normalize_rows(b), axis=1)))
