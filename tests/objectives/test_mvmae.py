"""MVMAE: its loss by hand, missing views, alignment, and how beta rises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import objectives
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.models import mae
from pacx_jax.objectives import mvmae
from tests import stages, tiny
from tests.reliability import runs

KEY = jax.random.key(3)
MASK = np.float32([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]])


def config(**fields):
    return runs.config("mvmae", {}, data__max_views=3, **fields)


def batch(mask=MASK, seed=0):
    rng = np.random.default_rng(seed)
    b, v = mask.shape
    images = rng.integers(0, 256, (b, v, 16, 16, 1), dtype=np.uint8)
    view = np.where(mask > 0, rng.integers(0, 2, (b, v)), 2).astype(np.int32)
    return {"images": images, "view": view, "view_mask": mask}


def made(mesh, **fields):
    objective = objectives.make(config(**fields), mesh)
    return objective, tiny.random_start(objective)


def loss_and_gradient(objective, params, examples, step=20):
    """The loss, metrics and gradient at a step; 20 is the last."""

    def loss(params, examples):
        return objective.loss(params, examples, KEY, train=True, step=step)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, examples)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_without_alignment_it_is_an_mae_of_each_view_bit_for_bit(meshes):
    c = config(loss__beta=0.0)
    objective = objectives.make(c, meshes[1])
    params, examples = tiny.random_start(objective), batch()
    model = mae.from_config(c.model, "float32", image_size=16)

    def by_hand(params, examples):
        mask = examples["view_mask"]
        b, v = mask.shape
        images = normalize(examples["images"], c.data.mean, c.data.std)
        images = images.reshape(b * v, 16, 16, 1)
        keep, restore, _ = mae.random_masking(KEY, jnp.arange(b * v), 4, 0.5)
        targets = mae.patch_targets(images, 8, False, mae.masked_ids(keep, restore))
        view = examples["view"].reshape(-1)
        pred = model.apply({"params": params}, images, keep, restore, True, view)
        each = mae.reconstruction_loss(pred, targets).reshape(b, v) * mask
        return (each.sum(1) / mask.sum(1)).mean()

    want = jax.jit(jax.value_and_grad(by_hand))(params, examples)
    (loss, _), grads = loss_and_gradient(objective, params, examples)
    same((loss, grads), want)
    # While beta is still 0, the alignment changes nothing either.
    aligned, _ = made(meshes[1])
    (loss, metrics), grads = loss_and_gradient(aligned, params, examples, step=0)
    assert metrics["beta"] == 0 and metrics["align"] > 0
    same(loss, want[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), grads, want[1]
    )


@pytest.mark.parametrize(
    "align", ["mse", pytest.param("cosine", marks=pytest.mark.full), "infonce"]
)
def test_a_view_that_is_missing_moves_nothing(meshes, align):
    objective, params = made(meshes[1], loss__align=align)
    examples, other = batch(), batch(seed=1)
    filled = MASK[..., None, None, None] > 0
    changed = {**examples, "images": np.where(filled, examples["images"],
                                              other["images"])}  # fmt: skip
    assert (changed["images"] != examples["images"]).any()

    @jax.jit
    def graded(params, images):
        def loss(params, images):
            given = {**examples, "images": images}
            return objective.loss(params, given, KEY, train=True, step=20)[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(params, images)

    loss, (ours, grads) = graded(params, examples["images"].astype(np.float32))
    got, (other, _) = graded(params, changed["images"].astype(np.float32))
    same((loss, ours), (got, other))
    moves = np.abs(grads).reshape(4, 3, -1).max(-1)
    assert ((moves > 0) == (MASK > 0)).all()


def test_alignment_by_hand(meshes):
    z = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    pairs = [[(0, 1)], [], [(0, 1), (0, 2), (1, 2)], [(0, 1), (0, 2), (1, 2)]]
    squared = [[((z[i, u] - z[i, v]) ** 2).mean() for u, v in p]
               for i, p in enumerate(pairs)]  # fmt: skip
    want = np.mean([np.mean(x) if x else 0 for x in squared])
    c = config(loss__mask_ratio=0.75)
    got = mvmae.alignment(c, meshes[1], (jnp.asarray(z), jnp.asarray(MASK)))
    np.testing.assert_allclose(got, want / 0.25, rtol=1e-5)
    c = config(loss__align_reduction="views_squared", loss__align_by_visible=False)
    want = np.mean(
        [2 * np.sum(x) / m.sum() ** 2 for x, m in zip(squared, MASK, strict=True)]
    )
    got = mvmae.alignment(c, meshes[1], (jnp.asarray(z), jnp.asarray(MASK)))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    cosines = [[1 - z[i, u] @ z[i, v] for u, v in p] for i, p in enumerate(pairs)]
    want = np.mean([np.mean(x) if x else 0 for x in cosines])
    c = config(loss__align="cosine", loss__align_by_visible=False)
    got = mvmae.alignment(c, meshes[1], (jnp.asarray(z), jnp.asarray(MASK)))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("align", ["mse", "cosine"])
@pytest.mark.parametrize("tokens", ["mean_all", "cls", "mean_patches"])
def test_views_that_are_the_same_are_aligned(meshes, align, tokens):
    c = config(loss__align=align, loss__align_tokens=tokens)
    same_tokens = np.random.default_rng(0).normal(size=(4, 1, 5, 8))
    tokens = jnp.float32(np.repeat(same_tokens, 3, 1).reshape(12, 5, 8))
    embedded = mvmae.embeddings(tokens, jnp.asarray(MASK), c.loss)
    assert abs(mvmae.alignment(c, meshes[1], embedded)) < 1e-6
    other = tokens + jnp.float32(np.random.default_rng(1).normal(size=tokens.shape))
    embedded = mvmae.embeddings(other, jnp.asarray(MASK), c.loss)
    assert mvmae.alignment(c, meshes[1], embedded) > 1e-3


def test_beta_rises_from_zero_after_the_warm_up_to_its_value(meshes):
    c = config(total_steps=1000, optim__warmup_steps=100)
    beta = np.array([mvmae.beta_at(c, s) for s in (0, 100, 550, 1000, 1200)])
    np.testing.assert_allclose(beta, [0, 0, 1, 2, 2], atol=1e-6)
    c.loss.beta_schedule = "linear"
    np.testing.assert_allclose(mvmae.beta_at(c, 325), 0.5, rtol=1e-6)
    c.loss.beta_schedule = "constant"
    assert mvmae.beta_at(c, 0) == 2
    # The published schedule, 0.02 an epoch over 500: within a tenth of its values.
    c = config(total_steps=500, optim__warmup_steps=5)
    for epoch, value in ((100, 0.083), (250, 0.93), (400, 1.89)):
        assert abs(mvmae.beta_at(c, epoch) - value) < 0.1


def test_a_study_counts_once_however_many_views_it_has(meshes):
    objective, params = made(meshes[1], loss__beta=0.0)
    examples = batch()
    losses = jax.jit(objective.outputs)(params, examples, KEY)
    (loss, _), _ = loss_and_gradient(objective, params, examples)
    np.testing.assert_allclose(losses["loss"].mean(), loss, rtol=1e-6)
    assert (losses["loss_of_mean"] > 0).all()
    reference, _ = made(
        meshes[1], loss__beta=0.0, loss__reconstruction_reduction="max_views"
    )
    less = jax.jit(reference.outputs)(params, examples, KEY)["loss"]
    np.testing.assert_allclose(less, losses["loss"] * MASK.sum(1) / 3, rtol=1e-6)


def test_closeness_tells_alignment_from_collapse():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 2, 64))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    aligned = np.repeat(z[:, :1], 2, axis=1)
    mask = np.ones((50, 2))
    found = mvmae.closeness(aligned, mask)
    assert found["cosine"] > 0.99 and abs(found["cosine_of_others"]) < 0.2
    assert abs(mvmae.closeness(z, mask)["cosine"]) < 0.2
    assert mvmae.closeness(z, np.stack([mask[:, 0], 0 * mask[:, 0]], 1)) == {}


def test_images_for_tensorboard_show_each_view(meshes):
    objective, params = made(meshes[1])
    shown = jax.jit(objective.images)(params, batch(), KEY)["reconstruction"]
    assert shown.shape == (6, 16, 48, 3) and shown.dtype == jnp.uint8
    np.testing.assert_array_equal(shown[0, :, :16, 0], batch()["images"][0, 0, ..., 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss__align": "l1"}, "config.loss.align 'l1': choose mse, cosine, infonce"),
        ({"loss__beta": -1.0}, "config.loss.beta is -1.0: give at least 0"),
        ({"data__group": "image"}, "config.data.group 'image'"),
        ({"data__mean": (0.5, 0.5)}, "config.data.mean has 2 numbers"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(meshes, fields, message):
    with pytest.raises(PacxError, match=message):
        objectives.make(config(**fields), meshes[1])


# tests/core/test_meshes.py has other meshes, in float64.
@pytest.mark.parametrize(
    "align", [pytest.param("mse", marks=pytest.mark.full), "infonce"]
)
def test_devices_and_parts_of_a_batch_change_no_number(meshes, align):
    c = stages.config("mvmae", {}, loss__align=align, loss__beta_schedule="constant")
    alone = stages.one_step(c, meshes[1], "float32", optimizer=False)
    for n in (2, 8) if align == "mse" else (8,):
        shared = stages.one_step(c, meshes[n], "float32", optimizer=False)
        assert max(stages.differences(shared, alone)) < 1e-5
    if align == "mse":
        c.accumulate = 2
        parts = stages.one_step(c, meshes[2], "float32", optimizer=False)
        assert max(stages.differences(parts, alone)) < 1e-5
