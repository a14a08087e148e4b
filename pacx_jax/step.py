"""The train and evaluation steps: pure functions, jitted with explicit shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pacx_jax import sharding
from pacx_jax.types import Metrics, Objective, PacxError, Params


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes or needs.

    Attributes:
      step: int32 scalar, the number of batches read, each an update unless skipped.
      params: what is trained. Gradients and moments cover these alone.
      frozen: what is not. Freezing is structural: there is nothing to mask.
      opt_state: of optax, shaped by `params`.
    """

    step: jax.Array
    params: Params
    frozen: Params
    opt_state: Any


def split_params(params: Params, trainable: Callable[[str], bool]):
    """One tree -> (trained, frozen), by the slash-joined path of each leaf.

    >>> split_params({"a": {"x": 1, "y": 2}}, lambda path: path == "a/x")
    ({'a': {'x': 1}}, {'a': {'y': 2}})
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    parts = ({}, {})
    for path, leaf in flat.items():
        parts[0 if trainable(path) else 1][path] = leaf
    return tuple(flax.traverse_util.unflatten_dict(p, sep="/") for p in parts)


def merge_params(params: Params, frozen: Params) -> Params:
    """Inverse of `split_params`."""
    flat = flax.traverse_util.flatten_dict(params)
    flat |= flax.traverse_util.flatten_dict(frozen)
    return flax.traverse_util.unflatten_dict(flat)


def make_state(params: Params, objective: Objective, tx) -> TrainState:
    """The state before the first step, from one tree of all parameters."""
    trained, frozen = split_params(params, objective.trainable)
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, tx.init(trained))


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    state_shardings: TrainState,
    accumulate: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """(state, batch, key) -> (state, metrics); the state is donated.

    The step's randomness is `fold_in(key, step)`, so a resumed run draws the same.
    Metrics hold the loss, the objective's own values and the gradient's norm.

    Args:
      accumulate: in how many parts the batch is taken, for the memory of one; loss and
        gradient are those of the whole batch.
    """
    check_accumulate(objective, accumulate)

    def train_step(state, batch, key):
        rng = jax.random.fold_in(key, state.step)

        def loss_fn(params, batch):
            everything = merge_params(params, state.frozen)
            return objective.loss(everything, batch, rng, train=True)

        def gradient(batch):
            found = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
            # Of a parameter that is split, a device needs its share of the gradient.
            return found[0], jax.lax.with_sharding_constraint(
                found[1], state_shardings.params
            )

        with sharding.tracing(mesh):
            if accumulate == 1:
                (loss, metrics), grads = gradient(batch)
            else:
                (loss, metrics), grads = averaged(
                    gradient, batch, accumulate, objective.weight
                )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        # A batch whose gradient is not finite leaves no trace but the step's number.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics = {"loss": loss, **metrics, "grad_norm": norm}
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, metrics

    everywhere = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), everywhere),
        out_shardings=(state_shardings, everywhere),
        donate_argnums=0,
    )


def check_accumulate(objective: Objective, accumulate: int) -> None:
    """Refuses to take a batch in parts where that would change the loss."""
    if accumulate > 1 and objective.weight is None:
        raise PacxError(
            f"config.accumulate is {accumulate}, but this objective's loss is no mean "
            "over examples (InfoNCE, pooled Dice): parts of a batch would change it. "
            "Give 1; Stage 2 has config.encoder_chunks for a large batch"
        )


def averaged(function, batch, count: int, weight: Callable):
    """function(batch) as the weighted mean of its values over `count` parts.

    Args:
      function: batch -> tree of arrays, such as a loss and its gradient.
      weight: part of a batch -> its weight, see `Objective`.
    """
    parts, total = sharding.split_rows(batch, count), weight(batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))

    def add(so_far, part):
        share = weight(part) / total
        return jax.tree.map(lambda s, v: s + share * v, so_far, function(part)), None

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def make_eval_step(objective: Objective, mesh: Mesh, state_shardings: TrainState):
    """(state, batch, key) -> the objective's outputs of each example, on all devices.

    They come back replicated, so that every process can read the whole batch.
    """

    def eval_step(state, batch, key):
        params = merge_params(state.params, state.frozen)
        with sharding.tracing(mesh):
            return objective.outputs(params, batch, key)

    return jax.jit(
        eval_step,
        in_shardings=(
            state_shardings,
            sharding.batch_sharding(mesh),
            sharding.replicated(mesh),
        ),
        out_shardings=sharding.replicated(mesh),
    )
