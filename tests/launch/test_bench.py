"""The bench's input mode at a size whose numbers mean nothing: output and refusals."""

import json

import jax
import pytest

from configs import mae_vitb16
from launch import bench
from launch.benchmarks import input_pipeline
from pacx_jax import sharding
from pacx_jax.run import setup
from tests.parity import comparing

TINY = ["input", "--batch=2", "--steps=1", "--repeats=2", "--workers=0"]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(input_pipeline, "DRAWN", 2)
    monkeypatch.setattr(input_pipeline, "RECORDS", 4)
    monkeypatch.setattr(input_pipeline, "SIZE", 32)


def test_input_without_pytorch_ends_with_json_whose_peer_is_null(
    few, monkeypatch, capsys
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench.main(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert "PyTorch or torchvision is missing" in lines[0]
    line = next(line for line in lines if line.startswith("jpeg / torch "))
    assert "not measured" in line
    assert result["ratio"] is None and result["mfu"] is None
    found = {k for k, ratio in result["ratios"].items() if ratio["images_per_s"]}
    assert found == {"decoded / jpeg"}
    variants = result["variants"]
    assert set(variants) == set(input_pipeline.FOLDERS) and result["workers"] == 0
    assert variants["jpeg"]["images_per_s"]["median"] == result["images_per_s"] > 0
    assert result["batch"] == 2 and result["dtype"] == "uint8"
    assert result["peak_mib"] > 0 and result["versions"]["numpy"]
    spread = variants["decoded"]["images_per_s"]
    assert 0 < spread["min"] <= spread["median"] <= spread["max"]


def test_the_peer_measures_batches_of_the_same_shape(few, tmp_path):
    comparing.require_torch()
    from launch.benchmarks import input_torch

    input_pipeline.write_files(tmp_path / "files", "")
    loader = input_torch.loader(str(tmp_path / "files"), 2, 0, 32)
    assert loader.turn(1)["images_per_s"] > 0
    loader.close()
    images = input_torch.Folder(str(tmp_path / "files"), 32)
    assert len(images) == 4 and tuple(images[3].shape) == (3, 32, 32)


def test_bad_flags_are_one_line(tmp_path, capsys):
    assert bench.main([*TINY, f"--source={tmp_path}"]) == 2
    assert "no JPEG below it" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        bench.main(["input", "--batch=-1"])
    assert stop.value.code == 2 and "--batch: -1" in capsys.readouterr().err


def test_eight_devices_do_the_flops_of_one():
    """Of the forward and backward pass: every device does all of the optimizer."""
    config, flops = mae_vitb16.get_config("runlocal"), {}
    config.global_batch_size, side = 16, config.data.image_size
    for n in (1, 8):
        config.num_devices = n
        mesh, objective = setup.place(config)

        def loss(params, batch, key, mesh=mesh, objective=objective):
            with sharding.tracing(mesh):
                return objective.loss(params, batch, key, train=True)[0]

        everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        key = jax.eval_shape(lambda: jax.random.key(0))
        image = jax.ShapeDtypeStruct((16, side, side, 3), "uint8")
        step = jax.jit(
            jax.value_and_grad(loss),
            in_shardings=(everywhere, rows, everywhere),
            out_shardings=everywhere,
        )
        params = jax.eval_shape(objective.init, key)
        compiled = step.lower(params, {"image": image}, key).compile()
        flops[n] = compiled.cost_analysis()["flops"] * n
    assert flops[8] == pytest.approx(flops[1], rel=0.02)
