"""Matrix products, convolutions and gathers of a traced step, counted by hand.

XLA counts a loop's body once, and nothing of what our kernels and cuDNN's do. This
counts what is traced: loops by their length, recomputation where it is, and what stands
in a `shard_map` on every device. Elementwise work, a percent or so, is not counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jax.extend import core
from jax.interpreters import partial_eval

_SENT = ("all_gather", "reduce_scatter", "psum", "pmax", "pmin", "all_to_all")


class Counts(NamedTuple):
    """What one device of a traced call does.

    Attributes:
      flops: of products; the longest of a choice's branches counts.
      gathered: bytes of the collectives of its `shard_map`s, of their larger side:
        gathers, and sums back of them; not of the sums of gradients, which XLA adds, or
        a `shard_map` that holds a weight whole.
    """

    flops: float
    gathered: int


def count(function, args: tuple, devices: int) -> Counts:
    """Counts of one of `devices` chips that share a jitted function's work evenly.

    Without what no output needs, such as gradients of frozen weights: XLA drops it.
    """
    jaxpr = function.trace(*args).jaxpr.jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed, devices)


def _count(jaxpr, share: int) -> Counts:
    flops, gathered = 0.0, 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        flops += _products(equation) / share
        if name.removesuffix("_invariant") in _SENT and not _of_weight(equation):
            sides = (equation.invars, equation.outvars)
            sizes = ([v.aval.size * v.aval.dtype.itemsize for v in s] for s in sides)
            gathered += max(map(sum, sizes))
        rounds = params["length"] if name == "scan" else 1
        if name == "pallas_call":
            rounds = math.prod(params["grid_mapping"].grid)
        inner = [_count(each, 1 if name == "shard_map" else share)
                 for each in core.jaxprs_in_params(params)]  # fmt: skip
        for each in [max(inner)] if name == "cond" else inner:
            flops += rounds * each.flops
            gathered += rounds * each.gathered
    return Counts(flops, gathered)


def _of_weight(equation) -> bool:
    """Whether it sums matrices: a weight's gradient, where rows of a batch are gathered
    or scattered, and only one number of each is summed."""
    summed = equation.primitive.name.removesuffix("_invariant") == "psum"
    return summed and any(v.aval.ndim > 1 for v in equation.invars)


def _products(equation) -> float:
    """FLOPs of the equation itself, on all devices."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        each = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    elif name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec[1:]
        each = math.prod(equation.invars[1].aval.shape[i] for i in kernel)
        each /= math.prod(params["lhs_dilation"])  # zeros between inputs are no work
    elif name.startswith("dot_product_attention_"):
        # cuDNN's: two products forward; backward five, the scores are computed again.
        queries, keys = (variable.aval.shape for variable in equation.invars[:2])
        return 2.0 * (5 if "_bwd" in name else 2) * math.prod(queries) * keys[1]
    else:
        return 0.0
    return 2 * math.prod(equation.outvars[0].aval.shape) * each
