"""The bench's models at a size whose numbers mean nothing: JSON, FLOPs, refusals."""

import contextlib
import json
import os

import jax
import pytest

from launch import bench
from launch.benchmarks import (
    flops,
    input_pipeline,
    loop,
    models,
    ours,
    recipes,
)
from pacx_jax import sharding, target
from tests import profiles
from tests.parity import comparing

TINY = ["--variant=mu", "--batch=8", "--devices=2", "--steps=1", "--repeats=2"]
# What pip brings with jax, flax, optax and numpy may be imported, einops and
# ml_collections, which are carried, and no more.
BLOCKED = """
import sys
NAMES = set('array_record cloudpickle cv2 grain PIL pytest safetensors sklearn '
            'tensorboardX tensorflow_datasets torch tqdm'.split())
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(capsys, *argv) -> tuple[list[str], dict]:
    assert bench.main(list(argv)) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[:-1], json.loads(lines[-1])


def check(result: dict, mode: str) -> None:
    assert result["mode"] == mode and result["batch"] == 8
    assert result["dtype"] == "float32" and result["devices"] in (1, 2)
    assert result["images_per_s"] > 0 and result["peak_mib"] > 0
    assert result["mfu"] is None and result["versions"]["jax"] == jax.__version__
    assert 0 < result["step_s"]["min"] <= result["step_s"]["max"]


@pytest.mark.full
@pytest.mark.parametrize("mode", ["mae", "embed", "ecg"])
def test_synthetic_input_needs_few_packages(mode, tmp_path, monkeypatch, capsys):
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)  # of the process that takes the steps
    flags = ["--peer=none", f"--profile={tmp_path / 'trace'}", "--peak_flops=1e12"]
    lines, result = run(capsys, mode, *TINY, *flags)
    assert 0 < result["mfu"] < 1
    check(result | {"mfu": None}, mode)
    assert result["ratio"] is None and result["peers"] == {}
    assert result["gflop_step"] > 0 and any("GFLOP an image" in x for x in lines)
    traces = {p.name.partition(".")[2] for p in (tmp_path / "trace").rglob("*.*")}
    assert {"xplane.pb", "json.gz"} <= traces  # TensorBoard's and Perfetto's


@pytest.mark.parametrize(
    "argv",
    [
        *(pytest.param([m], marks=pytest.mark.full) for m in ("distill", "unified")),
        ["ecg", "--train"],
    ],
)
def test_the_peer_trains_as_many_parameters_in_turns_with_ours(argv, capsys):
    comparing.require_torch()
    lines, result = run(capsys, *argv, *TINY, "--peer_mode=eager")
    check(result, argv[0])
    peer = result["peers"]["eager"]
    assert result["trained_parameters"] == peer["trained_parameters"] > 1000
    assert peer["dtype"] == "float32"
    ratios = result["ratios"]["ours / eager"]
    assert result["ratio"] == ratios["images_per_s"]["median"] > 0
    assert ratios["peak_mib"]["min"] > 0
    assert set(result["variants"]) == {"ours", "eager"}
    assert any(line.startswith("ours / eager") for line in lines)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["eager", "compile", "best"])
@pytest.mark.parametrize(
    "argv",
    [["mae"], ["unified"], ["distill"], ["embed"], ["ecg"], ["ecg", "--train"]],
    ids="-".join,
)
def test_every_peer_of_every_mode(argv, kind, capsys):
    comparing.require_torch()
    _, result = run(capsys, *argv, *TINY, f"--peer_mode={kind}")
    check(result, argv[0])
    assert set(result["peers"]) == ({"eager", "compile"} if kind == "best" else {kind})
    assert result["ratio"] > 0


def test_without_pytorch_one_line_says_that_the_peer_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert models.start_peers(bench.parse(["ecg"]), {}, contextlib.ExitStack()) == {}
    assert capsys.readouterr().out == "PyTorch is missing: the peer is not measured\n"


def needed(*argv) -> tuple:
    """A published model's config, what the peer is told of it, and GFLOP an image."""
    asked = vars(bench.parse([*argv, "--batch=8", "--devices=1", "--dtype=float32"]))
    config = recipes.make_config(asked)
    work = recipes.describe(config, asked)
    return config, work, ours.needed(config, work) / 1e9


# As derived by hand from the shapes: 24 t d^2 + 4 t^2 d a block of t tokens.
@pytest.mark.parametrize(
    "argv, published",
    [
        (["mae"], 42.092),
        # What is computed again is no work.
        pytest.param(["mae", "--set=remat=full"], 42.092, marks=pytest.mark.full),
        (["distill"], 68.090),
        (["embed"], 32.927),
        # 225.3 of the transformer, 14.2 of the image tokenizer; 17.0 of logits again.
        pytest.param(["unified"], 256.413, marks=pytest.mark.full),
        (["ecg"], 2.337),
        pytest.param(["ecg", "--train"], 6.950, marks=pytest.mark.full),
    ],
)
def test_flops_are_those_of_the_published_shapes(argv, published):
    assert needed(*argv)[2] == pytest.approx(published, abs=0.001)


@pytest.mark.parametrize(
    "mode", [pytest.param("mae", marks=pytest.mark.full), "distill"]
)
def test_flops_are_those_that_xla_counts(mode, monkeypatch):
    # One CPU device takes attention in a loop, whose body XLA counts once.
    monkeypatch.setattr(target, "device_count", lambda: 2)
    config, work, need = needed(mode)
    stage = ours.make_stage(config)
    batch = jax.eval_shape(lambda: ours.synthetic_batch(config, work))
    lowered = stage.train_step.lower(stage.abstract, batch, stage.step_key)
    counted = lowered.cost_analysis()["flops"] / 8e9
    assert 1 <= counted / need < 1.03  # XLA counts what is elementwise too


def test_peaks_are_of_known_devices_in_bfloat16_alone():
    assert flops.peak("NVIDIA H200", "bfloat16") == 989e12
    assert flops.peak("TPU v5 lite", "bfloat16") == 197e12
    assert flops.peak("cpu", "bfloat16") is None
    assert flops.peak("NVIDIA H200", "float32") is None


@pytest.mark.parametrize(
    "kind, dtype, given, mfu, measured, text",
    [
        ("NVIDIA H200", "bfloat16", 0, 0.3994, 0.5, "0.3994 of 989 TFLOP/s (data"),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 0, 0.3994, None, "989 TFLOP/s (data"),
        ("cpu", "float32", 1580e12, 0.25, None, "0.25 of 1,580 TFLOP/s (--peak"),
        ("cpu", "float32", 0, None, None, "MFU not known"),
    ],
)
def test_mfu_is_of_the_data_sheet_and_beside_it_of_what_was_measured(
    kind, dtype, given, mfu, measured, text
):
    about = {"device_kind": kind, "dtype": dtype, "flops": 395e12}
    result = made_result("mae", peak_flops=given, **about)
    assert (result["mfu"], result["mfu_measured"]) == (mfu, measured)
    assert any(text in line for line in result["table"])


def test_gpu_table_says_autotune_level_and_versions(monkeypatch):
    flags = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_gpu_autotune_level=2")
    about = {"backend": "gpu", "device_kind": "NVIDIA H200", "dtype": "bfloat16"}
    table = made_result("mae", **about)["table"]
    (line,) = (x for x in table if x.startswith("XLA's autotune level 2; "))
    assert f"jax {jax.__version__}, jaxlib " in line and "None" not in line


def test_other_form_is_what_the_device_does_not_usually_take(monkeypatch):
    monkeypatch.setitem(target.HAND_WRITTEN, "gelu", ("cpu",))
    monkeypatch.setitem(target.HAND_WRITTEN, "dense", ("gpu",))
    mesh = sharding.make_mesh(1)
    found = ours.other_forms(["gelu", "dense"], mesh)
    assert found == {"gelu": False, "dense": True}


@pytest.mark.full
def test_a_step_takes_the_other_form(monkeypatch):
    seen, make_stage = [], ours.make_stage

    def traced(config):
        seen.append((target.hand_written("gelu"), target.hand_written("dense")))
        return make_stage(config)

    monkeypatch.setattr(ours, "make_stage", traced)
    asked = vars(bench.parse(["mae", *TINY, "--other_form=gelu"]))
    about = ours.Ours(asked).about
    assert seen[0] == (False, True) and about["forced"] == {"gelu": False}


def test_set_changes_a_field_of_the_recipe():
    options = vars(bench.parse(["mae", "--set=optim.peak_lr=0.5", "--set=seed=7"]))
    config = recipes.make_config(options)
    assert config.optim.peak_lr == 0.5 and config.seed == 7


@pytest.mark.full
def test_the_loop_reads_real_files(tmp_path, capsys):
    for i in range(60):
        (tmp_path / f"{i:02d}.jpg").write_bytes(film(i % 2))
    flags = ["--saves", "--steps=5", f"--profile={tmp_path / 'trace'}"]
    lines, result = run(capsys, "mae", *TINY, f"--input={tmp_path}", *flags)
    check(result, "mae")
    traced = profiles.events(tmp_path / "trace")
    assert any(name.startswith("PjitFunction(train_step)") for name, _ in traced)
    assert result["input"] == str(tmp_path) and result["ratio"] is None
    stall = result["variants"]["ours"]["data_stall_share"]
    assert 0 <= stall["min"] <= stall["max"] <= 1
    assert result["log_share"] > 0 and result["saves"]["blocked_seconds"]["min"] > 0
    assert any("waits for data" in line for line in lines)


FILMS = {}


def film(i: int) -> bytes:
    if i not in FILMS:
        FILMS[i] = input_pipeline.draw(i)
    return FILMS[i]


def test_a_save_costs_what_its_turn_is_longer():
    seconds = [(1.0, 0.0), (1.5, 0.2), (1.0, 0.0), (1.7, 0.2)]
    turns = [{"step_s": s / 10, "save_blocked_s": b} for s, b in seconds]
    found = loop.cost_of_saves(turns, 10)
    assert found["seconds"]["median"] == pytest.approx(0.6)
    assert found["share"] == pytest.approx(0.6 / (500 * 0.1))


@pytest.mark.parametrize(
    "argv, message",
    [
        (["mae", "--variant=XXL"], "--variant=XXL: choose of"),
        (
            ["mae", "--variant=mu", "--batch=9", "--devices=2"],
            "9 is not divisible by 2",
        ),
        (["mae", "--input=/nowhere"], "--input=/nowhere: no such folder"),
        (["mae", "--set=optim.lr=1"], '--set=optim.lr=1: Key "lr" does not exist'),
        (["mae", "--set=seed"], "--set=seed: "),
        (["mae", "--other_form=x"], "--other_form=x: choose of dense"),
        (["mae", "--profile=/dev/null/x"], "/dev/null/x: no trace can be written"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys):
    assert bench.main([*argv, "--peer=none"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_bad_flags_are_one_line(capsys):
    for flag in ("--mask_ratio=1", "--steps=-1", "--repeats=0"):
        with pytest.raises(SystemExit) as stop:
            bench.main(["mae", flag])
        assert (
            stop.value.code == 2 and flag.partition("=")[0] in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "argv, message",
    [
        ("mae --saves", "--saves is of real input"),
        ("mae --saves --input=drawn --repeats=1", "give at least 2"),
        ("embed --input=drawn", "unrecognized arguments: --input=drawn"),
        ("mae --input=drawn --profile=x --steps=4", "--profile with --steps 4"),
        ("mae --input=drawn --peer_mode=eager", "--peer_mode is of synthetic input"),
        ("mae --workers=2", "--workers is of real input"),
        ("mae --source=x", "unrecognized arguments: --source=x"),
        ("embed --mask_ratio=0.5", "unrecognized arguments: --mask_ratio"),
        ("ecg --attention=xla", "unrecognized arguments: --attention"),
        ("input --set=seed=1", "unrecognized arguments: --set"),
        ("mae --input=drawn --other_form=gelu", "--other_form is of synthetic"),
        ("input --profile=x", "unrecognized arguments: --profile"),
    ],
)
def test_flags_that_would_change_nothing_are_refused_before_any_work(
    argv, message, monkeypatch, capsys
):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(name))
    with pytest.raises(SystemExit) as stop:
        bench.main(argv.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: ") and message in error


def made_result(mode: str, peak_flops=0.0, **about_it) -> dict:
    """What a mode makes of a turn's figures, none of which was measured."""
    options = bench.parse([mode.removesuffix("_loop"), "--batch=8"])
    options.peak_flops = peak_flops
    turn = dict.fromkeys("step_s images_per_s peak_mib".split(), 1.0)
    turn |= dict.fromkeys("data_stall_share log_s save_blocked_s".split(), 0.1)
    if mode == "input":
        turns = {name: [turn] for name in input_pipeline.FOLDERS}
        return input_pipeline.result(options, turns, 1, 1.0)
    about = {"backend": "cpu", "device_kind": "cpu", "devices": 1, "flops": 1e9}
    about |= {"dtype": "float32", "batch": 8} | about_it
    if mode == "mae_loop":
        return loop.result(options, [turn], about)
    return flops.result(options, {"ours": [turn]}, about, {}, [])


@pytest.mark.parametrize("mode", [*bench.MODES, "mae_loop"])
def test_the_json_of_every_mode_has_the_same_keys(mode):
    result = made_result(mode)
    assert set(bench.KEYS) <= set(result) and result["table"]
    assert result["images_per_s"] == 1
    assert result["batch"] == 8
    assert result["dtype"] == ("uint8" if mode == "input" else "float32")
    assert result["ratio"] is None and result["mfu"] is None
    assert result["peak_mib"] == 1
    assert result["versions"]["jax"] == jax.__version__ and result["summary"]
    json.dumps(result)
