"""Dropout with hash masks, of a key, a row's number and a place in the row.

A mask of `jax.random.bernoulli` is a fifth of a distillation step on a CPU: threefry
takes 20 rounds for two words. A hash of two multiplications suffices for dropout
(Wellons 2018, "lowbias32"), and XLA computes it within the operation that uses it. For
a backward pass XLA may still keep the mask (see `lora.dropped_low_rank`). A row's mask
depends on its number in the global batch, so it is the same on any number of devices
and in any part of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pacx_jax.types import Array

_ODD = 0x9E3779B9, 0x7FEB352D, 0x846CA68B


def row_seeds(key: jax.Array, rows: Array) -> jax.Array:
    """Two random words per row: (b,) int -> (b, 2) uint32."""
    return jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), (2,)))(
        jnp.asarray(rows)
    )


def bits(seeds: Array, shape: Sequence[int]) -> jax.Array:
    """Pseudo-random words, (b, *shape) uint32, from `row_seeds` (b, 2)."""
    place = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(1, *shape)
    first, second = (
        seeds[:, i].reshape(-1, *[1] * len(shape)).astype(jnp.uint32) for i in (0, 1)
    )
    x = place * jnp.uint32(_ODD[0]) + first
    x = (x ^ (x >> 16)) * jnp.uint32(_ODD[1])
    x = (x ^ second ^ (x >> 15)) * jnp.uint32(_ODD[2])
    return x ^ (x >> 16)


def drop(x: Array, seeds: Array, rate: float) -> Array:
    """Zeroes a share `rate` of x (b, ...) and divides the rest by 1 - rate."""
    if not rate:
        return x
    keep = bits(seeds, x.shape[1:]) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * (1 / (1 - rate)), jnp.zeros((), x.dtype))
