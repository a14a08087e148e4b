"""Where the processes of a run meet before JAX joins them.

JAX's own start ends a process by SIGABRT, with a stack and no word of the cause, when a
peer does not come or comes twice. So all say to process 0 first who they are, and it
tells them to go on, or what is wrong. Their connections stay, for `peers.watch`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time

from pacx_jax.errors import PacxError

_LINE = 4096  # bytes that a message may have


def meet(
    address: str, num_processes: int, process_id: int, seconds: float
) -> dict[int, socket.socket]:
    """Returns once all processes are there, each with an id of its own.

    Args:
      address: host:port of process 0. JAX's service, which binds with SO_REUSEADDR,
        can listen there afterwards, though the connections stay.
      num_processes: how many there are.
      process_id: this one's number, from 0.
      seconds: how long this process waits for the last one.

    Returns:
      the connections by the other's id: of process 0 with all, of another with 0.

    Raises:
      PacxError: on every process that came: which is missing, or what is wrong.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    if process_id == 0:
        return _receive(address, int(port), num_processes, deadline, seconds)
    place = host.strip("[]"), int(port)
    return {0: _report(place, num_processes, process_id, deadline, seconds)}


def _receive(
    address, port: int, count: int, deadline: float, seconds: float
) -> dict[int, socket.socket]:
    """Process 0: waits for the others, and gives all the same answer."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(
            ("", port), family=family, backlog=count, dualstack_ipv6=both
        )
    except OSError as e:
        raise PacxError(
            f"process 0 cannot listen at port {port} : two processes have the "
            f"id 0, or another program has the port ({os.strerror(e.errno or 0)})"
        ) from None
    came: dict[int, socket.socket] = {}
    wrong, strays = "", []
    with server:
        while len(came) < count - 1 and not wrong:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = sorted(set(range(1, count)) - set(came))
                wrong = (
                    f"process {_listed(missing)} of {count} did not come to {address} "
                    f"in time ({seconds:g} s): start all of them, with the same "
                    "--coordinator and --num_processes"
                )
                break
            said = _read(connection, 5)
            number, of, left = (said.get(k, "") for k in ("id", "of", "seconds"))
            if not all(isinstance(x, (int, float)) for x in (number, of, left)):
                connection.close()  # no process of a run
            elif of != count or not 0 < number < count:
                strays.append(connection)
                wrong = f"process {number} was told of {of} processes, process 0 of "
                wrong += f"{count}: give all the same --num_processes"
            elif number in came:
                strays.append(connection)
                wrong = f"two processes have the id {number}: number them 0 to "
                wrong += f"{count - 1}"
            else:  # nobody waits longer than it said
                came[number] = connection
                deadline = min(deadline, time.monotonic() + left)
        for connection in [*came.values(), *strays]:
            _answer(connection, wrong)
            if wrong:
                connection.close()
    if wrong:
        raise PacxError(wrong)
    return came


def _answer(connection: socket.socket, wrong: str) -> None:
    """Tells a process to go on, or what is wrong."""
    with contextlib.suppress(OSError):  # it has gone: the watch will hear of that
        connection.settimeout(5)
        connection.sendall(json.dumps({"wrong": wrong}).encode() + b"\n")


def _report(
    place, count: int, number: int, deadline: float, seconds: float
) -> socket.socket:
    """Another process: says who it is, and waits for the answer."""
    name = f"{place[0]}:{place[1]}"
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection(place, timeout=max(left, 0.1))
            break
        except OSError as e:
            if deadline - time.monotonic() <= 0.2:
                raise PacxError(
                    f"process {number} could not reach process 0 at {name} within "
                    f"{seconds:g} s ({e.strerror or e}): is --coordinator its host "
                    "and port, has it started, is the port open?"
                ) from None
            time.sleep(0.2)
    left = max(deadline - time.monotonic(), 0.1)
    said = {"id": number, "of": count, "seconds": left}
    try:
        connection.sendall(json.dumps(said).encode() + b"\n")
        answer = _read(connection, left + 5)
    except OSError:  # closed already
        answer = {}
    wrong = answer.get(
        "wrong",
        f"process {number}: who answers at {name} is no process 0 that waits: the "
        "run has all its processes already, or --coordinator is another program's",
    )
    if wrong:
        connection.close()
        raise PacxError(wrong)
    return connection


def _read(connection: socket.socket, seconds: float) -> dict:
    """One message, {} where what comes is none; what follows it stays unread."""
    deadline = time.monotonic() + seconds
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _LINE:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(1)
            if not part:
                break
            line += part
        said = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _listed(numbers: list[int]) -> str:
    """At most ten of the numbers."""
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return ", ".join(map(str, numbers[:10])) + more
