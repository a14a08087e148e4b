"""State dicts in files, and which of a file's several ones is meant."""

from __future__ import annotations

import os
import pathlib
import re
from typing import NamedTuple

import ml_dtypes  # noqa: F401  gives NumPy bfloat16, by name
import numpy as np
import safetensors
import safetensors.numpy

from pacx_jax.convert import pickles
from pacx_jax.errors import PacxError
from pacx_jax.files import other_kind, whole

# Names of weights in a folder of Hugging Face's or timm's.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DTYPES = ("F32", "F16", "BF16", "F64", "I64")  # of safetensors
COUNTER = "num_batches_tracked"  # of batch norms, kept
AVERAGED = "n_averaged"  # a count of torch's AveragedModel: no weight, and not taken


class Weights(NamedTuple):
    """One set of weights of a file.

    Attributes:
      state: key -> array: float32, or int64 for counters.
      name: the keys that it stands under, joined by "."; "" for the file itself.
      others: names of the file's other sets, and of what else was not taken.
    """

    state: dict[str, np.ndarray]
    name: str
    others: list[str]


def read(path: str | os.PathLike, weights: str = "", anchor: str = "") -> Weights:
    """Reads a state dict; PyTorch files with `weights_only=True` alone.

    Args:
      path: a file, or a folder as `find` says.
      weights: which set, where the file holds several: its name, "ema" (an exponential
        moving average of the others), or "model" (what is none).
      anchor: what a key of every set ends with.

    Raises:
      PacxError: no such file, one that is damaged or wants to run code, one that
        holds no state dict, or several and `weights` names none, or that has weights
        in a list without keys and `weights` does not name others.
    """
    path = find(path)
    begin = _beginning(path)
    held = None
    if path.suffix == ".safetensors":
        found = {"": _read_safetensors(path)}
    elif begin.startswith((b"PK", b"\x80")):
        held = pickles.read(path)
        found = _sets(held, anchor) or _sets(held, "")
        if not found:
            raise PacxError(f"{path} holds no state dict: it is {_words(held)}")
    else:  # before PyTorch guesses at it
        raise PacxError(
            f"{path} is no whole PyTorch checkpoint: it begins with {begin[:16]!r}"
        )
    found = {k: v for name, x in found.items() for k, v in _split(name, x, anchor)}
    values = [v for state in found.values() for v in state.values()]
    lists = _lists(held, {tuple(v.shape) for v in values if hasattr(v, "shape")})
    if lists and weights in ("", "ema", *lists):
        raise PacxError(
            f"{path} holds weights in a list without keys too, {', '.join(lists)}, "
            "which cannot be read: --weights=model takes the others; or copy those of "
            "the list into the model and save its state_dict()"
        )
    name = _chosen(list(found), weights, path)
    state = found[name]
    if path.suffix != ".safetensors":
        state = _arrays(state, path)
    counts = [key for key in state if key.split(".")[-1] == AVERAGED]
    state = {key: value for key, value in state.items() if key not in counts}
    others = [other for other in found if other != name]
    return Weights(state, name, [*others, *lists, *counts])


def _sets(held, anchor: str, name: str = "", depth: int = 4) -> dict[str, dict]:
    """Name -> every dict of tensors in what a file holds that has the anchor's key."""
    if not isinstance(held, dict) or not depth:
        return {}
    tensors = [k for k, v in held.items() if _is_tensor(v)]
    if any(str(key).endswith(anchor) for key in tensors):
        return {name: held}
    found = {}
    for key, inner in held.items():
        found |= _sets(inner, anchor, f"{name}.{key}".lstrip("."), depth - 1)
    return found


def _lists(held, shapes: set, name: str = "", depth: int = 4) -> list[str]:
    """Names of lists of tensors that are all of these shapes, such as torch_ema's."""
    if isinstance(held, list | tuple):
        fits = [_is_tensor(v) and tuple(v.shape) in shapes for v in held]
        return [name] if len(fits) > 1 and all(fits) else []
    if not isinstance(held, dict) or not depth:
        return []
    inner = [
        _lists(v, shapes, f"{name}.{k}".lstrip("."), depth - 1) for k, v in held.items()
    ]
    return sum(inner, [])


def _split(name: str, state: dict, anchor: str) -> list[tuple[str, dict]]:
    """A dict in which models stand side by side, as "model." and "ema_model."."""
    keys = [str(key) for key in state]
    tops = {k.partition(".")[0] for k in keys if anchor and k.endswith(f".{anchor}")}
    if len(tops) < 2:
        return [(name, state)]
    return [
        (
            f"{name}.{top}".lstrip("."),
            {k: v for k, v in state.items() if k.partition(".")[0] not in tops - {top}},
        )
        for top in sorted(tops)
    ]


def _chosen(names: list[str], weights: str, path) -> str:
    """The name of the set that `weights` asks for, where there are several."""
    fits = [name for name in names if not weights or name == weights]
    if not fits and weights in ("ema", "model"):
        averaged = [name for name in names if "ema" in re.split("[._]", name.lower())]
        fits = [n for n in names if (n in averaged) == (weights == "ema")]
    if len(fits) == 1:
        return fits[0]
    listed = ", ".join(name or "(no key)" for name in names)
    if len(names) == 1:
        raise PacxError(f"--weights={weights}: {path} holds one set: {listed}")
    raise PacxError(
        f"{path} holds several sets of weights, {listed}: choose one by "
        f"--weights={names[-1]} or another of these names"
    )


def _is_tensor(value) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _words(held) -> str:
    if not isinstance(held, dict) or not held:
        return f"empty, or a {type(held).__name__}"
    return "a dict of " + ", ".join(
        f"{k} ({type(v).__name__})" for k, v in held.items()
    )


def find(path: str | os.PathLike) -> pathlib.Path:
    """The file of weights at `path`: itself, or in a folder the one of `WEIGHTS`."""
    path = pathlib.Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise PacxError(f"{path}: no such file; give a checkpoint")
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    if any((path / f"{name}.index.json").is_file() for name in WEIGHTS):
        raise PacxError(
            f"{path} holds its weights in several files: save them as one, by "
            "save_pretrained(DIR, max_shard_size='100GB')"
        )
    if (path / "adapter_model.safetensors").is_file():
        raise PacxError(
            f"{path} holds an adapter without its model: merge them, by "
            "PeftModel.merge_and_unload().save_pretrained(DIR)"
        )
    raise PacxError(f"{path} is a folder without {' or '.join(WEIGHTS)}: give the file")


def _beginning(path: pathlib.Path) -> bytes:
    """The first bytes of a file; refuses what nobody could read."""
    try:
        with path.open("rb") as file:
            begin = file.read(40)
    except OSError as e:
        raise PacxError(f"{path} cannot be read: {e.strerror or e}") from None
    if not begin:
        raise PacxError(f"{path} is empty: get the file again")
    if other := other_kind(begin):
        raise PacxError(f"{path} is {other}")
    return begin


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            out = {}
            for key in file.keys():
                kind = file.get_slice(key).get_dtype()
                if kind not in DTYPES:
                    _refuse(path, key, kind)
                out[key] = _array(file.get_tensor(key), key, path)
            return out
    except PacxError:
        raise
    except Exception as e:  # a header may claim what NumPy then refuses in its way
        raise PacxError(f"{path} is no whole safetensors file: {e}") from None


def _refuse(path, key: str, kind) -> None:
    raise PacxError(
        f"{path}: {key} is of type {kind}: save it as float32, or as float16, bfloat16 "
        "or float64, which become float32"
    )


def _arrays(state, path) -> dict[str, np.ndarray]:
    import torch

    out = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            name = type(value).__name__
            raise PacxError(f"{path}: {key!r} is a {name}, not a tensor: take it out")
        if not isinstance(key, str):
            raise PacxError(f"{path}: the key {key!r} is no string")
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.is_nested:
            raise PacxError(f"{path}: {key} is no plain tensor: save it dense, on cpu")
        # A view that repeats its storage can claim any size.
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise PacxError(f"{path}: {key} claims a shape that its file does not hold")
        if value.dtype not in (
            torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64
        ):  # fmt: skip
            _refuse(path, key, value.dtype)
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
        out[key] = _array(value.numpy(), key, path)
    return out


def _array(value: np.ndarray, key: str, path) -> np.ndarray:
    if value.dtype == np.int64:
        if not key.endswith((COUNTER, AVERAGED)):
            _refuse(path, key, value.dtype)
        return value
    return value.astype(np.float32)


def write(path: str | os.PathLike, state: dict[str, np.ndarray], container: str):
    """Writes a state dict, whole or not at all; nothing is written over.

    Args:
      path: a `.safetensors` file, or a PyTorch file by any other name. A symbolic link
        is followed.
      state: key -> array.
      container: "state_dict", "model" or "": what a PyTorch file holds it under.
    """
    path = pathlib.Path(os.path.realpath(path))
    if path.is_dir():
        raise PacxError(f"{path} is a folder: --target names the file to write")
    if path.exists() or path.is_symlink():  # a link in a circle
        raise PacxError(f"{path} exists: give another --target, or delete it")
    torch = None if path.suffix == ".safetensors" else pickles.pytorch(path)
    with whole(path, "wb") as file:
        if torch is None:
            file.write(safetensors.numpy.save(state))
        else:
            tensors = {k: torch.from_numpy(v.copy()) for k, v in state.items()}
            torch.save({container: tensors} if container else tensors, file)
