"""Arrays in files of NumPy: mapped into memory, never unpickled."""

from __future__ import annotations

import os

import numpy as np

from pacx_jax.errors import PacxError


def open_npy(path: str | os.PathLike) -> np.ndarray:
    """Maps a .npy file into memory: rows are read when they are asked for.

    A header that claims more than the file holds is refused by the mapping itself.

    Raises:
      PacxError: no such file, or none that is a whole array of plain numbers.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise PacxError(f"{path}: no such file; check the path") from None
    except Exception as error:  # a damaged header makes NumPy raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PacxError(f"{path}: not a readable .npy array ({reason})") from None
    if array.dtype.kind not in "biufUS":
        raise PacxError(
            f"{path}: not a readable .npy array (it holds {array.dtype}, no numbers)"
        )
    return array
