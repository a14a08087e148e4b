"""The comparison's tables, and the report in a real browser."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from pacx_jax.evaluate import comparison, probe, statistics
from pacx_jax.evaluate.reports import report, tables, words
from tests import browser

ROOT = pathlib.Path(__file__).resolve().parents[2]
LABELS = ("dilated LV", "heart failure", "consolidation")
GROUPS = {"physiological": LABELS[:2], "anatomical": LABELS[2:]}
ARMS = {
    "pacx": tables.Arm("PaCX", "compared", "The distilled encoder."),
    "mae": tables.Arm("MAE", "compared"),
    "pixels": tables.Arm("Raw <pixels>", "floor"),
    "ceiling": tables.Arm("ECG + labs", "ceiling"),
}


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    labels = (rng.random((700, 3)) < 0.35) * 1.0
    strength = {"pacx": 1.0, "mae": 0.1, "pixels": 0.3, "ceiling": 2.0}
    arms = {}
    for name, gain in strength.items():
        for training in range(1 if name == "pixels" else 3):
            x = rng.normal(size=(700, 8))
            x[:, :2] += gain * labels[:, :2]
            arms[name, training] = {"train": x[:400], "test": x[400:]}
    known = np.ones((400, 3))
    scores = probe.run_probes(arms, labels[:400], known, (0.1, 1.0), range(4))
    scores = comparison.by_training(scores)
    compared = comparison.compare_arms(
        scores,
        labels[400:],
        known[:300],
        np.arange(300) // 2,
        LABELS,
        GROUPS,
        [("pacx", "mae"), ("pacx", "pixels")],
        {0.1: 40, 1.0: 400},
        n_resamples=100,
    )
    return scores, labels[400:], compared


@pytest.fixture(scope="module")
def full(study):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 24), dtype=np.uint8)
    heat = rng.random((24, 24))
    compared = study[2]
    return report.Report(
        title="PaCX-MAE & friends",
        headline=("Neither control reproduces the gain.",),
        summary=compared.summary,
        table=compared.table,
        pairs=compared.pairs,
        arms=ARMS,
        curves={
            "MAE/train": ([1, 2, 3], [1.0, 0.5, float("nan")]),
            "MAE/held-out": ([1, 3], [1.1, 0.6]),
            "Distillation/InfoNCE": ([5], [3.4]),
        },
        reconstructions=[(image, image // 2, np.stack([image] * 3, axis=-1))] * 2,
        retrieval=[
            {"encoder": "MAE", "target": "ECG", "n": 464, "recall@1": 0.01, "r2": -0.1}
        ],
        rollouts=[(image, heat, 1 - heat, 1 - 2 * heat)],
        configs={"mae": {"width": 128}, "distill": "name = '</pre><script>'"},
        versions={"jax": "0.10.2"},
        seeds={"cohort": 7},
        seconds={"MAE": 240.04},
        goodput={
            "mae": {
                "goodput": 0.8125,
                "seconds": {"compile": 10.0, "data_stall": 1.25},
                "sessions": 2,
            }
        },
        n_resamples=100,
    )


def test_report_says_where_the_seconds_of_a_run_went(full):
    text = report.render(full)
    assert "Where the seconds of each run went" in text and "data stall" in text
    assert ">81%</td><td>10.0</td><td>1.2</td><td>2</td>" in text


def test_comparison_agrees_with_a_direct_pairing(study):
    scores, labels, compared = study
    row = compared.summary[0]
    assert (row["labels"], row["fraction"]) == ("physiological", 0.1)
    weights = statistics.bootstrap_weights(np.arange(300) // 2, 100)
    draws = statistics.seed_draws(4, 100)
    (pacx, pacx_drawn), (mae, mae_drawn) = (
        statistics.macro_distribution(
            *statistics.resampled_auroc(
                scores[arm, 0.1][..., :2], labels[:, :2], weights
            ),
            draws,
        )
        for arm in ("pacx", "mae")
    )
    gap = statistics.over_trainings(pacx - mae, pacx_drawn - mae_drawn)
    assert (row["a_auroc"], row["b_auroc"]) == (pacx.mean(), mae.mean())
    assert (row["low"], row["high"]) == (gap.low, gap.high)
    assert (row["trainings"], row["subsets"]) == (3, 4)
    assert (row["n_patients"], row["n_labels"]) == (150, 40)
    assert [r["subsets"] for r in compared.summary] == [4, 1, 4, 1]


def test_comparison_is_json_and_marks_the_undefined_as_none(study):
    scores, labels, _ = study
    hidden = np.ones((300, 3))
    hidden[:, 2] = 0
    compared = comparison.compare_arms(
        scores, labels, hidden, np.arange(300), LABELS, GROUPS, [], {0.1: 40, 1.0: 400},
        n_resamples=20,
    )  # fmt: skip
    rows = [r for r in compared.summary if r["labels"] == "anatomical"]
    assert all(row["difference"] is None for row in rows)
    json.dumps(dataclasses.asdict(compared), allow_nan=False)
    assert "n/a" in tables.render_table_text(compared.table, compared.summary)
    report.render(report.Report(summary=compared.summary, table=compared.table))


def test_comparison_names_an_unknown_label_of_a_group(study):
    scores, labels, _ = study
    with pytest.raises(ValueError, match=r"names \['oedema'\]"):
        comparison.compare_arms(
            scores, labels, np.ones((300, 3)), np.arange(300), LABELS,
            {"physiological": ["oedema"]}, [], {0.1: 40, 1.0: 400},
        )  # fmt: skip


def test_the_lead_says_whether_the_interval_excludes_zero():
    row = {"labels": "physiological", "fraction": 0.01, "difference": 0.06}
    row["trainings"] = 3
    for low, high, says in (
        (0.02, 0.1, "PaCX scores higher than MAE with 1% (+0.060; +0.020 to +0.100)"),
        (-0.02, 0.1, "a difference is not shown with 1% (+0.060; -0.020 to +0.100)"),
        (-0.2, -0.1, "PaCX scores lower than MAE with 1% (+0.060; -0.200 to -0.100)"),
    ):
        (sentence,) = tables.lead([row | {"low": low, "high": high}])
        assert sentence.startswith(f"On physiological labels, {says}")


def test_the_lead_claims_nothing_of_a_single_training():
    row = {"labels": "physiological", "fraction": 0.01, "difference": 0.06}
    row |= {"low": 0.02, "high": 0.1, "trainings": 1}
    (sentence,) = tables.lead([row])
    assert "with 1% (+0.060; +0.020 to +0.100) of the training labels" in sentence
    assert "not judged, as that takes 3 training seeds" in sentence
    assert "shown" not in sentence


def test_terminal_table_is_aligned_and_narrow(study):
    text = tables.render_table_text(study[2].table, study[2].summary, ARMS)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    body = [line for line in lines if line.startswith(("PaCX  ", "MAE", "Raw", "ECG"))]
    assert len(body) == 4 and len({len(line) for line in body}) == 1
    assert body[0].startswith("PaCX") and body[-1].startswith("ECG + labs")
    assert tables.render_table_text([]) == "No comparison: nothing was probed."


def test_report_bytes_are_the_same_every_time(full, tmp_path):
    for name in ("a.html", "b.html"):
        report.write_report(tmp_path / name, full)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_report_says_that_the_cohort_is_simulated_only_when_it_is(full):
    assert "patients are simulated" in report.render(full)
    real = dataclasses.replace(full, simulated=False)
    assert "simulated" not in report.render(real)


def test_report_of_nothing_states_what_is_missing():
    page = report.render(report.Report())
    assert page.count('class="empty"') == 8
    assert "did not compare them" in page and "nan" not in page.lower()


@pytest.fixture(scope="module")
def views(study):
    """A report in MVMAE's words, whose budgets are numbers of studies."""
    _, labels, _ = study
    rng, scores = np.random.default_rng(1), {}
    for n, subsets in ((1000, 1), (100, 3)):
        for arm in ("mvmae", "independent", "mvmae_one"):
            noise = rng.normal(size=(3, subsets, *labels.shape))
            scores[arm, n] = labels * (1 if arm == "mvmae" else 0.2) + noise
    compared = comparison.compare_arms(
        scores, labels, np.ones((300, 3)), np.arange(300), LABELS, GROUPS,
        [("mvmae", "mvmae_one")], {100: 100, 1000: 1000}, "independent", "mvmae",
        n_resamples=50,
    )  # fmt: skip
    image = rng.integers(0, 256, (24, 24), dtype=np.uint8)
    return report.Report(
        words=words.MVMAE,
        title="MVMAE",
        summary=compared.summary,
        table=compared.table,
        pairs=compared.pairs,
        arms={
            "mvmae": tables.Arm("MVMAE, two views", "compared"),
            "mvmae_one": tables.Arm("MVMAE, one view", "compared", charted=False),
        },
        alignment={"MVMAE/views of one study": ([1, 2], [0.1, 0.6])},
        reconstructions=[(image, image // 2, image)] * 2,
        reconstructed=["study 1, PA", "study 1, LL"],
        texts=[{"true report": "No <b>effusion</b>.", "generated": ""}],
        text_scores={"generated": {"studies": 1200, "F1": float("nan"), "b": 0.25}},
    )


def test_budgets_may_be_numbers_of_labelled_studies(views):
    assert [row["fraction"] for row in views.summary[:2]] == [100, 1000]
    lead = " ".join(tables.lead(views.summary, words.MVMAE))
    assert lead.startswith("On physiological labels, MVMAE scores higher than ")
    assert "with 100 (+" in lead and "and 1,000 (+" in lead and "%" not in lead
    assert lead.count("labelled studies") == 2
    text = tables.render_table_text(
        views.table, views.summary, views.arms, words.MVMAE, views.pairs
    )
    assert "by labelled training studies" in text and "1,000" in text
    assert "MVMAE - Independent, paired" in text
    assert text.count("MVMAE, two views - MVMAE, one view, paired") == 1
    page = report.render(views)
    assert "physiological, 1,000 labelled studies" in page
    body = page[page.index("<body>") :]
    assert "Below 1,000 studies" in body and "100%" not in body
    assert "share" not in body


def test_page_has_the_words_of_its_method_and_its_sections_alone(views, full):
    page = report.render(views)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert len(headings) == 10 and "Alignment of the views over training" in headings
    for word in ("PaCX", "ECG", "Where the encoders look"):
        assert word not in page
    other = re.findall(r"<h2>(.*?)</h2>", report.render(full))
    assert len(other) == 9 and "Where the encoders look" in other
    assert not [h for h in other if "Alignment" in h or "text decoder" in h]
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert not [c for c in charts if "MVMAE, one view" in c]  # not charted
    assert [c for c in charts if "MVMAE, two views" in c]


def test_generated_reports_stand_beside_the_true_ones_and_are_escaped(views):
    page = report.render(views)
    assert "<p>No &lt;b&gt;effusion&lt;/b&gt;.</p>" in page and "<b>" not in page
    assert "<figcaption>Study 1, generated</figcaption>\n<p>(no word)</p>" in page
    assert "<td>1,200</td><td>n/a</td><td>0.250</td>" in page
    assert 'alt="X-ray 2: study 1, LL, input"' in page
    assert 'alt="X-ray 2: reconstruction"' in page
    empty = report.render(report.Report(words=words.MVMAE))
    assert empty.count('class="empty"') == 9


def test_report_names_a_chart_without_values():
    curves = {"ECG/train": ([1, 2], [float("nan"), float("inf")])}
    page = report.render(report.Report(curves=curves))
    assert '<p class="empty">ECG: no values.</p>' in page and "<svg" not in page


def test_charts_hold_texts_and_the_colours_of_the_theme(full):
    charts = re.findall(r"<svg.*?</svg>", report.render(full), flags=re.DOTALL)
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(charts))
    forest, physiological, _, losses, _ = charts
    for text in ("physiological, 10%", "anatomical, 100%", "difference in AUROC"):
        assert f">{text}</text>" in forest
    for text in ("PaCX", "Raw &lt;pixels&gt;", "chance", "AUROC", "10%"):
        assert f">{text}</text>" in physiological
    for text in ("train", "held-out", "step", "value"):
        assert f">{text}</text>" in losses


def test_package_ships_the_page(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    ours = {p.name for p in pathlib.Path(report.__file__).parent.glob("*.j2")}
    built = (tmp_path / "pacx_jax/evaluate/reports").glob("*.j2")
    assert {p.name for p in built} == ours and len(ours) == 4


def test_report_is_well_formed_accessible_and_self_contained(full, views):
    for page in map(report.render, (views, full)):
        assert "script" not in browser.audited(page).seen
    assert '<html lang="en">' in page and "<title>PaCX-MAE &amp; friends" in page
    assert "Raw &lt;pixels&gt;" in page and "<pixels>" not in page


def test_report_opens_in_a_browser_with_its_tables_and_figures(full, tmp_path):
    page = browser.dom(report.render(full), tmp_path)
    assert "<h1>PaCX-MAE &amp; friends</h1>" in page
    assert "Neither control reproduces the gain." in page
    assert page.count("<table>") == 9
    assert page.count('<figure class="chart">') == 5  # forest, 2 groups, 2 panels
    assert page.count("<img ") == 2 * 3 + 4
    row = full.summary[0]
    assert tables.number(row["a_auroc"]) in page
    assert "http" not in page


@pytest.mark.parametrize("flags", [(), (browser.DARK,)], ids=["light", "dark"])
def test_axe_finds_nothing_wrong_with_the_report(full, tmp_path, flags):
    assert browser.violations(report.render(full), tmp_path, *flags) == []
