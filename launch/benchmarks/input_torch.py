"""The usual PyTorch input pipeline, as a process that input_pipeline.py asks for turns.

PIL opens a file and makes it RGB; torchvision's RandomResizedCrop, flip, ToTensor and
Normalize follow, in DataLoader's workers, with as many of these as are fastest here.
A process of its own, because DataLoader forks, which a process with JAX's threads must
not. Each line it reads names a loader; it answers with one line of JSON.

  python -m launch.benchmarks.input_torch FOLDER BATCH STEPS SIZE
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import torch

# Beside PyTorch's CPU build, torchvision's wheel can be imported after this alone.
from tests import torchvision_ops  # noqa: F401

# isort: split
import torchvision
from PIL import Image
from torchvision import transforms

from launch.benchmarks import measure

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Folder(torch.utils.data.Dataset):
    """n examples: the folder's images over and over, each transformed anew."""

    def __init__(self, folder: str, n: int, transform):
        self._paths = sorted(map(str, pathlib.Path(folder).iterdir()))
        self._n, self._transform = n, transform

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self._paths[i % len(self._paths)]) as image:
            return self._transform(image.convert("RGB"))


def make_transforms(size: int) -> dict:
    """normalised: as the reference's Stage 1; uint8: without its last two."""
    crop = [transforms.RandomResizedCrop(size, scale=(0.5, 1.0))]
    crop.append(transforms.RandomHorizontalFlip())
    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return {
        "torch": transforms.Compose(crop + last),
        "torch_uint8": transforms.Compose(crop + [transforms.PILToTensor()]),
    }


class Loader:
    """Turns of one DataLoader, whose workers live on between them."""

    def __init__(self, folder, transform, batch: int, steps: int, workers: int):
        self.workers, self._batch, self._steps = workers, batch, steps
        self._around = max(2 * workers, 1)  # batches before and after the timed ones
        self._loader = torch.utils.data.DataLoader(
            Folder(folder, batch * (steps + 2 * self._around), transform),
            batch_size=batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def turn(self) -> measure.Turn:
        """Images a second, and a second of processor time, between full queues."""
        batches = iter(self._loader)
        for _ in range(self._around):
            next(batches)
        start, used = time.perf_counter(), measure.processor_seconds()
        for _ in range(self._steps):
            next(batches)
        seconds = time.perf_counter() - start
        used = None if used is None else measure.processor_seconds() - used
        for _ in batches:  # so that the workers rest until the next turn
            pass
        n = self._batch * self._steps
        return {
            "images_per_s": n / seconds,
            "images_per_cpu_s": n / used if used else None,
        }


def main(argv: list[str]) -> None:
    """Chooses the number of workers, says it, and takes turns until input ends."""
    folder, (batch, steps, size) = argv[0], map(int, argv[1:])
    torch.set_num_threads(1)  # as DataLoader's workers have; more only disturb them
    made = make_transforms(size)
    cores = measure.cores()
    tried = {}
    for workers in sorted({0, max(cores - 1, 1), cores, 2 * cores}):
        loader = Loader(folder, made["torch"], batch, min(steps, 6), workers)
        tried[workers] = max(loader.turn()["images_per_s"] for _ in range(2))
        del loader
    workers = max(tried, key=tried.get)
    loaders = {
        name: Loader(folder, transform, batch, steps, workers)
        for name, transform in made.items()
    }
    tried = {str(k): round(v, 1) for k, v in tried.items()}
    about = {"workers": workers, "images_per_s_by_workers": tried}
    about["torchvision"] = torchvision.__version__
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps(loaders[line.strip()].turn()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
