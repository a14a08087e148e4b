"""Turns, their medians and spread, and what a measurement was made on."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import re
import resource
import statistics
import sys
from collections.abc import Callable, Mapping

# One turn's figures: each a rate or a time; None = not measured.
Turn = dict[str, float | None]
PACKAGES = (
    "jax jaxlib flax optax numpy grain array-record tensorflow-datasets pillow "
    "opencv-python-headless torch torchvision jax-cuda13-plugin jax-cuda12-plugin "
    "nvidia-cudnn-cu13 nvidia-cudnn-cu12 nvidia-cublas libtpu"
).split()


def in_turns(
    variants: Mapping[str, Callable[[], Turn]], repeats: int
) -> dict[str, list[Turn]]:
    """A B C, A B C, ...: name -> the figures of each of its turns."""
    turns: dict[str, list[Turn]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, measure in variants.items():
            turns[name].append(measure())
    return turns


def spread(values: list[float | None]) -> dict[str, float] | None:
    """Median, smallest and largest; None where one was not measured."""
    if not values or None in values:
        return None
    names = {"median": statistics.median, "min": min, "max": max}
    return {name: round(f(values), 4) for name, f in names.items()}


def ratio(one: list[Turn], other: list[Turn], figure: str) -> dict[str, float] | None:
    """Spread of one / other over the rounds; None where one was not measured."""
    pairs = [(x[figure], y[figure]) for x, y in zip(one, other, strict=False)]
    return spread([None if None in pair else pair[0] / pair[1] for pair in pairs])


def largest(values: list[float | None]) -> float | None:
    """None where one was not measured."""
    return None if None in values else round(max(values), 4)


def cell(figure: dict | None, scale: float = 1.0, digits: int = 0) -> str:
    """A spread as text: median (least to most)."""
    if figure is None:
        return "not measured"
    median, low, high = (
        f"{scale * figure[name]:,.{digits}f}" for name in ("median", "min", "max")
    )
    return f"{median} ({low}–{high})"


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_seconds() -> float | None:
    """Of this process and its workers; None where Linux does not tell it."""
    pids = [os.getpid()] + [child.pid for child in multiprocessing.active_children()]
    ticks = 0
    for pid in pids:
        try:
            text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user, system
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mib() -> float:
    """The most memory this process has held so far, or since `Peaks.reset`."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held when it forked
        line = next(x for x in status.read_text().splitlines() if "VmHWM" in x)
        return round(int(line.split()[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


class Peaks:
    """The most memory of this process as a whole, and since it was ready."""

    def __init__(self):
        self._before, self._reset = 0.0, False

    def reset(self) -> None:
        """The process is ready: what it holds at most is counted anew (Linux alone)."""
        self._before = self.whole()
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return
        self._reset = True

    def whole(self) -> float:
        """MiB."""
        return max(self._before, peak_mib())

    def since_reset(self) -> float | None:
        """MiB; None where it cannot be counted anew."""
        return peak_mib() if self._reset else None


def autotune_level() -> int:
    """How much XLA tries out kernels on a GPU: 0 not at all, 4 (its default) fully."""
    found = re.findall(
        r"--xla_gpu_autotune_level=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    return int(found[-1]) if found else 4


def software(result: dict) -> str:
    """A result's autotune level and versions, as a line of a GPU's table."""
    names = ("jax", "jaxlib", "jax-cuda", "nvidia", "torch")
    versions = ", ".join(
        f"{name} {version}"
        for name, version in result["versions"].items()
        if version and name.startswith(names)
    )
    return f"XLA's autotune level {result['autotune_level']}; {versions}"


def versions() -> dict[str, str | None]:
    """Of Python and of all packages that a figure may depend on; None = missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
