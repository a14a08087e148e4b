"""`bench.py input`: images a second of the input pipeline, beside PyTorch's usual one.

All take the same JPEGs through the same random resized crop (50 to 100% of the area)
and flip, to 224 pixels and three channels, by as many processes as there are cores, or
--workers:

  torch    PIL + torchvision + DataLoader from files, normalised on the CPU
  jpeg     pacx_jax from ArrayRecord of the same JPEG bytes, as uint8
  shrunk   pacx_jax from what data/prepare.py writes by default: 256 pixels, JPEG
  decoded  pacx_jax from what --store=raw writes: 256 pixels, decoded
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from data.cohort import latents, xray
from launch.benchmarks import measure
from launch.benchmarks.worker import Worker
from pacx_jax.errors import PacxError
from pacx_jax.input import images, pipeline, sources, transforms

SIZE = 224
HEIGHT, WIDTH, QUALITY = 320, 390, 95  # of a film of CheXpert-v1.0-small
# Different films, and files, for Grain's shuffle takes longer for a small set.
DRAWN, RECORDS = 256, 2048
FOLDERS = {
    "jpeg": ("--size=0",),
    "shrunk": ("--size=256",),
    "decoded": ("--size=256", "--store=raw"),
}
PAIRS = (("jpeg", "torch"), ("decoded", "jpeg"), ("decoded", "torch"))


class Loader:
    """Turns of one pipeline, whose workers live on between them.

    Before a turn begins, `ready` batches may be made already; they do not count.
    """

    def __init__(self, batches: Iterator, ready: int, batch: int, close: Callable):
        self._batches, self._ready, self._batch = batches, ready, batch
        self.about, self.close = {}, close
        self._take(ready)  # starts the workers

    def _take(self, steps: int) -> None:
        for _ in range(steps):
            next(self._batches)

    def turn(self, steps: int) -> measure.Turn:
        """Images a second, from an empty queue on."""
        self._take(self._ready)
        return measure.timed(self._take, steps, self._batch)


def run(options: argparse.Namespace) -> dict:
    """Measures all variants in turns; returns what goes into the JSON, and `table`."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pacx_bench_"))
        files = pathlib.Path(folder) / "files"
        mean_bytes = write_files(files, options.source)
        workers = measure.cores() if options.workers < 0 else options.workers
        variants = start_peer(files, options, workers) | ours(files, options, workers)
        for each in variants.values():
            stack.callback(each.close)
        taken = {
            k: functools.partial(v.turn, options.steps) for k, v in variants.items()
        }
        turns = measure.in_turns(taken, options.repeats)
    return result(options, turns, workers, mean_bytes)


def result(options, turns: dict, workers: int, mean_bytes: float) -> dict:
    """The JSON's contents, and the table."""
    notes = [f"JPEGs of {mean_bytes / 1024:.1f} KiB; {workers} processes each"]
    more = {"workers": workers, "jpeg_bytes": round(mean_bytes), "dtype": "uint8"}
    return measure.result(options, turns, "jpeg", PAIRS, notes=notes, **more)


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


def start_peer(files: pathlib.Path, options, workers: int) -> dict[str, Worker]:
    """PyTorch's pipeline, in a process: DataLoader forks, which JAX must not."""
    if options.peer == "none":
        return {}
    if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
        print("PyTorch or torchvision is missing: the peer is not measured")
        return {}
    sizes = [str(n) for n in (options.batch, workers, SIZE)]
    return {"torch": Worker("launch.benchmarks.input_torch", str(files), *sizes)}


def ours(files: pathlib.Path, options, workers: int) -> dict[str, Loader]:
    """This package's variants."""
    from data import prepare  # TFDS, which drawing films does not need

    made = {}
    data = types.SimpleNamespace(image_size=SIZE, hflip=0.5, crop_scale=(0.5, 1.0))
    for name, flags in FOLDERS.items():
        target = files.parent / name
        argv = ["folder", f"--source={files}", f"--target={target}"]
        prepare.prepare(prepare.parse([*argv, "--val_fraction=0", *flags]))
        found = pipeline.train_batches(
            sources.PreparedSource(str(target), "train"),
            transforms.make("mae", data, train=True),
            global_batch_size=options.batch,
            seed=0,
            threads=1,
            workers=workers,
        )
        # Each worker has two batches ready and a third in its hands.
        made[name] = Loader(found, 4 * workers or 3, options.batch, found.close)
    return made


if __name__ == "__main__":
    write_files(pathlib.Path(sys.argv[1]), "")
