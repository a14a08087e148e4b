"""Image files under a folder, and how tables name them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Sequence

from pacx_jax.errors import PacxError
from pacx_jax.input.dicom_pixels import is_dicom
from pacx_jax.input.images import EXTENSIONS

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")  # .txt, not that of 1.2.840.113
_HEAD = 132  # bytes that tell a DICOM file
# macOS's in archives; thumbnails and bins of Synology's, QNAP's and Windows' shares.
_SYSTEMS = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "lost+found"}


@dataclasses.dataclass(frozen=True)
class Found:
    """The files under a folder, relative to it with forward slashes, sorted.

    Attributes:
      paths: JPEG, PNG and DICOM files: by extension in any case, and where a name has
        none by the first bytes.
      passed: all others. Hidden folders count as one.
    """

    paths: list[str]
    passed: list[str]

    def told(self, *used: str) -> str:
        """One line that counts what was passed over but for `used`; "" for nothing."""
        kinds = collections.Counter(_kind(p) for p in self.passed if p not in used)
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        return f"passed over as no images: {counts}" if counts else ""


def find(root: str | os.PathLike, setting: str = "data.path") -> Found:
    """Lists the images under a folder; links to folders are followed once.

    Raises:
      PacxError: no such folder, one that cannot be read, no images in it, or names
        that are not UTF-8; it names `setting`.
    """
    if not os.fspath(root):  # which would be the working directory
        raise PacxError(f"{setting} is empty: name a folder")
    root = pathlib.Path(root)
    if root.is_file():
        raise PacxError(f"{root}: a file; name a folder (unpack an archive)")
    if not root.is_dir():
        raise PacxError(f"{root}: no such folder; check {setting}")
    found, passed, visited = [], [], set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        prefix = pathlib.PurePath(folder).relative_to(root)
        passed += [(prefix / x).as_posix() for x in subfolders if hidden(x)]
        subfolders[:] = sorted(x for x in subfolders if not hidden(x))
        for name in names:
            listed = found if _is_image(os.path.join(folder, name)) else passed
            listed.append((prefix / name).as_posix())
    told = Found([], sorted(passed)).told()
    if not found:
        raise PacxError(
            f"{root}: no JPEG, PNG or DICOM files in this folder; check {setting}"
            + (f" ({told})" if told else "")
        )
    _check_utf8(root, found)
    return Found(sorted(found), sorted(passed))


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system made for itself."""
    return name.startswith(".") or name in _SYSTEMS


def waits(path: str | os.PathLike) -> bool:
    """Whether it is a pipe, socket or device, whose reader may wait for ever."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    if hidden(name) or name.upper() == "DICOMDIR" or waits(path):  # DICOM's index
        return False
    if name.lower().endswith(EXTENSIONS):
        return True
    if _SUFFIX.search(name):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG")) or is_dicom(head)


def _kind(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    if hidden(name):
        return "hidden"
    if name.lower().endswith(EXTENSIONS):  # a file of that name would be an image
        return "pipe, socket or device"
    suffix = _SUFFIX.search(name)
    return suffix[0].lower() if suffix else "without extension"


def _refuse(error: OSError) -> None:
    raise PacxError(f"{error.filename}: cannot be read ({error.strerror})")


def _check_utf8(root: pathlib.Path, paths: list[str]) -> None:
    odd = (path for path in paths if not path.isascii())
    bad = [path for path in odd if any("\ud800" <= c <= "\udfff" for c in path)]
    if bad:
        raise PacxError(
            f"{root}: {len(bad)} names are not UTF-8, such as {os.fsencode(bad[0])}; "
            "rename them, for example by convmv -r -f latin1 -t utf8 --notest DIR"
        )


def nfc(name: str) -> str:
    """The name with composed letters, as tables have it; macOS archives differ."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """The name in any case."""
    return nfc(name).casefold()


def stem(name: str) -> str:
    """The name in any case, without its extension if that is an image's."""
    name = folded(name)
    return next((name[: -len(e)] for e in EXTENSIONS if name.endswith(e)), name)


def unpadded(name: str) -> str:
    """A name of digits without its leading zeros, as spreadsheets have it; else ""."""
    name = stem(name)
    return name.lstrip("0") if name.isdecimal() else ""


_FORMS: tuple[Callable[[str], str], ...] = (str, nfc, folded, stem, unpadded)


class Names:
    """Finds files by the names in a table: exact ones first, then by each of _FORMS."""

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        self._by_path = functools.cache(lambda form: self._index(form, whole=True))
        self._by_name = functools.cache(lambda form: self._index(form, whole=False))

    def _index(self, form: Callable[[str], str], whole: bool) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for path in self._paths:
            name = form(path if whole else path.rsplit("/", 1)[-1])
            if name:
                index.setdefault(name, []).append(path)
        return index

    def exactly(self, path: str) -> list[str]:
        """Candidates for a path, all of whose folders are here."""
        found = (self._by_path(form).get(form(path), []) for form in _FORMS)
        return next(filter(None, found), [])

    def at(self, name: str) -> list[str]:
        """Candidates for a path, whose leading folders may be others than here.

        CheXpert's CSV names its own root folder, NIH's gives bare names of files that
        lie in subfolders; both are found.
        """
        parts = name.strip().replace("\\", "/").split("/")
        for i in range(len(parts)):  # images/a.png is rather Images/a.png than a.png
            for form in _FORMS:
                tail = form("/".join(parts[i:]))
                if tail and tail in self._by_path(form):
                    return self._by_path(form)[tail]
                if len(parts) == 1 and form(parts[0]) in self._by_name(form):
                    return self._by_name(form)[form(parts[0])]
        return []

    def named(self, name: str, folder: str = "") -> list[str]:
        """Candidates for a file name in any folder, or below one of this name."""
        for form in _FORMS:
            found = self._by_name(form).get(form(name.rsplit("/", 1)[-1]), [])
            found = [p for p in found if not folder or folder in p.split("/")[:-1]]
            if found:
                return found
        return []
