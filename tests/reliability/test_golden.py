"""Numbers and formats of earlier versions: traces of every stage, an old workdir."""

import json
import shutil

import numpy as np
import pytest

from pacx_jax import main
from pacx_jax.run import saved_steps
from tests.reliability import record, runs

# Processors sum in other orders; within 20 small steps that came to 2e-6 at most
# between one and eight devices, and 2.5e-7 between jax 0.10.2 and 0.12.0.1.
BOUND = 1e-4


def assert_as_recorded(name: str, workdir) -> None:
    """20 steps have the losses that this code had when they were recorded."""
    want = json.loads(record.TRACES.read_text())[name]
    got = record.losses(workdir)
    np.testing.assert_allclose(got, want, rtol=BOUND)


@pytest.mark.parametrize(
    "folder", sorted(record.GOLDEN.glob("workdir_*")), ids=lambda p: p.name
)
def test_workdir_of_an_earlier_version_is_read_and_goes_on(
    folder, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(folder, workdir)
    assert saved_steps.newest(workdir / "checkpoints")[0] == runs.STEPS
    runs.use_patients(monkeypatch)
    config = runs.config("labs_dae", {}, num_devices=1, keep=1, best="")
    main.run(config, str(workdir))  # fields that are new make it no other config
    assert json.loads((workdir / "done.json").read_text())["step"] == runs.STEPS
    want = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    got = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    name = "val/clean_recon_mse"  # drawn from nothing: how noise is drawn may change
    np.testing.assert_allclose(got[name], want[name], rtol=BOUND)
    # It trains on from there too: another length is another config.
    config.total_steps = runs.STEPS + 4
    main.run(config, str(workdir), force=True)
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows[-5:]] == list(range(20, 25))
    assert all(0 < row["loss"] < 2 * want["loss"] for row in rows[-4:])
