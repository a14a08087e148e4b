"""A trained classifier measured on held-out patients, with intervals."""

import csv
import json
import pathlib
import types

import numpy as np
import PIL.Image
import pytest

import pacx_jax
from pacx_jax import main
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import (
    calibration,
    frozen,
    held_out,
    measures,
    predictions,
    statistics,
    thresholds,
)
from pacx_jax.objectives import late_fusion
from tests import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two studies a patient; images of the sick are brighter, with an overlap."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "patient_id", "split", "sick"))
        for i in range(120):
            patient, sick = i // 2, (i // 2) % 2
            level = 60 + 40 * sick + rng.normal(0, 30)
            image = np.clip(rng.normal(level, 20, (20, 20)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(image).save(root / f"{i:03d}.png")
            split = ("train", "val", "test")[patient % 3]
            writer.writerow((f"{i:03d}.png", f"p{patient}", split, sick))
    encoder = tmp_path_factory.mktemp("encoder") / "vit"
    model_folder.save(encoder, tiny.folder("vit"), "")
    return tiny.config(
        "linear_probe",
        model_init=str(encoder),
        data__source="folder",
        data__path=str(root),
        data__image_size=32,
        data__threads=1,
        data__hflip=0.0,
        global_batch_size=8,
        total_steps=20,
        log_every=5,
        eval_every=10,
        save_every=10,
    )


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "probe"
    main.run(config, str(path))
    return path


def test_the_exported_encoder_has_the_statistics_that_it_was_probed_with(workdir):
    exported = model_folder.load(workdir)
    assert exported.preprocessing["mean"] == tiny.folder("vit").preprocessing["mean"]


def test_auroc_stands_inside_its_patient_interval(config, workdir):
    result = held_out.evaluate(config.copy_and_resolve_references(), workdir, "test")
    row = result["intervals"]["sick"]
    assert row["low"] < row["auroc"] < row["high"]
    assert row["auroc"] == pytest.approx(result["auroc_sick"], abs=1e-12)
    assert (result["n"], result["n_patients"]) == (40, 20)
    written = json.loads((workdir / "evaluation_test.json").read_text())
    assert written["intervals"] == result["intervals"]


def test_every_score_has_its_interval_and_the_lines_say_the_means(config, workdir):
    result = held_out.evaluate(config.copy_and_resolve_references(), workdir, "test")
    found = result["scores"]
    names = {"auroc", "ap", "f1", "brier", "ece", "accuracy"}
    assert set(found["macro"]) == set(found["labels"]["sick"]) == names
    row, interval = found["labels"]["sick"]["auroc"], result["intervals"]["sick"]
    assert row == {k: interval[k] for k in ("low", "high")} | {"value": row["value"]}
    assert row["value"] == interval["auroc"]
    for name in names - {"ece"}:
        at = found["macro"][name]
        assert at["low"] <= at["value"] <= at["high"], name
        assert at["value"] == pytest.approx(result[f"{name}_macro"], abs=1e-12)
    assert "views" not in result
    first, second, last = held_out.lines(result)
    assert first.startswith("sick: AUROC 0.") and "95% interval" in first
    assert second.startswith("macro, all: AUROC 0.") and ", Brier 0." in second
    assert last.startswith("split test, n 40, loss ") and "{" not in last


def test_studies_are_scored_with_one_view_two_and_all():
    """Two views that each tell half: together they tell more, on the same studies."""
    rng = np.random.default_rng(0)
    y = np.float32(rng.random((300, 2)) < 0.4)
    each = np.float32(rng.normal(size=(300, 2, 2)) + y[:, None])
    mask = np.ones((300, 2), np.float32)
    mask[200:, 1] = 0
    out = {"view_logits": each, "view_mask": mask, "labels": y}
    out |= {"label_mask": np.ones_like(y)}
    out["logits"] = late_fusion.mean_logits(each, mask)
    units = np.array([f"p{i // 2}" for i in range(300)])
    result = held_out.with_intervals(out, units, ("a", "b"), 0, "multilabel")
    views = {k: (v["n"], v["scores"]["macro"]) for k, v in result["views"].items()}
    assert {k: n for k, (n, _) in views.items()} == {
        "one_view": 300, "two_views": 200, "one_of_two_views": 200,
    }  # fmt: skip
    one, two = views["one_of_two_views"][1], views["two_views"][1]
    assert two["auroc"]["value"] > one["auroc"]["high"]
    assert set(result["views"]["two_views"]["scores"]["labels"]) == {"a", "b"}
    shown = held_out.lines({"split": "test", "auroc_macro_two_views": 0.5} | result)
    assert shown[-1] == "split test"
    assert shown[-2].startswith("macro, one of two views (200 studies): AUROC 0.")


def test_choices_of_validation_are_frozen_for_the_test_split(config, workdir):
    result = held_out.evaluate(config.copy_and_resolve_references(), workdir, "test")
    logits, labels = validation_logits(config, workdir)
    row = result["thresholds"]["sick"]
    assert (row["chosen_on"], row["known"], row["positives"]) == ("val", 40, 20)
    for rule in thresholds.RULES:
        expected = thresholds.choose(logits, labels, rule)
        assert row[rule]["logit"] == pytest.approx(expected, abs=1e-5), rule
        for name in ("sensitivity", "specificity", "f1"):
            at = row[rule][name]
            assert at["low"] <= at["value"] <= at["high"], (rule, name)
    scalings = result["calibration"]["sick"]
    a, b = calibration.platt(logits, labels)
    assert (scalings["platt"]["a"], scalings["platt"]["b"]) == pytest.approx((a, b))
    expected = 1 / calibration.temperature(logits, labels)
    assert scalings["temperature"]["a"] == pytest.approx(expected)
    ece = result["scores"]["labels"]["sick"]["ece"]
    assert scalings["none"]["ece"] == pytest.approx(ece, abs=1e-12)
    assert result["decision_curve"]["sick"][0]["p"] == 0.05
    assert sum(r["n"] for r in result["reliability"]["sick"]) == 40


def validation_logits(config, workdir):
    """As predictions_val.csv has them, which no choice is made for."""
    asked = held_out.Asked(predictions=True)
    config = config.copy_and_resolve_references()
    result = held_out.evaluate(config, workdir, "val", asked)
    assert "thresholds" not in result and "reliability" in result
    rows = predictions.read(str(workdir / "predictions_val.csv")).rows.values()
    return np.array([x for *_, x in rows]), np.array([y for _, y, _ in rows])


def test_a_table_of_people_and_predictions_by_the_command(
    config, workdir, tmp_path, capsys
):
    rows = [f"p{i},{'MF'[i // 6 % 2]},{20 + i}" for i in range(57)]  # p59 is unknown
    (tmp_path / "people.csv").write_text(
        "\n".join(["patient_id,sex,age", *rows]) + "\n"
    )
    main.measure(
        tiny.copy_of(config), str(workdir), "test", predictions=True,
        groups=str(tmp_path / "people.csv"), thresholds=("sensitivity=0.5",),
    )  # fmt: skip
    result = json.loads((workdir / "evaluation_test.json").read_text())
    sex, age = (result["subgroups"][k] for k in ("sex", "age"))
    assert set(sex["scores"]) == {"female", "male"} and sex["n"]["unknown"]["n"] == 2
    assert set(age["scores"]) == {"18-39", "40-59", "60-79"}
    gap = sex["gap"]["macro"]["auroc"]
    each = {k: v["macro"]["auroc"]["value"] for k, v in sex["scores"].items()}
    assert gap["value"] == pytest.approx(max(each.values()) - min(each.values()))
    assert set(result["thresholds"]["sick"]) == {
        "chosen_on", "known", "positives", "sensitivity=0.5",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "sex: AUROC 0." in said and "not compared: unknown 2" in said
    found = predictions.read(str(workdir / "predictions_test.csv"))
    assert len(found.rows) == 40 and ("004.png", "sick") in found.rows
    truth, x = np.array([row[1:] for row in found.rows.values()]).T
    assert statistics.auroc(x, truth) == pytest.approx(result["auroc_sick"])


def test_scores_that_are_not_finite_are_counted_and_nothing_is_measured():
    logits = np.zeros((5, 2))
    logits[3, 1], logits[4] = np.nan, np.inf
    source = types.SimpleNamespace(split="test", name=lambda i: f"image {i}")
    message = "2 of 5 examples of the test split have scores that are not finite, the "
    with pytest.raises(PacxError, match=message + "first is image 13: nothing is"):
        held_out.refuse_nonfinite({"logits": logits}, np.arange(10, 15), source)


def test_labels_of_one_class_and_one_patient_alone_are_said_and_counted():
    rng = np.random.default_rng(0)
    y = np.float32(np.stack([rng.random(40) < 0.4, np.zeros(40)], 1))
    out = {"logits": rng.normal(size=(40, 2)), "labels": y}
    out["label_mask"] = np.ones_like(y)
    given = measures.examples(out, ("a", "b"))
    chosen = frozen.choose(given, "val", thresholds.RULES)
    assert chosen["b"] == {"chosen_on": "val", "known": 40, "positives": 0}
    units = np.arange(40)
    result = held_out.with_intervals(
        out, units, ("a", "b"), 0, "multilabel", None, chosen
    )
    assert result["undefined"] == {"b": {"known": 40, "positives": 0}}
    for part in ("intervals", "thresholds", "calibration", "decision_curve"):
        assert set(result[part]) == {"a"}, part
    told = held_out.lines({"split": "test"} | result)
    assert "without both classes, left out: b (0 of 40 positive)" in told
    y[:20, 1] = 1
    result = held_out.with_intervals(
        out, units, ("a", "b"), 0, "multilabel", None, chosen
    )
    assert (
        result["not_chosen"] == {"b": chosen["b"]} and "b" in result["scores"]["labels"]
    )
    one = held_out.with_intervals(out, ["p"] * 40, ("a", "b"), 0, "multilabel")
    assert one == {"notes": ["no intervals: 40 examples are of one patient alone"]}
    assert one["notes"][0] in held_out.lines({"split": "test"} | one)


def test_evaluating_on_validation_gives_what_the_best_checkpoint_had(config, workdir):
    result = held_out.evaluate(config.copy_and_resolve_references(), workdir, "val")
    best = json.loads((workdir / "best.json").read_text())["value"]
    assert result["auroc_macro"] == pytest.approx(best, abs=1e-6)


def test_without_patients_results_count_images(config, workdir, capsys):
    config = config.copy_and_resolve_references()
    config.data.patient_column = "-"
    result = held_out.evaluate(config, workdir, "test")
    assert result["n_images"] == 40 and not {k for k in result if "patient" in k}
    assert "NO PATIENTS are known" in capsys.readouterr().out


def test_other_labels_than_the_run_was_trained_on_are_refused(config, workdir):
    file = workdir / "labels.json"
    before = file.read_text()
    file.write_text('["male"]')
    with pytest.raises(PacxError, match="its labels are sick, those that the run was"):
        held_out.evaluate(config.copy_and_resolve_references(), workdir, "test")
    file.write_text(before)


def test_unfinished_run_and_unknown_split_are_errors(config, workdir, tmp_path):
    with pytest.raises(PacxError, match="holds no finished run"):
        held_out.evaluate(config.copy_and_resolve_references(), tmp_path, "test")
    with pytest.raises(PacxError, match="split 'nowhere'"):
        held_out.evaluate(config.copy_and_resolve_references(), workdir, "nowhere")


def test_encoder_of_another_shape_is_refused_with_what_differs(config, tmp_path):
    other = tiny.config(
        "mae_vitb16",
        data__source="folder",
        data__path=config.data.path,
        data__image_size=32,
        model__variant="mu",
        model__patch_size=16,
        model_init=config.model_init,
        model_init_parts=("encoder",),
        loss__mask_ratio=0.5,
        global_batch_size=8,
        total_steps=2,
        optim__warmup_steps=1,
    )
    with pytest.raises(PacxError, match="patch_embed/kernel"):
        main.run(other, str(tmp_path / "run"))


def test_evaluating_with_another_split_of_patients_is_refused(config, workdir):
    other = tiny.copy_of(config)
    other.data.test_fraction = 0.8
    with pytest.raises(PacxError, match="data.test_fraction was 0.0, is 0.8"):
        main.measure(other, str(workdir), "test")


def test_labels_that_are_no_labels_are_refused(config, tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "labels.csv").write_text("path,age\na.png,57\n")
    other = tiny.copy_of(config)
    other.data.update(path=str(tmp_path), label_columns=("age",))
    with pytest.raises(PacxError, match="row 2 has '57' in the label column 'age'"):
        main.run(other, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("log_every", 0, "config.log_every is 0: give at least 1"),
        ("mesh.fsdp", -1, "config.mesh.fsdp is -1: give at least 0"),
        ("mesh.tensor", 3, "config.mesh.tensor 3 does not divide the 8 devices"),
        ("accumulate", 7, "is not divisible by 8 devices x config.accumulate 7: set"),
        ("remat", "all", "config.remat 'all': choose none, dots, full"),
        ("dtype", "float99", "config.dtype is 'float99': choose float32 or"),
        ("best", "", "config.export=best needs config.best"),
        ("data.image_size", 96, "config.data.image_size is 96, but the encoder"),
    ],
)
def test_value_that_no_run_can_have_stops_it_at_once(
    config, tmp_path, field, value, expected
):
    other = tiny.copy_of(config)
    other.update_from_flattened_dict({field: value})
    with pytest.raises(PacxError, match=expected):
        main.run(other, str(tmp_path / "run"))


def test_a_finished_run_is_the_classifier_that_was_evaluated(config, workdir):
    config = config.copy_and_resolve_references()
    result = held_out.evaluate(config, workdir, "test", held_out.Asked(True))
    model = pacx_jax.Classifier.load(workdir)
    assert model.labels == ("sick",)
    told = predictions.read(workdir / "predictions_test.csv").rows
    paths = sorted(one for one, _ in told)
    root = pathlib.Path(config.data.path)
    z = model.encoder([root / path for path in paths])
    logits = [told[path, "sick"][2] for path in paths]
    np.testing.assert_allclose(model.logits(z)[:, 0], logits, atol=1e-5)
    chosen = result["calibration"]["sick"]["platt"]
    a, b = (model.calibration["labels"]["sick"][k] for k in "ab")
    assert (a, b) == (chosen["a"], chosen["b"])
    p = model.probabilities(np.array(logits)[:, None])[:, 0]
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-a * np.array(logits) - b)))
    rule = result["thresholds"]["sick"]["max_f1"]["logit"]
    told = model.calibration["labels"]["sick"]["thresholds"]["max_f1"]["logit"]
    assert told == pytest.approx(rule, abs=1e-12)
    card = (workdir / "export" / "README.md").read_text()
    assert "p = classifier.predict" in card and "(n, 1)" in card
