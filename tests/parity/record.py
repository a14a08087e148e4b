"""Writes every parity case to `recorded/`: python -m tests.parity.record

The files are what the parity tests compare with where PyTorch is not installed. Run it
again after changing `cases.py`; a test compares them with what PyTorch gives now.
"""

from __future__ import annotations

import pathlib

import numpy as np
import safetensors
import safetensors.numpy

FOLDER = pathlib.Path(__file__).parent / "recorded"


def main() -> None:
    import torch

    from tests.parity import cases

    FOLDER.mkdir(exist_ok=True)
    for name in cases.ALL:
        case = {k: packed(v) for k, v in cases.live(name).items()}
        path = FOLDER / f"{name}.safetensors"
        safetensors.numpy.save_file(case, path, {"torch": torch.__version__})
        print(f"{name}: {len(case)} arrays, {path.stat().st_size / 1024:.0f} KiB")
    total = sum(p.stat().st_size for p in FOLDER.iterdir())
    print(f"{total / 2**20:.2f} MiB, torch {torch.__version__}")


def packed(x: np.ndarray) -> np.ndarray:
    """As float16 where that holds every value exactly: inputs and most weights."""
    if x.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = x.astype(np.float16)
        x = half if np.array_equal(half.astype(np.float32), x) else x
    return np.ascontiguousarray(x).reshape(x.shape)  # which would make () into (1,)


def load(name: str) -> dict[str, np.ndarray]:
    """The recorded case, its floats at least float32."""
    case = safetensors.numpy.load_file(FOLDER / f"{name}.safetensors")
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v
            for k, v in case.items()}  # fmt: skip


def torch_version(name: str) -> str:
    """The version of PyTorch that a case was recorded with."""
    path = FOLDER / f"{name}.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()["torch"]


if __name__ == "__main__":
    main()
