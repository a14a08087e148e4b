"""Chips, their links, and the topologies they come in: all that a plan is told.

Figures are those that makers publish; a plan is as good as they are. 1 GB is 1e9 bytes
where the source says GB, and 2^30 where it says GiB.
"""

from __future__ import annotations

import dataclasses
import math
import re

from pacx_jax.errors import PacxError

GIB = 2**30
UTILISATION = 0.5  # of the peak, that products are assumed to reach


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: as in --topology.
      hbm_bytes: of memory.
      peak_flops: bfloat16 FLOP/s, dense.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s one way: of a TPU's ICI link, of all of a GPU's NVLinks.
      network_bandwidth: bytes/s one way between nodes for each chip; 0 within a slice.
      per_host: chips of the smallest topology that a plan's curve starts at.
      slices: of a TPU, from one host to the largest, for a curve; () for GPUs.
    """

    name: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    per_host: int
    slices: tuple[str, ...] = ()


_FLAT = ("2x2", "4x4", "8x8", "16x16")  # of v5e and v6e, a square is a whole torus
_ALL_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_CUBES += ("8x8x16", "8x16x16", "16x16x16")
# Of v5p, what is smaller than a cube of 4x4x4; from there on, slices are cubes
# side by side: tpu/docs/types-topologies, and v5p's page lists "most, not all" of them.
_BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")

# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, as stored on 2026-11-28. ICI is
# given there as the sum of both directions of all ports of a chip: one link one way is
# that / 2 / ports (v5e 400 GB/s / 2 / 4, v5p 1200 / 2 / 6, v6e 800 / 2 / 4). The pages
# write 16 and 32 GB for v5e and v6e: they are taken as GiB. Not v4, of whose chips
# libtpu makes two devices each.
TPUS = {
    "v5e": Chip("v5e", 16 * GIB, 197e12, 819e9, 50e9, 0, 4, _FLAT),
    "v5p": Chip("v5p", 95 * GIB, 459e12, 2765e9, 100e9, 0, 4, (*_CUBES, "16x16x24")),
    "v6e": Chip("v6e", 32 * GIB, 918e12, 1638e9, 100e9, 0, 4, _FLAT),
}
# GPUs, SXM boards of A100 80GB, H100 and H200: memory, dense bfloat16, NVLink (half of
# the sum of both directions). The network is that of a DGX: a port of 400 Gb/s a GPU,
# A100 200 Gb/s. NVIDIA's data sheets could not be reached: memory, its bandwidth and
# NVLink are as acecloud.ai/blog/nvidia-b200-vs-h200-h100-a100 and
# glennklockwood.com/garden/processors/A100 quote them, the port as the systems of
# MLPerf Inference 3.1 and 4.1 do; the A100's port was not verified.
GPUS = {
    "A100": Chip("A100", 80 * 10**9, 312e12, 2039e9, 300e9, 25e9, 8),
    "H100": Chip("H100", 80 * 10**9, 989e12, 3350e9, 450e9, 50e9, 8),
    "H200": Chip("H200", 141 * 10**9, 989e12, 4800e9, 450e9, 50e9, 8),
}
LARGEST_GPUS = 1024  # where a GPU plan's curve ends
# From one neighbour to the next, each step of a ring. Assumed, not verified: 1 us on
# ICI, and for GPUs a guess of NCCL's steps.
HOP_SECONDS = {"ici": 1e-6, "nvlink": 2e-6, "network": 10e-6}


@dataclasses.dataclass(frozen=True)
class Ring:
    """One axis of a topology: `size` neighbours in a ring."""

    size: int
    bytes_per_second: float
    hop_seconds: float


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are wired.

    Attributes:
      name: as given, such as "v5e:16x16" or "gpu:64xH100".
      chip: of which kind.
      shape: a TPU slice's torus; of GPUs (in a node, nodes).
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def is_tpu(self) -> bool:
        return bool(self.chip.slices)

    @property
    def devices(self) -> int:
        return math.prod(self.shape)

    @property
    def rings(self) -> tuple[Ring, ...]:
        """What a collective goes round, one axis after the other.

        A closed ring is used in both directions at once; in an open one, all bytes
        reach its ends by one link.
        """
        chip = self.chip
        if self.is_tpu:
            closed = [self._closed(size) for size in self.shape]
            kinds = [("ici", chip.link_bandwidth * (1 + c)) for c in closed]
        else:
            kinds = [
                ("nvlink", chip.link_bandwidth),
                ("network", chip.network_bandwidth),
            ]
        return tuple(
            Ring(size, bandwidth, HOP_SECONDS[kind])
            for size, (kind, bandwidth) in zip(self.shape, kinds, strict=True)
            if size > 1
        )

    def _closed(self, size: int) -> bool:
        """Whether the last of an axis's `size` chips is linked to the first.

        Of v5e and v6e that is so along a whole pod's 16, of v5p in slices of cubes.
        """
        if len(self.shape) == 2:
            return size == 16
        return all(n % 4 == 0 for n in self.shape)

    def curve(self) -> tuple[Topology, ...]:
        """This topology among those of its chip from one host to the largest."""
        if self.is_tpu:
            names = [f"{self.chip.name}:{slice_}" for slice_ in self.chip.slices]
        else:
            sizes = [self.chip.per_host]
            while sizes[-1] < LARGEST_GPUS:
                sizes.append(2 * sizes[-1])
            names = [f"gpu:{size}x{self.chip.name}" for size in sizes]
        if self.name not in names:
            names.append(self.name)
        return tuple(sorted(map(parse, names), key=lambda t: t.devices))

    def host(self) -> Topology:
        """One host of this chip, which a curve starts at."""
        return self.curve()[0] if self.devices >= self.chip.per_host else self


def parse(text: str) -> Topology:
    """The topology that `--topology` names.

    Raises:
      PacxError: an unknown chip, or a shape that it does not come in.
    """
    chip, _, shape = text.partition(":")
    if chip == "gpu":
        return _parse_gpu(text, shape)
    if chip not in TPUS:
        known = ", ".join([*TPUS, *(f"gpu:8x{name}" for name in GPUS)])
        raise PacxError(f"--topology={text}: unknown chip {chip!r}: choose of {known}")
    largest = TPUS[chip].slices[-1]
    if len(_sizes(largest)) == 2:
        known, more, exists = _ALL_FLAT, "", False
    else:
        most = math.prod(_sizes(largest))
        known, exists = _BELOW_A_CUBE, _is_of_cubes(shape, most)
        more = ", or AxBxC of multiples of 4 with A <= B <= C"
        more += f": the largest slice is {largest}, {most} chips"
    if shape not in known and not exists:
        raise PacxError(
            f"--topology={text}: no slice of {chip}: choose of {', '.join(known)}{more}"
        )
    return Topology(text, TPUS[chip], _sizes(shape))


def _is_of_cubes(shape: str, most: int) -> bool:
    """Whether cubes of 4x4x4 side by side are so many chips or less."""
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){2}", shape):
        return False
    sizes = _sizes(shape)
    whole = all(size % 4 == 0 for size in sizes)
    return whole and list(sizes) == sorted(sizes) and math.prod(sizes) <= most


def _parse_gpu(text: str, shape: str) -> Topology:
    found = re.fullmatch(r"([1-9]\d{0,4})x(\w+)", shape)
    if not found or found[2] not in GPUS:
        raise PacxError(
            f"--topology={text}: give such as gpu:64xH100; known are {', '.join(GPUS)}"
        )
    devices, chip = int(found[1]), GPUS[found[2]]
    node = min(devices, chip.per_host)
    if devices % node or devices > LARGEST_GPUS:
        raise PacxError(
            f"--topology={text}: give up to {node} GPUs, or a multiple of them up to "
            f"{LARGEST_GPUS}"
        )
    return Topology(text, chip, (node, devices // node))


def _sizes(shape: str) -> tuple[int, ...]:
    return tuple(int(n) for n in shape.split("x"))
