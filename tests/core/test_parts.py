"""Batches taken in parts, and blocks computed again; test_meshes.py has the numbers."""

import jax
import numpy as np
import pytest

from pacx_jax import objectives, sharding, step
from pacx_jax.errors import PacxError
from pacx_jax.models import mae
from tests import stages, tiny


@pytest.mark.parametrize("stage", ["distill", "segment"])
def test_accumulation_that_would_change_the_loss_is_refused(
    stage, meshes, stage_folders
):
    config = stages.config(stage, stage_folders)
    objective = objectives.make(config, meshes[1])
    with pytest.raises(PacxError, match="config.accumulate is 2, but this objective"):
        step.make_train_step(objective, None, meshes[1], None, 2)


def test_remat_computes_again_and_keeps_the_names(meshes, stage_folders):
    trees, dots = {}, {}
    for remat in ("none", "dots", "full"):
        config = stages.config("mae", stage_folders, remat=remat)
        objective = objectives.make(config, meshes[1])
        params = jax.eval_shape(objective.init, jax.random.key(0))
        trees[remat] = sorted(tiny.flat(params))
        grad = jax.make_jaxpr(
            jax.grad(lambda p, o=objective: o.loss(
                p, stages.batch("mae"), jax.random.key(0), train=True)[0])
        )  # fmt: skip
        dots[remat] = str(grad(params)).count("dot_general[")
    assert trees["none"] == trees["dots"] == trees["full"]
    assert dots["none"] < dots["dots"] < dots["full"]


def test_unknown_remat_is_an_error(meshes, stage_folders):
    config = stages.config("mae", stage_folders, remat="some")
    objective = objectives.make(config, meshes[1])
    with pytest.raises(PacxError, match="config.remat 'some': choose none, dots, full"):
        jax.eval_shape(objective.init, jax.random.key(0))


def test_parts_of_a_batch_stay_on_their_devices_and_join_again(meshes):
    batch = {"x": np.arange(32.0).reshape(16, 2)}
    mesh = meshes[4]

    def split(batch):
        with sharding.tracing(mesh):
            parts = sharding.split_rows(batch, 2)
            return parts, sharding.join_rows(parts["x"])

    rows = sharding.batch_sharding(mesh)
    jitted = jax.jit(split, in_shardings=rows)
    parts, joined = jitted(batch)
    np.testing.assert_array_equal(parts["row_numbers"][1], np.arange(1, 16, 2))
    np.testing.assert_array_equal(parts["x"][0], batch["x"][::2])
    np.testing.assert_array_equal(joined, batch["x"])
    text = jitted.lower(batch).compile().as_text()
    assert not [k for k in ("all-gather", "all-to-all", "permute(") if k in text]


def test_masks_key_on_the_row_of_the_global_batch():
    whole = mae.random_masking(jax.random.key(3), np.arange(8), 16, 0.75)
    some = mae.random_masking(jax.random.key(3), np.array([6, 1]), 16, 0.75)
    for a, b in zip(whole, some, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[[6, 1]], b)
