"""The JSON of each route: from results of rows to what a client gets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pacx_jax.serving.model import Served


def _numbers(array: np.ndarray) -> list:
    """Nested lists of floats with 9 digits, which give back every float32."""
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return [float(f"{x:.9g}") for x in array.tolist()]


def embed(served: Served, names: Sequence[str], results: Sequence[np.ndarray]) -> dict:
    """Embeddings of width numbers."""
    rows = [
        {"name": name, "embedding": _numbers(z)}
        for name, z in zip(names, results, strict=True)
    ]
    return {"width": served.encoder.width, "results": rows}


def rollout(
    served: Served, names: Sequence[str], results: Sequence[np.ndarray]
) -> dict:
    """Attention rollout: each patch's share, row by row from the top left."""
    rows = [
        {"name": name, "rollout": _numbers(shares)}
        for name, shares in zip(names, results, strict=True)
    ]
    side = served.encoder.image_size // served.encoder.architecture["patch_size"]
    return {"grid": [side, side], "results": rows}


def predict(
    served: Served, names: Sequence[str], results: Sequence[np.ndarray]
) -> dict:
    """Calibrated probabilities by label, and whether each reaches its threshold.

    A label without a threshold, or that could not be calibrated, says so by null and
    by its absence from "calibrated".
    """
    model = served.classifier
    called = model.decide(np.stack(results))
    rows = [
        {
            "name": name,
            "probabilities": dict(zip(model.labels, _numbers(p), strict=True)),
            "called": {
                label: None if np.isnan(x) else bool(x)
                for label, x in zip(model.labels, each, strict=True)
            },
        }
        for name, p, each in zip(names, results, called, strict=True)
    ]
    about = (model.calibration or {"labels": {}})["labels"]
    return {
        "task": model.task,
        "labels": list(model.labels),
        "calibrated": [x for x in model.labels if about.get(x, {}).get("calibrated")],
        "thresholds": model.thresholds,
        "results": rows,
    }


ROUTES = {"embed": embed, "predict": predict, "rollout": rollout}
