"""Several processes of one run: how they join, agree, and end.

JAX's runtime watches them. If a process is silent for HEARTBEAT_SECONDS, it counts as
lost, and SIGABRT ends the others (exit code 134) wherever they are. Launchers start
them again, and the run continues from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import secrets
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from pacx_jax.errors import PacxError, one_line

JOIN_SECONDS = 60  # for all processes of a run to join
HEARTBEAT_SECONDS = 10


def start_detected() -> None:
    """Joins the processes that SLURM, Open MPI, a Cloud TPU or GKE started.

    Raises PacxError if none of these is found, since a single process would train
    alone. JAX_COORDINATOR_ADDRESS overrides the coordinator, JAX_COORDINATOR_PORT its
    port.
    """
    try:
        _join(**open_mpi_5())
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as e:
        raise PacxError(
            "--distributed=auto found no SLURM, Open MPI, Cloud TPU or GKE that has "
            f"started this process ({type(e).__name__}: {one_line(e)}): otherwise "
            "give --coordinator, --num_processes and --process_id"
        ) from None


def start(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes of this run, before any device is used.

    Args:
      coordinator: host:port of process 0.
      num_processes: number of processes, each with its own devices.
      process_id: number of this process, from 0.
    """
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise PacxError(
            f"--num_processes={num_processes} --process_id={process_id}: give an id "
            "from 0 to num_processes - 1"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise PacxError(f"--coordinator={coordinator}: give host:port of process 0")
    try:
        _join(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
        )
    except (RuntimeError, ValueError) as e:
        raise PacxError(
            f"process {process_id} of {num_processes} could not join {coordinator}: "
            f"{one_line(e)}"
        ) from None


def _join(**place: Any) -> None:
    """Starts JAX's service; ends this process if not all join in time.

    At its own time limit JAX would abort without naming the cause.
    """
    text = (
        f"error: the processes of this run did not all come within {JOIN_SECONDS} s: "
        "start all of them, with the same --coordinator and --num_processes, each with "
        "a --process_id of its own; is the coordinator's port open to them?"
    )
    late = threading.Timer(JOIN_SECONDS, end_at_once, (text, 2))
    late.daemon = True
    late.start()
    # absl dumps Python's stacks at an abort, which can crash with another code.
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=2 * JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    finally:
        late.cancel()


def open_mpi_5() -> dict[str, Any]:
    """Arguments for `initialize` under Open MPI 5, which JAX does not know; else {}.

    As for Open MPI 4, process 0 runs where mpirun was called. Open MPI 5 gives no
    address, but its namespace holds mpirun's host and process id.
    """
    rank = os.environ.get("OMPI_COMM_WORLD_RANK")
    if rank is None or "OMPI_MCA_orte_hnp_uri" in os.environ:  # Open MPI 4's
        return {}
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        space = os.environ.get("PMIX_NAMESPACE", "")
        found = re.fullmatch(r"prterun-(.+)-(\d+)@\d+", space)
        if not found:
            raise ValueError(
                f"Open MPI's PMIX_NAMESPACE {space!r} names no host: set "
                "JAX_COORDINATOR_ADDRESS to host:port of process 0"
            )
        # Above the ports that systems hand out, and separate for each job on a host.
        port = os.environ.get("JAX_COORDINATOR_PORT") or 61440 + int(found[2]) % 4096
        address = f"{found[1]}:{port}"
    return {
        "coordinator_address": address,
        "num_processes": int(os.environ["OMPI_COMM_WORLD_SIZE"]),
        "process_id": int(rank),
        "local_device_ids": [int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])],
    }


def is_first() -> bool:
    """Whether this is process 0, which writes what the run writes once."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """Returns the first process's integer on every process."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard("allow"):  # of this integer
        return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def gathered(text: str) -> list[str]:
    """Texts of all processes, in order. All must call it, in the same sequence."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    with jax.transfer_guard("allow"):
        sizes = multihost_utils.process_allgather(np.int32(data.size))
        padded = np.pad(data, (0, sizes.max() - data.size))
        rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def check_agreement(content: dict[str, Any]) -> None:
    """Raises PacxError on all processes unless each name has one repr on all."""
    text = json.dumps({name: repr(value) for name, value in content.items()})
    first, *others = map(json.loads, gathered(text))
    for number, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            here, there = first.get(name, "missing"), other.get(name, "missing")
            if here != there:
                raise PacxError(
                    f"{name} of process {number} is {there}, that of process 0 {here}: "
                    "give every process the same command and data"
                )


def check_devices(num_devices: int) -> None:
    """Raises PacxError unless the mesh has all devices of several processes.

    A process without a device in the mesh would wait for the others forever.
    """
    total = jax.device_count()
    if jax.process_count() > 1 and num_devices not in (0, total):
        raise PacxError(
            f"config.num_devices is {num_devices} but {jax.process_count()} processes "
            f"have {total} devices: leave it at 0, or give each process fewer devices"
        )


def check_shared(workdir: str) -> None:
    """Raises PacxError on all processes unless all see the same `workdir` folder."""
    if jax.process_count() == 1:
        return
    mark = pathlib.Path(workdir) / f".shared_{secrets.token_hex(8)}"
    if is_first():
        mark.touch()
    first = mark.with_name(gathered(mark.name)[0])
    seen = gathered(str(first.exists()))
    if is_first():
        mark.unlink()
    blind = [str(i) for i, answer in enumerate(seen) if answer != "True"]
    if blind:
        raise PacxError(
            f"{workdir} of process {', '.join(blind)} is another folder than that of "
            "process 0: give a --workdir on a file system that all see"
        )


def leave() -> None:
    """Waits until all processes have finished, so none counts as lost."""
    jax.distributed.shutdown()


def end_at_once(text: str, code: int) -> NoReturn:
    """Prints why to stderr and exits without waiting for other processes."""
    print(text, file=sys.stderr, flush=True)
    os._exit(code)


def wait_for_abort(error: BaseException) -> None:
    """Returns after a while, or never if another process was lost.

    For errors without a known cause, which collectives and barriers raise when a
    process is lost. JAX then aborts this process within its heartbeat.
    """
    text = f"stopped: {type(error).__name__}: {one_line(error)}"
    seconds = 2 * HEARTBEAT_SECONDS
    more = f"if another process was lost, JAX says so within {seconds} s"
    print(f"{text} ({more})", file=sys.stderr, flush=True)
    time.sleep(seconds)
