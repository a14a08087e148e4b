"""PyTorch's pickles, read without running any code that they name."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import sys
import warnings
import zipfile

from pacx_jax.errors import PacxError, install

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


def pytorch(path):
    """The module torch, which reads and writes `path`."""
    try:
        import torch
    except ImportError:
        raise PacxError(
            f"{path} is a PyTorch file: {install('convert')} to read or write it, or "
            "use .safetensors, which needs no PyTorch"
        ) from None
    return torch


def read(path: pathlib.Path):
    """What torch.load gives with `weights_only=True`, on the CPU.

    Raises:
      PacxError: no PyTorch, a file that is damaged, or one that wants to run code.
    """
    torch = pytorch(path)
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
            names = {first}
            with contextlib.suppress(Exception):  # an older file's cannot be listed
                names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            bad = sorted(filter(_attacks, names))
            text, name = (ATTACK, bad[0]) if bad else (RESAVE, first)
            raise PacxError(
                f"{path} {text.format(name=name, file=path.name)}"
            ) from None
        reason = reason.split("WeightsUnpickler error: ")[-1]
        raise PacxError(
            f"{path} is no whole PyTorch checkpoint, as torch.save writes them: "
            f"{reason.split(' Check the documentation')[0][:200]}"
        ) from None


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
