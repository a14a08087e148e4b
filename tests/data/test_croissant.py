"""croissant.json of prepared sets: terms, files, splits, and mlcroissant's opinion."""

import hashlib
import json

import pytest

from data import croissant, flags
from tests.data import published_trees as trees
from tests.data.test_published import run as run  # the fixture


@pytest.fixture
def prepared(tmp_path, run):
    trees.draw_nih14(tmp_path / "in")
    code, summary, _ = run("nih14", tmp_path / "in", tmp_path / "out")
    assert code == 0
    return tmp_path / "out", summary


def test_every_data_set_has_its_terms():
    assert set(croissant.TERMS) == set(flags.NAMES)
    assert all(terms.title and terms.license for terms in croissant.TERMS.values())


def test_a_prepared_set_has_a_card_of_its_terms_files_and_splits(prepared):
    folder, summary = prepared
    card = json.loads((folder / croissant.FILE).read_text())
    assert card["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert card["name"] == "nih14" and "NIH Clinical Center" in card["license"]
    listed = {f["name"]: f for f in card["distribution"]}
    here = {p.name for p in folder.iterdir()}
    assert set(listed) == here - {"pacx.json", croissant.FILE}
    for name, about in listed.items():
        data = (folder / name).read_bytes()
        assert about["sha256"] == hashlib.sha256(data).hexdigest()
        assert about["contentSize"] == f"{len(data)} B"
    splits, labels = card["recordSet"]
    found = {row["splits/name"]: row["splits/examples"] for row in splits["data"]}
    assert found == summary["counts"]
    hernia = [r for r in labels["data"] if r["labels/label"] == "Hernia"]
    assert {r["labels/split"]: r["labels/positives"] for r in hernia} == {
        s: n["Hernia"] for s, n in summary["positives"].items()
    }
    manifest = json.loads((folder / "pacx.json").read_text())
    assert croissant.FILE in manifest["sha256"]  # what --check compares
    assert str(folder.parent) not in json.dumps(card)


def test_the_simulated_cohort_is_not_under_the_terms_of_what_it_imitates(tmp_path, run):
    trees.draw_nih14(tmp_path / "in")
    (tmp_path / "in/cohort_layout.json").write_text("{}")
    run("nih14", tmp_path / "in", tmp_path / "out")
    card = json.loads((tmp_path / "out" / croissant.FILE).read_text())
    assert card["name"] == "nih14-simulated" and "SIMULATED" in card["description"]
    assert "apache" in card["license"] and "citeAs" not in card


def test_mlcroissant_reads_the_card(prepared):
    mlcroissant = pytest.importorskip("mlcroissant")
    folder, summary = prepared
    dataset = mlcroissant.Dataset(jsonld=str(folder / croissant.FILE))
    rows = list(dataset.records("splits"))
    assert {r["splits/examples"] for r in rows} == {*summary["counts"].values()}
