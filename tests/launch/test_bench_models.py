"""The bench's models at a size whose numbers mean nothing: JSON, FLOPs, refusals."""

import contextlib
import json
import os
import types

import jax
import pytest

from launch import bench
from launch.benchmarks import (
    flops,
    input_pipeline,
    loop,
    measure,
    models,
    ours,
    recipes,
    scaling,
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


@pytest.mark.parametrize(
    "mode",
    ["mae", *(pytest.param(m, marks=pytest.mark.full) for m in ("embed", "ecg"))],
)
def test_synthetic_input_needs_few_packages(mode, tmp_path, monkeypatch, capsys):
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)  # of the process that takes the steps
    flags = ["--peer=none", f"--profile={tmp_path / 'trace'}", "--peak_flops=1e12"]
    lines, result = run(capsys, mode, *TINY, *flags)
    assert 0 < result["mfu"] < 1
    check(result | {"mfu": None}, mode)
    assert result["ratio"] is None and result["peer"] is None
    assert result["gflop_step"] > 0 and any("forward = 2" in line for line in lines)
    traces = {p.name.partition(".")[2] for p in (tmp_path / "trace").rglob("*.*")}
    assert {"xplane.pb", "json.gz"} <= traces  # TensorBoard's and Perfetto's


@pytest.mark.parametrize(
    "argv", [["distill"], pytest.param(["ecg", "--train"], marks=pytest.mark.full)]
)
def test_the_peer_trains_as_many_parameters_in_turns_with_ours(argv, capsys):
    comparing.require_torch()
    lines, result = run(capsys, *argv, *TINY, "--peer_mode=eager")
    check(result, argv[0])
    peer = result["peers"]["eager"]
    assert result["trained_parameters"] == peer["trained_parameters"] > 1000
    assert result["peer"] == "eager"
    assert result["ratio"] == result["ratios"]["eager"]["median"] > 0
    assert result["memory_ratios"]["eager"]["peak_mib"] > 0
    assert set(result["variants"]) == {"ours", "eager"}
    assert any(line.startswith("ours / torch eager (float32)") for line in lines)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["eager", "compile", "best"])
@pytest.mark.parametrize(
    "argv", [["mae"], ["distill"], ["embed"], ["ecg"], ["ecg", "--train"]], ids="-".join
)
def test_every_peer_of_every_mode(argv, kind, capsys):
    comparing.require_torch()
    _, result = run(capsys, *argv, *TINY, f"--peer_mode={kind}")
    check(result, argv[0])
    assert result["ratio"] > 0


def test_without_pytorch_one_line_says_that_the_peer_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert models.start_peers(bench.parse(["ecg"]), {}, contextlib.ExitStack()) == {}
    assert capsys.readouterr().out == "PyTorch is missing: the peer is not measured\n"


@pytest.mark.parametrize("mode, published", [("mae", 42.1), ("distill", 68.1)])
def test_flops_are_those_that_xla_counts(mode, published, monkeypatch):
    # One CPU device takes attention in a loop, whose body XLA counts once.
    monkeypatch.setattr(target, "device_count", lambda: 2)
    options = {"mode": mode, "variant": "B", "batch": 8, "image_size": 0}
    options |= {"mask_ratio": 0.0, "devices": 1, "dtype": "float32", "train": True}
    options["attention"] = "auto"
    config = recipes.make_config(options)
    work = recipes.describe(config, options)
    stage = ours.make_stage(config)
    batch = jax.eval_shape(lambda: ours.synthetic_batch(config, work))
    lowered = stage.train_step.lower(stage.abstract, batch, stage.step_key)
    counted = lowered.cost_analysis()["flops"] / 8
    need = flops.of(work)
    assert need.step / 1e9 == pytest.approx(published, abs=0.06)
    assert 1 <= counted / need.step < 1.03  # XLA counts what is elementwise too


def test_flops_of_the_published_ecg_encoder_are_those_of_its_convolutions():
    options = {"mode": "ecg", "variant": "B", "batch": 1, "image_size": 0}
    options |= {"mask_ratio": 0.0, "devices": 1, "dtype": "float32", "train": False}
    options["attention"] = "auto"
    config = recipes.make_config(options)
    work = recipes.describe(config, options)
    timed = ours.forward_of(config, work)
    params = jax.eval_shape(timed.init, jax.random.key(0))
    lowered = timed.function.lower(
        params, jax.ShapeDtypeStruct((1, 5000, 12), "float32")
    )
    counted = lowered.cost_analysis()["flops"]
    assert 1 <= counted / flops.of(work).forward < 1.03


def test_peaks_are_of_known_devices_in_bfloat16_alone():
    assert flops.peak("NVIDIA H200", "bfloat16") == 989e12
    assert flops.peak("TPU v5 lite", "bfloat16") == 197e12
    assert flops.peak("cpu", "bfloat16") is None
    assert flops.peak("NVIDIA H200", "float32") is None


def test_mfu_is_of_the_data_sheet_and_beside_it_of_what_was_measured():
    both = flops.utilisation(395e12, "NVIDIA H200", "bfloat16")
    assert both["mfu"] == 0.3994 and both["mfu_measured"] == 0.5
    assert "0.3994 of 989 TFLOP/s (data sheet), 0.5 of 790" in flops.as_text(both)
    sheet = flops.utilisation(395e12, "NVIDIA H100 80GB HBM3", "bfloat16")
    assert sheet["mfu"] == 0.3994 and sheet["mfu_measured"] is None
    given = flops.utilisation(1e12, "cpu", "float32", 4e12)
    assert flops.as_text(given) == "MFU 0.25 of 4 TFLOP/s (--peak_flops)"
    assert flops.as_text(flops.utilisation(1e12, "cpu", "float32")) == "MFU not known"


def test_gpu_table_says_autotune_level_and_versions(monkeypatch):
    flags = os.environ["XLA_FLAGS"]
    assert measure.autotune_level() == 4
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
    seen = []

    def training(*_):  # where the step is traced
        seen.append((target.hand_written("gelu"), target.hand_written("dense")))
        return types.SimpleNamespace(about={})

    monkeypatch.setattr(ours, "Training", training)
    asked = vars(bench.parse(["mae", *TINY, "--other_form=gelu"])) | {"train": True}
    about = ours.make(asked).about
    assert seen == [(False, False)] and about["forced"] == {"gelu": False}


def test_set_changes_a_field_of_the_recipe():
    options = vars(bench.parse(["mae", "--set=optim.peak_lr=0.5", "--set=seed=7"]))
    config = recipes.make_config(options)
    assert config.optim.peak_lr == 0.5 and config.seed == 7


@pytest.mark.parametrize("mode", ["mae", "embed"])
def test_the_loop_reads_real_files(mode, tmp_path, capsys):
    for i in range(60):
        (tmp_path / f"{i:02d}.jpg").write_bytes(film(i % 2))
    flags = [] if mode == "embed" else ["--saves", "--steps=5"]
    flags.append(f"--profile={tmp_path / 'trace'}")
    lines, result = run(capsys, mode, *TINY, f"--input={tmp_path}", *flags)
    check(result, mode)
    traced = profiles.events(tmp_path / "trace")
    named = {"mae": "PjitFunction(train_step)", "embed": "PjitFunction"}[mode]
    assert any(name.startswith(named) for name, _ in traced)
    assert result["input"] == str(tmp_path) and result["ratio"] is None
    if mode == "mae":
        stall = result["data_stall_share"]
        assert 0 <= stall["min"] <= stall["max"] <= 1
        assert result["log_share"] > 0 and result["saves"]["blocked_seconds"]["min"] > 0
        assert any(line.startswith("data stall") for line in lines)


FILMS = {}


def film(i: int) -> bytes:
    if i not in FILMS:
        FILMS[i] = input_pipeline.draw(i)
    return FILMS[i]


def test_a_save_costs_what_its_turn_is_longer():
    seconds = [(1.0, 0.0), (1.5, 0.2), (1.0, 0.0), (1.7, 0.2)]
    turns = [
        {"step_s": s / 10, "save_blocked_s": b, "saved": b > 0} for s, b in seconds
    ]
    found = loop.cost_of_saves(turns, 10)
    assert found["seconds"]["median"] == pytest.approx(0.6)
    assert found["share"] == pytest.approx(0.6 / (500 * 0.1))
    assert found["blocked_share"] == pytest.approx(0.2 / (500 * 0.1))


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
        ("mae --saves", "--saves is of the loop"),
        ("mae --saves --input=drawn --repeats=1", "give at least 2"),
        ("embed --saves --input=drawn", "--saves is of the loop that trains"),
        ("mae --input=drawn --profile=x --steps=4", "--profile with --steps 4"),
        ("mae --profile=/dev/null/x", "Not a directory, give a folder"),
        ("mae --profile=/proc", "--profile=/proc: "),
        ("mae --input=drawn --peer_mode=eager", "--peer_mode is of synthetic input"),
        ("mae --workers=2", "--workers is of real input"),
        ("mae --source=x", "--source: mode mae does not take it"),
        ("embed --mask_ratio=0.5", "--mask_ratio: mode embed"),
        ("embed --input=drawn --attention=xla", "--attention of embed"),
        ("ecg --attention=xla", "--attention: mode ecg"),
        ("input --saves", "--saves: mode input"),
        ("input --set=seed=1", "--set: mode input"),
        ("mae --input=drawn --other_form=gelu", "--other_form is of synthetic"),
        ("scaling --variant=mu", "--variant: mode scaling"),
        ("scaling --dtype=bfloat16", "--dtype: mode scaling"),
        ("scaling --devices=2", "--devices: mode scaling"),
        ("scaling --peer=none", "--peer: mode scaling"),
        ("scaling --input=drawn", "--input: mode scaling"),
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


def made_result(mode: str, **about_it) -> dict:
    """What a mode makes of a turn's figures, none of which was measured."""
    options = bench.parse([mode.removesuffix("_loop"), "--batch=8", "--variant=B"])
    turn = dict.fromkeys("step_s images_per_s images_per_cpu_s last".split(), 1.0)
    turn |= dict.fromkeys("peak_mib step_peak_mib idle_processor_s".split(), 1.0)
    turn |= {"device_peak_mib": None, "processor_seconds": 2.0, "wall_seconds": 0.5}
    if mode == "scaling":
        turns = {"1": [turn], "8": [turn | {"peak_mib": 7.0}]}
        return scaling._result(options, 8, 3, turns, {1: 1e9, 8: 1e9})
    if mode == "input":
        names = ("jpeg", "jpeg_on_device", "shrunk", "decoded")
        about = {"peer": None, "settings": {}}
        turns = {name: [turn] for name in names}
        return input_pipeline._result(options, turns, about, 1.0)
    asked = vars(options) | {"train": mode == "mae"}
    config = recipes.make_config(asked)
    work = recipes.describe(config, asked)
    if mode.endswith("_loop"):
        return loop._result(options, config, work, 3, [turn])
    about = {"work": work, "dtype": config.dtype, "backend": "cpu", "devices": 1}
    about |= dict.fromkeys("trace_s compile_s trained_parameters".split(), 1)
    about |= {"device_kind": "cpu", "compile_cache": False, "xla_mib": None}
    about["forced"] = {}
    return models._result(options, 3, about | about_it, {}, {"ours": [turn]})


MODELS = ("mae", "distill", "embed", "ecg")


@pytest.mark.parametrize(
    "mode", [*MODELS, *(f"{mode}_loop" for mode in MODELS), "input", "scaling"]
)
def test_the_json_of_every_mode_has_the_same_keys(mode):
    result = made_result(mode)
    assert set(bench.KEYS) <= set(result) and result["table"]
    assert result["images_per_s"] == (16 if mode == "scaling" else 1)
    assert result["batch"] == 8 and result["dtype"] == "float32"
    assert result["ratio"] is None and result["mfu"] is None
    assert result["peak_mib"] > 0 and result["versions"]["jax"] == jax.__version__
    if mode == "scaling":
        assert result["peak_mib"] == 7
    json.dumps(result)
