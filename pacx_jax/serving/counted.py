"""Around every request: counts, a line of the log, headers of the answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive

from pacx_jax.serving.metrics import Metrics

LOG = logging.getLogger("pacx_jax.serving")
# The pages load nothing from elsewhere, and nobody may frame them.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; form-action 'none'; frame-ancestors 'none'; "
        "base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Counted:
    """Counts and logs each request, without names of files, and adds HEADERS.

    Before a refusal is sent, what still comes of the body is read for a moment: a
    client that is cut off while it sends may lose the answer.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope, receive, send) -> None:
        """One ASGI call."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status, coming = time.monotonic(), 500, scope["method"] == "POST"
        more = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
        # Who expects a 100 sends nothing before it, which reading would give.
        patient = any(name == b"expect" for name, _ in scope["headers"])

        async def receiving():
            nonlocal coming
            message = await receive()
            coming = coming and message.get("more_body", False)
            return message

        async def sending(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if coming and status >= 400:
                    more.append((b"connection", b"close"))
                    if not patient:
                        await _pass(receiving, lambda: coming)
                message = message | {"headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        finally:
            seconds = time.monotonic() - start
            # Paths that are no route's would make a series each.
            route = scope["path"] if "endpoint" in scope else "other"
            self._metrics.answer(route, status, seconds)
            LOG.debug(
                "%s %s %d %.0f ms", scope["method"], route, status, 1000 * seconds
            )


async def _pass(receive: Receive, coming: Callable[[], bool]) -> None:
    """Reads and forgets the rest of a body, for at most 2 s."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            while coming():
                await receive()
