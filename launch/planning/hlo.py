"""A compiled module's text: how often each instruction runs, collectives, kernels."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from launch.planning.chips import Chip
from pacx_jax.errors import PacxError

COLLECTIVES = """all-reduce all-gather reduce-scatter all-to-all collective-permute
collective-broadcast ragged-all-to-all""".split()
COLLECTIVE = "collective"
_CONTROL = ("while", "conditional", "call", "async-start")  # these call kernels
_ENDS = ("-done", "-update")
_NONE = """parameter constant tuple get-tuple-element bitcast after-all partition-id
replica-id opt-barrier""".split()
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)"
)
_CALLED = re.compile(r"\b\w+=(?:\{([^{}]*)\}|(%?[\w.-]+))")  # body=%a, calls={%a, %b}


class Instruction(NamedTuple):
    """One line: NAME = RESULT OP(REST."""

    name: str
    result: str
    op: str
    rest: str

    def find(self, pattern: str) -> str:
        """The first group of a pattern among operands and attributes, or ""."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""


class Collective(NamedTuple):
    """All collectives of one kind and group size in a step."""

    kind: str  # of COLLECTIVES
    group: int  # chips that take part in each
    count: int  # in a step, loops unrolled
    bytes_per_chip: int  # of results, or operands where these are larger, summed


def runs(text: str) -> Iterator[tuple[Instruction, int, bool, str]]:
    """The instructions of `compiled.as_text()`, where a call of the module has them.

    Yields:
      an instruction; how often it runs; whether it is no kernel, within a fusion or in
      what a reduction applies; and the loop of unknown length around it, or "": that
      is taken as run once, of a choice's branches the one with the most instructions.
    """
    module: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = module.setdefault("" if head[1] else head[2], [])
        elif found := _INSTRUCTION.match(line):
            lines.append(Instruction(*found.groups()))

    def visit(computation: str, times: int, fused: bool, loop: str):
        for one in module.get(computation, ()):
            yield one, times, fused, loop
            if one.op.endswith(_ENDS):  # names what its start has called
                continue
            each, inside, called = times, loop, []
            for several, single in _CALLED.findall(one.rest):
                called += re.findall(r"[\w.-]+", several or single)
            called = [name for name in called if name in module]
            if one.op == "while":
                rounds = _rounds(one, module)
                each, inside = times * (rounds or 1), loop if rounds else one.name
            elif one.op == "conditional":
                called = [max(called, key=lambda branch: len(module[branch]))]
            for name in called:
                yield from visit(name, each, fused or one.op not in _CONTROL, inside)

    return visit("", 1, False, "")


def _rounds(loop: Instruction, module: dict[str, list[Instruction]]) -> int:
    """How often a loop's body runs; 0 = XLA does not tell.

    As XLA writes it, or as the loop's condition counts (for TPUs).
    """
    if known := loop.find(r'"known_trip_count":\{"n":"(\d+)"\}'):
        return int(known)
    condition = module.get(loop.find(r"condition=%?([\w.-]+)"), [])
    bounds = [one.find(r"^(\d+)\)") for one in condition if one.op == "constant"
              and one.result.startswith("s32[]")]  # fmt: skip
    counts_up = condition[-1:] and "direction=LT" in condition[-1].rest
    return int(bounds[0]) if counts_up and len(bounds) == 1 else 0


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], int]]:
    """(dtype, dimensions, bytes) of every array of a written shape."""
    found = []
    for name, width, dims in _ARRAY.findall(shape):
        sizes = tuple(int(d) for d in dims.split(",") if d)
        found.append((name, sizes, math.prod(sizes) * int(width or 8) // 8))
    return found


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled module, by kind and group size.

    Args:
      text: `compiled.as_text()`: after partitioning, so that shapes are of one chip.
      devices: of the whole program, the group where none is named.

    Raises:
      PacxError: a loop with collectives whose number of rounds XLA does not tell.
    """
    counts: Counter[tuple[str, int]] = Counter()
    sizes: Counter[tuple[str, int]] = Counter()
    chains = set()
    for one, times, _, loop in runs(text):
        kind = one.op.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        # One that XLA for TPUs runs beside others stands in each of their fusions.
        chain = re.search(r'channel_id=(\d+),.*chain_id="(\d+)"', one.rest)
        if chain and chain.groups() in chains:
            continue
        chains.add(chain and chain.groups())
        if loop:
            raise PacxError(f"{one.name} is sent in {loop}, a loop of unknown length")
        key = kind, _group(one.rest, devices)
        counts[key] += times
        sizes[key] += times * _size(one, *key)
    return [Collective(*key, counts[key], sizes[key]) for key in sorted(counts)]


def _group(line: str, devices: int) -> int:
    """How many devices take part.

    From replica_groups={{0,1},...}, [2,4]<=[8], or mesh['x'=2,'y'=4] {'y'}, in which
    'y':(1)2 is a part of an axis, and the devices' order may stand before {'y'}.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return listed[1].count(",") + 1 if listed else devices


def _size(one: Instruction, kind: str, group: int) -> int:
    """Bytes of a collective.

    The result of an asynchronous one holds its operands too, but for an all-reduce's.
    """
    total = sum(size for _, _, size in arrays(one.result))
    if one.op == kind or kind == "all-reduce":
        return total * (group if kind == "reduce-scatter" else 1)
    if kind in ("all-gather", "reduce-scatter"):  # one side is 1/group of the other
        return total * group // (group + 1)
    return total // 2


def kernels(text: str, chip: Chip) -> dict[str, Any]:
    """The kernels of a module compiled for a GPU, from `compiled.as_text()`.

    XLA writes its estimate of a kernel's time into the text: of cuBLAS's products, most
    collectives and fusions. It has none for cuDNN's kernels and for copies. Ours for
    these is what the memory needs for their operands and results, at least. Kernels are
    taken one after the other, without what it takes to start them.

    Returns:
      model_ms: XLA's estimates together.
      own_estimate_ms: ours by kind, such as "copy".
      kernel_seconds: both, without collectives.
      custom_calls: target, such as "__cudnn$fmhaSoftmax", -> how often it is called.
      kernels: by kind, such as "loop fusion" or a custom call's target, the longest
        first: count; model_seconds, XLA's; own_seconds, where XLA gives none.
      unknown_loops: loops whose length XLA does not tell: taken as run once.
    """
    kinds: dict[str, Counter] = {}
    shapes, loops = {}, set()
    for one, n, fused, loop in runs(text):
        if fused:
            continue
        shapes[one.name] = one.result
        loops.add(loop)
        if one.op in (*_CONTROL, *_NONE) or one.op.endswith(_ENDS):
            continue
        kind, model, own = _kind(one), _model(one), 0.0
        if model is None and kind != COLLECTIVE:
            own = _bytes(one, shapes) / chip.hbm_bandwidth
        sums = kinds.setdefault(kind, Counter())
        sums.update(count=n, model_seconds=n * (model or 0.0), own_seconds=n * own)
    seconds = {k: s["model_seconds"] + s["own_seconds"] for k, s in kinds.items()}
    order = sorted(kinds, key=lambda k: (-seconds[k], k))
    owns = {k: 1000 * kinds[k]["own_seconds"] for k in order}
    return {
        "model_ms": 1000 * sum(s["model_seconds"] for s in kinds.values()),
        "own_estimate_ms": {k: ms for k, ms in owns.items() if ms},
        "kernel_seconds": sum(s for k, s in seconds.items() if k != COLLECTIVE),
        "custom_calls": {k: kinds[k]["count"] for k in order if k.startswith("__")},
        "kernels": [{"name": k} | kinds[k] for k in order],
        "unknown_loops": len(loops - {""}),
    }


def _kind(one: Instruction) -> str:
    if one.op == "custom-call":
        return one.find(r'custom_call_target="([^"]+)"')
    if one.op == "fusion":
        if '"kind":"__triton' in one.rest:
            return "Triton fusion"
        kinds = {"kInput": "reduction fusion", "kLoop": "loop fusion"}
        return kinds.get(one.find(r"kind=(k\w+)"), "other fusion")
    op = one.op.removesuffix("-start")
    return COLLECTIVE if op in COLLECTIVES else op


def _model(one: Instruction) -> float | None:
    """XLA's estimate in seconds; for Triton's fusions by its model of indexing."""
    each = json.loads(one.find(r'"reification_cost":(\[.*?\])') or "[]")
    costs = {cost["name"]: 1e-6 * float(cost.get("exec_time_us", 0)) for cost in each}
    triton = '"kind":"__triton' in one.rest and "indexing-cost-model" in costs
    return costs.get("indexing-cost-model" if triton else "sol")


def _bytes(one: Instruction, shapes: dict[str, str]) -> int:
    """What a kernel reads and writes, without workspaces, which are of u8."""
    found = arrays(one.result)
    if not one.op.endswith("-start"):  # whose result holds its operands
        names = re.findall(r"%([\w.-]+)", one.rest.split(")")[0])
        found += [each for name in names for each in arrays(shapes.get(name, ""))]
    return sum(size for dtype, _, size in found if dtype != "u8")
