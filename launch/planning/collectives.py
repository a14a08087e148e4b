"""Collectives of a compiled step, counted from its text, and the time they take.

Bytes are what one chip holds of a collective's result, or of its operand where that is
larger (a reduce-scatter): the `V` of the ring formulas below.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from launch.planning.chips import Ring

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# %name = RESULT kind(operands), attributes. The -done of an asynchronous one is no
# other collective.
_COLLECTIVE = re.compile(
    rf"^\s*(?:ROOT )?\S+ = (?P<result>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})"
    r"(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(r"\b\w+=(?:\{([^{}]*)\}|(%?[\w.-]+))")  # body=%a, calls={%a, %b}
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size in a step.

    Attributes:
      kind: of KINDS.
      group: chips that take part in each.
      count: how often in a step, loops unrolled.
      bytes_per_chip: V summed over them.
    """

    kind: str
    group: int
    count: int
    bytes_per_chip: int

    def seconds(self, rings: Sequence[Ring]) -> float:
        """The time of all of them, one after the other, on a ring of each axis.

        A reduce-scatter goes round the first axis, then with a share 1/n of its bytes
        round the second, and so on; an all-gather comes back the other way, and an
        all-reduce is both:

          T = r sum_i V / (n_1 ... n_{i-1}) (n_i - 1) / n_i / W_i + r hops,  r = 1 or 2

        W is what a ring carries, `predict.rings_of` says how many links that are.

        Args:
          rings: axes of the chips that take part, the fastest first.
        """
        if self.kind in ("collective-permute", "collective-broadcast"):
            ring = min(rings, key=lambda r: r.bytes_per_second)
            hops = ring.hop_seconds * self.count
            return self.bytes_per_chip / ring.bytes_per_second + hops
        rounds = 2 if self.kind == "all-reduce" else 1
        total, share = 0.0, float(self.bytes_per_chip)
        for ring in rings:
            total += share * (ring.size - 1) / ring.size / ring.bytes_per_second
            total += self.count * (ring.size - 1) * ring.hop_seconds
            share /= ring.size
        return rounds * total


def count(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled module.

    Args:
      text: `compiled.as_text()`: after partitioning, so that shapes are of one chip.
      devices: of the whole program, the group where none is named.

    Raises:
      ValueError: a loop with collectives whose number of rounds XLA does not tell.
    """
    computations = _computations(text)
    times = _executions(computations)
    found: dict[tuple[str, int], list[int]] = {}
    chains = set()
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if not match:
                continue
            # One that XLA for TPUs runs beside others stands in each of their fusions.
            chain = re.search(r'channel_id=(\d+),.*chain_id="(\d+)"', line)
            if chain and chain.groups() in chains:
                continue
            if chain:
                chains.add(chain.groups())
            if not times[name]:
                why = "in a loop of unknown length"
                if times[name] == 0:
                    why = f"in {name}, which nothing is seen to call"
                raise ValueError(f"a collective {why}: {line}")
            kind, group = match["kind"], _group(line, devices)
            size = _volume(kind, match["result"], bool(match["start"]), group)
            entry = found.setdefault((kind, group), [0, 0])
            entry[0] += times[name]
            entry[1] += times[name] * size
    return [Collective(*key, *value) for key, value in sorted(found.items())]


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines of every computation; the entry's name is ""."""
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


def _executions(computations: dict[str, list[str]]) -> dict[str, int | None]:
    """How often each computation runs in a step; None = XLA does not tell."""
    calls: dict[str, list[tuple[str, int | None]]] = {}
    for name, lines in computations.items():
        for line in lines:
            rounds: int | None = 1
            if " while(" in line:
                rounds = _rounds(line, computations)
            for match in _CALLED.finditer(line):
                names = match[1] if match[2] is None else match[2]
                for called in names.replace("%", "").split(", "):
                    if called in computations:
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
    """How often a loop's body runs: as XLA says, or its scan counts (for TPUs)."""
    known = _ROUNDS.search(line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    text = "\n".join(computations.get(condition[1], []) if condition else [])
    bounds = re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)
    counts_up = re.search(r"ROOT .* compare\(.*direction=LT", text)
    return int(bounds[0]) if counts_up and len(bounds) == 1 else None


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
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return listed[1].count(",") + 1 if listed else devices


def _volume(kind: str, result: str, start: bool, group: int) -> int:
    bits = 0
    for name, width, dims in _ARRAY.findall(result):
        size = math.prod(int(d) for d in dims.split(",") if d)
        bits += size * (8 if name == "pred" else int(width))
    total = bits // 8
    if start and kind in ("all-gather", "reduce-scatter"):
        return total * group // (group + 1)  # operand and result, one is 1/group
    if start and kind == "collective-permute":
        return total // 2
    return total * group if kind == "reduce-scatter" else total
