"""Object stores on loopback, and a proxy in front of them that can fail.

moto answers s3:// and fake-gcs-server gs://, both without a network. fake-gcs-server
takes no writes by Google's XML interface, in which obstore writes: the proxy makes them
uploads by the JSON interface, with the same preconditions. moto looks whether an object
is there and then writes it, so two that create it at once may both succeed, which S3
excludes: the proxy passes writes with preconditions on one by one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import random
import re
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable

import pytest

FOLDER = os.environ.get("PACX_STORES", "")
WHY = "PACX_STORES names no environment with moto_server and fake-gcs-server"
needs_stores = pytest.mark.skipif(not FOLDER, reason=WHY)
BUCKET = "bucket"
OF_ANSWERS = ("truncated", "flipped", "stall amid")
ANSWERS = {
    "503": (503, "SlowDown"),
    "429": (429, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
}
FAULTS = ("503", "429", "reset", "lost", "truncated", "flipped", "flipped up")
STALLS = ("stall", "stall after", "stall amid")  # before, after and in an answer


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def server(kind: str):
    """A store, "s3" or "gs", with an empty bucket; gives its port."""
    port = free_port()
    venv = pathlib.Path(FOLDER)
    if kind == "s3":
        command = [venv / "bin" / "moto_server", "-H", "127.0.0.1", "-p", str(port)]
    else:
        binary = next(venv.glob("lib/*/site-packages/fake_gcs*/**/bin/fake-gcs-*"))
        command = [binary, "-scheme", "http", "-host", "127.0.0.1", "-backend"]
        command += ["memory", "-port", str(port), "-log-level", "error"]
        command += ["-public-host", f"127.0.0.1:{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(list(map(str, command)), **quiet)
    try:
        make_bucket(kind, port, BUCKET)
        yield port
    finally:
        process.terminate()
        process.wait()


def make_bucket(kind: str, port: int, name: str) -> None:
    """Makes a bucket, once the server answers."""
    for _ in range(300):
        with contextlib.suppress(OSError, http.client.HTTPException):
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            if kind == "s3":
                c.request("PUT", f"/{name}")
            else:
                body = json.dumps({"name": name})
                headers = {"Content-Type": "application/json"}
                c.request("POST", "/storage/v1/b?project=p", body, headers)
            status = c.getresponse().status
            c.close()
            assert status == 200, status
            return
        time.sleep(0.1)
    raise TimeoutError(f"{kind} does not answer")


class Proxy:
    """Passes requests on to a store, and answers some of them badly.

    Attributes:
      fault: (method, path) -> one of FAULTS, STALLS or ANSWERS, "hold" to pass the
        request on once `resumed` is set, or "" to pass it on now.
      requests: (method, path) of those that came.
      faults: how many were answered badly, by kind.
    """

    def __init__(self, kind: str, port: int, fault: Callable[[str, str], str] = None):
        self.kind, self.backend = kind, port
        self.fault = fault or (lambda method, path: "")
        self.requests: list[tuple[str, str]] = []
        self.faults: dict[str, int] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock, self.conditional = threading.Lock(), threading.Lock()
        self.held, self.resumed = threading.Event(), threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # such as a client that is gone
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What a client needs to find the store."""
        if self.kind == "gs":
            return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.port}"}
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
        }


def seeded(seed: int, share: float, kinds=FAULTS) -> Callable[[str, str], str]:
    """Faults of these kinds for a share of the requests, drawn by a seed."""
    drawn, lock = random.Random(seed), threading.Lock()
    only = {"flipped up": "PUT"} | dict.fromkeys(OF_ANSWERS, "GET")

    def fault(method: str, path: str) -> str:
        possible = [kind for kind in kinds if only.get(kind, method) == method]
        with lock:
            return drawn.choice(possible) if drawn.random() < share else ""

    return fault


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_):
        """Nothing."""

    def _serve(self):
        proxy = self.proxy
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        with proxy.lock:
            fault = proxy.fault(self.command, self.path)
            proxy.requests.append((self.command, self.path))
            if fault == "hold":
                proxy.held.set()
            if fault:
                proxy.faults[fault] = proxy.faults.get(fault, 0) + 1
        if fault == "hold":
            proxy.resumed.wait(60)
        if fault == "reset":
            return self._reset()
        if fault == "stall":
            return self._say_nothing()
        if fault in ANSWERS:
            status, code = ANSWERS[fault]
            return self._answer(
                status, {}, f"<Error><Code>{code}</Code></Error>".encode()
            )
        if fault == "flipped up" and body and b"uploadId" not in self.path.encode():
            body = _flipped(body)
        status, headers, content = self._forward(body)
        if fault == "lost":
            return self._reset()
        if fault == "stall after":
            return self._say_nothing()
        if fault in OF_ANSWERS and content and status < 300 and self.command == "GET":
            if fault != "flipped":
                self._answer(status, headers, content, len(content) // 2)
                return fault == "truncated" or self._say_nothing()
            if "list-type" not in self.path:  # what the store says of itself is true
                content = _flipped(content)
        self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _reset(self):
        """Ends the connection without an answer."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _say_nothing(self):
        """Returns when the client has given up."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.recv(1)

    def _answer(self, status, headers, content, sent=None):
        self.send_response(status)
        skipped = ("content-length", "transfer-encoding", "connection", "date")
        for name, value in headers.items():
            if name.lower() not in (*skipped, "server"):
                self.send_header(name, value)
        length = len(content)
        if self.command == "HEAD":
            length = headers.get("Content-Length", 0)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
        if sent is not None:
            self.close_connection = True

    def _send(self, method, path, body, headers):
        c = http.client.HTTPConnection("127.0.0.1", self.proxy.backend, timeout=60)
        c.request(method, path, body, headers)
        answer = c.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        c.close()
        return found

    def _forward(self, body):
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        # moto checks signatures of nothing, but reads the host of virtual buckets.
        headers["Host"] = f"127.0.0.1:{self.proxy.backend}"
        if self.proxy.kind == "gs" and self.command in ("PUT", "POST"):
            return self._translated(body)
        alone = contextlib.nullcontext()
        if {"if-match", "if-none-match"} & {name.lower() for name in headers}:
            alone = self.proxy.conditional
        with alone:
            return self._send(self.command, self.path, body, headers)

    def _translated(self, body):
        """A write by the XML interface, by the JSON one."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        bucket, _, name = urllib.parse.unquote(url.path.lstrip("/")).partition("/")
        parts = self.proxy.parts
        if "uploads" in query:
            upload = f"{random.getrandbits(64):x}"
            parts[upload] = {}
            tag = "InitiateMultipartUploadResult"
            xml = f"<{tag}><Bucket>b</Bucket><Key>k</Key><UploadId>{upload}</UploadId>"
            return 200, {}, f"{xml}</{tag}>".encode()
        upload = query.get("uploadId", "")
        if "partNumber" in query:
            parts[upload][int(query["partNumber"])] = body
            return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""
        if upload:
            numbers = map(int, re.findall(rb"<PartNumber>(\d+)<", body))
            body = b"".join(parts[upload][number] for number in numbers)
        about: dict = {"name": name, "metadata": {}}
        for key, value in self.headers.items():
            if key.lower().startswith("x-goog-meta-"):
                about["metadata"][key.lower().removeprefix("x-goog-meta-")] = value
        condition = self.headers.get("x-goog-if-generation-match")
        query = "uploadType=multipart" + (
            f"&ifGenerationMatch={condition}" if condition else ""
        )
        edge = "edge_of_the_parts"
        head = f"--{edge}\r\nContent-Type: application/json\r\n\r\n{json.dumps(about)}"
        head += f"\r\n--{edge}\r\nContent-Type: application/octet-stream\r\n\r\n"
        message = head.encode() + body + f"\r\n--{edge}--".encode()
        kind = {"Content-Type": f"multipart/related; boundary={edge}"}
        path = f"/upload/storage/v1/b/{bucket}/o?{query}"
        status, headers, content = self._send("POST", path, message, kind)
        if status != 200:
            return status, headers, content
        made = json.loads(content)
        headers = {"ETag": made["etag"], "x-goog-generation": made["generation"]}
        if upload:
            tag, etag = "CompleteMultipartUploadResult", made["etag"].strip('"')
            xml = f"<{tag}><ETag>{etag}</ETag></{tag}>"
            return 200, headers, xml.encode()
        return 200, headers, b""


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return b"%b%c%b" % (content[:middle], content[middle] ^ 1, content[middle + 1 :])
