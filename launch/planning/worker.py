"""Compiles a step in a process of its own: the number of devices is set once in each.

  python -m launch.planning < REQUEST > ANSWER

Both are pickles: of `run` or `inspect` with its `Request`, and of what that returns or
a PacxError.
"""

from __future__ import annotations

import dataclasses
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from launch.planning import chips, collectives, compilers, fitting, kernels
from pacx_jax.errors import PacxError

MOST_ROWS = 2**31 - 1  # of a global batch: their numbers are int32
ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
      config: a recipe's ConfigDict, with the global batch to plan.
      topology: as `chips.parse` reads it.
      simulated: compile for as many CPU devices instead of the topology's chips.
      compiles: how many more compiles may look for the largest batch.
    """

    config: Any
    topology: str
    simulated: bool
    compiles: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """What the compiled step says of itself, for one chip.

    Attributes:
      arguments, temporaries, outputs, code, peak: bytes; outputs are those that do not
        take an argument's place, peak is the sum.
      flops, traffic: of XLA's cost analysis; a loop's body is counted once. 0 for GPUs,
        for which it has none.
      loops: whether products stand in loops, so that `flops` is not all.
      counted: see `predict.Costs`.
      backward: share of the products that is not the forward pass.
      gathered: of the traced step, see `predict.Costs`.
      collectives: None where the compiled text cannot be had.
      tried: batches that were compiled, see `fitting`.
      mesh: axis -> devices.
      kernels: of a step compiled for a GPU.
    """

    arguments: int
    temporaries: int
    outputs: int
    code: int
    peak: int
    flops: float
    traffic: float
    loops: bool
    counted: tuple[tuple[int, float], tuple[int, float]]
    backward: float
    gathered: int
    collectives: tuple[collectives.Collective, ...] | None
    tried: tuple[fitting.Tried, ...]
    mesh: dict[str, int]
    kernels: kernels.Kernels | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Result:
        """Inverse of `dataclasses.asdict`, also by way of JSON."""
        fields = dict(fields)
        fields["counted"] = tuple((n, f) for n, f in fields["counted"])
        fields["tried"] = tuple(fitting.Tried(**t) for t in fields["tried"])
        if fields["collectives"] is not None:
            found = (collectives.Collective(**c) for c in fields["collectives"])
            fields["collectives"] = tuple(found)
        if fields["kernels"] is not None:
            fields["kernels"] = kernels.Kernels.from_dict(fields["kernels"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step, for one chip.

    Attributes:
      text: `compiled.as_text()`, what `collectives.count` and `kernels.count` read.
      arguments, temporaries, outputs, code, peak: as in `Result`, bytes.
      aliased: bytes of outputs that take the place of arguments: the donated state.
    """

    text: str
    arguments: int
    temporaries: int
    outputs: int
    code: int
    peak: int
    aliased: int


def compile_step(config, topology: str) -> Compiled:
    """Compiles a recipe's train step for a topology, in a process of its own.

    Args:
      config: a recipe's, with its global batch.
      topology: as `chips.parse` reads it, such as "gpu:1xH100".

    Raises:
      PacxError: a config that cannot be, or a compiler that is not installed.
    """
    simulated = compilers.simulates(chips.parse(topology))
    return call(Request(config, topology, simulated), inspect)


def call(request: Request, function: Callable | None = None) -> Any:
    """`run(request)`, or another function of this module, in a process of its own.

    Raises:
      PacxError: whatever is wrong with the request, or with the compile.
    """
    topology = chips.parse(request.topology)
    if not request.simulated:
        compilers.check(topology)
    done = subprocess.run(
        [sys.executable, "-m", "launch.planning"],
        input=pickle.dumps((function or run, request)),
        capture_output=True,
        cwd=ROOT,
        env=compilers.environment(topology, request.simulated),
    )
    if done.returncode:
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-6:]
        raise PacxError(
            f"compiling for {request.topology} ended with exit code "
            f"{done.returncode}: {' '.join(tail)}"
        )
    answer = pickle.loads(done.stdout)
    if isinstance(answer, PacxError):
        raise answer
    return answer


def run(request: Request) -> Result:
    """In the process of its own: compiles, and looks for the largest batch.

    Raises:
      PacxError: a config that cannot be, or a batch that does not fit.
    """
    from launch.planning import abstract
    from pacx_jax import sharding

    topology = chips.parse(request.topology)
    devices = compilers.devices(topology, request.simulated)
    options = compilers.options(topology, request.simulated)
    capacity = topology.chip.hbm_bytes
    with tempfile.TemporaryDirectory(prefix="pacx_plan_") as directory:
        config = abstract.completed(request.config, directory)
        step = abstract.train_step(config, devices)
        shards = sharding.batch_shards(step.mesh)
        rows = config.global_batch_size // shards
        compiled, first = _compile(step, rows, capacity, options)

        def compile_at(rows: int) -> fitting.Tried:
            other = abstract.resized(config, rows * shards)
            other = abstract.train_step(other, devices)
            return _compile(other, rows, capacity, options)[1]

        unit = config.get("accumulate", 1) * config.get("encoder_chunks", 1)
        unit *= -(-fitting.STEP // unit)
        most = MOST_ROWS // shards
        tried = fitting.largest(
            [first], compile_at, capacity, step.fixed, request.compiles, unit, most
        )
        # Simulated for a TPU, a step is asked for its collectives alone.
        weighed = not (request.simulated and topology.is_tpu)
        if compiled is None or (weighed and not first.fits):
            _refuse(config, topology, shards, tried)
        counted, backward = _products(config, topology, devices, step)
        result = _result(compiled, step, tuple(tried), counted, backward)
        if request.simulated or topology.is_tpu:
            return result
        found = kernels.count(compiled.as_text(), kernels.rates(topology.chip))
        return dataclasses.replace(result, kernels=found)


def inspect(request: Request) -> Compiled:
    """In the process of its own: compiles, whether or not it fits.

    Raises:
      PacxError: a config that cannot be.
    """
    from launch.planning import abstract

    topology = chips.parse(request.topology)
    devices = compilers.devices(topology, request.simulated)
    with tempfile.TemporaryDirectory(prefix="pacx_plan_") as directory:
        config = abstract.completed(request.config, directory)
        step = abstract.train_step(config, devices)
        lowered = step.function.lower(*step.args)
    options = compilers.options(topology, request.simulated)
    compiled = lowered.compile(compiler_options=options)
    aliased = compiled.memory_analysis().alias_size_in_bytes
    return Compiled(compiled.as_text(), **_bytes(compiled), aliased=aliased)


def _compile(
    step, rows: int, capacity: int, options: dict[str, Any]
) -> tuple[Any, fitting.Tried]:
    """(compiled step, what it takes); (None, ...) where the compiler refuses it."""
    import jax

    try:
        compiled = step.function.lower(*step.args).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        used = re.search(r"Used ([\d.]+)([KMGT]) of", text)
        size = used and float(used[1]) * 2 ** (10 * "_KMGT".index(used[2]))
        return None, fitting.Tried(rows, size and int(size), False)
    peak = _bytes(compiled)["peak"]
    return compiled, fitting.Tried(rows, peak, peak <= capacity)


def _bytes(compiled) -> dict[str, int]:
    """Bytes of one chip by what they are for."""
    m = compiled.memory_analysis()
    found = {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "outputs": m.output_size_in_bytes - m.alias_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    return found | {"peak": sum(found.values())}


def _refuse(config, topology, shards: int, tried) -> None:
    most, _ = fitting.bounds(tried)
    rows = config.global_batch_size // shards
    first = next(t for t in tried if t.rows == rows)
    need = f"{first.peak / chips.GIB:.1f} GiB" if first.peak else "more"
    advice = f"--global_batch={most * shards} fits" if most else "give a smaller one"
    raise PacxError(
        f"--global_batch={config.global_batch_size} ({rows} rows a chip) does not fit "
        f"{topology.name}: it takes {need} a chip, which has "
        f"{topology.chip.hbm_bytes / chips.GIB:.1f} GiB; {advice}"
    )


def _products(config, topology: chips.Topology, devices: list, step):
    """`Result.counted` and `Result.backward`, from traces."""
    from launch.planning import abstract, flops

    def count(step):
        return flops.per_chip(step.function, step.args, step.mesh.size)

    many, forward = count(step), count(abstract.forward(config, devices))
    least = step.mesh.shape["fsdp"] * step.mesh.shape["tensor"]
    small, few = max(topology.host().devices, least), many
    if small < topology.devices:
        rows = config.global_batch_size * small // topology.devices
        less = abstract.resized(config, rows)
        few = count(abstract.train_step(less, devices[:small]))
    return ((small, few), (topology.devices, many)), 1 - forward / many


def _result(compiled, step, tried, counted, backward) -> Result:
    import jax

    from launch.planning import flops

    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # of v5p:8x8x16, in libtpu 0.0.52
        text = None
    costs = compiled.cost_analysis() or {"flops": 0.0, "bytes accessed": 0.0}
    found = text and tuple(collectives.count(text, step.mesh.size))
    return Result(
        **_bytes(compiled),
        flops=costs["flops"],
        traffic=costs["bytes accessed"],
        loops=flops.has_loops(step.function, step.args),
        counted=counted,
        backward=backward,
        gathered=flops.gathered(step.function, step.args),
        collectives=found if text else None,
        tried=tried,
        mesh=dict(step.mesh.shape),
    )
