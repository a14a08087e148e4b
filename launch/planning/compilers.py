"""What compiles a step for a topology: libtpu, JAX's CUDA plugin, or XLA for CPUs.

libtpu and the plugin's two wheels lie in the environment, or in the folders PACX_LIBTPU
and PACX_CUDA. Neither needs the device: XLA takes a GPU's description from gpus/.
For a kind of GPU without one, and where a TPU's text cannot be had, a step is compiled
for as many simulated CPU devices.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import sys
from typing import Any

from launch.planning.chips import Topology
from pacx_jax.errors import PacxError

SPECS = pathlib.Path(__file__).parent / "gpus"
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


def simulates(topology: Topology) -> bool:
    """Whether it is a GPU that XLA has no description of here."""
    return not topology.is_tpu and not _spec(topology).is_file()


def _spec(topology: Topology) -> pathlib.Path:
    return SPECS / f"{topology.chip.name.lower()}.txtpb"


def version(variable: str) -> str:
    """The version of WHEELS[variable], both where they differ; "none" if not installed.

    In the folder that the environment variable names, or in the environment.
    """
    folder, found = os.environ.get(variable), set()
    for name in WHEELS[variable]:
        wheels = importlib.metadata.distributions(
            name=name, path=[folder] if folder else sys.path
        )
        found.add(next((wheel.version for wheel in wheels), "none"))
    return " and ".join(sorted(found))


def check(topology: Topology) -> None:
    """PacxError unless what compiles for the topology is installed."""
    variable = "PACX_LIBTPU" if topology.is_tpu else "PACX_CUDA"
    found, jax = version(variable), importlib.metadata.version("jax")
    if found == jax or (topology.is_tpu and found != "none"):
        return
    first, *_ = WHEELS[variable]
    exact = "" if topology.is_tpu else f"=={jax}"
    raise PacxError(
        f"{first}, which compiles for {topology.name}, "
        f"{'is not installed' if found == 'none' else f'has version {found}, jax {jax}'}"
        f": pip install --no-deps --target=DIR "
        f"{' '.join(name + exact for name in WHEELS[variable])}, and set "
        f"{variable}=DIR (docs/scaling.md)"
    )


def environment(topology: Topology, simulated: bool) -> dict[str, str]:
    """Variables for the process that compiles."""
    found = dict(os.environ, JAX_PLATFORMS="cpu")
    if simulated:
        flags = f"--xla_force_host_platform_device_count={topology.devices}"
        return found | {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}
    variable = "PACX_LIBTPU" if topology.is_tpu else "PACX_CUDA"
    folders = [os.environ.get(name) for name in (variable, "PYTHONPATH")]
    return found | {
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to wait for
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is claimed
    }


def devices(topology: Topology, simulated: bool) -> list:
    """The topology's devices, in the process that compiles.

    Raises:
      PacxError: libtpu makes another number of them.
    """
    import jax
    from jax.experimental import topologies

    if simulated:
        return jax.devices()
    if topology.is_tpu:
        made = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    else:
        _state_cudnn()
        node, nodes = topology.shape
        made = topologies.get_topology_desc(
            platform="cuda",
            target_config=_spec(topology).read_text(encoding="utf-8"),
            topology=f"1x{nodes}x{node}",
        )
    if len(made.devices) != topology.devices:
        raise PacxError(
            f"--topology={topology.name}: {len(made.devices)} devices are made of it, "
            f"not {topology.devices}"
        )
    return list(made.devices)


def options(topology: Topology, simulated: bool) -> dict[str, Any]:
    """Compiler options that a plan adds to the step's own."""
    return {} if simulated or topology.is_tpu else GPU_OPTIONS


def _state_cudnn() -> None:
    """Gives JAX the version of cuDNN that it would ask the library for.

    The library itself is needed to run attention, not to compile it.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    fused_attention_stablehlo.check_cudnn_version = lambda: CUDNN
