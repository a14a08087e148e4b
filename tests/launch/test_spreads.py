"""What a run of one seed says of other trainings."""

import json

import pytest

from launch import spreads
from pacx_jax.errors import PacxError
from pacx_jax.evaluate.reports import tables


def row(trainings, spread=0.0123, **more):
    common = {"a": "pacx", "b": "mae", "labels": "physiological", "fraction": 0.01}
    common |= {"trainings": trainings, "spread": spread, "group": True}
    return common | more


def test_one_seed_quotes_what_several_recorded(tmp_path, capsys):
    comparison = {"tables": {"all": {"pairs": [row(5), row(5, 0.02, fraction=1.0)]}}}
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    file = tmp_path / "recorded.json"
    flags = [f"--comparison={tmp_path}/comparison.json", f"--file={file}"]
    flags += ["--name=pacx_cohort", "--command=python launch/study.py x --seeds=5"]
    assert spreads.main(flags) == 0
    assert "spreads over 5 trainings" in capsys.readouterr().out
    recorded = spreads.read(file)
    said = spreads.notes([row(1, None)], "pacx_cohort", recorded)
    assert said[0].startswith("One training seed") and len(said) == 2
    assert (
        "over 5 training seeds the difference had a standard deviation of 0.012"
        in (said[1])
    )
    assert "python launch/study.py x --seeds=5" in said[1]
    assert recorded["pacx_cohort"]["date"] in said[1]
    assert spreads.notes([row(5)], "pacx_cohort", recorded) == []


def test_what_is_not_recorded_is_said(tmp_path):
    assert spreads.read(tmp_path / "none.json") == {}
    said = spreads.notes([row(1)], "demo", {})
    assert said[1] == "No spread over training seeds is recorded for demo."
    other = {"demo": {"trainings": 3, "spreads": {}, "date": "", "command": ""}}
    assert spreads.notes([row(1)], "demo", other)[1] == said[1]


def test_few_trainings_are_not_recorded():
    with pytest.raises(PacxError, match="2 trainings: a spread is worth recording"):
        spreads.of({"pairs": [row(2)]})


def test_tables_show_p_after_holm_where_there_is_one():
    numbers = {"difference": 0.05, "low": 0.02, "high": 0.08, "subsets": 2}
    rows = [row(5, **numbers, n_patients=30, p_holm=p) for p in (0.0123, None)]
    text = tables.render_table_text([], rows)
    assert text.count("gain shown, p 0.012 after Holm") == 1
    assert text.count("gain shown") == 2
