"""From an encoder of one image size to training and embedding at another."""

import jax
import numpy as np
import pytest

from pacx_jax import load_encoder, model_folder, objectives, optim, step, train
from pacx_jax.types import PacxError
from tests import tiny
from tests.convert.test_kinds import folder

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def one_step(config, mesh, batch) -> tuple[float, float]:
    """Loss and largest change of a parameter in one update from config.model_init."""
    objective = objectives.make(config, mesh)
    loaded = train.load_parts(objective, KEY)
    start = tiny.random_start(objective) | loaded
    tx = optim.make(config.optim, config.total_steps)

    def update(start, batch):
        state = step.make_state(start, objective, tx)

        def loss(params):
            whole = step.merge_params(params, state.frozen)
            return objective.loss(whole, batch, KEY, train=True)[0]

        value, gradient = jax.value_and_grad(loss)(state.params)
        return value, tx.update(gradient, state.opt_state, state.params)[0]

    value, updates = jax.jit(update)(start, batch)
    return float(value), max(float(abs(x).max()) for x in jax.tree.leaves(updates))


def test_a_32_pixel_mae_trains_on_distils_and_embeds_at_64(tmp_path, meshes):
    small, large = tmp_path / "at_32", tmp_path / "at_64"
    model_folder.save(small, folder("mae"), "card")
    config = tiny.config(
        "mae_vitb16",
        model_init=str(small),
        dtype="float32",
        data__image_size=64,
        model__variant="mu",
        model__patch_size=8,
        optim__warmup_steps=0,
    )
    config.model.decoder.update(width=16, depth=2, num_heads=2)
    for value in one_step(config, meshes[1], {"image": IMAGES}):
        assert np.isfinite(value) and value > 0

    # As pacx_jax.export --image_size=64 does.
    model_folder.save(large, model_folder.at_size(model_folder.load(small), 64), "card")
    starts = tiny.write_folders(tmp_path) | {"model_init": str(large)}
    fields = {"data__image_size": 64, "optim__warmup_steps": 0, "total_steps": 4}
    config = tiny.distill_config(starts, **fields)
    batch = tiny.image_batch(4, 0) | {"image": IMAGES}
    for value in one_step(config, meshes[1], batch):
        assert np.isfinite(value) and value > 0

    z = load_encoder(large)(IMAGES)
    assert z.shape == (4, 32) and np.isfinite(z).all()
    np.testing.assert_array_equal(z, load_encoder(small, image_size=64)(IMAGES))


@pytest.mark.parametrize("recipe", ["distill_vitb16", "linear_probe"])
def test_another_size_than_the_encoders_is_refused_with_the_way(tmp_path, recipe):
    model_folder.save(tmp_path / "f", tiny.folder("vit"), "card")
    config = tiny.config(recipe, model_init=str(tmp_path / "f"), data__image_size=64)
    config.data.label_columns = ("a",)
    with pytest.raises(PacxError, match="has 32.*pacx_jax.export .*--image_size=64"):
        objectives.make(config, None)
