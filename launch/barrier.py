"""Waits until all pods of a JobSet stand: the init container of launch/gke_jobset.yaml.

  python launch/barrier.py HOST_OF_POD_0 PODS INDEX

Pods start minutes apart where one node has still to pull the image, and the processes
of a run give each other 60 seconds. A pod that came here has pulled it.
"""

from __future__ import annotations

import socket
import sys
import time

PORT = 8475
SECONDS = 3600


def wait(
    host: str, pods: int, index: int, *, port: int = PORT, seconds=SECONDS
) -> None:
    """Returns once each of `pods` has called this with its own `index` from 0.

    Raises:
      TimeoutError: not all came within `seconds`.
    """
    deadline = time.monotonic() + seconds
    if index == 0:
        _gather(pods, port, deadline)
    else:
        _report(host, port, index, deadline)


def _gather(pods: int, port: int, deadline: float) -> None:
    waiting: dict[int, socket.socket] = {}
    with socket.create_server(("", port), backlog=pods) as server:
        while len(waiting) < pods - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            connection, _ = server.accept()
            connection.settimeout(5)
            try:
                index = int.from_bytes(connection.recv(4))
            except OSError:  # whoever it was comes again
                index = 0
            if 0 < index < pods:  # a second call of a pod replaces its first
                waiting[index] = connection
        for connection in waiting.values():
            connection.sendall(b"!")
            connection.close()


def _report(host: str, port: int, index: int, deadline: float) -> None:
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{host}:{port} did not answer")
        try:
            with socket.create_connection((host, port), timeout=min(left, 5)) as peer:
                peer.sendall(index.to_bytes(4))
                peer.settimeout(left)
                if peer.recv(1):
                    return
        except OSError:  # no such name yet, nobody listening, or it started again
            time.sleep(min(left, 1))


if __name__ == "__main__":
    try:
        wait(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except TimeoutError:
        print(f"error: not all pods stood within {SECONDS} s", file=sys.stderr)
        sys.exit(1)
