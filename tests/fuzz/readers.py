"""Every reader of files, each with valid files to damage and what must then hold.

A reader is given a folder with one damaged file in it and everything else sound. It
either gives a valid result or raises PacxError in one line that names the file, within
a time and a memory. `tests/fuzz/test_readers.py` runs a few examples of each, or many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import os
import pathlib
import resource
import sys
from collections.abc import Callable

from pacx_jax.errors import PacxError
from tests.fuzz import damage

SECONDS = 20  # for one example, which takes milliseconds
MEMORY = 1 << 30  # bytes that reading one example may add to the process
ADDRESS_SPACE = 6 << 30  # beyond what the process has: the machine's safety


@dataclasses.dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
      file: its path within the folder.
      draw: writes a sound folder.
      read: path of the file -> nothing; reads it as the project does.
      damage: how the file is changed.
      seeds: more sound contents of the file, beside the one that `draw` wrote.
      named: what a message must contain; default, the file's name without suffix, or
        its folder.
    """

    file: str
    draw: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], object]
    damage: damage.Damage = damage.of_bytes
    seeds: Callable[[], list[bytes]] = list
    named: str = ""

    def contents(self, folder: pathlib.Path) -> list[bytes]:
        """The sound contents, of a folder that `draw` wrote."""
        return [(folder / self.file).read_bytes(), *self.seeds()]


def check(reader: Reader, folder: pathlib.Path, data: bytes) -> str:
    """Reads `data` as the reader's file; returns "read" or "refused".

    Raises:
      AssertionError, or whatever the reader raised: the property does not hold. A
      reader that hangs ends the process, with its stacks on stderr.
    """
    path = folder / reader.file
    path.write_bytes(data)
    with timed(SECONDS), measured() as peak:
        try:
            reader.read(path)
            outcome = "read"
        except PacxError as error:
            text, outcome = str(error), "refused"
            assert len(text.splitlines()) == 1, f"several lines: {text!r}"
            names = [reader.named] if reader.named else [path.stem, str(path.parent)]
            assert any(n in text for n in names), f"{path} is not named: {text!r}"
            assert len(text) < 4000, f"{len(text)} characters: {text[:200]!r}"
    assert peak() <= MEMORY, f"{peak() >> 20} MiB of memory"
    return outcome


@contextlib.contextmanager
def timed(seconds: float):
    """Ends the process when the block takes longer, in whatever language it hangs."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def measured():
    """Gives a function: by how many bytes memory rose above its start, at its peak."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    yield lambda: _status("VmHWM") - before


@contextlib.contextmanager
def limited_memory():
    """Lets allocations beyond ADDRESS_SPACE fail, before programs are killed."""
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = used * os.sysconf("SC_PAGE_SIZE") + ADDRESS_SPACE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _status(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


@functools.cache
def readers() -> dict[str, Reader]:
    """Name -> reader, of all of them."""
    from tests.fuzz import arrays, images, models, reports, tables

    found = images.READERS | arrays.READERS | tables.READERS | models.READERS
    return found | reports.READERS
