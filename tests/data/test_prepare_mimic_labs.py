"""data/prepare.py mimic_labs, on a tiny MIMIC-IV and on the real demo of it."""

import csv
import datetime
import gzip
import io
import json
import pathlib
import re

import numpy as np
import pytest

from data.mimic_labs import items
from pacx_jax import main
from pacx_jax.input import percentiles
from tests import tiny
from tests.data.prepared_sets import read

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared/realdata/labs"
START = datetime.datetime(2180, 5, 7, 12)
SODIUM, POTASSIUM, MCHC = (items.IDS.index(i) for i in (50983, 50971, 51249))
HEADER = (
    "labevent_id,subject_id,hadm_id,specimen_id,itemid,charttime,storetime,value,"
    "valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority"
)


def event(patient, item, hours, value, unit="", text=None, hadm=""):
    """A row of labevents, `hours` after START."""
    time = START + datetime.timedelta(hours=hours)
    text = value if text is None else text
    return f"{patient},{hadm},9,{item},{time},,{text},{value},{unit},,,,ROUTINE"


def draw(root, events, patients=8, zipped=True, labels=(), start=START):
    """Writes hosp/ with one admission (id 100 + p) of each patient p."""
    hosp = root / "hosp"
    hosp.mkdir(parents=True)
    rows = [f"{p},{100 + p},{start},,EW EMER." for p in range(patients)]
    names = {str(i): (name, "Blood") for i, name, _ in items.ITEMS} | dict(labels)
    dictionary = io.StringIO()
    csv.writer(dictionary).writerows(
        (i, name, fluid, "Chemistry") for i, (name, fluid) in names.items() if name
    )
    tables = {
        "admissions": ["subject_id,hadm_id,admittime,dischtime,admission_type", *rows],
        "d_labitems": ["itemid,label,fluid,category", dictionary.getvalue()],
        "labevents": [HEADER, *(f"{i},{e}" for i, e in enumerate(events))],
    }
    for name, lines in tables.items():
        data = ("\n".join(lines).strip() + "\n").encode()
        path = hosp / f"{name}.csv"
        if zipped:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)
    return root


def plain_events():
    """A sodium of 130 + p for each patient p, one hour in."""
    return [event(p, 50983, 1, 130 + p, "mEq/L") for p in range(8)]


AWKWARD = [
    event(0, 50971, -23, 4.5, "mEq/L"),  # before the admission, and earlier
    event(0, 50971, 1, 9.9, "mEq/L"),
    event(1, 50971, -24, 4.0, "mEq/L", hadm=999),  # the very end, another's hadm_id
    event(2, 50971, -24.01, 4.0, "mEq/L"),  # outside
    event(2, 50971, 24.01, 4.0, "mEq/L"),
    event(3, 50971, 24, 4.1, "mmol/L"),  # the other end, an equal unit
    event(3, 50971, 24, 8.0, "mEq/L"),  # the same time: the first counts
    event(4, 50971, 1, "", "mEq/L", text="<0.5"),  # text alone
    event(4, 50971, 2, "NaN", "mEq/L", text="ERROR"),
    event(4, 50971, 3, 4.2, "mEq/L"),
    event(5, 50971, 1, 400, "mg/dL"),  # another unit
    event(5, 50971, 2, 4.3, "mEq/L"),
    event(6, 51249, 1, 33, "%"),  # equal to g/dL
    event(6, 51249, 1, 33, "%"),  # a duplicate
    event(77, 50971, 1, 4, "mEq/L"),  # a patient without admission
    event(7, 99999, 1, 4, "mEq/L"),  # an item that d_labitems does not list
    event(7, 51478, 1, 4, "mEq/L"),  # one that is not of the 50
]
RAW = {0: 4.5, 1: 4.0, 3: 4.1, 4: 4.2, 5: 4.3}  # potassium by patient


@pytest.mark.parametrize("zipped", [True, False])
def test_the_earliest_value_within_a_day_is_taken_and_mapped_by_train(
    tmp_path, run, zipped
):
    other = {"51478": ("Urine pH", "Urine")}
    root = draw(tmp_path / "in", plain_events() + AWKWARD, zipped=zipped, labels=other)
    target = tmp_path / "out"
    code, summary, err = run("mimic_labs", f"--source={root}", f"--target={target}")
    assert code == 0, err
    report = summary["report"]
    assert report["admissions"] == {"listed": 8, "kept": 8, "patients": 8}
    assert report["events"]["left_out"] == {
        "no number in valuenum": 2,
        "another unit": 1,
        "patient without admission": 1,
        "item not in d_labitems": 1,
    }
    assert report["other_units"] == {"Potassium: mg/dL": 1}
    found = read(target, by="hadm_id")
    assert set(found) == {str(100 + p) for p in range(8)}
    train = [p for p in range(8) if found[str(100 + p)][0] == "train"]
    assert 0 < len(train) < 8 and summary["counts"]["train"] == len(train)
    seen = np.sort([RAW[p] for p in train if p in RAW])
    for p in range(8):
        example = found[str(100 + p)][1]
        assert example["patient_id"] == str(p)
        assert example["labs_mask"][SODIUM] == 1
        share = np.mean([130 + q <= 130 + p for q in train])
        assert example["labs"][SODIUM] == np.float32(share)
        assert example["labs_mask"][POTASSIUM] == (p in RAW)
        if p in RAW:
            share = np.mean(seen <= RAW[p])
        else:
            share = np.mean([np.mean(seen <= v) for v in seen])
        np.testing.assert_allclose(example["labs"][POTASSIUM], share, rtol=1e-6)
        if 6 in train:
            assert example["labs_mask"][MCHC] == (p == 6)
        assert example["labs"].shape == example["labs_mask"].shape == (50,)
    saved = percentiles.load(target)
    assert saved.items == items.IDS
    np.testing.assert_array_equal(saved.values[POTASSIUM], np.unique(seen))


def test_any_unit_takes_the_value_as_symile_does(tmp_path, run):
    root = draw(tmp_path / "in", plain_events() + AWKWARD)
    target = tmp_path / "out"
    code, summary, _ = run(
        "mimic_labs", f"--source={root}", f"--target={target}", "--units=any"
    )
    assert code == 0 and "another unit" not in summary["report"]["events"]["left_out"]
    assert 400 in percentiles.load(target).values[POTASSIUM] or (
        read(target, by="hadm_id")["105"][0] != "train"
    )


def test_items_that_changed_their_id_are_found_by_name(tmp_path, run):
    # MIMIC-IV 1.0, where 52069 is of monocytes.
    labels = {
        "52064": ("Absolute Basophil Count", "Blood"),
        "52069": ("Absolute Monocyte Count", "Blood"),
        "52074": ("ASA Tol", "Blood"),
    }
    events = plain_events()
    events += [event(p, 52064, 1, 0.01 * p, "K/uL") for p in range(8)]
    events += [event(p, 52069, 1, 0.5 + 0.01 * p, "K/uL") for p in range(4)]
    root, target = draw(tmp_path / "in", events, labels=labels), tmp_path / "out"
    code, summary, _ = run("mimic_labs", f"--source={root}", f"--target={target}")
    assert code == 0
    assert summary["report"]["other_ids"] == {"52069": "52064", "52074": "52069"}
    found = read(target, by="hadm_id")
    basophils, monocytes = items.IDS.index(52069), items.IDS.index(52074)
    for p in range(8):
        mask = found[str(100 + p)][1]["labs_mask"]
        assert mask[basophils] == 1 and mask[monocytes] == (p < 4)


def test_no_patient_is_in_two_splits_and_a_seed_draws_anew(tmp_path, run):
    events = [event(p, 50983, h, 130 + p) for p in range(60) for h in (1, 100)]
    root = draw(tmp_path / "in", events, patients=60)
    path = root / "hosp/admissions.csv.gz"
    again = START + datetime.timedelta(hours=99)
    more = "".join(f"{p},{500 + p},{again},,ELECTIVE\n" for p in range(60))
    path.write_bytes(path.read_bytes() + gzip.compress(more.encode()))  # two members
    drawn = []
    for seed in (0, 1):
        target = tmp_path / f"out{seed}"
        code, summary, err = run(
            "mimic_labs",
            f"--source={root}",
            f"--target={target}",
            "--val_fraction=0.2",
            "--test_fraction=0.2",
            f"--split_seed={seed}",
        )
        assert code == 0, err
        found = read(target, by="hadm_id")
        assert len(found) == 120 and set(summary["counts"]) == {"train", "val", "test"}
        of = {}
        for split, example in found.values():
            assert of.setdefault(example["patient_id"], split) == split
        drawn.append(of)
    assert drawn[0] != drawn[1]


def test_another_sets_percentiles_map_this_one(tmp_path, run):
    one = draw(tmp_path / "one", plain_events())
    run("mimic_labs", f"--source={one}", f"--target={tmp_path / 'a'}")
    two = draw(tmp_path / "two", [event(p, 50983, 1, 132) for p in range(8)])
    argv = ("mimic_labs", f"--source={two}", f"--target={tmp_path / 'b'}")
    code, _, err = run(*argv, f"--percentiles={tmp_path / 'a'}")
    assert code == 0, err
    fitted = percentiles.load(tmp_path / "a")
    raw = np.full((1, 50), np.nan)
    raw[0, SODIUM] = 132
    for _, example in read(tmp_path / "b", by="hadm_id").values():
        np.testing.assert_array_equal(example["labs"], fitted.apply(raw)[0][0])
    code, _, err = run(*argv, "--percentiles=nowhere")
    assert code == 2 and "nowhere: no such file" in err


def test_a_finished_target_is_left_alone_without_reading_labevents(
    tmp_path, run, monkeypatch
):
    root, target = draw(tmp_path / "in", plain_events()), tmp_path / "out"
    argv = ("mimic_labs", f"--source={root}", f"--target={target}")
    _, first, _ = run(*argv)
    monkeypatch.setattr(
        "data.mimic_labs.events.earliest", lambda *a: pytest.fail("read again")
    )
    code, second, _ = run(*argv)
    assert first.pop("made")["examples"] == 8
    assert code == 0 and second == first | {"status": "unchanged"}


@pytest.mark.full
def test_two_steps_train_the_labs_autoencoder(tmp_path, run):
    root, target = draw(tmp_path / "in", plain_events()), tmp_path / "out"
    run("mimic_labs", f"--source={root}", f"--target={target}")
    config = tiny.config(
        "labs_dae",
        "runlocal",
        data__path=str(target),
        data__simulated=False,
        num_devices=1,
        global_batch_size=8,
        total_steps=2,
        log_every=1,
        eval_every=2,
        save_every=2,
    )
    main.run(config, str(tmp_path / "run"))
    done = json.loads((tmp_path / "run/done.json").read_text())
    assert done["step"] == 2 and np.isfinite(done["metrics"]["val/loss"])


def _rewrite(root, name, change):
    path = root / f"hosp/{name}.csv.gz"
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def _cut(root):
    path = root / "hosp/labevents.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])


def _flip(root):
    path = root / "hosp/labevents.csv.gz"
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the checksum
    path.write_bytes(data)


BAD = {
    "no source": (lambda r: r.rename(r.with_name("x")), "no such folder"),
    "no labevents": (
        lambda r: (r / "hosp/labevents.csv.gz").unlink(),
        "no labevents.csv or labevents.csv.gz",
    ),
    "no d_labitems": (
        lambda r: (r / "hosp/d_labitems.csv.gz").unlink(),
        "no d_labitems.csv",
    ),
    "both": (
        lambda r: (r / "hosp/labevents.csv").write_text(HEADER),
        "are both there",
    ),
    "no column": (
        lambda r: _rewrite(r, "labevents", lambda x: x.replace(b"valuenum", b"num")),
        "labevents.csv.gz: no column valuenum; its columns are labevent_id",
    ),
    "no admission column": (
        lambda r: _rewrite(r, "admissions", lambda x: x.replace(b"admitt", b"t")),
        "no column admittime",
    ),
    "cut gzip": (_cut, r"labevents.csv.gz: cannot be read on after row \d+ \(.*get it"),
    "corrupt gzip": (_flip, r"labevents.csv.gz: cannot be read on after row \d+ \(CRC"),
    "cut row": (
        lambda r: _rewrite(r, "labevents", lambda x: x[:-30]),
        "row 9 has 6 cells, the header 14",
    ),
    "no patient": (
        lambda r: _rewrite(r, "admissions", lambda x: x.replace(b"\n3,103", b"\n,103")),
        r"column 'subject_id', row 5: no known id \(''\); fill it in",
    ),
    "no time": (
        lambda r: _rewrite(r, "admissions", lambda x: x.replace(b"2180", b"soon", 1)),
        "row 2 .*admittime 'soon",
    ),
    "twice": (
        lambda r: _rewrite(r, "admissions", lambda x: x.replace(b",104,", b",103,")),
        "admission 103 is in it twice",
    ),
    "unknown ids": (
        lambda r: _rewrite(r, "d_labitems", lambda x: x.replace(b"Sodium", b"Natrium")),
        r"1 of the 50 items are not in it.*50983 Sodium \(there: Natrium\)",
    ),
    "nothing near": (
        lambda r: _rewrite(r, "labevents", lambda x: x.replace(b"2180-", b"2170-")),
        "none of its 8 events is a value of the 50 items",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, run, case):
    spoil, message = BAD[case]
    root = draw(tmp_path / "in", plain_events())
    spoil(root)
    code, _, err = run("mimic_labs", f"--source={root}", f"--target={tmp_path / 'out'}")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in err
    assert re.search(message, errors[0]), errors[0]
    assert not (tmp_path / "out").exists()


def test_the_items_are_the_fifty_in_the_models_order():
    assert len(items.IDS) == 50 and list(items.IDS) == sorted(items.IDS)
    assert items.IDS[0] == 50802 and items.IDS[2] == 50813 and items.IDS[43] == 51678
    # Symile sorts the ids as text, which for five digits each is the same.
    assert sorted(map(str, items.IDS)) == list(map(str, items.IDS))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_the_demo_of_mimic_is_prepared(tmp_path, run):
    target = tmp_path / "out"
    code, summary, err = run("mimic_labs", f"--source={REAL}", f"--target={target}")
    assert code == 0, err
    report = summary["report"]
    assert report["admissions"] == {"listed": 275, "kept": 210, "patients": 96}
    assert report["other_ids"]["52069"] == "52064"
    assert not report["other_units"] and report["events"]["read"] == 61608
    found = read(target, by="hadm_id")
    mask = np.stack([example["labs_mask"] for _, example in found.values()])
    assert mask.shape == (210, 50) and mask.any(axis=0).all()
    assert abs(1 - mask.mean() - 0.426) < 0.002
    raw = _brute_force(REAL)
    np.testing.assert_array_equal(
        mask, [[i in raw[h] for i in _real_ids(report)] for h in found]
    )
    fitted = percentiles.load(target)
    for hadm_id, (_, example) in found.items():
        values = [[raw[hadm_id].get(i, np.nan) for i in _real_ids(report)]]
        np.testing.assert_array_equal(example["labs"], fitted.apply(values)[0][0])


def _real_ids(report):
    return [report["other_ids"].get(str(i), str(i)) for i in items.IDS]


def _brute_force(root):
    """hadm_id -> item id -> value, by sorting everything."""
    with gzip.open(root / "admissions.csv.gz", "rt") as file:
        stays = list(csv.DictReader(file))
    with gzip.open(root / "labevents.csv.gz", "rt") as file:
        rows = [r for r in csv.DictReader(file) if r["valuenum"]]
    when = datetime.datetime.fromisoformat
    rows = sorted(rows, key=lambda r: (r["charttime"], int(r["labevent_id"])))
    mine = {}
    for row in rows:
        mine.setdefault(row["subject_id"], []).append(row)
    found = {}
    for stay in stays:
        values = found.setdefault(stay["hadm_id"], {})
        for row in mine.get(stay["subject_id"], ()):
            hours = (when(row["charttime"]) - when(stay["admittime"])) / (
                datetime.timedelta(hours=1)
            )
            if -24 <= hours <= 24:
                values.setdefault(row["itemid"], float(row["valuenum"]))
    return found
