"""From a run's parameters to a model folder, for every objective."""

import jax
import numpy as np
import pytest

from pacx_jax import export, lora, objectives
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint, finished, metrics
from tests import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def export_run(tmp_path, monkeypatch):
    """Exports parameters as if they were a finished run's."""

    def run(config, params):
        monkeypatch.setattr(checkpoint, "read_params", lambda *args: params)
        writer = metrics.MetricsWriter(tmp_path, 0)
        writer.write(config.total_steps, {"loss": 0.5, "val/loss": 0.25})
        writer.close()
        return model_folder.load(
            finished.from_workdir(config, str(tmp_path), which="latest")
        )

    return run


def test_distilled_encoder_has_its_adapters_merged_and_nothing_else(
    folders, meshes, export_run
):
    config = tiny.distill_config(folders, ln_eps=1e-5)
    params = tiny.random_start(objectives.make(config, meshes[1]))
    model = export_run(config, params)
    assert model.kind == "vit" and model.architecture["ln_eps"] == 1e-5
    merged = tiny.flat(lora.merge(params["encoder"], params["lora"], config.lora.alpha))
    got = tiny.flat(model.params)
    assert got.keys() == merged.keys() == tiny.flat(params["encoder"]).keys()
    for name in got:
        np.testing.assert_array_equal(got[name], merged[name])
    base = params["encoder"]["block_00"]["attn"]["qkv"]["kernel"]
    assert np.abs(got["block_00/attn/qkv/kernel"] - base).max() > 1e-3


def test_exported_encoder_embeds_as_the_objective_does(folders, meshes, export_run):
    # The proof that merging, epsilon and preprocessing are those of training.
    # Bound 1e-6 of the norm. Measured 3.5e-7.
    config = tiny.distill_config(folders)
    objective = objectives.make(config, meshes[1])
    params = tiny.random_start(objective)
    batch = tiny.distill_batch(16)
    want = jax.jit(objective.outputs)(params, batch, jax.random.key(0))["z"]
    from pacx_jax.encoders import xray_encoder

    encoder = xray_encoder.Encoder(export_run(config, params), batch_size=16)
    got = encoder(batch["image"])
    assert tiny.relative(got, want) < 1e-6


def test_labs_and_ecg_runs_export_their_encoders(export_run, meshes):
    config = tiny.config("labs_dae", "reference", model__hidden=16, model__latent=8)
    params = tiny.random_start(objectives.make(config, meshes[1]))
    model = export_run(config, params)
    assert model.kind == "labs_dae" and model.architecture["mask_inputs"] is False
    assert tiny.flat(model.params).keys() == tiny.flat(params["encoder"]).keys()

    config = tiny.config("ecg_net1d", data__label_columns=("a",), data__ecg_decimate=5)
    config.model.update(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in tiny.ECG.items()}
    )
    params = tiny.random_start(objectives.make(config, meshes[1]))
    model = export_run(config, params)
    assert model.kind == "ecg_net1d" and model.preprocessing["decimate"] == 5
    assert "head" not in model.params


def test_card_says_what_it_was_trained_on_and_that_it_is_for_research(
    export_run, meshes, tmp_path
):
    config = tiny.config("labs_dae", model__hidden=16, model__latent=8)
    params = tiny.random_start(objectives.make(config, meshes[1]))
    export_run(config, params)
    card = (tmp_path / "export" / "README.md").read_text()
    assert "val/loss 0.2500" in card and "Not a medical device" in card
    assert "SIMULATED" not in card
    config.data.simulated = True
    export_run(config, params)
    assert "SIMULATED" in (tmp_path / "export" / "README.md").read_text()


def test_command_tells_a_workdir_that_is_none_in_one_line(tmp_path, capsys):
    assert export.main([f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert str(tmp_path) in error
    with pytest.raises(PacxError):
        model_folder.load(tmp_path)
