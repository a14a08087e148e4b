"""Low-rank adaptation as a transform of any linen model (Hu 2021).

The model's code does not know of it: adapters are a tree of their own, applied by
intercepting `nn.Dense`. For W (in, out) an adapter is a (in, r) and b (r, out):

  y = x W + bias + (alpha / r) * (drop(x) a) b

Example:
  adapters = lora.init(key, params, targets=("qkv",), rank=8)
  with lora.applied(adapters, alpha=16, dropout=0.1, key=step_key):
    tokens = model.apply({"params": params}, images)     # training
  merged = lora.merge(params, adapters, alpha=16)         # evaluation and export

Merging equals applying without dropout. Dropout acts only on the adapter's input, so
training cannot be expressed as a change of weights.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax import target
from pacx_jax.errors import PacxError
from pacx_jax.models.dropout import drop, row_seeds
from pacx_jax.types import Params

if TYPE_CHECKING:
    from jaxtyping import Float, Integer, Key, UInt32


def init(
    key: Key[jax.Array, ""], params: Params, targets: Sequence[str], rank: int
) -> Params:
    """Adapters for every dense kernel whose module is named in `targets`.

    a ~ U(+-1/sqrt(in)) (peft's Kaiming-uniform with a = sqrt 5) and b = 0, so the
    adapted model starts equal to the base model. The fused qkv has one a for all three.

    Raises:
      PacxError: a target names no module.
    """
    flat = flax.traverse_util.flatten_dict(params)
    adapters, found = {}, set()
    for path, kernel in sorted(flat.items()):
        if path[-1] != "kernel" or path[-2] not in targets:
            continue
        found.add(path[-2])
        d_in, d_out = kernel.shape
        k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        bound = d_in**-0.5
        a = jax.random.uniform(k, (d_in, rank), kernel.dtype, -bound, bound)
        adapters[path[:-1] + ("a",)] = a
        adapters[path[:-1] + ("b",)] = jnp.zeros((rank, d_out), kernel.dtype)
    missing = sorted(set(targets) - found)
    if missing:
        raise PacxError(f"lora targets {missing} name no dense layer of the model")
    return flax.traverse_util.unflatten_dict(adapters)


def merge(params: Params, adapters: Params, alpha: float) -> Params:
    """Returns params with W + (alpha / r) a b at every adapted kernel."""
    flat = dict(flax.traverse_util.flatten_dict(params))
    pairs = flax.traverse_util.flatten_dict(adapters)
    for path in [p[:-1] for p in pairs if p[-1] == "a"]:
        a, b = pairs[path + ("a",)], pairs[path + ("b",)]
        flat[path + ("kernel",)] = flat[path + ("kernel",)] + _scale(a, alpha) * (a @ b)
    return flax.traverse_util.unflatten_dict(flat)


def share(params: Params, adapters: Params, alpha: float) -> Float[jax.Array, ""]:
    """|(alpha / r) a b| / |W| over all adapted kernels, by Frobenius norms, ()."""
    flat = flax.traverse_util.flatten_dict(params)
    pairs = flax.traverse_util.flatten_dict(adapters)
    added, base = jnp.zeros(()), jnp.zeros(())
    for path in [p[:-1] for p in pairs if p[-1] == "a"]:
        a, b = pairs[path + ("a",)], pairs[path + ("b",)]
        # |a b|^2 is the trace of (a^T a)(b b^T): r x r numbers, never (in, out).
        added += _scale(a, alpha) ** 2 * ((a.T @ a) * (b @ b.T)).sum()
        base += (flat[path + ("kernel",)] ** 2).sum()
    return jnp.sqrt(added / base)


@contextlib.contextmanager
def applied(
    adapters: Params,
    *,
    alpha: float,
    dropout: float = 0.0,
    key: Key[jax.Array, ""] | None = None,
    rows: Integer[jax.Array, " b"] | None = None,
):
    """Adds the adapters to `model.apply` within this context.

    `dropout` > 0 needs `key`. A row's mask depends only on the key, the module's name
    and the row's number in the global batch, `rows` (b,) (default: 0 to b - 1).
    """
    pairs = flax.traverse_util.flatten_dict(adapters)
    if dropout and key is None:
        raise ValueError("lora dropout needs a key")

    def interceptor(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        path = tuple(context.module.path)
        if context.method_name != "__call__" or path + ("a",) not in pairs:
            return y
        if not isinstance(context.module, nn.Dense):
            return y
        x, a, b = (
            v.astype(y.dtype)
            for v in (args[0], pairs[path + ("a",)], pairs[path + ("b",)])
        )
        b = _scale(a, alpha) * b
        if not dropout:
            return y + low_rank(x, a, b)
        k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        seeds = row_seeds(k, jnp.arange(len(x)) if rows is None else rows)
        return y + dropped_low_rank(x, a, b, seeds, dropout)

    with nn.intercept_methods(interceptor):
        yield


def low_rank(
    x: Float[jax.Array, "*rows in"],
    a: Float[jax.Array, "in r"],
    b: Float[jax.Array, "r out"],
) -> Float[jax.Array, "*rows out"]:
    """(x a) b for x (..., in), a (in, r), b (r, out)."""
    return dropped_low_rank(x, a, b, jnp.zeros((0, 2), jnp.uint32), 0.0)


def dropped_low_rank(
    x: Float[jax.Array, "*rows in"],
    a: Float[jax.Array, "in r"],
    b: Float[jax.Array, "r out"],
    seeds: UInt32[jax.Array, "b 2"],
    rate: float,
) -> Float[jax.Array, "*rows out"]:
    """`low_rank` of drop(x), with its own backward pass; seeds as in `dropout.drop`.

    The gradient is the usual one, but each product transposes another operand. XLA on
    CPU would transpose the wide cotangent with all the elementwise work fused into it;
    here only (n, r) arrays are transposed, which halves the step. The dropped x is kept
    for the gradient of a; the mask is computed again for the gradient of x.
    """
    form = _own if target.hand_written("low_rank") else _low_rank
    return form(x, a, b, seeds, rate)


def _low_rank(x, a, b, seeds, rate):
    return _forward(x, a, b, seeds, rate)[0]


_own = jax.custom_vjp(_low_rank, nondiff_argnums=(4,))


def _forward(x, a, b, seeds, rate):
    x = drop(x, seeds, rate)
    h = x @ a
    return h @ b, (x, a, b, seeds, h)


def _backward(rate, residuals, g):
    x, a, b, seeds, h = residuals  # x after dropout
    if target.platform() == "gpu":  # else XLA keeps the forward pass's mask
        seeds = jax.lax.optimization_barrier(seeds)
    dh = jnp.einsum("...d,rd->...r", g, b)
    db = jnp.einsum("...r,...d->rd", h, g)
    da = jnp.einsum("...r,...i->ri", dh, x).T
    dx = drop(jnp.einsum("...r,ir->...i", dh, a), seeds, rate)
    return dx, da, db, None


_own.defvjp(_forward, _backward)


def _scale(a: jax.Array, alpha: float) -> float:
    return alpha / a.shape[1]
