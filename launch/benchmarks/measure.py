"""Turns, their medians and spread, and what a measurement was made on."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
from collections.abc import Callable, Mapping

# One turn's figures: each a rate or a time; None = not measured.
Turn = dict[str, float | None]
PACKAGES = (
    "jax jaxlib flax optax numpy grain array-record tensorflow-datasets pillow "
    "opencv-python-headless torch torchvision"
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
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def versions() -> dict[str, str | None]:
    """Of Python and of all packages that a figure may depend on; None = missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
