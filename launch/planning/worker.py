"""Compiles a step in a process of its own, for a number of devices is set only once."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import jax

from launch.planning import abstract, chips, compilers, fitting, flops, hlo, kernels
from launch.planning.chips import Topology
from pacx_jax import sharding
from pacx_jax.errors import PacxError

MOST_ROWS = 2**31 - 1  # of a global batch: their numbers are int32


def compile_step(config, topology: str) -> types.SimpleNamespace:
    """Compiles a recipe's train step for a topology, whether or not it fits.

    Args:
      config: a recipe's, with its global batch.
      topology: as `chips.parse` reads it, such as "gpu:1xH100".

    Returns:
      text, which `hlo` and `kernels` count, and bytes on one chip: arguments,
      temporaries, outputs that do not take an argument's place, aliased, those that do
      (the donated state), code, and peak, all of it at once.

    Raises:
      PacxError: a config that cannot be, or a compiler that is not installed.
    """
    found = call(inspect, config, chips.parse(topology))
    return types.SimpleNamespace(**found)


def call(function: Callable, config, topology: Topology, *more) -> Any:
    """Returns function(config, topology, *more) of a process of its own.

    Raises:
      PacxError: whatever is wrong with the arguments, or with the compile.
    """
    if not topology.simulated:
        compilers.check(topology)
    done = subprocess.run(
        [sys.executable, "-m", "launch.planning"],
        input=pickle.dumps((function, (config, topology, *more))),
        capture_output=True,
        cwd=compilers.ROOT,
        env=compilers.environment(topology),
    )
    if done.returncode:
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-6:]
        code = f"ended with exit code {done.returncode}"
        raise PacxError(f"compiling for {topology.name} {code}: {' '.join(tail)}")
    answer = pickle.loads(done.stdout)
    if isinstance(answer, PacxError):
        raise answer
    return answer


def inspect(config, topology: Topology) -> dict[str, Any]:
    """In the process of its own: what `compile_step` returns."""
    devices = compilers.devices(topology)
    with tempfile.TemporaryDirectory(prefix="pacx_plan_") as directory:
        step = abstract.train_step(abstract.completed(config, directory), devices)
    compiled = _compile(step, topology)
    return _bytes(compiled) | {"text": compiled.as_text()}


def run(config, topology: Topology, compiles: int) -> dict[str, Any]:
    """In the process of its own: compiles, and looks for the largest batch.

    Args:
      compiles: how many more compiles may look for it.

    Returns:
      What the step costs a chip, fit for JSON: bytes as in `compile_step`, and
      flops: by XLA, or of the traced products where these are more: XLA counts nothing
        for GPUs, a loop once, and not what our kernels for TPUs do.
      traffic: bytes that a TPU's operations access; 0 = not known.
      loops: whether products stand in loops.
      counted, backward, gathered: of the traced step, see `predict.Costs`.
      collectives: see `hlo.collectives`; None where the compiled text cannot be had.
      tried: batches that were compiled, see `fitting.Tried`.
      mesh: axis -> devices.
      kernels: see `kernels.count`, None unless compiled for a GPU.

    Raises:
      PacxError: a config that cannot be, or a batch that does not fit.
    """
    devices = compilers.devices(topology)
    with tempfile.TemporaryDirectory(prefix="pacx_plan_") as directory:
        config = abstract.completed(config, directory)
        step = abstract.train_step(config, devices)
        compiled, tried = _fitted(config, topology, devices, step, compiles)
        found = _traced(config, topology, devices, step)
    xla = compiled.cost_analysis() or {}
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # of v5p:8x8x16, in libtpu 0.0.52
        text = None
    found |= _bytes(compiled) | {"tried": tried, "mesh": dict(step.mesh.shape)}
    found |= {"traffic": 0.0, "kernels": None}
    if not found["loops"]:
        found["flops"] = max(found["flops"], xla.get("flops", 0.0))
        found["traffic"] = xla.get("bytes accessed", 0.0) if topology.is_tpu else 0.0
    found["collectives"] = text and hlo.collectives(text, topology.devices)
    if not (topology.is_tpu or topology.simulated):
        found["kernels"] = kernels.count(text, topology.chip)
    return found


def _fitted(config, topology: Topology, devices: list, step, compiles: int):
    """(compiled step, batches that were tried); PacxError where it does not fit."""
    shards = sharding.batch_shards(step.mesh)
    rows, hbm = config.global_batch_size // shards, topology.chip.hbm_bytes
    compiled, first = _attempt(step, rows, topology)

    def compile_at(rows: int) -> fitting.Tried:
        other = abstract.resized(config, rows * shards)
        return _attempt(abstract.train_step(other, devices), rows, topology)[1]

    unit = config.get("accumulate", 1) * config.get("encoder_chunks", 1)
    unit *= -(-fitting.STEP // unit)
    most = MOST_ROWS // shards
    tried = fitting.largest(first, compile_at, hbm, step.fixed, compiles, unit, most)
    # Simulated for a TPU, a step is asked for its collectives alone.
    weighed = not (topology.simulated and topology.is_tpu)
    if compiled is None or (weighed and not first.fits):
        need = f"{first.peak / chips.GIB:.1f} GiB" if first.peak else "more"
        best = fitting.bounds(tried)[0] * shards
        raise PacxError(
            f"--global_batch={rows * shards} ({rows} rows a chip) does not fit "
            f"{topology.name}: it takes {need} a chip, which has "
            f"{hbm / chips.GIB:.1f} GiB; "
            + (f"--global_batch={best} fits" if best else "give a smaller one")
        )
    return compiled, tried


def _compile(step, topology: Topology):
    is_gpu = not (topology.is_tpu or topology.simulated)
    options = compilers.GPU_OPTIONS if is_gpu else {}
    return step.function.lower(*step.args).compile(compiler_options=options)


def _attempt(step, rows: int, topology: Topology):
    """(compiled step, Tried); (None, Tried) where the compiler refuses it."""
    try:
        compiled = _compile(step, topology)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)([KMGT]) of", str(error))
        size = used and int(float(used[1]) * 2 ** (10 * "_KMGT".index(used[2])))
        return None, fitting.Tried(rows, size, False)
    peak = _bytes(compiled)["peak"]
    return compiled, fitting.Tried(rows, peak, peak <= topology.chip.hbm_bytes)


def _bytes(compiled) -> dict[str, int]:
    m = compiled.memory_analysis()
    found = {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "outputs": m.output_size_in_bytes - m.alias_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    return found | {"peak": sum(found.values()), "aliased": m.alias_size_in_bytes}


def _traced(config, topology: Topology, devices: list, step) -> dict[str, Any]:
    """What `run` returns of the traced step."""
    many = flops.count(step.function, step.args, topology.devices)
    args = step.params, *step.args[1:]
    forward = flops.count(step.loss, args, topology.devices)
    least = step.mesh.shape["fsdp"] * step.mesh.shape["tensor"]
    small, few = max(topology.curve()[0].devices, least), many
    if small < topology.devices:
        rows = config.global_batch_size * small // topology.devices
        less = abstract.train_step(abstract.resized(config, rows), devices[:small])
        few = flops.count(less.function, less.args, small)
    return {
        "flops": many.flops,
        "loops": many.loops,
        "counted": ((small, few.flops), (topology.devices, many.flops)),
        "backward": 1 - forward.flops / many.flops,
        "gathered": many.gathered,
    }
