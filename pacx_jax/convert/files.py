"""State dicts in files: safetensors, and pickles of PyTorch without their code."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
import tempfile
import warnings
import zipfile

import ml_dtypes  # noqa: F401  gives NumPy bfloat16, by name
import numpy as np
import safetensors
import safetensors.numpy

from pacx_jax.errors import PacxError

# A checkpoint holds its state dict itself, or under one of these: Lightning's and
# ECGFounder's, the original MAE repository's.
CONTAINERS = ("state_dict", "model")
# Names of weights in a folder of Hugging Face's or timm's.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SAFETENSORS = ("F32", "F16", "BF16", "F64", "I64")
COUNTER = "num_batches_tracked"  # of batch norms, the only whole numbers there are
RESAVE = (
    "holds a {name}, and reading that would run code, which is refused. If you trust "
    "the file, save its weights alone in the environment that it is from, then convert "
    "those: python -c \"import torch; x = torch.load('{file}', map_location='cpu', "
    "weights_only=False); torch.save(x['state_dict'], 'weights.pt')\" "
    "(or x['model'], or x.state_dict() of a whole module)"
)

# What hyper-parameters hold of the standard library. Whatever else a pickle names of it
# (os.system, eval, getattr) is there to run something.
PLAIN = {
    *(f"builtins.{name}" for name in (
        "bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "set",
        "str", "tuple",
    )),
    *(f"pathlib{part}.{kind}Path" for part in ("", "._local")
      for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    "argparse.Namespace", "collections.OrderedDict", "collections.defaultdict",
    "collections.deque", "copyreg._reconstructor", "_codecs.encode",
    "datetime.date", "datetime.datetime", "datetime.timedelta", "decimal.Decimal",
    "functools.partial", "typing.Any", "uuid.UUID",
}  # fmt: skip
ATTACK = (
    "names {name}, to be called where the file is read; weights need no such thing. It "
    "is refused, and nothing of it ran. Open it in no other way: get the weights anew "
    "from those who made them, as safetensors if they can"
)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Key -> array: float32, or int64 for counters.

    `path` may be a folder, as `find` says. PyTorch files are read with
    `weights_only=True` alone.

    Raises:
      PacxError: no such file, one that is damaged or wants to run code, or one that
        holds no state dict.
    """
    path = find(path)
    begin = _beginning(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not begin.startswith((b"PK", b"\x80")):  # before PyTorch guesses at it
        raise PacxError(
            f"{path} is no whole PyTorch checkpoint: it begins with {begin[:16]!r}"
        )
    state = _read_pickle(path)
    held = [
        name
        for name in CONTAINERS
        if isinstance(state, dict) and isinstance(state.get(name), dict)
    ]
    if len(held) > 1:
        raise PacxError(f"{path} holds weights under {' and '.join(held)}: keep one")
    return _arrays(state[held[0]] if held else state, path)


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
    if begin.startswith(b"version https://git-lfs"):
        raise PacxError(f"{path} is a git-lfs pointer: get the file by git lfs pull")
    return begin


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            out = {}
            for key in file.keys():
                kind = file.get_slice(key).get_dtype()
                if kind not in SAFETENSORS:
                    _refuse(path, key, kind)
                out[key] = _array(file.get_tensor(key), key, path)
            return out
    except PacxError:
        raise
    except Exception as e:  # a header may claim what NumPy then refuses in its way
        raise PacxError(f"{path} is no whole safetensors file: {e}") from None


def _read_pickle(path: pathlib.Path):
    torch = _torch(path)
    _check_archive(path)
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
        if found := re.search(r"GLOBAL (\S+)", reason):
            first = found[1] if "." in found[1] else f"builtins.{found[1]}"
            bad = [name for name in _named(path, torch, first) if _attacks(name)]
            text = ATTACK if bad else RESAVE
            name = bad[0] if bad else first
            raise PacxError(
                f"{path} {text.format(name=name, file=path.name)}"
            ) from None
        reason = reason.split("WeightsUnpickler error: ")[-1]
        raise PacxError(
            f"{path} is no whole PyTorch checkpoint, as torch.save writes them: "
            f"{reason.split(' Check the documentation')[0][:200]}"
        ) from None


def _named(path: pathlib.Path, torch, first: str) -> list[str]:
    """What a pickle names of modules; of an older file, the first that was refused."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above; what is damaged is no less refused
        names = []
    return sorted({first, *names})


def _attacks(name: str) -> bool:
    top = name.partition(".")[0]
    standard = top in sys.stdlib_module_names or top == "__builtin__"  # Python 2's name
    return standard and name not in PLAIN


def _check_archive(path: pathlib.Path) -> None:
    """Refuses an archive that unpacks to more than it is, or to what was not written.

    PyTorch compresses none, and reads one whose checksums are wrong.
    """
    if not zipfile.is_zipfile(path):  # an older file, or a part of one
        return
    size, bad = path.stat().st_size, None
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked <= size:
                bad = archive.testzip()
    except (
        OSError,
        ValueError,
        RuntimeError,  # NotImplementedError is one
        zipfile.BadZipFile,
    ) as e:
        raise PacxError(f"{path} is no whole PyTorch checkpoint: {e}") from None
    if unpacked > size:
        raise PacxError(
            f"{path} has {size} bytes and unpacks to {unpacked}: torch.save does not "
            "compress, so this is not its file"
        )
    if bad:
        raise PacxError(
            f"{path} is damaged: the checksum of {bad} is wrong; get the file again"
        )


def _refuse(path, key: str, kind) -> None:
    raise PacxError(
        f"{path}: {key} is of type {kind}: save it as float32, or as float16, bfloat16 "
        "or float64, which become float32"
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
        if value.dtype not in (
            torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64
        ):  # fmt: skip
            _refuse(path, key, value.dtype)
    out = {}
    for key, value in state.items():
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
        out[key] = _array(value.numpy(), key, path)
    return out


def _array(value: np.ndarray, key: str, path) -> np.ndarray:
    if value.dtype == np.int64:
        if not key.endswith(COUNTER):
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
