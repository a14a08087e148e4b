"""Rows of learned tables, with backward passes that scatter nothing.

Scattering a batch's gradients into a table adds in no fixed order on a GPU and row by
row on a TPU. Letters: b batch, k rows to take, n rows of a table, d width, v views.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.errors import PacxError
from pacx_jax.types import Array


@jax.custom_vjp
def take_rows(table: Array, ids: Array) -> Array:
    """Rows `ids` (b, k) of a table (n, d): (b, k, d)."""
    return jnp.take(table, ids, axis=0, mode="clip")


def _take_forward(table, ids):
    return take_rows(table, ids), (ids, len(table))


def _take_backward(residuals, g):
    ids, n = residuals
    taken = jax.nn.one_hot(ids, n, dtype=g.dtype)
    return jnp.einsum("bkn,bkd->nd", taken, g), None


take_rows.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def permuted(table: Array, place: Array) -> Array:
    """The rows of a table (n, d) in another order for each image, (b, n, d).

    Args:
      place: (b, n), where each row of the table goes: a permutation of 0 to n - 1.
    """
    return jnp.take(table, jnp.argsort(place, axis=1), axis=0, mode="clip")


def _permuted_forward(table, place):
    return permuted(table, place), place


def _permuted_backward(place, g):
    back = jnp.take_along_axis(g, place[..., None], axis=1, mode="clip")
    return back.sum(0), None


permuted.defvjp(_permuted_forward, _permuted_backward)


def of_view(module: nn.Module, views: int, view: Array | None) -> Array | None:
    """Rows of the parameter `view_embed` of a module: (b, 1, d); None without views.

    Args:
      module: the module that is being called, of a width; it holds the table (v, d).
      views: v; 0: the module has no such table.
      view: (b,), numbers of the images' views, or (1,), of all; None: frontal, 0. Those
        from v on give NaN, which stops a run: a clipped number would be another view's.

    Raises:
      PacxError: views are given to a module without their embeddings.
    """
    if not views:
        if view is not None:
            raise PacxError(
                "views are given to a model without view embeddings: give none, or a "
                "model with config.model.views=3"
            )
        return None
    shape = (views, module.width)
    table = module.param("view_embed", nn.initializers.normal(0.02), shape)
    view = jnp.zeros((1,), jnp.int32) if view is None else view
    out = jnp.full((1, module.width), jnp.nan, table.dtype)
    for i in range(views):
        out = jnp.where((view == i)[:, None], table[i], out)
    return out[:, None]
