"""A compiled module's text: its instructions, how often each runs, its collectives."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = """all-reduce all-gather reduce-scatter all-to-all collective-permute
collective-broadcast ragged-all-to-all""".split()
_CONTROL = ("while", "conditional", "call", "async-start")
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
      an instruction; how often it runs; whether it stands within a fusion, or in what
      a reduction applies, and so is no kernel; and the loop of unknown length around
      it, or "": such a loop is taken as run once. Of a choice's branches that with the
      most instructions runs.
    """
    module: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = module.setdefault("" if head[1] else head[2], [])
        elif found := _INSTRUCTION.match(line):
            lines.append(Instruction(*found.groups()))

    def visit(computation: str, times: int, fused: bool, loop: str):
        for one in module[computation]:
            if one.op.endswith(("-done", "-update")):  # names what its start has called
                continue
            yield one, times, fused, loop
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
      ValueError: a loop with collectives whose number of rounds XLA does not tell.
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
            raise ValueError(f"{one.name}: a collective in {loop}, of unknown length")
        key = kind, _group(one.rest, devices)
        counts[key] += times
        sizes[key] += times * _size(one, *key)
    return [Collective(*key, counts[key], sizes[key]) for key in sorted(counts)]


def _group(line: str, devices: int) -> int:
    """How many devices take part.

    From replica_groups={{0,1},...}, [2,4]<=[8], or mesh['x'=2,'y'=4] {'y'}, in which
    'y':(1)2 is a part of an axis.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
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
