"""Files that are there whole or not at all, also when the power fails."""

from __future__ import annotations

import hashlib
import os
import pathlib


def put(path: pathlib.Path, data: str | bytes) -> None:
    """Writes a file under another name, syncs it, and gives it its own."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: pathlib.Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
