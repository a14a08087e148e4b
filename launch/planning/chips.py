"""Chips, as their makers publish them, their links, and the topologies they come in."""

from __future__ import annotations

import math
import pathlib
import re
from typing import NamedTuple

from pacx_jax.errors import PacxError

GIB = 2**30
UTILISATION = 0.5  # share of the peak that products are assumed to reach
SPECS = pathlib.Path(__file__).parent / "gpus"  # XLA's descriptions of GPUs
NODE, LARGEST_GPUS = 8, 1024  # GPUs of a node, and where a curve ends
# Seconds from one neighbour of a ring to the next. Assumed, not verified: 1 us on ICI,
# and for NVLink and the network a guess of NCCL's steps.
ICI_HOP, NVLINK_HOP, NETWORK_HOP = 1e-6, 2e-6, 10e-6


class Chip(NamedTuple):
    """One kind of chip, as --topology names it; links and network are one way."""

    name: str
    hbm_bytes: int
    peak_flops: float  # a second, in bfloat16, dense
    hbm_bandwidth: float  # bytes a second, as all bandwidths
    link_bandwidth: float  # of a TPU's ICI link, of all of a GPU's NVLinks
    network_bandwidth: float  # between nodes, for each GPU; 0 for TPUs


# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, as stored on 2026-11-28. ICI is
# given there as the sum of both directions of all ports of a chip: one link one way is
# that / 2 / ports (v5e 400 GB/s / 2 / 4, v5p 1200 / 2 / 6, v6e 800 / 2 / 4). The pages
# write 16 and 32 GB for v5e and v6e: they are taken as GiB. Not v4, of whose chips
# libtpu makes two devices each.
TPUS = {
    "v5e": Chip("v5e", 16 * GIB, 197e12, 819e9, 50e9, 0),
    "v5p": Chip("v5p", 95 * GIB, 459e12, 2765e9, 100e9, 0),
    "v6e": Chip("v6e", 32 * GIB, 918e12, 1638e9, 100e9, 0),
}
# GPUs, SXM boards that SPECS describes: memory, dense bfloat16, NVLink (half of the sum
# of both directions). The network is that of a DGX: a port of 400 Gb/s a GPU. NVIDIA's
# data sheets could not be reached: memory, its bandwidth and NVLink are as
# acecloud.ai/blog/nvidia-b200-vs-h200-h100-a100 quotes them, the port as the systems of
# MLPerf Inference 3.1 and 4.1 do.
GPUS = {
    "H100": Chip("H100", 80 * 10**9, 989e12, 3350e9, 450e9, 50e9),
    "H200": Chip("H200", 141 * 10**9, 989e12, 4800e9, 450e9, 50e9),
}
_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split()
# From 4x4x4 on, slices of v5p are cubes of that size side by side.
_CUBES = """2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16
16x16x24""".split()
KNOWN = (
    f"v5e:AxB or v6e:AxB, of {', '.join(_FLAT)}; v5p:AxBxC, of {', '.join(_CUBES)}; "
    f"gpu:NxCHIP, of {', '.join(GPUS)}, N up to {NODE} or a multiple of it up to "
    f"{LARGEST_GPUS}"
)


class Topology(NamedTuple):
    """Chips and how they are wired: a TPU slice's torus, or (in a node, nodes)."""

    name: str  # as given, such as "v5e:16x16" or "gpu:64xH100"
    chip: Chip
    shape: tuple[int, ...]

    @property
    def is_tpu(self) -> bool:
        return self.chip.name in TPUS

    @property
    def devices(self) -> int:
        return math.prod(self.shape)

    def rings(self, group: int) -> list[tuple[int, float, float]]:
        """(size, bytes/s, seconds a hop) of what `group` chips go round, nearest first.

        A closed ring is used in both directions at once. Rings close along a whole
        pod's 16 of v5e and v6e, and in slices of cubes of v5p. On a torus a
        collective's bytes are split into as many parts as there are axes. Each goes
        round them in another order, so that all links are in use all the time.
        """
        chip, found, left = self.chip, [], group
        links = [(chip.link_bandwidth, NVLINK_HOP)]
        links += [(chip.network_bandwidth, NETWORK_HOP)]
        if self.is_tpu:
            cubes = all(n % 4 == 0 for n in self.shape)
            closed = [cubes if len(self.shape) == 3 else n == 16 for n in self.shape]
            links = [(chip.link_bandwidth * (1 + each), ICI_HOP) for each in closed]
        for size, (rate, hop) in zip(self.shape, links, strict=True):
            if min(size, left) > 1:
                found.append((min(size, left), rate, hop))
            left = -(-left // size)
        axes = len(found) if self.is_tpu else 1
        return [(size, rate * axes, hop) for size, rate, hop in found]

    def curve(self) -> list[Topology]:
        """This topology among those of its chip from one host to the largest."""
        name = self.chip.name
        if self.is_tpu:
            slices = _CUBES if len(self.shape) == 3 else _FLAT[1::2]
            names = [f"{name}:{slice_}" for slice_ in slices]
        else:
            names = [f"gpu:{NODE * 2**i}x{name}" for i in range(8)]
        names = dict.fromkeys([*names, self.name])
        return sorted(map(parse, names), key=lambda t: t.devices)


def parse(text: str) -> Topology:
    """The topology that `--topology` names; PacxError if there is none."""
    kind, _, shape = text.partition(":")
    if kind in TPUS and shape in (_CUBES if kind == "v5p" else _FLAT):
        return Topology(text, TPUS[kind], tuple(map(int, shape.split("x"))))
    found = re.fullmatch(r"gpu:([1-9]\d{0,3})x(\w+)", text)
    if found and found[2] in GPUS and int(found[1]) <= LARGEST_GPUS:
        node = min(int(found[1]), NODE)
        nodes, rest = divmod(int(found[1]), node)
        if not rest:
            return Topology(text, GPUS[found[2]], (node, nodes))
    raise PacxError(f"--topology={text}: unknown; give {KNOWN}")
