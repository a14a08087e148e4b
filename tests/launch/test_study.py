"""Studies: which runs in which order, what is compared, what is refused."""

import csv
import dataclasses
import importlib
import json
import re
import shutil
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from data import prepare
from launch import studies, study, study_results, sweep
from launch.studies import Arm, Probe, Study
from pacx_jax import main, objectives
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input import sources
from pacx_jax.objectives import distill
from pacx_jax.run import overlap
from tests import tiny
from tests.launch.scripts import ROOT, environment
from tests.reliability import runs

FILE = "configs/studies/pacx_cohort.py"
# Stands in for pacx_jax.main: remembers when it ran, and whether its starts were there.
STAND_IN = """
import json, pathlib, sys
arguments = dict(a.split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(arguments["--workdir"])
workdir.mkdir(parents=True, exist_ok=True)
for key, value in arguments.items():
    if key.endswith("init"):
        assert (pathlib.Path(value) / "done.json").exists(), value
(workdir / "done.json").write_text(json.dumps({"step": 1, "metrics": {}}))
"""


def given(tmp_path, *more):
    table = tmp_path / "raw" / "paired" / "probe" / "labels.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data").mkdir(exist_ok=True)
    table.touch()
    return [FILE, f"--data={tmp_path}/data", f"--target={tmp_path}/study", *more]


def test_arms_are_trained_after_what_they_start_from(tmp_path, monkeypatch, capsys):
    (tmp_path / "main.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "PROGRAM", (sys.executable, str(tmp_path / "main.py")))
    monkeypatch.setattr(study_results, "write", lambda *_: "the tables")
    flags = given(tmp_path, "--arms=pacx,shuffled", "--seeds=2", "--jobs=2")
    assert study.main(flags) == 0
    made = {p.parent.name for p in tmp_path.glob("study/*/done.json")}
    arms = {f"{a}-seed_{s}" for a in ("mae", "pacx", "shuffled") for s in (1, 2)}
    assert made == arms | {"ecg", "labs"}
    assert capsys.readouterr().out.endswith("the tables\n")
    rows = json.loads((tmp_path / "study" / "results.json").read_text())
    assert {row["state"] for row in rows} == {"finished"} and len(rows) == 8
    assert study.main(flags) == 0  # all of it stands
    assert "4 runs, 4 of them finished" in capsys.readouterr().out


def test_a_run_starts_from_the_run_of_its_own_seed(tmp_path, capsys):
    assert (
        study.main(given(tmp_path, "--seeds=2", "--dry-run", "--config.log_every=7"))
        == 0
    )
    lines = [x for x in capsys.readouterr().out.splitlines() if "--workdir" in x]
    (one,) = [x for x in lines if "/pacx-seed_2 " in x]
    assert f"model_init={tmp_path}/study/mae-seed_2" in one and "--config.seed=2" in one
    assert f"modalities.ecg.init={tmp_path}/study/ecg " in one
    assert all("--config.log_every=7" in x for x in lines)
    assert len([x for x in lines if f"--workdir={tmp_path}/study/ecg " in x]) == 1


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--seeds=0"], "--seeds=0: give at least 1"),
        (["--arms=pax"], "--arms=pax: choose of mae, "),
        (["--arms=ecg"], "pacx is what the study is about"),
        (["--config=x"], "unknown argument '--config=x'"),
        (["--compare"], "no seed has all arms finished; seed 1 lacks mae, pacx"),
    ],
)
def test_wrong_flags_are_one_line(flags, says, tmp_path, capsys):
    assert study.main(given(tmp_path, *flags)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1


def test_on_a_cluster_each_call_starts_what_can_be_trained_next(
    tmp_path, monkeypatch, capsys
):
    """The runs of a level; the next call, once they have ended, those that follow."""
    where = environment(tmp_path) | {"FAKE_TASKS": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "main.py").write_text(STAND_IN)
    # "$@" is -m pacx_jax.main --distributed=auto and the run's arguments.
    (tmp_path / "behaviour").write_text(
        f'exec "{sys.executable}" "{tmp_path}/main.py" "${{@:4}}"'
    )
    monkeypatch.setattr(study_results, "write", lambda *_: "the tables")
    flags = given(tmp_path, "--arms=pacx", "--seeds=2")
    slurm = [*flags, "--on=slurm", "--jobs=2"]
    assert study.main(slurm) == 0
    assert "give the same command again when these have ended" in capsys.readouterr()[0]
    assert study.main(slurm) == 0
    calls = (tmp_path / "sbatch.calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["--array=0-3%2", "--array=0-1%2"]
    made = {p.parent.name for p in tmp_path.glob("study/*/done.json")}
    arms = {f"{arm}-seed_{k}" for arm in ("mae", "pacx") for k in (1, 2)}
    assert made == arms | {"ecg", "labs"}
    capsys.readouterr()
    more = ["--target=/pacx/runs/study", "--on=jobset", "--accelerator=gpu"]
    assert study.main([*flags, *more, "--image=i", "--dry-run"]) == 0
    said = capsys.readouterr().out
    names = re.findall(r"^  name: (\S+)$", said, re.MULTILINE)
    assert {"study-mae-seed-1", "study-pacx-seed-2", "study-ecg"} <= set(names)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A prepared set of labelled films, and the encoders of two seeds."""
    root = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    rows = ["path,patient_id,split,view,age,sex,a,b,ap_alone,nobody"]
    (root / "films").mkdir()
    for i in range(120):
        labels = rng.integers(0, 2, 2)
        film = rng.integers(0, 100, (24, 24)) + 100 * labels[0] * (np.arange(24) < 12)
        PIL.Image.fromarray(np.uint8(film)).save(root / "films" / f"{i}.png")
        split = "train" if i < 60 else "test" if i < 110 else "val"
        who = f"{i // 2},{split},{('PA', 'AP')[i % 2]},{40 + i % 30},{'FM'[i % 3 % 2]}"
        # Of PA films (even i) none has the third label.
        rows.append(f"{i}.png,{who},{labels[0]},{labels[1]},{labels[0] * (i % 2)},0")
    table = root / "films" / "labels.csv"
    table.write_text("\n".join(rows))
    flags = [f"--source={root}/films", f"--target={root}/set", "--size=24"]
    prepare.prepare(prepare.parse(["folder", *flags, "--csv=labels.csv"]))
    for k, name in enumerate(
        ("mae-seed_1", "pacx-seed_1", "mae-seed_2", "pacx-seed_2")
    ):
        folder = tiny.folder("vit", seed=k)
        model_folder.save(root / "runs" / name, folder, "card")
        (root / "runs" / name / "done.json").write_text('{"step": 1, "metrics": {}}')
    return root


def _study(root, **changes):
    arms = {
        "mae": Arm("r", name="MAE", role="compared"),
        "pacx": Arm("r", starts={"model_init": "mae"}, name="PaCX", role="compared"),
    }
    table = str(root / "films" / "labels.csv")
    probe = Probe(
        str(root / "set"), {"both": ("a", "b")}, (0.5, 1.0), 2, table, ("PA",)
    )
    about = dict(arms=arms, probe=probe, pairs=[("pacx", "pixels")], treatment="pacx")
    about |= {"baseline": "mae", "floors": studies.FLOORS}
    return Study(**(about | changes))


def test_tables_of_a_study_are_the_same_bytes_again(probed):
    target = probed / "runs"
    text = study_results.write(_study(probed), target, range(1, 3), "test")
    for part in ("All test patients", "Within PA", "PaCX - MAE", "PaCX - Pixels 24x24"):
        assert part in text
    assert "2 training seeds, 2 label subsets, 25 patients" in text
    assert "not judged" in text  # two seeds
    numbers = json.loads((target / "comparison.json").read_text())
    rows = numbers["tables"]["all"]["table"]
    by_arm = {r["arm"]: r for r in rows if r["labels"] == "a" and r["fraction"] == 1}
    assert set(by_arm) == {"mae", "pacx", *studies.FLOORS}
    assert by_arm["pixels"]["auroc"] > 0.9 and by_arm["pixels"]["trainings"] == 1
    assert by_arm["pacx"]["trainings"] == by_arm["permuted"]["trainings"] == 2
    assert by_arm["view"]["auroc"] < 0.75 and by_arm["person"]["auroc"] < 0.75
    within = {r["n_patients"] for r in numbers["tables"]["within PA"]["table"]}
    assert within == {25}
    assert len(numbers["encoders"]) == len(set(numbers["encoders"].values())) == 4
    before = {
        f: (target / f).read_bytes()
        for f in ("comparison.json", "comparison.txt", "values.csv")
    }
    kept = sorted(p.stat().st_mtime_ns for p in (target / "features").iterdir())
    study_results.write(_study(probed), target, range(1, 3), "test")
    assert before == {f: (target / f).read_bytes() for f in before}
    assert kept == sorted(p.stat().st_mtime_ns for p in (target / "features").iterdir())
    shutil.rmtree(target / "features")  # and when everything is embedded anew
    study_results.write(_study(probed), target, range(1, 3), "test")
    assert before == {f: (target / f).read_bytes() for f in before}


def test_every_value_of_a_cell_is_in_one_table(probed):
    target = probed / "runs"
    study_results.write(_study(probed), target, range(1, 3), "test")
    with open(target / "values.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = json.loads((target / "comparison.json").read_text())
    for cell in numbers["tables"]["all"]["table"]:
        about = str(cell["fraction"]), cell["labels"]
        mine = [
            r["auroc"]
            for r in rows
            if r["arm"] == cell["arm"] and (r["fraction"], r["labels"]) == about
        ]
        if cell["group"]:
            continue
        assert len(mine) == cell["trainings"] * cell["subsets"]
        if cell["labels"] == "nobody":  # of one class
            assert {*mine} == {""} and cell["auroc"] is None
        else:
            mean = np.mean([float(value) for value in mine])
            assert mean == pytest.approx(cell["auroc"], abs=1e-12)
    prints = {(r["arm"], r["seed"]): r["encoder"] for r in rows}
    assert prints["pacx", "2"] == numbers["encoders"]["pacx, seed 2"]
    assert prints["pixels", ""] == ""


def test_one_training_does_not_stand_for_two(probed, tmp_path):
    for seed in (1, 2):
        for arm, of in (("mae", 1), ("pacx", seed)):
            run = probed / "runs" / f"{arm}-seed_{of}"
            (tmp_path / f"{arm}-seed_{seed}").symlink_to(run)
    with pytest.raises(PacxError, match="mae, seed 2 is the same encoder as mae, se"):
        study_results.write(_study(probed), tmp_path, range(1, 3), "test")


def test_a_seed_that_lacks_a_run_is_left_out_and_said(probed, tmp_path):
    text = study_results.write(_study(probed), probed / "runs", range(1, 4), "test")
    assert text.startswith("Seed 3 is left out: mae, pacx not finished.")
    assert "2 training seeds" in text
    with pytest.raises(PacxError, match="no seed has all arms finished; seed 7 lacks"):
        study_results.write(_study(probed), probed / "runs", range(7, 9), "test")


def test_an_encoder_that_is_given_and_another_pooling_are_arms(probed, tmp_path):
    folder = tiny.folder("vit", seed=9)
    model_folder.save(tmp_path / "theirs", folder, "card")
    arms = {
        **_study(probed).arms,
        "theirs": Arm("", given=str(tmp_path / "theirs"), name="Theirs"),
        "mean": Arm("", given="{pacx}", pooling="mean", name="PaCX, mean"),
    }
    about = _study(probed, arms=arms, pairs=[("theirs", "mae"), ("mean", "pacx")])
    assert about.levels()[-1] == ["mean"]
    planned = study.plan(about, "runs", range(1, 3), [])
    assert {r.fields["arm"] for runs in planned for r in runs} == {"mae", "pacx"}
    target = tmp_path / "study"
    target.mkdir()
    for run in (probed / "runs").glob("*-seed_*"):
        (target / run.name).symlink_to(run)
    text = study_results.write(about, target, range(1, 3), "test")
    assert "Theirs - MAE" in text and "PaCX, mean - PaCX" in text
    numbers = json.loads((target / "comparison.json").read_text())
    rows = {r["arm"]: r for r in numbers["tables"]["all"]["table"]}
    assert rows["theirs"]["trainings"] == 1 and rows["mean"]["trainings"] == 2
    assert {"theirs", "mean, seed 2"} < set(numbers["encoders"])
    assert "theirs is one encoder: no interval covers another training of it" in text
    assert "theirs: overlap unknown: " in text
    prints = numbers["encoders"]
    assert prints["mean, seed 2"] != prints["pacx, seed 2"]
    elsewhere = Arm("", given=f"{probed}/runs/pacx-seed_{{seed}}", name="Elsewhere")
    about = _study(probed, arms={**arms, "elsewhere": elsewhere})
    assert not about.single("elsewhere") and not about.single("mean")
    assert about.folder("x", "elsewhere", 2) == f"{probed}/runs/pacx-seed_2"
    study_results.write(about, target, range(1, 3), "test")
    rows = json.loads((target / "comparison.json").read_text())["tables"]["all"]
    rows = {r["arm"]: r for r in rows["table"]}
    assert rows["elsewhere"]["auroc"] == rows["pacx"]["auroc"]
    assert rows["elsewhere"]["trainings"] == 2
    once = {**arms, "pacx": dataclasses.replace(arms["pacx"], once=True)}
    assert _study(probed, arms=once).single("mean")  # of an arm that is trained once
    with pytest.raises(PacxError, match="given='{mae': "):
        _study(probed, arms={**arms, "mean": Arm("", given="{mae")})
    for wrong in (dict(recipe="r", given="x"), dict(recipe="")):
        with pytest.raises(PacxError, match="give a recipe to train, or `given`"):
            Arm(**wrong)
    with pytest.raises(PacxError, match="starts from 'pcx', no arm here"):
        _study(probed, arms={**arms, "mean": Arm("", given="{pcx}")})


def test_labels_of_one_class_are_said_or_refused(probed, tmp_path):
    for run in (probed / "runs").glob("*-seed_1"):
        (tmp_path / run.name).symlink_to(run)
    about = _study(probed)
    probe = dataclasses.replace(about.probe, groups={"both": ("a", "ap_alone")})
    text = study_results.write(
        dataclasses.replace(about, probe=probe), tmp_path, [1], "test"
    )
    assert "Within PA ap_alone has one class alone and is left out." in text
    assert "Within PA a has" not in text
    probe = dataclasses.replace(about.probe, groups={"both": ("a", "nobody")})
    with pytest.raises(PacxError, match="label 'nobody': 0 of 60 train images with"):
        study_results.write(
            dataclasses.replace(about, probe=probe), tmp_path, [1], "test"
        )


def test_an_encoder_that_has_seen_the_probes_test_patients_is_refused(probed, tmp_path):
    for run in (probed / "runs").glob("*-seed_*"):
        shutil.copytree(run, tmp_path / run.name)
    fields = {"data__source": "prepared", "data__path": str(probed / "set")}
    config = tiny.config("mae_vitb16", **fields)
    test = sources.open_source(config.data, "test")
    overlap.account(config, str(tmp_path / "pacx-seed_2"), test)
    with pytest.raises(PacxError, match="25 of 25 test patients") as error:
        study_results.write(_study(probed), tmp_path, range(1, 3), "test")
    assert "pacx-seed_2" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "comparison.json").exists()


@pytest.mark.full
def test_sets_beside_the_probes_are_told_apart_or_not(probed, tmp_path):
    about = _study(probed)
    beside = dataclasses.replace(about.probe, beside=(str(probed / "other"),))
    rows = ["path,patient_id,split,a,b"]
    (probed / "light").mkdir(exist_ok=True)
    for i in range(40):  # films that are lighter than the others
        film = np.full((24, 24), 200 + i, np.uint8)
        PIL.Image.fromarray(film).save(probed / "light" / f"{i}.png")
        rows.append(f"{i}.png,{i},{('train', 'test')[i % 2]},{i % 2},0")
    (probed / "light" / "labels.csv").write_text("\n".join(rows))
    flags = [f"--source={probed}/light", f"--target={probed}/other", "--size=24"]
    prepare.prepare(prepare.parse(["folder", *flags, "--csv=labels.csv"]))
    study = dataclasses.replace(about, probe=beside)
    text = study_results.write(study, probed / "runs", range(1, 3), "test")
    assert "telling the sets apart" in text
    numbers = json.loads((probed / "runs" / "comparison.json").read_text())
    row = numbers["sources"]["pacx"]
    assert row["trainings"] == 2 and row["balanced_accuracy"]["low"] > row["chance"]
    assert numbers["sources"]["pixels"]["balanced_accuracy"]["value"] == 1


def test_what_a_study_cannot_be_is_said(probed):
    for changes, says in (
        ({"treatment": "pcx"}, "'pcx', which is not there: is it 'pacx'"),
        ({"floors": ("pixel",), "pairs": []}, "floor 'pixel': choose of random"),
        ({"arms": {"pacx": Arm("r", starts={"x": "mae"})}}, "starts from 'mae'"),
    ):
        with pytest.raises(PacxError, match=says):
            _study(probed, **changes)
    circle = {
        a: Arm("r", starts={"x": b}) for a, b in (("mae", "pacx"), ("pacx", "mae"))
    }
    with pytest.raises(PacxError, match="start from each other: mae, pacx"):
        _study(probed, arms=circle)
    with pytest.raises(PacxError, match="configs/studies/none.py: no such study"):
        studies.read("configs/studies/none.py", "data")
    with pytest.raises(PacxError, match="no study, as it has no get_study"):
        studies.read("configs/mae_vitb16.py", "data")
    with pytest.raises(PacxError, match="by its path within the checkout"):
        studies.read("/somewhere/study.py", "data")
    probe = dataclasses.replace(_study(probed).probe, within=("LL",))
    with pytest.raises(
        PacxError, match="no test image of the view 'LL'; there are AP, PA"
    ):
        study_results.write(_study(probed, probe=probe), probed / "runs", [1], "test")
    short, train = probed / "short.csv", study_results._source(probe.path, "train")
    for text, says in (
        ("file,age,sex\n0.png,40,F\n", "short.csv lacks 59 of 60 images of train"),
        ("path,age,sex\n0.png,40,\n", "0.png has age '40' and sex '': give years, and"),
        ("path,age,sex\n0.png,,F\n", "0.png has age '' and sex 'F': give years, and"),
        ("path,age\n0.png,40\n", "short.csv: no column sex; give path, age and sex"),
    ):
        short.write_text(text)
        with pytest.raises(PacxError, match=says):
            study_results._rows(study_results._people(str(short)), train, str(short))


@pytest.mark.parametrize("name", ["mae_factors", "pacx_cohort", "real_xrays"])
def test_every_arm_is_a_config_that_its_recipe_takes(tmp_path, name):
    about = studies.read(f"configs/studies/{name}.py", str(tmp_path))
    for arm_name, arm in about.arms.items():
        if arm.given:
            continue
        fields = {**arm.fields, **dict.fromkeys(arm.starts, "runs/x")}
        default = _config(dataclasses.replace(arm, fields={}))
        for field, value in fields.items():
            known = default
            for part in field.split("."):
                known = known[part]  # a KeyError names what the recipe lacks
            assert isinstance(value, type(known)), (arm_name, field)
        config = _config(dataclasses.replace(arm, fields=fields))
        if config.objective == "distill":
            distill.check(config, "vit")


def test_the_controls_are_what_they_say(tmp_path):
    about = studies.read(FILE, str(tmp_path))
    controls = "shuffled shuffled_within ecg_only labs_only contrastive_only norms full"
    controls += " regression_only fixed_temperature last_blocks random_targets"
    assert set(controls.split()) | {"report_labels", "mae_continued"} < set(about.arms)
    active = {
        name: distill.active(_config(about.arms[name]))
        for name in ("pacx", "ecg_only", "labs_only", "report_labels")
    }
    assert active == {
        "pacx": ("ecg", "labs"),
        "ecg_only": ("ecg",),
        "labs_only": ("labs",),
        "report_labels": ("teacher",),
    }
    levels = about.levels()
    assert {"ecg_random", "labs_random"} <= set(levels[0])
    assert "random_targets" in levels[1]


def _config(arm):
    recipe, _, preset = arm.recipe.partition(":")
    module = importlib.import_module(recipe.removesuffix(".py").replace("/", "."))
    config = module.get_config(preset)
    config.update_from_flattened_dict(arm.fields)
    return config


def test_what_an_arm_needs_is_asked_for_before_anything_is_trained(tmp_path, capsys):
    assert study.main(given(tmp_path, "--arms=pacx,report_labels")) == 2
    said = capsys.readouterr().err
    assert "report_labels.npz: no such file; make it by: python data/label_tab" in said
    assert said.count("\n") == 1 and not (tmp_path / "study").exists()
    flags = given(tmp_path, "--arms=pacx")
    (tmp_path / "raw" / "paired" / "probe" / "labels.csv").unlink()
    assert study.main(flags) == 2
    said = capsys.readouterr().err
    assert "labels.csv: no such file; the floor 'person' takes a table" in said
    assert said.count("\n") == 1 and not (tmp_path / "study").exists()


@pytest.mark.full
def test_an_encoder_of_no_training_is_the_one_that_was_drawn(tmp_path, monkeypatch):
    """The arms `ecg_random` and `labs_random`: one step at a rate of 0."""
    runs.use_patients(monkeypatch)
    arm = studies.read(FILE, str(tmp_path)).arms["labs_random"]
    fields = {k.replace(".", "__"): v for k, v in arm.fields.items()}
    del fields["data__path"]
    config = runs.config("labs_dae", {}, **fields)
    main.run(config, str(tmp_path / "labs"))
    objective = objectives.make(config, None)
    key = jax.random.split(jax.random.key(config.seed), 3)[0]  # as run/setup.py
    drawn = tiny.flat(objective.init(key))
    folder = model_folder.load(str(tmp_path / "labs"), "labs_dae")
    for name, value in tiny.flat(folder.params).items():
        (want,) = [v for k, v in drawn.items() if k.endswith(f"encoder/{name}")]
        np.testing.assert_array_equal(value, want)
