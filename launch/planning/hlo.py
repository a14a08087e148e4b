"""A compiled module's text: its instructions, how often each runs, sizes of arrays."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

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
