"""The report of any run: from its workdir to a page in a browser, and to files."""

import csv
import json
import re

import numpy as np
import PIL.Image
import pytest
import tensorboardX

from pacx_jax import main, optim, sharding, step
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import frozen, held_out, measures, predictions, statistics
from pacx_jax.evaluate.reports import (
    events,
    run_curves,
    run_facts,
    run_files,
    run_images,
    run_parts,
    run_report,
    run_retrieval,
    run_scores,
    run_splits,
)
from pacx_jax.input import tokenizer
from pacx_jax.objectives import retrieval
from pacx_jax.run import checkpoint, metrics, setup, versions
from tests import browser, tiny
from tests.reliability import runs

LABELS = ("a", "b")


def workdir(path, stage="labs_dae", rows=(), folders=None, **fields):
    """A workdir that holds a config and rows of metrics."""
    path.mkdir(parents=True)
    config = runs.config(stage, folders or {}, **fields)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    writer = metrics.MetricsWriter(path, 0)
    for n, values in rows:
        writer.write(n, values)
        writer.write_timing(n, {"seconds": 2.0, "data_stall": 0.5 * n})
    writer.close()
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An MAE that drew, and a distilled encoder: what runs write, by what writes it."""
    root = tmp_path_factory.mktemp("runs")
    folders = tiny.write_folders(root / "folders")
    rows = [(n, {"loss": 1 / n, "grad_norm": 1.0}) for n in range(1, 20)]
    last = {"loss": 0.1, "learning_rate": 0.1, "val/loss": 0.2, "val/other": 0.3}
    rows.append((20, last))
    with pytest.MonkeyPatch.context() as patched:
        runs.use_patients(patched)
        for stage in ("mae", "distill"):
            path = workdir(root / stage, stage, rows, folders)
            model_folder.save(path / "export", tiny.folder("vit", len(stage)), "card")
            (path / "done.json").write_text(
                '{"step": 20, "metrics": {"val/loss": 0.2}}'
            )
            (path / "data.json").write_text('{"train.fingerprint": "f00d"}')
            versions.record(str(path), 0)
        drawn = np.arange(4 * 16 * 48 * 3, dtype=np.uint8).reshape(4, 16, 48, 3)
        with tensorboardX.SummaryWriter(str(root / "mae" / "tensorboard")) as board:
            image = np.concatenate(drawn)
            board.add_image("reconstruction", image, 20, dataformats="HWC")
        config = runs.config("distill", folders)
        mesh, objective = setup.place(config)
        tx = optim.make(config.optim, config.total_steps)
        state = step.make_state(tiny.random_start(objective), objective, tx)
        shardings = sharding.tree_shardings(state, mesh)
        saver = checkpoint.Checkpointer(root / "distill")
        saver.save(sharding.put_tree(state, shardings), 20, {})
        saver.close()
        yield root


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """Two classifiers measured on 120 studies of 60 patients, some labels unknown."""
    root, rng = tmp_path_factory.mktemp("classified"), np.random.default_rng(0)
    truth = (rng.random((240, 2)) < 0.4) * 1.0
    known = (rng.random((240, 2)) < 0.9) * 1.0
    people = [f"p{i // 2}" for i in range(120)]
    sex = np.array(["F", "M", "unknown"])[rng.integers(0, 3, 120)]
    for name, gain in (("good", 2.0), ("weak", 0.2)):
        path = workdir(
            root / name,
            "classify",
            [(1, {"loss": 0.7}), (2, {"loss": 0.6, "val/auroc_macro": 0.5})],
            {"model_init": "runs/mae"},
            seed=int(gain),
        )
        logits = rng.normal(size=(240, 2)) + gain * truth - 0.5
        both = {"logits": logits, "labels": truth, "label_mask": known}
        validation, test = (
            {k: v[rows] for k, v in both.items()}
            for rows in (slice(120), slice(120, None))
        )
        chosen = frozen.choose(
            measures.examples(validation, LABELS), "val", ("max_f1", "sensitivity=0.9")
        )
        found = held_out.with_intervals(
            test, np.array(people), LABELS, 0, "multilabel", {"sex": sex}, chosen
        )
        sets = {"sets": {"one set": {"scores": found["scores"]}}}
        text = json.dumps({"split": "test", "n": 120} | found | sets)
        (path / "evaluation_test.json").write_text(text)
        ids = [f"{i}.png" for i in range(120)]
        given = measures.examples(test, LABELS)
        predictions.write(path / "predictions_test.csv", given, ids, people)
    return root


def read(*paths):
    named = run_files.names([str(p) for p in paths])
    return [run_files.read(str(p), n) for p, n in zip(paths, named, strict=True)]


def made(out, *flags):
    assert run_report.main([f"--out={out}", *map(str, flags)]) == 0
    return out.read_text()


def refused(capsys, *flags):
    assert run_report.main([*map(str, flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def part(page, name):
    """A section of a page, by the id of its heading."""
    start = page.index(f'<section aria-labelledby="{name}">')
    return page[start : page.index("</section>", start)]


def test_page_of_an_mae_shows_curves_reconstructions_and_where_it_looks(
    trained, tmp_path
):
    page = made(tmp_path / "a.html", f"--workdir={trained / 'mae'}", "--examples=3")
    browser.audited(page)
    facts = part(page, "facts")
    for fact in ("finished", "20 of 20", "pacx_jax 0.", "8 cpu", "train.fingerprint"):
        assert fact in facts
    curves = part(page, "loss-and-metrics")
    assert curves.count("<svg") == 2  # loss and other
    assert "validation" in curves and ">step</text>" in curves
    assert part(page, "learning-rate-and-norms").count("<svg") == 2
    assert part(page, "reconstructions").count("<img") == 4 * 3
    assert part(page, "where-the-encoders-look").count("<img") == 3 * 2
    nearest = part(page, "retrieval-examples")
    assert nearest.count("<img") == 3 * 5 and "7 others, patients unknown" in nearest
    for name in ("roc-curves", "quarantine", "subgroups"):
        assert 'class="empty"' in part(page, name)
    assert "treat it like these" in page
    bare = made(tmp_path / "b.html", f"--workdir={trained / 'mae'}", "--examples=0")
    assert "<img" not in bare and "treat it" not in bare


@pytest.mark.full
def test_real_runs_have_everything_that_a_page_shows(tmp_path, monkeypatch):
    runs.use_patients(monkeypatch)
    folders = tiny.write_folders(tmp_path / "folders")
    few = {"eval_every": 20, "save_every": 20, "images_every": 1}
    for stage in ("mae", "mvmae", "distill"):
        main.run(runs.config(stage, folders, **few), str(tmp_path / stage))
        page = made(tmp_path / "a.html", f"--workdir={tmp_path / stage}")
        browser.audited(page)
        drawn = part(page, "reconstructions").count("<img")
        assert drawn == {"mae": 12, "mvmae": 12, "distill": 0}[stage]
        assert part(page, "where-the-encoders-look").count("<img") == 2 * 4
        assert part(page, "learning-rate-and-norms").count("<svg") >= 4
        assert part(page, "speed-and-goodput").count("<svg") == 3
        nearest = part(page, "retrieval-examples").count("<img")
        assert nearest == {"mae": 20, "mvmae": 20, "distill": 40}[stage]


def test_distilled_run_shows_the_rank_that_a_direct_search_gives(trained):
    (run,) = read(trained / "distill")
    retrieved = run_retrieval.retrieval([run], 4)
    shown = retrieved.pictures
    assert len(shown) == 2 * 4, retrieved.empty  # four X-rays, ECG and labs
    assert all(len(row.images) == 1 + run_retrieval.FOUND for row in shown)
    for row in shown:
        caption, first = row.images[0][0], row.images[1][0]
        rank, among = map(int, re.search(r"rank (\d+) of (\d+)", caption).groups())
        assert 1 <= rank <= among == runs.N["val"]
        assert ("its own" in first) == (rank == 1)
        cosines = [
            float(re.search(r"cosine (\S+?)(,|$)", c)[1]) for c, _ in row.images[1:]
        ]
        assert cosines == sorted(cosines, reverse=True)
    assert not (trained / "distill" / "quarantine.jsonl").exists()


def test_an_mvmae_shows_the_laterals_that_are_nearest_to_a_frontal(trained, tmp_path):
    path = workdir(tmp_path / "mvmae", "mvmae", rows=[(1, {"loss": 1.0})])
    model_folder.save(path / "export", tiny.folder("vit"), "card")
    (run,) = read(path)
    found = run_retrieval.retrieval([run], 3)
    two = [i for i in range(runs.N["val"]) if i % 3]  # which have a lateral
    assert len(found.pictures) == 3, found.empty
    for row in found.pictures:
        assert len(row.images) == 1 + min(run_retrieval.FOUND, len(two))
        caption, first = row.images[0][0], row.images[1][0]
        rank = int(re.search(rf"rank (\d) of {len(two)}", caption)[1])
        assert ("its own" in first) == (rank == 1)


@pytest.mark.parametrize("stage", ["mae", "classify", "causal"])
def test_other_runs_show_the_x_rays_of_other_patients_that_are_nearest(
    trained, tmp_path, monkeypatch, stage
):
    """MAE, fine-tuning and CheXmix: what a direct search finds, patients of two."""
    folders = {"model_init": str(trained / "folders" / "vit")}
    path = workdir(tmp_path / "run", stage, [(1, {"loss": 1.0})], folders)
    model = tiny.folder("vit")
    if stage == "causal":
        words = tokenizer.load(trained / "folders" / "tokenizer.json")
        model = tiny.unified_folder(words)
    model_folder.save(path / "export", model, "card")
    monkeypatch.setattr(
        runs.Patients, "patients", lambda self: [f"p{i // 2}" for i in range(len(self))]
    )
    films = [runs.Patients("val")[i]["images"][0] for i in range(runs.N["val"])]
    z = retrieval.normalize_rows(Encoder(model)(films))
    found = run_retrieval.retrieval(read(path), 3)
    assert len(found.pictures) == 3, found.empty
    for row in found.pictures:
        shown = [
            next(i for i, film in enumerate(films) if np.array_equal(film, image))
            for _, image in row.images
        ]
        query, *near = shown
        others = [i for i in range(len(films)) if i // 2 != query // 2]
        cosine = z @ z[query]
        assert near == sorted(others, key=lambda i: -cosine[i])[: run_retrieval.FOUND]
        (caption, _), (first, _), *_ = row.images
        assert caption.endswith(f"among {len(others)} of other patients")
        assert first == f"1. cosine {cosine[near[0]]:.3f}"


@pytest.mark.parametrize(
    "stage", ["vq", "causal", "masked", "v2t", "segment", "classify", "ecg", "labs_dae"]
)
def test_every_stage_has_a_page(trained, tmp_path, stage):
    """A run that was stopped before it saved: what it lacks is said."""
    folders = {"model_init": str(trained / "folders" / "vit")}
    rows = [(n, {"loss": 1 / n, "val/loss": 2 / n}) for n in range(1, 4)]
    path = workdir(tmp_path / stage, stage, rows, folders)
    page = made(tmp_path / "a.html", f"--workdir={path}")
    assert part(page, "loss-and-metrics").count("<svg") == 1
    for name in ("where-the-encoders-look", "retrieval-examples", "reconstructions"):
        assert 'class="empty"' in part(page, name), name


def test_an_image_tokenizer_shows_each_x_ray_beside_what_it_decoded(tmp_path):
    path = workdir(tmp_path / "vq", "vq")
    drawn = np.arange(3 * 16 * 32 * 3, dtype=np.uint8).reshape(48, 32, 3)
    with tensorboardX.SummaryWriter(str(path / "tensorboard")) as board:
        board.add_image("reconstruction", drawn, 20, dataformats="HWC")
    rows = run_images.reconstructions(read(path)).pictures
    assert [row.which for row in rows] == [f"vq, step 20, X-ray {k}" for k in (1, 2, 3)]
    for k, row in enumerate(rows):
        names, parts = zip(*row.images, strict=True)
        assert names == ("vq, step 20: input", "decoded")
        whole = drawn[16 * k : 16 * (k + 1)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_compared_encoders_look_at_the_same_x_rays(trained, tmp_path):
    flags = [f"--workdir={trained / 'mae'}", f"--compare={trained / 'distill'}"]
    page = made(tmp_path / "a.html", *flags, "--examples=1")
    looks = part(page, "where-the-encoders-look")
    assert looks.count("<img") == 4 and "distill − mae" in looks
    assert "The runs are of other stages (mae, distill)" in page
    differ = part(page, "configuration")
    assert (
        '<th scope="row">objective</th>' in differ and '<th scope="row">seed<' in differ
    )
    assert '<th scope="row">dtype</th>' not in differ  # float32 in both


def test_projector_files_hold_an_embedding_of_each_x_ray(trained, tmp_path):
    (run,) = read(trained / "mae")
    run_retrieval.project(run, tmp_path / "projector")
    (file,) = (tmp_path / "projector").rglob("tensors.tsv")
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    assert len(rows) == runs.N["val"] and len({len(r) for r in rows}) == 1
    (names,) = (tmp_path / "projector").rglob("metadata.tsv")
    assert names.read_text().splitlines()[0] == "number\tview\ta\tb"
    assert list((tmp_path / "projector").rglob("sprite.png"))


def test_scores_curves_and_counts_agree_with_the_evaluation(classified):
    good, weak = read(classified / "good", classified / "weak")
    one = run_splits.scored(good, "test", "pacx")
    truth, logit = one.known["a"]
    x, y = run_scores.roc(logit, truth)
    area = np.trapezoid(y, x)
    value = good.evaluations["test"]["scores"]["labels"]["a"]["auroc"]["value"]
    assert area == pytest.approx(statistics.auroc(logit, truth)) == pytest.approx(value)
    parts = {p.title: p for p in run_scores.parts([good, weak])}
    (table,) = parts["Scores on held-out patients, test"].tables
    shown = {tuple(row[:2]): row[2:] for row in table.rows}
    assert shown["a", "auroc"][0].startswith(f"{value:.3f} (")
    assert shown["one set: a", "auroc"] == shown["a", "auroc"]
    assert len(parts["ROC curves, test"].charts) == 2
    assert len(parts["Reliability, test"].charts) == 2
    (table,) = parts["Confusion at the thresholds, test"].tables
    assert len(table.rows) == 2 * 2 * 2  # runs, labels, rules
    for label, _, _, _, *counts, sensitivity, _, _, _, _ in table.rows:
        hits, false, missed, right = (int(n.replace(",", "")) for n in counts)
        assert hits + false + missed + right == len(one.known[label][0])
        assert f"{hits / (hits + missed):.3f} (" in sensitivity
    (table,) = parts["Subgroups, test"].tables
    groups = [(row[1], row[4]) for row in table.rows if row[2] == "good"]
    assert ("F", "auroc") in groups and ("unknown", "not compared") in groups
    assert any(group.startswith("gap, ") for group, _ in groups)


def test_forest_has_a_point_and_an_interval_of_each_run_and_group(classified):
    runs = read(classified / "good", classified / "weak")
    parts = {p.title: p for p in run_scores.parts(runs)}
    (chart,) = parts["Subgroups, test"].charts
    assert chart.title == "By sex, test"
    (axes,) = chart.figure.axes
    compared = [run.evaluations["test"]["subgroups"]["sex"] for run in runs]
    sizes = [compared[0]["n"][group]["n"] for group in "FM"]  # others are not compared
    names = [f"{group} (n {n})" for group, n in zip("FM", sizes, strict=True)]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    want = [each["scores"][g]["macro"]["auroc"] for each in compared for g in "FM"]
    points = [line.get_xdata()[0] for line in axes.lines]
    assert points == [row["value"] for row in want]
    spans = [tuple(c.get_segments()[0][:, 0]) for c in axes.collections]
    assert spans == [(row["low"], row["high"]) for row in want]
    places = [line.get_ydata()[0] for line in axes.lines]
    assert len(set(places)) == len(places)  # none hides another
    assert [round(y) for y in places] == [0, 1] * 2


def test_predictions_alone_are_measured(classified, tmp_path):
    path = workdir(tmp_path / "run", "classify", folders={"model_init": "runs/mae"})
    text = (classified / "good" / "predictions_test.csv").read_text()
    (path / "predictions_test.csv").write_text(text)
    (run,) = read(path)
    wanted = read(classified / "good")[0].evaluations["test"]
    got = run_splits.scored(run, "test", "pacx").found
    for label in LABELS:
        row = got["scores"]["labels"][label]["auroc"]
        assert row == pytest.approx(wanted["scores"]["labels"][label]["auroc"])
    parts = {p.title: p for p in run_scores.parts([run])}
    (table,) = parts["Confusion at the thresholds, test"].tables
    assert {row[2] for row in table.rows} == {"probability 0.5"}
    assert not parts["Subgroups, test"].found


def test_one_of_several_classes_has_a_matrix_of_them(tmp_path):
    path = workdir(
        tmp_path / "run", "classify", folders={"model_init": "m"}, task="multiclass"
    )
    with (path / "predictions_val.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(predictions.COLUMNS)
        for i, (true, called) in enumerate([(0, 0), (0, 1), (1, 1), (2, 0), (2, 2)]):
            for c in range(3):
                logit = 1.0 if c == called else -1.0
                rows.writerow([i, f"p{i}", "xyz"[c], float(c == true), logit, ""])
    (run,) = read(path)
    found = run_scores.run_thresholds.classes(run_splits.scored(run, "val", "pacx"))
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


@pytest.fixture(scope="module")
def compared(classified, trained, tmp_path_factory):
    """The page of two classifiers and an MAE."""
    others = (f"--compare={p}" for p in (classified / "weak", trained / "mae"))
    flags = [f"--workdir={classified / 'good'}", *others]
    return made(tmp_path_factory.mktemp("page") / "a.html", *flags)


def test_page_sorts_its_tables_and_holds_in_a_browser(compared, tmp_path):
    assert "script" in browser.audited(compared).seen
    script = """
    const table = [...document.querySelectorAll("table.sortable")]
      .find(t => t.caption.textContent.startsWith("Counts and rates"));
    const order = [];
    for (let k = 0; k < 2; k++) {
      table.querySelectorAll("thead button")[4].click();
      order.push([...table.tBodies[0].rows].map(r => r.cells[4].textContent));
    }
    document.body.append(Object.assign(document.createElement("pre"),
      {id: "told", textContent: JSON.stringify(order)}));
    """
    shown = browser.dom(compared, tmp_path, script)
    rising, falling = json.loads(re.search(r'<pre id="told">(.*?)</pre>', shown)[1])
    assert len(rising) == 8 and rising == sorted(rising, key=int)
    assert falling == rising[::-1] or sorted(falling, key=int) == rising
    assert 'aria-sort="descending"' in shown
    assert shown.count("<svg") > 10 and "No sample was unreadable." in shown


@pytest.mark.parametrize("flags", [(), (browser.DARK,)], ids=["light", "dark"])
def test_axe_finds_nothing_wrong_with_the_page(compared, tmp_path, flags):
    assert browser.violations(compared, tmp_path, *flags) == []


def _scales(sheets):
    """The sizes at which sheets are drawn: one, if nothing is too wide for them."""
    found = [re.search(rb"\nq\n([\d.]+) 0 0 \1 ", sheet) for sheet in sheets]
    return {float(scale[1]) for scale in found}


def test_paper_is_light_and_nothing_runs_off_it(compared, tmp_path):
    sheets = browser.printed(compared, tmp_path)
    assert 2 <= len(sheets) <= 30
    pages = [f'<p style="width: {width}px">a</p>' for width in (100, 3000)]
    empty, wide = (browser.printed(page, tmp_path) for page in pages)
    (whole,), (shrunk,) = _scales(empty), _scales(wide)
    assert shrunk < whole  # Chromium shrinks what is too wide for a sheet
    assert _scales(sheets) == {whole}
    assert browser.printed(compared, tmp_path, browser.DARK) == sheets


def test_every_figure_is_written_for_papers(classified, tmp_path):
    (run,) = read(classified / "good")
    parts = [p for p in run_scores.parts([run]) if p.title == "ROC curves, test"]
    image = np.zeros((8, 8), np.uint8)
    row = run_parts.Pictures("X-ray 1", [("input", image), ("map", image)])
    parts.append(run_parts.Part("Pictures", "", pictures=[row]))
    assert run_report.save_figures(parts, tmp_path) == 3
    stems = ("roc-a-test", "roc-b-test", "pictures")
    names = {f"{s}.{kind}" for s in stems for kind in ("png", "svg", "pdf")}
    assert {p.name for p in tmp_path.iterdir()} == names
    with PIL.Image.open(tmp_path / f"{stems[0]}.png") as saved:
        assert saved.width > 1000
    assert (tmp_path / f"{stems[0]}.pdf").read_bytes().startswith(b"%PDF")
    assert ">sensitivity</text>" in (tmp_path / f"{stems[0]}.svg").read_text()


def test_figures_of_a_page_are_all_written(classified, trained, tmp_path):
    """What a page draws, a paper can have: of every kind there is at least one."""
    seconds = {"productive": 3.0, "setup": 1.0}
    ledger = {"goodput": 0.75, "seconds": seconds, "sessions": 1, "reached_step": 20}
    (trained / "distill" / "goodput.json").write_text(json.dumps(ledger))
    others = (f"--compare={p}" for p in (trained / "distill", classified / "good"))
    flags = [f"--workdir={trained / 'mae'}", *others, "--examples=1"]
    page = made(tmp_path / "a.html", *flags, f"--figures={tmp_path / 'figures'}")
    found = sorted(p.name for p in (tmp_path / "figures").iterdir())
    stems = {name.partition(".")[0] for name in found}
    assert found == sorted(f"{s}.{k}" for s in stems for k in ("pdf", "png", "svg"))
    assert stems >= {
        "loss", "learning-rate", "norm-of-the-gradient", "examples-a-second",
        "time-in-which-devices-wait-for-data", "where-the-time-went",
        "reconstructions", "where-the-encoders-look", "retrieval-examples",
        "roc-a-test", "reliability-b-test", "confusion-good-test", "by-sex-test",
    }  # fmt: skip
    panels = {part for part in stems if f'aria-labelledby="{part}"' in page}
    assert len(stems - panels) == page.count("<svg")  # and nothing was left out


def test_long_curves_are_thinned_and_lose_no_extreme(tmp_path):
    n = 10_000
    values = np.sin(np.arange(n) / 500)
    values[1234], values[77] = 9.0, np.nan
    line = run_curves.thinned((np.arange(1.0, n + 1), values))
    assert len(line["x"]) == len(line["low"]) == run_curves.SPANS
    assert line["high"].max() == 9.0 and line["low"].min() == np.nanmin(values)
    assert np.all(np.diff(line["x"]) > 0) and np.isfinite(line["y"]).all()
    assert np.all((line["low"] <= line["y"]) & (line["y"] <= line["high"]))
    short = run_curves.thinned((np.arange(3.0), np.array([1.0, np.nan, 3.0])))
    assert list(short["x"]) == [0, 2] and "low" not in short


def test_damaged_lines_are_counted_and_the_rest_is_shown(tmp_path):
    rows = [(n, {"loss": 1 / n, "val/loss": float("nan")}) for n in range(1, 6)]
    path = workdir(tmp_path / "run", rows=rows)
    text = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    text[1], text[3] = '{"step": 2, "lo\n', '{"loss": 1}\n'
    (path / "metrics.jsonl").write_text("".join(text) + '{"step": 6, "loss": 1e999')
    (path / "goodput.json").write_text("{")
    (path / "evaluation_test.json").write_text("[]")
    page = made(tmp_path / "a.html", f"--workdir={path}")
    told = "metrics.jsonl: 3 of 6 lines are damaged and left out, the first is line 2."
    for note in (told, "goodput.json is damaged", "evaluation_test.json is damaged"):
        assert note in page
    (run,) = read(path)
    assert list(run.metrics["loss"][0]) == [1, 3, 5] and run.step == 5
    assert run.state.startswith("unfinished: step 5 of 20")
    assert "none is finite" in page


def test_what_went_wrong_is_listed(tmp_path):
    path = workdir(tmp_path / "run", rows=[(1, {"loss": 1.0})])
    bad = {"step": 7, "loss": "nan", "grad_norm": "inf", "samples": list("abcde")}
    (path / "nonfinite.jsonl").write_text(json.dumps(bad) + "\n")
    lost = {"split": "train", "index": 3, "name": "<x>.png", "reason": "cut off"}
    (path / "quarantine.jsonl").write_text(json.dumps(lost) + "\n" + "no JSON\n")
    page = made(tmp_path / "a.html", f"--workdir={path}", "--examples=0")
    assert "a, b, c and 2 more" in part(page, "steps-that-were-not-finite")
    assert "&lt;x&gt;.png" in part(page, "quarantine")
    assert "quarantine.jsonl: 1 of 2 lines are damaged" in page


def test_bad_input_is_one_line(tmp_path, capsys, trained):
    out, mae = f"--out={tmp_path / 'a.html'}", f"--workdir={trained / 'mae'}"
    (tmp_path / "empty").mkdir()
    for flags, says in (
        ([f"--workdir={tmp_path / 'none'}", out], "no such folder"),
        ([f"--workdir={tmp_path / 'empty'}", out], "is .*empty a run's workdir?"),
        ([f"--workdir={trained / 'folders/vit'}", out], "is no workdir"),
        ([mae, f"--compare={trained / 'mae'}", out], "named twice"),
        ([mae, *(f"--compare={i}" for i in range(8)), out], "at most 8"),
        ([mae, f"--out={tmp_path}"], "a folder; name a file"),
        ([mae, out, "--examples=99"], "from 0 to 32"),
    ):
        assert re.search(says, refused(capsys, *flags))
    assert not (tmp_path / "a.html").exists()


def test_pages_without_data_or_encoder_say_why(tmp_path, trained, monkeypatch):
    path = workdir(tmp_path / "run", rows=[(1, {"loss": 1.0})])  # labs, nothing saved
    page = made(tmp_path / "a.html", f"--workdir={path}")
    looks = part(page, "where-the-encoders-look")
    assert 'class="empty"' in looks and "run:" in looks
    path = workdir(tmp_path / "ecg", "ecg")
    with monkeypatch.context() as patched:
        patched.setattr(runs.Patients, "entries", ("ecg", "labels"))
        page = made(tmp_path / "c.html", f"--workdir={path}")
    assert "the run&#39;s data have no X-rays" in page and "No metrics were" in page
    none = tmp_path / "none"
    flags = [f"--workdir={trained / 'mae'}", f"--images={none}"]
    assert f"{none}: no such folder" in made(tmp_path / "b.html", *flags)


def test_names_are_the_shortest_ends_that_differ():
    assert run_files.names(["runs/mae/", "/x/b"]) == ["mae", "b"]
    assert run_files.names(["s3://a/x/run", "b/run"]) == ["x/run", "b/run"]
    with pytest.raises(PacxError, match="named twice"):
        run_files.names(["a/b", "a/b/"])


def test_paths_of_this_machine_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = workdir(tmp_path / "run", data__path=str(tmp_path / "prepared/x"))
    assert run_report.main([f"--workdir={path}", "--examples=0"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "prepared/x" in page and str(tmp_path) not in page
    assert run_facts.plain(f"{tmp_path}/a") == "a"


def test_event_files_give_the_latest_images_even_when_cut_off(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 16, 48, 3), dtype=np.uint8)
    with tensorboardX.SummaryWriter(str(tmp_path)) as board:
        for step in (1, 2):
            board.add_scalar("loss", 0.5, step)
            board.add_image("drawn", pictures[step - 1], step, dataformats="HWC")
    step, image = events.images(tmp_path)["drawn"]
    assert step == 2
    np.testing.assert_array_equal(image, pictures[1])
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-20])
    step, image = events.images(tmp_path)["drawn"]
    assert step == 1
    np.testing.assert_array_equal(image, pictures[0])
    file.write_bytes(b"\xff" * 1000)
    assert events.images(tmp_path) == {}
