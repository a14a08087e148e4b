"""Full fine-tuning: drop-path, mixup and layer-wise decay of `classify`."""

import functools

import jax
import numpy as np
import pytest

from pacx_jax import losses, objectives
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from tests import stages, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


def make(folders, mesh, **fields):
    c = stages.config("classify", folders, **({"tuning": "full"} | fields))
    objective = objectives.make(c, mesh)
    return c, objective, tiny.random_start(objective)


@functools.cache  # compiled once for an objective
def jitted(loss, train):
    return jax.jit(lambda params, batch, key: loss(params, batch, key, train=train)[0])


def value(objective, params, batch, key=3, train=True):
    loss = jitted(objective.loss, train)
    return float(loss(params, batch, jax.random.key(key)))


def test_a_rate_of_0_is_the_loss_of_before(folders, meshes):
    c, objective, params = make(folders, meshes[1])
    older = tiny.copy_of(c)
    del older["drop_path"], older["mixup"]
    before = objectives.make(older, meshes[1])
    batch = stages.batch("classify")
    assert value(objective, params, batch) == value(before, params, batch)
    logits = [
        np.asarray(o.outputs(params, batch, jax.random.key(0))["logits"])
        for o in (objective, make(folders, meshes[1], drop_path=0.5, mixup=0.8)[1])
    ]
    np.testing.assert_array_equal(*logits)  # evaluation drops and mixes nothing


def test_drop_path_is_random_in_training_alone(folders, meshes):
    _, objective, params = make(folders, meshes[1], drop_path=0.5)
    batch = stages.batch("classify")
    first, again, other = (value(objective, params, batch, k) for k in (1, 1, 2))
    assert first == again != other
    whole = value(make(folders, meshes[1])[1], params, batch)
    assert value(objective, params, batch, train=False) == whole != first


@pytest.mark.parametrize(
    "task", ["multilabel", pytest.param("multiclass", marks=pytest.mark.full)]
)
def test_mixup_mixes_each_image_and_its_loss_with_the_row_opposite(
    folders, meshes, task
):
    c, objective, params = make(folders, meshes[1], mixup=0.8, task=task)
    batch = stages.batch("classify")
    key = jax.random.key(3)
    share = jax.random.beta(jax.random.fold_in(key, 1), 0.8, 0.8)
    assert 0.01 < share < 0.99
    plain = make(folders, meshes[1], task=task)[1]
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = normalize(batch["image"], mean, std)
    mixed = share * x + (1 - share) * x[::-1]
    # Of images that are mixed beforehand; pixels would be rounded to 8 bits.
    pixels = (mixed * np.array(std) + np.array(mean)) * 255
    y = plain.outputs(params, batch | {"image": pixels}, key)["logits"]
    want = 0.0
    for weight, order in ((share, slice(None)), (1 - share, slice(None, None, -1))):
        labels, mask = batch["labels"][order], batch["label_mask"][order]
        if task == "multilabel":
            want += weight * losses.masked_bce(y, labels, mask)
            continue
        one = (labels.sum(-1) == 1) & (mask.min(-1) > 0)
        each = -(jax.nn.log_softmax(y) * labels).sum(-1)
        want += weight * (each * one).sum() / one.sum()
    assert value(objective, params, batch) == pytest.approx(float(want), rel=1e-4)
    assert objective.weight is None  # a part of a batch has other pairs


def test_a_step_of_fine_tuning_moves_later_layers_more(folders, meshes):
    fields = {"drop_path": 0.2, "mixup": 0.8, "optim__layer_decay": 0.1}
    c, objective, params = make(folders, meshes[2], **fields)
    c.optim.update(warmup_steps=0, weight_decay=0.0)
    metrics, _, state = stages.one_step(c, meshes[2])
    assert np.isfinite(metrics["loss"])
    after = tiny.flat(jax.device_get(state.params))
    moved = {
        k: np.abs(after[k] - v).max()
        for k, v in tiny.flat(params).items()
        if k in after
    }
    layers = ("patch_embed", "block_00/mlp/fc1", "block_01/mlp/fc1")
    each = [moved[f"encoder/{name}/kernel"] for name in layers]
    each.append(moved["head/linear/kernel"])
    # Adam's first step is the rate, but for eps.
    np.testing.assert_allclose(np.divide(each[:-1], each[1:]), 0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mixup": -1.0}, "config.mixup is -1.0"),
        ({"drop_path": 0.1, "tuning": "linear"}, "the encoder is frozen"),
        ({"mixup": 0.8, "data__group": "study"}, "config.data.group is study"),
    ],
)
def test_what_cannot_be_is_one_line(folders, meshes, fields, says):
    with pytest.raises(PacxError, match=says):
        make(folders, meshes[1], **fields)
