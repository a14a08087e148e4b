"""Reading WFDB records and arrays: what is right is read, what is unclear refused."""

import pathlib
import sys

import numpy as np
import pytest
import scipy.io

from pacx_jax.errors import PacxError
from pacx_jax.input import ecg, ecg_records
from tests.input.test_ecg import plain_steps, record

wfdb = pytest.importorskip("wfdb", reason="the extra ecg is not installed")

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared/realdata/ecg"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="no real ECGs in ../shared/realdata"
)


def write(folder, name="r1", mv=None, leads=ecg.LEADS, **more):
    """A WFDB record by the wfdb package; returns the header."""
    mv = record() if mv is None else mv
    n = mv.shape[1]
    fields = {
        "fs": 500,
        "units": ["mV"] * n,
        "fmt": ["16"] * n,
        "adc_gain": [1000.0] * n,
        "baseline": [0] * n,
        "comments": ["Age: 74", " Sex: Male", "Dx: AF,RBBB"],
    }
    fields |= more
    if "d_signal" not in fields:
        fields["p_signal"] = mv
    wfdb.wrsamp(name, sig_name=list(leads), write_dir=str(folder), **fields)
    return folder / f"{name}.hea"


def refused(path, **kwargs) -> str:
    """The one line that reading a file gives; it names the file."""
    with pytest.raises(PacxError) as caught:
        list(ecg_records.read(path, **kwargs))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("fmt, gain", [("16", 1000), ("212", 200), ("80", 20),
                                       ("24", 1e5), ("32", 1e6)])  # fmt: skip
def test_every_format_is_read_to_its_quantisation(tmp_path, fmt, gain):
    mv = np.clip(record(), -5, 5)
    path = write(tmp_path, mv=mv, fmt=[fmt] * 12, adc_gain=[float(gain)] * 12)
    (got,) = ecg_records.read(path)
    assert got.ecg.shape == (5000, 12) and got.fs == 500
    np.testing.assert_allclose(got.ecg, mv, atol=0.5001 / gain, rtol=0)
    (again,) = ecg_records.read(path.with_suffix(".dat"))
    np.testing.assert_array_equal(again.ecg, got.ecg)


def test_comments_are_fields(tmp_path):
    got = ecg_records.read_wfdb(write(tmp_path))
    assert got.comments == {"Age": "74", "Sex": "Male", "Dx": "AF,RBBB"}


def test_leads_are_found_by_name_in_any_order_and_spelling(tmp_path):
    mv = record()
    order = [6, 5, 4, 0, 1, 2, 3, 11, 10, 9, 8, 7]
    names = ["v1", "AVF", "avl", "Lead I", "ii", "DIII", "MDC_ECG_LEAD_aVR"]
    names += ["V6", "v5", "ECG V4", "V3", "V2"]
    both = np.concatenate([mv[:, :1] * 2, mv[:, order]], axis=1)
    for got in (
        ecg_records.read_wfdb(write(tmp_path, "r1", mv[:, order], names)),
        ecg_records.read_wfdb(write(tmp_path, "r2", both, ["-aVR", *names])),
    ):
        np.testing.assert_allclose(got.ecg, mv, atol=6e-4)


def test_units_gains_and_baselines_become_millivolts(tmp_path):
    mv = record()
    units = ["mV", "uV", "V", "MV"] * 3
    scale = np.array([1, 1e3, 1e-3, 1] * 3)
    path = write(
        tmp_path,
        mv=mv * scale,
        units=units,
        adc_gain=list(1000 / scale),
        baseline=[100 * i for i in range(12)],
    )
    np.testing.assert_allclose(ecg_records.read_wfdb(path).ecg, mv, atol=6e-4)


def test_missing_sample_is_nan_and_the_chain_names_its_lead(tmp_path):
    digital = np.round(record() * 1000).astype(np.int64)
    digital[17, 3] = -32768
    got = ecg_records.read_wfdb(write(tmp_path, d_signal=digital))
    assert np.argwhere(np.isnan(got.ecg)).tolist() == [[17, 3]]
    with pytest.raises(PacxError, match="r1.hea: ECG with NaN .* aVR;"):
        ecg.windows(got.ecg, got.fs, name=got.name)


def test_lead_that_is_missing_doubled_or_inverted_is_named(tmp_path):
    mv = record()
    cases = (
        (mv[:, 1:], ecg.LEADS[1:], "no lead(s) I among the signals II, III"),
        (mv, ["-aVR" if n == "aVR" else n for n in ecg.LEADS], "no lead(s) aVR"),
        (mv, [f"ch{i}" for i in range(12)], "no lead(s) I, II, III"),
        (mv[:, [*range(12), 0]], [*ecg.LEADS, "i"], "I twice"),
    )
    for i, (x, names, message) in enumerate(cases):
        assert message in refused(write(tmp_path, f"r{i}", x, names))


# What is changed in a good header's text, and what is said of it.
SPOILT = {
    "no rate": ((" 500 5000", ""), "first line must be"),
    "rate of letters": ((" 500 ", " fast "), "first line must be"),
    "rate 0": ((" 500 ", " 0 "), "sampling rate 0 Hz; it must be from 100 to 10000"),
    "negative rate": ((" 500 ", " -500 "), "sampling rate -500 Hz"),
    "huge rate": ((" 500 ", " 1e9 "), "sampling rate 1e+09 Hz"),
    "no samples": ((" 5000", " 0"), "first line must be"),
    "negative samples": ((" 5000", " -3"), "first line must be"),
    "too many samples": ((" 5000", " 5001"), "has 120000 bytes, but 5001 samples need"),
    "absurd samples": ((" 5000", " 99999999999"), "more than 16777216 are not read"),
    "fewer samples": ((" 5000", " 4999"), "checksum of lead I"),
    "too many signals": (("r1 12", "r1 13"), "12 signal lines, but the first"),
    "absurd signals": (("r1 12", "r1 99999999999"), "12 signal lines, but"),
    "unit": (("/mV", "/mmHg"), "lead I in 'mmHg'; it must be mV, uV or V"),
    "no gain": (("1000.0(0)/mV", "gain"), "has no gain"),
    "gain 0": (("1000.0(0)/mV", "0(0)/mV"), "gain 0(0)/mV: not calibrated"),
    "gain 1e999": (("1000.0(0)/mV", "1e999(0)/mV"), "gain 1e999(0)/mV: not calibrated"),
    "other folder": (("r1.dat", "../r1.dat"), "is no plain file name"),
    "absolute": (("r1.dat", "/etc/passwd"), "is no plain file name"),
    "address": (("r1.dat", "s3://bucket/r1.dat"), "is no plain file name"),
    "no file": (("r1.dat", "r2.dat"), "signal file r2.dat is not there"),
    "format": ((".dat 16", ".dat 516"), "in format 516; it must be one of"),
    "unknown format": ((".dat 16", ".dat x"), "not a readable WFDB record"),
    "frames": ((".dat 16", ".dat 16x4"), "several samples a frame"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_header_that_is_wrong_is_one_line(tmp_path, case):
    (old, new), message = SPOILT[case]
    path = write(tmp_path)
    text = path.read_text()
    assert old in text
    count = 1 if "r1 12" in old or old.startswith(" 5") else -1
    path.write_text(text.replace(old, new, count))
    assert message in refused(path)


def test_every_truncation_of_a_header_is_refused(tmp_path):
    path = write(tmp_path, comments=[])
    text = path.read_bytes().rstrip()
    for cut in range(0, len(text) - 3, 5):
        path.write_bytes(text[:cut])
        refused(path)


def test_signal_file_that_is_cut_or_changed_is_refused(tmp_path):
    path = write(tmp_path)
    data = path.with_suffix(".dat")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    assert "is truncated" in refused(path)
    data.write_bytes(whole[:2400] + b"\x00\x01" + whole[2402:])
    assert "checksum of lead I is" in refused(path)
    data.unlink()
    assert "r1.dat is not there" in refused(path)


def test_random_bytes_are_refused_as_any_kind_of_file(tmp_path):
    rng = np.random.default_rng(0)
    good = write(tmp_path).read_bytes()
    for i, suffix in enumerate([".hea", ".npy", ".mat", ".hea", ".xyz"]):
        path = tmp_path / f"bad{i}{suffix}"
        path.write_bytes(rng.bytes(3000))
        refused(path)
    path = tmp_path / "r1.hea"
    for _ in range(200):  # a byte changed: refused in one line, or read whole
        spoilt = bytearray(good)
        spoilt[rng.integers(len(good))] = rng.integers(256)
        path.write_bytes(spoilt)
        try:
            (got,) = ecg_records.read(path)
            assert got.ecg.shape == (5000, 12)
        except PacxError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_without_wfdb_the_line_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, "wfdb", None)
    assert "pip install -e '.[ecg]'" in refused(path)


def test_arrays_are_read_in_either_orientation(tmp_path):
    x = record()
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", x.T)
    np.save(tmp_path / "c.npy", np.stack([x, 2 * x]))
    np.save(tmp_path / "d.npy", np.stack([x, 2 * x])[:, None])
    for name in ("a.npy", "b.npy"):
        (got,) = ecg_records.read(tmp_path / name, fs=400)
        assert got.fs == 400 and got.name.endswith(name)
        np.testing.assert_array_equal(got.ecg, x)
    for name in ("c.npy", "d.npy"):
        got = list(ecg_records.read(tmp_path / name))
        assert [r.name[-8:] for r in got] == [f"{name}[{i}]" for i in range(2)]
        np.testing.assert_array_equal(got[1].ecg, 2 * x)
    (got,) = ecg_records.read(tmp_path / "a.npy", lead_order="mimic")
    np.testing.assert_array_equal(got.ecg[:, [4, 5]], x[:, [5, 4]])


def test_arrays_that_are_no_ecgs_are_one_line(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    assert "not a readable .npy" in refused(tmp_path / "object.npy")
    np.save(tmp_path / "cut.npy", record())
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:4000])
    assert "not a readable .npy" in refused(tmp_path / "cut.npy")
    for shape in ((5000,), (5000, 11), (12, 12), (2, 12, 5000), (2, 3, 5000, 12), ()):
        np.save(tmp_path / "shape.npy", np.zeros(shape))
        assert "it must be (samples, 12 leads)" in refused(tmp_path / "shape.npy")
    np.save(tmp_path / "text.npy", np.full((5000, 12), "1"))
    assert "it must hold real numbers" in refused(tmp_path / "text.npy")
    np.save(tmp_path / "good.npy", record())
    assert "sampling rate nan Hz" in refused(tmp_path / "good.npy", fs=np.nan)


def test_a_mat_file_is_read_by_its_header_and_refused_without(tmp_path):
    path = write(tmp_path)
    samples = np.fromfile(path.with_suffix(".dat"), "<i2").reshape(-1, 12)
    (want,) = ecg_records.read(path)
    # As PhysioNet's challenges have them: version 4, whose header takes 24 bytes.
    mat = path.with_suffix(".mat")
    scipy.io.savemat(mat, {"val": samples.T}, format="4")
    header = path.read_text()
    path.write_text(header.replace(f"{path.stem}.dat 16 ", f"{mat.name} 16+24 "))
    path.with_suffix(".dat").unlink()
    for given in (path, mat):
        (got,) = ecg_records.read(given)
        np.testing.assert_array_equal(got.ecg, want.ecg)
    path.unlink()
    assert "without a WFDB header (r1.hea); convert" in refused(mat)


def test_find_takes_a_header_for_its_signal_file(tmp_path):
    write(tmp_path)
    (tmp_path / "sub" / "__MACOSX").mkdir(parents=True)
    for name in (
        "r1.mat",
        "sub/b.npy",
        "sub/c.MAT",
        "sub/.d.npy",
        "sub/__MACOSX/e.npy",
    ):
        (tmp_path / name).write_bytes(b"")
    found = [p.relative_to(tmp_path).as_posix() for p in ecg_records.find(tmp_path)]
    assert found == ["r1.hea", "sub/b.npy", "sub/c.MAT"]
    assert ecg_records.find(tmp_path / "r1") == [tmp_path / "r1.hea"]
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "holds no .hea"), ("nowhere", "no such file")):
        with pytest.raises(PacxError, match=message):
            ecg_records.find(tmp_path / name)


@pytest.fixture(scope="module")
def real():
    return [r for p in ecg_records.find(REAL) for r in ecg_records.read(p)]


@needs_real
def test_all_real_records_are_read_with_their_leads_in_place(real):
    assert len(real) == 70
    for r in real:
        x = r.ecg
        assert r.fs == 500 and len(x) >= 5000 and np.isfinite(x).all()
        assert set(r.comments) >= {"Age", "Sex", "Dx"}
        # Stored in steps of 1 uV: measured 1.0 uV and 1.5 uV at most.
        i, ii, iii, avr, avl, avf = x.T[:6]
        assert np.abs(i + iii - ii).max() < 1.01e-3, r.name
        for lead, want in ((avr, -(i + ii)), (avl, i - iii), (avf, ii + iii)):
            assert np.abs(lead - want / 2).max() < 1.51e-3, r.name


@needs_real
def test_chain_of_real_records_equals_scipys(real):
    # Bound 1e-5. Measured 9.3e-7 over the first ten seconds of all 70.
    for r in real[::5]:
        (got,), _ = ecg.windows(r.ecg, r.fs, name=r.name)
        want = plain_steps(r.ecg[:5000])["z"]
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


@needs_real
def test_all_windows_of_real_records_are_finite(real):
    total = 0
    for r in real:
        windows, starts = ecg.windows(r.ecg, r.fs, "all", name=r.name)
        assert np.isfinite(windows).all() and len(windows) == len(r.ecg) // 5000
        assert abs(windows.std(axis=(1, 2)) - 1).max() < 1e-3
        total += len(starts)
    assert total == 96
