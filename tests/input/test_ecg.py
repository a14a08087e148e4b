"""The ECG chain against SciPy's plain functions, its rate, and bad records."""

import time

import numpy as np
import pytest
import scipy.signal

from pacx_jax.input import ecg
from pacx_jax.types import PacxError


def record(seed: int = 0, t: int = 5000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        np.cumsum(rng.normal(size=(t, 12)), 0) * 0.02 + rng.normal(size=(t, 12)) * 0.1
    )


def plain_chain(ecg_mv: np.ndarray) -> np.ndarray:
    """ECGFounder's util.py, lead by lead."""
    leads = []
    for lead in ecg_mv.T.astype(np.float64):
        b, a = scipy.signal.iirnotch(50, 30, 500)
        lead = scipy.signal.filtfilt(b, a, lead)
        b, a = scipy.signal.butter(4, [0.67, 40], btype="bandpass", fs=500)
        lead = scipy.signal.filtfilt(b, a, lead)
        leads.append(lead - scipy.signal.medfilt(lead, 201))
    x = np.array(leads)
    return ((x - x.mean()) / (x.std() + 1e-8)).T


def test_chain_equals_scipys_to_1e_5():
    for seed, t in ((0, 5000), (1, 2500)):
        ours = ecg.preprocess(record(seed, t))
        assert ours.dtype == np.float32 and ours.shape == (t, 12)
        np.testing.assert_allclose(ours, plain_chain(record(seed, t)), atol=1e-5)


def test_mimic_order_swaps_avf_and_avl():
    x = record()
    mimic = x[:, [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]]
    np.testing.assert_array_equal(
        ecg.preprocess(mimic, lead_order="mimic"), ecg.preprocess(x)
    )


def test_scaling_a_record_to_its_range_changes_nothing():
    x = record()
    scaled = 2 * (x - x.min()) / (x.max() - x.min()) - 1
    np.testing.assert_allclose(
        ecg.preprocess(scaled.astype(np.float32)), ecg.preprocess(x), atol=1e-4
    )


def test_rate_is_at_least_20_records_a_second():
    x = record()
    ecg.preprocess(x)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        ecg.preprocess(x)
        best = min(best, time.perf_counter() - start)
    print(f"{1 / best:.0f} records/s")
    assert 1 / best > 20


def test_decimation_takes_means():
    x = np.arange(60, dtype=np.float32).reshape(5, 12)
    np.testing.assert_array_equal(ecg.decimate(x, 2), [x[:2].mean(0), x[2:4].mean(0)])
    assert ecg.decimate(x, 1) is x
    with pytest.raises(PacxError, match="ecg_decimate 6"):
        ecg.decimate(x, 6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.__setitem__((7, 4), np.nan), "r1: ECG with NaN.* aVL;"),
        (lambda x: x.__setitem__((7, 6), np.inf), "r1: ECG with NaN.* V1;"),
        (lambda x: x.__setitem__((slice(None), 3), 0), "r1: ECG with flat.* aVR;"),
    ],
)
def test_a_bad_lead_is_named(spoil, message):
    x = record()
    spoil(x)
    with pytest.raises(PacxError, match=message):
        ecg.preprocess(x, name="r1")


def test_leads_are_named_in_the_records_own_order():
    x = record()
    x[:, 4] = 0.5
    with pytest.raises(PacxError, match="flat lead.* aVF;"):
        ecg.preprocess(x, lead_order="mimic")


def test_wrong_shapes_and_orders_are_one_line():
    for shape in ((12, 5000), (100, 12), (5000,)):
        with pytest.raises(PacxError, match="ECG of shape"):
            ecg.preprocess(np.ones(shape))
    with pytest.raises(PacxError, match="lead order 'x'"):
        ecg.preprocess(record(), lead_order="x")
