"""From an encoder of one image size to training and embedding at another."""

import jax
import numpy as np
import pytest

from pacx_jax import load_encoder, objectives, step
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.run import setup
from tests import tiny
from tests.convert.test_kinds import folder

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def learns(config, mesh, batch) -> None:
    """A training step's loss and gradients, from config.model_init, are finite."""
    objective = objectives.make(config, mesh)
    start = tiny.random_start(objective) | setup.load_parts(objective, KEY)
    trained, frozen = step.split_params(start, objective.trainable)

    def loss(trained):
        whole = step.merge_params(trained, frozen)
        return objective.loss(whole, batch, KEY, train=True)[0]

    value, gradient = jax.device_get(jax.jit(jax.value_and_grad(loss))(trained))
    assert np.isfinite(value) and value > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert any(x.any() for x in jax.tree.leaves(gradient))


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
    )
    config.model.decoder.update(width=16, depth=2, num_heads=2)
    learns(config, meshes[1], {"image": IMAGES})

    # As pacx_jax.export --image_size=64 does.
    model_folder.save(large, model_folder.at_size(model_folder.load(small), 64), "card")
    starts = tiny.write_folders(tmp_path) | {"model_init": str(large)}
    fields = {"data__image_size": 64, "modalities__labs__clip_weight": 0.0}
    fields["modalities__labs__regression_weight"] = 0.0
    config = tiny.distill_config(starts, **fields)
    batch = tiny.image_batch(4, 0) | {"image": IMAGES}
    learns(config, meshes[1], batch)

    z = load_encoder(small, batch_size=4, image_size=64)(IMAGES)
    assert z.shape == (4, 32) and np.isfinite(z).all()


@pytest.mark.parametrize("recipe", ["distill_vitb16", "linear_probe"])
def test_another_size_than_the_encoders_is_refused_with_the_way(tmp_path, recipe):
    model_folder.save(tmp_path / "f", tiny.folder("vit"), "card")
    config = tiny.config(recipe, model_init=str(tmp_path / "f"), data__image_size=64)
    config.data.label_columns = ("a",)
    with pytest.raises(PacxError, match="has 32.*pacx_jax.export .*--image_size=64"):
        objectives.make(config, None)
