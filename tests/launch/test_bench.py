"""The bench at a size whose numbers mean nothing: what it prints, and what is null."""

import json

import pytest

from configs import mae_vitb16
from launch import bench
from launch.benchmarks import input_pipeline, scaling
from tests import profiles
from tests.parity import comparing

TINY = ["input", "--batch=2", "--steps=1", "--repeats=2", "--workers=0"]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(input_pipeline, "DRAWN", 2)
    monkeypatch.setattr(input_pipeline, "RECORDS", 4)
    monkeypatch.setattr(input_pipeline, "SIZE", 32)


def test_input_without_pytorch_ends_with_json_whose_peer_is_null(
    few, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench.main([*TINY, f"--profile={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert "PyTorch or torchvision is missing" in lines[0]
    line = next(line for line in lines if line.startswith("jpeg / torch "))
    assert "not measured" in line
    assert result["ratio"] is None and result["mfu"] is None
    found = {k for k, ratio in result["ratios"].items() if ratio["images_per_s"]}
    assert found == {"decoded / jpeg"}
    variants = result["variants"]
    assert set(variants) == set(result["settings"]) == set(input_pipeline.OURS)
    assert variants["jpeg"]["images_per_s"]["median"] == result["images_per_s"] > 0
    assert result["batch"] == 2 and result["dtype"] == "float32"
    assert result["peak_mib"] > 0 and result["versions"]["numpy"]
    assert any("ThunkExecutor" in name for name, _ in profiles.events(tmp_path))
    spread = variants["decoded"]["images_per_s"]
    assert 0 < spread["min"] <= spread["median"] <= spread["max"]


def test_the_peer_measures_batches_of_the_same_shape(few, tmp_path):
    comparing.require_torch()
    from launch.benchmarks import input_torch

    input_pipeline.write_files(tmp_path / "files", "")
    for name in input_pipeline.PEERS:
        loader = input_torch.loader(str(tmp_path / "files"), name, 2, 1, 32)
        assert loader.turn(1)["images_per_s"] > 0
        loader.close()
        images = input_torch.Folder(str(tmp_path / "files"), name, 32)
        assert len(images) == 4 and tuple(images[3].shape) == (3, 32, 32)
        assert images[3].is_floating_point() == (name == "torch")


def test_bad_flags_are_one_line(tmp_path, capsys):
    assert bench.main([*TINY, f"--source={tmp_path}"]) == 2
    assert "no JPEG below it" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        bench.main(["input", "--batch=-1"])
    assert stop.value.code == 2 and "--batch: -1" in capsys.readouterr().err


def test_eight_devices_do_the_flops_of_one():
    config = mae_vitb16.get_config("runlocal")
    flops = {}
    for devices in (1, 8):
        compiled, _ = scaling.gradient_step(config, devices, 16)
        flops[devices] = compiled.cost_analysis()["flops"] * devices
    assert abs(flops[8] / flops[1] - 1) <= scaling.MOST_FLOPS - 1


def test_scaling_refuses_a_batch_that_eight_devices_do_not_share(capsys):
    assert bench.main(["scaling", "--batch=12"]) == 2
    assert "give a multiple of 8" in capsys.readouterr().err
