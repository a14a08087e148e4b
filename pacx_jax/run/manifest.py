"""The sha256 manifest of a folder: written last, and the proof that all of it is there.

Orbax restores a flipped byte, and a folder without its markers, without a word. So a
saved step counts only if its manifest stands in it and every file is what it says.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

from pacx_jax import files

NAME = "manifest.json"
FORMAT = 1


class Damaged(Exception):
    """A folder that is not what its manifest says; the message says what differs."""


def write(folder: str | os.PathLike, about: dict[str, Any]) -> None:
    """Writes the manifest of all files now in `folder`, and them to the disk.

    Args:
      about: what else the manifest says, as JSON; covered by its own checksum.
    """
    folder = pathlib.Path(folder)
    listed = {name: _fingerprint(folder / name, sync=True) for name in _files(folder)}
    content = sealed({"format": FORMAT, "files": listed, "about": about})
    files.write_json(folder / NAME, content)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest's content with its own checksum."""
    return content | {"sha256": checksum_of(content)}


def check(content: dict[str, Any]) -> None:
    """ValueError or KeyError unless a manifest's content is what was written."""
    rest = {k: v for k, v in content.items() if k != "sha256"}
    if content["sha256"] != checksum_of(rest) or content["format"] != FORMAT:
        raise ValueError("its own checksum differs")


def verify(folder: str | os.PathLike) -> dict[str, Any]:
    """What the manifest says beside its files, once every file has been checked.

    Raises:
      Damaged: a file is missing, too many, of another size or of other content.
    """
    folder = pathlib.Path(folder)
    try:
        content = files.read_json(folder / NAME)
        check(content)
        listed, about = dict(content["files"]), content["about"]
    except FileNotFoundError:
        raise Damaged(f"{NAME} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise Damaged(f"{NAME} is damaged ({e})") from None
    there = _files(folder)
    for name in sorted(set(there) | set(listed)):
        if name not in listed:
            raise Damaged(f"{name} is not one of its files")
        if name not in there:
            raise Damaged(f"{name}: no such file")
        try:
            found = _fingerprint(folder / name)
        except OSError as e:
            raise Damaged(f"{name}: {e.strerror}") from None
        if found != listed[name]:
            what = "size" if found[0] != listed[name][0] else "sha256"
            raise Damaged(f"{name}: its {what} differs")
    return about


def _files(folder: pathlib.Path) -> list[str]:
    """Paths of the files under `folder`, without its manifest, even half of one."""
    found = (p for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    names = (p.relative_to(folder).as_posix() for p in found)
    return sorted(n for n in names if n != NAME and not n.startswith(f".{NAME}."))


def _fingerprint(path: pathlib.Path, sync: bool = False) -> list[int | str]:
    """[size in bytes, sha256]; with `sync` the file is on the disk afterwards."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def checksum_of(content: dict[str, Any]) -> str:
    """sha256 of a manifest without its own checksum."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
