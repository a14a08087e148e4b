"""Several processes of one run: how they start, agree, and end when one is lost."""

from __future__ import annotations

import ctypes
import hashlib
import pathlib
import secrets
import signal
import threading
import time
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its key-value store has no public name

from pacx_jax.distributed import cluster, peers, rendezvous
from pacx_jax.distributed.peers import EXIT_CODE
from pacx_jax.errors import PacxError

# Words of the errors that a collective raises when a peer is gone.
_LOSS = ("gloo", "nccl", "connection", "unavailable", "coordination", "deadline")
MEETING_SECONDS = 45  # for all processes of a run to come
INITIALIZATION_SECONDS = 60
HEARTBEAT_SECONDS = 10  # JAX's own measure of a host that is silent
_jax_hears = None  # JAX's handler of SIGTERM


def start_detected() -> None:
    """Joins the processes that SLURM, Open MPI, a Cloud TPU or GKE has started.

    A single process, where none of these is found, is an error: it would train alone.
    """
    start(*cluster.detect(MEETING_SECONDS))


def start(
    coordinator: str,
    num_processes: int,
    process_id: int,
    local_device_ids: list[int] | None = None,
) -> None:
    """Joins the other processes of this run, before any device is used.

    Args:
      coordinator: host:port of process 0.
      num_processes: how many there are, each with its own devices.
      process_id: this one's number, from 0.
      local_device_ids: the GPUs that this process shall see; None = all.

    Raises:
      PacxError: on every process, within MEETING_SECONDS: not all came, or two with
        the same number.
    """
    if not coordinator or num_processes < 1 or not 0 <= process_id < num_processes:
        raise PacxError(
            f"--coordinator={coordinator} --num_processes={num_processes} "
            f"--process_id={process_id}: give host:port, and an id from 0 to "
            "num_processes - 1"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise PacxError(f"--coordinator={coordinator}: give host:port")
    met = rendezvous.meet(coordinator, num_processes, process_id, MEETING_SECONDS)
    if num_processes > 1:
        peers.watch(process_id, met)
    what = f"process {process_id} of {num_processes} could not join {coordinator}"
    try:
        _initialize(what, coordinator, num_processes, process_id, local_device_ids)
    except (RuntimeError, ValueError) as e:
        raise PacxError(f"{what}: {_one_line(e)}") from None
    _take_sigterm_back()


def _initialize(what: str, *names: str | int | list[int] | None) -> None:
    """Starts JAX's service; the run ends here if not all processes come to it.

    At its own time limit JAX aborts, so this one is before it.
    """
    peers.delay_abort()
    late = threading.Timer(
        INITIALIZATION_SECONDS,
        lambda: peers.end(
            f"error: {what} within {INITIALIZATION_SECONDS} s: start all processes, "
            "each with the same --coordinator and an id of its own",
            2,
        ),
    )
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            *names,
            initialization_timeout=2 * INITIALIZATION_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    finally:
        late.cancel()


def _take_sigterm_back() -> None:
    """Puts Python's handler in the place of the one that JAX has just put there.

    JAX's only notes the signal, for the next step to see: during set-up that is late.
    """
    global _jax_hears
    if threading.current_thread() is not threading.main_thread():
        return
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    handler = libc.signal(signal.SIGTERM, None)
    if handler:
        _jax_hears = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def agree_to_end() -> None:
    """Lets JAX's service find a step after which all processes end."""
    if _jax_hears is not None:
        _jax_hears(signal.SIGTERM)


def is_first() -> bool:
    """Whether this process writes what the run writes once."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """The first process's integer, everywhere."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    with jax.transfer_guard("allow"):  # of this integer
        return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def check_agreement(what: str, content: Any) -> None:
    """PacxError on every process unless all have the same `content` (its repr)."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = hashlib.sha256(repr(content).encode()).digest()
    all_of_them = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    differing = [
        i for i, other in enumerate(all_of_them) if (other != all_of_them[0]).any()
    ]
    if differing:
        raise PacxError(
            f"{what} of process {', '.join(map(str, differing))} differs from that of "
            "process 0: give every process the same command and data"
        )


def check_devices(num_devices: int) -> None:
    """PacxError unless the mesh has all devices of all processes, if there are several.

    A process without a device in it would wait for the others without end.
    """
    total = jax.device_count()
    if jax.process_count() > 1 and num_devices not in (0, total):
        raise PacxError(
            f"config.num_devices is {num_devices} but {jax.process_count()} processes "
            f"have {total} devices: leave it at 0, or give each process fewer devices"
        )


def check_shared(workdir: str) -> None:
    """PacxError on every process unless `workdir`, a folder, is the same to all."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mark = pathlib.Path(workdir) / f".shared_{agreed(secrets.randbelow(2**31)):x}"
    if is_first():
        mark.touch()
    multihost_utils.sync_global_devices("marked")
    seen = multihost_utils.process_allgather(np.array(mark.exists()))
    if is_first():
        mark.unlink()
    blind = np.flatnonzero(~seen)
    if blind.size:
        raise PacxError(
            f"{workdir} of process {', '.join(map(str, blind))} is another folder than "
            "that of process 0: give a --workdir on a file system that all see"
        )


def end_if_bereaved(error: BaseException) -> None:
    """Ends this process at once where an error means that another one was lost."""
    count = distributed.global_state.num_processes  # which starts no device
    if count == 1 or not any(w in str(error).lower() for w in _LOSS):
        return
    time.sleep(1)  # the watch knows who ended and why, and ends this process itself
    peers.end(
        f"stopped: the connection with the other processes of this run was lost "
        f"({_one_line(error)}); start all of them again, and the run goes on from its "
        "last checkpoint",
        EXIT_CODE,
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
