"""A compiled module's text: its computations, how often each runs, sizes of arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(r"\b\w+=(?:\{([^{}]*)\}|(%?[\w.-]+))")  # body=%a, calls={%a, %b}
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed module.

    Attributes:
      computations: name -> its lines; the entry's name is "".
      times: name -> how often it runs in a call of the module; None = XLA does not
        tell, 0 = nothing is seen to call it.
    """

    computations: dict[str, list[str]]
    times: dict[str, int | None]

    def rounds(self, line: str) -> int | None:
        """How often the body of the loop on this line runs; None = XLA does not tell.

        As XLA writes it, or as the loop's condition counts (for TPUs).
        """
        return _rounds(line, self.computations)

    def called(self, line: str) -> list[str]:
        """The computations that an instruction names."""
        return _called(line, self.computations)


@functools.lru_cache(maxsize=1)
def parse(text: str) -> Module:
    """Parses `compiled.as_text()`; the last text is not parsed twice."""
    computations = _computations(text)
    return Module(computations, _executions(computations))


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], int]]:
    """(dtype, dimensions, bits) of every array of a written shape."""
    found = []
    for name, width, dims in _ARRAY.findall(shape):
        sizes = tuple(int(d) for d in dims.split(",") if d)
        bits = 8 if name == "pred" else int(width)
        found.append((name, sizes, math.prod(sizes) * bits))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = found.setdefault("" if head[1] else head[2], [])
        elif line.startswith("}"):
            lines = []
        else:
            lines.append(line)
    return found


def _called(line: str, computations: dict[str, list[str]]) -> list[str]:
    found = []
    for match in _CALLED.finditer(line):
        names = match[1] if match[2] is None else match[2]
        found += names.replace("%", "").split(", ")
    return [name for name in found if name in computations]


def _executions(computations: dict[str, list[str]]) -> dict[str, int | None]:
    calls: dict[str, list[tuple[str, int | None]]] = {}
    for name, lines in computations.items():
        for line in lines:
            rounds: int | None = 1
            if "-done(" in line or "-update(" in line:
                continue  # of an asynchronous call, whose start is counted
            if " while(" in line:
                rounds = _rounds(line, computations)
            for called in _called(line, computations):
                calls.setdefault(called, []).append((name, rounds))

    def times(name: str) -> int | None:
        if not name:
            return 1
        each = [(times(caller), rounds) for caller, rounds in calls.get(name, [])]
        if any(None in pair for pair in each):
            return None
        return sum(outer * rounds for outer, rounds in each)

    return {name: times(name) for name in computations}


def _rounds(line: str, computations: dict[str, list[str]]) -> int | None:
    known = _ROUNDS.search(line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    text = "\n".join(computations.get(condition[1], []) if condition else [])
    bounds = re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)
    counts_up = re.search(r"ROOT .* compare\(.*direction=LT", text)
    return int(bounds[0]) if counts_up and len(bounds) == 1 else None
