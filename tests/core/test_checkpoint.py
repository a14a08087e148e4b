"""Checkpoints: what is saved comes back, and the best one is the best."""

import json

import jax
import numpy as np
import optax
import pytest

from pacx_jax import sharding, step
from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint
from tests import tiny


def make_state(mesh, seed=0, n=3):
    rng = np.random.default_rng(seed)
    params = {"a": {"kernel": np.float32(rng.normal(size=(4, 3)))}}
    frozen = {"a": {"bias": np.float32(rng.normal(size=3))}}
    opt_state = optax.adam(0.1).init(params)
    state = step.TrainState(np.int32(n), params, frozen, opt_state)
    return jax.device_put(state, sharding.tree_shardings(state, mesh))


def abstract(mesh):
    state = make_state(mesh)
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("n", [1, 8])
def test_state_comes_back_equal_on_any_number_of_devices(tmp_path, meshes, n):
    state = make_state(meshes[8])
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(state, 3, {})
    saver.close()
    back = checkpoint.Checkpointer(tmp_path)
    assert back.latest_step() == 3
    restored, _ = back.restore(abstract(meshes[n]))
    assert_equal(restored, state)
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding.num_devices == n
    back.close()


def test_newest_is_restored_and_older_ones_are_removed(tmp_path, meshes):
    saver = checkpoint.Checkpointer(tmp_path, keep=2)
    for n in (1, 2, 3):
        saver.save(make_state(meshes[1], seed=n, n=n), n, {})
    saver.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    back = checkpoint.Checkpointer(tmp_path)
    back.latest_step()
    assert_equal(
        back.restore(abstract(meshes[1]))[0], make_state(meshes[1], seed=3, n=3)
    )
    back.close()


def test_save_under_way_when_the_process_died_is_not_a_checkpoint(tmp_path, meshes):
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(make_state(meshes[1]), 2, {})
    saver.close()
    (tmp_path / "checkpoints" / "4.saving").mkdir()
    again = checkpoint.Checkpointer(tmp_path)
    assert again.latest_step() == 2
    again.close()


def test_new_workdir_has_no_checkpoint(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path)
    assert saver.latest_step() is None
    saver.close()


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [("max", [0.5, 0.9, 0.7, 0.9], 2), ("min", [0.5, 0.9, 0.3, 0.4], 3)],
)
def test_best_is_kept_by_its_metric_and_the_first_of_equals(
    tmp_path, meshes, mode, values, best
):
    saver = checkpoint.Checkpointer(tmp_path, best="val/auroc", mode=mode)
    for n, value in enumerate(values, start=1):
        state = make_state(meshes[1], seed=n, n=n)
        saver.save_if_best(state, n, {"val/auroc": value, "val/other": 0.0})
        saver.save(state, n, {})
    saver.close()
    marker = json.loads((tmp_path / "best.json").read_text())
    assert marker == {"step": best, "metric": "val/auroc", "value": values[best - 1]}
    for which, n in (("best", best), ("latest", 4)):
        got = checkpoint.read_params(tmp_path, which)
        want = make_state(meshes[1], seed=n)
        assert set(tiny.flat(got)) == {"a/kernel", "a/bias"}
        np.testing.assert_array_equal(got["a"]["kernel"], want.params["a"]["kernel"])
        np.testing.assert_array_equal(got["a"]["bias"], want.frozen["a"]["bias"])
        assert isinstance(got["a"]["kernel"], np.ndarray)


def test_best_metric_that_is_no_number_stops_the_run_at_once(tmp_path, meshes):
    saver = checkpoint.Checkpointer(tmp_path, best="val/auroc")
    with pytest.raises(PacxError, match="'val/auroc' is not a number at step 1"):
        saver.save_if_best(make_state(meshes[1]), 1, {"val/auroc": float("nan")})
    assert not (tmp_path / "best.json").exists()
    saver.close()


def test_resumed_run_chooses_the_best_that_a_straight_run_does(tmp_path, meshes):
    # The first process dies after its evaluation at 4, having saved step 1 alone.
    values = {1: 0.2, 2: 0.6, 3: 0.5, 4: 0.8, 5: 0.7}

    def evaluate(steps):
        saver = checkpoint.Checkpointer(tmp_path, best="val/auroc")
        for n in steps:
            state = make_state(meshes[1], seed=n, n=n)
            saver.save_if_best(state, n, {"val/auroc": values[n]})
        saver.close()
        return json.loads((tmp_path / "best.json").read_text())

    assert evaluate([1, 2, 3, 4])["step"] == 4
    during = evaluate([2])  # an interruption here must leave folder and marker agreeing
    params = checkpoint.read_params(tmp_path, "best")
    want = make_state(meshes[1], seed=during["step"]).params["a"]["kernel"]
    np.testing.assert_array_equal(params["a"]["kernel"], want)
    assert evaluate([3, 4, 5])["step"] == 4
    params = checkpoint.read_params(tmp_path, "best")
    want = make_state(meshes[1], seed=4).params["a"]["kernel"]
    np.testing.assert_array_equal(params["a"]["kernel"], want)


def test_metric_that_is_not_evaluated_is_an_error_that_lists_them(tmp_path, meshes):
    saver = checkpoint.Checkpointer(tmp_path, best="val/auroc")
    with pytest.raises(PacxError, match="'val/auroc' is not among .* val/loss"):
        saver.save_if_best(make_state(meshes[1]), 1, {"val/loss": 1.0})
    saver.close()


def test_reading_a_run_that_is_none_is_an_error(tmp_path):
    with pytest.raises(PacxError, match="does not exist"):
        checkpoint.read_params(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(PacxError, match="holds no checkpoint"):
        checkpoint.read_params(tmp_path)
