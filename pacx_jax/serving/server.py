"""Serves a model over HTTP (extra `serve`), on this machine alone by default.

  pacx serve --model=runs/finetune --port=8000
  curl --form file=@film.png http://127.0.0.1:8000/embed

/embed, /predict (of classifiers) and /rollout take JPEG, PNG and DICOM files. / is a
page to upload them, /docs describes the routes, /metrics counts for Prometheus. SIGTERM
and Ctrl-C end it after the requests in progress. docs/serving.md has the details.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import sys

from pacx_jax import cli, files
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError, install

LOG = logging.getLogger("pacx_jax.serving")
LEAST_TOKEN = 16  # characters
_LOCAL = ("127.0.0.1", "::1", "localhost")


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pacx serve", description=__doc__, remote=("model",))
    add = parser.add_argument
    add("--model", required=True, help="a model folder, or a finished run's workdir")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--batch_size", type=int, default=16, help="most images of a batch")
    add("--batch_wait_ms", type=float, default=5, help="of a batch that is not full")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--max_bytes", type=int, default=64 * 2**20, help="of a request")
    add("--max_pixels", type=int, default=50_000_000, help="of an image")
    add("--max_images", type=int, default=16, help="files of a request")
    add("--max_requests", type=int, default=32, help="in progress; more get 429")
    add("--timeout", type=float, default=30, help="seconds from upload to answer")
    add("--upload_timeout", type=float, default=30, help="seconds for the upload")
    add(
        "--drain_delay",
        type=float,
        default=0,
        help="seconds between a SIGTERM and the end of listening, in which /ready "
        "says 503, for balancers to take notice",
    )
    add("--token_file", help="file with the token that requests must carry")
    add(
        "--without_token",
        action="store_true",
        help="let everyone who reaches an address other than this machine's own use it",
    )
    add("--quiet", action="store_true", help="no line for each request")
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags; PacxError for values that go nowhere."""
    args = _parser().parse_args(argv)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    for name in vars(args):
        value, least = getattr(args, name), 1 if name.startswith("max") else 0
        if name in ("batch_size",) or name.endswith("timeout"):
            least = 1
        if isinstance(value, int | float) and not least <= value < float("inf"):
            raise PacxError(f"--{name} {value}: give {least} or more")
    if args.port > 65535:
        raise PacxError(f"--port {args.port}: give 0 to 65535")
    if args.max_pixels > 50_000_000:
        raise PacxError(
            f"--max_pixels {args.max_pixels}: give at most 50000000, what is decoded"
        )
    if args.token_file and args.without_token:
        raise PacxError("--without_token: leave it out, --token_file is given")
    if not (args.host in _LOCAL or args.token_file or args.without_token):
        raise PacxError(
            f"--host {args.host}: others can reach it: give --token_file, or say "
            "--without_token"
        )


def read_token(path: str | None) -> str:
    """The token in a file, "" for no file; PacxError for one that is too short."""
    if not path:
        return ""
    token = files.read_bytes(path, 10_000).decode("utf-8", "replace").strip()
    if len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable()):
        raise PacxError(
            f"--token_file {path}: its token has to be {LEAST_TOKEN} or more ASCII "
            "letters, such as those of `openssl rand -hex 32`"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; PacxError for a port in use or a wrong address."""
    try:
        (family, *_, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        found = socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = f"cannot listen ({error.strerror or error})"
        if isinstance(error, OSError) and "in use" in str(error):
            reason = "the port is in use"
        raise PacxError(
            f"--host={host} --port={port}: {reason}: give another port, such as "
            f"--port={port % 65535 + 1}, or --port=0 for any that is free"
        ) from None
    return found


def _run(args: argparse.Namespace, sock: socket.socket, token: str) -> int:
    try:
        import uvicorn

        from pacx_jax.serving import app, model
        from pacx_jax.serving.connections import Connection, Server
        from pacx_jax.serving.uploads import Limits
    except ImportError as error:
        raise PacxError(f"serving needs {error.name}: {install('serve')}") from None
    limits = Limits(
        bytes=args.max_bytes,
        pixels=args.max_pixels,
        images=args.max_images,
        requests=args.max_requests,
        seconds=args.timeout,
        upload_seconds=args.upload_timeout,
    )
    served = model.load(args.model, args.batch_size, args.dtype)
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    async def serve() -> app.Service:
        service = app.Service(served, limits, token, args.batch_wait_ms / 1000)
        # A page elsewhere could have its own name point here; then Host would tell.
        hosts = ("127.0.0.1", "localhost", "[::1]")
        if token or args.host not in _LOCAL:
            hosts = ("*",)
        config = uvicorn.Config(
            service.application(hosts),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=int(args.timeout) + 5,
        )
        server = Server(config, service, args.drain_delay)
        starting = asyncio.create_task(service.start(server.stop))
        starting.add_done_callback(
            lambda _: (
                service.ready
                and LOG.info("%s on http://%s:%d is ready", args.model, shown, port)
            )
        )
        await server.serve([sock])
        service.stop()
        return service

    service = asyncio.run(serve())
    if service.failure:
        raise service.failure
    if service.batcher.busy or not service.compiled:
        # Its thread cannot be stopped, and the interpreter would wait for it.
        processes.end_at_once("ended beside a batch that was not ready", 0)
    LOG.info("ended")
    return 0


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    args = parse(argv)
    token = read_token(args.token_file)
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING
    )
    LOG.setLevel(logging.INFO if args.quiet else logging.DEBUG)
    with contextlib.closing(listen(args.host, args.port)) as sock:
        return _run(args, sock, token)


if __name__ == "__main__":
    sys.exit(main())
