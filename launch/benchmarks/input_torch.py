"""The usual PyTorch input pipeline, as a process that input_pipeline.py asks for turns.

PIL opens a file and makes it RGB; torchvision's RandomResizedCrop, flip, ToTensor and
Normalize follow, in DataLoader's workers.

  python -m launch.benchmarks.input_torch FOLDER BATCH WORKERS SIZE
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

from launch.benchmarks import worker
from launch.benchmarks.input_pipeline import Loader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Folder(torch.utils.data.Dataset):
    """The folder's images, each transformed anew."""

    def __init__(self, folder: str, size: int):
        self._paths = sorted(map(str, pathlib.Path(folder).iterdir()))
        crop = [T.RandomResizedCrop(size, scale=(0.5, 1.0)), T.RandomHorizontalFlip()]
        self._transform = T.Compose([*crop, T.ToTensor(), T.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self._paths[i]) as image:
            return self._transform(image.convert("RGB"))


def loader(folder: str, batch: int, workers: int, size: int) -> Loader:
    """PyTorch's pipeline."""
    images, data = Folder(folder, size), torch.utils.data
    torch.set_num_threads(1)  # as DataLoader's workers have; more only disturb them
    drawn = data.RandomSampler(images, replacement=True, num_samples=2**40)
    found = iter(data.DataLoader(images, batch, sampler=drawn, num_workers=workers))
    close = found._shutdown_workers if workers else lambda: None
    return Loader(found, max(4 * workers, 1), batch, close)


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    worker.serve(lambda: loader(folder, *map(int, numbers)), warm_up=1)
