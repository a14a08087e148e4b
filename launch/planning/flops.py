"""Matrix products, convolutions and gathers of a traced step, counted by hand.

XLA counts a loop's body once and knows nothing of forward and backward. This counts
what is traced: loops by their length, recomputation where it is, and what stands in a
`shard_map` on every device. Elementwise work, a percent or so, is not counted.
"""

from __future__ import annotations

import math

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def per_chip(function, args: tuple, devices: int) -> float:
    """FLOPs of one of `devices` chips that share a call's work evenly."""
    return _count(_traced(function, args), devices)


def gathered(function, args: tuple) -> int:
    """Bytes a device of what a call sends by itself: gathers, and sums back of them.

    The collectives of its `shard_map`s, of the size of their larger side. Those that
    XLA adds, the sums of gradients, are in no trace.
    """
    return _gathered(_traced(function, args))


_SENT = ("all_gather", "reduce_scatter", "psum", "pmax", "pmin", "all_to_all")


def _gathered(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name.removesuffix("_invariant") in _SENT:
            sides = (equation.invars, equation.outvars)
            total += max(sum(map(_bytes, side)) for side in sides)
        rounds = params["length"] if name == "scan" else 1
        total += rounds * sum(map(_gathered, _inner(params)))
    return total


def _bytes(variable) -> int:
    return variable.aval.size * variable.aval.dtype.itemsize


def has_loops(function, args: tuple) -> bool:
    """Whether there is a loop with products in it, which XLA would count once."""
    return _loops(_traced(function, args))


def _traced(function, args: tuple):
    """The jaxpr of a function; of a jitted one its own, for it may have options.

    Without what no output needs, such as gradients of frozen weights: XLA drops it.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    jaxpr = jitted.trace(*args).jaxpr.jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _loops(jaxpr) -> bool:
    for equation in jaxpr.eqns:
        inner = list(_inner(equation.params))
        repeated = equation.primitive.name in ("scan", "while")
        if repeated and equation.params.get("length", 2) > 1:
            if any(_count(each, 1) for each in inner):
                return True
        if any(map(_loops, inner)):
            return True
    return False


def _count(jaxpr, share: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            inner = math.prod(lhs[i] for i in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner / share
        elif name == "conv_general_dilated":
            total += _convolution(equation) / share
        elif name.startswith("dot_product_attention_"):  # cuDNN's
            total += _attention(equation) / share
        elif name == "scan" and params["length"] > 1:
            total += params["length"] * _count(params["jaxpr"].jaxpr, share)
            continue
        elif name == "pallas_call":
            programs = math.prod(params["grid_mapping"].grid)
            total += programs * _count(params["jaxpr"], share)
            continue
        elif name == "cond":
            total += max(_count(b.jaxpr, share) for b in params["branches"])
            continue
        inner_share = 1 if name == "shard_map" else share
        for inner in _inner(params):
            total += _count(inner, inner_share)
    return total


def _convolution(equation) -> float:
    """2 x outputs x what each sums over; zeros between dilated inputs are not work."""
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    each = math.prod(kernel[i] for i in numbers.rhs_spec[1:])
    outputs = math.prod(equation.outvars[0].aval.shape)
    dilation = math.prod(equation.params["lhs_dilation"])
    return 2 * outputs * each / dilation


def _attention(equation) -> float:
    """Two products forward; backward five, for the scores are computed again."""
    queries, keys = (variable.aval.shape for variable in equation.invars[:2])
    products = 5 if "_bwd" in equation.primitive.name else 2
    return 2.0 * products * math.prod(queries) * keys[1]


def _inner(params: dict):
    """The jaxprs that an equation's parameters hold."""
    for value in jax.tree.leaves(
        list(params.values()),
        is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)),
    ):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
