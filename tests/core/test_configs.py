"""Recipes: presets, the differences of table D, and errors in one line."""

import importlib

import pytest

from configs import base
from pacx_jax import objectives, optim, sharding
from pacx_jax.errors import PacxError
from tests import tiny

RECIPES = (
    "mae_vitb16", "mvmae_vitb16", "mvmae_v2t_vitb16",
    "labs_dae", "vitals_dae", "ecg_net1d", "distill_vitb16",
    "linear_probe", "finetune", "late_fusion", "segment",
)  # fmt: skip
ARGS = (
    None, "", "paper", "reference", "runlocal", "paper,runlocal", "reference,runlocal",
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arg", ARGS)
def test_every_recipe_has_every_preset_and_the_common_fields(recipe, arg):
    c = tiny.config(recipe, arg)
    assert isinstance(c.seed, int) and c.total_steps > 0 and c.global_batch_size > 0
    assert c.data.source in ("prepared", "folder") and isinstance(c.data.path, str)
    assert c.objective in objectives.MODULES
    assert set(base.get_config().keys()) <= set(c.keys())
    assert c.name == recipe
    optim.make(c.optim, c.total_steps)  # warm-up fits, decay is known
    assert c.export == "latest" or c.best


@pytest.mark.parametrize("recipe", RECIPES)
def test_runlocal_logs_20_rows_and_saves_5_times(recipe):
    c = tiny.config(recipe, "runlocal")
    assert c.total_steps // c.log_every >= 20
    assert c.total_steps // c.save_every >= 5
    assert c.data.path and c.data.simulated


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arg", ARGS)
def test_batches_fit_two_and_eight_devices(recipe, arg, meshes):
    size = tiny.config(recipe, arg).global_batch_size
    for n in (1, 2, 4, 8):
        sharding.check_batch_size(size, meshes[n])


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("papr", r"config argument \['papr'\]: choose of paper, reference, runlocal"),
        ("paper,reference", "choose paper or reference, not both"),
    ],
)
def test_unknown_or_contradicting_presets_are_an_error(arg, message):
    with pytest.raises(ValueError, match=message):
        tiny.config("mae_vitb16", arg)


# Row of table D, recipe, field -> recommended, paper, reference.
TABLE_D = [
    ("D1", "mae_vitb16", "loss.mask_ratio", 0.9, 0.9, 0.75),
    ("D2", "distill_vitb16", "train_norms", "all", "all", "final"),
    ("D3", "distill_vitb16", "lora.alpha", 16.0, 8.0, 16.0),
    ("D4", "distill_vitb16", "lora.dropout", 0.1, 0.1, 0.1),
    ("D5", "distill_vitb16", "heads.kind", "linear_ln", "linear", "linear_ln"),
    ("D6", "mae_vitb16", "model.ln_eps", 1e-6, 1e-6, 1e-6),
    ("D6", "distill_vitb16", "ln_eps", 0.0, 0.0, 1e-5),
    ("D7", "labs_dae", "model.mask_inputs", True, True, False),
    ("D12", "labs_dae", "optim.warmup_steps", 200, 200, 200),
    ("D13", "labs_dae", "loss.corruption", 0.15, 0.15, 0.15),
    ("D15", "distill_vitb16", "loss.reduction", "mean", "half_sum", "mean"),
    ("D17", "distill_vitb16", "optim.decay", "kernels", "kernels", "all"),
    ("D18", "mae_vitb16", "global_batch_size", 512, 512, 512),
    ("D18", "distill_vitb16", "global_batch_size", 128, 128, 128),
    ("D18", "linear_probe", "global_batch_size", 512, 512, 512),
    ("-", "linear_probe", "data.uncertain", "ignore", "ignore", "reference"),
    ("D19", "mae_vitb16", "optim.peak_lr", 1.5e-4, 1.5e-4, 1.5e-4),
    ("D19", "mae_vitb16", "optim.base_batch_size", 0, 0, 0),
    ("D20", "mae_vitb16", "loss.norm_pix_loss", False, False, False),
    ("D34", "linear_probe", "data.mean", (), (), (0.485, 0.456, 0.406)),
    ("D34", "linear_probe", "data.std", (), (), (0.229, 0.224, 0.225)),
    ("D21", "linear_probe", "optim.weight_decay", 0.01, 0.0, 0.01),
    ("D27", "linear_probe", "data.label_draw", "positives", "stratified", "positives"),
    ("D35", "linear_probe", "undefined_auroc", "skip", "skip", "zero"),
    ("D42", "distill_vitb16", "seed", 42, 42, 42),
]


@pytest.mark.parametrize(
    ("row", "recipe", "field", "ours", "paper", "reference"),
    TABLE_D,
    ids=[f"{r[0]}-{r[1]}-{r[2]}" for r in TABLE_D],
)
def test_table_d_is_kept(row, recipe, field, ours, paper, reference):
    for arg, want in ((None, ours), ("paper", paper), ("reference", reference)):
        value = tiny.config(recipe, arg)
        for name in field.split("."):
            value = value[name]
        assert value == want, arg


@pytest.mark.parametrize(
    ("recipe", "fields"),
    [
        ("mae_vitb16", {"optim.b1": 0.9, "optim.b2": 0.95, "optim.weight_decay": 0.05,
                        "optim.decay": "kernels", "optim.clip_norm": 0.0,
                        "data.hflip": 0.5, "data.crop_scale": (0.5, 1.0)}),
        ("mvmae_vitb16", {"optim.peak_lr": 1.2e-4, "optim.base_batch_size": 256,
                          "optim.weight_decay": 0.05, "optim.clip_norm": 1.0,
                          "optim.warmup_start": 0.5, "loss.beta": 2.0,
                          "model.decoder.depth": 4, "model.decoder.width": 768,
                          "data.mean": (0.5056,), "data.std": (0.252,)}),
        ("labs_dae", {"optim.peak_lr": 3e-4, "optim.weight_decay": 0.01,
                      "optim.decay": "all", "total_steps": 1950,
                      "global_batch_size": 256, "optim.b2": 0.999}),
        ("distill_vitb16", {"optim.peak_lr": 1e-4, "optim.weight_decay": 0.05,
                            "optim.clip_norm": 1.0, "total_steps": 3900,
                            "loss.clip_weight": 0.5, "loss.regression_weight": 1.0,
                            "loss.temperature": 0.07, "loss.label_smoothing": 0.02,
                            "lora.rank": 8, "heads.dropout": 0.2, "last_n_blocks": 4,
                            "heads.shared_dim": 256, "optim.min_ratio": 0.01}),
        ("linear_probe", {"optim.peak_lr": 3e-3, "optim.b2": 0.999, "seed": 42,
                          "best": "val/auroc_macro", "best_mode": "max"}),
        ("segment", {"optim.peak_lr": 1e-4, "optim.b2": 0.999, "seed": 42,
                     "optim.weight_decay": 1e-4, "optim.decay": "all",
                     "optim.warmup_steps": 5 * 85, "total_steps": 50 * 85,
                     "global_batch_size": 256, "decoder.width": 256,
                     "loss.bce_weight": 1.0, "loss.dice_weight": 1.0,
                     "data.hflip": 0.5, "data.degrees": 10.0, "best": "val/dice"}),
    ],
)  # fmt: skip
def test_settings_are_those_of_the_reference(recipe, fields):
    config = tiny.config(recipe).to_dict()
    for field, want in fields.items():
        value = config
        for name in field.split("."):
            value = value[name]
        assert value == want, field


@pytest.mark.parametrize(
    "recipe", ["mae_vitb16", "mvmae_vitb16", "labs_dae", "vitals_dae", "ecg_net1d"]
)
@pytest.mark.parametrize("arg", [None, "paper,runlocal", "reference,runlocal"])
def test_recipes_without_an_initial_folder_make_their_objective(recipe, arg, meshes):
    objective = objectives.make(tiny.config(recipe, arg), meshes[8])
    assert objective.pretrained == {}


@pytest.mark.parametrize(
    "recipe", ["distill_vitb16", "linear_probe", "late_fusion", "segment"]
)
def test_recipes_that_need_an_initial_folder_say_so(recipe, meshes):
    with pytest.raises(PacxError, match="config.model_init is empty"):
        objectives.make(tiny.config(recipe), meshes[8])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is_and_how_to_run_it(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in text
