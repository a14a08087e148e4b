"""data/prepare.py medmod: linkage, splits, and nobody whom encoders were trained on."""

import gzip

import numpy as np
import pytest

from data import audit
from data.medmod import medmod_dataset_builder as medmod
from pacx_jax.errors import PacxError
from pacx_jax.input import sources
from pacx_jax.run import overlap
from tests import tiny
from tests.data import test_prepare
from tests.data.published_trees import put, write
from tests.data.test_published import edit, examples
from tests.data.test_published import run as run

TIMES = "intime,outtime,admittime,dischtime"


def draw(root, split=False, n=20):
    """Stay i is of patient 10000000 + i // 2, admission 200 + i; in May, day i + 1.

    The tables are those of MedMod's code, in no order of the stays; with `split`, those
    of the reference's authors. Symile-MIMIC, beside, trains on admission 200, validates
    on patient 10000003 and tests on 10000005; patient 10000001 has no X-ray in time.
    """
    names, dead = list(medmod.PHENOTYPES), list(medmod.MORTALITY)
    stays, labels, films = [], [], []
    for i in range(n):
        patient, day = 10_000_000 + i // 2, f"2180-05-{i + 1:02}"
        times = [f"{day} 02:00:00", f"{day} 20:00:00", f"{day} 01:00:00", ""]
        mortality = [str(i % 2), "" if i == 9 else "0", "0"]
        stays.append([str(patient), str(200 + i), str(300 + i), *times, *mortality])
        labels.append(["1" if (i + j) % 5 == 0 else "0" for j in range(len(names))])
        labels[-1][medmod.PHENOTYPES.index(medmod.STRATUM)] = str(int(i % 4 == 0))
        # Half past one, then noon twice; patient 10000001's are of another year.
        year = "2190" if patient == 10_000_001 else "2180"
        for film, time in (("b", "120000.5"), ("a", "13000.125"), ("c", "120000.5")):
            when = [f"{year}05{i + 1:02}", time]
            films.append([f"d{i}{film}", str(patient), str(50_000 + i), *when])
    head = ["subject_id", "hadm_id", "stay_id", *TIMES.split(","), *dead]
    if split:
        for s, rows in (("train", (0, 12)), ("val", (11, 15)), ("test", (15, n))):
            lines = [",".join([*head, *(f'"{name}"' for name in names), "cxr_path"])]
            for i in range(*rows):
                put(root / s / f"d{i}a.jpg", i)
                lines.append(",".join([*stays[i], *labels[i], f"d{i}a.jpg"]))
            write(root / s / f"{s}.csv", *lines)
    else:
        order = sorted(range(n), key=lambda i: i * 7 % n)
        lines = [",".join(head), *(",".join(stays[i]) for i in order)]
        write(root / "all_stays.csv", *lines)
        head = ",".join(f'"{name}"' for name in names)
        write(root / "phenotype_labels.csv", head, *map(",".join, labels))
        columns = "dicom_id,subject_id,study_id,StudyDate,StudyTime"
        lines = "\n".join([columns, *map(",".join, films)])
        root.joinpath("mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(
            gzip.compress(lines.encode())
        )
        for i, (film, patient, study, *_) in enumerate(films):
            put(root / f"files/p10/p{patient}/s{study}/{film}.jpg", i)
    seen = {"train": "10000000,200", "val": "10000003,999", "test": "10000005.0,998"}
    seen["val_retrieval"] = seen["val"]
    for s, row in seen.items():
        write(root / "symile" / f"{s}.csv", "subject_id,hadm_id", row)


@pytest.fixture
def prepared(tmp_path, run):
    """Draws a tree and prepares it: (path -> example, split of each, output)."""

    def command(*flags, split=False, change=None):
        root, target = tmp_path / "in", tmp_path / "out"
        draw(root, split)
        if change:
            change(root)
        flags = (f"--symile={root / 'symile'}", *flags)
        code, summary, out = run("medmod", root, target, *flags)
        assert code == 0, out
        read = examples(target, summary)
        where = {e["path"]: s for s, rows in read.items() for e in rows}
        found = {e["path"]: e for rows in read.values() for e in rows}
        return found, where, out

    return command


def stays_of(paths):
    """The numbers of the stays whose X-rays these are."""
    return {int(path.rsplit("/d")[-1].rstrip("abc.jpg")) for path in paths}


def test_strict_has_no_patient_of_symile_and_splits_by_patient(prepared):
    found, where, out = prepared()
    # Patients 0, 3 and 5 are Symile's; patient 1 has no X-ray within a stay.
    assert stays_of(found) == set(range(20)) - {0, 1, 2, 3, 6, 7, 10, 11}
    assert "note: 6 stays are of Symile-MIMIC's patients and left out" in out
    assert "note: 2 of the other 14 stays have no X-ray" in out
    splits_of = {}
    for path, example in found.items():
        splits_of.setdefault(example["patient_id"], set()).add(where[path])
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert "DIFFERENT" not in out  # the paper's count is of another exclusion


def test_reference_leaves_out_symiles_training_admissions_alone(prepared):
    found, where, out = prepared("--splits=reference")
    assert stays_of(found) == set(range(20)) - {0, 2, 3}
    assert "note: 1 stays are of Symile-MIMIC's training admissions" in out
    assert "DIFFERENT from what was published: train+val+test: images 17" in out
    assert sorted(where.values()).count("test") == 4  # 20% of 17, rounded up


def test_a_stay_has_its_earliest_xray_and_its_own_labels(prepared):
    found, _, _ = prepared("--splits=reference")
    assert all(path.endswith("a.jpg") for path in found)
    for path, example in found.items():
        (i,) = stays_of([path])
        assert path == f"files/p10/p{10_000_000 + i // 2}/s{50_000 + i}/d{i}a.jpg"
        want = [float((i + j) % 5 == 0) for j in range(25)]
        want[medmod.PHENOTYPES.index(medmod.STRATUM)] = float(i % 4 == 0)
        np.testing.assert_array_equal(example["labels"], want)


def test_mortality_keeps_what_is_missing_and_images_may_lie_elsewhere(
    tmp_path, prepared
):
    def move(root):
        (tmp_path / "jpg").mkdir()
        for name in ("files", "mimic-cxr-2.0.0-metadata.csv.gz"):
            (root / name).rename(tmp_path / "jpg" / name)

    flags = ("--splits=reference", "--task=mortality", f"--images={tmp_path / 'jpg'}")
    found, _, _ = prepared(*flags, change=move)
    labels = {next(iter(stays_of([p]))): e["labels"] for p, e in found.items()}
    np.testing.assert_array_equal(labels[9], [1, np.nan, 0])
    np.testing.assert_array_equal(labels[8], [0, 0, 0])


def views(root):
    """Film a of every third stay is a lateral, of stay 4 of no known view."""
    path = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    head, *rows = gzip.decompress(path.read_bytes()).decode().split("\n")
    lines = [head + ",ViewPosition"]
    for row in rows:
        dicom = row.split(",")[0]
        lateral = dicom.endswith("a") and int(dicom[1:-1]) % 3 == 0
        lines.append(f"{row},{'' if dicom == 'd4a' else 'LL' if lateral else 'AP'}")
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def test_frontal_takes_the_earliest_frontal_xray(prepared):
    found, _, out = prepared("--splits=reference", "--frontal", change=views)
    films = {path.rsplit("/d")[-1].removesuffix(".jpg") for path in found}
    # Of one time, b stands before c.
    assert {"1a", "5a", "9b", "15b", "4b"} <= films and "9a" not in films
    assert {e["view"] for e in found.values()} == {"AP"}
    assert "stays have no frontal X-ray" in out


def test_frontal_of_stays_that_are_linked_leaves_laterals_out(tmp_path, prepared):
    def metadata(root):
        draw(tmp_path / "release")
        views(tmp_path / "release")
        name = "mimic-cxr-2.0.0-metadata.csv.gz"
        (tmp_path / "release" / name).rename(root / name)

    found, _, out = prepared("--frontal", split=True, change=metadata)
    assert not [i for i in stays_of(found) if i % 3 == 0 or i == 4]
    assert stays_of(found) >= {13, 17, 19} and "no frontal X-ray" in out


def test_no_image_is_taken_twice(prepared):
    def one_stay_in_another(root):
        path = root / "all_stays.csv"
        rows = {row.split(",")[2]: row for row in path.read_text().split("\n") if row}
        edit(path, rows["316"], rows["315"].replace("215,315", "216,316"))

    found, _, _ = prepared("--splits=reference", change=one_stay_in_another)
    paths = {path.rsplit("/")[-1] for path in found}
    # Stay 16 is now of the patient and the day of stay 15: it has the next one.
    assert {"d15a.jpg", "d15b.jpg"} <= paths and "d15c.jpg" not in paths


def test_splits_that_are_there_are_kept(prepared):
    found, where, out = prepared(split=True)
    # Stay 11 is in train and val; patient 5, of stays 10 and 11, is Symile's. Patient
    # 7, of stays 14 and 15, is in val and test.
    assert where["test/d15a.jpg"] == "test" and "val/d14a.jpg" not in found
    assert {p for p in found if p.startswith("val/")} == {
        "val/d12a.jpg",
        "val/d13a.jpg",
    }
    assert "note: 1 images of patients who are also in a later official split" in out
    assert "no X-ray" not in out


def test_medmods_own_lists_of_patients_are_honoured(prepared):
    def lists(root):
        (root / "valset_iv.csv").write_text("10000002,1\n10000004,0\n")
        (root / "testset_iv.csv").write_text("10000004,1\n10000009,1\n10000002,0\n")

    found, where, _ = prepared(change=lists)
    splits = {e["patient_id"]: where[p] for p, e in found.items()}
    assert {p for p, s in splits.items() if s == "test"} == {"10000004", "10000009"}
    assert {p for p, s in splits.items() if s == "val"} == {"10000002"}


def test_a_probe_of_symiles_training_patients_is_refused(tmp_path, run):
    test_prepare.draw_symile(tmp_path / "symile_in")
    edit(tmp_path / "symile_in/train.csv", "\n1,10,", "\n10000007.0,10,")
    assert run("symile_mimic", tmp_path / "symile_in", tmp_path / "symile")[0] == 0
    draw(tmp_path / "in")  # with a Symile beside it that lacks this patient
    (tmp_path / "in/valset_iv.csv").write_text("10000002,1\n")
    (tmp_path / "in/testset_iv.csv").write_text("10000007,1\n10000009,1\n")
    flag = f"--symile={tmp_path / 'in/symile'}"
    assert run("medmod", tmp_path / "in", tmp_path / "medmod", flag)[0] == 0
    seen = tiny.config("mae_vitb16", data__path=str(tmp_path / "symile"))
    workdir = str(tmp_path / "mae")
    overlap.account(seen, workdir, sources.open_source(seen.data, "train"))
    probe = tiny.config(
        "linear_probe", data__path=str(tmp_path / "medmod"), model_init=workdir
    )
    train = sources.open_source(probe.data, "train")
    with pytest.raises(PacxError, match="1 of 2 test patients were in the training"):
        overlap.account(probe, str(tmp_path / "probe"), train)
    # The audit sees the same, and studies by MIMIC's folders.
    shared = audit.audit([str(tmp_path / "symile"), str(tmp_path / "medmod")])
    rows = [r for r in shared["shared"] if r["patients"]]
    assert [(r["a"], r["b"]) for r in rows] == [("symile:train", "medmod:test")]
    studies = [s["studies"] for s in shared["sets"][1]["splits"].values()]
    assert sum(studies) == 12  # of as many stays, each of its own study


LABELS_OF_STAY_4 = ",".join(
    str(int(i == 19 or i % 5 == 1)) for i in range(len(medmod.PHENOTYPES))
)
BAD = {
    "no symile": ("", lambda r: None, "medmod: give --symile=DIR"),
    "symile not whole": (
        "{}/symile",
        lambda r: (r / "symile/test.csv").unlink(),
        "symile: no test.csv; give the folder of Symile-MIMIC with train.csv, val.csv",
    ),
    "no metadata": (
        "{}/symile",
        lambda r: (r / "mimic-cxr-2.0.0-metadata.csv.gz").unlink(),
        "no mimic-cxr-2.0.0-metadata.csv.gz; put that of MIMIC-CXR-JPG beside",
    ),
    "no views": (
        "{}/symile --frontal",
        lambda r: None,
        "mimic-cxr-2.0.0-metadata.csv.gz: no column ViewPosition",
    ),
    "another run": (
        "{}/symile",
        lambda r: edit(r / "phenotype_labels.csv", LABELS_OF_STAY_4 + "\n", ""),
        "phenotype_labels.csv: 19 rows, but ",
    ),
    "image": (
        "{}/symile",
        lambda r: next(r.rglob("d8a.jpg")).unlink(),
        "1 listed images are not there, the first is 'files/p10/p10000004/s50008/d8a",
    ),
    "no images": (
        "{}/symile --images=nowhere",
        lambda r: None,
        "--images nowhere: no such folder",
    ),
    "label": (
        "{}/symile",
        lambda r: edit(r / "phenotype_labels.csv", '"Shock"', '"shock"'),
        "phenotype_labels.csv: no column 'Shock'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_medmod_input_is_one_line(tmp_path, run, case):
    symile, spoil, message = BAD[case]
    draw(tmp_path / "in")
    spoil(tmp_path / "in")
    flags = f"--symile={symile.format(tmp_path / 'in')}".split(" ")
    code, _, error = run("medmod", tmp_path / "in", tmp_path / "out", *flags)
    assert code == 2 and "\n" not in error and message in error, error
    assert not (tmp_path / "out").exists()
