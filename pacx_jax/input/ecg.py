"""The ECG chain of ECGFounder: notch, band-pass, baseline removal, z-score.

Source: reference.md section 3 (ECGFounder's util.py and dataset.py, and PaCX's
ecg_features_extraction notebook). The chain does not change when a record is
scaled or shifted, so records in mV and records scaled to [-1, 1] give the same
result. The 50 Hz notch follows the source; where mains are at 60 Hz it changes
nothing, for the band ends at 40 Hz. Letters: t samples, 12 leads.
"""

from __future__ import annotations

import functools

import numpy as np

from pacx_jax.types import PacxError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# MIMIC-IV-ECG writes aVF before aVL.
LEAD_ORDERS = {
    "standard": tuple(range(12)),
    "mimic": (0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11),
}


def preprocess(
    ecg_mv: np.ndarray,
    fs: float = 500.0,
    lead_order: str = "standard",
    name: str = "ECG",
) -> np.ndarray:
    """Turns a raw 12-lead record into the input of the ECG encoder.

    Leads in standard order; per lead a 50 Hz notch (Q 30) and a Butterworth
    band-pass of order 4 from 0.67 to 40 Hz, both forwards and backwards; a running
    median of 0.4 s is taken away; one mean and one standard deviation over all
    leads and samples (+ 1e-8) normalise.

    Args:
      ecg_mv: (t, 12), mV or any affine image of them, at least 0.4 s.
      fs: sampling rate in Hz.
      lead_order: "standard" or "mimic", the order of the 12 columns.
      name: what messages call the record.

    Returns:
      float32 (t, 12) in standard lead order.

    Raises:
      PacxError: a wrong shape, NaN or infinite samples, a lead that is constant.
    """
    # Here, for SciPy takes seconds to import and most stages read no ECG.
    import scipy.ndimage
    import scipy.signal

    order = LEAD_ORDERS.get(lead_order)
    if order is None:
        raise PacxError(f"lead order {lead_order!r}: give one of {list(LEAD_ORDERS)}")
    check(ecg_mv, name, lead_order, fs)
    x = np.ascontiguousarray(np.asarray(ecg_mv).T, dtype=np.float64)[list(order)]
    for b, a in _filters(float(fs)):
        x = scipy.signal.filtfilt(b, a, x, axis=-1)
    kernel = int(0.4 * fs) + 1
    kernel += 1 - kernel % 2
    # The same values as scipy.signal.medfilt, which pads with zeros. One lead at a
    # time, for SciPy's fast running median is the one of one-dimensional arrays.
    x = x - np.stack(
        [scipy.ndimage.median_filter(lead, kernel, mode="constant") for lead in x]
    )
    x = (x - x.mean()) / (x.std() + 1e-8)
    return np.ascontiguousarray(x.T, dtype=np.float32)


def decimate(ecg: np.ndarray, factor: int) -> np.ndarray:
    """Means of `factor` consecutive samples: (t, 12) -> (t // factor, 12)."""
    if factor == 1:
        return ecg
    t = ecg.shape[0] // factor
    if factor < 1 or t == 0:
        raise PacxError(
            f"ecg_decimate {factor}: give an integer from 1 to {ecg.shape[0]}"
        )
    return ecg[: t * factor].reshape(t, factor, -1).mean(axis=1, dtype=np.float32)


def check(
    ecg: np.ndarray,
    name: str = "ECG",
    lead_order: str = "standard",
    fs: float = 500.0,
) -> None:
    """PacxError for a wrong shape, NaN or infinite samples, or a constant lead."""
    ecg = np.asarray(ecg)
    shortest = int(0.4 * fs) + 1
    if ecg.ndim != 2 or ecg.shape[1] != 12 or ecg.shape[0] < shortest:
        raise PacxError(
            f"{name}: ECG of shape {ecg.shape}; it must be (samples, 12 leads) with "
            f"at least {shortest} samples"
        )
    names = [LEADS[i] for i in LEAD_ORDERS[lead_order]]
    finite = np.isfinite(ecg).all(axis=0)
    if not finite.all():
        raise PacxError(
            f"{name}: ECG with NaN or infinite samples in lead(s) "
            f"{_named(names, ~finite)}; remove the record"
        )
    flat = ecg.min(axis=0) == ecg.max(axis=0)
    if flat.any():
        raise PacxError(
            f"{name}: ECG with flat lead(s) {_named(names, flat)}; remove the record"
        )


def _named(names: list[str], which: np.ndarray) -> str:
    return ", ".join(lead for lead, bad in zip(names, which, strict=True) if bad)


@functools.lru_cache(maxsize=8)
def _filters(fs: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    import scipy.signal

    notch = scipy.signal.iirnotch(50.0, 30.0, fs)
    band = scipy.signal.butter(4, [0.67, 40.0], btype="bandpass", fs=fs)
    return notch, band
