"""Low-rank adaptation as a transform of any linen model (Hu 2021).

The model's code does not know of it: adapters live in their own tree and are applied
by intercepting `nn.Dense`. For W (in, out) an adapter is a (in, r) and b (r, out):

  y = x W + bias + (alpha / r) * (drop(x) a) b

Example:
  adapters = lora.init(key, params, targets=("qkv",), rank=8)
  with lora.applied(adapters, alpha=16, dropout=0.1, key=step_key):
    tokens = model.apply({"params": params}, images)     # training
  merged = lora.merge(params, adapters, alpha=16)         # evaluation and export

Merging equals applying without dropout. Dropout acts on the adapter's input alone, so
training cannot be written as a change of weights.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from pacx_jax.types import PacxError, Params


def init(key: jax.Array, params: Params, targets: Sequence[str], rank: int) -> Params:
    """Adapters for every dense kernel whose module is named in `targets`.

    a ~ U(+-1/sqrt(in)) (peft's Kaiming-uniform with a = sqrt 5), b = 0, so that the
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
    """params with W + (alpha / r) a b at every adapted kernel."""
    flat = dict(flax.traverse_util.flatten_dict(params))
    pairs = flax.traverse_util.flatten_dict(adapters)
    for path in [p[:-1] for p in pairs if p[-1] == "a"]:
        a, b = pairs[path + ("a",)], pairs[path + ("b",)]
        flat[path + ("kernel",)] = flat[path + ("kernel",)] + _scale(a, alpha) * (a @ b)
    return flax.traverse_util.unflatten_dict(flat)


@contextlib.contextmanager
def applied(
    adapters: Params,
    *,
    alpha: float,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    rows: jax.Array | None = None,
):
    """Within this context, `model.apply` runs with the adapters added.

    `dropout` > 0 needs `key`. A row's mask depends on the key, the module's name and
    the row's number in the global batch, `rows` (b,) (default: 0 to b - 1), alone.
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
        x, a, b = args[0], pairs[path + ("a",)], pairs[path + ("b",)]
        if dropout:
            k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            numbers = jnp.arange(len(x)) if rows is None else rows
            each = jax.vmap(jax.random.fold_in, (None, 0))(k, numbers)
            keep = jax.vmap(
                lambda k: jax.random.bernoulli(k, 1 - dropout, x.shape[1:])
            )(each)
            x = jnp.where(keep, x / (1 - dropout), 0)
        x, a, b = (v.astype(y.dtype) for v in (x, a, b))
        return y + _scale(a, alpha) * low_rank(x, a, b)

    with nn.intercept_methods(interceptor):
        yield


@jax.custom_vjp
def low_rank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """(x a) b for x (..., in), a (in, r), b (r, out), with a backward of its own.

    Its gradient is the usual one; what differs is which operand of each product is
    transposed. XLA on CPU would transpose the wide cotangent, together with all the
    elementwise work fused into it; here only (n, r) arrays are. It halves the step.
    """
    return (x @ a) @ b


def _low_rank_forward(x, a, b):
    h = x @ a
    return h @ b, (x, a, b, h)


def _low_rank_backward(residuals, g):
    x, a, b, h = residuals
    dh = jnp.einsum("...d,rd->...r", g, b)
    db = jnp.einsum("...r,...d->rd", h, g)
    da = jnp.einsum("...r,...i->ri", dh, x).T
    return jnp.einsum("...r,ir->...i", dh, a), da, db


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def _scale(a: jax.Array, alpha: float) -> float:
    return alpha / a.shape[1]
