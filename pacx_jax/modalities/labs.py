"""Laboratory values as percentiles, embedded by the encoder of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError

KIND = "labs_dae"
REQUIRES = ("labs", "labs_mask")
ARRAYS = ("labs", "labs_mask")


def settings(data: Any) -> dict[str, Any]:
    """No settings: percentiles are computed when data are prepared."""
    del data
    return {}


def missing(example: Mapping[str, Any]) -> bool:
    """Whether none of the values was observed."""
    return not np.any(example["labs_mask"])


def load(
    example: Mapping[str, Any], name: str, preprocessing: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """labs and labs_mask float32 (f,): percentiles, and 1 where there is one."""
    del preprocessing
    return values("labs", example, name)


def values(entry: str, example: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """Checks and returns `entry` and `<entry>_mask` of an example; NaN becomes 0."""
    found = np.asarray(example[entry], np.float32)
    mask = np.asarray(example[f"{entry}_mask"], np.float32)
    if found.shape != mask.shape or found.ndim != 1:
        raise PacxError(
            f"{name}: {entry} of shape {found.shape} with a mask of {mask.shape}"
        )
    if not np.isfinite(found[mask > 0]).all():
        raise PacxError(f"{name}: NaN in {entry} that the mask calls present")
    return {entry: np.nan_to_num(found), f"{entry}_mask": mask}
