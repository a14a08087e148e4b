"""The train step: freezing, donation, randomness and shardings."""

import dataclasses
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from pacx_jax import objectives, optim, sharding, step
from pacx_jax.types import Objective
from tests import tiny


def linear(noise: float = 0.0) -> Objective:
    """A linear regression with a frozen offset, and noise drawn from the step's key."""

    def predict(params, batch):
        return batch["x"] @ params["w"]["kernel"] + params["offset"]["bias"]

    def loss(params, batch, key, *, train):
        assert train
        y = batch["y"] + noise * jax.random.normal(key, batch["y"].shape)
        return ((predict(params, batch) - y) ** 2).mean(), {"noise": y.sum()}

    return Objective(
        init=lambda key: {
            "w": {"kernel": jax.random.normal(key, (3,))},
            "offset": {"bias": jnp.ones(())},
        },
        trainable=lambda path: path.startswith("w/"),
        loss=loss,
        outputs=lambda params, batch, key: {"y": predict(params, batch)},
        summarize=lambda outputs: {},
    )


def setting(mesh, noise=0.0):
    objective = linear(noise)
    tx = optim.make(base.get_config().optim, 100)
    state = step.make_state(objective.init(jax.random.key(0)), objective, tx)
    shardings = sharding.tree_shardings(state, mesh)
    return (
        jax.device_put(state, shardings),
        step.make_train_step(objective, tx, mesh, shardings),
        step.make_eval_step(objective, mesh, shardings),
    )


def batch(mesh):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(16, 3)), "y": rng.normal(size=16)}
    return sharding.put_batch({k: np.float32(v) for k, v in arrays.items()}, mesh)


def test_merge_inverts_split():
    tree = {"a": {"x": 1, "y": {"z": 2}}, "b": 3}
    for trainable in (
        lambda path: path == "a/y/z",
        lambda path: path.startswith("a/"),
        lambda path: True,
        lambda path: False,
    ):
        trained, frozen = step.split_params(tree, trainable)
        assert step.merge_params(trained, frozen) == tree
        assert not set(tiny.flat(trained)) & set(tiny.flat(frozen))


def test_examples_in_docstrings_are_true():
    result = doctest.testmod(step)
    assert result.attempted == 1 and result.failed == 0


def test_moments_cover_trained_parameters_alone(meshes):
    state, _, _ = setting(meshes[1])
    assert set(tiny.flat(state.params)) == {"w/kernel"}
    assert set(tiny.flat(state.frozen)) == {"offset/bias"}
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert sizes == [1, 1, 3, 3]  # two counters, two moments


def test_step_trains_and_counts_and_leaves_frozen_parameters_alone(meshes):
    state, train_step, _ = setting(meshes[8])
    before = jax.device_get(state)
    for _ in range(3):
        state, metrics = train_step(state, batch(meshes[8]), jax.random.key(1))
    assert int(state.step) == 3
    np.testing.assert_array_equal(
        state.frozen["offset"]["bias"], before.frozen["offset"]["bias"]
    )
    moved = np.asarray(state.params["w"]["kernel"]) != before.params["w"]["kernel"]
    assert moved.all()
    assert set(metrics) == {"loss", "noise", "grad_norm"}


def test_what_no_gradient_moves_advances_unless_a_loss_is_not_finite(meshes):
    def advance(frozen, found):
        moved = frozen["offset"]["bias"] + found["noise"]
        return {"offset": {"bias": moved}}, {"twice": 2 * found["noise"]}

    objective = dataclasses.replace(
        linear(), advance=advance, weight=lambda batch: len(batch["y"])
    )
    tx = optim.make(base.get_config().optim, 100)
    mesh = meshes[2]
    state = step.make_state(objective.init(jax.random.key(0)), objective, tx)
    shardings = sharding.tree_shardings(state, mesh)
    state = jax.device_put(state, shardings)
    good = batch(mesh)
    bad = sharding.put_batch(
        {"x": np.asarray(good["x"]), "y": good["y"] * np.nan}, mesh
    )
    total = float(np.asarray(good["y"], np.float64).sum())
    take = step.make_train_step(objective, tx, mesh, shardings)
    state, metrics = take(state, good, jax.random.key(1))
    assert metrics.keys() == {"loss", "twice", "grad_norm"}
    assert float(metrics["twice"]) == pytest.approx(2 * total, rel=1e-6)
    state, _ = take(state, bad, jax.random.key(1))
    assert int(state.step) == 2
    assert float(state.frozen["offset"]["bias"]) == pytest.approx(1 + total, rel=1e-6)
    # Of a batch in two parts, what the loss finds is their mean: each sums its rows.
    parts = step.make_train_step(objective, tx, mesh, shardings, accumulate=2)
    _, metrics = parts(state, good, jax.random.key(1))
    assert float(metrics["twice"]) == pytest.approx(total, rel=1e-6)


def test_metrics_are_those_before_the_update(meshes):
    state, train_step, _ = setting(meshes[4])
    x, y = (np.asarray(v, np.float64) for v in batch(meshes[4]).values())
    w = np.asarray(state.params["w"]["kernel"], np.float64)
    _, metrics = train_step(state, batch(meshes[4]), jax.random.key(1))
    error = x @ w + 1 - y
    assert float(metrics["loss"]) == pytest.approx((error**2).mean(), rel=1e-6)
    norm = np.linalg.norm(2 * error @ x / 16)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-6)


def test_state_is_donated(meshes):
    state, train_step, _ = setting(meshes[2])
    train_step(state, batch(meshes[2]), jax.random.key(1))
    assert state.params["w"]["kernel"].is_deleted()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(state.params["w"]["kernel"])


def test_randomness_follows_the_step_and_not_the_number_of_calls(meshes):
    state, train_step, _ = setting(meshes[2], noise=1.0)
    key, data = jax.random.key(1), batch(meshes[2])
    later = jax.device_get(state).replace(step=np.int32(2))
    drawn = []
    for _ in range(3):
        state, metrics = train_step(state, data, key)
        drawn.append(float(metrics["noise"]))
    assert len(set(drawn)) == 3
    _, metrics = train_step(later, data, key)
    assert float(metrics["noise"]) == drawn[2]


def test_eval_step_gives_every_row_everywhere_and_keeps_the_state(meshes):
    state, _, eval_step = setting(meshes[8])
    out = eval_step(state, batch(meshes[8]), jax.random.key(0))["y"]
    assert out.shape == (16,) and out.sharding.is_fully_replicated
    assert not state.params["w"]["kernel"].is_deleted()


@pytest.mark.parametrize("n", [1, 8])
def test_train_step_replicates_parameters_and_splits_the_batch(meshes, n):
    mesh = meshes[n]
    state, train_step, eval_step = setting(mesh, noise=1.0)
    for jitted in (train_step, eval_step):
        compiled = jitted.lower(state, batch(mesh), jax.random.key(0)).compile()
        (states, batches, key), _ = compiled.input_shardings
        for s in jax.tree.leaves(states):
            assert s.is_fully_replicated and s.num_devices == n
        if jitted is train_step:  # the other draws nothing
            assert key.is_fully_replicated
        for name, s in batches.items():
            if s is None:  # evaluation does not read y
                assert (jitted, name) == (eval_step, "y")
                continue
            rows = 16 // n
            shape = batch(mesh)[name].shape
            assert s.shard_shape(shape) == (rows, *shape[1:]), name
        for s in jax.tree.leaves(compiled.output_shardings):
            assert s.is_fully_replicated and s.num_devices == n


def test_batch_on_other_devices_than_stated_is_refused(meshes):
    state, train_step, _ = setting(meshes[8])
    with pytest.raises(ValueError, match="incompatible devices|[Ss]harding"):
        train_step(state, batch(meshes[2]), jax.random.key(0))


def test_frozen_backbone_is_unchanged_by_distillation(tmp_path, meshes):
    # The gradient of the frozen part does not exist: it is no argument of the loss.
    config = tiny.distill_config(tiny.write_folders(tmp_path))
    objective = objectives.make(config, meshes[1])
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    trained, frozen = step.split_params(shapes, objective.trainable)
    tx = optim.make(config.optim, config.total_steps)
    state = jax.eval_shape(lambda p: step.make_state(p, objective, tx), shapes)
    assert tiny.count(state.params) + tiny.count(state.frozen) == tiny.count(shapes)
    moments = tiny.count([x for x in jax.tree.leaves(state.opt_state) if x.ndim])
    scalars = 2  # the moments of logit_scale
    assert moments + scalars == 2 * tiny.count(trained)
    assert "block_00/attn/qkv/kernel" in tiny.flat(frozen["encoder"])
