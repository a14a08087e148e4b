"""Compiles a step for chips that are not there, by libtpu or by JAX's CUDA plugin.

libtpu and the plugin's two wheels lie in the environment, or in the folders PACX_LIBTPU
and PACX_CUDA. Neither needs the device. Each compile has a process of its own, which
XLA may end and whose memory is gone with it.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import types
from typing import Any

import jax
from jax.experimental import topologies

from launch.planning import abstract, chips, flops
from launch.planning.chips import SPECS, Topology
from pacx_jax import cli, sharding
from pacx_jax.errors import PacxError

ROOT = pathlib.Path(__file__).resolve().parents[2]
WHEELS = {
    "PACX_LIBTPU": ("libtpu",),
    "PACX_CUDA": ("jax-cuda13-plugin", "jax-cuda13-pjrt"),
}
# XLA writes its estimates into the text. Without a GPU to tune them on, products by
# Triton would have poor tiles, and the estimates with them: cuBLAS does them all.
GPU_OPTIONS = {
    "xla_gpu_collect_cost_model_stats": True,
    "xla_gpu_enable_triton_gemm": False,
}
CUDNN = 91000  # as the descriptions have it, 9.10.0


def version(variable: str) -> str:
    """The version of WHEELS[variable], both where they differ, or "none"."""
    folder = os.environ.get(variable)
    path, found = [folder] if folder else sys.path, set()
    for name in WHEELS[variable]:
        wheels = importlib.metadata.distributions(name=name, path=path)
        found.add(next((wheel.version for wheel in wheels), "none"))
    return " and ".join(sorted(found))


def check(topology: Topology) -> None:
    """PacxError unless what compiles for the topology is installed."""
    variable = "PACX_LIBTPU" if topology.is_tpu else "PACX_CUDA"
    found = version(variable)
    exact = "" if topology.is_tpu else f"=={jax.__version__}"
    if found == "none" or exact not in ("", f"=={found}"):
        wheels = " ".join(name + exact for name in WHEELS[variable])
        raise PacxError(
            f"--topology={topology.name}: to compile for it, pip install --no-deps "
            f"--target=DIR {wheels}, and set {variable}=DIR (docs/scaling.md); "
            f"installed is {found}"
        )


def compile_step(config, topology: str) -> types.SimpleNamespace:
    """Compiles a recipe's train step for a topology, such as "gpu:1xH100".

    Returns:
      text, which `hlo` reads; None where the compiler cannot write it.
      NAME_bytes_per_chip: argument, temporary, output (that takes no argument's place),
        code, peak (all of these at once); aliased, of the donated state; accessed, by a
        TPU's operations, in a loop once; gathered, see `flops.Counts`.
      flops_per_chip: of products, from the trace.
      gradient_bytes: of the trained parameters in float32.
      mesh: axis -> devices.

    Raises:
      PacxError: a bad config, a batch that does not fit, or no compiler.
    """
    check(chips.parse(topology))
    folders = (os.environ.get(name) for name in (*WHEELS, "PYTHONPATH"))
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    variables |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    variables |= {"TPU_SKIP_MDS_QUERY": "1"}  # there is no metadata server
    done = subprocess.run(
        [sys.executable, "-m", "launch.planning.compilers"],
        input=pickle.dumps((config, topology)),
        capture_output=True,
        cwd=ROOT,
        env=os.environ | variables,
    )
    if done.returncode:
        *_, last = "", *done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode != cli.FAILED:
            last = f"compiling for {topology} ended by {done.returncode}: {last}"
        raise PacxError(last.removeprefix("error: "))
    return types.SimpleNamespace(**pickle.loads(done.stdout))


def assume_cudnn(replace=setattr) -> None:
    """Has JAX trace cuDNN's attention as for the version CUDNN.

    JAX would ask the library, which is needed to run attention, not to compile it.

    Args:
      replace: sets an attribute of JAX's module; a test's takes it back.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    replace(fused_attention_stablehlo, "check_cudnn_version", lambda: CUDNN)


def _devices(topology: Topology) -> list:
    args = {"platform": "tpu", "topology_name": topology.name}
    if not topology.is_tpu:
        assume_cudnn()
        args = {"platform": "cuda", "topology": "1x{1}x{0}".format(*topology.shape)}
        spec = SPECS / f"{topology.chip.name.lower()}.txtpb"
        args["target_config"] = spec.read_text(encoding="utf-8")
    return list(topologies.get_topology_desc(**args).devices)


def _compile(config, name: str) -> dict[str, Any]:
    """In the process of its own: what `compile_step` returns."""
    topology = chips.parse(name)
    with tempfile.TemporaryDirectory(prefix="pacx_plan_") as directory:
        config = abstract.completed(config, directory)
        step, args, mesh = abstract.train_step(config, _devices(topology))
    batch, room = config.global_batch_size, topology.chip.hbm_bytes
    too_large = (
        f"--global_batch={batch} ({batch // sharding.batch_shards(mesh)} rows a chip) "
        f"does not fit {name}: it takes %s of {room / chips.GIB:.1f} GiB a chip; "
        "give a smaller one"
    )
    try:
        options = {} if topology.is_tpu else GPU_OPTIONS
        compiled = step.lower(*args).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+[KMGT]) of", str(error))
        raise PacxError(too_large % (used[1] if used else "more")) from None
    memory = compiled.memory_analysis()
    used = {
        "argument": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "output": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    used |= {"peak": sum(used.values()), "aliased": memory.alias_size_in_bytes}
    if used["peak"] > room:
        raise PacxError(too_large % f"{used['peak'] / chips.GIB:.1f} GiB")
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # of some steps, in libtpu 0.0.52
        text = None
    traced = flops.count(step, args, topology.devices)
    # XLA counts nothing for GPUs.
    counted = compiled.cost_analysis() if topology.is_tpu else {}
    trained = jax.tree.leaves(args[0].params)
    return {f"{part}_bytes_per_chip": size for part, size in used.items()} | {
        "text": text,
        "flops_per_chip": traced.flops,
        "gathered_bytes_per_chip": traced.gathered,
        "gradient_bytes": 4 * sum(leaf.size for leaf in trained),
        "accessed_bytes_per_chip": counted.get("bytes accessed", 0.0),
        "mesh": dict(mesh.shape),
    }


@cli.command
def main() -> None:
    """Answers the process that has started this one."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no part of the answer
    found = _compile(*pickle.load(sys.stdin.buffer))
    with os.fdopen(answers, "wb") as out:
        pickle.dump(found, out)


if __name__ == "__main__":
    sys.exit(main())
