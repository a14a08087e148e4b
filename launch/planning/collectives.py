"""Collectives of a compiled step, counted from its text, and the time they take.

Bytes are what one chip holds of a collective's result, or of its operand where that is
larger (a reduce-scatter): the `V` of the ring formulas below.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence

from launch.planning import hlo
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
    module = hlo.parse(text)
    found: dict[tuple[str, int], tuple[int, Counter]] = {}
    chains = set()
    for name, lines in module.computations.items():
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
            times = module.times[name]
            if not times:
                why = "in a loop of unknown length"
                if times == 0:
                    why = f"in {name}, which nothing is seen to call"
                raise ValueError(f"a collective {why}: {line}")
            kind, group = match["kind"], _group(line, devices)
            count_, sizes = found.get((kind, group), (0, Counter()))
            for dtype, size in _volumes(match, group).items():
                sizes[dtype] += times * size
            found[kind, group] = count_ + times, sizes
    return [
        Collective(*key, times, sum(sizes.values()), dict(sorted(sizes.items())))
        for key, (times, sizes) in sorted(found.items())
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
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return listed[1].count(",") + 1 if listed else devices


def _volumes(match: re.Match, group: int) -> dict[str, int]:
    """dtype -> bytes of a collective, `V` of this module's docstring.

    The result of an asynchronous one holds its operands too, but for an all-reduce's.
    """
    bits: Counter[str] = Counter()
    for dtype, _, size in hlo.arrays(match["result"]):
        bits[dtype] += size
    sizes = {dtype: total // 8 for dtype, total in bits.items()}
    kind, start = match["kind"], bool(match["start"])
    if start and kind in ("all-gather", "reduce-scatter"):  # one of the two is 1/group
        return {dtype: s * group // (group + 1) for dtype, s in sizes.items()}
    if start and kind != "all-reduce":
        return {dtype: s // 2 for dtype, s in sizes.items()}
    if kind == "reduce-scatter":
        return {dtype: s * group for dtype, s in sizes.items()}
    return sizes
