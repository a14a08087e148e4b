"""The parts of `launch/gpu_check.py` on the device: what it is, its products, a trace.

  python -m launch.benchmarks.gpu_device PART [ARGUMENTS]

The last line of standard output is JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from launch.benchmarks import measure

MOST_TRACE = 16 * 2**20  # bytes


def environment() -> None:
    """Device, driver, versions and what XLA is told, as JSON."""
    device = jax.devices()[0]
    jax.block_until_ready(jnp.ones((8, 8)) @ jnp.ones((8, 8)))
    memory = device.memory_stats() or {}
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    found = {
        "backend": jax.default_backend(),
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "device_mib": round(memory.get("bytes_limit", 0) / 2**20) or None,
        "nvidia_smi": _said("nvidia-smi", f"--query-gpu={query}", "--format=csv"),
        "cudnn": _cudnn(),
        "cores": measure.cores(),
        "autotune_level": measure.autotune_level(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {k: v for k, v in measure.versions().items() if v},
    }
    print(json.dumps(found))


def _said(*command: str) -> list[str] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _cudnn() -> int | None:
    """The version of the cuDNN that JAX has loaded, as 91002 for 9.10.2."""
    maps = pathlib.Path("/proc/self/maps")
    text = maps.read_text() if maps.exists() else ""
    found = re.search(r"\S*/libcudnn\.so\S*", text)
    return ctypes.CDLL(found[0]).cudnnGetVersion() if found else None


def products(dry_run: str) -> None:
    """FLOP/s of dense bfloat16 products, which an MFU can be judged by."""
    n = 256 if dry_run == "True" else 8192
    a, b = (
        jax.random.normal(key, (n, n), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0))
    )
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, b))
    turns = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(20):
            c = product(a, b)
        jax.block_until_ready(c)
        turns.append(2 * n**3 * 20 / (time.perf_counter() - start))
    print(json.dumps({"n": n, "flops_per_s": measure.spread(turns)}))


def trace(out: str, *flags: str) -> None:
    """A trace of three steps of the MAE, gzipped, or how large it would have been."""
    from launch import bench

    with tempfile.TemporaryDirectory(prefix="pacx_check_") as folder:
        argv = ["mae", "--peer=none", *flags, f"--profile={folder}"]
        with contextlib.redirect_stdout(sys.stderr):
            if bench.main(argv):
                sys.exit(2)
        files = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
        for path in [p for p in files if p.suffix != ".gz"]:
            with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
                shutil.copyfileobj(plain, packed)
        files = sorted(pathlib.Path(folder).rglob("*.gz"))
        files = [
            p for p in files if not p.name.endswith(".trace.json.gz")
        ]  # Perfetto's
        sizes = {p.name: p.stat().st_size for p in files}
        total = sum(sizes.values())
        if total > MOST_TRACE:
            sys.exit(
                f"error: the trace has {total / 2**20:.1f} MiB, more than "
                f"{MOST_TRACE // 2**20}: it was left out"
            )
        target = pathlib.Path(out) / "trace"
        target.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copy(path, target / path.name)
    print(json.dumps({"folder": str(target), "bytes": sizes}))


PARTS = {f.__name__: f for f in (environment, products, trace)}

if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
