"""Tables as people have them: the right answer, or one line, and never a wrong one.

A case is a table of small images and what comes of it. Where others reported the same
of their programs, the comment names the report.
"""

import collections
import hmac
import json

import numpy as np
import pytest

from data import audit, prepare
from pacx_jax.errors import PacxError
from pacx_jax.input import folders, images, patients, sources
from pacx_jax.modalities import table as embeddings
from pacx_jax.run import overlap
from tests import tiny

N = 6


def draw(root, table, n=N, name="labels.csv"):
    """Images 0.png, 1.png, ... and their table: text, or bytes as they are."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 8), dtype=np.uint8)
        (root / f"{i}.png").write_bytes(images.encode_png(pixels))
    data = table if isinstance(table, bytes) else table.encode()
    (root / name).write_bytes(data)
    return root


def rows(header, *columns, separator=","):
    """A table of N rows: the file, and each column's values over and over."""
    lines = [header.replace(",", separator)]
    for i in range(N):
        cells = [f"{i}.png", *(str(c[i % len(c)]) for c in columns)]
        lines.append(separator.join(cells))
    return "\n".join(lines) + "\n"


def read(root, **fields):
    fields = {"val_fraction": 0.34} | fields
    return folders.read_folder(folders.FolderSpec(path=str(root), **fields))


def positives(listing):
    return dict(
        zip(
            listing.label_names, np.nansum(listing.labels == 1, 0).tolist(), strict=True
        )
    )


# Ids: 211, 211.0 (a cell was empty somewhere: etal/cnvkit#356), zeros that a
# spreadsheet drops (incf-nidash/PyNIDM#84), a sign that keeps them (DFE-Digital/
# register-trainee-teachers#3229, hhurz/tableExport.jquery.plugin#103).
@pytest.mark.parametrize(
    "cell",
    ["211", "211.0", "211,0", "00211", " 211 ", '="00211"', "'211", "\x1f211", "211."],
)
def test_an_id_has_one_form(cell):
    assert patients.canonical(cell) == "211"


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "None", "N/A", "<NA>", "?"])
def test_an_unknown_id_is_nobody(cell):
    assert patients.canonical(cell) == ""
    assert patients.canonical(float("nan")) == ""


def test_ids_that_are_no_numbers_stay():
    for cell in ("p211", "211a", "2.11", "0", "1-2", "sub-S03067"):
        assert patients.canonical(cell) == cell
    assert patients.canonical(np.float64(10000032.0)) == "10000032"
    assert patients.canonical("-7.0") == patients.canonical("-7") == "-7"
    assert patients.canonical("Mun\u0303oz") == patients.canonical("Mu\u00f1oz")


def test_one_patient_in_two_spellings_is_in_one_split(tmp_path):
    table = rows("file,patient_id", ["1", "1.0", "2", "2.0 ", "3", "4"])
    listing = read(draw(tmp_path, table))
    assert sorted(set(listing.patients)) == ["1", "2", "3", "4"]
    seen = collections.defaultdict(set)
    for patient, split in zip(listing.patients, listing.splits, strict=True):
        seen[patient].add(split)
    assert all(len(found) == 1 for found in seen.values())


def test_zero_padded_ids_are_split_as_before_and_named_by_their_number(tmp_path):
    ids = [f"{i:05}" for i in range(6)]
    listing = read(draw(tmp_path, rows("file,patient_id", ids)))
    assert [i for i, split in enumerate(listing.splits) if split == "val"] == [2]
    assert listing.patients == list("012345")


SPELLINGS = ("211", "211.0", "00211", " 211 ")


@pytest.mark.parametrize("seen", SPELLINGS)
@pytest.mark.parametrize("older", [False, True])
def test_the_guard_holds_between_all_spellings(tmp_path, seen, older):
    mae = _account(tmp_path, "mae_vitb16", "mae", [seen, "7"], ["train", "train"])
    if older:  # the list as it was before ids had one form: hashes of the text
        file = mae / overlap.PATIENTS
        content = json.loads(file.read_text())
        key = bytes.fromhex((mae / overlap.KEY).read_text())
        run = content["runs"][0]
        del run["canonical"]
        names = [f"folder/{i.strip()}".encode() for i in (seen, "7")]
        run["hashes"] = [hmac.new(key, n, "sha256").hexdigest()[:32] for n in names]
        file.write_text(json.dumps(content))
    for i, written in enumerate(SPELLINGS):
        with pytest.raises(PacxError, match="1 of 1 test patients were"):
            _account(
                tmp_path,
                "linear_probe",
                f"probe{i}",
                ["5", written],
                ["train", "test"],
                model_init=str(mae),
            )
    clean = ["212", "2110"]
    _account(
        tmp_path, "linear_probe", "clean", clean, ["train", "test"], model_init=str(mae)
    )
    assert '"status": "none"' in (tmp_path / "clean" / "overlap.json").read_text()


@pytest.mark.parametrize("older", [False, True])
def test_the_guard_holds_between_capitals_and_small_letters(tmp_path, older):
    # SQL Server writes a UUID large, Python small
    one, two = "a1b2c3d4-0000-4000-8000-00000000000f", "B1"
    mae = _account(tmp_path, "mae_vitb16", "mae", [one.upper(), two], ["train"] * 2)
    if older:  # a list from when capitals counted
        file = mae / overlap.PATIENTS
        content = json.loads(file.read_text())
        key = bytes.fromhex((mae / overlap.KEY).read_text())
        names = [f"folder/{i}".encode() for i in (one.upper(), two)]
        hashes = [hmac.new(key, n, "sha256").hexdigest()[:32] for n in names]
        content["runs"][0]["hashes"] = hashes
        file.write_text(json.dumps(content))
    for test in [two] if older else [one, two.lower()]:
        ids, splits = ["5", test], ["train", "test"]
        with pytest.raises(PacxError, match="1 of 1 test patients were"):
            _account(tmp_path, "linear_probe", test, ids, splits, model_init=str(mae))


def _account(tmp_path, recipe, name, ids, splits, **fields):
    table = rows("file,patient_id,split", ids, splits).splitlines()[: len(ids) + 1]
    root = draw(tmp_path / f"data_{name}", "\n".join(table), n=len(ids))
    config = tiny.config(
        recipe,
        data__source="folder",
        data__path=str(root),
        data__val_fraction=0.0,
        **fields,
    )
    train = sources.open_source(config.data, "train")
    overlap.account(config, str(tmp_path / name), train)
    return tmp_path / name


def test_the_audit_finds_a_patient_in_another_spelling(tmp_path):
    one = draw(tmp_path / "one", rows("file,patient_id,split", ["00211"], ["train"]))
    two = draw(tmp_path / "two", rows("file,patient_id,split", ["211.0"], ["train"]))
    report = audit.audit([str(one), str(two)], workers=1)
    assert [row["patients"] for row in report["shared"]] == [1]


def test_units_of_the_bootstrap_are_patients_else_examples():
    assert patients.units(["1", "1.0", "", "nan", "2"]) == (
        ["patient 1", "patient 1", "#2", "#3", "patient 2"],
        2,
    )


def test_what_is_no_table_of_embeddings_is_one_line(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    np.savez(tmp_path / "b.npz", id=np.array([b"M\xfc"]), embedding=np.ones((1, 3)))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(PacxError, match=f"{name}: no table of embeddings"):
            embeddings.load("teacher", str(tmp_path / name), "patient")


def test_ids_of_a_table_of_embeddings_have_the_one_form(tmp_path):
    file = str(tmp_path / "teacher.npz")
    np.savez(file, id=np.array(["00211", " 7.0"]), embedding=np.ones((2, 3)))
    assert set(embeddings.load("teacher", file, "patient").rows) == {"211", "7"}
    assert set(embeddings.load("teacher", file, "image").rows) == {"00211", "7.0"}


# Columns: mlmed/torchxrayvision#34 names patientid; data sets differ in its spelling.
@pytest.mark.parametrize(
    "header",
    "patientid PatientID patientId Patient_ID subject_id SubjectID Patient-Id patient "
    "participant_id".split()
    + ["Patient Id", "PATIENT ID ", "Subject ID"],
)
def test_the_column_of_patients_is_known(tmp_path, header):
    table = rows(f"file,{header},finding", [1, 2, 3], [0, 1])
    listing = read(draw(tmp_path, table))
    assert set(listing.patients) == {"1", "2", "3"}
    assert f"patient {header.strip()!r}" in listing.notes[0]


@pytest.mark.parametrize(
    "header",
    "path Path file FileName image_path Image-Index ImageID img filepath".split(),
)
def test_the_column_of_paths_is_known(tmp_path, header):
    listing = read(draw(tmp_path, rows(f"{header},y", [0, 1])))
    assert len(listing.paths) == N and positives(listing) == {"y": 3}


def test_what_was_taken_for_what_is_told(tmp_path, capsys):
    table = rows(
        "File,Patient ID,Split,View Position,StudyID,Edema,sex,male,comment",
        [1, 2, 3],
        ["train", "train", "val"],
        ["PA", "AP"],
        [7, 8],
        ["True", "False", ""],
        ["M", "F"],
        [1, 0],
        ["x"],
    )
    (draw(tmp_path / "in", table) / "notes.txt").write_text("x")
    argv = ["folder", f"--source={tmp_path / 'in'}", f"--target={tmp_path / 'out'}"]
    assert prepare.main([*argv, "--size=0"]) == 0
    out = capsys.readouterr().out
    assert (
        "columns: path 'File', patient 'Patient ID', split 'Split', study 'StudyID', "
        "view 'View Position'"
    ) in out
    assert "labels: Edema (False 2, True 2, blank 2)" in out
    assert "columns that are not used: sex, male, comment" in out
    assert "labels if data.label_columns has them: male" in out
    assert "passed over as no images: 1 .txt" in out
    assert "NO PATIENTS" not in out


def test_without_patients_there_is_a_loud_line_everywhere(tmp_path, capsys):
    root = draw(tmp_path / "in", rows("file,y", [0, 1]))
    argv = ["folder", f"--source={root}", f"--target={tmp_path / 'out'}", "--size=0"]
    assert prepare.main([*argv, "--val_fraction=0.4"]) == 0
    assert capsys.readouterr().out.count("NO PATIENTS are known") == 2  # and in JSON
    for kind, path in (("folder", root), ("prepared", tmp_path / "out")):
        config = tiny.config("mae_vitb16", data__source=kind, data__path=str(path))
        source = sources.open_source(config.data, "train")
        assert (
            "NO PATIENTS are known" in source.notes[-1]
            and str(path) in source.notes[-1]
        )


# Labels.
LABELS = {
    # dotnet/machinelearning-modelbuilder#2782, teableio/teable#1309
    "booleans": ("A,B", (["True", "False"], ["no", "yes"]), {}, {"A": 3, "B": 3}),
    "letters": ("A,B", (["T", "f"], ["y", "N"]), {}, {"A": 3, "B": 3}),
    "floats": ("A", (["1.0", "-1.0", "nan"],), {}, {"A": 2}),
    "beside bookkeeping": (
        "male,visitnumber,Follow-up #,Unnamed: 0,y],A",
        ([1, 0], [0, 1], [0], [1, 0], [1], ["True", "False"]),
        {},
        {"A": 3},
    ),
    # pandas.get_dummies and PTB-XL's ptbxl_database.csv
    "beside columns of 0 and 1": (
        "View Position_AP,site,second_opinion,validated_by_human,A",
        ([0, 1], [0, 1], [1, 0], ["True", "False"], [0, 1]),
        {},
        {"A": 3},
    ),
    "asked for": ("male,A", ([1], [0, 1]), {"label_columns": ("male",)}, {"male": 6}),
    # Lightning-Universe/lightning-flash#728
    "separated": (
        "label",
        (["A/ B", "B", "No Finding"],),
        {"label_separator": "/"},
        {"A": 2, "B": 4},
    ),
    "a value of the labels and of a history": (
        "history,label",
        (["B", "A"], ["A", "B", "A|B"]),
        {"label_columns": ("A",)},
        {"A": 4},
    ),
    "a column's value": (
        "history,other",
        (["B", "A"], ["A", "B", "A|B"]),
        {"label_columns": ("other=A",)},
        {"other=A": 4},
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_what_they_seem(tmp_path, case):
    header, columns, fields, expected = LABELS[case]
    root = draw(tmp_path, rows(f"file,{header}", *columns))
    assert positives(read(root, **fields)) == expected


def test_decimal_commas_of_a_table_with_semicolons_are_labels(tmp_path):
    # SheetJS/sheetjs#2239
    table = rows("file,A,B", ["1,0", "0,0"], ["0,5"], separator=";")
    assert positives(read(draw(tmp_path, table))) == {"A": 3}


def test_labels_with_commas_in_quotes(tmp_path):
    cells = ['"COVID-19, Atelectasis"', "Atelectasis", "Normal"]
    root = draw(tmp_path, rows("file,history,label", ["COVID-19", "Normal"], cells))
    wanted = ("COVID-19", "Atelectasis")
    listing = read(root, label_separator=",", label_columns=wanted)
    assert positives(listing) == {"COVID-19": 2, "Atelectasis": 4}
    assert "in 'label' 2 of 6" in " ".join(listing.notes)
    for fields in ({}, {"label_columns": wanted}, {"label_columns": wanted[:1]}):
        with pytest.raises(PacxError, match="seems a list with ',' between; give data"):
            read(root, **fields)


# Tables as programs write them, all of one content.
PLAIN = rows("file,patient_id,A", [1, 2, 3], [0, 1])
SEMICOLONS = PLAIN.replace(",", ";")
FORMS = {
    "plain": PLAIN.encode(),
    "a mark of UTF-8": PLAIN.encode("utf-8-sig"),  # pandas-dev/pandas#13497
    "UTF-16": PLAIN.encode("utf-16"),  # HKUDS/Vibe-Trading#862
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "UTF-16 with tabs": PLAIN.replace(",", "\t").encode("utf-16"),  # Excel
    "semicolons": SEMICOLONS.encode(),  # PACKED-vzw/CultURIze#49
    "a line that says so": b"sep=;\r\n" + SEMICOLONS.encode(),  # asafdav/ng-csv#28
    "tabs": PLAIN.replace(",", "\t").encode(),
    "blanks after commas": PLAIN.replace(",", ", ")  # apple/turicreate#1692
    .replace(" 0\n", ' "0"\n')
    .encode(),
    "bars": PLAIN.replace(",", "|").encode(),
    "CR": PLAIN.replace("\n", "\r").encode(),
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "blank rows": PLAIN.encode() + b"\n,,\n  \n,,\n",
    "a newline in quotes": PLAIN.replace("A\n", 'A,"no\ntes"\n')
    .replace("0\n", '0,"a\nb, c"\n')
    .replace("1\n", '1,"x ""y"" z"\n')
    .encode(),
    "a newline in the header": SEMICOLONS.replace(
        "patient_id", '"Patient,\nId"'
    ).encode(),  # Alt-Enter in a cell
    "a comma at the end": PLAIN.replace("0\n", "0,\n").encode(),
    "an index": ("," + PLAIN.replace("\n", "\n0,")).removesuffix("0,").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_in_every_form(tmp_path, form):
    listing = read(draw(tmp_path, FORMS[form]))
    assert listing.patients == ["1", "2", "3", "1", "2", "3"]
    assert positives(listing) == {"A": 3}


# (table, fields, the one line)
REFUSED = {
    "two columns of patients": (
        rows("file,patient_id,subject_id,A", [1, 2], [3], [0]),
        {},
        "'patient_id' and 'subject_id' may both be the patient and differ; give data",
    ),
    "two spellings of a column": (
        rows("file,PatientID,Patient ID,A", [1, 2], [3], [0]),
        {},
        "'PatientID' and 'Patient ID' may both be the patient",
    ),
    "two columns of paths": (
        rows("file,path,A", ["a.png", "b.png"], [0]),
        {},
        "'path' and 'file' may both be the path and differ; give data.path_column",
    ),
    "a column twice": (rows("file,A,A", [0], [1]), {}, "two columns are called 'A'"),
    "both forms of an id": (
        rows("file,patient_id", ["00211", "211"]),
        {},
        "row 3: has both '00211' and '211', which differ in leading zeros alone",
    ),
    # pulibrary/orangelight#2695, react-csv/react-csv#136 (with a comma)
    "a shortened id": (
        rows("file,patient_id", [1, "9.91214E+15"]),
        {},
        "row 3: '9.91214E.15' is a number that a spreadsheet has shortened",
    ),
    "a shortened id, as a comma has it": (
        rows("file;patient_id", ["4,687E+11"], separator=";"),
        {},
        "a spreadsheet has shortened",
    ),
    "an id with commas, which is not 211": (
        rows("file;patient_id", ["211,000"], separator=";"),
        {},
        "row 2: '211,000' is a number with commas",
    ),
    "ids that differ in capitals": (
        rows("file,patient_id", ["P1", "p1"]),
        {},
        "row 3: has both 'P1' and 'p1', which differ in capitals alone",
    ),
    "a blank id": (rows("file,patient_id", [1, ""]), {}, "row 3: no known id"),
    # tidyverse/vroom#484, JuliaData/CSV.jl#1096: the rows between would be gone
    "a quote too many": (
        PLAIN.replace("1.png,2", '1.png,"2').replace("4.png,2", '4.png,"2'),
        {},
        "separated by comma .* check its quotes",
    ),
    "an open quote": (PLAIN.replace("4.png,2", '4.png,"2'), {}, "check its quotes"),
    "Latin-1": (
        "file,n\n0.png,Mu\u00f1oz\n".encode("latin-1"),
        {},
        "no UTF-8.* at byte",
    ),
    "a workbook": (b"PK\x03\x04" + bytes(90), {}, "a workbook or an archive, no CSV"),
    "another separator inside": (
        PLAIN.replace("1.png,2", "1.png;2"),
        {},
        "row 3 has 2 cells, the header 3, separated by comma",
    ),
    "a value of two columns": (
        rows("file,one,two", ["A", "B"], ["B", "A|C"]),
        {"label_columns": ("A",)},
        "'A' is a value of the columns one and two; write one=A in data.label_columns",
    ),
    "words and numbers": (
        rows("file,label,A", ["x", "y"], [0, 1]),
        {},
        "column 'label' has words and A 0 and 1: say by data.label_columns which",
    ),
    "rounded ids": (
        rows("file,patient_id", ["123456789012345000", "123456789012346000"]),
        {},
        "all ids of more than 15 digits end in zeros",
    ),
    "no header": (
        rows("0.png,1", [2, 3]),
        {},
        "first row has the file '0.png', so it is no header; put",
    ),
    # COVIDx's train.txt
    "blanks between": (
        PLAIN.replace(",", " "),
        {},
        "its header 'file patient_id A' has no comma, semicolon, tab or bar",
    ),
    "a pointer": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
        {},
        "a git-lfs pointer: get the file by git lfs pull",
    ),
    "two columns of one label": (
        rows("file,Pleural Effusion,pleural_effusion", [0, 1], [1, 0]),
        {},
        "'Pleural Effusion' and 'pleural_effusion' seem one label; remove or rename",
    ),
    "codes of PTB-XL": (
        rows("file,scp_codes", ["\"{'NORM': 100.0, 'SR': 0.0}\""]),
        {"label_columns": ("NORM",)},
        "column 'scp_codes' has lists in brackets",
    ),
    "no label": (
        rows("file,A", ["maybe"]),
        {"label_columns": ("A",)},
        "row 2 has 'maybe' in the label column 'A'; labels are 0, 1, -1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_known_is_one_line(tmp_path, case):
    table, fields, message = REFUSED[case]
    with pytest.raises(PacxError, match=message) as error:
        read(draw(tmp_path, table), **fields)
    assert "labels.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_flag_chooses_between_two_columns(tmp_path):
    root = draw(tmp_path, rows("file,patient_id,subject_id,A", [1, 2], [3], [0]))
    assert set(read(root, patient_column="patient_id").patients) == {"1", "2"}
    assert set(read(root, patient_column="subject_id").patients) == {"3"}
    assert read(root, patient_column="-").patients == []
    same = draw(
        tmp_path / "x", rows("file,patient_id,subject_id", [1, 2], ["01", "2.0"])
    )
    assert set(read(same).patients) == {"1", "2"}


def test_an_older_workdir_goes_on_without_the_new_field(tmp_path):
    from pacx_jax.run import fingerprints

    config = tiny.config("mae_vitb16")
    old = json.loads(json.dumps(config.to_dict()))
    del old["data"]["label_separator"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    fingerprints.check_config(config, str(tmp_path))


# (table, fields, the one line): none of these is what it would be taken for.
TAKEN_OTHERWISE = {
    # ThilinaRajapakse/simpletransformers#51: pandas writes lists as Python does
    "lists of Python": (
        rows("file,Labels", ["\"['mass', 'edema']\"", "['mass']"]),
        {},
        "column 'Labels' has lists in brackets",
    ),
    "lists of JSON": (
        rows("file,Labels", ['"[""mass"",""edema""]"']),
        {"label_separator": ","},
        "column 'Labels' has lists in brackets",
    ),
    "one label in two cases": (
        rows("file,label", ["Mass", "mass", "Edema"]),
        {"label_columns": ("Mass",)},
        "has both 'Mass' and 'mass'; write one label in one way",
    ),
    "slashes between": (
        rows("file,label", ["Mass", "Edema/Mass"]),
        {},
        "seems a list with '/' between",
    ),
    "a label twice": (
        rows("file,A", [0, 1]),
        {"label_columns": ("A", "A")},
        "data.label_columns has 'A' twice",
    ),
    # Kaggle's Chest_xray_Corona_Metadata.csv
    "a split of another name": (
        rows("file,Dataset_type,y", ["TRAIN", "TEST"], [0, 1]),
        {},
        "'Dataset_type' seems the split; give data.split_column='Dataset_type', or '-'",
    ),
    "a patient that a spreadsheet lost": (
        rows("file,patient_id", [1, "#REF!"]),
        {},
        "row 3: no known id",
    ),
}


# Of one hospital's export: one patient in two spellings, or everybody in one.
for one, two in (
    ("211", "\uff12\uff11\uff11"),  # as East Asian keyboards write digits
    ("A B", "A  B"),
    ("s-1", "s\u20111"),
    ("s1", "\u201cs1\u201d"),
):
    table = rows("file,patient_id", [one, two])
    TAKEN_OTHERWISE[f"alike, {two}"] = (table, {}, "row 3: has both .* in blanks, dash")
# Thousands as German, French and Swiss spreadsheets show them.
for cell in ("10.000.032", "10 000 032", "10\u202f032", "10\u00a0032", "10'032"):
    table = rows("file,patient_id", [cell], separator=";")
    TAKEN_OTHERWISE[f"grouped, {cell}"] = (table, {}, "commas, points or blanks betw")
for other in ("Mass  A", "Mass\u00a0A", "Mass A\u200b", "\uff2dass A"):
    table = rows("file,label", ["Mass A", other])
    TAKEN_OTHERWISE[f"label {ascii(other)}"] = (table, {}, "; write one label in one w")
for word in ("-", ".", "ANONYMOUS", "Anonymized"):
    table = rows("file,patient_id", [word, 2])
    TAKEN_OTHERWISE[f"nobody, {word}"] = (table, {}, f"2: no known id .'{word}'.; fill")
for name in ("is_test", "Train", "inValidationSet"):
    table = rows(f"file,{name},A", [0, 1], [0, 1])
    TAKEN_OTHERWISE[f"split {name}"] = (table, {}, f"'{name}' seems to mark one split")


@pytest.mark.parametrize("case", TAKEN_OTHERWISE)
def test_what_would_be_taken_for_something_else_is_one_line(tmp_path, case):
    table, fields, message = TAKEN_OTHERWISE[case]
    with pytest.raises(PacxError, match=message) as error:
        read(draw(tmp_path, table), **fields)
    assert "\n" not in str(error.value)


def test_flags_of_quality_and_splits_are_no_labels(tmp_path):
    names = ("exclude", "is_duplicate", "image_quality", "is_test", "A")
    root = draw(tmp_path, rows(f"file,{','.join(names)}", *[[0, 1]] * 5))
    assert read(root, split_column="-").label_names == ("A",)
    asked = ("is_test", "A")
    chosen = read(root, split_column="-", label_columns=asked)
    assert chosen.label_names == asked


def test_a_split_of_another_name_is_taken_or_left(tmp_path):
    root = draw(tmp_path, rows("file,set,y", ["train", "test"], [0, 1]))
    chosen = read(root, split_column="set", val_fraction=0.0)
    assert chosen.splits == ["train", "test"] * 3
    assert "test" not in read(root, split_column="-").splits


def test_labels_without_a_negative_are_told(tmp_path):
    # a survey's ticks: masked blanks leave nothing to tell apart
    listing = read(draw(tmp_path, rows("file,A,B", [1, ""], [1, 0])))
    assert any(note.startswith("NO NEGATIVES of A: ") for note in listing.notes)


@pytest.mark.parametrize("cell", ["2.11", "12.345", "1.2.840", "p 10 000"])
def test_ids_with_points_and_blanks_are_ids(tmp_path, cell):
    listing = read(draw(tmp_path, rows("file,patient_id", [cell, "x"])))
    assert set(listing.patients) == {cell, "x"}


@pytest.mark.parametrize("cell", ["0_1", "1_0"])
def test_what_only_python_takes_for_a_number_is_no_label(tmp_path, cell):
    assert read(draw(tmp_path, rows("file,A", [0, cell]))).label_names == ()


def test_signs_of_no_width_around_an_id_do_not_count():
    assert patients.canonical("P1\u200b") == patients.canonical("\u2060P1") == "P1"
