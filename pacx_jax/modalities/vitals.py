"""Vital signs as percentiles: heart rate, blood pressure, respiration, ...

They are stored and embedded like laboratory values, under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pacx_jax.modalities import labs

KIND = "labs_dae"
REQUIRES = ("vitals", "vitals_mask")
ARRAYS = ("vitals", "vitals_mask")

# The order of the features, with their units.
SIGNS = {
    "heart_rate": "1/min",
    "systolic": "mmHg",
    "diastolic": "mmHg",
    "respiration": "1/min",
    "saturation": "%",
    "temperature": "degrees C",
    "weight": "kg",
}


def settings(data: Any) -> dict[str, Any]:
    """No settings: percentiles are computed when data are prepared."""
    del data
    return {}


def missing(example: Mapping[str, Any]) -> bool:
    """Whether none of the signs was measured."""
    return not np.any(example["vitals_mask"])


def load(
    example: Mapping[str, Any], name: str, preprocessing: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """vitals and vitals_mask float32 (f,): percentiles, and 1 where there is one."""
    del preprocessing
    return labs.values("vitals", example, name)
