"""The allocator of the C library, set for buffers that return at every step."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed() -> None:
    """Makes freed memory stay with the process, where the C library is glibc.

    XLA on CPU allocates and frees its temporaries at every step. By default glibc
    returns large ones to the system, which clears every page again when it is next
    touched: a quarter of a step of the demonstration's MAE (docs/development.md).
    Elsewhere than on Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**27)
