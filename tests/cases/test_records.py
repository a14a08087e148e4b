"""ECG records as published sets have them: the right millivolts, or one line."""

import collections

import numpy as np
import pytest
import scipy.io

from data import prepare
from data.ecg_array import ecg_array_dataset_builder
from data.wfdb import wfdb_dataset_builder as builder
from pacx_jax.errors import PacxError
from pacx_jax.input import ecg, ecg_records
from pacx_jax.modalities import teachers

pytest.importorskip("wfdb", reason="the package wfdb is not installed")

STEPS = np.cumsum(np.random.default_rng(0).integers(-9, 10, (5000, 12)), 0)
SIGNAL = STEPS.astype("<i2")
FILE = "E07835.mat"
MIMIC = ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"]


def lines(signal=SIGNAL, file=FILE, leads=ecg.LEADS, gain="1000/mV"):
    """Signal lines of a header, as PhysioNet's challenges have them."""
    for lead, x in zip(leads, signal.T, strict=True):
        checksum = (int(x.sum(dtype=int)) + 2**15) % 2**16 - 2**15
        yield f"{file} 16+24 {gain} 16 0 {x[0]} {checksum} 0 {lead}"


def write(folder, first="r 12 500 5000", comments=(), *, signal=SIGNAL, **more):
    scipy.io.savemat(folder / FILE, {"val": signal.T}, format="4")
    path = folder / "E07835.hea"
    text = [first, *lines(signal, **more), *comments]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def read(path):
    (record,) = ecg_records.read(path)
    return record


def refusal(path) -> str:
    with pytest.raises(PacxError) as caught:
        read(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# First lines of headers that were published, each with wfdb-python's issue.
FIRST = {
    "E07835.mat 12 500 5000 05-May-2020 09:49:17": 351,
    "A00001 12 500 5000 2014-05-08 05:05:15": 128,
    "S0287ECG 12 500 5000 2006": 307,
    "r 12 500 5000 00:00:00.000000000 1/1/89": 415,
    "ge_median_beats_wfdb/00001_medians 12 500 5000": 528,
    "files/p1000/40689238 12 500.0/500(0) 5000 10:14:00 27/06/2180": 0,
    "JS00001 12 5e2 5000": 0,
    "r 12 500": 0,
}


@pytest.mark.parametrize("first", FIRST)
def test_names_dates_and_rates_are_as_published(tmp_path, first):
    record = read(write(tmp_path, first))
    assert record.fs == 500
    np.testing.assert_allclose(record.ecg, SIGNAL / 1000, atol=1e-9)


def test_a_signal_file_is_beside_its_header_wherever_it_was_written(tmp_path):
    record = read(write(tmp_path, file=f"ge_median_beats_wfdb/{FILE}"))  # 528
    np.testing.assert_allclose(record.ecg, SIGNAL / 1000, atol=1e-9)


UNITS = {
    "1000/mV": 1000,
    "1000": 1000,  # header(5): without units, mV
    "1000.0(0)/mv": 1000,
    "1/uV": 1000,
    "0.5/\u00b5V": 500,  # wfdb drops what is not ASCII: V
    "0.5(0)/\u03bcV": 500,
    "1e6/V": 1000,
    "-1000/mV": -1000,
}


@pytest.mark.parametrize("gain", UNITS)
def test_units_become_millivolts(tmp_path, gain):
    record = read(write(tmp_path, gain=gain))
    np.testing.assert_allclose(record.ecg, SIGNAL / UNITS[gain], atol=1e-9)


LEADS = {
    "order of MIMIC-IV-ECG": MIMIC,
    "reversed": ecg.LEADS[::-1],
    "lower case": [lead.lower() for lead in ecg.LEADS],
    "upper case": [lead.upper() for lead in ecg.LEADS],
}


@pytest.mark.parametrize("case", LEADS)
def test_leads_are_found_by_name(tmp_path, case):
    names = LEADS[case]
    record = read(write(tmp_path, leads=names))
    plain = [name.upper() for name in names]
    for i, lead in enumerate(ecg.LEADS):
        want = SIGNAL[:, plain.index(lead.upper())] / 1000
        np.testing.assert_allclose(record.ecg[:, i], want, atol=1e-9)


def test_segments_and_unclear_headers_are_one_line(tmp_path):
    path = write(tmp_path)
    path.write_text("r/2 12 500 5000\nE07835 2500\nE07836 2500\n")
    assert "several segments" in refusal(path)
    assert "first line must be" in refusal(write(tmp_path, "r 12 500 10:14:00"))
    assert "x.hea" in refusal(write(tmp_path, file="x.hea"))  # a header as its signals


COMMENTS = {
    "MIMIC-IV-ECG": (["# <subject_id>: 10000032"], "10000032", None),
    "header(5)": (
        ["#<age>: 69 <sex>: M <Patient ID>: 7 <diagnoses>: (none)"],
        "7",
        None,
    ),
    "challenge": (["#Rx: Unknown", "#Dx: 1,2", "#Age: 71"], "", {"1", "2"}),
    "semicolons": (["#Dx: 1; 2,, "], "", {"1", "2"}),
    "other order": (["#PatientID:7", "# Dx: 2", "#Dx: 1"], "7", {"1", "2"}),
    "PTB": (["# age: 81", "# Diagnose:", "# Subject ID : 0081"], "0081", None),
    "unknown": (["# <subject_id>: Unknown", "# note: 3"], "", None),
}


@pytest.mark.parametrize("case", COMMENTS)
def test_comments_give_patient_and_diagnoses_in_any_order(tmp_path, case):
    comments, patient, diagnoses = COMMENTS[case]
    for first, last in ((comments, ()), ((), comments)):
        path = write(tmp_path, "\n".join([*first, "r 12 500 5000"]), last)
        header = builder.read_header(tmp_path, path.name)
        assert (header.patient, header.diagnoses) == (patient, diagnoses)
        assert read(path).ecg.shape == (5000, 12)


@pytest.mark.parametrize("csv", ["", "record_list.csv"])
def test_the_tree_of_mimic_iv_ecg_keeps_its_patients_apart(tmp_path, csv):
    rows = ["subject_id,study_id,file_name,ecg_time,path"]
    leads = "\n".join(lines(file="STUDY.dat", leads=MIMIC, gain="200.0(0)/mV"))
    for number in range(90):
        patient, study = 10000032 + number // 3, 40000001 + number
        place = f"files/p1000/p{patient}/s{study}"
        (tmp_path / place).mkdir(parents=True)
        first = f"{study} 12 500 5000 10:14:00 27/06/2180"
        text = [first, leads.replace("STUDY", str(study)), f"# <subject_id>: {patient}"]
        (tmp_path / place / f"{study}.hea").write_text("\n".join(text))
        (tmp_path / place / f"{study}.dat").write_bytes(SIGNAL[number:].tobytes())
        rows.append(f"{patient},{study},{study},2180-06-27,{place}/{study}")
    (tmp_path / "record_list.csv").write_text("\n".join(rows))
    argv = ["wfdb", f"--source={tmp_path}", "--target=x", "--val_fraction=0.2"]
    options = prepare.parse([*argv, "--test_fraction=0.2", f"--csv={csv}"])
    plan = builder.make_plan(tmp_path, options)
    where = collections.defaultdict(set)
    for split, examples in plan.splits.items():
        for path, _, patient, _ in examples:
            assert f"/p{patient}/" in path
            where[patient].add(split)
    assert len(where) == 30 and all(len(splits) == 1 for splits in where.values())
    assert any("90 records, 30 patients" in note for note in plan.notes)


def test_a_csv_of_another_name_is_told(tmp_path):
    # PTB-XL's patients stand in ptbxl_database.csv alone
    write(tmp_path)
    (tmp_path / "ptbxl_database.csv").write_text("patient_id\n1\n")
    for csv, told in (("", True), ("-", False)):
        argv = ["wfdb", f"--source={tmp_path}", "--target=x", f"--csv={csv}"]
        notes = builder.make_plan(tmp_path, prepare.parse(argv)).notes
        said = "NO CSV is read, ptbxl_database.csv: name one by --csv"
        assert (said in notes) == told


def test_the_working_directory_is_a_folder_of_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path).relative_to(tmp_path)
    assert ecg_records.find(".") == [path]


def test_a_missing_sample_of_an_array_of_integers_is_no_voltage(tmp_path):
    # numpy.save of the digital signal of wfdb: -32768 is its mark
    array = (1000 * SIGNAL).astype(np.int16)
    array[7, 3] = -32768
    np.save(tmp_path / "x.npy", array)
    (record,) = ecg_records.read(tmp_path / "x.npy")
    assert np.argwhere(np.isnan(record.ecg)).tolist() == [[7, 3]]
    np.save(tmp_path / "ecg.npy", np.stack([SIGNAL, array]))
    (tmp_path / "labels.csv").write_text("record,patient_id,AF\n0,1,0\n1,2,1\n")
    options = prepare.parse(["ecg_array", f"--source={tmp_path}", "--target=x"])
    plan = ecg_array_dataset_builder.make_plan(tmp_path, options)
    rows = sorted(row for split in plan.splits.values() for row in split)
    np.testing.assert_array_equal(plan.make(rows[0])["ecg"], SIGNAL)
    with pytest.raises(PacxError, match=r"ecg.npy\[1\]: holds -32768"):
        plan.make(rows[1])


def test_rows_in_another_order_than_the_array_are_refused(tmp_path):
    # numbers sorted as text: 0, 1, 10, 2, as other people's labels
    np.save(tmp_path / "ecg.npy", np.stack([SIGNAL] * 11))
    options = prepare.parse(["ecg_array", f"--source={tmp_path}", "--target=x"])
    for numbers in (range(11), range(1, 12), [7] * 11, sorted(range(11), key=str)):
        rows = "".join(f"{i},{k},{k % 2}\n" for k, i in enumerate(numbers))
        (tmp_path / "labels.csv").write_text(f"record,patient_id,AF\n{rows}")
        if len({*numbers}) == 1 or sorted(numbers) == [*numbers]:
            ecg_array_dataset_builder.make_plan(tmp_path, options)
            continue
        said = r"row 4 has 10 in column 'record', but stands for ecg.npy\[2\]; sort"
        with pytest.raises(PacxError, match=said):
            ecg_array_dataset_builder.make_plan(tmp_path, options)


def test_a_header_that_names_two_patients_is_refused(tmp_path, capsys):
    write(tmp_path, comments=["# <subject_id>: 7", "# patient: 07.0"])
    header = builder.read_header(tmp_path, "E07835.hea")
    assert header.patient == "7" and not header.others
    write(tmp_path, comments=["# <subject_id>: 7", "# patient: 8"])
    argv = ["wfdb", f"--source={tmp_path}", f"--target={tmp_path}/out"]
    assert prepare.main(argv) == 2
    said = "E07835.hea: names the patients '7' and '8'; correct it, or give --patient"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["t.csv", "t.npy", "t.parquet", "t.npz"])
@pytest.mark.parametrize("modality", ["teacher", "labs"])
def test_a_table_of_embeddings_of_another_form_is_named(tmp_path, name, modality):
    file = tmp_path / name
    if name == "t.npz":  # other names of the arrays
        np.savez(file, ids=np.arange(2), embeddings=np.zeros((2, 3)))
        message = f"{file}: no table of embeddings .it holds ids, embeddings.: give an"
    else:
        file.write_text("id,a\n1,2\n")
        message = f"config.modalities.{modality}.init '{file}': a file; give .* an .npz"
    with pytest.raises(PacxError, match=message):
        teachers.load(modality, {"init": str(file), "by": "patient"})
