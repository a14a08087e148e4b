"""Files: atomic writes, JSON that may be damaged, locks, full disks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from absl import logging

from pacx_jax.errors import PacxError, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit by `ulimit -f`
_MARGIN = 2 * 2**20  # bytes for metadata and file-system blocks


@contextlib.contextmanager
def whole(
    path: str | os.PathLike, mode: str = "w", permissions: int = 0o666
) -> Iterator[IO]:
    """Opens a new file that replaces `path`, synced to disk, when the block ends.

    If anything interrupts the block, `path` stays as it was. Creates parent folders.

    Args:
      mode: "w" (UTF-8) or "wb".
      permissions: mode bits of the file, less the umask.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(temporary, flags, permissions)
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_bytes(path: str | os.PathLike, longest: int = -1) -> bytes:
    """A file's first bytes, or all; PacxError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(longest)
    except ValueError:  # a zero byte, which no file's name has
        raise PacxError(f"{path}: no name of a file; check the path") from None
    except OSError as error:
        raise unreadable(path, error) from None


def other_kind(data: bytes) -> str:
    """What a file is that stands where another should, and the remedy; else ""."""
    begin = bytes(data[:256]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begin.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: get the file by git lfs pull"
    if begin.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "HTML or XML, such as a page that asks to log in: get the file again"
    return ""


def unreadable(path: str | os.PathLike, error: OSError) -> PacxError:
    """One line for a file that cannot be read."""
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return PacxError(
            f"{path}: a link to {os.readlink(path)}, which is not there; fetch that "
            "file or delete the link"
        )
    if isinstance(error, FileNotFoundError):
        return PacxError(f"{path}: no such file; check the path")
    return PacxError(f"{path}: cannot be read ({one_line(error)})")


@contextlib.contextmanager
def whole_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder that takes the place of `path` when the block ends.

    Whatever interrupts the block leaves what was there, and no trace of its own.
    """
    made = [p for p in path.parents if not p.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = temporary / "new", temporary / "old"
    new.mkdir()
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty
                parent.rmdir()


def sync(folder: str | os.PathLike) -> None:
    """Syncs the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file, whole."""
    with whole(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, whole."""
    write(path, json.dumps(content, indent=1) + "\n")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the object in a file that others wrote.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not JSON in UTF-8, nested too deeply, or no object. The caller
        turns this into a PacxError that says what the file is for.
    """
    found = parse_json(pathlib.Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} instead of a JSON object")
    return found


def read_own_json(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """Reads the object in a file that the run wrote; PacxError if it is damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError) as e:
        raise PacxError(f"{path} is damaged ({e}): {remedy}") from None


def parse_json(text: str) -> Any:
    """json.loads that raises only ValueError, whatever the text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: str | os.PathLike, refusal: str = "") -> Iterator[None]:
    """Holds the lock file `path`; creates the file if needed and leaves it there.

    The lock ends with its process, however that ends.

    Args:
      refusal: text of the PacxError if another process holds the lock; "" waits.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise PacxError(refusal) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logging.warning("%s: this file system has no locks", path)
        yield


def check_room(
    folder: str | os.PathLike,
    size: int,
    what: str,
    otherwise: str = "and the same command goes on from the last checkpoint",
) -> None:
    """Raises PacxError unless the folder's disk has room for `size` more bytes.

    On a full disk each of Orbax's writing threads would print its own error.

    Args:
      otherwise: the end of the message, after "free some, ".
    """
    free = shutil.disk_usage(folder).free
    if free < size + _MARGIN:
        raise PacxError(
            f"{folder}: no space left for {what}: {free / 2**20:.1f} MiB are free, "
            f"{(size + _MARGIN) / 2**20:.1f} MiB are needed; free some, {otherwise}"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a full disk or quota.

    Libraries that write in C++ raise other types, with the system's words in the text.
    """
    words = tuple(os.strerror(code) for code in _FULL)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if any(word in str(error) for word in words):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def full_disk(path: str | os.PathLike) -> str:
    """One line for a disk that filled up while `path` was written."""
    return (
        f"{pathlib.Path(path)}: no space left on its disk; free some, and give the "
        "same command again: what was saved stays usable"
    )
