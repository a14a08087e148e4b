"""Subgroups: from a user's table, by view, and how far they lie apart."""

import types

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import measures, statistics, subgroups
from pacx_jax.input import studies
from pacx_jax.input.subsets import Subset

PATHS = [f"images/{i:03d}.png" for i in range(4)]
NAMED = ["1", "1", "2", ""]


def table(tmp_path, text):
    file = tmp_path / "people.csv"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("cell", "band"),
    [
        ("17", "0-17"), ("18", "18-39"), ("59.0", "40-59"), ("060Y", "60-79"),
        ("80", "80+"), ("006M", "0-17"), ("240M", "18-39"), ("411", "unknown"),
        ("-3", "unknown"), ("old", "unknown"), ("", "unknown"),
    ],
)  # fmt: skip
def test_age_bands(cell, band):
    assert subgroups.age_band(cell) == band


def test_table_by_file_name_gives_sex_and_age_bands(tmp_path):
    """NIH's columns; other images are passed over, and who is not there is unknown."""
    text = "Image Index,Patient Age,Patient Gender,Finding Labels\n"
    text += "000.png,57,M,Mass\n001.png,058Y,M,\n002.png,,F,\nother.png,20,F,\n"
    found = subgroups.read_groups(table(tmp_path, text), (), PATHS, NAMED)
    assert found == {
        "Patient Age": ["40-59", "40-59", "unknown", "unknown"],
        "Patient Gender": ["male", "male", "female", "unknown"],
    }


def test_table_by_patient_divides_by_the_columns_that_are_named(tmp_path):
    file = table(tmp_path, "subject_id,race\n00001,A\n2.0,B\n3,A\n")
    found = subgroups.read_groups(file, ("race",), PATHS, NAMED)
    assert found == {"race": ["A", "A", "B", "unknown"]}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("path,race\n000.png,A\n", (), "no column is called sex, gender or age"),
        ("path,sex\n000.png,M\n", ("height",), "no column 'height'"),
        ("name,sex\na,M\n", (), "no column of paths or patients"),
        ("patient,sex\n1,M\n1,F\n", (), "row 3: 1 is 'female' in column 'sex', and"),
        ("path,sex\nx.png,M\n", (), "no row is of any of 4 examples: column 'path'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, text, columns, message):
    with pytest.raises(PacxError, match=message):
        subgroups.read_groups(table(tmp_path, text), columns, PATHS, NAMED)


def test_views_are_those_of_the_source_through_its_subsets():
    index = studies.Index(["a", "a", "b"], ["PA", "LL", "AP"])
    source = types.SimpleNamespace(
        studies=lambda: index, label_names=(), split="test", entries=(),
        namespace="", notes=(), fingerprint="0",
    )  # fmt: skip
    few = Subset(source, np.array([2, 0]))
    assert subgroups.view_groups(few, np.array([1, 0])) == ["PA", "AP"]
    source.studies = lambda: None
    assert subgroups.view_groups(source, np.array([1, 0])) is None
    source.views = ["LL", "RL", "PA"]  # a table of views without studies
    assert subgroups.view_groups(few, np.array([1, 0])) == ["LL", "PA"]


def test_views_that_only_the_records_name_are_read_of_them():
    class Records(list):
        entries = ("image", "view")

    source = Records([{"view": "PA"}, {"view": "AP"}])
    assert subgroups.view_groups(source, np.array([1, 0])) == ["AP", "PA"]


def given(n=400, seed=0):
    """Two labels; in group b the first is not told apart, the second has one class."""
    rng = np.random.default_rng(seed)
    groups = np.array(["a", "b", "c", "unknown"])[np.arange(n) % 4]
    y = np.float32(rng.random((n, 2)) < 0.4)
    y[groups == "b", 1] = 0
    x = np.float32(rng.normal(size=(n, 2)) + 2 * y * (groups != "b")[:, None])
    out = {"logits": x, "labels": y, "label_mask": np.ones_like(y)}
    return measures.examples(out, ("x", "y")), groups, np.arange(n) // 2


def test_groups_have_the_measures_of_their_examples_and_the_worst_gap():
    examples, groups, units = given()
    weights = np.float64(statistics.bootstrap_weights(units, 200))
    found = subgroups.compared(examples, groups, units, weights)
    rows = groups == "b"
    x, y = (examples.arrays[k][rows, 0] for k in ("logits", "labels"))
    auroc = found["scores"]["b"]["labels"]["x"]["auroc"]
    assert auroc["value"] == pytest.approx(roc_auc_score(y, x), abs=1e-12)
    assert auroc["low"] < auroc["value"] < auroc["high"]
    gap = found["gap"]["labels"]["x"]["auroc"]
    assert gap["lowest"] == "b" and gap["highest"] in ("a", "c")
    best = found["scores"][gap["highest"]]["labels"]["x"]["auroc"]
    assert gap["value"] == pytest.approx(best["value"] - auroc["value"], abs=1e-12)
    assert 0 < gap["low"] < gap["value"] < gap["high"]
    assert found["not_compared"] == ["unknown"]
    assert found["n"]["unknown"]["n"] == 100
    assert found["n"]["b"]["labels"]["y"] == {"known": 100, "positives": 0}


def test_macro_means_of_groups_are_over_the_labels_that_all_of_them_have():
    examples, groups, units = given()
    weights = np.float64(statistics.bootstrap_weights(units, 50))
    found = subgroups.compared(examples, groups, units, weights)
    for name, has in (("a", {"x", "y"}), ("b", {"x"})):
        scored = found["scores"][name]
        assert set(scored["labels"]) == has
        assert scored["macro"]["auroc"] == scored["labels"]["x"]["auroc"]
    assert set(found["gap"]["labels"]) == {"x"}


def test_a_group_of_one_class_is_counted_and_not_compared():
    examples, groups, units = given()
    examples.arrays["labels"][groups == "c"] = 0
    weights = np.float64(statistics.bootstrap_weights(units, 50))
    found = subgroups.compared(examples, groups, units, weights)
    assert found["not_compared"] == ["c", "unknown"] and "c" not in found["scores"]
    alone = subgroups.compared(examples, ["a"] * 400, units, weights)
    assert "gap" not in alone and set(alone["scores"]) == {"a"}
