"""MVMAE on real studies of a frontal and a lateral X-ray, where they can be read."""

import json
import pathlib

import pytest

from pacx_jax import load_encoder, main
from tests.reliability import runs

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared/realdata/multiview"


@pytest.mark.full
@pytest.mark.skipif(not REAL.is_dir(), reason="the real studies are not here")
def test_real_studies_train_some_epochs_and_export(tmp_path):
    fields = {"data__source": "folder", "data__path": str(REAL)}
    fields |= {"data__csv": "metadata.csv", "data__path_column": "file"}
    fields |= {"data__val_fraction": 0.2}
    fields |= {"total_steps": 4, "save_every": 4, "eval_every": 4, "best": ""}
    config = runs.config("mvmae", {}, **fields)  # 11 studies: 2.9 epochs
    main.run(config, str(tmp_path))
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])
    assert last["step"] == 4 and 0 < last["val/loss"] < 10
    encoder = load_encoder(tmp_path)
    films = [REAL / "study163_0_0.jpg", REAL / "study163_0_1.jpg"]
    z = encoder(films, views=["PA", "lateral"])
    assert z.shape == (2, 32) and abs(z[0] - z[1]).max() > 1e-4
