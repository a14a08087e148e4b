"""uvicorn as this service needs it: patience with connections, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pacx_jax.serving.app import Service


class Connection(H11Protocol):
    """Closes a connection that does not finish a request's head in time.

    uvicorn itself limits only the time between requests.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits further while what came is a part of a head."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._forget()
        super().connection_lost(exc)

    def _between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if not self._between():
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.timeout_keep_alive, self._close)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self._between() and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server that ends with its requests answered, and without a signal's exit code.

    Args:
      config: of uvicorn.
      service: which is told that it drains.
      delay: seconds for which it goes on listening after the signal.
    """

    def __init__(self, config: uvicorn.Config, service: Service, delay: float):
        super().__init__(config)
        self._service, self._delay = service, delay

    def stop(self) -> None:
        """Ends the server as a signal does."""
        self._service.draining = True
        self.should_exit = True

    async def shutdown(self, sockets=None) -> None:
        """Listens on for the delay, then finishes what is in progress."""
        if not self._service.failure:
            await asyncio.sleep(self._delay)
        await super().shutdown(sockets)

    def handle_exit(self, sig, frame) -> None:
        """On SIGTERM or Ctrl-C; the second Ctrl-C does not wait."""
        super().handle_exit(sig, frame)
        self._service.draining = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signals, once obeyed, are not raised again."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
