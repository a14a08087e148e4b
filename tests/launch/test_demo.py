"""The demonstration as its user meets it, at a size whose numbers mean nothing."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import psutil
import pytest

from data import prepare
from launch.curricula import chexmix, mvmae, pacx
from pacx_jax.convert import kinds
from pacx_jax.encoders import model_folder
from tests.convert.test_kinds import OPTIONS, folder
from tests.core.test_configs import RECIPES

ROOT = pathlib.Path(__file__).resolve().parents[2]
# One device, as a laptop has, and code made as fast as in tests/conftest.py.
FLAGS = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8 ", "")
ENVIRONMENT = os.environ | {"XLA_FLAGS": FLAGS}


def start(target, *arguments):
    return subprocess.Popen(
        [sys.executable, "launch/demo.py", "--tiny", f"--target={target}", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(target) -> dict:
    record = target / "progress.json"
    return json.loads(record.read_text())["done"] if record.exists() else {}


def processes_of(target) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            found += [process.pid] * any(str(target) in a for a in process.cmdline())
        except psutil.Error:  # gone meanwhile
            continue
    return found


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Stopped after its first stage, killed in training, then run to its end."""
    target = tmp_path_factory.mktemp("demo") / "run"
    state = kinds.write("vit_timm", folder("vit_timm", posemb_grid=[4, 4]))
    imagenet, _ = kinds.read("vit_timm", state, OPTIONS, "random weights")
    model_folder.save(target.parent / "imagenet", imagenet, "card")
    given = f"--imagenet={target.parent / 'imagenet'}"
    process = start(target, given)
    wait_for(lambda: done(target))
    process.send_signal(signal.SIGINT)
    first, _ = process.communicate(timeout=600)
    process = start(target, given)
    wait_for(lambda: (target / "mae" / "config.json").exists())
    process.kill()
    process.communicate(timeout=600)
    wait_for(lambda: not processes_of(target))  # or two would write one workdir
    process = start(target, given)
    second, _ = process.communicate(timeout=600)
    assert process.returncode == 0, second
    return target, first, second


def test_interrupted_demo_says_how_to_go_on_and_repeats_nothing(demo):
    _, first, second = demo
    assert "the same command goes on from here" in first
    finished = [line.split()[0] for line in first.splitlines() if " s  " in line]
    assert finished
    assert not [
        line for line in second.splitlines() if line.split()[:1] == finished[:1]
    ]


def test_demo_prints_the_comparison_and_where_the_report_is(demo):
    target, _, second = demo
    assert "PaCX - MAE" in second
    assert str(target / "report.html") in second
    assert "<table" in (target / "report.html").read_text()


def test_report_names_no_folder_of_this_machine(demo):
    target, *_ = demo
    text = (target / "report.html").read_text()
    assert "data/prepared" in text and str(target.parent) not in text


def test_an_imagenet_vit_is_a_further_arm(demo):
    target, _, second = demo
    rows = [line for line in second.splitlines() if line.startswith("ImageNet ViT")]
    assert len(rows) == 1 and len(re.findall(r"0\.\d{3}", rows[0])) == 6
    assert "ImageNet ViT" in (target / "report.html").read_text()


def test_report_tells_the_time_of_every_stage_and_of_all(demo):
    target, *_ = demo
    text = (target / "report.html").read_text()
    table = text[text.index("Times") :].partition("</table>")[0]
    row = r'<th scope="row">([^<]+)</th><td>([0-9,.]+)</td>'
    shown = {k: float(v.replace(",", "")) for k, v in re.findall(row, table)}
    record = json.loads((target / "progress.json").read_text())
    stages = {k: v for k, v in record["done"].items() if k != "compare"}
    compare = shown.pop("compare, up to this report")
    total = shown.pop("all (stages overlap), up to this report")
    assert shown == stages
    assert 0 < compare <= record["done"]["compare"] + 0.5  # the demo polls
    assert max(stages.values()) < total <= record["seconds"] + 0.5


def test_summary_has_the_promised_fields(demo):
    target, *_ = demo
    summary = json.loads((target / "summary.json").read_text())
    assert summary["seconds"] > 0
    assert summary["peak_rss_mib"] > 100
    rows = {(r["labels"], r["fraction"]) for r in summary["comparison"]}
    groups = ("physiological", "anatomical")
    assert rows == {(g, f) for g in groups for f in (0.01, 0.1, 1.0)}
    fields = {"labels", "fraction", "mae", "pacx", "difference", "low", "high"}
    fields |= {"spread", "trainings", "subsets"}
    for row in summary["comparison"]:
        assert fields | {"n_patients", "n_labels"} == set(row)
        assert (row["trainings"], row["spread"]) == (1, None)


def test_no_probe_patient_is_in_an_earlier_stage(demo):
    target, *_ = demo
    raw = target / "data" / "raw"
    probe = {
        line.split(",")[1]
        for line in (raw / "paired/probe/labels.csv").read_text().splitlines()[1:]
    }
    earlier = {
        p.name.removeprefix("patient") for p in raw.glob("pretrain/chexpert/*/*")
    }
    for name, column in (("ecg/labels.csv", 1), ("symile_mimic/train.csv", 0)):
        lines = (raw / "paired" / name).read_text().splitlines()[1:]
        earlier |= {line.split(",")[column] for line in lines}
    assert len(earlier) > 50
    assert not probe & earlier


def test_finished_demo_is_left_as_it_is(demo):
    target, *_ = demo
    before = {p: p.stat().st_mtime_ns for p in target.rglob("metrics.jsonl")}
    report = (target / "report.html").read_bytes()
    process = start(target, f"--imagenet={target.parent / 'imagenet'}")
    process.communicate(timeout=600)
    assert process.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in target.rglob("metrics.jsonl")} == before
    assert (target / "report.html").read_bytes() == report


def test_other_settings_in_the_same_folder_are_refused_in_one_line(demo):
    target, *_ = demo
    process = start(target, "--seed=7")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert said.startswith("error: ") and said.count("\n") == 1


@pytest.fixture(scope="module")
def views_demo(tmp_path_factory):
    """The demonstration of MVMAE, with two trainings of each encoder."""
    target = tmp_path_factory.mktemp("views") / "run"
    process = start(target, "--method=mvmae", "--seeds=2")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return target, said


@pytest.mark.full
def test_demo_of_views_prints_and_keeps_the_comparison(views_demo):
    target, said = views_demo
    assert (target / "comparison.txt").read_text().strip() in said
    assert str(target / "report.html") in said
    assert "by labelled training studies" in said and "PaCX" not in said
    compared = "MVMAE - Independent", "MVMAE-V2T, two views - MVMAE, two views"
    for pair in (*compared, "MVMAE, two views - MVMAE, frontal alone"):
        assert f"{pair}, paired, with its 95% interval" in said
    for arm in ("MVMAE, one view at test", "Pixels 24x24, two views", "View label"):
        assert re.search(
            rf"^{arm}.* (0\.\d{{3}} +){{1}}0\.\d{{3}}$", said, re.MULTILINE
        )
    summary = json.loads((target / "summary.json").read_text())
    rows = {(r["labels"], r["n_labels"]) for r in summary["comparison"]}
    assert rows == {("lateral", 60), ("other", 60)}
    assert {r["trainings"] for r in summary["comparison"]} == {2}
    assert all(r["spread"] > 0 for r in summary["comparison"])
    seeds = [
        json.loads((target / name / "config.json").read_text())["seed"]
        for name in ("mvmae", "mvmae_2", "v2t_2")
    ]
    assert seeds == [1, 2, 2]
    assert summary["seconds"] > 0 and "independent" in summary["comparison"][0]
    numbers = json.loads((target / "comparison.json").read_text())
    assert {r["n_patients"] for r in numbers["table"]} == {20}


@pytest.mark.full
def test_report_of_views_shows_both_views_the_alignment_and_generated_reports(
    views_demo,
):
    target, _ = views_demo
    page = (target / "report.html").read_text()
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    shown = [a.partition(": ")[2] for a in alts]
    assert len(shown) == 2 * 2 * 3  # studies, views, input to reconstruction
    for view in (r"(PA|AP|AP supine)", r"(LL|RL|lateral)"):
        assert re.fullmatch(rf"study 1, {view}, input", shown[0 if "P" in view else 3])
    for title in ("MVMAE, cosine", "MVMAE, alignment loss", "MVMAE-V2T, report"):
        assert f"<figcaption>{title}</figcaption>" in page
    for name in ("true report", "generated from the frontal", "lateral"):
        (text,) = re.findall(
            rf"Study 1, [^<]*{name}</figcaption>\s*<p>([^<]+)</p>", page
        )
        assert text.strip()
    assert "Finding the other view" in page and "Random ViT, CLS" in page
    assert "ECG" not in page and 'class="empty"' not in page
    assert str(target.parent) not in page


@pytest.fixture(scope="module")
def tokens_demo(tmp_path_factory):
    """The demonstration of CheXmix."""
    target = tmp_path_factory.mktemp("tokens") / "run"
    process = start(target, "--method=chexmix")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return target, said


@pytest.mark.full
def test_demo_of_tokens_compares_stages_and_shows_what_is_written(tokens_demo):
    target, said = tokens_demo
    assert (target / "comparison.txt").read_text().strip() in said
    told = ["macro AUROC", "two stages - causal alone, X-rays 90% hidden: "]
    told += ["report alone", "mean image", "most frequent report, 100% hidden"]
    for text in told:
        assert text in said
    summary = json.loads((target / "summary.json").read_text())
    assert [r["hidden"] for r in summary["comparison"]] == [0, 0.25, 0.5, 0.75, 0.9]
    numbers = json.loads((target / "comparison.json").read_text())
    assert {r["where"] for r in numbers["inpainting"]} == {"all", "inside", "outside"}
    page = (target / "report.html").read_text()
    assert "(X-rays 90% hidden)" in page and "Filled-in X-rays" in page
    assert 'class="empty"' not in page and str(target.parent) not in page


@pytest.mark.full
def test_demo_of_another_method_in_the_same_folder_is_refused_in_one_line(views_demo):
    target, _ = views_demo
    process = start(target)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("method", [chexmix, mvmae, pacx])
def test_more_seeds_add_trainings_and_compare_again(method, tmp_path):
    def stages(n):
        made = method.curriculum(tmp_path, method.TINY, 5, "test", n)
        return {stage.name: stage for stage in made}

    one, three = stages(1), stages(3)
    assert all(three[k].argv == v.argv for k, v in one.items() if k != "compare")
    added = set(three) - set(one)
    arms = {k.removesuffix("_2") for k in added if k.endswith("_2")}
    assert added == {f"{a}_{k}" for a in arms for k in (2, 3)} | {"compare_3"}
    assert arms >= set(method.ARMS)
    for arm in arms:
        assert "--config.seed=7" in three[f"{arm}_3"].argv
    assert {f"{a}_3" for a in method.ARMS} <= set(three["compare_3"].needs)
    assert "--seeds=3" in three["compare_3"].argv
    for stage in three.values():  # a training stands on trainings of its own seed
        if stage.name.endswith("_3") and stage.name != "compare_3":
            assert not [a for a in stage.argv if re.search(r"/mae(_2)?$", a)]


IN_CI = ("linear_probe",)


def paths_of(target) -> dict[str, dict[str, pathlib.Path]]:
    """Recipe -> the config fields that say where the demo's data and encoders are."""
    prepared = target / "data" / "prepared"
    triplets = prepared / "symile_mimic"
    encoders = {f"modalities.{m}.init": target / m for m in ("ecg", "labs")}
    return {
        "mae_vitb16": {"data.path": prepared / "chexpert"},
        "vq_f16": {"data.path": prepared / "chexpert"},
        "labs_dae": {"data.path": triplets},
        "vitals_dae": {"data.path": triplets},
        "ecg_net1d": {"data.path": prepared / "ecg"},
        "distill_vitb16": {"data.path": triplets, "model_init": target / "mae"}
        | encoders,
        "linear_probe": {
            "data.path": prepared / "probe",
            "model_init": target / "distill",
        },
        "finetune": {
            "data.path": prepared / "probe",
            "model_init": target / "distill",
        },
        "segment": {
            "data.path": target / "masked_set",
            "model_init": target / "distill",
        },
    }


def paths_of_views(target) -> dict[str, dict[str, object]]:
    """The same of the recipes that read the demonstration of MVMAE."""
    studies = target / "data" / "prepared" / "mimic_cxr"
    words = {"data.path": studies, "data.tokenizer": target / "tokenizer.json"}
    return {
        "mvmae_vitb16": {"data.path": studies},
        "vq_f16": {"data.path": studies},
        "chexmix_vitb": words | {"vq_init": target / "vq"},
        "mvmae_v2t_vitb16": {
            "data.path": studies,
            "data.tokenizer": target / "tokenizer.json",
        },
        "late_fusion": {
            "data.path": target / "data" / "prepared" / "views_probe",
            "model_init": target / "mvmae",
            "data.label_count": 30,
        },
    }


@pytest.fixture(scope="module")
def masked(demo) -> None:
    """A small prepared set of images with masks, which the demo does not make."""
    target, *_ = demo
    source = target / "masked"
    (source / "masks").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        image = rng.integers(0, 256, (48, 48), dtype=np.uint8)
        PIL.Image.fromarray(image).save(source / f"{i}.png")
        mask = np.uint8(255 * (image > 128))
        PIL.Image.fromarray(mask).save(source / "masks" / f"{i}.png")
    flags = ["--masks=masks", "--val_fraction=0.4", f"--source={source}"]
    prepare.prepare(prepare.parse(["folder", *flags, f"--target={target}/masked_set"]))


# One in CI, beside those that the demo trains; with --all, each.
@pytest.mark.parametrize(
    "recipe",
    [r if r in IN_CI else pytest.param(r, marks=pytest.mark.full) for r in RECIPES],
)
def test_every_recipe_runs_by_its_runlocal_preset_and_the_data_paths_alone(
    demo, masked, recipe, request
):
    target, *_ = demo
    paths = paths_of(target).get(recipe)
    if not paths:
        demos = {"vq_f16": "tokens_demo", "chexmix_vitb": "tokens_demo"}
        views = request.getfixturevalue(demos.get(recipe, "views_demo"))[0]
        paths = paths_of_views(views)[recipe]
    workdir = target / "recipes" / recipe
    command = [sys.executable, "-m", "pacx_jax.main", f"--workdir={workdir}"]
    command += [f"--config=configs/{recipe}.py:runlocal", "--config.total_steps=2"]
    command += [f"--config.{k}={v}" for k, v in paths.items()]
    command = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert command.returncode == 0, command.stderr
    assert f"\n{recipe}: step 2, " in command.stdout
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[-1]["step"] == 2
    assert all(math.isfinite(rows[-1][k]) for k in ("loss", "grad_norm", "val/loss"))
    assert (workdir / "checkpoints" / "2").is_dir()
    kinds_of = {"labs_dae": "labs_dae", "vitals_dae": "labs_dae"}
    kinds_of |= {"vq_f16": "vq", "chexmix_vitb": "unified"}
    kind = (kinds_of | {"ecg_net1d": "ecg_net1d"}).get(recipe, "vit")
    assert model_folder.load(workdir, kind).width > 0
