"""The paper's tables: what is trained, measured, shown, and said to be missing."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from data import prepare
from data.cohort import generate, latents
from launch import reproduce
from launch.paper import beyond, measure, page, rows
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import load_encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import probe
from pacx_jax.input import images
from pacx_jax.run import overlap
from tests import tiny
from tests.launch.test_study import _config

PUBLISHED = json.loads(reproduce.PUBLISHED.read_text())


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A prepared probe set of the cohort's labels, and an encoder of every arm."""
    root = tmp_path_factory.mktemp("paper")
    rng = np.random.default_rng(0)
    lines = [",".join(["path,patient_id,split", *latents.LABELS])]
    (root / "films").mkdir()
    for i in range(120):
        labels = rng.integers(0, 2, 7)
        film = rng.integers(0, 100, (24, 24)) + 100 * labels[0] * (np.arange(24) < 12)
        PIL.Image.fromarray(np.uint8(film)).save(root / "films" / f"{i}.png")
        split = "train" if i < 60 else "test" if i < 110 else "val"
        lines.append(f"{i}.png,{i // 2},{split},{','.join(map(str, labels))}")
    (root / "films" / "labels.csv").write_text("\n".join(lines))
    flags = [f"--source={root}/films", f"--target={root}/data/probe", "--size=24"]
    prepare.prepare(prepare.parse(["folder", *flags, "--csv=labels.csv"]))
    for k, arm in enumerate(reproduce.ARMS):
        model_folder.save(root / arm, tiny.folder("vit", seed=k), card="a test's")
    return root


def test_what_is_trained_fits_its_recipes_and_what_is_not_is_said(tmp_path):
    for folder in ("chexpert", "symile_mimic", "ecg", "covid_qu_ex"):
        (tmp_path / folder).mkdir()
    asked, notes = rows.study(str(tmp_path), False, {"imagenet": "runs/imagenet"})
    assert notes == []
    decoders = {f"covid_qu_ex_{e}" for e in rows.ENCODERS}
    assert set(asked.arms) == {*reproduce.GIVEN, *decoders}
    assert asked.arms["imagenet"].given == "runs/imagenet"
    for arm in asked.arms.values():
        if arm.given:
            continue
        default = _config(dataclasses.replace(arm, fields={}))
        for field in {**arm.fields, **arm.starts}:
            known = default
            for part in field.split("."):
                known = known[part]  # a KeyError names what the recipe lacks
    (tmp_path / "ecg").rmdir()
    given = {"mae": "runs/mae", "labs": "runs/labs"}
    asked, notes = rows.study(str(tmp_path), False, given)
    assert {a for a, arm in asked.arms.items() if arm.recipe} == {"covid_qu_ex_mae"}
    assert asked.arms["covid_qu_ex_mae"].starts == {"model_init": "mae"}
    assert asked.folder("x", "mae", 1) == "runs/mae"
    assert notes[0].startswith(f"ecg is not trained, for want of {tmp_path}/ecg; give")
    assert "pacx is not trained, for want of ecg" in notes[1]
    assert rows.study(str(tmp_path / "x"), False, {})[0] is None


def test_every_missing_set_says_where_it_is_from_and_how_it_is_prepared():
    for row in rows.PAPER:
        line = row.missing("prepared")
        assert "https://" in line and f"--target=prepared/{row.folder}" in line
        assert prepare.parse(
            [row.builder, "--source=DIR", "--target=x", *row.flags.split()]
        )
        if row == rows.FRONTAL:
            continue  # the paper has none
        numbers = PUBLISHED["table1"][row.name]
        assert all(len(numbers[m]) == len(rows.ENCODERS) for m in row.metrics)
    for name in rows.TABLE3:
        numbers = PUBLISHED["table3"][name]
        assert all(len(numbers[m]) == len(rows.ABLATIONS) for m in ("auroc", "f1"))
        full = dict(zip(rows.ENCODERS, PUBLISHED["table1"][name]["auroc"], strict=True))
        assert numbers["auroc"][-1] == full["pacx"]
    for name in rows.FIGURE3:
        mae, gain = (PUBLISHED["figure3"][name][k][-1] for k in ("mae", "gain"))
        table = PUBLISHED["table1"][name]["auroc"]
        assert [mae, round(mae + gain, 3)] == table[1:]


def test_a_cell_is_the_probes_score_and_is_measured_once(there, tmp_path, monkeypatch):
    row = next(r for r in rows.of(True) if r.name == "MedMod")
    encoders = {a: [load_encoder(there / a)] for a in ("mae", "pacx")}
    folders = {a: [str(there / a)] for a in encoders}
    about = str(there / "data"), tmp_path, encoders, folders
    setting = measure.Setting(*about, subsets=2, resamples=50)
    fractions = {"mae": (0.5, 1.0), "pacx": (0.5, 1.0)}
    found = measure.classified(setting, row, fractions)
    train, test = (measure.open_split(setting.data, row, s) for s in ("train", "test"))
    columns = [train.label_names.index(name) for name in row.labels]
    y = [source.labels()[:, columns] for source in (train, test)]
    z = [
        encoders["pacx"][0](
            [images.decode(source[i]["image"]) for i in range(len(source))]
        )
        for source in (train, test)
    ]
    p = probe.fit(z[0], y[0], groups=np.array(train.patients())).predict(z[1])
    cell = found["cells"]["pacx"]["1.0"]
    assert cell["auroc"]["value"] == pytest.approx(roc_auc_score(y[1], p), abs=1e-9)
    f1 = f1_score(y[1], p >= 0.5, average="macro", zero_division=0)
    assert cell["f1"]["value"] == pytest.approx(f1, abs=1e-9)
    assert cell["auroc"]["low"] < cell["auroc"]["value"] < cell["auroc"]["high"]
    assert (cell["auroc"]["trainings"], cell["auroc"]["patients"]) == (1, 25)
    each = [found["cells"][a]["0.5"]["auroc"]["value"] for a in ("pacx", "mae")]
    gain = found["gains"]["0.5"]
    assert gain["value"] == pytest.approx(each[0] - each[1])
    monkeypatch.setattr(measure, "_classified", None)  # it would fail
    assert measure.classified(setting, row, fractions) == found


def test_a_refused_encoder_is_no_number(there, tmp_path, monkeypatch):
    """It is asked each time, also of what was measured before."""
    seen = set()

    def refuse(config, own, splits, chain, allow):
        if any(config.name.startswith(arm) for arm in seen):
            raise PacxError("3 of 25 test patients were in the training")
        assert config.data.namespace == "simulated" and not config.data.allow_overlap
        return "overlap unknown: no list"

    monkeypatch.setattr(overlap, "check", refuse)
    row = rows.of(True)[1]
    encoders = {a: [load_encoder(there / a)] for a in ("mae", "pacx")}
    folders = {a: [str(there / a)] for a in encoders}
    about = str(there / "data"), tmp_path, encoders, folders
    setting = measure.Setting(*about, resamples=20)
    fractions = {"mae": (1.0,), "pacx": (1.0,)}
    found = measure.classified(setting, row, fractions)
    assert set(found["cells"]) == {"mae", "pacx"} and not found["refused"]
    seen.add("pacx")
    found = measure.classified(setting, row, fractions)
    assert set(found["cells"]) == {"mae"} and found["gains"] == {}
    assert found["refused"] == {"pacx": "3 of 25 test patients were in the training"}
    assert found["told"] == ["mae: overlap unknown: no list"]


def test_patients_in_train_and_test_are_counted():
    assert measure._in_both(["a", "b", ""], ["b", "c", "", "b"])[0].startswith(
        "1 of 2 test patients are in train too, as b:"
    )
    assert measure._in_both(["a", ""], ["b", ""]) == []
    assert measure._in_both(None, ["b"]) == measure._in_both(["b"], None) == []


def test_sets_are_told_apart_where_their_films_differ(there, tmp_path):
    """By encoders and by pixels; the first set's films have a dark and a light half."""
    (tmp_path / "light").mkdir()
    lines = ["path,patient_id,split,a"]
    for i in range(40):
        film = np.full((24, 24), 200 + i, np.uint8)
        PIL.Image.fromarray(film).save(tmp_path / "light" / f"{i}.png")
        lines.append(f"{i}.png,{i},{('train', 'test')[i % 2]},{i % 2}")
    (tmp_path / "light" / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "probe").symlink_to(there / "data" / "probe")
    flags = [f"--source={tmp_path}/light", f"--target={tmp_path}/data/light"]
    prepare.prepare(prepare.parse(["folder", *flags, "--size=24", "--csv=labels.csv"]))
    encoders = {a: [load_encoder(there / a)] for a in ("mae", "pacx")}
    folders = {a: [str(there / a)] for a in encoders}
    about = str(tmp_path / "data"), tmp_path, encoders, folders
    setting = measure.Setting(*about, resamples=20)
    sets = [rows.Row("A", "probe", "folder"), rows.Row("B", "light", "folder")]
    found = beyond.told_apart(setting, sets, limit=40)
    assert set(found) == {"mae", "pacx", "pixels"}
    assert found["pixels"]["n"] == {"probe": 40, "light": 20}
    assert found["pixels"]["balanced_accuracy"]["value"] == 1
    assert found["pacx"]["balanced_accuracy"]["low"] > found["pacx"]["chance"] == 0.5
    lines = page.sources(found).splitlines()
    assert lines[-1].startswith("| Pixels 24x24 | 1.000 (1.00 to 1.00) | 0.500 | 1.000")


def test_several_trainings_of_a_given_encoder_are_named_by_seed(
    there, tmp_path, capsys
):
    for k, arm in enumerate(("mae", "pacx"), 1):
        (tmp_path / f"other-seed_{k}").symlink_to(there / arm)
    flags = [f"--data={there}/data", f"--out={tmp_path}/out", "--cohort", "--tiny"]
    flags += [f"--encoder=mae={tmp_path}/other-seed_{{seed}}", "--seeds=2", "--measure"]
    assert reproduce.main(flags) == 0
    numbers = json.loads((tmp_path / "out/reproduction.json").read_text())
    assert [e["folder"][-1] for e in numbers["encoders"]["mae"]] == ["1", "2"]
    cell = numbers["rows"]["MedMod"]["cells"]["mae"]["1.0"]["auroc"]
    assert cell["trainings"] == 2 and cell["spread"] > 0
    (tmp_path / "other-seed_2").unlink()
    (tmp_path / "other-seed_2").symlink_to(there / "mae")
    assert reproduce.main(flags) == 2
    assert "other-seed_2 is the same encoder as" in capsys.readouterr().err


def test_on_gke_its_trainings_are_jobsets(tmp_path, capsys):
    (tmp_path / "chexpert").mkdir()
    flags = [f"--data={tmp_path}", "--out=/pacx/runs/paper", "--on=jobset", "--dry-run"]
    assert reproduce.main([*flags, "--accelerator=gpu", "--image=i"]) == 0
    assert "\n  name: paper-mae-seed-1\n" in capsys.readouterr().out


def test_the_command_fills_what_it_can_and_names_the_rest(there, tmp_path, capsys):
    flags = [f"--data={there}/data", f"--out={tmp_path}", "--cohort", "--tiny"]
    flags += [f"--encoder={arm}={there}/{arm}" for arm in reproduce.ARMS]
    assert reproduce.main([*flags, "--measure"]) == 0
    text = (tmp_path / "reproduction.md").read_text()
    out = capsys.readouterr().out
    assert out.endswith(text) and "The patients are simulated" in text
    assert "pacx, CheXchoNet: overlap unknown" in out
    assert "MedMod, frontal alone: " in out  # which the cohort has not
    lines = {line.split(" | ")[0][2:]: line for line in text.splitlines()}
    chexchonet = lines["CheXchoNet (structural heart disease, simulated)"].split(" | ")
    assert chexchonet[-3:] == ["0.728", "0.788", "0.803 |"]
    assert all("(" in cell for cell in chexchonet[2:5])
    assert lines["TB"].split(" | ")[2:5] == [page.MISSING] * 3
    table3 = text[text.index("## Table 3") : text.index("## Figure 2") if "## Figure 2"
                  in text else text.index("## Figure 3")]  # fmt: skip
    assert "| MedMod | AUROC | 0." in table3 and "0.717 | 0.721 |" in table3
    for part in (
        "TB: ",
        "prepare.py tb --source=DIR",
        "masked is not there: the docstring of configs/segment.py",
        "table 2 takes the workdir of a distillation",
        "figure 2 takes the MAE's workdir",
        "NIH-14, mae: overlap unknown",
        "One training seed: the intervals lack the randomness of training",
        "No spread over training seeds is recorded for reproduce",
    ):
        assert part in text[text.index("## What is missing") :], part
    for name in ("figure3.svg", "figure4.png", "figure5.png"):
        assert (tmp_path / name).stat().st_size > 1000 and f"({name})" in text
    numbers = json.loads((tmp_path / "reproduction.json").read_text())
    assert numbers["encoders"]["mae"][0]["folder"] == f"{there}/mae"
    assert len(numbers["encoders"]["mae"][0]["fingerprint"]) == 16
    assert set(numbers["rows"]) == {"CheXchoNet", "VinDr-CXR", "NIH-14", "MedMod"}
    assert "| MedMod | 50 | 25 | 1 | 2 below 100%, 1 at 100% |" in text
    before = (tmp_path / "reproduction.json").read_bytes()
    assert reproduce.main([*flags, "--measure"]) == 0
    assert (tmp_path / "reproduction.json").read_bytes() == before


def test_an_encoder_with_fewer_trainings_than_asked_for_has_no_cell(tmp_path, capsys):
    """Where one failed, the other trainings are not shown as if they were all."""
    (tmp_path / "data/chexpert").mkdir(parents=True)
    for seed in (1, 2):
        run = tmp_path / f"out/runs/mae-seed_{seed}"
        run.mkdir(parents=True)
        (run / "done.json").write_text('{"step": 1, "metrics": {}}')
    flags = [f"--data={tmp_path}/data", f"--out={tmp_path}/out", "--seeds=3"]
    assert reproduce.main([*flags, "--measure"]) == 2
    said = capsys.readouterr()
    assert "mae-seed_3 is not finished" in said.out
    assert "no encoder to measure" in said.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data=nowhere"], "--data=nowhere: no such folder"),
        (["--seeds=0"], "--seeds=0: give at least 1"),
        (["--encoder=mea=x"], "--encoder=mea=x: give NAME=DIR, of imagenet, mae"),
        (["--encoder=mae=nowhere"], "--encoder=mae=nowhere: no such folder"),
        (["--sed=1"], "unknown argument '--sed=1'"),
        (["--encoder=mae=tests", "--encoder=mae=docs"], "mae is given twice"),
        (["--measure"], "no encoder to measure, and none can be trained"),
    ],
)
def test_wrong_flags_are_one_line(there, tmp_path, flags, says, capsys):
    given = [f"--data={there}/data", f"--out={tmp_path}/out", *flags]
    assert reproduce.main(given) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.full
def test_all_of_it_on_a_tiny_cohort(tmp_path):
    """Trainings, decoders, alignment, every figure."""
    raw, data = tmp_path / "raw", tmp_path / "data"
    sizes = {"pretrain": 40, "pretrain_valid": 8, "symile": 100, "symile_val": 12,
             "symile_test": 20, "symile_size": 48, "ecg": 40, "probe_train": 120,
             "probe_val": 30, "probe_test": 60, "masks": -1}  # fmt: skip
    flags = [f"--{k}={v}" for k, v in sizes.items()]
    assert generate.main([f"--target={raw}", "--seed=1", *flags]) == 0
    for name, builder, folder, *more in (
        ("chexpert", "chexpert", "chexpert", "--size=48"),
        ("ecg", "ecg_array", "ecg"),
        ("symile_mimic", "symile_mimic", "symile_mimic", "--size=48"),
        ("probe", "folder", "probe", "--size=48"),
        ("masked", "folder", "probe", "--size=48", "--masks=masks"),
    ):
        flags = [f"--source={raw}/{folder}", f"--target={data}/{name}", *more]
        prepare.prepare(prepare.parse([builder, *flags]))
    flags = [f"--data={data}", f"--out={tmp_path}/out", "--cohort", "--tiny"]
    assert reproduce.main([*flags, "--config.global_batch_size=8"]) == 0
    numbers = json.loads((tmp_path / "out/reproduction.json").read_text())
    assert {f for f in numbers["figures"].values()} == {
        "figure2.png", "figure3.svg", "figure4.png", "figure5.png"
    }  # fmt: skip
    assert set(numbers["rows"]["COVID-QU-Ex"]["cells"]) == {"mae", "pacx"}
    assert numbers["table2"]["n"] == 20
    assert numbers["attention"]["COVID-QU-Ex"]["shares"]["pacx - mae"]["n"] == 60
    assert numbers["sources"] == {}  # its rows are of one set
    # The cohort numbers everybody once, so nothing is unknown of who was trained on.
    assert not any("overlap unknown" in note for note in numbers["notes"])
    assert numbers["table2"]["refused"] == {}
