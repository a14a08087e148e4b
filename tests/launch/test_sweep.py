"""Sweeps: which runs, what of them is left, one table, and where they are started."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from launch import sweep
from pacx_jax.input import prepared
from tests.launch.scripts import ROOT, environment
from tests.launch.test_scripts import wait_for

RECIPE = "--config=configs/distill_vitb16.py:paper"
# Stands in for pacx_jax.main: writes what a finished run leaves, or does not.
STAND_IN = """
import json, os, pathlib, signal, sys, time
arguments = dict(a.split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(arguments["--workdir"])
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / "starts").open("a") as file:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    file.write(gpus + " ".join(sys.argv[1:]) + chr(10))
kind = arguments.get("--config.kind")
if kind == "broken":
    sys.exit("error: no such data")
if kind == "slow":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (workdir / "ready").touch()
    time.sleep(60)
if "--evaluate" in arguments:
    result = {"split": "test", "n": 9, "auroc_macro": 0.75}
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
else:
    metrics = {"val/loss": float(arguments["--config.loss.clip_weight"])}
    done = {"step": 5, "metrics": metrics}
    (workdir / "done.json").write_text(json.dumps(done))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "PROGRAM", (sys.executable, str(tmp_path / "main.py")))
    return tmp_path


def run(tmp_path, *arguments):
    return sweep.main([RECIPE, f"--target={tmp_path}/sweep", *arguments])


def starts(tmp_path, name):
    return (tmp_path / "sweep" / name / "starts").read_text().splitlines()


def dry_run(capsys, *arguments):
    assert sweep.main([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()[1:]


GRID = ("--grid=loss.clip_weight=0.5;0.0", "--grid=kind=a;b")


def test_a_sweep_runs_its_grid_and_makes_one_table(stand_in, capsys):
    more = ["--jobs=2", "--gpus_per_job=2", "--evaluate=test", "--config.seed=1"]
    assert run(stand_in, *GRID, *more) == 0
    table = (stand_in / "sweep" / "results.md").read_text().splitlines()
    assert table[0] == "| run | state | step | test/auroc_macro | test/n | val/loss |"
    assert "| clip_weight_0.5-kind_b | finished | 5 | 0.75 | 9 | 0.5 |" in table
    assert len(table) == 6 and table[2] in capsys.readouterr().out
    rows = json.loads((stand_in / "sweep" / "results.json").read_text())
    assert rows[0]["fields"] == {"loss.clip_weight": "0.5", "kind": "a"}
    first = starts(stand_in, "clip_weight_0.5-kind_a")[0]
    assert first.startswith(("0,1--", "2,3--")) and "--config.seed=1" in first


def test_a_sweep_skips_finished_runs_and_lists_failed_ones(stand_in, capsys):
    grid = ("--grid=loss.clip_weight=0.5", "--grid=kind=a;broken")
    assert run(stand_in, *grid) == 1
    assert run(stand_in, *grid) == 1
    log = stand_in / "sweep" / "logs" / "clip_weight_0.5-kind_broken.log"
    said = f"failed: clip_weight_0.5-kind_broken: error: no such data ({log})\n"
    assert capsys.readouterr().err == 2 * said
    assert len(starts(stand_in, "clip_weight_0.5-kind_a")) == 1
    assert len(starts(stand_in, "clip_weight_0.5-kind_broken")) == 2
    assert log.read_text() == 2 * "error: no such data\n"
    table = (stand_in / "sweep" / "results.md").read_text()
    assert "| clip_weight_0.5-kind_broken | failed (1) |" in table


def test_a_stopped_sweep_saves_its_runs_and_starts_no_more(tmp_path):
    (tmp_path / "main.py").write_text(STAND_IN)
    code = (
        "import sys; from launch import sweep; "
        f"sweep.PROGRAM = (sys.executable, {str(tmp_path / 'main.py')!r}); "
        "sys.exit(sweep.main())"
    )
    command = [sys.executable, "-c", code, RECIPE, f"--target={tmp_path}/sweep"]
    grid = ["--grid=loss.clip_weight=1;2", "--grid=kind=slow"]
    process = subprocess.Popen(
        [*command, *grid], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "sweep" / "clip_weight_1-kind_slow" / "ready")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "| clip_weight_1-kind_slow | stopped |" in output
    assert not (tmp_path / "sweep" / "clip_weight_2-kind_slow").exists()


def test_the_arms_of_table_3_are_the_paper_s(capsys):
    flags = [RECIPE, "--target=t", "--arms=launch/table3.json"]
    runs = {}
    for line in dry_run(capsys, *flags, "--grid=seed=0;1"):
        name = line.split("--workdir=t/")[1].split(" ")[0]
        runs[name] = line.split(name)[1].strip()
    assert len(runs) == 10
    assert runs["full-seed_0"] == "--config.seed=0"
    for field in ("clip_weight", "regression_weight"):
        assert f"--config.modalities.labs.{field}=0.0" in runs["ecg_only-seed_1"]
    assert "--config.loss.regression_weight=0.0" in runs["contrastive_only-seed_0"]
    assert "--config.loss.clip_weight=0.0" in runs["regression_only-seed_0"]


def test_a_dry_run_leaves_nothing(tmp_path, capsys):
    for on in ("local", "slurm"):
        dry_run(capsys, RECIPE, f"--target={tmp_path}/sweep", f"--on={on}", *GRID)
    assert not (tmp_path / "sweep").exists()


def test_other_arguments_in_the_same_target_are_refused(stand_in, capsys):
    run(stand_in, *GRID)
    capsys.readouterr()
    assert run(stand_in, *GRID, "--config.seed=2") == 2
    assert "--config.seed=2. Take another --target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--grid=seed"], "--grid=seed: give FIELD=VALUE;VALUE"),
        (
            ["--grid=a.x=1", "--grid=b.x=1", "--grid=seed=1;1"],
            "two runs would be called",
        ),
        (["--arms=nowhere.json"], "--arms=nowhere.json: give JSON"),
        (["--arms=launch/table3.json", "--grid=loss.clip_weight=1"], "take one"),
        (["--confg.seed=1"], "unknown argument '--confg.seed=1'"),
        (["--jobs=0"], "--jobs=0: give at least 1"),
        (["--gpus_per_job=-1"], "--gpus_per_job=-1: give at least 0"),
        (["--hosts=0"], "--hosts=0: give at least 1"),
        (
            ["--evaluate=bogus", "--config.data.source=folder"],
            "--evaluate=bogus: a folder has the splits train, val, test",
        ),
        (["--config=configs/none.py"], "none.py: no such file, nor a recipe"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(tmp_path, capsys, arguments, error):
    assert run(tmp_path, *arguments) == 2
    assert error in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_split_that_the_prepared_data_lack_is_refused_before_any_run(
    stand_in, monkeypatch, capsys
):
    names = {"a": {"train": 9, "val": 2, "test": 3}, "b": {"train": 9, "val": 2}}
    monkeypatch.setattr(prepared, "read", lambda path, _: {"splits": names[str(path)]})
    assert run(stand_in, *GRID[:1], "--evaluate=test", "--config.data.path=a") == 0
    (stand_in / "sweep").rename(stand_in / "before")
    assert run(stand_in, "--grid=data.path=a;b", "--evaluate=test") == 2
    expected = "--evaluate=test: b has the splits train, val"
    assert expected in capsys.readouterr().err
    assert not (stand_in / "sweep").exists()


@pytest.mark.parametrize("said", [f"error: {'x' * 300}\n", "stopped: by the error "])
def test_of_several_logs_the_one_with_the_error_is_told(tmp_path, said):
    logs = tmp_path / "a" / "logs"
    logs.mkdir(parents=True)
    (logs / "process_0.log").write_text("another task died\n    @     0x7f37 ()\n")
    (logs / "process_1.log").write_text(f"step 1\n{said}\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "a.exit").write_text("2\n")
    runs = [sweep.Run("a", {}, (), tmp_path / "a", "")]
    (row,) = sweep.collect(runs, tmp_path, [])
    assert row["error"] == f"{said[:200].strip()} ({logs / 'process_1.log'})"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKE_TASKS", "1")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(ROOT))
    stand_in = tmp_path / "main.py"
    stand_in.write_text(STAND_IN)
    # "$@" is -m pacx_jax.main --distributed=auto and the run's arguments.
    (tmp_path / "behaviour").write_text(
        f'exec "{sys.executable}" "{stand_in}" "${{@:4}}"'
    )
    return tmp_path


def test_a_sweep_on_slurm_is_one_array_and_goes_on_when_given_again(cluster):
    grid = ("--grid=loss.clip_weight=0.5;0.1", "--grid=kind=a;broken")
    arguments = [*grid, "--on=slurm", "--jobs=2", "--sbatch=--nodes=1"]
    arguments += ["--evaluate=test"]
    assert run(cluster, *arguments) == 0
    states = [
        r["state"] for r in json.loads((cluster / "sweep/results.json").read_text())
    ]
    assert states == ["trained", "failed (1)", "trained", "failed (1)"]
    assert run(cluster, *arguments) == 0
    rows = json.loads((cluster / "sweep/results.json").read_text())
    assert [r["state"] for r in rows][0] == "finished"
    assert rows[2]["metrics"] == {
        "val/loss": 0.1,
        "test/n": 9,
        "test/auroc_macro": 0.75,
    }
    calls = (cluster / "sbatch.calls").read_text().splitlines()
    folder = f"launch/slurm.sbatch --sweep={cluster}/sweep/sweep"
    assert calls[0] == f"--parsable --array=0-3%2 --nodes=1 {folder}"


def test_a_sweep_that_still_waits_on_slurm_is_not_submitted_twice(
    cluster, monkeypatch, capsys
):
    arguments = ["--grid=loss.clip_weight=1", "--grid=kind=broken", "--on=slurm"]
    run(cluster, *arguments)
    monkeypatch.setenv("FAKE_QUEUE", "7 pacx RUNNING")
    assert run(cluster, *arguments) == 2
    assert "SLURM job 7 of this sweep waits or runs" in capsys.readouterr().err


def test_a_sweep_on_gke_is_one_jobset_a_run(cluster, capsys):
    arguments = ["--on=jobset", "--accelerator=gpu", "--image=i", "--grid=seed=0;1"]
    arguments += [RECIPE, "--target=/pacx/runs/table3"]
    made = list(yaml.safe_load_all("\n".join(dry_run(capsys, *arguments))))
    assert [d["metadata"]["name"] for d in made] == ["table3-seed-0", "table3-seed-1"]
    assert not list(cluster.glob("*.yaml"))
