"""Collectives of a compiled step, counted from its text, and the time they take.

Bytes are what one chip holds of a collective's result, or of its operand where that is
larger (a reduce-scatter): the `V` of the ring formulas below.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from launch.planning import hlo
from launch.planning.chips import Ring

KINDS = """all-reduce all-gather reduce-scatter all-to-all collective-permute
collective-broadcast ragged-all-to-all""".split()


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size in a step.

    Attributes:
      kind: of KINDS.
      group: chips that take part in each.
      count: how often in a step, loops unrolled.
      bytes_per_chip: V summed over them.
      dtypes: the same by what is sent, such as "bf16".
    """

    kind: str
    group: int
    count: int
    bytes_per_chip: int
    dtypes: dict[str, int] = dataclasses.field(default_factory=dict)

    def seconds(self, rings: Sequence[Ring]) -> float:
        """The time of all of them, one after the other, on a ring of each axis.

        A reduce-scatter goes round the first axis, then with a share 1/n of its bytes
        round the second, and so on; an all-gather comes back the other way, and an
        all-reduce is both:

          T = r sum_i V / (n_1 ... n_{i-1}) (n_i - 1) / n_i / W_i + r hops,  r = 1 or 2

        Args:
          rings: axes of the chips that take part, the fastest first; W is what one
            carries.
        """
        if self.kind in ("collective-permute", "collective-broadcast"):
            ring = min(rings, key=lambda r: r.bytes_per_second)
            hops = ring.hop_seconds * self.count
            return self.bytes_per_chip / ring.bytes_per_second + hops
        total, share = 0.0, float(self.bytes_per_chip)
        for ring in rings:
            total += share * (ring.size - 1) / ring.size / ring.bytes_per_second
            total += self.count * (ring.size - 1) * ring.hop_seconds
            share /= ring.size
        return (2 if self.kind == "all-reduce" else 1) * total


def count(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled module.

    Args:
      text: `compiled.as_text()`: after partitioning, so that shapes are of one chip.
      devices: of the whole program, the group where none is named.

    Raises:
      ValueError: a loop with collectives whose number of rounds XLA does not tell.
    """
    module, chains = hlo.parse(text), set()
    # The end of an asynchronous call names what its start has called.
    ends = ("-done", "-update")
    times, unknown = hlo.runs(module, lambda one: not one.op.endswith(ends))
    found = defaultdict(Counter)
    for name, lines in module.items():
        for one in lines:
            kind = one.op.removesuffix("-start")
            if kind not in KINDS:
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
        Collective(*key, sums.pop("count"), sums.total(), dict(sorted(sums.items())))
        for key, sums in sorted(found.items())
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


def _volumes(one: hlo.Instruction, kind: str, group: int) -> dict[str, int]:
    """dtype -> bytes of a collective, `V` of this module's docstring.

    The result of an asynchronous one holds its operands too, but for an all-reduce's.
    """
    bits = Counter()
    for dtype, _, size in hlo.arrays(one.result):
        bits[dtype] += size
    times, parts = 1, 1
    if one.op != kind and kind in ("all-gather", "reduce-scatter"):
        times, parts = group, group + 1  # operand and result: one is 1/group
    elif one.op != kind and kind != "all-reduce":
        parts = 2
    elif kind == "reduce-scatter":
        times = group
    return {dtype: total // 8 * times // parts for dtype, total in bits.items()}
