"""Workdirs from before a field changed its name are the same runs."""

import json

import pytest

from pacx_jax.errors import PacxError
from pacx_jax.run import fingerprints, finished, older
from tests import tiny


def as_it_was(config) -> dict:
    """The config.json that a version of before 2026-11-29 wrote."""
    old = json.loads(json.dumps(config.to_dict()))
    chosen = old.pop("modalities")
    old["ecg_init"], old["labs_init"] = chosen["ecg"]["init"], chosen["labs"]["init"]
    old["loss"]["modalities"] = [m for m in chosen if chosen[m]["clip_weight"]]
    del old["images_every"]
    return old


@pytest.mark.parametrize("without", [(), ("labs",)])
def test_a_distillation_of_before_there_was_modalities_goes_on(tmp_path, without):
    fields = {f"modalities__{m}__init": f"runs/{m}" for m in ("ecg", "labs")}
    for m in without:
        fields |= {f"modalities__{m}__clip_weight": 0.0}
        fields |= {f"modalities__{m}__regression_weight": 0.0}
    config = tiny.config("distill_vitb16", **fields)
    text = json.dumps(as_it_was(config))
    (tmp_path / "config.json").write_text(text)
    fingerprints.check_config(config, str(tmp_path))
    read = finished.read_config(str(tmp_path))
    assert read.modalities.to_dict() == config.modalities.to_dict()
    config.modalities.ecg.init = "elsewhere"
    with pytest.raises(PacxError, match="modalities.ecg.init was 'runs/ecg', is 'else"):
        fingerprints.check_config(config, str(tmp_path))


@pytest.mark.parametrize(
    ("recipe", "transform"), [("labs_dae", "labs"), ("ecg_net1d", "ecg")]
)
def test_a_first_stage_of_before_goes_on(tmp_path, recipe, transform):
    config = tiny.config(recipe)
    old = json.loads(json.dumps(config.to_dict()))
    old["data"]["transform"] = transform
    old.pop("modality", None), old.pop("images_every")
    (tmp_path / "config.json").write_text(json.dumps(old))
    fingerprints.check_config(config, str(tmp_path))


def test_todays_configs_stay_as_they_are():
    for recipe in ("mae_vitb16", "distill_vitb16", "linear_probe"):
        config = json.loads(json.dumps(tiny.config(recipe).to_dict()))
        assert older.upgrade(config) == config
