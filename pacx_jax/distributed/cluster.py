"""A run's processes as SLURM, Open MPI, GKE or a Cloud TPU has started them."""

from __future__ import annotations

import os
import re

from pacx_jax.errors import PacxError


def detect(seconds: float) -> tuple[str, int, int, list[int] | None]:
    """Coordinator's host:port, how many processes, this one's number, its devices.

    The devices are those that this process shall see where there are several processes
    on a machine with GPUs, None = all. JAX_COORDINATOR_ADDRESS and
    JAX_COORDINATOR_PORT override the coordinator.

    Args:
      seconds: how long the coordinator's name may take to be known (Cloud TPU).

    Raises:
      PacxError: none of these has started this process.
    """
    # Private, and the same from jax 0.10.2 to 0.12: the public call joins at once.
    from jax._src.clusters import ClusterEnv

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        if "OMPI_COMM_WORLD_RANK" in os.environ and not (_OMPI_4 & set(os.environ)):
            return _open_mpi_5(address)
        found = ClusterEnv.auto_detect_unset_distributed_params(
            address, None, None, None, None, round(seconds)
        )
    except KeyError as e:
        raise PacxError(f"--distributed=auto: {e} is not set; {_INSTEAD}") from None
    except (RuntimeError, ValueError, OSError) as e:
        text = " ".join(str(e).split())[:200]
        raise PacxError(f"--distributed=auto: {text}; {_INSTEAD}") from None
    if None in found[:3]:
        raise PacxError(
            "--distributed=auto found no SLURM, Open MPI, Cloud TPU or GKE that has "
            f"started this process; {_INSTEAD}"
        )
    return found


_INSTEAD = "otherwise give --coordinator, --num_processes and --process_id"
_OMPI_4 = {"OMPI_MCA_orte_hnp_uri"}


def _open_mpi_5(address: str | None) -> tuple[str, int, int, list[int]]:
    """As JAX does for Open MPI 4: process 0 runs where mpirun was called.

    Open MPI 5 gives no address; its namespace holds mpirun's host and process id.
    """
    number = int(os.environ["OMPI_COMM_WORLD_RANK"])
    local = int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])
    if address is None:
        space = os.environ.get("PMIX_NAMESPACE", "")
        found = re.fullmatch(r"prterun-(.+)-(\d+)@\d+", space)
        if not found:
            raise ValueError(
                f"Open MPI's PMIX_NAMESPACE {space!r} names no host: set "
                "JAX_COORDINATOR_ADDRESS to host:port of process 0"
            )
        # A port that nobody else has, as likely as not: above what systems hand out.
        port = os.environ.get("JAX_COORDINATOR_PORT") or 61440 + int(found[2]) % 4096
        address = f"{found[1]}:{port}"
    return address, int(os.environ["OMPI_COMM_WORLD_SIZE"]), number, [local]
