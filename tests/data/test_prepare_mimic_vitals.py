"""data/prepare.py mimic_vitals, and symile_mimic with vital signs, on tiny tables."""

import gzip
import json
import re

import numpy as np
import pytest

from data.cohort import latents
from data.cohort import vitals as drawn
from data.mimic_vitals import stays
from pacx_jax import main
from pacx_jax.input import percentiles
from pacx_jax.modalities import vitals
from tests import tiny
from tests.data.prepared_sets import read
from tests.data.test_prepare import draw_symile

HEART, SYSTOLIC, DIASTOLIC, BREATHS, SATURATION, TEMPERATURE, WEIGHT = range(7)
STAYS = "subject_id,hadm_id,stay_id,intime,outtime,gender,race"
SIGNS = "temperature,heartrate,resprate,o2sat,sbp,dbp"
TRIAGE = f"subject_id,stay_id,{SIGNS},pain,acuity,chiefcomplaint"
LATER = f"subject_id,stay_id,charttime,{SIGNS},rhythm,pain"


def draw(root, triage, later=(), patients=8, zipped=True, admissions=None, head=TRIAGE):
    """Writes ed/ with one stay (id 300 + p) of each patient p, admitted or not.

    Rows of triage begin with the patient, rows of vitalsign with patient and hour.
    """
    admissions = admissions or {p: 100 + p for p in range(patients) if p != 7}
    rows = [
        f"{p},{admissions.get(p, '')},{300 + p},2180-05-07 00:{p:02}:00,,F,"
        for p in range(patients)
    ]
    timed = [f"{p},{300 + p},2180-05-07 {h:02}:00:00,{cells}" for p, h, cells in later]
    tables = {
        "edstays": [STAYS, *rows],
        "triage": [head, *(f"{p},{300 + p},{cells}" for p, cells in triage)],
        "vitalsign": [LATER, *timed],
    }
    (root / "ed").mkdir(parents=True)
    for name, lines in tables.items():
        data = ("\n".join(lines) + "\n").encode()
        path = root / f"ed/{name}.csv"
        if zipped:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)
    return root


def plain(patients=8):
    """Heart rates of 70 + p at triage."""
    return [(p, f"98.6,{70 + p},18,98,120,80,3,2,Cough") for p in range(patients)]


AWKWARD = [
    (0, ",,,,,,UA,,"),  # nothing but words of pain
    (1, "37.0,88,16,abc,8000,0,3,2,"),  # degrees C, no number, implausible
    (2, "100.4,inf,16,98,120,80,3,2,"),
]
LATER_ROWS = [
    (0, 5, "98.6,99,,,,,,"),
    (0, 3, "212.0,66,20,,,,,"),  # earlier, though below; its temperature implausible
    (1, 2, ",77,,97,130,70,,"),
    (2, 1, ",0,,,,,,"),
    (2, 2, ",61,,,,,,"),
]


@pytest.mark.parametrize("zipped", [True, False])
def test_the_first_plausible_value_counts_triage_before_all(tmp_path, zipped):
    root = draw(tmp_path, AWKWARD, LATER_ROWS, patients=3, zipped=zipped)
    for source in (root, root / "ed"):
        found = stays.read(stays.paths(source))
        nan = np.nan
        want = [
            [66, nan, nan, 20, nan, 37, nan],
            [88, 130, 70, 16, 97, nan, nan],
            [61, 120, 80, 16, 98, 38, nan],
        ]
        np.testing.assert_allclose(found.values, want)
        assert found.hadm_ids == ["100", "101", "102"]
        assert found.dropped == {
            "saturation: no number": 1,
            "temperature: implausible": 2,
            "systolic: implausible": 1,
            "diastolic: implausible": 1,
            "heart_rate: implausible": 2,
        }


def test_columns_are_in_the_order_of_the_signs():
    assert tuple(stays.COLUMNS) == stays.SIGNS == tuple(vitals.SIGNS)
    columns = [column for column, _, _ in stays.COLUMNS.values()]
    assert columns.index("heartrate") == HEART and columns[WEIGHT] == "weight"


def test_an_admission_has_the_signs_of_its_earliest_stay_with_any(tmp_path):
    same = dict.fromkeys(range(3), 55) | {3: ""}
    triage = [(0, ",,,,,,,,"), *plain(4)[1:]]
    found = stays.read(stays.paths(draw(tmp_path, triage, patients=4, admissions=same)))
    assert {k: v[HEART] for k, v in found.by_admission().items()} == {"55": 71}


def test_stays_become_percentiles_of_train_and_those_without_are_left_out(
    tmp_path, run
):
    root = draw(tmp_path / "in", plain(), patients=10)  # 8 and 9 have no signs
    target = tmp_path / "out"
    code, summary, err = run("mimic_vitals", f"--source={root}", f"--target={target}")
    assert code == 0, err
    assert summary["report"]["stays"] == {"listed": 10, "kept": 8}
    assert "train has no weight: missing in every split" in summary["notes"]
    found = read(target, by="patient_id")
    assert set(found) == {str(p) for p in range(8)}
    train = [int(p) for p, (split, _) in found.items() if split == "train"]
    assert 0 < len(train) < 8
    for p, (_, example) in found.items():
        assert example["hadm_id"] == ("" if p == "7" else str(100 + int(p)))
        assert example["vitals"].shape == (len(vitals.SIGNS),)
        share = np.mean([q <= int(p) for q in train])
        np.testing.assert_allclose(example["vitals"][HEART], share, rtol=1e-6)
        assert example["vitals_mask"].tolist() == [1] * 6 + [0]
        assert example["vitals"][WEIGHT] == percentiles.NO_MEAN
    other = tmp_path / "other"
    argv = ("mimic_vitals", f"--source={root}", f"--target={other}")
    fraction = "--val_fraction=0.5"
    assert run(*argv, f"--percentiles={target}", fraction)[0] == 0
    for p, (_, example) in read(other, by="patient_id").items():
        np.testing.assert_array_equal(example["vitals"], found[p][1]["vitals"])


def test_a_column_of_weights_is_taken(tmp_path):
    rows = [(p, f"{cells},{60 + p}") for p, cells in plain(2)]
    root = draw(tmp_path, rows, patients=2, head=f"{TRIAGE},weight")
    assert stays.read(stays.paths(root)).values[:, WEIGHT].tolist() == [60, 61]


def _change(root, name, change):
    path = root / f"ed/{name}.csv.gz"
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


BAD = {
    "no triage": (lambda r: (r / "ed/triage.csv.gz").unlink(), "no triage.csv or"),
    "no column": (
        lambda r: _change(r, "vitalsign", lambda x: x.replace(b"o2sat", b"spo2")),
        "vitalsign.csv.gz: no column o2sat",
    ),
    "no patient": (
        lambda r: _change(r, "edstays", lambda x: x.replace(b"\n3,", b"\n,")),
        r"column 'subject_id', row 5: no known id \(''\); fill it in",
    ),
    "no time": (
        lambda r: _change(r, "edstays", lambda x: x.replace(b"2180", b"soon", 1)),
        "row 2 has the intime 'soon",
    ),
    "other release": (
        lambda r: _change(r, "triage", lambda x: x.replace(b",30", b",90")),
        "vital sign of a stay of edstays; give the tables of one release",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, run, case):
    spoil, message = BAD[case]
    root, target = draw(tmp_path / "in", plain()), tmp_path / "out"
    spoil(root)
    code, _, err = run("mimic_vitals", f"--source={root}", f"--target={target}")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and re.search(message, errors[0]), err
    assert not target.exists()


@pytest.mark.parametrize("flag", [True, False])
def test_symile_stores_the_signs_of_its_admissions(tmp_path, run, flag):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    draw_symile(source)  # hadm_id 0, 10, 20, 30 in train; 1000, 1010 in val
    admissions = {0: 0, 1: "10.0", 2: 30, 3: 1000, 4: 2010}
    draw(tmp_path / "ed2" if flag else source, plain(5), (), 5, admissions=admissions)
    argv = ["symile_mimic", f"--source={source}", f"--target={target}", "--size=0"]
    argv += [f"--vitals={tmp_path / 'ed2'}"] if flag else []
    code, summary, err = run(*argv)
    assert code == 0, err
    assert "train: 3 of 4 admissions have vital signs" in summary["notes"]
    found = {h: e for h, (_, e) in read(target, by="hadm_id").items()}
    hearts = {h: found[h]["vitals"][HEART] for h in ("0", "10", "30", "1000", "2010")}
    want = {"0": 1 / 3, "10": 2 / 3, "30": 1, "1000": 1, "2010": 1}
    assert hearts == pytest.approx(want)
    assert found["20"]["vitals"][HEART] == pytest.approx(2 / 3)  # the mean of train
    for hadm_id, example in found.items():
        assert example["vitals_mask"][:6].all() == (hadm_id in want)
    assert percentiles.load(target, percentiles.VITALS).items == stays.IDS
    code, second, _ = run(*argv)
    assert code == 0 and second["status"] == "unchanged"
    assert run("--check", f"--target={target}")[0] == 0


def test_symile_without_tables_of_vital_signs_stores_none(tmp_path, run):
    draw_symile(tmp_path)
    argv = ["symile_mimic", f"--source={tmp_path}", f"--target={tmp_path / 'out'}"]
    assert run(*argv)[0] == 0
    example = read(tmp_path / "out", by="hadm_id")["0"][1]
    assert "vitals" not in example and "labs" in example
    code, _, err = run(*argv[:2], f"--target={tmp_path / 'b'}", "--percentiles=x")
    assert code == 2 and "no folder ed" in err
    draw(tmp_path / "other", plain(2), patients=2)
    code, _, err = run(*argv[:2], f"--target={tmp_path / 'c'}",
                       f"--vitals={tmp_path / 'other'}")  # fmt: skip
    assert code == 2 and "none of its stays is of an admission of the train" in err


def test_two_steps_train_the_autoencoder_where_a_stay_lacks_all_signs(tmp_path, run):
    draw_symile(tmp_path)
    draw(tmp_path, plain(2), patients=2, admissions={0: 0, 1: 1000})
    target = tmp_path / "out"
    argv = ("symile_mimic", f"--source={tmp_path}", f"--target={target}", "--size=16")
    assert run(*argv)[0] == 0
    small = {"num_devices": 1, "global_batch_size": 2, "total_steps": 2}
    small |= dict.fromkeys(("log_every", "eval_every", "save_every"), 2)
    small |= {"model__hidden": 16, "model__latent": 8, "optim__warmup_steps": 1}
    config = tiny.config("vitals_dae", data__path=str(target), **small)
    main.run(config, str(tmp_path / "run"))
    done = json.loads((tmp_path / "run/done.json").read_text())
    assert done["step"] == 2 and done["metrics"]["val/loss"] > 0


def test_simulated_signs_are_plausible_and_follow_their_causes():
    studies = [latents.study(latents.Key(0, "symile_train", p)) for p in range(800)]
    signs = [drawn.values(study) for study in studies]
    none = [x is None for x in signs]
    assert 0.07 < np.mean(none) < 0.13
    studies = [s for s, absent in zip(studies, none, strict=True) if not absent]
    x = np.array([s for s in signs if s is not None])
    assert np.isfinite(x).all() and (x[:, SATURATION] <= 100).all()
    assert (x[:, DIASTOLIC] < x[:, SYSTOLIC]).all()
    middle = np.median(x, axis=0)
    low, high = [70, 115, 65, 14, 94, 36.5, 65], [85, 140, 80, 21, 98, 37.3, 85]
    assert (low < middle).all() and (middle < high).all()

    def follows(sign, cause):
        return np.corrcoef(x[:, sign], [cause(s) for s in studies])[0, 1]

    assert follows(HEART, lambda s: s.heart_rate) > 0.8
    assert follows(SYSTOLIC, lambda s: s.patient.hypertension) > 0.5
    assert follows(BREATHS, lambda s: s.fluid) > 0.3
    assert follows(SATURATION, lambda s: s.consolidation) < -0.3
    assert follows(TEMPERATURE, lambda s: s.inflammation) > 0.4
    assert follows(WEIGHT, lambda s: s.patient.habitus) > 0.6
