"""What a model card says of training sets, terms, measurements and licence."""

import json

import pytest

from pacx_jax.errors import INSTALL, PacxError
from pacx_jax.run import finished, model_card
from tests import tiny

CARD = {"alternateName": "NIH ChestX-ray14", "license": "Free", "url": "https://a.b"}


def a_set(path, **fields):
    path.mkdir(parents=True)
    (path / "croissant.json").write_text(json.dumps(CARD | fields))
    return str(path)


def a_run(path, config):
    path.mkdir(parents=True)
    text = json.dumps(json.loads(config.to_json_best_effort()))
    (path / "config.json").write_text(text)
    return str(path)


def test_sets_and_terms_are_those_of_all_runs_behind(tmp_path):
    first = tiny.config("mae_vitb16", data__path=a_set(tmp_path / "secret/nih"))
    start = a_run(tmp_path / "mae", first)
    second = tiny.config("distill_vitb16", data__path=str(tmp_path / "gone"))
    second.model_init = f"{start}/export"
    second.modalities.labs.init = str(tmp_path / "labs")
    lines = model_card.training_sets(second)
    assert lines == [
        "a set whose card (croissant.json) is not there: its terms are not known",
        "an encoder that it started from: its training sets are in that one's card, if "
        "anywhere",
        "mae: NIH ChestX-ray14 (Free, https://a.b)",
    ]
    second.data.source = "folder"
    assert "a folder of images" in model_card.training_sets(second)[0]
    second.data.simulated = True
    assert "SIMULATED cohort" in model_card.training_sets(second)[0]


def test_a_mixture_names_each_of_its_sets(tmp_path):
    one = a_set(tmp_path / "a")
    two = a_set(tmp_path / "b", alternateName="TBX11K", license="As its page says")
    config = tiny.config("mae_vitb16", data__path=f'("{one}", "{two}", "folder:/c")')
    told = model_card.training_sets(config)
    assert [line.partition(" (")[0] for line in told] == [
        "NIH ChestX-ray14",
        "TBX11K",
        "a folder of images: its terms are not known here",
    ]


def test_runs_in_a_circle_end(tmp_path):
    config = tiny.config("mae_vitb16", data__path="x")
    config.model_init = str(tmp_path / "run")
    a_run(tmp_path / "run", config)
    assert len(model_card.training_sets(config)) == 2


SPAN = {"low": 0.7, "high": 0.9}
EVALUATION = {
    "split": "test",
    "n": 1_200,
    "n_patients": 340,
    "intervals": {"Mass|Nodule": {"auroc": 0.8123} | SPAN, "dice": {"value": 0.5}},
    "subgroups": {
        "sex": {
            "n": {"female": {"n": 700}, "unknown": {"n": 500}},
            "scores": {"female": {"macro": {"auroc": {"value": 0.81} | SPAN}}},
        }
    },
}


def test_measurements_have_intervals_and_subgroups(tmp_path):
    assert "Not measured on held-out patients" in model_card.measurements(str(tmp_path))
    file = tmp_path / "evaluation_test.json"
    file.write_text(json.dumps(EVALUATION))
    text = model_card.measurements(str(tmp_path))
    for line in (
        "`test`, 1,200 examples, 340 patients:",
        "| Mass\\|Nodule | AUROC | 0.812 | 0.700 to 0.900 |",
        "| dice |  | 0.500 |  |",
        "| sex | n | mean of | value | 95% interval |",
        "| female | 700 | auroc | 0.810 | 0.700 to 0.900 |",
        "| unknown | 500 |  | not compared |  |",
    ):
        assert line in text.splitlines(), line
    file.write_text('{"n": "many"}')
    with pytest.raises(PacxError, match="evaluation_test.json is damaged"):
        model_card.measurements(str(tmp_path))


def test_a_card_has_use_terms_licence_and_shortcuts(tmp_path):
    config = tiny.config("mae_vitb16", data__path=a_set(tmp_path / "secret"))
    (tmp_path / "metrics.jsonl").write_text("")
    card = finished.card(config, str(tmp_path), tiny.folder("vit"), "latest")
    parts = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    wanted = ["Intended use", "Training sets and their terms", "Licence", "Measured"]
    assert [p for p in parts if p in wanted] == wanted
    assert "- NIH ChestX-ray14 (Free" in card and "license: not stated." in card
    assert "Known shortcuts" in parts and "AP or PA" in card
    assert "secret" not in card
    assert INSTALL in card.partition("## Use\n")[2].partition("```")[0]
    config.license = "CC-BY-NC-4.0"
    card = finished.card(config, str(tmp_path), tiny.folder("vit"), "latest")
    assert "license: CC-BY-NC-4.0\n" in card


def test_a_card_keeps_its_measurements_where_no_newer_ones_lie(tmp_path):
    card = "# A\n\n## Measured\nAUROC 0.9\n\n## Limits\nNone.\n"
    assert model_card.measured_since(card, tmp_path) == card
    found = {"n": 5, "intervals": {"macro": {"auroc": 0.7, "low": 0.6, "high": 0.8}}}
    (tmp_path / "evaluation_test.json").write_text(json.dumps(found))
    newer = model_card.measured_since(card, tmp_path)
    assert "0.9" not in newer and "0.700" in newer and newer.endswith("None.\n")
