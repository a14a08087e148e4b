"""What users have done to runs, each with the right answer.

Numbers are of public reports of the same kind of mistake in other software.
"""

import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import PIL.Image
import pytest

from pacx_jax import cli, main, step
from pacx_jax.distributed import preemption
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.run import batches, fingerprints, recipe_flags, setup, summary
from tests import tiny
from tests.reliability import runs

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def parsed(monkeypatch):
    """Flags -> the values of a command line with the MAE's recipe."""

    def parse(*flags):
        values = main.flags.FLAGS
        values.unparse_flags()
        for name in list(values):
            if name.startswith("config."):  # defined by the last overrides
                delattr(values, name)
        argv = ["main", "--config=configs/mae_vitb16.py", "--workdir=w", *flags]
        monkeypatch.setattr(sys, "argv", argv)  # where overrides are looked up
        recipe_flags.parse(argv)
        return fingerprints.flat(values["config"].value.to_dict()), values

    monkeypatch.chdir(ROOT)
    return parse


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("total_steps=1e3", 1000),  # snowflakedb/ArcticTraining#165: 5e8 is no int
        ("total_steps=1_000", 1000),
        ("seed=-3", -3),
        ("optim.peak_lr=1e-5", 1e-5),  # AMD-AGI/Primus#1110: became the text "1e-5"
        ("optim.peak_lr=1", 1.0),
        ("data.cache=yes", True),
        ("data.cache=off", False),
        ("data.mean=", ()),
        ("data.label_columns=Edema", ("Edema",)),
        ("data.path=1e3", "1e3"),
    ],
)
def test_a_flag_s_value_has_its_field_s_type(flag, value, parsed):
    got = parsed(f"--config.{flag}")[0][flag.partition("=")[0]]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("total_steps=1.5", "--config.total_steps=1.5: give a whole number"),
        ("total_steps=", "--config.total_steps=: give a whole number"),
        ("total_steps=1e300", "give a whole number below 2^31"),
        ("seed=x", "--config.seed=x: give a whole number"),
        ("seed=True", "--config.seed=True: give a whole number"),
        ("optim.peak_lr=", "--config.optim.peak_lr=: give a number"),
        ("optim.peak_lr=nan", "--config.optim.peak_lr=nan: give a number"),
        ("data.cache=maybe", "--config.data.cache=maybe: give true or false"),
        ("data.label_columns=('a','b'", "Error while parsing"),
        ("optim.lr=1", "did you mean optim.peak_lr?"),
        ("optim.learning_rate=1", "did you mean optim.peak_lr?"),
        ("batch_size=1", "did you mean global_batch_size?"),
        ("warmup_steps=1", "did you mean optim.warmup_steps?"),
        ("loss.mask_ration=0.5", "did you mean loss.mask_ratio?"),
        ("nope.x=1", "configs/mae_vitb16.py has no such field: its base"),
        ("optim=3", "has fields of its own: set one of them, such as --config.optim."),
        ("optim.decay.x=1", "did you mean optim.decay?"),
        ("data.crop_scale[0]=1", "did you mean data.crop_scale?"),
        ("name", "Missing value"),
    ],
)
def test_a_wrong_flag_is_one_line_with_a_remedy(flag, said, parsed):
    with pytest.raises(PacxError) as error:
        parsed(f"--config.{flag}")
    assert said in str(error.value) and "literal" not in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (["--config=configs/none.py"], "configs/none.py: no such file, nor a recipe"),
        (
            ["--config", "configs/none.py"],
            "configs/none.py: no such file, nor a recipe",
        ),
        (["--config=configs/mae_vitb16.py:small"], "'small'"),
        # a script with Windows' line ends
        (["--workdir=runs/a\r"], r"'--workdir=runs/a\\r': it ends in a carriage ret"),
    ],
)
def test_a_recipe_that_is_not_there_is_one_line(recipe, said, parsed):
    with pytest.raises(PacxError, match=said):
        parsed(*recipe)


# Lightning-AI/pytorch-lightning#19059, spacetelescope/jwst#1016: a folder named "~",
# which no shell expands after `--workdir=`.
def test_home_is_not_a_folder_named_tilde(parsed):
    home = os.path.expanduser("~")
    config, values = parsed("--workdir=~/runs/mae", "--config.data.path=~")
    assert values["workdir"].value == f"{home}/runs/mae"
    assert config["data.path"] == home
    parser = cli.Parser()
    parser.add_argument("--out")
    assert parser.parse_args(["--out=~/z.npz"]).out == f"{home}/z.npz"
    assert cli.at_home("--out=a~/b") == "--out=a~/b"


@pytest.fixture
def patients(monkeypatch):
    runs.use_patients(monkeypatch)
    monkeypatch.setattr(step, "make_train_step", step.make_train_step)  # put back


def config(**fields):
    """Six steps with a learning rate that total_steps does not change."""
    small = {"total_steps": 6, "optim__min_ratio": 1.0, "num_devices": 1, "best": ""}
    return runs.config("labs_dae", {}, **(small | fields))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patched:
        runs.use_patients(patched)
        main.run(config(), str(workdir))
    return workdir


def assert_same_state(workdir, other):
    got, want = runs.state(workdir), runs.state(other)
    assert got.keys() == want.keys()
    for leaf in want:
        np.testing.assert_array_equal(got[leaf], want[leaf], err_msg=leaf)


# uberduck-ai/uberduck-ml-dev#66, blue-oil/blueoil#315
def test_ctrl_c_saves_and_the_run_goes_on_with_other_harmless_fields(
    straight, patients, tmp_path, monkeypatch, capfd
):
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.at_update(2, runs.ctrl_c)  # config.save_every is 3
        with pytest.raises(preemption.Preempted, match="saved at step 2"):
            main.run(config(), str(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again ends at once" in capfd.readouterr().err
    assert main.goes_on(str(tmp_path)) == "the same command goes on from step 2"
    with pytest.raises(
        PacxError, match="another config: seed was 0, is 5; weight|0, is"
    ):
        main.run(config(seed=5, save_every=1), str(tmp_path))
    harmless = {"save_every": 5, "log_every": 2, "eval_every": 3, "keep": 1}
    harmless |= {"images_every": 1, "data__threads": 2, "data__prefetch_to_device": 0}
    main.run(config(**harmless), str(tmp_path))
    assert_same_state(tmp_path, straight)


def test_ctrl_c_before_the_first_step_is_done_says_that_nothing_is_saved(
    patients, tmp_path
):
    runs.at_update(1, runs.ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        main.run(config(), str(tmp_path))
    said = "nothing was saved yet: the same command begins at step 0"
    assert main.goes_on(str(tmp_path)) == said


def test_a_run_without_labels_and_a_workdir_that_is_a_file_are_one_line(tmp_path):
    rows = ["path,split,Edema"]
    for i in range(4):
        PIL.Image.new("L", (32, 32), i).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'train' if i < 2 else 'val'},{'' if i < 2 else i % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    probe = runs.config("classify", tiny.write_folders(tmp_path / "models"))
    probe.data.update(source="folder", path=str(tmp_path))
    with pytest.raises(PacxError, match="no image of the train split has a known lab"):
        setup.prepare(probe, str(tmp_path / "run"), batches.open_sources(probe))
    probe.data.csv = "-"
    with pytest.raises(PacxError, match="no labels: .*names of folders are none"):
        setup.prepare(probe, str(tmp_path / "run"), batches.open_sources(probe))
    with pytest.raises(PacxError, match="labels.csv is a file: take another --workdir"):
        main.run(probe, str(tmp_path / "labels.csv"))


STAGE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: exit(3))
try:
    open("started", "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    exit(75)"""


def test_ctrl_c_in_the_demo_waits_for_the_stage_to_save(tmp_path):
    code = f"""
import pathlib, signal
from launch import demo
signal.signal(signal.SIGINT, signal.default_int_handler)
demo.ROOT = pathlib.Path.cwd()
run = demo.Demo(demo.ROOT, [demo.Stage("mae", ["-c", {STAGE!r}], ())])
try:
    run.run()
except KeyboardInterrupt:
    print("saved", *run.preempted())"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    said, _ = process.communicate(timeout=60)
    assert "stopping mae, which may save first; Ctrl-C again ends at once" in said
    assert said.endswith("saved mae\n")


def interrupted_while_compiling() -> None:
    threading.Timer(0.5, runs.ctrl_c).start()
    runs.compile_for_long()


def interrupted_twice() -> None:
    runs.ctrl_c()
    runs.ctrl_c()
    time.sleep(60)


# lipixun/tftrainer#7
def test_ctrl_c_in_a_compilation_and_the_second_one_end_at_once(tmp_path):
    started = {}
    for name, k, act in (
        ("compiling", 1, interrupted_while_compiling),
        ("twice", 5, interrupted_twice),  # steps 2 and, if that was quick, 4 are saved
    ):
        before = functools.partial(
            runs.in_all, functools.partial(runs.at_update, k, act)
        )
        started[name] = runs.start(config(save_every=2), tmp_path / name, before)
    for name, (process,) in started.items():
        process.join(120)
        assert process.exitcode == cli.INTERRUPTED, runs.said(tmp_path / name)
    last = runs.said(tmp_path / "compiling").splitlines()[-1]
    assert last == "stopped: nothing was saved yet: the same command begins at step 0"
    last = runs.said(tmp_path / "twice").splitlines()[-1]
    assert re.fullmatch("stopped: the same command goes on from step [24]", last)


# google/automl#666, verl-project/verl#7401: exit 0 without the steps asked for
def test_a_finished_run_goes_on_with_more_steps(straight, patients, tmp_path, capfd):
    workdir = tmp_path / "run"
    main.run(config(total_steps=4), str(workdir))
    (workdir / "evaluation_val.json").write_text("{}\n")
    (workdir / "predictions_val.csv").write_text("id\n")
    (workdir / "quarantine.jsonl").write_text('{"split": "train", "index": 3}\n')
    main.run(config(), str(workdir))
    assert_same_state(workdir, straight)
    name = "metrics.jsonl"
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()
    assert fingerprints.steps_done(str(workdir)) == 6
    assert [p.name for p in workdir.glob("eval*")] == ["evaluation_val.step_4.json"]
    assert (workdir / "predictions_val.step_4.csv").is_file()
    said = capfd.readouterr().out
    assert "from step 4 on" in said and said.isascii()
    for text in (
        "labs_dae: step 6, val/loss 0.",
        " min in 2 session(s), ",
        f"left out: 1 quarantined files ({workdir}/quarantine.jsonl), 0 skipped",
        f"encoder: {workdir}/export; next: distil it by --config.modalities.labs.init=",
    ):
        assert text in said, said


@pytest.mark.parametrize(
    ("fields", "force", "said"),
    [
        (
            {"total_steps": 5},
            True,
            "has 6 steps already, config.total_steps is 5: give",
        ),
        ({"seed": 3}, True, "seed was 0, is 3.*it is finished: it goes on with more"),
        (
            {"total_steps": 9, "optim__min_ratio": 0.0},
            False,
            "min_ratio was 1.0, is 0.0; total_steps was 6, is 9.*after step 6 it would "
            "be 0.000389, not 0; .*--config.model_init=.*--force goes on",
        ),
    ],
)
def test_what_a_finished_run_cannot_do_is_one_line(fields, force, said, straight):
    with pytest.raises(PacxError, match=said) as error:
        main.run(config(**fields), str(straight), force=force)
    assert "\n" not in str(error.value)


# (a file of the folder, what it is): a run's config.json would replace the encoder's
FOREIGN = {"model.safetensors": "an encoder", "pacx.json": "a prepared data set"}


@pytest.mark.parametrize("file", FOREIGN)
def test_a_run_writes_into_no_other_folder(tmp_path, file):
    (tmp_path / file).write_text("{}")
    with pytest.raises(PacxError, match=f"holds {FOREIGN[file]} .*another --workdir"):
        main.run(config(), str(tmp_path), force=True)
    assert [p.name for p in tmp_path.iterdir()] == [file]
    data = config(data__path=str(tmp_path / "x"), data__source="folder")
    with pytest.raises(PacxError, match="is data.path too"):
        main.run(data, str(tmp_path / "y" / ".." / "x"))


# MrNeRF/LichtFeld-Studio#599, azavea/raster-vision#756: the path of then is no more
def test_data_may_be_spelt_otherwise_or_have_moved(tmp_path, monkeypatch, capfd):
    for i in range(8):
        path = tmp_path / f"set/{i}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.new("L", (8, 8), 16 * i).save(path)
    workdir = str(tmp_path / "run")

    def check(path, **fields):
        c = config(data__source="folder", data__path=str(path), **fields)
        fingerprints.check_config(c, workdir)
        return c

    c = config(data__source="folder", data__path=str(tmp_path / "set"))
    opened = batches.open_sources(c)
    prints = {f"{split}.fingerprint": s.fingerprint for split, s in opened.items()}
    fingerprints.record(c, prints, workdir)
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("set")
    for other in ("set", "./set", f"{tmp_path}/set/", "run/../set", "link"):
        check(other)
    assert capfd.readouterr().out == ""
    (tmp_path / "set").rename(tmp_path / "moved")
    check("moved")
    assert "is 'moved': the same data by their fingerprints\n" in capfd.readouterr().out
    with pytest.raises(PacxError, match="another config: data.path was.*; seed was 0"):
        check("moved", seed=3)
    (tmp_path / "moved" / "0.png").unlink()
    with pytest.raises(PacxError, match="another config: data.path was .*, is 'moved'"):
        check("moved")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_rate_that_is_no_number_is_one_line(tmp_path, value):
    with pytest.raises(PacxError, match="config.optim.peak_lr is .*: give a finite"):
        main.run(config(optim__peak_lr=value), str(tmp_path))


# jax-ml/jax#14287: another device than the one that was named, or a stack trace
def test_a_backend_that_is_not_here_is_one_line_and_no_file_is_blamed(tmp_path):
    model_folder.save(tmp_path / "vit", tiny.folder("vit"), card="a test's")
    code = f"""
import sys
from pacx_jax import cli, load_encoder, main
cli.command(lambda: load_encoder({str(tmp_path / "vit")!r}))()
sys.argv = ["m", "--config", "configs/labs_dae.py", "--workdir={tmp_path}/run"]
main.main()"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == cli.FAILED and len(lines) == 2, done.stderr
    assert lines[0] == lines[1] and "JAX_PLATFORMS=cpu" in lines[0]
    assert lines[0].startswith("error: JAX_PLATFORMS=cuda: JAX finds no such devices")


def test_double_precision_is_refused(patients, tmp_path):
    with jax.enable_x64(True), pytest.raises(PacxError, match="JAX_ENABLE_X64=0"):
        main.run(config(), str(tmp_path / "run"))


def test_a_run_says_what_it_trains_on(tmp_path, capfd):
    rows = ["path,patient_id,split,Edema,Pneumonia"]
    for i in range(20):
        PIL.Image.new("L", (32, 32), i).save(tmp_path / f"{i}.png")
        split = "train" if i < 12 else "val"
        rows.append(f"{i}.png,p{i // 2},{split},{i % 2},{int(i % 3 == 0)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    folders = tiny.write_folders(tmp_path / "models")
    probe = runs.config("classify", folders, total_steps=9, num_devices=1)
    probe.global_batch_size = 16
    probe.data.update(source="folder", path=str(tmp_path))
    workdir = str(tmp_path / "run")
    run = setup.prepare(probe, workdir, batches.open_sources(probe))
    summary.say_start(run, workdir, 3)
    said = capfd.readouterr().out
    for text in (
        f"linear_probe:\n  data: {tmp_path}: train 12 images of 6 patients, val 8 "
        "images of 4 patients; labels Edema 6, Pneumonia 4\n",
        "model: classify, 6.6e-05 million parameters trained, 0.0317 million frozen, "
        f"encoder from {probe.model_init}\n",
        "devices: 1 cpu, mesh data 1 x fsdp 1 x tensor 1, float32\n",
        "schedule: 9 steps of 16, 12 epochs; learning rate up to 0.001 after 2 steps\n",
        f"writes: {workdir} from step 3 on; saves every 3 steps, keeps 2; evaluates ",
        "warning: config.global_batch_size 16 is above the 12 training examples: each "
        "batch reads and holds each 1.33 times, and takes as much longer; give at most "
        "12\n",
    ):
        assert text in said, said
    assert said.isascii()
    assert said[said.index("linear_probe:") :].count("\n") == 7
