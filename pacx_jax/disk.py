"""Full disks: seen before a large file is begun, and told by the error they give."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil

from pacx_jax.types import PacxError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: of `ulimit -f`
_MARGIN = 2 * 2**20  # of metadata and file-system blocks


def check_room(folder: str | os.PathLike, size: int, what: str) -> None:
    """PacxError unless the folder's disk has room for `size` bytes more.

    Orbax writes in threads, and on a full disk each of them prints what it was doing.
    """
    free = shutil.disk_usage(folder).free
    if free < size + _MARGIN:
        raise PacxError(
            f"{folder}: no space left for {what}: {free / 2**20:.1f} MiB are free, "
            f"{(size + _MARGIN) / 2**20:.1f} MiB are needed; free some, and the same "
            "command goes on from the last checkpoint"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota.

    The libraries that write in C++ raise other kinds, with the system's words in them.
    """
    words = tuple(os.strerror(code) for code in _FULL)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if any(word in str(error) for word in words):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def told(path: str | os.PathLike) -> str:
    """One line for a disk that filled up while `path` was written."""
    return (
        f"{pathlib.Path(path)}: no space left on its disk; free some, and give the "
        "same command again: what was saved stays usable"
    )
