"""Kernels of a step compiled for a GPU, and what they take: XLA's estimates and ours.

XLA writes its estimate of a kernel's time into the compiled text where
`xla_gpu_collect_cost_model_stats` is set ("reification_cost"): of cuBLAS's products,
of most collectives and of fusions. It has none for cuDNN's kernels and for copies. Ours
for these is a roofline of their shapes, from half of the chip's peak and all of its
memory's bandwidth:

  attention     max(F / flops, B / bandwidth),  F = 4 b h n m c forward, 10 b h n m c
                backward (b images, h heads, n queries, m keys, c channels)
  convolution   the same with F = 2 outputs x the kernel's elements of each
  copy          2 x bytes / bandwidth

B is what they read and write. Kernels are taken one after the other, without what it
takes to start them; a loop's body as often as it runs, of a choice's branches that
with the most instructions.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from launch.planning import hlo
from launch.planning.chips import UTILISATION, Chip

ATTENTION, CONVOLUTION, COPY = "cuDNN attention", "cuDNN convolution", "copy"
COLLECTIVE = "collective"
_CALLS = ("while", "conditional", "call", "async-start")
# What runs no kernel by itself; what it calls is counted on its own.
_NONE = """parameter constant tuple get-tuple-element bitcast after-all partition-id
replica-id opt-barrier async-update""".split()


def count(text: str, chip: Chip) -> dict[str, Any]:
    """The kernels of a module compiled for a GPU, from `compiled.as_text()`.

    Returns:
      model_ms: XLA's estimates together.
      own_estimate_ms: ours by kind: cuDNN's kernels and copies.
      compute_seconds: both, without collectives.
      custom_calls: target, such as "__cudnn$fmhaSoftmax", -> how often it is called.
      kernels: by kind, those that take longest first: name, such as "loop fusion";
        count; model_seconds, XLA's; own_seconds, of those that XLA gives none; untimed,
        how many have neither.
      unknown_loops: loops whose length XLA does not tell: taken as run once.
    """
    module = hlo.parse(text)
    times, unknown = hlo.runs(module, lambda one: one.op in _CALLS)
    kinds: dict[str, dict[str, Any]] = {}
    targets: Counter[str] = Counter()
    for name, n in times.items():
        shapes = {one.name: one.result for one in module[name]}
        for one in module[name]:
            if not n or one.op in (*_CALLS, *_NONE) or one.op.endswith("-done"):
                continue
            target = one.find(r'custom_call_target="([^"]+)"')
            kind = _kind(one, target)
            own = _own(one, kind, target, shapes, chip)
            model = _model(one) if own is None else None
            empty = {"count": 0, "model_seconds": 0.0, "own_seconds": 0.0, "untimed": 0}
            sums = kinds.setdefault(kind, {"name": kind} | empty)
            sums["count"] += n
            sums["model_seconds"] += n * (model or 0.0)
            sums["own_seconds"] += n * (own or 0.0)
            sums["untimed"] += n * (own is None and model is None)
            targets[target] += n
    del targets[""]
    seconds = lambda kind: kind["model_seconds"] + kind["own_seconds"]  # noqa: E731
    found = sorted(kinds.values(), key=lambda k: (-seconds(k), -k["count"], k["name"]))
    return {
        "model_ms": 1000 * sum(k["model_seconds"] for k in found),
        "own_estimate_ms": {
            k["name"]: 1000 * k["own_seconds"] for k in found if k["own_seconds"]
        },
        "compute_seconds": sum(seconds(k) for k in found if k["name"] != COLLECTIVE),
        "custom_calls": dict(sorted(targets.items())),
        "kernels": found,
        "unknown_loops": len(set(unknown.values())),
    }


def _kind(one: hlo.Instruction, target: str) -> str:
    if one.op == "custom-call":
        if target.startswith("__cublas"):
            return "cuBLAS product"
        if target.startswith("__cudnn$fmha"):
            return f"{ATTENTION}, {'back' if 'Backward' in target else 'for'}ward"
        return CONVOLUTION if target.startswith("__cudnn$conv") else target
    if one.op == "fusion":
        if '"kind":"__triton' in one.rest:
            return "Triton fusion"
        kinds = {"kInput": "reduction fusion", "kLoop": "loop fusion"}
        return kinds.get(one.find(r"kind=(k\w+)"), "other fusion")
    op = one.op.removesuffix("-start")
    return COLLECTIVE if op in hlo.COLLECTIVES else COPY if op == "copy" else one.op


def _model(one: hlo.Instruction) -> float | None:
    """XLA's estimate in seconds; for Triton's fusions by its model of indexing."""
    each = json.loads(one.find(r'"reification_cost":(\[.*?\])') or "[]")
    costs = {cost["name"]: 1e-6 * float(cost.get("exec_time_us", 0)) for cost in each}
    triton = '"kind":"__triton' in one.rest and "indexing-cost-model" in costs
    return costs.get("indexing-cost-model" if triton else "sol")


def _own(
    one: hlo.Instruction, kind: str, target: str, shapes: dict[str, str], chip: Chip
) -> float | None:
    """Our estimate in seconds, where XLA has none."""
    if kind == COPY:
        # An asynchronous one gives its target, its source and a context.
        arrays = hlo.arrays(one.result)[: None if one.op == "copy" else 1]
        flops, size = 0, 2 * sum(bits for _, _, bits in arrays) / 8
    elif kind.startswith(ATTENTION) or kind == CONVOLUTION:
        names = re.findall(r"%([\w.-]+)", one.rest.split(")")[0])
        moved = [*(shapes[name] for name in names), one.result]
        work = _convolution if kind == CONVOLUTION else _attention
        flops, size = work(one, target, moved), sum(map(_bytes, moved))
    else:
        return None
    return max(flops / (UTILISATION * chip.peak_flops), size / chip.hbm_bandwidth)


def _attention(one: hlo.Instruction, target: str, moved: list[str]) -> float:
    """FLOPs of cuDNN's attention, from its queries' and its scores' shapes."""
    scores = one.find(r'"intermediate_tensor_shape":.*?"dimensions": ?\[(.*?)\]')
    size = math.prod(int(n) for n in re.findall(r"\d+", scores))
    products = 5 if "Backward" in target else 2
    return 2 * products * size * hlo.arrays(moved[0])[0][1][-1]


def _convolution(one: hlo.Instruction, target: str, moved: list[str]) -> float:
    """FLOPs of one of cuDNN's convolutions, a gradient or not."""
    inputs, kernel, outputs = moved[0], moved[1], moved[-1]
    if "BackwardFilter" in target:
        kernel, outputs = outputs, kernel
    elif "BackwardInput" in target:
        outputs = inputs
    weights = hlo.arrays(kernel)[0][1]
    out = one.find(r"dim_labels=\w+_(\w+)->").index("o")
    each = math.prod(weights) / weights[out]
    return 2 * math.prod(hlo.arrays(outputs)[0][1]) * each


def _bytes(shape: str) -> float:
    """Bytes of all arrays in a shape, without workspaces, which are of u8."""
    return sum(bits for dtype, _, bits in hlo.arrays(shape) if dtype != "u8") / 8
