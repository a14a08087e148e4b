"""The simulated cohort: determinism, physiology, and the published file layouts."""

import csv
import dataclasses
import filecmp
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from data.cohort import ecg, generate, labs, latents, reports, xray
from data.mimic_vitals import stays

_SIZES = [
    "--seed=3",
    "--pretrain=24",
    "--pretrain_valid=4",
    "--symile=100",
    "--symile_val=10",
    "--symile_test=10",
    "--symile_size=32",
    "--ecg=30",
    "--probe_train=16",
    "--probe_val=6",
    "--probe_test=8",
    "--masks=15",
]
_SCRIPT = pathlib.Path(generate.__file__)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    target = tmp_path_factory.mktemp("cohort") / "one"
    assert generate.main([f"--target={target}", *_SIZES]) == 0
    return target


@pytest.fixture(scope="module")
def people():
    keys = (latents.Key(0, "probe_train", p) for p in range(1500))
    return [latents.study(key) for key in keys]


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _files(root):
    return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())


def _changed(study, **causes):
    who = dataclasses.replace(study.patient, **causes)
    return dataclasses.replace(study, patient=who)


def test_two_workers_write_the_same_bytes(cohort, tmp_path):
    argv = [f"--target={tmp_path / 'two'}", *_SIZES, "--workers=2"]
    subprocess.run([sys.executable, _SCRIPT, *argv], check=True, capture_output=True)
    files = _files(cohort)
    assert files == _files(tmp_path / "two")
    names = [str(f) for f in files]
    _, differ, odd = filecmp.cmpfiles(cohort, tmp_path / "two", names, shallow=False)
    assert not differ and not odd


def test_a_study_depends_on_seed_stream_patient_and_study_alone():
    key = latents.Key(5, "probe_test", 7, 1)
    first = xray.render(latents.study(key)), ecg.record(latents.study(key))[0]
    latents.patient.cache_clear()
    xray.render(latents.study(latents.Key(5, "probe_test", 8)))
    again = xray.render(latents.study(key)), ecg.record(latents.study(key))[0]
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    for other in (
        dataclasses.replace(key, seed=6),
        dataclasses.replace(key, stream="probe_val"),
        dataclasses.replace(key, patient=8),
        dataclasses.replace(key, study=0),
    ):
        assert not np.array_equal(first[1], ecg.record(latents.study(other))[0])


def test_rerun_skips_and_other_parameters_are_refused(cohort, capsys):
    before = (cohort / "chexpert/train.csv").stat().st_mtime_ns
    assert generate.main([f"--target={cohort}", *_SIZES]) == 0
    assert (cohort / "chexpert/train.csv").stat().st_mtime_ns == before
    capsys.readouterr()
    assert generate.main([f"--target={cohort}", *_SIZES, "--seed=4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "seed 3 there, 4 asked" in error


@pytest.mark.parametrize(
    "argv",
    [
        ["--pretrain=-1"],
        ["--pretrain=many"],
        ["--symile=50"],
        ["--symile=0", "--probe_test=5"],
        ["--masks=100000"],
        ["--workers=0"],
        ["--colour=red"],
        ["--symile_test=3"],
    ],
)
def test_bad_arguments_give_one_line(argv, tmp_path, capsys):
    try:
        status = generate.main([f"--target={tmp_path / 'x'}", *argv])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "ecg").mkdir()
    (tmp_path / "ecg/mine.txt").write_text("keep")
    assert generate.main([f"--target={tmp_path}", *_SIZES]) == 2
    assert "was not written by this generator" in capsys.readouterr().err
    assert _files(tmp_path) == [pathlib.Path("ecg/mine.txt")]


def test_limb_leads_obey_einthoven_and_goldberger(people):
    for study in people[:5]:
        x = ecg.record(study)[0]
        assert x.shape == (5000, 12) and x.dtype == np.float32
        i, ii, iii, avr, avl, avf = x[:, :6].T
        np.testing.assert_allclose(ii, i + iii, atol=1e-6)
        np.testing.assert_allclose(avr, -(i + ii) / 2, atol=1e-6)
        np.testing.assert_allclose(avl, (i - iii) / 2, atol=1e-6)
        np.testing.assert_allclose(avf, (ii + iii) / 2, atol=1e-6)


def test_mimic_order_swaps_avl_and_avf():
    assert ecg.LEADS[3:6] == ("aVR", "aVL", "aVF")
    x = np.arange(12)[None]
    assert ecg.to_mimic(x)[0].tolist() == [0, 1, 2, 3, 5, 4, *range(6, 12)]


def test_lv_mass_raises_voltage_and_dilation_widens_the_heart(people):
    narrow = [s for s in people if s.patient.block == "none" and not s.af][:12]

    def voltage(s):
        x = ecg.record(s)[0]
        return np.ptp(x[:, 10]) + np.ptp(x[:, 6])

    for s in narrow:
        assert voltage(_changed(s, lv_mass=2.0)) > voltage(_changed(s, lv_mass=-1.0))
        thin = xray.heart_share(_changed(s, lv_mass=-1.0, dilation=0.0))
        assert xray.heart_share(_changed(s, lv_mass=2.0, dilation=0.0)) > thin
        assert xray.heart_share(_changed(s, lv_mass=-1.0, dilation=2.0)) > thin


def test_fluid_whitens_the_lungs(people):
    def lung(s):
        film, mask = xray.render(s, mask=True)
        return film[mask > 0].mean() / film.max()

    dry = [dataclasses.replace(s, fluid=-1.0, effusion=(0, 0)) for s in people[:12]]
    wet = [dataclasses.replace(s, fluid=2.5, effusion=(0.3, 0.3)) for s in people[:12]]
    assert np.mean([lung(s) for s in wet]) > 1.1 * np.mean([lung(s) for s in dry])


def test_the_heart_is_light_and_between_the_lungs(people):
    for s in people[:20]:
        film, lung = xray.render(s, mask=True)
        heart = xray.heart_mask(s)
        assert heart.shape == film.shape and set(np.unique(heart)) == {0, 255}
        assert np.mean((heart > 0) & (lung > 0)) < 0.005
        assert film[heart > 0].mean() > film[lung > 0].mean()
        share = (heart > 0).sum() / ((heart > 0) | (lung > 0)).sum()
        # The share that readers measure counts lung behind the great vessels too.
        assert 0.8 < share / xray.heart_share(s) < 1.6


def test_mask_is_dark_lung_on_both_sides(people):
    for s in people[:6]:
        film, mask = xray.render(s, mask=True)
        assert film.shape == mask.shape and film.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        assert 0.08 < (mask > 0).mean() < 0.5
        ring = cv2.dilate(mask, np.ones((25, 25))) > mask
        assert film[mask > 0].mean() < film[ring].mean()
        assert cv2.connectedComponentsWithStats(mask)[2][1:, 4].max() < 0.8 * (
            np.count_nonzero(mask)
        )


def test_prevalences_and_missingness_are_in_range(people):
    for name in latents.LABELS:
        assert 0.12 < np.mean([s.labels[name] for s in people]) < 0.30, name
    drawn = np.array([labs.values(s) for s in people[:600]])
    assert 0.36 < np.isnan(drawn).mean() < 0.46
    assert not np.isnan(drawn).all(1).any()


def test_labs_follow_their_causes_and_stay_consistent(people):
    v = np.array([labs.values(s) for s in people])
    column = {item: v[:, i] for i, item in enumerate(labs.ITEM_IDS)}

    def rank(item, cause):
        x = column[item]
        ok = ~np.isnan(x)
        return np.corrcoef(np.argsort(np.argsort(x[ok])), np.array(cause)[ok])[0, 1]

    assert rank(50912, [s.patient.renal for s in people]) > 0.6
    assert rank(51222, [s.anaemia for s in people]) < -0.6
    assert rank(51301, [s.inflammation for s in people]) > 0.4
    gap = column[50983] - column[50902] - column[50882]
    np.testing.assert_array_equal(np.nan_to_num(gap - column[50868]), 0)


def test_percentiles_are_the_right_continuous_ecdf():
    train = np.tile(np.array([[1.0], [2.0], [2.0], [4.0], [np.nan]]), (1, 50))
    fit = labs.Percentiles(train)
    for x, want in ((0.5, 0), (1, 0.25), (2, 0.75), (3.9, 0.75), (4, 1), (9, 1)):
        rank, seen = fit(np.full(50, x))
        assert rank.dtype == np.float32 and (rank == want).all() and seen.all()
    rank, seen = fit(np.full(50, np.nan))
    np.testing.assert_allclose(rank, (0.25 + 0.75 + 0.75 + 1) / 4)
    assert not seen.any()


def test_chexpert_layout(cohort):
    rows = _rows(cohort / "chexpert/train.csv")
    assert len(rows) == 24 and len(_rows(cohort / "chexpert/valid.csv")) == 4
    assert list(rows[0])[:5] == ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"]
    assert tuple(rows[0])[5:] == reports.FINDINGS
    assert rows[0]["Path"].startswith("CheXpert-v1.0-small/train/patient00001/study1/")
    for row in rows:
        assert {row[f] for f in reports.FINDINGS} <= {"1.0", "0.0", "-1.0", ""}
        film = cv2.imread(
            str(cohort / "chexpert" / row["Path"].partition("/")[2]),
            cv2.IMREAD_UNCHANGED,
        )
        assert film.ndim == 2 and min(film.shape) == 320 and max(film.shape) <= 391


def test_symile_layout(cohort):
    root = cohort / "symile_mimic"
    n = {"train": 100, "val": 10, "val_retrieval": 100, "test": 100}
    for split, rows in n.items():

        def load(name, split=split):
            return np.load(root / f"data_npy/{split}/{name}_{split}.npy")

        cxr, wave = load("cxr"), load("ecg")
        assert cxr.shape == (rows, 3, 32, 32) and cxr.dtype == np.float32
        assert wave.shape == (rows, 1, 5000, 12) and wave.dtype == np.float32
        np.testing.assert_allclose(wave.min((1, 2, 3)), -1, atol=1e-6)
        np.testing.assert_allclose(wave.max((1, 2, 3)), 1, atol=1e-6)
        rank, seen = load("labs_percentiles"), load("labs_missingness")
        assert rank.shape == seen.shape == (rows, 50)
        assert seen.dtype == load("hadm_id").dtype == np.int64
        table = _rows(root / f"{split}.csv")
        assert [int(r["hadm_id"]) for r in table] == load("hadm_id").tolist()
        column = [r["50912_percentile"] for r in table]
        assert [c != "" for c in column] == (seen[:, 16] == 1).tolist()
        if split in ("val_retrieval", "test"):
            hadm, label = load("hadm_id"), load("label")
            asked = load("label_hadm_id")
            assert label.tolist() == [1] * 10 + [0] * 90
            assert ((hadm == asked) == (label == 1)).all()
            for query in hadm[:10]:
                assert len(set(hadm[asked == query])) == 10
            twin = np.flatnonzero(hadm == hadm[20])
            assert (cxr[twin] == cxr[20]).all() and (wave[twin] == wave[20]).all()
    means = json.loads((root / "labs_means.json").read_text())
    assert list(means) == [f"{i}_percentile" for i in labs.ITEM_IDS]
    rank, seen = (
        np.load(root / f"data_npy/train/labs_{k}_train.npy")
        for k in ("percentiles", "missingness")
    )
    for i, mean in enumerate(means.values()):
        np.testing.assert_allclose(rank[seen[:, i] == 1, i].mean(), mean, atol=1e-5)
        np.testing.assert_allclose(rank[seen[:, i] == 0, i], mean, atol=1e-6)


def test_most_admissions_have_vital_signs_some_taken_after_triage(cohort):
    root = cohort / "symile_mimic"
    found = stays.read(stays.paths(root))
    admissions = found.by_admission()
    assert len(admissions) == len(found.stays.ids) and not found.dropped
    of = {
        split: [r["hadm_id"] for r in _rows(root / f"{split}.csv")]
        for split in ("train", "val", "val_retrieval", "test")
    }
    assert set(admissions) < set().union(*of.values())
    for split, ids in of.items():
        share = np.mean([i in admissions for i in ids])
        assert 0.8 < share < 0.97 if split == "train" else share > 0.5, split
    missing = np.isnan(found.values)
    assert 0.03 < missing[:, :6].mean() < 0.08
    assert 0.2 < missing[:, 6].mean() < 0.5  # weight
    triage = _rows(root / "ed/triage.csv")
    blank = sum(row["sbp"] == "" for row in triage)
    later = sum(row["sbp"] != "" for row in _rows(root / "ed/vitalsign.csv"))
    assert 0 < later <= blank and missing[:, 1].sum() == blank - later


def test_ecg_and_probe_layouts(cohort):
    rows = _rows(cohort / "ecg/labels.csv")
    wave = np.load(cohort / "ecg/ecg.npy", mmap_mode="r")
    assert wave.shape == (30, 5000, 12) and wave.dtype == np.int16
    assert list(rows[0]) == ["record", "patient_id", "split", *ecg.DIAGNOSES]
    assert [r["record"] for r in rows] == [str(i) for i in range(30)]
    rows = _rows(cohort / "probe/labels.csv")
    columns = ["path", "patient_id", "split", "age", "sex", "view", *latents.LABELS]
    assert list(rows[0]) == columns and len(rows) == 30
    wave = np.load(cohort / "probe/ecg.npy")
    assert wave.shape == (30, 5000, 12) and wave.dtype == np.int16
    lead_error = wave[:, :, 0].astype(int) + wave[:, :, 2] - wave[:, :, 1]
    assert abs(lead_error).max() <= 1  # microvolts of rounding
    assert np.load(cohort / "probe/labs_percentiles.npy").shape == (30, 50)
    masks = sorted((cohort / "probe/masks").iterdir())
    assert len(masks) == 15
    hearts = sorted((cohort / "probe/hearts").iterdir())
    assert [p.name for p in hearts] == [p.name for p in masks]
    for path in (*masks, *hearts):
        film = cv2.imread(str(cohort / "probe/images" / f"{path.stem}.jpg"), 0)
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == film.shape
    for row in rows:
        assert (cohort / "probe" / row["path"]).is_file()


def test_patients_are_disjoint_over_layouts_and_splits(cohort):
    groups = []
    for split in ("train", "valid"):
        rows = _rows(cohort / f"chexpert/{split}.csv")
        groups.append({int(r["Path"].split("/")[2][7:]) for r in rows})
    for split in ("train", "val", "test"):
        rows = _rows(cohort / f"symile_mimic/{split}.csv")
        groups.append({int(r["subject_id"]) for r in rows})
    for folder in ("ecg", "probe"):
        rows = _rows(cohort / folder / "labels.csv")
        for split in sorted({r["split"] for r in rows}):
            groups.append({int(r["patient_id"]) for r in rows if r["split"] == split})
    assert len(groups) == 10
    assert sum(map(len, groups)) == len(set().union(*groups))
