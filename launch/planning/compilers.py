"""What compiles a step for a topology: libtpu, JAX's CUDA plugin, or XLA for CPUs.

libtpu and the plugin's two wheels lie in the environment, or in the folders PACX_LIBTPU
and PACX_CUDA. Neither needs the device.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import sys

from launch.planning.chips import SPECS, Topology
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
    """The version of WHEELS[variable], both where they differ; "none" if not installed.

    In the folder that the variable names, or in the environment.
    """
    folder = os.environ.get(variable)
    path, found = [folder] if folder else sys.path, set()
    for name in WHEELS[variable]:
        wheels = importlib.metadata.distributions(name=name, path=path)
        found.add(next((wheel.version for wheel in wheels), "none"))
    return " and ".join(sorted(found))


def check(topology: Topology) -> None:
    """PacxError unless what compiles for the topology is installed."""
    variable = "PACX_LIBTPU" if topology.is_tpu else "PACX_CUDA"
    found, jax = version(variable), importlib.metadata.version("jax")
    if found == "none" or (not topology.is_tpu and found != jax):
        exact = "" if topology.is_tpu else f"=={jax}"
        wheels = " ".join(name + exact for name in WHEELS[variable])
        raise PacxError(
            f"--topology={topology.name}: to compile for it, pip install --no-deps "
            f"--target=DIR {wheels}, and set {variable}=DIR (docs/scaling.md); "
            f"installed is {found}"
        )


def environment(topology: Topology) -> dict[str, str]:
    """Variables for the process that compiles."""
    folders = (os.environ.get(name) for name in (*WHEELS, "PYTHONPATH"))
    found = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to wait for
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is claimed
    }
    if topology.simulated:
        flags = f"--xla_force_host_platform_device_count={topology.devices}"
        found["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"
    return found


def assume_cudnn(replace=setattr) -> None:
    """JAX traces cuDNN's attention here, as for the version CUDNN.

    It would ask the library, which is needed to run attention, not to compile it.

    Args:
      replace: what sets an attribute of JAX's module; a test's takes it back.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    replace(fused_attention_stablehlo, "check_cudnn_version", lambda: CUDNN)


def devices(topology: Topology) -> list:
    """The topology's devices, in the process that compiles.

    Raises:
      PacxError: libtpu makes another number of them.
    """
    import jax
    from jax.experimental import topologies

    if topology.simulated:
        return jax.devices()
    args = {"platform": "tpu", "topology_name": topology.name}
    if not topology.is_tpu:
        assume_cudnn()
        spec = SPECS / f"{topology.chip.name.lower()}.txtpb"
        node, nodes = topology.shape
        args = {"platform": "cuda", "topology": f"1x{nodes}x{node}"}
        args["target_config"] = spec.read_text(encoding="utf-8")
    found = topologies.get_topology_desc(**args).devices
    if len(found) != topology.devices:
        raise PacxError(f"--topology={topology.name}: it has {len(found)} devices here")
    return list(found)
