"""12-lead ECGs of 10 seconds, embedded by a 1-D convolutional network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pacx_jax.input import ecg

KIND = "ecg_net1d"
REQUIRES = ("ecg",)
ARRAYS = ("ecg",)


def settings(data: Any) -> dict[str, Any]:
    """The chain's output is at 500 Hz; every `decimate`-th sample is kept."""
    decimate = int(getattr(data, "ecg_decimate", 1))
    return {"sampling_rate": ecg.FS, "decimate": decimate}


def missing(example: Mapping[str, Any]) -> bool:
    """A missing ECG is stored as zeros."""
    return not np.any(example["ecg"])


def load(
    example: Mapping[str, Any], name: str, preprocessing: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """ecg float32 (t, 12), filtered and normalised by `input.ecg.preprocess`."""
    record = np.asarray(example["ecg"], np.float32)
    if not missing(example):
        order = example.get("lead_order", "standard")
        record = ecg.preprocess(record, float(ecg.FS), order, name)
    return {"ecg": ecg.decimate(record, preprocessing.get("decimate", 1))}
