"""From what was compiled to step times: the roofline, and weak scaling over rings.

  compute(N) = FLOPs of a chip / (half of its peak), or of a step compiled for a GPU
               what its kernels take (kernels.py)
  T(N)       = compute + max(0, reduction - backward) + other collectives
  T'(N)      = compute + reduction + other collectives          (nothing overlaps)

  predicted_efficiency            = compute(1) / T(N)     at an equal batch a chip
  predicted_efficiency_no_overlap = compute(1) / T'(N)

One chip has no collectives, so that neither is above 1. It would not be so relative to
one host: on the open axes of a 2x2 slice a chip has half the links of a closed pod, and
gradients take longer to add up than on all of it.

"reduction" is what adds gradients up: all-reduces, and reduce-scatters within a group
of a mesh's axis (FSDP). All else waits, as the gathers of embeddings that the step asks
for by itself; XLA for TPUs makes all-reduces of these, and they wait nevertheless.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from launch.planning.chips import UTILISATION, Ring, Topology
from launch.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a step costs each chip of the topology that it was compiled for.

    Attributes:
      topology: that one.
      rows: of the batch, a chip.
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
    rows: int
    flops: float
    counted: tuple[tuple[int, float], tuple[int, float]]
    backward: float
    hbm_traffic: float
    collectives: tuple[Collective, ...]
    gathered: int = 0
    kernels: float = 0.0

    def gathered_in_reduces(self) -> int:
        """Bytes of `gathered` that the compiled step has as all-reduces."""
        n, apart, reduces = self.topology.devices, 0, 0
        for one in self.collectives:
            if one.group == n and one.kind in ("all-gather", "reduce-scatter"):
                apart += one.bytes_per_chip
            if one.group == n and one.kind == "all-reduce":
                reduces += one.bytes_per_chip
        return max(0, min(self.gathered - apart, reduces))

    def compute_seconds(self, devices: int) -> float:
        """Of a step on so many chips; FLOPs a chip grow linearly with the batch."""
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
        for one in self.collectives:
            if one.group < all_:
                found.append((one, one.kind in ("all-reduce", "reduce-scatter")))
            elif n > 1:
                one = dataclasses.replace(one, group=n)
                size = one.bytes_per_chip
                reduces = one.kind == "all-reduce"
                rows = self.gathered_in_reduces() if reduces else size
                if rows:  # the hops of all of them wait with these
                    grown = {"bytes_per_chip": rows * n // all_}
                    found.append((dataclasses.replace(one, **grown), False))
                if rows < size:
                    rest = {"bytes_per_chip": size - rows}
                    rest["count"] = 0 if rows else one.count
                    found.append((dataclasses.replace(one, **rest), True))
        return found


@dataclasses.dataclass(frozen=True)
class Point:
    """One topology of a weak-scaling curve, all times in seconds a step."""

    topology: Topology
    compute: float
    reduction: float
    other: float
    backward: float

    @property
    def step(self) -> float:
        return self.compute + max(0.0, self.reduction - self.backward) + self.other

    @property
    def step_no_overlap(self) -> float:
        return self.compute + self.reduction + self.other


def at(costs: Costs, topology: Topology) -> Point:
    """The predicted step of `costs` on another topology, equal rows a chip."""
    compute = costs.compute_seconds(topology.devices)
    reduction = other = 0.0
    for one, reduces in costs.collectives_at(topology):
        seconds = one.seconds(rings_of(topology, one.group))
        if reduces:
            reduction += seconds
        else:
            other += seconds
    return Point(topology, compute, reduction, other, compute * costs.backward)


def rings_of(topology: Topology, group: int) -> tuple[Ring, ...]:
    """The rings that `group` chips go round: neighbours first, then further axes.

    On a torus a collective's bytes are split into as many parts as there are axes.
    Each goes round them in another order, so that all links are in use all the time.
    """
    found, left = [], group
    for ring in topology.rings:
        size = min(ring.size, left)
        if size > 1:
            found.append(dataclasses.replace(ring, size=size))
        left = -(-left // ring.size)
    if topology.is_tpu:
        all_axes = [ring.bytes_per_second * len(found) for ring in found]
        found = [
            dataclasses.replace(ring, bytes_per_second=rate)
            for ring, rate in zip(found, all_axes, strict=True)
        ]
    return tuple(found)


def efficiencies(costs: Costs, point: Point) -> tuple[float, float]:
    """(predicted_efficiency, predicted_efficiency_no_overlap) of `point`."""
    alone = costs.compute_seconds(1)
    return alone / point.step, alone / point.step_no_overlap


def roofline(costs: Costs) -> dict[str, float]:
    """What each part alone takes at its peak, in seconds: the longest is a bound."""
    chip, links = costs.topology.chip, 0.0
    for one in costs.collectives:
        links += one.seconds(rings_of(costs.topology, one.group))
    return {
        "compute": costs.flops / chip.peak_flops,
        "memory": costs.hbm_traffic / chip.hbm_bandwidth,
        "links": links,
    }


def curve(costs: Costs) -> Sequence[tuple[Point, float, float]]:
    """(point, efficiency, efficiency without overlap) from one host to the largest."""
    points = [at(costs, topology) for topology in costs.topology.curve()]
    return [(point, *efficiencies(costs, point)) for point in points]
