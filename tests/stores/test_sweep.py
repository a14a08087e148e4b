"""A sweep whose runs and table lie in a bucket."""

import json
import sys

import pytest

from launch import sweep
from pacx_jax.stores import objects

RECIPE = "--config=configs/distill_vitb16.py:paper"
# Stands in for pacx_jax.main: leaves in the bucket what a finished run does.
STAND_IN = """
import json, sys
from pacx_jax.stores import objects
arguments = dict(a.split("=", 1) for a in sys.argv[1:])
if arguments["--config.kind"] == "broken":
    sys.exit("error: no such data")
done = {"step": 5, "metrics": {"val/loss": 0.5}}
objects.Store(arguments["--workdir"]).create("done.json", json.dumps(done).encode())
"""


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_sweep_in_a_bucket_goes_on_from_another_machine(
    url, tmp_path, monkeypatch, capsys
):
    (tmp_path / "main.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "PROGRAM", (sys.executable, str(tmp_path / "main.py")))
    flags = [RECIPE, f"--target={url}/sweep", "--grid=kind=a;broken"]
    for machine in ("one", "two"):
        monkeypatch.setenv("PACX_SCRATCH", str(tmp_path / machine))
        assert sweep.main(flags) == 1
        said = capsys.readouterr()
        assert "| kind_a | finished | 5 | 0.5 |" in said.out
        assert "failed: kind_broken: error: no such data" in said.err
    assert "2 runs, 1 of them finished" in said.out
    store = objects.Store(f"{url}/sweep")
    rows = json.loads(store.read("results.json")[0])
    assert [row["state"] for row in rows] == ["finished", "failed (1)"]
    assert store.read("logs/kind_broken.log")[0] == 2 * b"error: no such data\n"
    assert sweep.main([*flags, "--config.seed=2"]) == 2
    assert "Take another --target" in capsys.readouterr().err
    assert sweep.main([*flags, "--on=slurm"]) == 2
    assert "on SLURM give a folder that all nodes see" in capsys.readouterr().err
