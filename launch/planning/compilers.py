"""What compiles a step for a topology: libtpu, JAX's CUDA plugin, or XLA for CPUs.

libtpu and the plugin's two wheels lie in the environment, or in the folders PACX_LIBTPU
and PACX_CUDA. Neither needs the device: of a GPU, XLA takes the description in gpus/.
For a kind of GPU without one, and where a TPU's text cannot be had, a step is compiled
for as many simulated CPU devices.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import sys
from typing import Any

from launch.planning.chips import Topology
from pacx_jax.errors import PacxError

SPECS = pathlib.Path(__file__).parent / "gpus"
WHEELS = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
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


def libtpu_version() -> str:
    """Of the environment's libtpu, or of that in the folder PACX_LIBTPU; or "none"."""
    return _version("libtpu", "PACX_LIBTPU")


def cuda_version() -> str:
    """Of JAX's CUDA plugin, in the environment or in the folder PACX_CUDA; or "none".

    Where its two wheels differ, both versions.
    """
    return " and ".join(sorted({_version(name, "PACX_CUDA") for name in WHEELS}))


def _version(package: str, variable: str) -> str:
    folder = os.environ.get(variable)
    found = importlib.metadata.distributions(
        name=package, path=[folder] if folder else sys.path
    )
    return next((d.version for d in found), "none")


def check(topology: Topology) -> None:
    """PacxError where what compiles for the topology is not installed."""
    if topology.is_tpu:
        if libtpu_version() == "none":
            raise PacxError(
                "libtpu, which compiles for TPUs, is not installed: pip install -e "
                "'.[plan]', or name its folder by PACX_LIBTPU (docs/scaling.md)"
            )
        return
    jax, found = importlib.metadata.version("jax"), cuda_version()
    if found != jax:
        wheels = " ".join(f"{name}=={jax}" for name in WHEELS)
        state = f"has version {found}, jax {jax}"
        if found == "none":
            state = "is not installed"
        raise PacxError(
            f"JAX's CUDA plugin, which compiles for GPUs, {state}: pip install "
            f"--no-deps --target=DIR {wheels}, and set PACX_CUDA=DIR (docs/scaling.md)"
        )


def version(topology: Topology, simulated: bool) -> str:
    """All that a compile depends on besides request, code and packages."""
    if simulated:
        return "cpu"
    if topology.is_tpu:
        return f"libtpu {libtpu_version()}"
    digest = hashlib.sha256(_spec(topology).read_bytes()).hexdigest()
    return f"cuda {cuda_version()} {digest}"


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
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name
        ).devices
    else:
        _state_cudnn()
        node, nodes = topology.shape
        found = topologies.get_topology_desc(
            platform="cuda",
            target_config=_spec(topology).read_text(encoding="utf-8"),
            topology=f"1x{nodes}x{node}",
        ).devices
    if len(found) != topology.devices:
        raise PacxError(
            f"--topology={topology.name}: {len(found)} devices are made of it, not "
            f"{topology.devices}"
        )
    return list(found)


def options(topology: Topology, simulated: bool) -> dict[str, Any]:
    """Compiler options that a plan adds to the step's own."""
    return {} if simulated or topology.is_tpu else GPU_OPTIONS


def _state_cudnn() -> None:
    """Gives JAX the version of cuDNN that it would ask the library for.

    The library itself is needed to run attention, not to compile it.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    fused_attention_stablehlo.check_cudnn_version = lambda: CUDNN
