"""Predictions as CSV, and the comparison of several such files."""

import csv

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import delong, measures, predictions, statistics
from tests.evaluate.test_delong import tied

IDS = [f"{i:03d}.png" for i in range(240)]
PEOPLE = [f"p{i // 2}" for i in range(240)]


def write(path, logits, labels, mask=None, people=PEOPLE, ids=IDS):
    mask = np.ones_like(labels) if mask is None else mask
    out = {"logits": logits, "labels": labels, "label_mask": mask}
    names = tuple("xyz"[: labels.shape[1]])
    predictions.write(path, measures.examples(out, names), ids, people)
    return str(path)


@pytest.fixture
def written(tmp_path):
    """Files of two encoders, of labels x and y; a part of y's truth is unknown."""
    y, a, b = tied()
    labels = np.stack([y, 1 - y], 1)
    mask = np.ones_like(labels)
    mask[::3, 1] = 0
    logits = np.stack([a, -b], 1), np.stack([b, -a], 1)
    files = [
        write(tmp_path / f"{name}.csv", x, labels, mask)
        for name, x in zip("ab", logits, strict=True)
    ]
    return files, (y, a, b), mask


def test_a_row_has_the_id_patient_label_truth_logit_and_probability(written):
    files, (y, a, _), _ = written
    with open(files[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == predictions.COLUMNS and len(rows) == 480
    first = rows[0]
    assert (first["id"], first["patient_id"], first["label"]) == ("000.png", "p0", "x")
    assert float(first["truth"]) == y[0] and float(first["logit"]) == a[0]
    assert float(first["probability"]) == pytest.approx(1 / (1 + np.exp(-a[0])))
    assert rows[1]["label"] == "y" and rows[1]["truth"] == ""


def test_files_are_compared_by_delong_with_patients_and_holm(written, tmp_path, capsys):
    files, (y, a, b), mask = written
    out = tmp_path / "pairs.csv"
    assert predictions.main([*files, f"--out={out}"]) == 0
    with out.open(newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    people, known = np.array(PEOPLE), mask[:, 1] > 0
    expected = {
        "x": delong.paired(a, b, y, people),
        "y": delong.paired(-b[known], -a[known], 1 - y[known], people[known]),
    }
    adjusted = statistics.holm([each.p for each in expected.values()])
    for (label, each), p in zip(expected.items(), adjusted, strict=True):
        row = rows[label]
        assert float(row["difference"]) == pytest.approx(each.difference, abs=1e-12)
        assert float(row["p"]) == pytest.approx(each.p, abs=1e-12)
        assert float(row["p_holm"]) == pytest.approx(p, abs=1e-12)
    assert (rows["y"]["n"], rows["y"]["n_patients"]) == ("160", "120")
    said = capsys.readouterr().out
    assert said.count("after Holm for 2") == 2 and "x, " in said


def test_a_label_of_one_class_is_counted_and_has_no_numbers(tmp_path, capsys):
    _, a, b = tied()
    files = [
        write(tmp_path / f"{k}.csv", x[:, None], np.zeros((240, 1)))
        for k, x in enumerate((a, b))
    ]
    assert predictions.main(files) == 0
    assert "no AUROC: 0 of 240 are positive" in capsys.readouterr().out


def test_labels_of_one_patient_have_no_interval_and_it_is_said(tmp_path, capsys):
    y, a, b = tied()
    files = [
        write(tmp_path / f"{k}.csv", x[:, None], y[:, None], people=["p"] * 240)
        for k, x in enumerate((a, b))
    ]
    assert predictions.main(files) == 0
    said = capsys.readouterr().out
    assert "no interval: its positives, or its negatives, are of one patient" in said
    assert "nan" not in said


def test_other_examples_patients_truths_and_scores_are_refused_and_counted(
    written, tmp_path
):
    files, (y, a, _), _ = written
    labels = np.stack([y, 1 - y], 1)
    x = np.stack([a, a], 1)
    bad = x.copy()
    bad[5:8, 0] = np.nan
    others = {
        "6 predictions are in one alone, such as 000.png .x. in": {
            "logits": x[1:], "labels": labels[1:], "ids": [*IDS[2:], "new.png"],
            "people": PEOPLE[1:],
        },
        "80 predictions differ in their truth or patient": {
            "logits": x, "labels": labels,
        },
        "480 predictions differ in their truth or": {
            "logits": x, "labels": labels, "people": ["q"] * 240,
        },
        "3 of 480 logits are not finite, the first that of 005.png": {
            "logits": bad, "labels": labels,
        },
    }  # fmt: skip
    for message, fields in others.items():
        other = write(tmp_path / "other.csv", **fields)
        with pytest.raises(PacxError, match=message):
            predictions.compare([predictions.read(f) for f in (files[0], other)])


def test_files_that_are_no_predictions_are_refused(tmp_path, capsys):
    file = tmp_path / "a.csv"
    for text, message in (
        ("id,label\n1,x\n", "no column 'patient_id'"),
        ("id,patient_id,label,truth,logit\n1,,x,2,0\n", "row 2: truth '2'"),
        ("id,patient_id,label,truth,logit\n1,,x,1,0\n1,,x,1,0\n", "1 has 'x' twice"),
    ):
        file.write_text(text)
        with pytest.raises(PacxError, match=message):
            predictions.read(str(file))
    assert predictions.main([str(file)]) == 2
    assert "give two files of predictions" in capsys.readouterr().err


def test_masks_and_retrieval_are_written_with_their_measures(tmp_path):
    counts = {"hits": np.array([2, 0]), "called": np.array([4, 0])}
    masks = measures.examples(counts | {"truth": np.array([2, 0])}, ())
    predictions.write(tmp_path / "masks.csv", masks, ["a", "b"], ["", ""])
    with (tmp_path / "masks.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["id"], first["label"]) == ("a", "mask")
    assert float(first["dice"]) == pytest.approx(4 / 6, abs=1e-6)
    assert float(second["iou"]) == 1
    z = np.eye(3)
    out = {"cxr": z, "ecg": z, "cosine_ecg": np.ones(3)}
    found = measures.examples(out | {"ecg_present": np.float32([1, 1, 0])}, ())
    predictions.write(tmp_path / "found.csv", found, ["a", "b", "c"], [""] * 3)
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["recall@1"] for row in rows] == ["1", "1", ""]
