"""Kernels of a step compiled for a GPU, and what they take: XLA's estimates and ours.

XLA writes its estimate of a kernel's time into the compiled text where
`xla_gpu_collect_cost_model_stats` is set ("reification_cost"): of cuBLAS's products,
of most collectives and of fusions. It has none for cuDNN's kernels and for copies. Ours
for these is the time that the memory needs for what they read and write, at least.
Kernels are taken one after the other, without what it takes to start them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from launch.planning import hlo
from launch.planning.chips import Chip

COLLECTIVE = "collective"
# What runs no kernel by itself; what it calls is counted on its own.
_NONE = """parameter constant tuple get-tuple-element bitcast after-all partition-id
replica-id opt-barrier while conditional call async-start""".split()


def count(text: str, chip: Chip) -> dict[str, Any]:
    """The kernels of a module compiled for a GPU, from `compiled.as_text()`.

    Returns:
      model_ms: XLA's estimates together.
      own_estimate_ms: ours by kind, such as "copy".
      kernel_seconds: both, without collectives.
      custom_calls: target, such as "__cudnn$fmhaSoftmax", -> how often it is called.
      kernels: by kind, such as "loop fusion" or a custom call's target, those that take
        longest first: count; model_seconds, XLA's; own_seconds, ours, where XLA's is
        missing.
      unknown_loops: loops whose length XLA does not tell: taken as run once.
    """
    kinds: dict[str, Counter] = {}
    shapes, loops = {}, set()
    for one, n, fused, loop in hlo.runs(text):
        if fused:
            continue
        shapes[one.name] = one.result
        loops.add(loop)
        if one.op in _NONE:
            continue
        kind, model = _kind(one), _model(one)
        own = _bytes(one, shapes) / chip.hbm_bandwidth if model is None else 0.0
        sums = kinds.setdefault(kind, Counter())
        sums["count"] += n
        sums["model_seconds"] += n * (model or 0.0)
        sums["own_seconds"] += n * own
    seconds = {k: s["model_seconds"] + s["own_seconds"] for k, s in kinds.items()}
    order = sorted(kinds, key=lambda k: (-seconds[k], -kinds[k]["count"], k))
    owns = {k: 1000 * kinds[k]["own_seconds"] for k in order}
    return {
        "model_ms": 1000 * sum(s["model_seconds"] for s in kinds.values()),
        "own_estimate_ms": {k: ms for k, ms in owns.items() if ms},
        "kernel_seconds": sum(s for k, s in seconds.items() if k != COLLECTIVE),
        "custom_calls": {k: kinds[k]["count"] for k in order if k.startswith("__")},
        "kernels": [{"name": k} | kinds[k] for k in order],
        "unknown_loops": len(loops - {""}),
    }


def _kind(one: hlo.Instruction) -> str:
    if one.op == "custom-call":
        return one.find(r'custom_call_target="([^"]+)"')
    if one.op == "fusion":
        if '"kind":"__triton' in one.rest:
            return "Triton fusion"
        kinds = {"kInput": "reduction fusion", "kLoop": "loop fusion"}
        return kinds.get(one.find(r"kind=(k\w+)"), "other fusion")
    op = one.op.removesuffix("-start")
    return COLLECTIVE if op in hlo.COLLECTIVES else op


def _model(one: hlo.Instruction) -> float | None:
    """XLA's estimate in seconds; for Triton's fusions by its model of indexing."""
    each = json.loads(one.find(r'"reification_cost":(\[.*?\])') or "[]")
    costs = {cost["name"]: 1e-6 * float(cost.get("exec_time_us", 0)) for cost in each}
    triton = '"kind":"__triton' in one.rest and "indexing-cost-model" in costs
    return costs.get("indexing-cost-model" if triton else "sol")


def _bytes(one: hlo.Instruction, shapes: dict[str, str]) -> int:
    """What a kernel reads and writes, without workspaces, which are of u8."""
    found = hlo.arrays(one.result)
    if not one.op.endswith("-start"):  # whose result holds its operands
        names = re.findall(r"%([\w.-]+)", one.rest.split(")")[0])
        found += [each for name in names for each in hlo.arrays(shapes.get(name, ""))]
    return sum(size for dtype, _, size in found if dtype != "u8")
