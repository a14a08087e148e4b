"""Tries a service under load, on this machine alone: how fast, how late, what is lost.

  python launch/load_test.py --model=runs/finetune

Starts `pacx_jax.serving.server` on a free port of 127.0.0.1 and measures, each for
--seconds: `encoder(files)` in a process of its own, what `embed` does; as many requests
of one image as --clients at once can send; and half that rate, arriving evenly, whose
latencies count from when a request was due. Then --requests good and bad ones in random
order: each has to get the status that its kind should have, and the service has to give
the same embedding afterwards and end well on SIGTERM. One line of JSON comes last; exit
code 1 if anything was lost.
"""

from __future__ import annotations

import collections
import concurrent.futures
import http.client
import io
import json
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As a script, this file's folder comes first, where nothing is to be found.
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402

from pacx_jax import cli  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402

MAX_BYTES = 2**20  # of a request: small, so that too long ones are cheap
SHAPE = (390, 320)  # of a drawn image, h w: as CheXpert's small ones
_EMBED = """
import sys, time
from pacx_jax import load_encoder
encoder = load_encoder(sys.argv[1], batch_size=int(sys.argv[2]))
files = sys.argv[4:] * (int(sys.argv[2]) // 8 + 1)
files = files[: encoder.batch_size]
encoder(files)
start, count = time.perf_counter(), 0
while time.perf_counter() - start < float(sys.argv[3]):
    count += len(encoder(files))
print(count / (time.perf_counter() - start))
"""


def good(n: int = 8) -> list[bytes]:
    """Drawn grey JPEGs and PNGs, not all of one size."""
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        small = rng.integers(0, 256, (12, 10), dtype=np.uint8)
        size = (SHAPE[1] + i, SHAPE[0] - i)
        image = PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC)
        image.save(file := io.BytesIO(), "PNG" if i % 4 == 3 else "JPEG")
        found.append(file.getvalue())
    return found


def bad() -> dict[str, tuple[int, bytes]]:
    """Name -> the status that a body has to get, and the body."""
    png = good(4)[3]
    sizes = struct.pack(">2I5B", 20_000, 10_000, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + b"IHDR" + sizes
    bomb = png[:8] + header + struct.pack(">I", zlib.crc32(header[4:])) + png[33:]
    # File meta information of Explicit VR Little Endian, then Modality alone.
    syntax = b"1.2.840.10008.1.2.1\0"
    meta = b"\2\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
    dicom = bytes(128) + b"DICM" + meta + b"\x08\0\x60\0CS\2\0DX"
    return {
        "text": (415, b"no image"),
        "archive": (415, b"PK\3\4" + bytes(1000)),
        "empty": (400, b""),
        "cut off": (422, png[: len(png) // 2]),
        "damaged": (422, png[:200] + bytes(100) + png[300:]),
        "200 megapixels": (413, bomb),
        "too long": (413, bytes(MAX_BYTES + 1)),
        "DICOM without pixels": (422, dicom),
    }


class Client:
    """One connection, opened again where the service closed it."""

    def __init__(self, port: int):
        self._port, self._connection = port, None

    def post(self, path: str, body: bytes) -> tuple[int, dict, int]:
        """Status, JSON, and how often 429 sent it away before that."""
        for refused in range(1000):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    "127.0.0.1", self._port, timeout=120
                )
            self._connection.request("POST", path, body)
            answer = self._connection.getresponse()
            found = json.loads(answer.read())
            if answer.will_close:
                self._connection = None
            if answer.status != 429:
                return answer.status, found, refused
            time.sleep(float(answer.headers["Retry-After"]))
        raise PacxError("the service sent a request away 1000 times")


def start(model: str, batch_size: int) -> tuple[subprocess.Popen, int]:
    """The service's process and port, once it is ready."""
    command = [sys.executable, "-m", "pacx_jax.serving.server", f"--model={model}"]
    command += [
        "--port=0",
        f"--max_bytes={MAX_BYTES}",
        f"--batch_size={batch_size}",
        "--quiet",
    ]
    process = subprocess.Popen(
        command, cwd=pathlib.Path.cwd(), stderr=subprocess.PIPE, text=True
    )
    said = []
    for line in process.stderr:
        said.append(line.strip())
        if found := re.search(r"on http://127.0.0.1:(\d+) is ready", line):
            return process, int(found[1])
    raise PacxError(f"the service did not start: {said[-1] if said else 'no word'}")


def saturated(port: int, clients: int, seconds: float) -> float:
    """Images a second, each client sending the next one after its answer."""
    images, end = good(), time.perf_counter() + seconds

    def run(i: int) -> int:
        client, count = Client(port), 0
        while time.perf_counter() < end:
            status, _, _ = client.post("/embed", images[(i + count) % len(images)])
            if status != 200:
                raise PacxError(f"/embed answered {status} to a good image")
            count += 1
        return count

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        count = sum(pool.map(run, range(clients)))
    return count / (time.perf_counter() - start)


def latencies(port: int, clients: int, rate: float, seconds: float) -> np.ndarray:
    """Seconds from when each of evenly spaced requests was due to its answer."""
    images, begin = good(), time.perf_counter() + 0.1
    due = collections.deque(np.arange(0, seconds, 1 / rate).tolist())

    def run(i: int) -> list[float]:
        client, found = Client(port), []
        while due:
            at = begin + due.popleft()
            time.sleep(max(at - time.perf_counter(), 0))
            client.post("/embed", images[len(due) % len(images)])
            found.append(time.perf_counter() - at)
        return found

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return np.array([x for each in pool.map(run, range(clients)) for x in each])


def mixed(port: int, clients: int, requests: int) -> tuple[dict, dict]:
    """How many got the status they should, by kind, and what the others got."""
    rng, images, kinds = np.random.default_rng(1), good(), list(bad().items())
    todo = []
    for i in range(requests):
        if rng.random() < 0.6:
            path = ("/embed", "/rollout")[int(rng.random() < 0.2)]
            todo.append(("good", path, 200, images[i % len(images)]))
        else:
            name, (status, body) = kinds[int(rng.integers(len(kinds)))]
            todo.append((name, "/embed", status, body))

    def run(i: int) -> list[tuple[str, str, int]]:
        client, found = Client(port), []
        for name, path, status, body in todo[i::clients]:
            try:
                got, answer, refused = client.post(path, body)
                fine = got == status and ("error" in answer) == (status != 200)
                what = "" if fine else f"{got} {answer.get('error', '')}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                what, refused, client = f"no answer: {error!r}", 0, Client(port)
            found.append((name, what, refused))
        return found

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        found = [x for each in pool.map(run, range(clients)) for x in each]
    fine = collections.Counter(name for name, what, _ in found if not what)
    fine["sent away and sent again (429)"] = sum(refused for *_, refused in found)
    return dict(fine), collections.Counter(f"{n}: {w}" for n, w, _ in found if w)


def alone(model: str, batch_size: int, seconds: float) -> float:
    """Images a second of `encoder(files)`, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, data in enumerate(good()):
            files.append(pathlib.Path(folder) / f"{i}.img")
            files[-1].write_bytes(data)
        command = [sys.executable, "-c", _EMBED, model, str(batch_size), str(seconds)]
        done = subprocess.run(
            [*command, *map(str, files)], capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def parse(argv: list[str] | None = None):
    """The command's flags."""
    parser = cli.Parser(prog="launch/load_test.py", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="a model folder, or a finished run's workdir")
    add("--batch_size", type=int, default=16, help="of the service and of `embed`")
    add("--clients", type=int, default=24, help="connections at a time")
    add("--seconds", type=float, default=10, help="of each measurement")
    add("--requests", type=int, default=1000, help="good and bad, mixed")
    return parser.parse_args(argv)


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    args = parse(argv)
    result = {"embed_images_per_s": alone(args.model, args.batch_size, args.seconds)}
    process, port = start(args.model, args.batch_size)
    with process:
        try:
            client, image = Client(port), good(1)[0]
            before = client.post("/embed", image)[1]
            saturated(port, args.clients, min(args.seconds, 2))  # warms both sides
            rate = saturated(port, args.clients, args.seconds)
            late = latencies(port, args.clients, rate / 2, args.seconds)
            fine, lost = mixed(port, args.clients, args.requests)
            after = Client(port).post("/embed", image)[1]
            vectors = [np.array(x["results"][0]["embedding"]) for x in (before, after)]
            if not np.allclose(*vectors, rtol=1e-5, atol=1e-5):
                lost["the embedding after it differs"] = 1
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.close()
        if process.wait(timeout=120):
            lost[f"exit code {process.returncode} on SIGTERM"] = 1
    result["service_images_per_s"] = rate
    result["share"] = rate / result["embed_images_per_s"]
    for name, q in (("p50", 50), ("p99", 99)):
        result[f"{name}_ms_at_half"] = 1000 * float(np.percentile(late, q))
    result |= {"requests": args.requests, "as_they_should": fine, "lost": dict(lost)}
    for name, value in result.items():
        shown = f"{value:.2f}" if isinstance(value, float) else value
        print(f"{name:>22}  {shown}")
    print(json.dumps(result))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
