"""The parts of `launch/gpu_check.py` on the device: what it is, and its products.

  python -m launch.benchmarks.gpu_device environment|products True|False

The second argument: a dry run? The last line is JSON, whose `summary` is for people.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp

from launch.benchmarks import measure


def environment(dry_run: bool) -> dict:
    """Device, driver, versions and XLA's flags."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit", 0) >> 20
    smi, flags = _nvidia_smi(), os.environ.get("XLA_FLAGS", "none")
    level = measure.autotune_level()
    versions = {k: v for k, v in measure.versions().items() if v}
    said = ", ".join(f"{k} {v}" for k, v in versions.items())
    return {
        "backend": jax.default_backend(),
        "versions": versions,
        "autotune_level": level,
        "summary": f"{jax.device_count()} x {device.device_kind} ({smi}), "
        f"{memory or 'unknown'} MiB for JAX, {measure.cores()} cores, "
        f"XLA's autotune level {level}, XLA_FLAGS {flags}; {said}",
    }


def _nvidia_smi() -> str:
    query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
    command = ("nvidia-smi", query, "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "no nvidia-smi"
    return "; ".join(done.stdout.splitlines()) if done.returncode == 0 else "its failed"


def products(dry_run: bool) -> dict:
    """FLOP/s of dense bfloat16 products, which an MFU can be judged by."""
    n, steps = 256 if dry_run else 8192, 20
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, b))

    def run(steps: int) -> None:
        jax.block_until_ready([product(a, b) for _ in range(steps)][-1])

    turns = [measure.timed(run, steps, 1)["images_per_s"] for _ in range(5)]
    rates = measure.spread([2 * n**3 * rate for rate in turns])
    text = f"{measure.cell(rates, 1e-12, 1)} TFLOP/s of bfloat16, {n} a side"
    return {"n": n, "flops_per_s": rates, "summary": text}


PARTS = {f.__name__: f for f in (environment, products)}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](sys.argv[2] == "True")))
