"""The train and evaluation steps: pure functions, jitted with explicit shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pacx_jax import sharding, target
from pacx_jax.errors import PacxError
from pacx_jax.types import Batch, Metrics, Objective, Params


@flax.struct.dataclass
class TrainState:
    """Everything that a step needs or changes.

    Attributes:
      step: int32 scalar, the number of batches read; each is an update unless skipped.
      params: the trained parameters. Gradients and moments cover only these.
      frozen: the other parameters. Freezing is structural, so there is nothing to mask.
        Only the objective's `advance` changes them.
      opt_state: optax's state, shaped by `params`.
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
      accumulate: number of parts that the batch is processed in, with the memory of
        one; loss and gradient are those of the whole batch.
    """
    check_accumulate(objective, accumulate)

    def train_step(state, batch, key):
        rng = jax.random.fold_in(key, state.step)
        by_step = {"step": state.step} if objective.by_step else {}

        def loss_fn(params, batch, share):
            everything = merge_params(params, state.frozen)
            found = objective.loss(everything, batch, rng, train=True, **by_step)
            return jax.tree.map(lambda x: share * x, found)

        def gradient(batch, share=1.0):
            differentiate = jax.value_and_grad(loss_fn, has_aux=True)
            found, grads = differentiate(state.params, batch, share)
            # Shards gradients like their parameters.
            return found, jax.lax.with_sharding_constraint(
                grads, state_shardings.params
            )

        with sharding.tracing(mesh):
            if accumulate == 1:
                (loss, metrics), grads = gradient(batch)
            else:
                (loss, metrics), grads = summed(
                    gradient, batch, accumulate, objective.weight
                )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, opt_state = update_if(finite, tx, grads, state, mesh)
        frozen = state.frozen
        if objective.advance:
            frozen, metrics = objective.advance(state.frozen, metrics)
            frozen = where(finite, frozen, state.frozen)
        metrics = {"loss": loss, **metrics, "grad_norm": norm}
        return TrainState(state.step + 1, params, frozen, opt_state), metrics

    everywhere = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), everywhere),
        out_shardings=(state_shardings, everywhere),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def update_if(finite: jax.Array, tx, grads: Params, state: TrainState, mesh: Mesh):
    """Returns (params, opt_state) after an update, or unchanged if not `finite` ().

    A batch with a non-finite gradient changes only the step's number. Either form
    writes the state in place on its own platforms and makes XLA copy all of it on the
    others.
    """

    def update():
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    before = (state.params, state.opt_state)
    with sharding.tracing(mesh):
        in_branch = target.hand_written("update_in_branch")
    if in_branch:
        return jax.lax.cond(finite, update, lambda: before)
    return where(finite, update(), before)


def where(condition: jax.Array, tree, other):
    """`tree` if the condition () holds, else `other`, a tree of the same shapes."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """XLA's options for a train step or a first state on these devices.

    XLA's default order on CPU runs several operations at once, which gains nothing on
    the cores of one machine and takes a third more memory.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def check_accumulate(objective: Objective, accumulate: int) -> None:
    """Raises PacxError if processing a batch in parts would change the loss."""
    if accumulate > 1 and objective.weight is None:
        raise PacxError(
            f"config.accumulate is {accumulate}, but this objective's loss is no mean "
            "over examples (InfoNCE, pooled Dice), so parts of a batch would change "
            "it. Give 1; for a large batch in Stage 2 use config.encoder_chunks"
        )


def summed(function: Callable, batch: Batch, count: int, weight: Callable):
    """Sums function(part, share) over `count` parts of a batch.

    Args:
      function: (part of the batch, its share of the whole) -> tree of arrays, such as
        the loss times the share and its gradient. Scaling the loss, not the gradient,
        lets XLA reduce the gradients' sum over devices once.
      weight: part of a batch -> its weight, see `Objective`.
    """
    parts, total = sharding.split_rows(batch, count), weight(batch)

    def values(part):
        return function(part, weight(part) / total)

    def add(so_far, part):
        return jax.tree.map(jnp.add, so_far, values(part)), None

    shapes = jax.eval_shape(values, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def make_eval_step(objective: Objective, mesh: Mesh, state_shardings: TrainState):
    """(state, batch, key) -> the objective's outputs per example, on all devices.

    Outputs are replicated, so every process can read the whole batch.
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
