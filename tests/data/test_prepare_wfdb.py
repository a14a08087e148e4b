"""data/prepare.py wfdb, on small trees of records and on real ones."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from pacx_jax import main
from pacx_jax.input import ecg, ecg_records
from pacx_jax.input import prepared as manifests
from tests import tiny
from tests.data.prepared_sets import read

pytest.importorskip("wfdb", reason="the package wfdb is not installed")
ROOT = pathlib.Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared/realdata/ecg"


def wave(seed: int, samples: int) -> np.ndarray:
    """int16 (samples, 12), smooth enough to survive resampling."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.integers(-9, 10, (samples, 12)), 0)
    return walk.astype(np.int16)


def write(path, signal, comments=(), fs=500, leads=ecg.LEADS, gain="1000/mV"):
    """Writes a record of format 16 as PhysioNet's challenges lay it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".dat").write_bytes(signal.astype("<i2").tobytes())
    lines = [f"{path.name} {signal.shape[1]} {fs} {len(signal)}"]
    for i, lead in enumerate(leads):
        checksum = int(signal[:, i].astype(np.int64).sum()) % 65536
        checksum -= 65536 * (checksum > 32767)
        lines.append(
            f"{path.name}.dat 16 {gain} 16 0 {signal[0, i]} {checksum} 0 {lead}"
        )
    lines += [f"#{comment}" for comment in comments]
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")


def draw(root, n=6, **kwargs):
    """n records g0/r0, g1/r1, ..., with diagnoses A, B or both."""
    for i in range(n):
        dx = "Dx: " + ("A", "B", "A, B")[i % 3]
        write(root / f"g{i % 2}/r{i}", wave(i, 5000), ["Age: 61", dx], **kwargs)
    return root


def test_records_at_500_hz_come_back_exactly_with_their_diagnoses(tmp_path, run):
    root, target = draw(tmp_path / "in"), tmp_path / "out"
    code, summary, err = run("wfdb", f"--source={root}", f"--target={target}")
    assert code == 0, err
    manifest = json.loads((target / manifests.FILE).read_text())
    assert manifest["label_names"] == ["A", "B"]
    assert manifest["entries"] == ["ecg", "path", "labels"]  # no patient is known
    assert "NO PATIENTS are known" in summary["notes"][-1]
    found = read(target, by="path")
    assert len(found) == 6 and {s for s, _ in found.values()} == {"train", "val"}
    for i in range(6):
        example = found[f"g{i % 2}/r{i}.hea"][1]
        want = wave(i, 5000).astype(np.float32) * np.float32(1e-3)
        np.testing.assert_array_equal(example["ecg"], want)
        assert example["lead_order"] == "standard"
        assert example["labels"].tolist() == [[1, 0], [0, 1], [1, 1]][i % 3]


def test_other_rates_units_and_lead_orders_become_microvolts_at_500_hz(tmp_path, run):
    root, target = tmp_path / "in", tmp_path / "out"
    order = [*range(11, -1, -1)]
    slow = wave(0, 2600)
    write(
        root / "slow",
        slow[:, order],
        ["Dx: 164889003,59118001"],
        fs=250,
        leads=[ecg.LEADS[i] for i in order],
        gain="0.5/uV",
    )
    write(root / "fast", wave(1, 10_100), ["# Dx: 426783006"], fs=1000)
    code, summary, err = run("wfdb", f"--source={root}", f"--target={target}")
    assert code == 0, err
    found = read(target, by="path")
    assert list(summary["positives"]["train"]) == ["164889003", "426783006", "59118001"]
    example = found["slow.hea"][1]
    assert example["labels"].tolist() == [1, 0, 1]
    want = ecg.resample(slow[:2500] / 500.0, 250)
    np.testing.assert_allclose(example["ecg"], want, atol=0.51e-3)
    assert found["fast.hea"][1]["ecg"].shape == (5000, 12)


def test_all_windows_of_a_record_are_in_one_split(tmp_path, run):
    root, target = tmp_path / "in", tmp_path / "out"
    signals = [wave(i, 5000 * (1 + i % 3) + 700) for i in range(9)]
    for i, signal in enumerate(signals):
        write(root / f"r{i}", signal, ["Dx: A"])
    code, summary, err = run(
        "wfdb",
        f"--source={root}",
        f"--target={target}",
        "--windows=all",
        "--val_fraction=0.4",
    )
    assert code == 0, err
    assert sum(summary["counts"].values()) == 18
    of = {}
    for path, (split, example) in read(target, by="path").items():
        record, _, start = path.partition("@")
        assert of.setdefault(record, split) == split
        at = int(start.rstrip("s") or 0) * 500
        want = signals[int(record[1])][at : at + 5000].astype(np.float32)
        np.testing.assert_array_equal(example["ecg"], want * np.float32(1e-3))
    assert len(set(of.values())) == 2


def test_patients_of_the_headers_and_copies_of_a_recording_stay_together(tmp_path, run):
    for name, comment in (("named", True), ("copies", False)):
        root, target = tmp_path / name, tmp_path / f"{name}_out"
        for i in range(12):
            patient = [f"subject_id: p{i // 3}"] if comment else []
            write(root / f"r{i}", wave(i if comment else i // 3, 5000), patient)
        code, summary, err = run(
            "wfdb", f"--source={root}", f"--target={target}", "--val_fraction=0.5"
        )
        assert code == 0, err
        of = {}
        for path, (split, example) in read(target, by="path").items():
            number = int(re.search(r"r(\d+)", path)[1])
            assert of.setdefault(number // 3, split) == split
            assert example.get("patient_id") == (f"p{number // 3}" if comment else None)
        assert set(of.values()) == {"train", "val"}
    assert "12 records are copies" in " ".join(summary["notes"])


def test_a_csv_gives_labels_patients_and_splits(tmp_path, run):
    root, target = draw(tmp_path / "in"), tmp_path / "out"
    rows = [
        f"other/g{i % 2}/r{i}.hea,p{i // 2},{i % 2},{'val' if i > 3 else 'train'}"
        for i in (4, 0, 5, 1)
    ]
    (root / "labels.csv").write_text("\n".join(["record,patient_id,VT,split", *rows]))
    argv = ("wfdb", f"--source={root}")
    code, _, err = run(*argv, f"--target={target}")
    assert code == 0, err
    found = read(target, by="path")
    assert {p: s for p, (s, _) in found.items()} == {
        "g0/r4.hea": "val",
        "g1/r5.hea": "val",
        "g0/r0.hea": "train",
        "g1/r1.hea": "train",
    }
    assert found["g1/r5.hea"][1]["labels"].tolist() == [1]
    assert found["g1/r5.hea"][1]["patient_id"] == "p2"
    # Diagnoses of the headers by name, with the CSV's patients.
    code, _, err = run(*argv, f"--target={tmp_path / 'dx'}", "--label_columns=B")
    assert code == 0, err
    found = read(tmp_path / "dx", by="path")
    assert found["g1/r5.hea"][1]["labels"].tolist() == [1]
    assert found["g0/r0.hea"][1]["labels"].tolist() == [0]


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path, run):
    root, target = draw(tmp_path / "in", n=12), tmp_path / "out"
    flat, nan = wave(0, 5000), wave(1, 5000)
    flat[:, 3] = 0
    nan[77, 4] = -32768  # the format's mark of a missing sample
    write(root / "bad/flat", flat)
    write(root / "bad/nan", nan)
    write(root / "bad/short", wave(2, 4999))
    write(root / "bad/leads", wave(3, 5000)[:, :11], leads=ecg.LEADS[:11])
    write(root / "bad/cut", wave(4, 5000))
    (root / "bad/cut.dat").write_bytes(b"\0" * 100)
    write(root / "bad/lost", wave(5, 5000))
    (root / "bad/lost.dat").unlink()
    (root / "bad/binary.hea").write_bytes(bytes(range(256)))
    write(root / "bad/high", wave(6, 5000), gain="10/mV")
    argv = ("wfdb", f"--source={root}", f"--target={target}", "--val_fraction=0.3")
    code, _, err = run(*argv)
    assert code == 2 and "more than --max_bad_share" in err
    code, summary, err = run(*argv, "--max_bad_share=0.9")
    assert code == 0, err
    assert sum(summary["counts"].values()) == 12
    lines = (target / "quarantine.jsonl").read_text().splitlines()
    reasons = {
        pathlib.Path(x["name"]).stem: x["reason"] for x in map(json.loads, lines)
    }
    words = {
        "flat": "flat lead.s. aVR",
        "nan": "NaN or infinite samples in lead.s. aVL",
        "short": "at least 10 s are needed",
        "leads": "no lead.s. V6",
        "cut": "truncated",
        "lost": "lost.dat is not there",
        "binary": "not a WFDB header",
        "high": "mV, more than the 32.767",
    }
    assert reasons.keys() == words.keys()
    for name, word in words.items():
        assert re.search(word, reasons[name]), reasons[name]


def test_a_record_without_diagnoses_has_missing_labels(tmp_path, run):
    root, target = draw(tmp_path / "in"), tmp_path / "out"
    write(root / "x", wave(9, 5000), ["Dx: Unknown"])
    code, summary, _ = run("wfdb", f"--source={root}", f"--target={target}")
    assert code == 0 and summary["report"]["without_labels"] == 1
    assert np.isnan(read(target, by="path")["x.hea"][1]["labels"]).all()


def _all_bad(root):
    for i in range(6):
        (root / f"g{i % 2}/r{i}.dat").unlink()


def _one_patient(root):
    write(root / "x", wave(9, 5000), ["subject_id: 7"])


def _csv(text):
    return lambda root: (root / "labels.csv").write_text(text)


BAD = {
    "no source": (lambda r: r.rename(r.with_name("y")), (), "no such folder"),
    "nothing": (
        lambda r: [p.unlink() for p in r.rglob("*.*")],
        (),
        "holds no .hea or .npy files",
    ),
    "no headers": (
        lambda r: [
            p.rename(p.with_suffix(".mat") if p.suffix == ".dat" else p.with_suffix(""))
            for p in sorted(r.rglob("*.*"))
        ],
        (),
        r"no WFDB headers \(.hea\)",
    ),
    "no record readable": (_all_bad, (), "unreadable samples of .*the first: "),
    "some patients": (_one_patient, (), "names no patient, as 6 of 7 headers"),
    "no such label": (
        lambda r: None,
        ("--label_columns=A,Z",),
        "--label_columns Z in no header's #Dx, which have A, B",
    ),
    "no csv": (lambda r: None, ("--csv=x.csv",), "x.csv: no such CSV file"),
    "no record column": (_csv("name,AF\nr0,1\n"), (), "no column of records"),
    "lost record": (
        _csv("record,AF\ng0/r0,1\ng0/r99,0\n"),
        (),
        "1 rows name files that are not under",
    ),
    "blank patient": (
        _csv("record,patient_id,AF\ng0/r0,,1\n"),
        (),
        "row 2: no known id",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, run, case):
    spoil, flags, message = BAD[case]
    root = draw(tmp_path / "in")
    spoil(root)
    code, _, err = run("wfdb", f"--source={root}", f"--target={tmp_path / 'o'}", *flags)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in err
    assert re.search(message, errors[0]), errors[0]
    assert not (tmp_path / "o").exists()


def test_the_script_finds_the_package_wfdb_beside_its_own_folder(tmp_path):
    root = draw(tmp_path / "in", n=2)
    done = subprocess.run(
        [sys.executable, ROOT / "data/prepare.py", "wfdb", f"--source={root}"]
        + [f"--target={tmp_path / 'out'}", "--workers=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_two_steps_train_the_ecg_encoder(tmp_path, run):
    root, target = draw(tmp_path / "in"), tmp_path / "out"
    run("wfdb", f"--source={root}", f"--target={target}")
    config = tiny.config(
        "ecg_net1d",
        "runlocal",
        data__path=str(target),
        data__simulated=False,
        data__ecg_decimate=10,
        model__base_filters=16,
        model__filters=(16, 16),
        model__blocks=(1, 1),
        num_devices=1,
        global_batch_size=4,
        total_steps=2,
        log_every=1,
        eval_every=2,
        save_every=2,
        best="",
        export="latest",
    )
    main.run(config, str(tmp_path / "run"))
    done = json.loads((tmp_path / "run/done.json").read_text())
    assert done["step"] == 2 and np.isfinite(done["metrics"]["val/loss"])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_real_records_are_stored_within_half_a_microvolt(tmp_path, run):
    target = tmp_path / "out"
    code, summary, err = run(
        "wfdb", f"--source={REAL}", f"--target={target}", "--windows=all"
    )
    assert code == 0, err
    assert sum(summary["counts"].values()) == 96
    assert sum(p["AF"] for p in summary["positives"].values()) >= 15
    found = read(target, by="path")
    for path in ecg_records.find(REAL)[:5]:
        record = ecg_records.read_wfdb(path).ecg
        example = found[path.name][1]
        np.testing.assert_allclose(example["ecg"], record[:5000], atol=0.51e-3)
