"""A compiled module's text: its instructions, how often each runs, its collectives."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

COLLECTIVES = """all-reduce all-gather reduce-scatter all-to-all collective-permute
collective-broadcast ragged-all-to-all""".split()
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


Module = dict[str, list[Instruction]]  # computation -> its lines; the entry is ""


def parse(text: str) -> Module:
    """The computations of `compiled.as_text()`."""
    module: Module = {}
    lines: list[Instruction] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = module.setdefault("" if head[1] else head[2], [])
        elif found := _INSTRUCTION.match(line):
            lines.append(Instruction(*found.groups()))
    return module


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], int]]:
    """(dtype, dimensions, bits) of every array of a written shape."""
    found = []
    for name, width, dims in _ARRAY.findall(shape):
        sizes = tuple(int(d) for d in dims.split(",") if d)
        found.append((name, sizes, math.prod(sizes) * int(width or 8)))
    return found


def called(one: Instruction, module: Module) -> list[str]:
    """The computations that an instruction names."""
    found = []
    for several, single in _CALLED.findall(one.rest):
        found += re.findall(r"[\w.-]+", several or single)
    return [name for name in found if name in module]


def rounds(loop: Instruction, module: Module) -> int:
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


def runs(
    module: Module, follows: Callable[[Instruction], bool]
) -> tuple[Counter[str], dict[str, str]]:
    """How often each computation runs in a call of the module.

    Args:
      follows: whether what an instruction calls is of interest.

    Returns:
      computation -> times. A loop of unknown length is taken as run once; of a choice's
      branches that with the most instructions runs, the others 0 times.
      computation -> the loop of unknown length that it stands in, if it does.
    """
    times: Counter[str] = Counter()
    unknown: dict[str, str] = {}

    def visit(name: str, n: int, loop: str) -> None:
        times[name] += n
        if loop:
            unknown[name] = loop
        for one in filter(follows, module[name]):
            names, each, inside = called(one, module), n, loop
            if one.op == "while":
                told = rounds(one, module)
                each, inside = n * (told or 1), loop if told else one.name
            if one.op == "conditional":
                *others, longest = sorted(set(names), key=lambda b: len(module[b]))
                names = [longest]
                for other in others:
                    visit(other, 0, inside)
            for each_name in names:
                visit(each_name, each, inside)

    visit("", 1, "")
    return times, unknown


def collectives(text: str, devices: int) -> list[dict[str, Any]]:
    """The collectives of a compiled module, by kind and group size.

    Args:
      text: `compiled.as_text()`: after partitioning, so that shapes are of one chip.
      devices: of the whole program, the group where none is named.

    Returns:
      kind: of COLLECTIVES.
      group: chips that take part in each.
      count: how often in a step, loops unrolled.
      bytes_per_chip: what one chip holds of the result, or of the operand where that is
        larger (a reduce-scatter), summed.
      dtypes: the same bytes by dtype, such as "bf16".

    Raises:
      ValueError: a loop with collectives whose number of rounds XLA does not tell.
    """
    module, chains = parse(text), set()
    # The end of an asynchronous call names what its start has called.
    ends = ("-done", "-update")
    times, unknown = runs(module, lambda one: not one.op.endswith(ends))
    found = defaultdict(Counter)
    for name, lines in module.items():
        for one in lines:
            kind = one.op.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            # One that XLA for TPUs runs beside others stands in each of their fusions.
            chain = re.search(r'channel_id=(\d+),.*chain_id="(\d+)"', one.rest)
            if chain and chain.groups() in chains:
                continue
            chains.add(chain and chain.groups())
            if name in unknown or name not in times:
                why = "in a loop of unknown length" if name in times else "never called"
                raise ValueError(f"a collective {why}: {one.name} in {name}")
            group = _group(one.rest, devices)
            sums = found[kind, group]
            sums["count"] += times[name]
            for dtype, size in _volumes(one, kind, group).items():
                sums[dtype] += times[name] * size
    return [
        {
            "kind": kind,
            "group": group,
            "count": n,
            "bytes_per_chip": sums.total(),
            "dtypes": dict(sorted(sums.items())),
        }
        for (kind, group), sums in sorted(found.items())
        if (n := sums.pop("count"))
    ]


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


def _volumes(one: Instruction, kind: str, group: int) -> dict[str, int]:
    """dtype -> bytes of a collective.

    The result of an asynchronous one holds its operands too, but for an all-reduce's.
    """
    bits = Counter()
    for dtype, _, size in arrays(one.result):
        bits[dtype] += size
    times, parts = 1, 1
    if one.op != kind and kind in ("all-gather", "reduce-scatter"):
        times, parts = group, group + 1  # operand and result: one is 1/group
    elif one.op != kind and kind != "all-reduce":
        parts = 2
    elif kind == "reduce-scatter":
        times = group
    return {dtype: total // 8 * times // parts for dtype, total in bits.items()}
