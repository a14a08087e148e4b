"""The ECG chain of ECGFounder: notch, band-pass, baseline removal, z-score.

Source: ECGFounder's util.py and dataset.py, and PaCX's ecg_features_extraction
notebook. The chain does not change when a record is
scaled or shifted, so records in mV and records scaled to [-1, 1] give the same
result. The 50 Hz notch follows the source; where mains are at 60 Hz it changes
nothing, for the band ends at 40 Hz. Letters: t samples, 12 leads.
"""

from __future__ import annotations

import fractions
import functools
import math

import numpy as np

from pacx_jax.errors import PacxError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# MIMIC-IV-ECG writes aVF before aVL.
LEAD_ORDERS = {
    "standard": tuple(range(12)),
    "mimic": (0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11),
}

FS = 500  # Hz, of the chain's output
WINDOW = 10 * FS  # samples, what ECGFounder was trained on
RATES = (100, 10_000)  # Hz: the band ends at 40, and more is a header's mistake
LONGEST = 2**24  # samples: nine hours at 500 Hz; what says more is hostile
SMALLEST = 1e-6  # deviation after filtering: in volts it is 1e-4, and 1e-8 is added
LARGEST = 1e30  # of a sample, in any unit: filters overflow near 1e308


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
      PacxError: a wrong shape, a lead that is constant, samples that are NaN,
        infinite or beyond LARGEST, or a record with next to no signal.
    """
    # Here, for SciPy takes seconds to import and most stages read no ECG.
    import scipy.signal

    order = lead_indices(lead_order)
    check(ecg_mv, name, lead_order, fs)
    x = np.ascontiguousarray(np.asarray(ecg_mv).T, dtype=np.float64)[order]
    for b, a in filters(float(fs)):
        x = scipy.signal.filtfilt(b, a, x, axis=-1)
    x = x - baseline(x, fs)
    deviation = x.std()
    if deviation < SMALLEST:
        raise PacxError(
            f"{name}: ECG of deviation {deviation:.1e}; it must be at least "
            f"{SMALLEST:g}: give mV, or remove the record"
        )
    x = (x - x.mean()) / (deviation + 1e-8)
    return np.ascontiguousarray(x.T, dtype=np.float32)


def baseline(x: np.ndarray, fs: float) -> np.ndarray:
    """The running median of 0.4 s of (12, t), as scipy.signal.medfilt's: zeros pad."""
    import scipy.ndimage

    kernel = int(0.4 * fs) + 1
    kernel += 1 - kernel % 2
    # One lead at a time, for SciPy's fast running median is the one of one-dimensional
    # arrays.
    return np.stack(
        [scipy.ndimage.median_filter(lead, kernel, mode="constant") for lead in x]
    )


def windows(
    ecg_mv: np.ndarray,
    fs: float = FS,
    which: str = "first",
    pad_short: bool = False,
    name: str = "ECG",
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a record into windows of 10 s, each preprocessed on its own at 500 Hz.

    A window is cut at the record's own rate, then resampled, then `preprocess`ed, so
    it does not depend on what lies outside of it. What is left after the last whole
    window is not used.

    Args:
      ecg_mv: (t, 12) in standard lead order.
      fs: its sampling rate in Hz.
      which: "first": the first 10 s, as ECGFounder takes them. "all": all windows
        from the start that do not overlap.
      pad_short: a shorter record is preprocessed as it is, and zeros are appended to
        the result. Without it a shorter record is an error.
      name: what messages call the record.

    Returns:
      float32 (n, 5000, 12), and their starts in seconds (n,).

    Raises:
      PacxError: a record shorter than 10 s, or one that `preprocess` refuses.
    """
    if which not in ("first", "all"):
        raise PacxError(f"windows {which!r}: give 'first' or 'all'")
    ecg_mv = np.asarray(ecg_mv)
    if ecg_mv.ndim != 2:
        check(ecg_mv, name, fs=fs)
    count = count_windows(len(ecg_mv), fs, name)
    if not count and not pad_short:
        raise PacxError(f"{_too_short(name, len(ecg_mv), fs)}, or --pad_short")
    out = []
    for i in range(1 if which == "first" else max(count, 1)):
        label = f"{name} at {10 * i} s" if i else name
        x = preprocess(cut(ecg_mv, fs, i, label, pad_short), name=label)
        out.append(np.pad(x, ((0, WINDOW - len(x)), (0, 0))))
    return np.stack(out), 10.0 * np.arange(len(out))


def count_windows(samples: int, fs: float, name: str = "ECG") -> int:
    """How many whole windows of 10 s there are in so many samples."""
    return math.ceil(samples * resampling(fs, name)) // WINDOW


def cut(
    ecg_mv: np.ndarray,
    fs: float,
    i: int,
    name: str = "ECG",
    pad_short: bool = False,
) -> np.ndarray:
    """Window i of a record (t, 12) at 500 Hz: float64 (5000, 12), not preprocessed.

    It is cut at the record's own rate, then resampled. PacxError where the record ends
    before it does, unless it is the first and `pad_short` takes what there is; and for
    NaN samples or a flat lead.
    """
    ratio = resampling(fs, name)
    if i >= count_windows(len(ecg_mv), fs, name) and not (pad_short and i == 0):
        raise PacxError(_too_short(name, len(ecg_mv), fs))
    start = math.floor(i * WINDOW / ratio)
    x = ecg_mv[start : start + math.ceil(WINDOW / ratio)]
    check(x, name, fs=fs)  # before resampling, which hides flat leads
    return resample(x, fs, name)[:WINDOW]


def _too_short(name: str, samples: int, fs: float) -> str:
    return (
        f"{name}: {samples / fs:.2f} s at {fs:g} Hz ({samples} samples); at least 10 s "
        "are needed"
    )


def resample(ecg: np.ndarray, fs: float, name: str = "ECG") -> np.ndarray:
    """Brings (t, 12) from `fs` to 500 Hz: (ceil(t * ratio), 12) float64.

    SciPy's polyphase filter with the ratio of `resampling`. The line between the first
    and the last sample is taken away and put back, so that an offset makes no steps.
    """
    import scipy.signal

    ratio = resampling(fs, name)
    ecg = np.asarray(ecg, dtype=np.float64)
    if ratio == 1:
        return ecg
    return scipy.signal.resample_poly(
        ecg, ratio.numerator, ratio.denominator, axis=0, padtype="line"
    )


def resampling(fs: float, name: str = "ECG") -> fractions.Fraction:
    """500 / fs as the nearest fraction whose denominator is at most 1000.

    Exact for all whole rates up to 1000 Hz; off by at most 0.05% of the rate, as with
    499.75 Hz.
    """
    check_rate(fs, name)
    return (FS / fractions.Fraction(fs)).limit_denominator(1000)


def check_rate(fs: float, name: str = "ECG") -> None:
    """PacxError for a rate that is no number from 100 to 10,000 Hz."""
    low, high = RATES
    if not low <= fs <= high:  # NaN too
        raise PacxError(
            f"{name}: sampling rate {fs:g} Hz; it must be from {low} to {high} Hz"
        )


def lead_indices(lead_order: str) -> list[int]:
    """Columns of a record in `lead_order`, in standard order."""
    if lead_order not in LEAD_ORDERS:
        raise PacxError(f"lead order {lead_order!r}: give one of {list(LEAD_ORDERS)}")
    return list(LEAD_ORDERS[lead_order])


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
    """PacxError for a wrong shape, samples that are no numbers, or a constant lead."""
    ecg = np.asarray(ecg)
    shortest = int(0.4 * fs) + 1
    if ecg.ndim != 2 or ecg.shape[1] != 12 or ecg.shape[0] < shortest:
        raise PacxError(
            f"{name}: ECG of shape {ecg.shape}; it must be (samples, 12 leads) with "
            f"at least {shortest} samples"
        )
    names = [LEADS[i] for i in LEAD_ORDERS[lead_order]]
    low, high = ecg.min(axis=0), ecg.max(axis=0)
    for what, bad in (
        ("with NaN or infinite samples in", ~np.isfinite(ecg).all(axis=0)),
        (f"with samples beyond {LARGEST:g} in", np.maximum(high, -low) > LARGEST),
        ("with flat", low == high),
    ):
        if bad.any():
            leads = ", ".join(lead for lead, b in zip(names, bad, strict=True) if b)
            raise PacxError(f"{name}: ECG {what} lead(s) {leads}; remove the record")


@functools.lru_cache(maxsize=8)
def filters(fs: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Coefficients (b, a) of the notch and of the band-pass at a rate in Hz."""
    import scipy.signal

    notch = scipy.signal.iirnotch(50.0, 30.0, fs)
    band = scipy.signal.butter(4, [0.67, 40.0], btype="bandpass", fs=fs)
    return notch, band
