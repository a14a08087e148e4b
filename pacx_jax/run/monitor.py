"""What a practitioner looks for beside the loss: learning rate, norms, images.

They are computed at logged steps and at evaluations alone, outside of the train step,
so that the step costs the same whether or not anybody looks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pacx_jax import sharding
from pacx_jax.step import TrainState, merge_params
from pacx_jax.types import Batch, Metrics, Objective, Params


class Monitor:
    """Values and images of a state.

    Args:
      schedule: step from 0 -> learning rate.
      shardings: of the TrainState.

    Attributes:
      keep: parameters -> a copy of them: the step that follows overwrites them.
      values: (what `keep` returned before an update, the state after it) -> learning
        rate, norms and the objective's own values.
      images: (state, validation batch, key) -> name -> images uint8 (k, h, w, 3).
        Only for an objective that draws some.
    """

    def __init__(
        self,
        objective: Objective,
        schedule: Callable[[jax.Array], jax.Array],
        mesh: Mesh,
        shardings: TrainState,
    ):
        everywhere = sharding.replicated(mesh)

        def values(before, state):
            change = jax.tree.map(jnp.subtract, state.params, before)
            found = {
                "learning_rate": jnp.asarray(schedule(state.step - 1), jnp.float32),
                "param_norm": optax.tree.norm(state.params),
                "update_norm": optax.tree.norm(change),
            }
            if objective.monitor:
                found |= objective.monitor(merge_params(state.params, state.frozen))
            return found

        def images(state, batch, key):
            params = merge_params(state.params, state.frozen)
            with sharding.tracing(mesh):
                return objective.images(params, batch, key)

        self.keep: Callable[[Params], Params] = jax.jit(
            lambda params: jax.tree.map(jnp.copy, params),
            in_shardings=(shardings.params,),
            out_shardings=shardings.params,
        )
        self.values: Callable[[Params, TrainState], Metrics] = jax.jit(
            values,
            in_shardings=(shardings.params, shardings),
            out_shardings=everywhere,
        )
        self.images: Callable[[TrainState, Batch, jax.Array], dict] = jax.jit(
            images,
            in_shardings=(shardings, sharding.batch_sharding(mesh), everywhere),
            out_shardings=everywhere,
        )
