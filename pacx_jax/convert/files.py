"""State dicts in files: safetensors, and pickles of PyTorch without their code."""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import warnings

import numpy as np
import safetensors
import safetensors.numpy

from pacx_jax.types import PacxError

# A checkpoint holds its state dict itself, or under one of these: Lightning's and
# ECGFounder's, the original MAE repository's.
CONTAINERS = ("state_dict", "model")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Key -> array: float32, or int64 for counters.

    `path` may be a folder with `model.safetensors`, as Hugging Face lays models out.
    PyTorch files are read with `weights_only=True` alone.

    Raises:
      PacxError: no such file, one that is damaged or wants to run code, or one that
        holds no state dict.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise PacxError(f"{path}: no such file; give a checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = _read_pickle(path)
    for name in CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    return _arrays(state, path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {key: _array(file.get_tensor(key), key, path) for key in file.keys()}
    except (TypeError, AttributeError) as e:  # NumPy has no bfloat16, nor float8
        raise PacxError(
            f"{path}: {e}: save it as float32 or float16, or as a .pt file"
        ) from None
    except (OSError, safetensors.SafetensorError) as e:
        raise PacxError(f"{path} is no whole safetensors file: {e}") from None


def _read_pickle(path: pathlib.Path):
    _check_beginning(path)
    torch = _torch(path)
    try:
        # MAE's checkpoints carry their command line, a Namespace of plain values.
        with (
            warnings.catch_warnings(action="ignore"),  # of protocols, one more line
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as e:  # torch raises whatever the damage makes it raise
        reason = " ".join(str(e).split())
        if "weights_only" in reason or "Unsupported global" in reason:
            name = (
                reason.split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL" in reason else ""
            )
            raise PacxError(
                f"{path} wants to run code when it is loaded ({name or reason[:120]}), "
                "which is refused: get the weights alone, best as safetensors, from "
                "where the file is from"
            ) from None
        raise PacxError(
            f"{path} is no whole PyTorch checkpoint: {reason[:200]}"
        ) from None


def _check_beginning(path: pathlib.Path) -> None:
    """Refuses what is no archive and no pickle, before PyTorch guesses at it."""
    with path.open("rb") as file:
        begin = file.read(40)
    if begin.startswith(b"version https://git-lfs"):
        raise PacxError(f"{path} is a git-lfs pointer: get the file by git lfs pull")
    if not begin.startswith((b"PK", b"\x80")):
        raise PacxError(
            f"{path} is no whole PyTorch checkpoint: it begins with {begin[:16]!r}"
        )


def _torch(path):
    try:
        import torch
    except ImportError:
        raise PacxError(
            f"{path} is a PyTorch file: pip install 'pacx_jax[convert]' to read or "
            "write it, or use .safetensors, which needs no PyTorch"
        ) from None
    return torch


def _arrays(state, path) -> dict[str, np.ndarray]:
    import torch

    if not isinstance(state, dict) or not state:
        raise PacxError(
            f"{path} holds no state dict: it is empty, or a {type(state).__name__}"
        )
    odd = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if odd:
        raise PacxError(
            f"{path} holds no state dict, nor one under {' or '.join(CONTAINERS)}: "
            f"{odd[0]!r} is a {type(state[odd[0]]).__name__}, not a tensor"
        )
    for key, value in state.items():
        if not isinstance(key, str):
            raise PacxError(f"{path}: the key {key!r} is no string")
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.is_nested:
            raise PacxError(f"{path}: {key} is no plain tensor: save it dense, on cpu")
        # A view that repeats its storage can claim any size.
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise PacxError(f"{path}: {key} claims a shape that its file does not hold")
    out = {}
    for key, value in state.items():
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
        out[key] = _array(value.numpy(), key, path)
    return out


def _array(value: np.ndarray, key: str, path) -> np.ndarray:
    if value.dtype.kind == "f":
        return value.astype(np.float32)
    if value.dtype.kind in "iu":
        return value.astype(np.int64)
    raise PacxError(f"{path}: {key} is of type {value.dtype}; weights are floats")


def write(path: str | os.PathLike, state: dict[str, np.ndarray], container: str):
    """Writes a state dict, whole or not at all; nothing is written over.

    Args:
      path: a `.safetensors` file, or a PyTorch file by any other name.
      state: key -> array.
      container: "state_dict", "model" or "": what a PyTorch file holds it under.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise PacxError(f"{path} exists: give another --target, or delete it")
    torch = None if path.suffix == ".safetensors" else _torch(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        if torch is None:
            safetensors.numpy.save_file(state, temporary)
        else:
            tensors = {k: torch.from_numpy(v.copy()) for k, v in state.items()}
            torch.save({container: tensors} if container else tensors, temporary)
        temporary.chmod(0o644)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
