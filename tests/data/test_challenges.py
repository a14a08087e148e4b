"""RSNA Pneumonia, SIIM-ACR and TBX11K: what their files say, and what is wrong."""

import json
import re
import types

import numpy as np
import pytest

from data import runs
from pacx_jax.errors import PacxError
from pacx_jax.input import images, sources, subsets
from tests.data import published_trees as trees
from tests.data.published_trees import module, write
from tests.data.test_published import edit, examples
from tests.data.test_published import run as run  # the fixture

RSNA = module("rsna_pneumonia")
ROWS = RSNA.TABLE
IMAGE = "00000000-5dfa-47a6-9556-0260fd34e921"  # with two boxes
SIIM = "1.2.276.0.7230010.3.1.4.8323329.{}.1517875{:03}.{}"


def rows_of(target, summary):
    return {
        e["path"].rsplit("/", 1)[-1].rsplit(".", 1)[0]: e
        for part in examples(target, summary).values()
        for e in part
    }


def test_rsna_has_classes_boxes_views_and_the_patients_of_nih(tmp_path, run):
    trees.draw_rsna_pneumonia(tmp_path / "in")
    code, summary, out = run("rsna_pneumonia", tmp_path / "in", tmp_path / "out")
    assert code == 0, out
    assert "note: 12 boxes (published: 9555) in 10 images, 1 of them repeat" in out
    assert "note: 1 images have no row in the tables and are left out" in out
    assert "40 images of 20 patients of NIH" in out
    rows = rows_of(tmp_path / "out", summary)
    assert len(rows) == 40
    first = rows[IMAGE]
    np.testing.assert_array_equal(first["labels"], [1, 0, 0])
    assert (first["patient_id"], first["view"]) == ("0", "PA")
    assert summary["differences"]["train+val+test"]["Lung Opacity"] == [10, 6_012]
    manifest = json.loads((tmp_path / "out/pacx.json").read_text())
    assert manifest["namespace"] == "nih14"  # its patients are compared with NIH's


def test_rsna_without_its_mapping_says_that_no_patients_are_known(tmp_path, run):
    trees.draw_rsna_pneumonia(tmp_path / "in", mapping=False)
    _, _, out = run("rsna_pneumonia", tmp_path / "in", tmp_path / "out")
    assert "patientId names an image, so that no patients are known" in out
    assert "NO PATIENTS are known" in out
    manifest = json.loads((tmp_path / "out/pacx.json").read_text())
    assert manifest["namespace"] == "rsna_pneumonia"


def test_runs_are_relative_and_go_down_the_columns():
    """By hand, of the challenge's rules, and by an encoder of the test's own."""
    drawn = runs.draw(runs.Runs(("1 2 1 1",), 2, 3), "x")
    assert drawn.tolist() == [[0, 1, 1], [1, 0, 0]]
    mask = np.random.default_rng(0).random((7, 5)) < 0.4
    text = trees.runs_of(mask * np.uint8(255))
    np.testing.assert_array_equal(runs.draw(runs.Runs((text,), 7, 5), "x"), mask)
    both = runs.draw(runs.Runs(("0 2", "5 1"), 2, 3), "x")
    assert both.tolist() == [[1, 0, 0], [1, 0, 1]]
    assert not runs.draw(runs.Runs((), 2, 3), "x").any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "no list of offsets and lengths"),
        ("1 -2", "no list of offsets and lengths"),
        ("one 2", "no list of offsets and lengths"),
        ("1 2 3 4", "x: its mask ends at pixel 10, the image of 2 x 3 at 6"),
    ],
)
def test_runs_that_do_not_fit_are_refused(text, message):
    with pytest.raises(PacxError, match=message):
        runs.draw(runs.Runs((text,), 2, 3), "x")


def test_siim_joins_the_masks_of_an_image_and_counts_what_is_odd(tmp_path, run):
    trees.draw_siim_acr_stage_1(tmp_path / "in")
    code, summary, out = run("siim_acr", tmp_path / "in", tmp_path / "out")
    assert code == 0, out
    assert "note: labels are of train-rle.csv" in out
    told = "note: 6 images without pneumothorax (-1), 6 with, 3 of them of several"
    assert told in out
    assert "note: 1 masks repeat another of their image" in out
    assert "note: 1 images have no row in the tables and are left out" in out
    assert "NO PATIENTS are known" in out
    rows = rows_of(tmp_path / "out", summary)
    whole, halves, none = (rows[SIIM.format(i, i, i * 97)] for i in (0, 2, 1))
    assert [row["labels"].tolist() for row in (whole, halves, none)] == [[1], [1], [0]]
    whole, halves, none = (images.decode(r["mask"]) for r in (whole, halves, none))
    np.testing.assert_array_equal(whole, halves)
    assert whole.any() and not none.any()


def test_a_mask_of_siim_that_does_not_fit_its_image_is_left_out(tmp_path, run):
    """An image that was made smaller, as copies of the set have it."""
    trees.draw_siim_acr(tmp_path / "in")
    image = SIIM.format(2, 2, 194)
    path = next((tmp_path / "in").rglob(f"{image}.dcm"))
    trees.put_dicom(path, side=512)
    flags = ("--max_bad_share=0.1",)
    _, summary, out = run("siim_acr", tmp_path / "in", tmp_path / "out", *flags)
    listed = (tmp_path / "out/quarantine.jsonl").read_text()
    assert "512x512 pixels (height x width) and its mask 1024x1024" in listed
    assert image in listed and sum(summary["unreadable"].values()) == 1


def test_tbx11k_takes_active_and_latent_from_the_boxes(tmp_path, run):
    for kind in ("json", "xml"):
        trees.draw_tbx11k(tmp_path / kind, kind)
        code, summary, out = run("tbx11k", tmp_path / kind, tmp_path / f"{kind}_out")
        assert code == 0, out
        assert "note: 1 images with tuberculosis have no box" in out
        assert "note: 1 images have no row in the tables" in out  # test's
        rows = rows_of(tmp_path / f"{kind}_out", summary)
        found = {k: rows[k]["labels"].tolist() for k in ("h0000", "s0001", "tb0010")}
        assert found == {
            "h0000": [1, 0, 0, 0, 0],
            "s0001": [0, 1, 0, 0, 0],
            "tb0010": [0, 0, 1, 1, 1],
        }
        np.testing.assert_array_equal(
            rows["tb0002"]["labels"], [0, 0, 1, np.nan, np.nan]
        )
        test = {e["path"] for e in examples(tmp_path / f"{kind}_out", summary)["test"]}
        assert test == {f"imgs/{x}" for x in _lines(tmp_path / kind, "val")}


def _lines(root, part):
    return (root / f"lists/TBX11K_{part}.txt").read_text().split()


def test_tuberculosis_of_an_unknown_kind_is_uncertain():
    labels = module("tbx11k").labels
    assert labels("Tuberculosis", {""}) == [0, 0, 1, -1, -1]
    assert labels("Tuberculosis", {"", "Latent TB"}) == [0, 0, 1, -1, 1]
    assert labels("Healthy", None) == [1, 0, 0, 0, 0]


def test_the_reference_draws_seventy_fifteen_fifteen_as_benchx_does():
    """train_test_split with seed 42 of the ids in order, then the rest halved."""
    from sklearn.model_selection import train_test_split

    from data import splits

    high = np.arange(8_400) % 8_400 < 800
    policy = module("tbx11k").FACTS.reference
    names, _ = splits.assign(policy, [""] * 8_400, [""] * 8_400, high.astype(float))
    options = {"random_state": 42}
    train, rest = train_test_split(
        np.arange(8_400), test_size=0.3, stratify=high, **options
    )
    val, test = train_test_split(rest, test_size=0.5, stratify=high[rest], **options)
    for split, rows in {"train": train, "val": val, "test": test}.items():
        assert sorted(rows) == [i for i, name in enumerate(names) if name == split]


BAD = {
    "class": (
        "rsna_pneumonia",
        lambda r: edit(r / RSNA.CLASSES, "Normal", "Norml"),
        "unknown class '.*Norml'; they are Lung Opacity",
    ),
    "target": (
        "rsna_pneumonia",
        lambda r: edit(r / ROWS, ",,,,0", ",,,,2"),
        "row 4: Target is '2', not 0 or 1",
    ),
    "box": (
        "rsna_pneumonia",
        lambda r: edit(r / ROWS, "264.0,152.0", "264.0,"),
        "row 2: Target is 1 and x, y, width, height are 264.0, , 213.0, 379.0: no box",
    ),
    "disagree": (
        "rsna_pneumonia",
        lambda r: edit(r / ROWS, ",,,,0", "1,1,2,2,1"),
        "has 1 boxes, and its class in stage_2_detailed_class_info.csv is 'Normal'",
    ),
    "mapping": (
        "rsna_pneumonia",
        lambda r: edit(r / RSNA.MAPPING, "00000000_000.png", "x.png"),
        "entry 0: subset_img_id .* and img_id 'x.png'; an id and a name",
    ),
    "mapping, no list": (
        "rsna_pneumonia",
        lambda r: write(r / RSNA.MAPPING, "{}"),
        "not a list of entries with subset_img_id",
    ),
    "mask and none": (
        "siim_acr",
        lambda r: edit(r / "stage_2_train.csv", ",-1\n", ",-1\n" + _row(r, ",-1")),
        "has a mask and -1, no pneumothorax; remove one",
    ),
    "no runs": (
        "siim_acr",
        lambda r: edit(r / "stage_2_train.csv", ",-1\n", ",\n"),
        "and EncodedPixels ''; give -1",
    ),
    "folder": (
        "tbx11k",
        lambda r: edit(r / "lists/TBX11K_val.txt", "health/", "well/"),
        "line 1: 'well/h0040.png' is in none of the folders health, sick, tb",
    ),
    "kind": (
        "tbx11k",
        lambda r: edit(r / "annotations/json/TBX11K_val.json", "Obsolete", "Old"),
        "boxes of the kind 'OldPulmonaryTuberculosis'; they are ActiveTuberculosis",
    ),
    "json": (
        "tbx11k",
        lambda r: write(r / "annotations/json/TBX11K_val.json", '{"images": []}'),
        "TBX11K_val.json: no boxes as in COCO's format",
    ),
    "health with boxes": (
        "tbx11k",
        lambda r: edit(
            r / "annotations/json/TBX11K_val.json", '"image_id": 42', '"image_id": 40'
        ),
        "health/h0040.png has boxes of tuberculosis, and is of the kind Healthy",
    ),
}


def _row(root, end):
    line = next(
        x
        for x in (root / "stage_2_train.csv").read_text().splitlines()
        if x.endswith(end)
    )
    return line.replace(end, ",1 2") + "\n"


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_one_line_and_exit_code_2(tmp_path, run, case):
    name, spoil, message = BAD[case]
    trees.DRAW[name](tmp_path / "in")
    spoil(tmp_path / "in")
    code, _, error = run(name, tmp_path / "in", tmp_path / "out")
    assert code == 2 and "\n" not in error and re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_images_of_one_table_alone_are_refused(tmp_path, run):
    trees.draw_rsna_pneumonia(tmp_path / "in")
    path = tmp_path / "in" / RSNA.CLASSES
    lines = [x for x in path.read_text().splitlines() if not x.startswith(IMAGE)]
    write(path, *lines)
    code, _, error = run("rsna_pneumonia", tmp_path / "in", tmp_path / "out")
    assert code == 2 and f"{IMAGE} is in {ROWS} and not in {RSNA.CLASSES}" in error


def test_an_xml_that_declares_entities_is_refused(tmp_path, run):
    trees.draw_tbx11k(tmp_path / "in", "xml")
    path = tmp_path / "in/annotations/xml/tb0010.xml"
    write(path, '<!DOCTYPE a [<!ENTITY b "c">]>' + path.read_text())
    code, _, error = run("tbx11k", tmp_path / "in", tmp_path / "out")
    assert code == 2 and "tb0010.xml: no readable XML file of boxes (a DOCTYPE" in error


def test_listed_images_that_are_not_there_stop_it_unless_allowed(tmp_path, run):
    for name in ("rsna_pneumonia", "siim_acr", "tbx11k"):
        trees.DRAW[name](tmp_path / name)
        suffix = "png" if name == "tbx11k" else "dcm"
        folder = {"rsna_pneumonia": "stage_2_train_images", "siim_acr": "."}
        root = tmp_path / name / folder.get(name, "imgs/health")
        gone = sorted(root.rglob(f"*.{suffix}"))[0]
        gone.unlink()
        code, _, error = run(name, tmp_path / name, tmp_path / f"{name}_out")
        assert code == 2 and "1 listed images are not there" in error
        allowed = (tmp_path / name, tmp_path / f"{name}_out", "--allow_missing")
        code, _, out = run(name, *allowed)
        assert code == 0 and "1 listed images are not there and left out" in out


def test_a_list_of_benchx_names_images_of_a_prepared_set(tmp_path, run):
    trees.draw_tbx11k(tmp_path / "in")
    run("tbx11k", tmp_path / "in", tmp_path / "out", "--splits=reference")
    ids = ("tb0010", "h0000", "h0004", "s0003", "s0005", "h0008")
    (tmp_path / "train_10.txt").write_text("\n".join(ids))
    data = types.SimpleNamespace(
        source="prepared", path=str(tmp_path / "out"), label_fraction=1.0,
        label_draw="positives", subset_list=str(tmp_path / "train_10.txt"),
    )  # fmt: skip
    train = subsets.few_labels(sources.open_source(data, "train"), data)
    stems = {path.rsplit("/", 1)[1][:-4] for path in train.paths()}
    assert stems and stems < {*ids}
    assert f"{6 - len(stems)} of its 6 ids are NOT in the split" in train.notes[-1]
