"""`bench.py input`: images a second of the input pipeline, beside PyTorch's usual one.

All take the same JPEGs through the same random resized crop (50 to 100% of the area)
and flip, to 224 pixels and three channels:

  torch           PIL + torchvision + DataLoader from files, normalised on the CPU
  torch_uint8     the same without ToTensor and Normalize
  jpeg            pacx_jax from ArrayRecord of the same JPEG bytes, as uint8
  jpeg_on_device  the same, put on JAX's device and normalised there
  shrunk          pacx_jax from what data/prepare.py writes by default: 256 pixels, JPEG
  decoded         pacx_jax from what --store=raw writes: 256 pixels, decoded

Each of them has the workers that are fastest for it here: a thread, a thread a core, or
processes, tried at the start; --workers=N has N processes.
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

import cv2
import jax
import numpy as np

from data.cohort import latents, xray
from launch.benchmarks import measure
from launch.benchmarks.loader import Loader
from launch.benchmarks.worker import Worker
from pacx_jax.errors import PacxError
from pacx_jax.input import images, normalize, pipeline, sources, transforms
from pacx_jax.run import profiling

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
OURS = ("jpeg", "jpeg_on_device", "shrunk", "decoded")
PEERS = ("torch", "torch_uint8")
# The first is the mode's ratio; it and decoded / jpeg must reach 1.5.
AGAINST = (("jpeg", "torch"),)
PAIRS = (("jpeg", "torch_uint8"), ("jpeg_on_device", "torch"))
PAIRS += (("decoded", "jpeg"), ("decoded", "torch"))


def run(options: argparse.Namespace) -> dict:
    """Measures all variants in turns; returns what goes into the JSON, and `table`."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pacx_bench_"))
        files = pathlib.Path(folder) / "files"
        mean_bytes = write_files(files, options.source)
        variants = start_peers(files, options) | ours(files, options)
        for each in variants.values():
            stack.callback(each.close)
        taken = {
            k: functools.partial(v.turn, options.steps) for k, v in variants.items()
        }
        turns = measure.in_turns(taken, options.repeats)
        if options.profile:
            with profiling.trace(options.profile):
                taken["jpeg_on_device"]()
        settings = {name: each.about for name, each in variants.items()}
    return result(options, turns, settings, mean_bytes)


def result(options, turns: dict, settings: dict[str, dict], mean_bytes: float) -> dict:
    """The JSON's contents, and the table.

    Args:
      settings: variant -> what was tried for it, images/s.
    """
    notes = [f"JPEGs of {mean_bytes / 1024:.1f} KiB; images/s of all cores"]
    for name, tried in settings.items():
        said = ", ".join(f"{k} {rate:,.0f}" for k, rate in tried.items())
        notes.append(f"{name} tried with {said} images/s")
    more = {"settings": settings, "jpeg_bytes": round(mean_bytes)}
    more |= {"backend": jax.default_backend()}
    return measure.result(options, turns, "jpeg", AGAINST, PAIRS, notes=notes, **more)


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


def start_peers(files: pathlib.Path, options: argparse.Namespace) -> dict[str, Worker]:
    """PyTorch's pipelines, a process each: DataLoader forks, which JAX must not."""
    if options.peer == "none":
        return {}
    if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
        print("PyTorch or torchvision is missing: the peer is not measured")
        return {}
    sizes = [str(n) for n in (options.batch, options.steps, SIZE)]
    return {
        name: Worker("launch.benchmarks.input_torch", str(files), name, *sizes)
        for name in PEERS
    }


def ours(files: pathlib.Path, options: argparse.Namespace) -> dict[str, Loader]:
    """This package's variants, each with the workers that suit it best."""
    from data import prepare  # TFDS, which drawing films does not need

    opened = {}
    for name, flags in FOLDERS.items():
        target = files.parent / name
        argv = ["folder", f"--source={files}", f"--target={target}"]
        prepare.prepare(prepare.parse([*argv, "--val_fraction=0", *flags]))
        opened[name] = sources.PreparedSource(str(target), "train")
    on_device = jax.jit(lambda x: normalize.normalize(x).astype(options.dtype))

    def put(batch: dict) -> None:
        on_device(jax.device_put(batch["image"])).block_until_ready()

    put({"image": np.zeros((options.batch, SIZE, SIZE, 3), np.uint8)})  # compiles
    cores, n = measure.cores(), options.workers
    tried = sorted({(1, 0), (cores, 0), (0, cores)}) if n < 0 else [(cores, n)]
    made = {}
    for name in OURS:
        source = opened[name.removesuffix("_on_device")]
        batches = functools.partial(_batches, source, options.batch)
        use = put if name == "jpeg_on_device" else lambda batch: None
        made[name] = Loader(batches, tried, options.batch, options.steps, use)
    return made


def _batches(source: sources.Source, batch: int, threads: int, workers: int):
    data = types.SimpleNamespace(image_size=SIZE, hflip=0.5, crop_scale=(0.5, 1.0))
    found = pipeline.train_batches(
        source,
        transforms.make("mae", data, train=True),
        global_batch_size=batch,
        seed=0,
        threads=threads,
        workers=workers,
    )
    # Each worker has two batches ready and a third in its hands; a thread, two.
    return found, 4 * workers if workers else 3 * threads, found.close


if __name__ == "__main__":
    write_files(pathlib.Path(sys.argv[1]), "")
