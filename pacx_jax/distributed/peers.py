"""The processes of one run watch each other: when one ends, the others do, at once.

Each holds a TCP connection with process 0, over which they have met (`rendezvous.py`).
The kernel closes it with its process, however that ended, even while a compilation
holds up everything else, and gives up a host that does not answer for four seconds. One
that ends by itself says its exit code first; process 0 passes on what it hears. A close
without a word is a loss.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: launchers start the same command again
# Seconds without an answer of its kernel, and how many times, until a host is lost.
_KEEPALIVE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}
_WORD = struct.Struct(">BI?")  # exit code, of which process, whether it was lost


class Peers:
    """This process's connections: of process 0 to all, of another to process 0."""

    def __init__(self, me: int, connections: dict[int, socket.socket]):
        self.me, self._connections = me, connections
        self._done: set[int] = set()  # have ended in order, or are about to
        for connection in connections.values():
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                option = getattr(socket, name, None)  # macOS has not all of them
                if option is not None:
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def watch(self) -> None:
        """Hears the others from now on, in a thread, and ends when one of them has."""
        threading.Thread(target=self._watch, daemon=True).start()

    def say(self, code: int, number: int, lost: bool) -> None:
        """Tells the others that process `number` ends with `code`."""
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # it has ended, and need not hear
                connection.sendall(_WORD.pack(code, number, lost))
        # JAX's service is in process 0; without it the others would abort.
        if code and self.me == 0:
            self._wait_for_closing(time.monotonic() + 1)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._hear(key.fileobj, key.data):
                        selector.unregister(key.fileobj)

    def _hear(self, connection: socket.socket, number: int) -> bool:
        """Reads one word; whether more may follow."""
        try:
            word = connection.recv(_WORD.size, socket.MSG_WAITALL)
        except OSError:  # reset, or its host does not answer
            word = b""
        if len(word) == _WORD.size:
            code, who, lost = _WORD.unpack(word)
            if code == 0:
                self._done.add(number)
            else:
                _follow(code, who, lost)
        elif number not in self._done:
            _follow(EXIT_CODE, number, True)
        return len(word) == _WORD.size

    def _wait_for_closing(self, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self._connections.values():
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if _is_closed(key.fileobj):
                        selector.unregister(key.fileobj)


_mine: Peers | None = None
_ending = threading.Lock()


def end(text: str, code: int, *, of: tuple[int, bool] | None = None) -> NoReturn:
    """Says why on standard error, tells the run's other processes, and ends at once.

    Whatever would be closed in order might wait for them. Of several threads that want
    to end the process, the first says why.

    Args:
      of: which process's end this follows, and whether that one was lost.
    """
    if not _ending.acquire(blocking=False):
        while True:
            time.sleep(60)
    try:
        print(text, file=sys.stderr, flush=True)
        if _mine is not None:
            _mine.say(code, *(of or (_mine.me, False)))
    finally:
        try:
            os._exit(code)
        finally:  # a test has put something else in its place
            _ending.release()


def watching() -> bool:
    """Whether this process is one of several."""
    return _mine is not None


def leave() -> None:
    """Tells the others that this process ends in order, and they need not."""
    if _mine is not None:
        _mine.say(0, _mine.me, False)


def watch(me: int, connections: dict[int, socket.socket]) -> None:
    """Ends this process from now on when one of the others ends out of order.

    Args:
      me: this process's number.
      connections: as `rendezvous.meet` returns them.
    """
    global _mine
    _mine = Peers(me, connections)
    _mine.watch()


def delay_abort() -> None:
    """Makes an abort of this process wait for six seconds, in the thread it comes from.

    JAX's runtime aborts at once when process 0 is lost: the watch ends the process
    first. As the signal's handler, sleep gets its number, 6, and may be called there
    (signal-safety(7)).
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _follow(code: int, number: int, lost: bool) -> NoReturn:
    """Ends after another process has, with its code; 75 where that one was lost."""
    again = "start all of them again, and the run goes on from its last checkpoint"
    if lost:
        why = f"another process of this run was lost (process {number}); {again}"
    elif code == EXIT_CODE:
        why = f"process {number} was asked to end; {again}"
    else:
        why = f"process {number} ended with code {code}: its own output says why"
    if not lost:  # what stops all of them alike, each says itself
        time.sleep(0.5)
    end(f"stopped: {why}", code, of=(number, lost))


def _is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1024, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
