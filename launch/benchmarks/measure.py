"""Turns of what is compared, their spread, and the table and the JSON of every mode."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

# One turn's figures; None = not measured.
Turn = dict[str, float | None]
SETTLE = 0.3  # seconds between turns, in which the threads of the last one rest
# Figure of a turn -> its column in the table: heading, scale, digits.
COLUMNS = {
    "step_s": ("step, ms", 1000, 1),
    "images_per_s": ("images/s", 1, 2),
    "peak_mib": ("peak MiB", 1, 0),
    "device_peak_mib": ("of the device", 1, 0),
    "data_stall_share": ("waits for data, %", 100, 2),
    "log_s": ("a logged row, ms", 1000, 2),
}
PACKAGES = (
    "jax jaxlib flax optax numpy grain array-record tensorflow-datasets pillow "
    "opencv-python-headless torch torchvision jax-cuda13-plugin jax-cuda12-plugin "
    "nvidia-cudnn-cu13 nvidia-cudnn-cu12 nvidia-cublas libtpu"
).split()


def timed(run: Callable[[int], float | None], steps: int, batch: int) -> Turn:
    """A turn: `run(steps)`, of `batch` images each."""
    start = time.perf_counter()
    last = run(steps)
    seconds = time.perf_counter() - start
    rate = batch * steps / seconds
    return {"step_s": seconds / steps, "images_per_s": rate, "last": last}


def in_turns(
    variants: Mapping[str, Callable[[], Turn]], repeats: int
) -> dict[str, list[Turn]]:
    """A B C, A B C, ...: name -> the figures of each of its turns."""
    turns: dict[str, list[Turn]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, turn in variants.items():
            turns[name].append(turn())
            time.sleep(SETTLE)
    return turns


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median, smallest and largest; None where one was not measured."""
    if not values or None in values:
        return None
    names = {"median": statistics.median, "min": min, "max": max}
    return {name: round(f(values), 4) for name, f in names.items()}


def cell(figure: dict | None, scale: float = 1.0, digits: int = 0) -> str:
    """A spread as text: median (least–most)."""
    if figure is None:
        return "not measured"
    median, low, high = (
        f"{scale * figure[name]:,.{digits}f}" for name in ("median", "min", "max")
    )
    return median if low == high else f"{median} ({low}–{high})"


def result(
    options: argparse.Namespace,
    turns: Mapping[str, list[Turn]],
    ours: str,
    pairs: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    **more,
) -> dict:
    """The JSON of a mode, with `table`, its lines for people.

    Args:
      turns: variant -> its turns.
      ours: the variant whose images a second and memory are the mode's.
      pairs: (one, other) whose ratio, turn by turn, is taken; the smallest of `ours` in
        images a second is the mode's `ratio`.
      notes: lines that follow the table's head.
      more: fields of the mode.
    """
    figures = sorted({f for taken in turns.values() for turn in taken for f in turn})
    variants = {
        name: {f: spread([turn.get(f) for turn in taken]) for f in figures}
        for name, taken in turns.items()
    }
    ratios = {
        f"{one} / {other}": {
            f: _ratio(turns.get(one, []), turns.get(other, []), f)
            for f in COLUMNS
            if f in figures
        }
        for one, other in pairs
    }
    first = [r["images_per_s"] for k, r in ratios.items() if k.startswith(ours)]
    peaks = [
        max(turn[f] for turn in turns[ours])
        for f in ("device_peak_mib", "peak_mib")
        if variants[ours].get(f)
    ]
    found = {
        "mode": options.mode,
        "images_per_s": variants[ours]["images_per_s"]["median"],
        "ratio": min((r["median"] for r in first if r), default=None),
        "mfu": None,
        "peak_mib": peaks[0] if peaks else peak_mib(),
        "batch": options.batch,
        "steps": options.steps,
        "repeats": options.repeats,
        "dtype": getattr(options, "dtype", "float32"),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2),
        "set": getattr(options, "set", []),
        "step_s": variants[ours]["step_s"],
        "variants": variants,
        "ratios": ratios,
        "autotune_level": autotune_level(),
        "versions": versions(),
    } | more
    rates = [f"{k}: {cell(r['images_per_s'], 1, 3)}" for k, r in ratios.items()]
    step, rate = cell(found["step_s"], 1000, 1), found["images_per_s"]
    memory = f"{found['peak_mib']:,.0f} MiB"
    summary = [f"{step} ms, {rate:,.1f} images/s, {memory}", *notes, *rates]
    found["summary"] = "; ".join(summary)
    return {"table": list(_table(found, notes)), **found}


def _ratio(one: list[Turn], other: list[Turn], figure: str) -> dict | None:
    """Spread of one / other over the rounds; None where one was not measured."""
    pairs = [(x.get(figure), y.get(figure)) for x, y in zip(one, other, strict=False)]
    return spread([x / y if x is not None and y else None for x, y in pairs])


def _table(r: dict, notes: Sequence[str]) -> Iterator[str]:
    device = f"{r['devices']} x {r['device_kind']}, " if "device_kind" in r else ""
    yield (
        f"{r['mode']}: {device}{r['cores']} cores, load {r['load']}, batch "
        f"{r['batch']}, {r['dtype']}, {r['repeats']} turns of {r['steps']} steps"
    )
    yield from notes
    if r.get("backend") == "gpu":
        names = ("jax", "nvidia", "torch")
        said = [
            f"{k} {v}" for k, v in r["versions"].items() if v and k.startswith(names)
        ]
        yield f"XLA's autotune level {r['autotune_level']}; {', '.join(said)}"
    shown = [f for f in COLUMNS if any(v.get(f) for v in r["variants"].values())]
    rows = [["", *(COLUMNS[f][0] for f in shown)]]
    for name, found in r["variants"].items():
        rows.append([name, *(cell(found[f], *COLUMNS[f][1:]) for f in shown)])
    for name, found in r["ratios"].items():
        rows.append([name, *(cell(found[f], 1, 3) for f in shown)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        cells = [f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True)]
        yield "  ".join([f"{name:{widths[0]}}", *cells])


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_mib() -> float:
    """The most memory this process has held."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held when it forked
        line = next(x for x in status.read_text().splitlines() if "VmHWM" in x)
        return round(int(line.split()[1]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)


def autotune_level() -> int:
    """How much XLA tries out kernels on a GPU: 0 not at all, 4 (its default) fully."""
    flags = os.environ.get("XLA_FLAGS", "")
    found = re.findall(r"--xla_gpu_autotune_level=(\d+)", flags)
    return int(found[-1]) if found else 4


def versions() -> dict[str, str | None]:
    """Of Python and of all packages that a figure may depend on; None = missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
