"""Reads 12-lead ECGs from plain arrays in .npy files.

They say nothing of themselves: rate and lead order are the caller's.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import arrays, ecg


def read(
    path: pathlib.Path, fs: float, lead_order: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float64 (t, 12), leads in standard order, of each record in the file.

    Args:
      path: .npy of (t, 12), (12, t), (n, t, 12) or (n, 1, t, 12).
      fs, lead_order: what the caller says of it.

    Raises:
      PacxError: an unreadable file, or an array that holds no ECGs.
    """
    ecg.check_rate(fs, str(path))
    order = ecg.lead_indices(lead_order)
    array = arrays.open_npy(path)
    if array.dtype.kind not in "iuf":
        raise PacxError(f"{path}: array of {array.dtype}; it must hold real numbers")
    many = array.ndim > 2
    if many and array.ndim == 4 and array.shape[1] == 1:  # Symile-MIMIC's
        array = array[:, 0]
    if array.ndim == 2 and array.shape[0] == 12 != array.shape[1]:
        array = array.T
    if array.ndim != 2 + many or array.shape[-1] != 12 or array.shape[-2] == 12:
        raise PacxError(
            f"{path}: array of shape {array.shape}; it must be (samples, 12 leads) or "
            "(12, samples), or (records, samples, 12)"
        )
    if not len(array):
        raise PacxError(f"{path}: array of shape {array.shape}; it holds no record")
    if array.shape[-2] > ecg.LONGEST:
        raise PacxError(f"{path}: more than {ecg.LONGEST} samples are not read; cut it")
    for i, one in enumerate(array if many else [array]):
        name = f"{path}[{i}]" if many else str(path)
        record = np.asarray(one, np.float64)[:, order]
        if array.dtype == np.int16:  # WFDB's mark of a missing sample, or a full scale
            record[record == np.iinfo(np.int16).min] = np.nan
        yield name, record
