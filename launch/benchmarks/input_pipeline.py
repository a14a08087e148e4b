"""`bench.py input`: images a second of the input pipeline, beside PyTorch's usual one.

All take the same JPEGs through the same random resized crop (50 to 100% of the area)
and flip, to 224 pixels and three channels:

  torch           PIL + torchvision + DataLoader from files, normalised on the CPU
  torch_uint8     the same without ToTensor and Normalize
  jpeg            pacx_jax from ArrayRecord of the same JPEG bytes, as uint8
  jpeg_on_device  the same, put on JAX's device and normalised there
  shrunk          pacx_jax from what data/prepare.py writes by default: 256 pixels, JPEG
  decoded         pacx_jax from what --store=raw writes: 256 pixels, decoded
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable

import cv2
import jax
import numpy as np

from data import prepare
from data.cohort import latents, xray
from launch.benchmarks import measure
from pacx_jax.input import images, normalize, pipeline, sources, transforms
from pacx_jax.types import PacxError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 224
HEIGHT, WIDTH, QUALITY = 320, 390, 95  # of a film of CheXpert-v1.0-small
DRAWN = 256  # different films
# Grain's shuffle takes 85 us a sample of 256 and 8 of CheXpert's: the files come
# over and over.
RECORDS = 2048
FOLDERS = {
    "jpeg": ("--size=0",),
    "shrunk": ("--size=256",),
    "decoded": ("--size=256", "--store=raw"),
}
RATIOS = {  # name -> (one, other, what it must reach)
    "jpeg / torch": ("jpeg", "torch", 1.5),
    "jpeg / torch_uint8": ("jpeg", "torch_uint8", None),
    "jpeg_on_device / torch": ("jpeg_on_device", "torch", None),
    "decoded / jpeg": ("decoded", "jpeg", 1.5),
    "decoded / torch": ("decoded", "torch", None),
}
_SETTLE = 0.2  # seconds in which a closed pipeline's last batches end


def run(options: argparse.Namespace) -> dict:
    """Measures all variants in turns; returns what goes into the JSON, and `table`."""
    with tempfile.TemporaryDirectory(prefix="pacx_bench_") as folder:
        files = pathlib.Path(folder) / "files"
        mean_bytes = write_files(files, options.source)
        variants = {}
        peer = None if options.peer == "none" else Peer.start(files, options)
        try:
            if peer:
                variants |= {name: peer.turns(name) for name in Peer.LOADERS}
            variants |= ours(files, options)
            turns = measure.in_turns(variants, options.repeats)
        finally:
            if peer:
                peer.close()
    return _result(options, turns, peer.about if peer else None, mean_bytes)


def write_files(files: pathlib.Path, source: str) -> float:
    """Fills a folder with RECORDS JPEGs; returns their mean size in bytes.

    Raises:
      PacxError: `source` has no JPEG.
    """
    if source:
        found = sorted(pathlib.Path(source).rglob("*.jp*g"))[:RECORDS]
        if not found:
            raise PacxError(f"--source={source}: no JPEG below it; give another folder")
        films = [path.read_bytes() for path in found]
    else:
        films = [draw(i) for i in range(DRAWN)]
    files.mkdir(parents=True)
    for i in range(RECORDS):
        (files / f"{i:05d}.jpg").write_bytes(films[i % len(films)])
    return float(np.mean([len(film) for film in films]))


def draw(i: int) -> bytes:
    """A film of the embedded cohort as a grey JPEG of 320 x 390."""
    film = xray.render(latents.study(latents.Key(0, "chexpert_train", i, 0)))
    film = cv2.resize(film, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return images.encode_jpeg(film, QUALITY)


class Peer:
    """The PyTorch pipeline in its process; `about` is what it says of itself."""

    LOADERS = ("torch", "torch_uint8")

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.about = self._answer()

    @classmethod
    def start(cls, files: pathlib.Path, options: argparse.Namespace) -> Peer | None:
        """None, and a line, where PyTorch is missing."""
        if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
            print("PyTorch or torchvision is missing: the peer is not measured")
            return None
        numbers = map(str, (options.batch, options.steps, SIZE))
        command = [sys.executable, "-m", "launch.benchmarks.input_torch", str(files)]
        process = subprocess.Popen(
            [*command, *numbers],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return cls(process)

    def turns(self, name: str) -> Callable[[], measure.Turn]:
        """What measures one turn of a loader."""

        def turn() -> measure.Turn:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            return self._answer()

        return turn

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise PacxError("the PyTorch pipeline ended; --peer=none goes without it")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def ours(
    files: pathlib.Path, options: argparse.Namespace
) -> dict[str, Callable[[], measure.Turn]]:
    """What measures one turn of each of this package's variants."""
    opened = {}
    for name, flags in FOLDERS.items():
        target = files.parent / name
        argv = ["folder", f"--source={files}", f"--target={target}"]
        prepare.prepare(prepare.parse([*argv, "--val_fraction=0", *flags]))
        opened[name] = sources.PreparedSource(str(target), "train")
    turn = {
        name: lambda source=source: _turn(source, options, lambda batch: None)
        for name, source in opened.items()
    }
    on_device = jax.jit(lambda x: normalize.normalize(x).astype(options.dtype))

    def use(batch: dict) -> None:
        on_device(jax.device_put(batch["image"])).block_until_ready()

    use({"image": np.zeros((options.batch, SIZE, SIZE, 3), np.uint8)})  # compiles
    turn["jpeg_on_device"] = lambda: _turn(opened["jpeg"], options, use)
    order = ("jpeg", "jpeg_on_device", "shrunk", "decoded")
    return {name: turn[name] for name in order}


def _turn(
    source: sources.Source, options: argparse.Namespace, use: Callable[[dict], None]
) -> measure.Turn:
    threads = measure.cores()
    data = types.SimpleNamespace(image_size=SIZE, hflip=0.5, crop_scale=(0.5, 1.0))
    batches = pipeline.train_batches(
        source,
        transforms.make("mae", data, train=True),
        global_batch_size=options.batch,
        seed=0,
        threads=threads,
    )
    for _ in range(2 * threads):
        use(next(batches))
    start, used = time.perf_counter(), time.process_time()
    for _ in range(options.steps):
        use(next(batches))
    seconds, used = time.perf_counter() - start, time.process_time() - used
    batches.close()
    time.sleep(_SETTLE)
    n = options.batch * options.steps
    return {"images_per_s": n / seconds, "images_per_cpu_s": n / used}


def _result(
    options: argparse.Namespace, turns: dict, peer: dict | None, mean_bytes: float
) -> dict:
    """The JSON's contents, and the table."""
    figures = ("images_per_s", "images_per_cpu_s")
    names = (*Peer.LOADERS, *(name for name in turns if name not in Peer.LOADERS))
    variants = {
        name: {f: measure.spread([t[f] for t in turns.get(name, [])]) for f in figures}
        for name in names
    }
    ratios = {
        figure: {
            name: measure.ratio(turns.get(one, []), turns.get(other, []), figure)
            for name, (one, other, _) in RATIOS.items()
        }
        for figure in figures
    }
    first = ratios["images_per_s"]["jpeg / torch"]
    result = {
        "mode": options.mode,
        "images_per_s": variants["jpeg"]["images_per_s"]["median"],
        "ratio": first and first["median"],
        "mfu": None,  # no model runs
        "peak_mib": measure.peak_mib(),
        "batch": options.batch,
        "steps": options.steps,
        "repeats": options.repeats,
        "dtype": options.dtype,
        "backend": jax.default_backend(),
        "cores": measure.cores(),
        "load": round(os.getloadavg()[0], 2),
        "jpeg_bytes": round(mean_bytes),
        "variants": variants,
        "ratios": ratios,
        "peer": peer,
        "versions": measure.versions(),
    }
    return {"table": list(_table(result)), **result}


def _table(result: dict):
    cores = result["cores"]
    yield (
        f"input: {cores} cores, load {result['load']}, batch {result['batch']}, "
        f"{result['repeats']} turns of {result['steps']} batches; JPEGs of "
        f"{result['jpeg_bytes'] / 1024:.1f} KiB; torch normalises on the CPU, jpeg "
        "and what follows gives uint8, which the device normalises"
    )
    yield f"{'':16} {'images/s/core':>24} {'images/s of processor time':>28}"
    for name, figures in result["variants"].items():
        wall, used = (_cell(figures[f]) for f in figures)
        wall = _cell(figures["images_per_s"], 1 / cores)
        yield f"{name:16} {wall:>24} {used:>28}"
    yield f"{'':24} {'wall clock':>20} {'processor time':>20}"
    by_figure = result["ratios"]
    for name, (_, _, least) in RATIOS.items():
        wall, used = (_cell(by_figure[f][name], digits=2) for f in by_figure)
        must = f"   must reach {least}" if least else ""
        yield f"{name:24} {wall:>20} {used:>20}{must}"


def _cell(figure: dict | None, scale: float = 1.0, digits: int = 0) -> str:
    if figure is None:
        return "not measured"
    median, low, high = (
        f"{scale * figure[name]:,.{digits}f}" for name in ("median", "min", "max")
    )
    return f"{median} ({low}–{high})"
