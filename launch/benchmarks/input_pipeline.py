"""`bench.py input`: images a second of the input pipeline, beside PyTorch's usual one.

All take the same JPEGs through the same random resized crop (50 to 100% of the area)
and flip, to 224 pixels and three channels:

  torch           PIL + torchvision + DataLoader from files, normalised on the CPU
  torch_uint8     the same without ToTensor and Normalize
  jpeg            pacx_jax from ArrayRecord of the same JPEG bytes, as uint8
  jpeg_on_device  the same, put on JAX's device and normalised there
  shrunk          pacx_jax from what data/prepare.py writes by default: 256 pixels, JPEG
  decoded         pacx_jax from what --store=raw writes: 256 pixels, decoded

Each of them, as the DataLoader, has the workers that are fastest for it here: a thread,
a thread a core, or a process a core, tried at the start; --workers=N has N processes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
import time
import types
from collections.abc import Callable

import cv2
import jax
import numpy as np

from data.cohort import latents, xray
from launch.benchmarks import measure
from launch.benchmarks.peer import Peer
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
RATIOS = {  # name -> (one, other, what it must reach)
    "jpeg / torch": ("jpeg", "torch", 1.5),
    "jpeg / torch_uint8": ("jpeg", "torch_uint8", None),
    "jpeg_on_device / torch": ("jpeg_on_device", "torch", None),
    "decoded / jpeg": ("decoded", "jpeg", 1.5),
    "decoded / torch": ("decoded", "torch", None),
}
_SETTLE = 0.3  # seconds in which a pipeline fills its queues, or its threads end
_TRIED_STEPS = 8


def run(options: argparse.Namespace) -> dict:
    """Measures all variants in turns; returns what goes into the JSON, and `table`."""
    with tempfile.TemporaryDirectory(prefix="pacx_bench_") as folder:
        files = pathlib.Path(folder) / "files"
        mean_bytes = write_files(files, options.source)
        with contextlib.ExitStack() as stack:
            peer = None if options.peer == "none" else Peer.start(files, options, SIZE)
            variants = {}
            if peer:
                stack.callback(peer.close)
                variants |= {name: peer.turns(name) for name in Peer.LOADERS}
            mine = ours(files, options)
            for pipe in mine.values():
                stack.callback(pipe.close)
            variants |= {name: pipe.turn for name, pipe in mine.items()}
            turns = measure.in_turns(variants, options.repeats)
            if options.profile:
                with profiling.trace(options.profile):
                    mine["jpeg_on_device"].turn()
    about = {"peer": peer.about if peer else None}
    about["settings"] = {name: pipe.about for name, pipe in mine.items()}
    return _result(options, turns, about, mean_bytes)


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


def ours(files: pathlib.Path, options: argparse.Namespace) -> dict[str, Ours]:
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

    def drop(batch: dict) -> None:
        del batch

    put({"image": np.zeros((options.batch, SIZE, SIZE, 3), np.uint8)})  # compiles
    jpeg, shrunk, decoded = (opened[name] for name in ("jpeg", "shrunk", "decoded"))
    return {
        "jpeg": Ours(jpeg, drop, options),
        "jpeg_on_device": Ours(jpeg, put, options),
        "shrunk": Ours(shrunk, drop, options),
        "decoded": Ours(decoded, drop, options),
    }


class Ours:
    """Turns of one of this package's pipelines, whose workers live on between them."""

    def __init__(
        self,
        source: sources.Source,
        use: Callable[[dict], None],
        options: argparse.Namespace,
    ):
        self._source, self._use, self._options = source, use, options
        cores, n = measure.cores(), options.workers
        settings = sorted({(1, 0), (cores, 0), (0, cores)}) if n < 0 else [(cores, n)]
        self.tried = {}
        for setting in settings:
            self._open(*setting)
            tries = [self.turn(min(options.steps, _TRIED_STEPS)) for _ in range(2)]
            self.tried[setting] = max(turn["images_per_s"] for turn in tries)
            self.close()
        best = max(self.tried, key=self.tried.get)
        self.threads, self.workers = best if not best[1] else (0, best[1])
        self._open(*best)

    @property
    def about(self) -> dict:
        """The setting, and what all that were tried gave."""
        names = {
            setting: f"{n or threads} {'processes' if n else 'threads'}"
            for setting in self.tried
            for threads, n in [setting]
        }
        tried = {names[s]: round(rate, 1) for s, rate in self.tried.items()}
        return {
            "threads": self.threads,
            "workers": self.workers,
            "images_per_s_by_setting": tried,
        }

    def _open(self, threads: int, workers: int) -> None:
        data = types.SimpleNamespace(image_size=SIZE, hflip=0.5, crop_scale=(0.5, 1.0))
        self._batches = pipeline.train_batches(
            self._source,
            transforms.make("mae", data, train=True),
            global_batch_size=self._options.batch,
            seed=0,
            threads=threads,
            workers=workers,
        )
        # Each worker has two batches ready and a third in its hands; a thread, two.
        self._ready = 4 * workers if workers else 3 * threads
        self._take(self._ready)  # starts the workers

    def _take(self, steps: int) -> None:
        for _ in range(steps):
            self._use(next(self._batches))

    def turn(self, steps: int | None = None) -> measure.Turn:
        """Images a second, and a second of processor time, from an empty queue on."""
        steps = steps or self._options.steps
        self._take(self._ready)
        start, used = time.perf_counter(), measure.processor_seconds()
        self._take(steps)
        seconds = time.perf_counter() - start
        used = None if used is None else measure.processor_seconds() - used
        time.sleep(_SETTLE)  # so that the workers rest until the next turn
        n = self._options.batch * steps
        return {
            "images_per_s": n / seconds,
            "images_per_cpu_s": n / used if used else None,
        }

    def close(self) -> None:
        """Ends the workers."""
        self._batches.close()
        time.sleep(_SETTLE)


def _result(
    options: argparse.Namespace, turns: dict, about: dict, mean_bytes: float
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
        **about,
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
        wall, used = (measure.cell(figures[f]) for f in figures)
        wall = measure.cell(figures["images_per_s"], 1 / cores)
        yield f"{name:16} {wall:>24} {used:>28}"
    for name, setting in result["settings"].items():
        tried = setting["images_per_s_by_setting"].items()
        yield f"{name:16} " + ", ".join(f"{one} {rate:,.0f}" for one, rate in tried)
    yield f"{'':24} {'wall clock':>20} {'processor time':>20}"
    by_figure = result["ratios"]
    for name, (_, _, least) in RATIOS.items():
        wall, used = (measure.cell(by_figure[f][name], digits=2) for f in by_figure)
        must = f"   must reach {least}" if least else ""
        yield f"{name:24} {wall:>20} {used:>20}{must}"


if __name__ == "__main__":
    write_files(pathlib.Path(sys.argv[1]), "")
