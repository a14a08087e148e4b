"""The service as a Starlette application: routes, and what each request goes through.

A request for work is refused before its body is read if its token is wrong (401), the
service is not ready (503) or has enough to do (429). Then its files are read and
decoded, its images join others in batches, and it gets all results or one line of
JSON, {"error": "..."}.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
import importlib.resources
import math
import os
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pacx_jax.errors import PacxError, one_line
from pacx_jax.serving import answers, openapi, uploads
from pacx_jax.serving.batching import Batcher, InferenceFailed
from pacx_jax.serving.counted import Counted
from pacx_jax.serving.metrics import CONTENT_TYPE, Metrics
from pacx_jax.serving.model import Served
from pacx_jax.serving.uploads import Limits

PAGES = {
    "/": "upload.html",
    "/docs": "docs.html",
    "/upload.js": "upload.js",
    "/docs.js": "docs.js",
    "/style.css": "style.css",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


class Service:
    """The state of one service and its endpoints.

    Args:
      served: the model.
      limits: of requests.
      token: what requests must carry, as `Authorization: Bearer TOKEN`; "": nothing.
      wait: seconds for which a batch that is not full waits for more images.

    Attributes:
      ready: whether everything is compiled and the service is not draining.
      failure: what compiling raised, if anything.
    """

    def __init__(
        self, served: Served, limits: Limits, token: str = "", wait: float = 0.005
    ):
        self.served, self.limits = served, limits
        self.compiled = self.draining = False
        self.failure: Exception | None = None
        self._token, self._requests = token.encode(), 0
        self._decoders = concurrent.futures.ThreadPoolExecutor(
            min(4, os.cpu_count() or 1), "decode"
        )
        self.metrics = Metrics(
            lambda: self.batcher.waiting, lambda: self._requests, lambda: self.ready
        )
        self.batcher = Batcher(
            served.work, served.encoder.batch_size, wait, self.metrics.batch
        )

    @property
    def ready(self) -> bool:
        """Whether requests are answered, and a balancer should send them here."""
        return self.compiled and not self.draining

    async def start(self, failed: Callable[[], None] = lambda: None) -> None:
        """Compiles, then begins to compute; `failed` is called if that raises."""
        try:
            await self.batcher.alone(self.served.compile)
        except Exception as error:
            self.failure = error
            failed()
            return
        self.batcher.start()
        self.compiled = True

    def stop(self) -> None:
        """Ends the threads, without waiting for a batch that is computed."""
        self.batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def application(self, hosts: tuple[str, ...] = ("*",)) -> Starlette:
        """The ASGI application; `hosts` may stand in the header Host."""
        work = [
            Route(f"/{kind}", self._answering(kind), methods=["POST"])
            for kind in answers.ROUTES
        ]
        told = [
            Route("/health", self._health),
            Route("/ready", self._is_ready),
            Route("/metrics", self._metrics),
            Route("/openapi.json", self._openapi),
        ]
        pages = [Route(path, _page(name)) for path, name in PAGES.items()]
        return Starlette(
            routes=[*work, *told, *pages],
            middleware=[
                Middleware(Counted, metrics=self.metrics),
                Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
            ],
            exception_handlers={
                HTTPException: _one_line,
                ClientDisconnect: _gone,
                Exception: _bug,
            },
        )

    def _answering(self, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            self._check(request, kind)
            self._requests += 1
            try:
                return await self._answer(kind, request)
            finally:
                self._requests -= 1

        return endpoint

    def _check(self, request: Request, kind: str) -> None:
        self._check_token(request)
        if kind not in self.served.work:
            raise HTTPException(
                404, f"/{kind}: the model that is served has no classifier"
            )
        if not self.compiled:
            raise HTTPException(
                503, "still compiling: ask /ready", {"Retry-After": "5"}
            )
        if self._requests >= self.limits.requests:
            seconds = max(1, math.ceil(self.batcher.seconds_behind))
            raise HTTPException(
                429,
                f"{self._requests} requests are in progress: try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )

    def _check_token(self, request: Request) -> None:
        if not self._token:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._token)
        if scheme.lower() != "bearer" or not same:
            raise HTTPException(
                401,
                "no or wrong token: send the header Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _answer(self, kind: str, request: Request) -> Response:
        if other := sorted(set(request.query_params) - {"view"}):
            raise HTTPException(
                400, f"unknown parameter {one_line(other[0], 80)!r}: there is view"
            )
        view = request.query_params.get("view")
        loop = asyncio.get_running_loop()
        received = await uploads.read(request, self.limits)

        def prepare(upload: uploads.Upload):
            image = uploads.decode(upload, self.limits)
            try:
                return self.served.prepare(image, view)
            except PacxError as error:
                raise HTTPException(422, str(error)) from None

        async def one(upload: uploads.Upload):
            row = await loop.run_in_executor(self._decoders, prepare, upload)
            return await self.batcher.submit(kind, row)

        tasks = [asyncio.ensure_future(one(upload)) for upload in received]
        try:
            async with asyncio.timeout(self.limits.seconds):
                results = await asyncio.gather(*tasks)
        except TimeoutError:
            raise HTTPException(
                504, f"no result in {self.limits.seconds:g} s: the service is busy"
            ) from None
        except InferenceFailed as error:
            raise HTTPException(500, str(error)) from None
        finally:
            for task in tasks:
                task.cancel()
            for upload in received:
                upload.file.close()
        names = [one_line(upload.name, 200) for upload in received]
        return JSONResponse(answers.ROUTES[kind](self.served, names, results))

    async def _health(self, request: Request) -> Response:
        """Whether the process is worth keeping: 503 if nothing is computed any more."""
        stuck = self.failure or self.batcher.stuck(4 * self.limits.seconds)
        state = {"status": "inference has stopped: restart" if stuck else "ok"}
        return JSONResponse(state, 503 if stuck else 200)

    async def _is_ready(self, request: Request) -> Response:
        status = "draining" if self.draining else "compiling"
        return JSONResponse(
            {"status": "ready" if self.ready else status}, 200 if self.ready else 503
        )

    async def _metrics(self, request: Request) -> Response:
        self._check_token(request)
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        about = openapi.describe(self.served, self.limits, bool(self._token))
        return JSONResponse(about)


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    data = importlib.resources.files("pacx_jax.serving").joinpath("pages", name)
    content, kind = data.read_bytes(), _TYPES[name.rpartition(".")[2]]

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint


async def _one_line(request: Request, error: HTTPException) -> Response:
    return JSONResponse(
        {"error": one_line(error.detail, 1000)}, error.status_code, error.headers
    )


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return JSONResponse({"error": "the client went away"}, 400)


async def _bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "internal error; the service's log has it"}, 500)
