"""The ECG chain against SciPy's plain functions, its rate, and bad records."""

import numpy as np
import pytest
import scipy.signal

from pacx_jax.errors import PacxError
from pacx_jax.input import ecg


def record(seed: int = 0, t: int = 5000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        np.cumsum(rng.normal(size=(t, 12)), 0) * 0.02 + rng.normal(size=(t, 12)) * 0.1
    )


def plain_steps(ecg_mv: np.ndarray) -> dict[str, np.ndarray]:
    """ECGFounder's util.py, lead by lead, after each of its steps."""
    steps = {"notch": [], "band": [], "baseline": []}
    for lead in ecg_mv.T.astype(np.float64):
        b, a = scipy.signal.iirnotch(50, 30, 500)
        steps["notch"].append(lead := scipy.signal.filtfilt(b, a, lead))
        b, a = scipy.signal.butter(4, [0.67, 40], btype="bandpass", fs=500)
        steps["band"].append(lead := scipy.signal.filtfilt(b, a, lead))
        steps["baseline"].append(lead - scipy.signal.medfilt(lead, 201))
    x = np.array(steps["baseline"])
    steps["z"] = (x - x.mean()) / (x.std() + 1e-8)
    return {step: np.array(leads).T for step, leads in steps.items()}


def test_chain_equals_scipys_to_1e_5():
    for seed, t in ((0, 5000), (1, 2500)):
        ours = ecg.preprocess(record(seed, t))
        assert ours.dtype == np.float32 and ours.shape == (t, 12)
        # Measured 2.3e-7, on the real records 9.3e-7: rounding to float32 alone.
        want = plain_steps(record(seed, t))["z"]
        np.testing.assert_allclose(ours, want, atol=1e-5, rtol=0)


def test_filters_have_the_published_coefficients():
    (b0, a0), (b1, a1) = ecg.filters(500.0)
    # Of ECGFounder's chain, printed to 8 digits after the point.
    band_b = [0.00210678, 0, -0.00842713, 0, 0.01264069]
    band_a = [1, -6.69982773, 19.69125383, -33.19054445, 35.11756594, -23.895107]
    want = (
        (b0, [0.98963618, -1.60126497, 0.98963618]),
        (a0, [1, -1.60126497, 0.97927235]),
        (b1, band_b + band_b[-2::-1]),
        (a1, [*band_a, 10.21295348, -2.5068563, 0.27056223]),
    )
    for ours, published in want:
        np.testing.assert_allclose(ours, published, atol=5.1e-9, rtol=0)


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


@pytest.mark.parametrize("step", ["notch", "band", "baseline"])
def test_each_step_equals_scipys(step):
    # Bound 1e-5 of millivolts. Measured: notch 0, band 0, baseline 0.
    steps = plain_steps(record())
    x = record().T
    (notch, band) = ecg.filters(500.0)
    x = scipy.signal.filtfilt(*notch, x, axis=-1)
    if step != "notch":
        x = scipy.signal.filtfilt(*band, x, axis=-1)
    if step == "baseline":
        x = x - ecg.baseline(x, 500.0)
    np.testing.assert_allclose(x.T, steps[step], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale, shift", [(0.5, 1.0), (2.0, 5.0), (1e3, -40.0)])
def test_affine_images_of_a_record_give_the_same(scale, shift):
    # Bound 1e-5. Measured 5.3e-6. In volts it is 6e-4: there the 1e-8 tells.
    np.testing.assert_allclose(
        ecg.preprocess(scale * record() + shift),
        ecg.preprocess(record()),
        atol=1e-5,
        rtol=0,
    )


def sinusoids(fs: float, seconds: float, hz: float = 7.0) -> np.ndarray:
    t = np.arange(round(seconds * fs)) / fs
    phases = np.linspace(0, np.pi, 12)
    return np.sin(2 * np.pi * hz * t[:, None] + phases) + 3.0


@pytest.mark.parametrize("fs", [100, 128, 250, 257, 360, 400, 1000, 1000 / 3, 5000])
def test_resampling_keeps_a_sinusoid(fs):
    got = ecg.resample(sinusoids(fs, 10), fs)
    want = sinusoids(500, 10)
    assert abs(len(got) - len(want)) <= 1
    n = min(len(got), len(want))
    # Away from the ends. SciPy's default filter; measured at most 2.7e-3.
    np.testing.assert_allclose(got[500 : n - 500], want[500 : n - 500], atol=5e-3)


def test_resampling_takes_the_nearest_simple_fraction():
    ratios = {500: (1, 1), 360: (25, 18), 257: (500, 257), 1000 / 3: (3, 2)}
    for fs, ratio in (ratios | {128: (125, 32), 360.0009: (25, 18)}).items():
        assert ecg.resampling(fs).as_integer_ratio() == ratio
    rates = np.random.default_rng(0).uniform(100, 10_000, 2000)
    errors = [abs(float(ecg.resampling(fs)) * fs / 500 - 1) for fs in rates]
    assert max(errors) <= 5e-4
    x = record()
    np.testing.assert_array_equal(ecg.resample(x, 500), x)


@pytest.mark.parametrize("fs", [0, -500, 99.9, 1e5, np.nan, np.inf])
def test_absurd_rates_are_one_line(fs):
    with pytest.raises(PacxError, match="r1: sampling rate .* Hz; it must be from 100"):
        ecg.windows(record(), fs, name="r1")


def test_window_is_the_chain_of_its_own_ten_seconds():
    x = record(t=12_600)
    first, starts = ecg.windows(x)
    assert first.shape == (1, 5000, 12) and starts.tolist() == [0]
    both, starts = ecg.windows(x, which="all")
    assert starts.tolist() == [0, 10] and both.dtype == np.float32
    np.testing.assert_array_equal(first[0], both[0])
    for i in range(2):
        part = x[5000 * i : 5000 * (i + 1)]
        np.testing.assert_array_equal(both[i], ecg.preprocess(part))


@pytest.mark.parametrize("fs", [100, 257, 360, 1000, 1000 / 3, 499.75, 360.0009])
def test_whole_windows_are_found_at_every_rate(fs):
    x = record(t=round(30 * fs))
    windows, _ = ecg.windows(x, fs, which="all")
    assert windows.shape == (3, 5000, 12)
    np.testing.assert_array_equal(windows[:1], ecg.windows(x, fs)[0])
    short = x[: int(9.9 * fs)]
    with pytest.raises(PacxError, match="r1: 9.* s at .* Hz .*at least 10 s"):
        ecg.windows(short, fs, name="r1")


def test_short_record_is_padded_with_zeros_after_the_chain_on_request():
    x = record(t=3000)
    windows, _ = ecg.windows(x, pad_short=True)
    np.testing.assert_array_equal(windows[0, :3000], ecg.preprocess(x))
    assert not windows[0, 3000:].any()


def test_bad_window_is_named_by_its_start():
    x = record(t=10_000)
    x[7000, 0] = np.nan
    assert len(ecg.windows(x)[0]) == 1  # what is not used does not matter
    with pytest.raises(PacxError, match="r1 at 10 s: ECG with NaN .* I;"):
        ecg.windows(x, which="all", name="r1")
    x = record(t=7200)
    x[3600:, 2] = 0.1  # resampled, it would not be quite flat
    with pytest.raises(PacxError, match="r1 at 10 s: ECG with flat lead.* III;"):
        ecg.windows(x, 360, which="all", name="r1")


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
