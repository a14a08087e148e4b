"""Studies, views and reports, as builders of published sets and folders store them."""

import gzip
import json
import pathlib
import re

import ml_collections
import numpy as np
import PIL.Image
import pytest

from data import prepare, reports
from data.openi import xmls
from data.padchest import terms
from pacx_jax.errors import PacxError
from pacx_jax.input import folders, images, sources, tables, views
from tests.data import test_prepare
from tests.data.prepared_sets import read
from tests.data.published_trees import (
    draw_chexchonet,
    draw_cxlseg,
    draw_mimic_cxr,
    draw_nih14,
    draw_openi,
    draw_padchest,
    draw_vindr_cxr,
    film,
    module,
    put,
    write,
    write_gz,
)

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared/realdata/multiview"
STUDY = ("study_id", "view", "view_origin")
REPORT = ("findings", "impression")


@pytest.fixture
def made(tmp_path, capsys):
    """Prepares tmp_path/in: its notes, and each example by its path."""

    def command(name, *flags, draw=None):
        source, target = tmp_path / "in", tmp_path / "out"
        if draw:
            draw(source)
        argv = [name, f"--source={source}", f"--target={target}", "--size=24"]
        code = prepare.main([*argv, "--workers=1", *map(str, flags)])
        out, err = capsys.readouterr()
        assert code == 0, err
        found = {path: example for path, (_, example) in read(target, "path").items()}
        return json.loads(out.splitlines()[-1])["notes"], found

    return command


def refused(capsys, tmp_path, name, *flags):
    """The one line with which a preparation ends."""
    argv = [name, f"--source={tmp_path / 'in'}", f"--target={tmp_path / 'out'}"]
    assert prepare.main([*argv, *map(str, flags)]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def edit_gz(path, old, new):
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))


def told(notes, pattern):
    return [note for note in notes if re.search(pattern, note)]


def test_mimic_has_studies_views_labels_and_the_sections_of_reports(made):
    notes, found = made("mimic_cxr", draw=draw_mimic_cxr)
    one = found["files/p10/p10000032/s50414267/d000-abc.jpg"]
    two = found["files/p10/p10000032/s50414267/d001-abc.jpg"]
    assert [one[e] for e in STUDY] == ["50414267", "PA", "listed"]
    assert [two[e] for e in STUDY] == ["50414267", "lateral", "listed"]
    assert [one[e] for e in REPORT] == [
        "The heart is normal in size.",
        "No acute process.",
    ]
    assert one["patient_id"] == "10000032"
    labels = dict(zip(module("mimic_cxr").LABELS, one["labels"], strict=True))
    assert labels.pop("Edema") == 1 and np.isnan([*labels.values()]).all()
    assert told(notes, "10 studies") and told(notes, "10 of 10 studies have a report")
    assert told(notes, "views: PA 10, lateral 10 .by origin: listed 20")


def test_mimic_takes_the_labels_of_negbio_and_reports_from_elsewhere(made, tmp_path):
    draw_mimic_cxr(tmp_path / "in")
    inside = tmp_path / "in/mimic-cxr-reports"
    inside.rename(tmp_path / "elsewhere")
    flags = (f"--reports={tmp_path / 'elsewhere'}", "--task=negbio")
    _, found = made("mimic_cxr", *flags)
    one = found["files/p10/p10000032/s50414267/d000-abc.jpg"]
    assert -1 in one["labels"] and one["impression"] == "No acute process."


def test_mimic_without_reports_says_so_and_has_no_entries_of_them(made, tmp_path):
    draw_mimic_cxr(tmp_path / "in")
    (tmp_path / "in/mimic-cxr-reports").rename(tmp_path / "elsewhere")
    notes, found = made("mimic_cxr")
    assert told(notes, "NO REPORTS: no mimic-cxr-reports/ in or beside")
    assert not set(REPORT) & next(iter(found.values())).keys()


def test_mimic_views_that_are_missing_strange_or_contradict_are_counted(made, tmp_path):
    draw_mimic_cxr(tmp_path / "in")
    table = tmp_path / "in/mimic-cxr-2.0.0-metadata.csv.gz"
    begin = "d000-abc,10000032,50414267,CHEST (PA AND LAT),"
    for image, old, new in (
        (0, "PA,2544,postero-anterior", ",2544,postero-anterior"),
        (2, "PA,2544,postero-anterior", ",2544,"),
        (4, "PA,2544,postero-anterior", "MAMMO,2544,"),
        (6, "PA,2544,postero-anterior", "PA,2544,lateral"),
        (8, "PA,2544,postero-anterior", "PA,2544,antero-posterior"),
    ):
        row = begin.replace("d000", f"d{image:03}").replace(
            "032", f"{32 + image // 2:03}"
        )
        row = row.replace("50414267", str(50414267 + image // 2))
        edit_gz(table, row + old, row + new)
    row = "d010-abc,10000037,50414272,CHEST "
    edit_gz(
        table, f"{row}(PA AND LAT),PA,2544,postero-anterior", f"{row}(PORTABLE AP),,,"
    )
    notes, found = made("mimic_cxr")
    seen = {p[-11:-8]: (e["view"], e["view_origin"]) for p, e in found.items()}
    assert seen["000"] == ("PA", "DICOM") and seen["010"] == ("AP", "guessed")
    assert seen["002"][0] == seen["004"][0] == seen["006"][0] == "unknown"
    assert seen["008"] == ("frontal", "listed")
    assert told(notes, "^1 images have a view that no rule knows: 'MAMMO' 1$")
    assert told(
        notes, "^2 images have views that contradict each other .*'PA' .listed."
    )
    assert told(notes, "views: PA 5, AP 1, frontal 1, lateral 10, unknown 3")


def test_mimic_bad_reports_and_studies_are_counted_in_a_line_each(made, tmp_path):
    root = tmp_path / "in"
    draw_mimic_cxr(root)
    folder = root / "mimic-cxr-reports/files/p10"
    (folder / "p10000032/s50414267.txt").unlink()
    (folder / "p10000033/s50414268.txt").write_bytes(
        "IMPRESSION:  Nadelstich\u00e4hnlich, 3 \u00b5m.".encode("cp1252")
    )
    long = " ".join(["word"] * 20_000)
    write(folder / "p10000034/s50414269.txt", f"IMPRESSION: {long}")
    write(folder / "p10000035/s50414270.txt", "CHEST, TWO VIEWS:")
    write(folder / "p10000035/readme.txt", "of nobody")
    write(folder / "p10000099/s59999999.txt", "IMPRESSION: none")
    labels = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    edit_gz(labels, "10000041,50414276", "10000041,59999999")
    put(root / "files/p10/p10000032/s50414267/d001-abc.jpg")  # the frontal again
    notes, found = made("mimic_cxr")
    assert len(found) == 19
    study = {e["study_id"]: e for e in found.values()}
    assert study["50414267"]["impression"] == study["50414270"]["impression"] == ""
    assert study["50414268"]["impression"] == "Nadelstich\u00e4hnlich, 3 \u00b5m."
    assert len(study["50414269"]["impression"].split()) == reports.LONGEST
    assert np.isnan(study["50414276"]["labels"]).all()
    for line in (
        "^9 of 10 studies have a report in ",
        "^1 reports are not in UTF-8 and are read as .*s50414268.txt$",
        "^1 reports have more than 2000 words and are cut there, .*s50414269.txt$",
        "^1 files of the reports name no study and are left out, the first: .*readme",
        "^1 reports are of studies without an image in the split table",
        "^1 studies of the chexpert labels have no image$",
        "^1 studies have no chexpert labels$",
        "^2 of 10 studies have no findings and no impression$",
        "^1 images have the bytes of another of their study .*d001-abc.jpg$",
    ):
        assert len(told(notes, line)) == 1, (line, notes)


BAD_MIMIC = {
    "an archive": (
        lambda r: [
            (r / "mimic-cxr-reports").rename(r / "x"),
            (r / "mimic-cxr-reports.zip").write_bytes(b"PK"),
        ],
        (),
        "mimic-cxr-reports.zip: unpack it where it lies",
    ),
    "no such reports": (lambda r: None, ("--reports=/none",), "no folders p10, p11"),
    "two versions": (
        lambda r: write_gz(r / "mimic-cxr-2.1.0-split.csv.gz", "dicom_id"),
        (),
        "are both there; remove one",
    ),
    "no labels": (
        lambda r: (r / "mimic-cxr-2.0.0-negbio.csv.gz").unlink(),
        ("--task=negbio",),
        "no mimic-cxr-2.0.0-negbio.csv.gz here",
    ),
    "a label": (
        lambda r: edit_gz(r / "mimic-cxr-2.0.0-chexpert.csv.gz", ",1.0", ",7"),
        (),
        "row 2 has '7' in a label column",
    ),
    "a split": (
        lambda r: edit_gz(r / "mimic-cxr-2.0.0-split.csv.gz", "train", "tr"),
        (),
        "row 2: unknown split 'tr'",
    ),
    "one study twice": (
        lambda r: write(r / "mimic-cxr-reports/files/p11/s50414267.txt", "x"),
        (),
        "study 50414267 has also",
    ),
}


@pytest.mark.parametrize("case", BAD_MIMIC)
def test_bad_input_of_mimic_is_one_line(tmp_path, capsys, case):
    spoil, flags, message = BAD_MIMIC[case]
    draw_mimic_cxr(tmp_path / "in")
    spoil(tmp_path / "in")
    assert message in refused(capsys, tmp_path, "mimic_cxr", *flags)


def test_padchest_maps_findings_and_scales_each_image_by_its_range(made):
    notes, found = made("padchest", draw=draw_padchest)
    by_number = {int(p[6:9]): e for p, e in found.items()}
    names = module("padchest").LABELS
    positive = {
        i: {n for n, v in zip(names, by_number[i]["labels"], strict=True) if v == 1}
        for i in (0, 1, 2)
    }
    assert positive[0] == {"No Finding"}
    assert positive[1] == {"Cardiomegaly", "Pleural Effusion"}
    assert positive[2] == {"No Finding", "Support Devices"}
    assert np.isnan(by_number[3]["labels"]).all()
    assert (by_number[1]["labels"] == 0).sum() == 12
    seen = [(e["view"], e["view_origin"]) for e in (by_number[i] for i in range(4))]
    assert seen[:2] == [("PA", "listed"), ("lateral", "listed")]
    assert seen[2:] == [("AP supine", "guessed"), ("unknown", "listed")]
    assert [by_number[5][e] for e in REPORT] == ["sin hallazg . silu card 5 .", ""]
    assert by_number[5]["study_id"] == "7002" and by_number[5]["patient_id"] == "901"
    levels = images.decode(by_number[0]["image"])
    assert abs(levels.mean() - film().mean()) < 3 and levels.dtype == np.uint8
    assert told(notes, "^1 images are known to be damaged and are left out$")
    assert told(notes, "^1 findings are none of CheXpert's .* 6 times .*scoliosis 6")
    assert told(notes, "^1 images have the bytes of another of their study .*copy.png$")
    assert told(notes, "^7 images have no findings to go by: labels are missing$")


def test_padchest_refuses_a_cell_of_labels_that_is_no_list(tmp_path, capsys):
    draw_padchest(tmp_path / "in")
    edit_gz(next((tmp_path / "in").glob("*.gz")), "\"['normal']\"", "normal")
    message = refused(capsys, tmp_path, "padchest")
    assert "row 2: Labels 'normal' is no list" in message


def test_levels_scaled_by_their_own_range_leave_other_sets_refused(tmp_path):
    draw_padchest(tmp_path)
    name = tmp_path / "0/2168000_x.png"
    shown = images.decode(name, own_range=True)
    assert (shown.min(), shown.max()) == (0, 255)
    with pytest.raises(PacxError, match="values 800 to 3350 in 16 bits"):
        images.decode(name)


def test_terms_of_padchest_that_count_for_nothing_are_told_apart():
    assert terms.parse("nan") == frozenset() and terms.parse("['a'") is None
    found = terms.parse("['cardiomegaly', ' COPD signs', 'unchanged', 'exclude']")
    assert terms.unmapped(found) == {"copd signs"}
    assert len(terms.BROKEN) == 21


def test_openi_has_sections_terms_and_the_views_of_its_headers(made):
    notes, found = made("openi", draw=draw_openi)
    one = found["NLMCXR_png/CXR1_1_IM-0001-2001.png"]
    assert [one[e] for e in STUDY] == ["CXR1", "PA", "DICOM"]
    assert [one[e] for e in REPORT] == ["Clear.", "Report 1."]
    names = module("openi").LABELS
    labels = dict(zip(names, one["labels"], strict=True))
    assert (labels["Cardiomegaly"], labels["Lung Opacity"]) == (-1, 1)
    assert labels["No Finding"] == labels["Edema"] == 0
    assert found["NLMCXR_png/CXR4_IM-0004-2001.png"]["view"] == "LL"
    assert found["NLMCXR_png/CXR4_IM-0004-1001.png"]["view"] == "unknown"
    for line in (
        "^1 reports name no image and are left out$",
        "^3 reports have no MeSH terms to go by: labels are missing$",
        "^1 MeSH headings are none of CheXpert's labels, in 3 places: calcinosis 3",
        "views: PA 9, LL 3, unknown 12",
        "^12 studies$",
    ):
        assert len(told(notes, line)) == 1, (line, notes)


def test_openi_leaves_out_reports_that_cannot_be_read_and_counts_them(made, tmp_path):
    draw_openi(tmp_path / "in")
    folder = tmp_path / "in/ecgen-radiology"
    (folder / "2.xml").write_text("<eCitation><uId id='CXR2'/>")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    (folder / "3.xml").write_bytes(f"{bomb}<x>&b;</x>".encode("utf-16"))
    (folder / "4.xml").write_text("<eCitation/>")
    notes, found = made("openi")
    assert len(found) == 18
    assert told(notes, "^3 files are no reports and are left out, the first: .*2.xml")
    with pytest.raises(PacxError, match="3.xml: no readable XML report .a DOCTYPE"):
        xmls.read(folder / "3.xml")
    with pytest.raises(PacxError, match="4.xml: names no study"):
        xmls.read(folder / "4.xml")


def test_openi_without_its_reports_is_one_line(tmp_path, capsys):
    put(tmp_path / "in/NLMCXR_png/CXR1_1_IM-0001-2001.png")
    assert "unpack NLMCXR_reports.tgz" in refused(capsys, tmp_path, "openi")


def test_openi_takes_views_from_dicom_files(made, tmp_path):
    pytest.importorskip("pydicom")
    from tests.input import dicom_files

    root = tmp_path / "in"
    draw_openi(root)
    (root / "nlmcxr_dicom_metadata.csv.gz").unlink()
    for path in [*root.rglob("*.png")]:
        other = path.name.removeprefix("CXR").replace("1_1_", "1_", 1)
        folder = root / "NLMCXR_dcm" / other.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        stored = dicom_files.STORED - int(path.name[-8:-4])  # another one for each
        view = "LATERAL" if "-2001" in other else "PA"
        data = dicom_files.made(np.abs(stored), ViewPosition=view)
        (folder / other).with_suffix(".dcm").write_bytes(data)
        path.unlink()
    notes, found = made("openi")
    assert found["NLMCXR_dcm/1/1_IM-0001-2001.dcm"]["view"] == "lateral"
    assert told(notes, "views: PA 12, lateral 12 .by origin: DICOM 24")


def test_chexpert_compares_its_columns_with_the_names_of_files(made, tmp_path):
    root = test_prepare.draw_chexpert(tmp_path)
    root.rename(tmp_path / "in")
    notes, found = made("chexpert")
    one = found["train/patient00000/study1/view1_frontal.jpg"]
    two = found["train/patient00000/study1/view2_lateral.jpg"]
    assert [one[e] for e in STUDY] == ["patient00000/study1", "AP", "listed"]
    assert two["view"] == "unknown"  # the columns of that table call all AP
    assert told(notes, "^8 images have views that contradict each other and count")


def test_chexpert_without_columns_takes_the_view_of_the_name(made, tmp_path):
    root = test_prepare.draw_chexpert(tmp_path)
    root.rename(tmp_path / "in")
    for table in ("train", "valid"):
        path = tmp_path / f"in/{table}.csv"
        path.write_text(path.read_text().replace("Frontal/Lateral,AP/PA", "One,Two"))
    _, found = made("chexpert")
    one = found["valid/patient00006/study1/view2_lateral.jpg"]
    assert [one[e] for e in STUDY[1:]] == ["lateral", "guessed"]


@pytest.mark.parametrize(
    ("name", "draw", "study", "view"),
    [
        ("nih14", draw_nih14, "0_0", "PA"),
        ("vindr_cxr", draw_vindr_cxr, f"{7919:032x}", "PA"),
        ("chexchonet", draw_chexchonet, "cxr0.png", "frontal"),
        ("cxlseg", draw_cxlseg, "50414269", None),
    ],
)
def test_other_sets_have_the_studies_and_views_they_publish(
    made, name, draw, study, view
):
    _, found = made(name, draw=draw)
    one = next(e for e in found.values() if e["study_id"] == study)
    assert one.get("view") == view and one.get("view_origin") == (view and "listed")


def test_two_rows_of_an_image_that_contradict_in_its_view_are_counted(made, tmp_path):
    draw_nih14(tmp_path / "in")
    table = tmp_path / "in/Data_Entry_2017.csv"
    *lines, last = table.read_text().splitlines()  # the first image again
    write(table, *lines, last.replace(",PA,", ",AP,"))
    notes, found = made("nih14")
    assert found[min(found)]["view"] == "frontal"
    assert told(notes, "^1 images have views that contradict each other")


def draw_folder(root):
    rows = ["file,patient_id,study_id,view"]
    for i, view in enumerate(("PA", "Lateral", "AP", "zz", "", "PA")):
        put(root / f"{i}.png", 2 if i == 5 else i)
        rows.append(f"{i}.png,p{i // 3},{'' if i == 4 else 'st' + str(i // 3)},{view}")
    write(root / "labels.csv", *rows)


def test_a_folder_has_studies_and_views_of_its_table(made, tmp_path):
    draw_folder(tmp_path / "in")
    notes, found = made("folder")
    assert [found[f"{i}.png"]["view"] for i in range(4)] == [
        "PA",
        "lateral",
        "AP",
        "unknown",
    ]
    assert found["4.png"]["study_id"] == "4.png"  # it names none
    for line in (
        "^3 studies$",
        "^1 rows name no study and are each one of their own$",
        "^1 images have a view that no rule knows: 'zz' 1$",
    ):
        assert len(told(notes, line)) == 1, (line, notes)
    listing = folders.read_folder(folders.FolderSpec(path=str(tmp_path / "in")))
    assert listing.studies == ["st0", "st0", "st0", "st1", "4.png", "st1"]
    assert listing.views[3:5] == ["unknown", "unknown"]


def test_a_folder_has_the_reports_of_its_table(tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = ["path,patient_id,study_id,view,Findings,impression,edema"]
    cells = [
        ("p1", "s1", "lateral", "", "", 1),
        ("p1", "s1", "PA", "Clear, no effusion.", "", 0),
        ("p2", "s2", "AP", "", "Small left effusion.", 1),
        ("p3", "s3", "AP", "", "", 0),
    ]
    for i, (patient, study, view, *texts, label) in enumerate(cells):
        pixels = rng.integers(0, 256, (20, 20), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        quoted = ",".join(f'"{text}"' for text in texts)
        lines.append(f"{i}.png,{patient},{study},{view},{quoted},{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    flags = [f"--source={tmp_path}", "--val_fraction=0.0", "--test_fraction=0.0"]
    target = tmp_path.parent / f"{tmp_path.name}_prepared"
    assert prepare.main(["folder", *flags, f"--target={target}"]) == 0
    said = capsys.readouterr().out
    assert "reports: findings and impression; 2 of 4 rows without" in said
    for kind, path in (("folder", tmp_path), ("prepared", target)):
        about = {"source": kind, "path": str(path), "group": "study"}
        if kind == "folder":
            about |= {"val_fraction": 0.0, "test_fraction": 0.0}
        source = sources.open_source(ml_collections.ConfigDict(about), "train")
        assert source.label_names == ("edema",)
        found = {source[i]["study_id"]: source[i] for i in range(len(source))}
        assert (
            found["s1"]["findings"] == "Clear, no effusion."
        )  # not of the first image
        assert found["s2"]["impression"] == "Small left effusion."
        assert (found["s3"]["findings"], found["s3"]["impression"]) == ("", "")


@pytest.mark.parametrize(
    "cells, there",
    [
        (["1", ""], False),
        (["Mass", "No Finding"], False),
        (["Pleural Effusion|Large Mass", ""], False),
        (["There is no edema.", ""], True),
    ],
)
def test_labels_and_lists_of_them_are_no_reports(cells, there):
    rows = [["a", cells[0]], ["b", cells[1]]]
    table = tables.Table("x", ("path", "Findings"), rows)
    assert folders.table_reports(table) == ({"findings": "Findings"} if there else {})
    assert folders.table_reports(table, ("Findings",)) == {}


def test_a_folder_counts_copies_within_a_study(tmp_path):
    draw_folder(tmp_path)
    put(tmp_path / "1.png")  # as 0.png
    notes = folders.read_folder(folders.FolderSpec(path=str(tmp_path))).notes
    assert told(notes, "^1 images are copies of another of their study and are kept$")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real studies in ../shared/realdata")
def test_real_studies_of_two_views_prepare_as_a_folder(tmp_path, capsys):
    target = tmp_path / "out"
    argv = ["folder", f"--source={REAL}", f"--target={target}", "--size=32"]
    assert prepare.main([*argv, "--workers=1"]) == 0
    found = [example for _, example in read(target, "path").values()]
    studies = {(e["patient_id"], e["study_id"]) for e in found}
    assert (len(found), len(studies)) == (39, 19)
    kinds = {}
    for e in found:
        kinds.setdefault(e["study_id"], set()).add(views.coarse(e["view"]))
    assert sum({"frontal", "lateral"} <= kind for kind in kinds.values()) >= 15
    assert told(json.loads(capsys.readouterr().out.splitlines()[-1])["notes"], "^19 st")


SECTIONS = {
    "a preliminary reading above": (
        "WET READ: large effusion\n   FINAL REPORT\n IMPRESSION:\n  Small effusion.",
        ("", "Small effusion."),
    ),
    "both in one": ("FINDINGS/IMPRESSION: All clear.", ("", "All clear.")),
    "synonyms in other case": (
        "Findings: one\nConclusion: two\nNOTIFICATION: by phone at noon today",
        ("one", "two"),
    ),
    "two of a kind": ("IMPRESSION: a\nIMPRESSION: b", ("", "a b")),
    "a heading that names the image": (
        "PA AND LATERAL VIEWS OF THE CHEST:  The lungs are quite clear.",
        ("The lungs are quite clear.", ""),
    ),
    "no heading": (
        "AP CHEST, ___\r\n\r\nHISTORY: cough\r\n\r\nThe lungs are clear\r\ntoday.\n\n"
        "___",
        ("", "The lungs are clear today."),
    ),
    "only what is left out": ("HISTORY: a cough that has lasted long", ("", "")),
    "a colon in a sentence": (
        "IMPRESSION: Compared to prior: no change.",
        ("", "Compared to prior: no change."),
    ),
    "nothing": ("", ("", "")),
}


@pytest.mark.parametrize("case", SECTIONS)
def test_sections_are_cut_by_the_rules_of_reports(case):
    text, expected = SECTIONS[case]
    assert reports.sections(text)[:2] == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_reports_are_read_in_the_encodings_of_old_systems(encoding):
    text = "IMPRESSION: K\u00f6hler\u2019s disease"
    assert reports.decode(text.encode(encoding)) == (text, encoding != "utf-8-sig")


@pytest.mark.parametrize(
    ("claims", "view", "origin", "conflict"),
    [
        ([], "unknown", "listed", False),
        ([("listed", "Frontal"), ("listed", "AP")], "AP", "listed", False),
        ([("listed", "AP"), ("DICOM", "AP supine")], "AP supine", "DICOM", False),
        ([("listed", ""), ("DICOM", "LL")], "LL", "DICOM", False),
        ([("listed", "PA"), ("guessed", "frontal")], "PA", "listed", False),
        ([("listed", "LL"), ("DICOM", "RL")], "lateral", "listed", True),
        ([("listed", "Frontal"), ("listed", "LL")], "unknown", "listed", True),
    ],
)
def test_statements_on_one_view_are_settled(claims, view, origin, conflict):
    settled = views.settle(claims)
    assert settled[:2] == (view, origin) and bool(settled.conflict) == conflict


def test_a_target_from_before_there_were_studies_is_named_as_such(
    tmp_path, capsys, made
):
    made("nih14", draw=draw_nih14)
    path = tmp_path / "out/pacx.json"
    manifest = json.loads(path.read_text())
    manifest["entries"] = [e for e in manifest["entries"] if e not in STUDY]
    path.write_text(json.dumps(manifest | {"source_fingerprint": "older"}))
    message = refused(capsys, tmp_path, "nih14", "--size=24")
    assert "was prepared without study_id, view, view_origin, which are read" in message
