"""The usual PyTorch input pipeline, as a process that input_pipeline.py asks for turns.

PIL opens a file and makes it RGB; torchvision's RandomResizedCrop, flip, ToTensor and
Normalize follow, in DataLoader's workers, with as many of these as are fastest here.

  python -m launch.benchmarks.input_torch FOLDER torch|torch_uint8 BATCH STEPS SIZE
"""

from __future__ import annotations

import pathlib
import sys

import torch

# Beside PyTorch's CPU build, torchvision's wheel can be imported after this alone.
from tests import torchvision_ops  # noqa: F401

# isort: split
import torchvision.transforms as T
from PIL import Image

from launch.benchmarks import measure, worker
from launch.benchmarks.loader import Loader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAST = {  # as the reference's Stage 1; and without its last two
    "torch": [T.ToTensor(), T.Normalize(MEAN, STD)],
    "torch_uint8": [T.PILToTensor()],
}


class Folder(torch.utils.data.Dataset):
    """The folder's images, each transformed anew."""

    def __init__(self, folder: str, name: str, size: int):
        self._paths = sorted(map(str, pathlib.Path(folder).iterdir()))
        crop = [T.RandomResizedCrop(size, scale=(0.5, 1.0)), T.RandomHorizontalFlip()]
        self._transform = T.Compose(crop + LAST[name])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self._paths[i]) as image:
            return self._transform(image.convert("RGB"))


def loader(folder: str, name: str, batch: int, steps: int, size: int) -> Loader:
    """PyTorch's pipeline with the number of workers that is fastest here."""
    images = Folder(folder, name, size)
    torch.set_num_threads(1)  # as DataLoader's workers have; more only disturb them

    def batches(_, workers: int):
        data = torch.utils.data
        drawn = data.RandomSampler(images, replacement=True, num_samples=2**40)
        found = iter(data.DataLoader(images, batch, sampler=drawn, num_workers=workers))
        end = found._shutdown_workers if workers else lambda: None
        return found, max(4 * workers, 1), end  # each worker has two batches ready

    cores = measure.cores()
    settings = [(1, n) for n in sorted({0, max(cores - 1, 1), cores, 2 * cores})]
    return Loader(batches, settings, batch, steps)


if __name__ == "__main__":
    folder, name, *numbers = sys.argv[1:]
    worker.serve(lambda: loader(folder, name, *map(int, numbers)), warm_up=1)
