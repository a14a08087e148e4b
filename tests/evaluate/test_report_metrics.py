"""Metrics of generated reports, and what is defined where there is nothing."""

import json
import math
import sys

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import report_labels, report_metrics

TRUE = [
    "No pleural effusion or pneumothorax.",
    "There is a small left pleural effusion.",
    "Heart size is normal. No edema is seen.",
]


def test_equal_texts_score_1_whatever_their_case_and_signs():
    found = report_metrics.score([t.upper().replace(".", " !") for t in TRUE], TRUE)
    assert found["bleu4"] == found["rouge_l"] == pytest.approx(1)
    assert found["label_f1_micro"] == found["label_f1_macro"] == 1
    assert found["label_f1_absent"] == 1
    assert (found["pairs"], found["empty"]) == (3, 0)


def test_bleu4_is_that_of_its_definition():
    # 7 words against 8: precisions 6/7, 4/6, 2/5, 1/4, brevity exp(1 - 8/7).
    generated = ["a small left pleural effusion is there"]
    true = ["there is a small left pleural effusion today"]
    words = generated[0].split()
    want = true[0].split()

    def precision(n):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        known = {tuple(want[i : i + n]) for i in range(len(want) - n + 1)}
        return sum(g in known for g in grams) / len(grams)

    value = math.exp(np.mean([math.log(precision(n)) for n in (1, 2, 3, 4)]))
    value *= math.exp(1 - 8 / 7)
    assert report_metrics.bleu4(generated, true) == pytest.approx(value)


def test_rouge_l_is_that_of_its_definition():
    generated, true = "a b c d", "a c x d y"  # a c d: 3 of 4 and 3 of 5
    assert report_metrics.rouge_l([generated], [true]) == pytest.approx(2 / 3)
    # Letters with accents are letters.
    assert report_metrics.rouge_l(["peque\u00f1o"], ["peque\u00f1o"]) == 1


def test_nothing_in_common_is_0_and_nothing_at_all_is_not_defined():
    assert report_metrics.bleu4(["a b c d"], ["e f g h"]) == 0
    assert report_metrics.bleu4(["a b c"], ["a b c"]) == 0  # no four words
    assert report_metrics.bleu4([""], ["e f g h"]) == 0
    assert report_metrics.rouge_l([""], ["e"]) == 0
    found = report_metrics.score([], [])
    assert found["pairs"] == found["empty"] == 0
    rest = {k: v for k, v in found.items() if k not in ("pairs", "empty")}
    assert len(rest) == 2 + 4 + 14 and all(map(math.isnan, rest.values()))


def test_pairs_without_a_true_text_are_left_out_and_empty_generated_ones_count():
    found = report_metrics.score(["Effusion.", "", " . "], ["", *TRUE[:2]])
    assert (found["pairs"], found["empty"]) == (2, 2)
    assert found["bleu4"] == found["rouge_l"] == found["label_f1_micro"] == 0


def test_label_f1_counts_findings_that_are_present():
    def rows(*statuses):
        out = np.full((len(statuses), 14), np.nan, np.float32)
        for row, status in zip(out, statuses, strict=True):
            for i, value in status.items():
                row[i] = value
        return out

    true = rows({5: 1, 6: 0}, {5: 1, 6: -1}, {5: -1, 9: 1})
    predicted = rows({5: 1, 6: 1}, {5: 0, 6: -1}, {5: 1, 9: 1})
    found = report_metrics.label_f1(predicted, true)
    names = report_labels.FINDINGS
    assert found[f"label_f1/{names[5]}"] == pytest.approx(0.5)  # 1 of 2 and 2
    assert found[f"label_f1/{names[6]}"] == 0  # said once, never true
    assert found[f"label_f1/{names[9]}"] == 1
    assert math.isnan(found[f"label_f1/{names[1]}"])
    assert found["label_f1_macro"] == pytest.approx(1.5 / 3)
    assert found["label_f1_micro"] == pytest.approx(2 * 2 / (4 + 3))
    assert found["label_f1_absent"] == 0
    assert found["label_f1_uncertain"] == pytest.approx(2 / 3)


def test_recall_finds_each_x_rays_own_report_and_ties_are_chance():
    z = np.eye(20)
    assert report_metrics.recall(z, z)["recall@1"] == 1
    alike = report_metrics.recall(z, np.ones((20, 3)) @ np.ones((3, 20)))
    assert alike["recall@5"] == pytest.approx(alike["chance@5"]) == pytest.approx(0.25)
    scores = z + np.roll(2 * z, 1, axis=1)  # the neighbour's report is likelier
    found = report_metrics.recall_of_scores(scores)
    assert found["recall@1"] == 0 and found["recall@5"] == 1
    same = report_metrics.recall_of_scores(np.zeros((20, 20)))
    assert same["recall@10"] == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 8))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    assert report_metrics.recall(a, b) == pytest.approx(
        report_metrics.recall_of_scores(unit[0] @ unit[1].T)
    )
    nothing = report_metrics.recall_of_scores(np.zeros((0, 0)))
    assert all(map(math.isnan, nothing.values()))


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(
        "def length(generated, true):\n"
        "    return {'length': sum(map(len, generated)) / len(generated)}\n"
        "def wrong(generated, true):\n    return [1]\n"
        "def taken(generated, true):\n    return {'bleu4': 1}\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_metrics", None)


def test_a_plugin_adds_its_numbers(plugins):
    found = report_metrics.score(TRUE, TRUE, ["own_metrics:length"])
    assert found["length"] == np.mean([len(t) for t in TRUE])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_metrics:missing", "has no attribute 'missing'; give package.module"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("own_metrics", "give package.module:function"),
        ("", "give package.module:function"),
        ("own_metrics:number", "that is no function"),
        ("own_metrics:wrong", r"it returns \[1\], not \{name: number\}"),
        ("own_metrics:taken", "another metric is called bleu4 too"),
    ],
)
def test_a_plugin_that_is_none_is_one_line(plugins, name, message):
    with pytest.raises(PacxError, match=message):
        report_metrics.score(TRUE, TRUE, [name])


def test_lists_of_different_lengths_are_one_line():
    with pytest.raises(PacxError, match="2 generated texts do not pair with 3 true"):
        report_metrics.score(TRUE[:2], TRUE)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    functions = {"nltk.translate.bleu_score": report_metrics.bleu4,
                 "rouge_score.rouge_scorer": report_metrics.rouge_l}  # fmt: skip
    for package, function in functions.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(PacxError, match=r"not installed: run pip .*\[reports\]"):
            function(TRUE, TRUE)


def test_command_reads_pairs_and_writes_metrics(tmp_path, capsys):
    path, out = tmp_path / "texts.jsonl", tmp_path / "metrics.json"
    rows = [{"generated": t, "true": t} for t in TRUE]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert report_metrics.main([f"--texts={path}", f"--out={out}"]) == 0
    assert "bleu4 1\n" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["rouge_l"] == 1 and found["label_f1/Fracture"] is None


@pytest.mark.parametrize("line", ['{"true": "a"}', "[]", "text", '{"true": 1}',
                                  '{"true": 1, "generated": "a"}'])  # fmt: skip
def test_a_line_that_is_no_pair_is_named(tmp_path, capsys, line):
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"true": "a", "generated": "b"}}\n{line}\n')
    assert report_metrics.main([f"--texts={path}"]) == 2
    assert "line 2 is no" in capsys.readouterr().err
