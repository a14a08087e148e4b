"""From what was compiled to step times: the roofline, and weak scaling over rings.

  compute(N) = FLOPs of a chip / (half of its peak), or of a step compiled for a GPU
               what its kernels take (kernels.py)
  T(N)       = compute + max(0, reduction - backward) + other collectives
  T'(N)      = compute + reduction + other collectives          (nothing overlaps)

  predicted_efficiency            = compute(1) / T(N)     at an equal batch a chip
  predicted_efficiency_no_overlap = compute(1) / T'(N)

One chip has no collectives, so neither is above 1.

"reduction" is what adds gradients up: all-reduces, and reduce-scatters within a group
of a mesh's axis (FSDP). All else waits, as the gathers of embeddings that the step asks
for by itself; XLA for TPUs makes all-reduces of these, and they wait nevertheless.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from launch.planning.chips import UTILISATION, Ring, Topology


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size in a step, see `hlo.collectives`."""

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


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a step costs each chip of the topology that it was compiled for.

    Attributes:
      topology: that one.
      flops: of the compiled step.
      counted: (chips, products' FLOPs a chip) at one host and at `topology`, traced at
        the same rows a chip: they differ where each chip meets the whole batch.
      backward: share of them that is not the forward pass.
      hbm_traffic: bytes that its operations access; 0 where that is not known.
      collectives: of the compiled step.
      gathered: bytes a chip of gathers that the step asks for, and of the sums of their
        gradients, whatever XLA makes of them. They grow with the chips, as the batch.
      kernels: seconds of the step's kernels but for collectives; 0 where not known.
    """

    topology: Topology
    flops: float
    counted: tuple[tuple[int, float], tuple[int, float]]
    backward: float
    hbm_traffic: float
    collectives: tuple[Collective, ...]
    gathered: int = 0
    kernels: float = 0.0

    def compute_seconds(self, devices: int) -> float:
        """Seconds of a step's compute on so many chips; FLOPs a chip grow linearly."""
        (low, few), (high, many) = self.counted
        slope = (many - few) / (high - low) if high > low else 0.0
        rate = UTILISATION * self.topology.chip.peak_flops
        grown = slope * (devices - self.topology.devices) / rate
        return (self.kernels or self.flops / rate) + grown

    def collectives_at(self, topology: Topology) -> list[tuple[Collective, bool]]:
        """(as compiled, whether it reduces gradients), with the chips of `topology`.

        Gathers of all chips hold rows of the batch and grow with them; what is reduced
        has the size of the gradients and does not. Groups of a part of the chips (FSDP,
        tensor) stay as they are.
        """
        all_, n, found = self.topology.devices, topology.devices, []
        sizes = {c.kind: c.bytes_per_chip for c in self.collectives if c.group == all_}
        apart = sizes.get("all-gather", 0) + sizes.get("reduce-scatter", 0)
        for one in self.collectives:
            if one.group < all_:
                found.append((one, one.kind in ("all-reduce", "reduce-scatter")))
            elif n > 1:
                rows = size = one.bytes_per_chip
                if one.kind == "all-reduce":
                    rows = max(0, min(self.gathered - apart, size))
                if rows:  # the hops of all of them wait with these
                    grown = {"group": n, "bytes_per_chip": rows * n // all_}
                    found.append((dataclasses.replace(one, **grown), False))
                if rows < size:
                    rest = {"group": n, "bytes_per_chip": size - rows}
                    rest["count"] = 0 if rows else one.count
                    found.append((dataclasses.replace(one, **rest), True))
        return found


@dataclasses.dataclass(frozen=True)
class Point:
    """One topology of a weak-scaling curve; times in seconds a step."""

    topology: Topology
    compute: float
    reduction: float
    other: float
    step: float
    efficiency: float
    no_overlap: float


def at(costs: Costs, topology: Topology) -> Point:
    """The predicted step of `costs` on another topology, equal rows a chip."""
    compute, alone = costs.compute_seconds(topology.devices), costs.compute_seconds(1)
    seconds = {True: 0.0, False: 0.0}
    for one, reduces in costs.collectives_at(topology):
        seconds[reduces] += one.seconds(topology.rings(one.group))
    reduction, other = seconds[True], seconds[False]
    step = compute + max(0.0, reduction - compute * costs.backward) + other
    no_overlap = alone / (compute + reduction + other)
    return Point(topology, compute, reduction, other, step, alone / step, no_overlap)


def curve(costs: Costs) -> list[Point]:
    """The predicted steps from one host to the largest topology."""
    return [at(costs, topology) for topology in costs.topology.curve()]


def roofline(costs: Costs) -> dict[str, float]:
    """What each part alone takes at its peak, in seconds: the longest is a bound."""
    topology, chip = costs.topology, costs.topology.chip
    links = (one.seconds(topology.rings(one.group)) for one in costs.collectives)
    return {
        "compute": costs.flops / chip.peak_flops,
        "memory": costs.hbm_traffic / chip.hbm_bandwidth,
        "links": sum(links, 0.0),
    }
