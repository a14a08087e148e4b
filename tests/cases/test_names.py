"""Files and folders as archives, PACS and spreadsheets name them: read, or one line."""

import dataclasses
import io
import os
import shutil
import types
import unicodedata

import numpy as np
import pytest
from PIL import Image

from data import audit, prepare
from pacx_jax import embed
from pacx_jax.errors import PacxError
from pacx_jax.input import ecg_records, folders, images, mixture, names, sources
from tests.input import dicom_files

PNG = images.encode_png(np.arange(72, dtype=np.uint8).reshape(9, 8))
JPEG = images.encode_jpeg(np.arange(72, dtype=np.uint8).reshape(9, 8))


def put(root, *files, data=PNG):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def listed(root, *rows, header="file,y", name="labels.csv"):
    lines = [header, *(f"{row},{i % 2}" for i, row in enumerate(rows))]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n")
    return root


def read(root, **fields):
    return folders.read_folder(folders.FolderSpec(path=str(root), **fields))


def source(kind):
    data = types.SimpleNamespace(source=kind, path="", limit=0)
    vars(data).update(dataclasses.asdict(folders.FolderSpec(path="")))
    return sources.open_source(data, "train")


def nfd(text):
    return unicodedata.normalize("NFD", text)


# (files, names in the table): each is the image in its place.
FOUND = {
    # ieee8023/covid-chestxray-dataset#96
    "no extension": (["images/RA-1.png", "images/RA-2.jpg"], ["RA-1", "RA-2"]),
    # ImageMarkup/isic-challenge-scoring#62, esaraee/Savoias-Dataset#1
    "another extension": (["a.png", "b.JPEG"], ["a.jpg", "b.png"]),
    # cs-chan/Total-Text-Dataset#35
    "another case": (["d/a.png", "d/b.JPG"], ["d/A.PNG", "D/b.jpg"]),
    # llmsresearch/paperbanana#234
    "decomposed letters": ([nfd("Relevé_1.png")], ["Relevé_1.png"]),
    "composed letters": (["Relevé_1.png"], [nfd("Relevé_1.png")]),
    # fastai/fastai#1008: a spreadsheet took the zeros
    "zeros in front": (["00012.png", "00013.png"], ["12.png", "13"]),
    "dots in a name": (["1.2.840.1.png", "1.2.840.2.png"], ["1.2.840.1", "1.2.840.2"]),
    "the exact one of two": (["a.png", "A.png"], ["A.png", "a.png"]),
    "another root": (["train/p1/a.png"], ["CheXpert-v1.0-small/train/p1/a.png"]),
    "a publisher's folders": (["images_001/images/a.png"], ["a.png"]),
    "backslashes": (["d/a.png"], ["d\\a.png"]),
    "odd letters": (["a b, (1) #2 100% 'x'.png"], ["\"a b, (1) #2 100% 'x'.png\""]),
}


@pytest.mark.parametrize("case", FOUND)
def test_a_file_is_found_by_what_its_table_calls_it(tmp_path, case):
    files, rows = FOUND[case]
    listing = read(listed(put(tmp_path, *files), *rows))
    assert sorted(listing.paths) == sorted(files)
    if case in ("no extension", "zeros in front"):
        assert "2 rows name their file otherwise: " in " ".join(listing.notes)


def _tiff(path):
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(path)


def _linked(root):
    (root / "a.png").symlink_to("nowhere.png")


# (files, names in the table, further spoiling, the one line)
REFUSED = {
    "nowhere": (["a.png"], ["a.png", "b"], None, "not under .* row 3, 'b'; add the"),
    "two candidates": (
        ["a.png", "a.jpg"],
        ["a"],
        None,
        "row 2 names 'a', which may be a.jpg or a.png .*write its whole path",
    ),
    # a doubled archive: chest_xray/chest_xray
    "twice in an archive": (
        ["x/a.png", "x/x/a.png"],
        ["a.png"],
        None,
        "may be x/a.png or x/x/a.png",
    ),
    "a TIFF": (
        ["b.png"],
        ["a.tif"],
        lambda root: _tiff(root / "a.tif"),
        "are no JPEG, PNG or DICOM .a.tif., the first is row 2.*convert them",
    ),
    "an archive's leftovers": (
        ["__MACOSX/._a.png", "._a.png", "b.png"],
        ["._a.png"],
        None,
        "are no JPEG, PNG or DICOM .._a.png.",
    ),
    "a link to nowhere": (
        ["b.png"],
        ["a.png"],
        _linked,
        "a.png: a link to nowhere.png, which is not there; fetch",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_found_says_why(tmp_path, case):
    files, rows, spoil, message = REFUSED[case]
    put(tmp_path, *files)
    if spoil:
        spoil(tmp_path)
    with pytest.raises(PacxError, match=message) as error:
        read(listed(tmp_path, *rows))
    assert "\n" not in str(error.value)


def test_images_are_found_by_extension_in_any_case_else_by_their_bytes(tmp_path):
    # anomalib#3058, huggingface/datasets#4514; ayselafsar/dicomviewer#15
    put(tmp_path, "a.PNG", "b.Jpg", "c.JPEG", "DICOM/00001")
    put(tmp_path, "DICOM/IM0001", "IM0002", "1.2.840.113", data=dicom_files.made())
    put(tmp_path, "d", data=JPEG)
    bare = dicom_files.made()[132:]  # without a preamble
    put(tmp_path, "IM0003", data=bare)
    put(tmp_path, "DICOMDIR", data=dicom_files.made())
    put(tmp_path, "LICENSE", "x.txt", "Thumbs.db", data=b"text " * 40)
    put(tmp_path, ".DS_Store", "._a.png", "__MACOSX/a.png", ".git/a.png")
    found = names.find(tmp_path)
    read_by = ["a.PNG", "b.Jpg", "c.JPEG", "d", "DICOM/00001", "DICOM/IM0001"]
    assert found.paths == sorted([*read_by, "IM0002", "IM0003", "1.2.840.113"])
    assert found.told() == (
        "passed over as no images: 1 .db, 1 .txt, 4 hidden, 2 without extension"
    )
    assert set(read(tmp_path).paths) == set(found.paths)


def test_what_shares_make_for_themselves_is_passed_over(tmp_path):
    # Synology's thumbnails, and bins
    put(tmp_path, "a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/b.png")
    put(tmp_path, "$RECYCLE.BIN/c.png", "lost+found/d.png")
    found = names.find(tmp_path)
    assert found.paths == ["a.png"] and "4 hidden" in found.told()


def test_an_archive_is_no_folder(tmp_path):
    put(tmp_path, "images.zip")
    with pytest.raises(PacxError, match="images.zip: a file; name a folder"):
        read(tmp_path / "images.zip")


def test_nothing_but_other_files_is_one_line_that_counts_them(tmp_path):
    put(tmp_path, "a.tif", "b.tif", "._c.png", data=b"x")
    with pytest.raises(PacxError, match="no JPEG.*passed over.*1 hidden|2 .tif"):
        names.find(tmp_path)


def test_names_that_are_not_utf_8_are_one_line(tmp_path, capsys):
    # pyload/pyload#4523, tfeldmann/organize#429
    put(tmp_path, "good.png")
    folder = os.path.join(os.fsencode(tmp_path), b"Mu\xf1oz")
    os.mkdir(folder)
    shutil.copy(tmp_path / "good.png", os.path.join(folder, b"a.png"))
    argv = ["folder", f"--source={tmp_path}", f"--target={tmp_path}/../out"]
    assert prepare.main(argv) == 2
    error = capsys.readouterr().err
    assert "1 names are not UTF-8, such as b'Mu\\xf1oz/a.png'; rename them" in error
    assert error.count("\n") == 1


def test_tables_in_sub_folders_are_not_passed_over(tmp_path):
    for name in ("one", "two"):
        listed(put(tmp_path / name, "a.png"), "a.png", name="metadata.csv")
    with pytest.raises(PacxError, match="in its sub-folders .one/metadata.csv, two/"):
        read(tmp_path)
    assert read(tmp_path / "one").label_names == ("y",)
    assert read(tmp_path, csv="-").label_names == ()
    with_one = read(tmp_path, csv="two/metadata.csv", val_fraction=0.0)
    assert with_one.paths == ["two/a.png"]  # by its own folder, not one/a.png
    assert "1 images have no row and are left out" in with_one.notes


def test_the_table_is_found_in_any_case_and_others_are_told(tmp_path):
    put(tmp_path, "a.png")
    listed(tmp_path, "a.png", name="Labels.CSV")
    listed(tmp_path, "a.png", name="train.csv")
    listing = read(tmp_path)
    assert listing.label_names == ("y",)
    assert "passed over as no images: 1 .csv" in listing.notes


# huggingface/datasets#4814: which files are tables of labels
def test_labels_in_other_tables_are_read_or_named(tmp_path):
    put(tmp_path / "tsv", "a.png")
    (tmp_path / "tsv/LABELS.tsv").write_text("file\ty\na.png\t1\n")
    put(tmp_path / "tsv", "Metadata.csv", data=b"file,z\na.png,1\n")
    assert read(tmp_path / "tsv").label_names == ("y",)
    listed(tmp_path / "tsv", "a.png")
    with pytest.raises(PacxError, match="in labels.csv or LABELS.tsv; give one as"):
        read(tmp_path / "tsv")
    put(tmp_path / "x", "a.png", "labels.xlsx", "data/train.csv", "._labels.csv")
    told = read(tmp_path / "x").notes[0]
    assert told.startswith("NO LABELS are read: data/train.csv, labels.xlsx is none")
    assert "NO LABELS" not in " ".join(read(tmp_path / "x", csv="-").notes)


def test_copies_are_told(tmp_path):
    # huggingface/datasets#6494: everything twice
    put(tmp_path, "a.png", "x/a.png")
    assert "1 images are copies of others" in read(tmp_path).notes


def test_folders_that_are_named_by_splits_are_told(tmp_path):
    # fastai/fastai#2336: the publisher's test images in train
    put(tmp_path, "train/NORMAL/a.png", "test/NORMAL/b.png", "Val/c.png")
    assert (
        "NO SPLITS are read from the folders Val, test, train"
        in read(tmp_path).notes[0]
    )
    listed(tmp_path, "train/NORMAL/a.png,train", "Val/c.png,val", header="file,split,y")
    assert "NO SPLITS" not in " ".join(read(tmp_path).notes)


# (files, the row, its file): a whole path in another form, not a shorter one.
NEAREST = {
    "another case": (["a.png", "Images/a.png"], "images/a.png", "Images/a.png"),
    "another extension": (["a.jpg", "d/a.png"], "d/a.jpg", "d/a.png"),
}


@pytest.mark.parametrize("case", NEAREST)
def test_folders_count_before_the_form_of_a_name(tmp_path, case):
    files, row, path = NEAREST[case]
    listing = read(listed(put(tmp_path, *files), row), val_fraction=0.0)
    assert listing.paths == [path]


def test_folders_that_are_stripped_are_told(tmp_path):
    notes = read(
        listed(put(tmp_path, "a.png", "p1/a.png"), "p1/a.png", "p3/a.png")
    ).notes
    assert "1 rows name their file otherwise: 'p3/a.png' is a.png, ..." in notes


def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(put(tmp_path, "a.png"))
    with pytest.raises(PacxError, match="--images is empty: name a folder"):
        names.find("", "--images")
    with pytest.raises(PacxError, match="data.path is empty"):
        read("")
    with pytest.raises(PacxError, match="path of the ECGs is empty"):
        ecg_records.find("")
    assert prepare.main(["folder", "--source=", "--target=x"]) == 2
    assert "error: --source is empty: name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "read_it"),
    [
        ("data.path", lambda: source("folder")),
        ("data.path", lambda: source("prepared")),
        ("--images", lambda: embed.embed_folder(None, "", False)),
        ("--ecgs", lambda: embed.embed_ecgs(None, "", None)),
        ("a path", lambda: audit.audit([""], 1)),
    ],
)
def test_an_empty_path_is_refused_on_every_way_to_the_files(
    tmp_path, monkeypatch, setting, read_it
):
    # a shell variable that is not set: --config.data.path=$DIR
    monkeypatch.chdir(put(tmp_path, "a.png", "b.png"))
    with pytest.raises(PacxError, match=f"^{setting} is empty: name a folder"):
        read_it()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path, monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    source = put(tmp_path / "s\u0142", "a.png", "b.png")
    argv = ["folder", f"--source={source}", f"--target={tmp_path}/\u0142"]
    assert prepare.main(argv) == 0
    out.seek(0)
    assert "\\u0142: " in out.read()


def test_pipes_are_no_files(tmp_path):
    put(tmp_path, "a.png", "b.hea")
    for name in ("pipe", "b.png", "c.dcm", "labels.csv", "d.hea"):
        os.mkfifo(tmp_path / name)  # which waits for a writer
    (tmp_path / "e.png").symlink_to("/dev/zero")
    found = names.find(tmp_path)
    assert found.paths == ["a.png"] and "3 pipe, socket or device" in found.told()
    with pytest.raises(PacxError, match="labels.csv: a pipe, socket or device, no CSV"):
        read(tmp_path)
    with pytest.raises(PacxError, match="d.hea: a pipe, socket or device, no file"):
        ecg_records.find(tmp_path)


@pytest.mark.parametrize("other", ["{}/", "folder:{}", "{}_link", "{}/../set"])
def test_a_set_of_a_mixture_counts_once_however_it_is_written(tmp_path, other):
    root = tmp_path / "set"
    (tmp_path / "set_link").symlink_to(root)
    with pytest.raises(PacxError, match="stands there twice; name each set once"):
        mixture.paths(str((str(root), other.format(root))))


def test_sets_with_a_comma_between_are_no_path(tmp_path):
    for name in ("a", "b", "c,d"):
        (tmp_path / name).mkdir()
    text = f"{tmp_path}/a,folder:{tmp_path}/b"
    with pytest.raises(PacxError, match="give a path, or several as '\\(\"prepared/a"):
        mixture.paths(text)
    assert mixture.paths(f"{tmp_path}/c,d") == (f"{tmp_path}/c,d",)


@pytest.mark.parametrize("text", ["{1, 2}", "'12'", "{1: 2, 3: 4}"])
def test_weights_have_an_order(text):
    with pytest.raises(PacxError, match="give size, size\\^0.5 or numbers"):
        mixture.weights(text, (4, 4))
