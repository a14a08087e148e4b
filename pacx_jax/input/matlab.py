"""Reads real numeric arrays of MATLAB's .mat files, versions 4 and 5 to 7.

Written here because scipy.io.loadmat ends the process on some damaged files (scipy
1.17.1, one changed byte, found by tests/fuzz), and unpacks whatever size a file
asks for. Formats: "MAT-File Format", The MathWorks. Version 7.3 is HDF5, not read.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import struct
import zlib

import numpy as np

from pacx_jax.errors import PacxError

LARGEST = 2**31  # bytes of a file
# Bytes that one compressed variable may unpack to: 90 minutes of 12 leads at 500 Hz in
# float64. Zeros are packed to a thousandth, so that a small file could ask for more.
LARGEST_UNPACKED = 2**28
_VERSION_4 = {0: "f8", 1: "f4", 2: "i4", 3: "i2", 4: "u2", 5: "u1"}
# Types of data elements, and classes of arrays. Data may be of a smaller type than
# their array's class.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_TYPES |= {12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4"}
_CLASSES |= {13: "u4", 14: "i8", 15: "u8"}
_MATRIX, _COMPRESSED = 14, 15


@dataclasses.dataclass(frozen=True)
class Variable:
    """A real numeric array, not yet decoded.

    Attributes:
      shape: as MATLAB has it.
      data: its numbers, column by column.
      dtype: of these, with their byte order.
      kind: of the array they become.
    """

    shape: tuple[int, ...]
    data: bytes
    dtype: np.dtype
    kind: np.dtype

    def array(self) -> np.ndarray:
        """The numbers in the array's shape."""
        count = math.prod(self.shape)
        flat = np.frombuffer(self.data[: count * self.dtype.itemsize], self.dtype)
        return flat.astype(self.kind).reshape(self.shape, order="F")


def read(path: str | os.PathLike) -> dict[str, Variable]:
    """Name -> variable; texts, structures, cells, complex and sparse ones are left out.

    Raises:
      PacxError: no such file, too large, of version 7.3, or damaged.
    """
    path = pathlib.Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise PacxError(f"{path}: more than {LARGEST} bytes; save it as .npy")
        data = path.read_bytes()
        if data.startswith(b"MATLAB 7.3") or data[512:516] == b"\x89HDF":
            raise PacxError(f"{path}: MATLAB 7.3; save it with the option -v7")
        version_5 = data[126:128] in (b"IM", b"MI")
        return _version_5(data) if version_5 else _version_4(data)
    except OSError as error:
        raise PacxError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, struct.error, zlib.error) as error:
        raise PacxError(f"{path}: not a readable MATLAB file ({error})") from None


def _version_4(data: bytes) -> dict[str, Variable]:
    found, at = {}, 0
    while at < len(data):
        kind, rows, columns, imaginary, named = struct.unpack_from("<5I", data, at)
        order = "<"
        if kind > 4999:  # another byte order, or no such file
            order = ">"
            kind, rows, columns, imaginary, named = struct.unpack_from(">5I", data, at)
        machine, precision, form = kind // 1000, kind // 10 % 10, kind % 10
        if machine != (order == ">") or kind // 100 % 10 or precision not in _VERSION_4:
            raise ValueError("neither version 4 nor 5 to 7")
        name, at = _name(data[at + 20 : at + 20 + named]), at + 20 + named
        dtype = np.dtype(order + _VERSION_4[precision])
        size = rows * columns * dtype.itemsize
        if at + size * (1 + bool(imaginary)) > len(data):
            raise ValueError(f"{name} has fewer numbers than {rows} x {columns}")
        if form == 0 and not imaginary:
            kind = np.dtype(_VERSION_4[precision])
            found[name] = Variable((rows, columns), data[at : at + size], dtype, kind)
        at += size * (1 + bool(imaginary))
    return found


def _version_5(data: bytes) -> dict[str, Variable]:
    order, found, at = "<" if data[126:128] == b"IM" else ">", {}, 128
    while at < len(data):
        kind, n = struct.unpack_from(order + "2I", data, at)
        body = data[at + 8 : at + 8 + n]
        if len(body) < n:
            raise ValueError("cut off")
        at += 8 + n
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            kind, n = struct.unpack(order + "2I", unpacker.decompress(body, 8))
            if n > LARGEST_UNPACKED:
                raise ValueError(
                    f"a variable unpacks to {n} bytes, more than {LARGEST_UNPACKED}: "
                    "save it with the option -v6, or as .npy"
                )
            body = unpacker.decompress(unpacker.unconsumed_tail, max(n, 1))
            if len(body) < n:
                raise ValueError("cut off")
        if kind == _MATRIX and body:
            name, variable = _matrix(body, order)
            if variable:
                found[name] = variable
    return found


def _matrix(body: bytes, order: str) -> tuple[str, Variable | None]:
    """Flags, dimensions, name and numbers, each an element of its own."""
    _, flags, at = _element(body, 0, order)
    (word,) = struct.unpack_from(order + "I", flags)
    kind, is_complex = word & 0xFF, word & 0x800
    if kind not in _CLASSES or is_complex:
        return "", None
    form, sizes, at = _element(body, at, order)
    if form != 5 or len(sizes) % 4 or not 8 <= len(sizes) <= 4 * 32:
        raise ValueError("dimensions that are none")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    _, text, at = _element(body, at, order)
    form, numbers, _ = _element(body, at, order)
    if form not in _TYPES or min(shape) < 0:
        raise ValueError("numbers of no known type, or dimensions below 0")
    dtype = np.dtype(order + _TYPES[form])
    if math.prod(shape) * dtype.itemsize > len(numbers):
        raise ValueError(f"{_name(text)} has fewer numbers than its shape {shape}")
    return _name(text), Variable(shape, numbers, dtype, np.dtype(_CLASSES[kind]))


def _element(body: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Type and content of the data element at `at`, and where the next one is."""
    kind, n = struct.unpack_from(order + "2I", body, at)
    if kind >> 16:  # of at most four bytes, in the tag itself
        kind, n, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if n > 4:
            raise ValueError("an element of a wrong size")
    else:
        start, end = at + 8, at + 8 + -(-n // 8) * 8
    content = body[start : start + n]
    if len(content) < n:
        raise ValueError("cut off")
    return kind, content, end


def _name(raw: bytes) -> str:
    """A variable's name; MATLAB's are ASCII words, and messages show no others."""
    name = raw.rstrip(b"\0").decode("ascii", "replace")
    return name if name.isidentifier() else repr(name)[:60]
