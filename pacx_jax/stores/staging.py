"""Remote files and folders on a local disk, and results on their way back.

The local copies lie under PACX_SCRATCH, else the system's folder for temporary files,
and stay there: the next run and the other processes of the machine find them. A copy is
renewed where the store has other bytes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.stores import objects, urls
from pacx_jax.stores.failures import Missing

REMOTE = "remote.json"  # in a local copy: the URL that it is of
_INDEX = ".staged.json"
_AT_ONCE = 8  # files
_OTHERWISE = "or set PACX_SCRATCH to a folder on a larger disk"
_SPARE = 62 * 2**20  # bytes that a copy leaves free, with those of check_room


def scratch() -> pathlib.Path:
    """The folder of local copies, which only its owner may enter."""
    root = os.environ.get("PACX_SCRATCH") or tempfile.gettempdir()
    if urls.is_remote(root):
        raise PacxError(f"PACX_SCRATCH={root}: set it to a folder of this machine")
    folder = pathlib.Path(root) / f"pacx_jax_{os.getuid()}"
    _make(folder, f"PACX_SCRATCH={root}", 0o700)
    if folder.stat().st_uid != os.getuid():
        raise PacxError(f"{folder} belongs to somebody else: set PACX_SCRATCH")
    folder.chmod(0o700)
    return folder


def _make(folder: pathlib.Path, setting: str, mode: int = 0o777) -> None:
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as e:
        raise PacxError(
            f"{setting}: cannot be written to ({e.strerror}): name another folder"
        ) from None


def copy_of(url: str, root: pathlib.Path, mark: str = "") -> pathlib.Path:
    """Where the local copy of a URL lies."""
    url = url.rstrip("/")
    name, key = url.rpartition("/")[2], hashlib.sha256(url.encode()).hexdigest()[:12]
    return root / f"{name[:60]}-{key}{mark}"


def name_of(path: str | os.PathLike) -> str:
    """The URL of a local copy; other paths as they are."""
    try:
        return str(files.read_json(pathlib.Path(path) / REMOTE)["url"])
    except (OSError, ValueError, KeyError):
        return str(path)


def local(
    path: str | os.PathLike,
    root: str = "",
    wanted: Callable[[str], bool] = lambda name: True,
    setting: str = "a path",
) -> pathlib.Path:
    """The path on a local disk: a local one as it is, a remote one's copy.

    Processes of one machine that ask for the same wait for the first.

    Args:
      root: folder of the copies; "" = `scratch()`.
      wanted: which names of a folder are copied, such as {"a"}.__contains__.
      setting: what the path is of, for errors.

    Raises:
      PacxError: an empty path, no such object or folder, or no room.
    """
    if not os.fspath(path):  # which would be the working directory
        raise PacxError(f"{setting} is empty: name a folder or a file")
    if not urls.is_remote(path) and not urls.is_remote(root):
        return pathlib.Path(path)
    base = _base(root)
    url = str(path).rstrip("/")
    store, folder = objects.Store(url), copy_of(url, base)
    with files.locked(folder.with_name(f".{folder.name}.lock")):
        items = {k: v for k, v in store.list().items() if wanted(k)}
        if items:
            bring(store, items, folder, wanted)
            return folder
        found = store.head()
        if found is None:
            raise Missing(f"{url}: no such object or folder")
        name = url.rpartition("/")[2]
        bring(objects.Store(urls.parent(url)), {name: found}, folder)
        return folder / name


def check_room(paths: Sequence[str], root: str = "") -> None:
    """Refuses folders whose copies do not fit on the disk together; see `local`."""
    remote = [path.rstrip("/") for path in paths if urls.is_remote(path)]
    if not remote:
        return
    base, size = _base(root), 0
    for url in remote:
        items, folder = objects.Store(url).list(), copy_of(url, base)
        size += _size(_lacking(items, folder, _index(folder)))
    copies = f"copies of {', '.join(remote)}"
    files.check_room(base, size + _SPARE, copies, _OTHERWISE)


def _base(root: str) -> pathlib.Path:
    if root and urls.is_remote(root):
        raise PacxError(f"data.stage={root}: name a folder of this machine")
    base = pathlib.Path(root) if root else scratch() / "staged"
    if not base.is_dir():
        _make(base, f"data.stage={base}")
    return base


def _index(folder: pathlib.Path) -> dict[str, list]:
    """What was copied into a folder: name -> item."""
    try:
        return files.read_json(folder / _INDEX)
    except (OSError, ValueError):
        return {}


def _lacking(items, folder: pathlib.Path, index) -> dict[str, objects.Item]:
    return {
        name: item
        for name, item in items.items()
        if index.get(name) != list(item)
        or not (folder / name).is_file()
        or (folder / name).stat().st_size != item.size
    }


def _size(items: dict[str, objects.Item]) -> int:
    return sum(item.size for item in items.values())


def bring(
    store: objects.Store,
    items: dict[str, objects.Item],
    folder: pathlib.Path,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Makes a folder hold these objects, fetching those that it lacks.

    What it held of other `wanted` ones is removed. Files of a prepared data set are
    compared with the sha256 that its pacx.json says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in items:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise PacxError(f"{store.url}/{name}: no name that a file can have")
    index = _index(folder)
    for name in filter(wanted, set(index) - set(items)):
        (folder / name).unlink(missing_ok=True)
        del index[name]
    lacking = _lacking(items, folder, index)
    size = _size(lacking)
    files.check_room(folder, size + _SPARE, f"a copy of {store.url}", _OTHERWISE)
    if size > objects.PART:
        print(
            f"copying {store.url}: {len(lacking)} files, {size / 2**20:.0f} MiB, to "
            f"{folder}",
            file=sys.stderr,
            flush=True,
        )
    try:
        _fetch(store, lacking, folder, index, size)
    finally:
        files.write_json(folder / _INDEX, index)
        files.write_json(folder / REMOTE, {"url": store.url})


def _fetch(store, lacking, folder, index, size) -> None:
    digests = {}
    if "pacx.json" in lacking:
        item = lacking["pacx.json"]
        store.download("pacx.json", folder / "pacx.json", item)
        index["pacx.json"] = list(item)
    if (folder / "pacx.json").is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            digests = dict(files.read_json(folder / "pacx.json")["sha256"])
    import tqdm  # a benchmark of the step reads folders without it

    bar = tqdm.tqdm(
        total=size, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
    )

    def fetch(name: str) -> None:
        target, item = folder / name, lacking[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download(name, target, item, str(digests.get(name, "")))
        index[name] = list(item)
        bar.update(item.size)

    with bar, concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        done = [
            pool.submit(fetch, name)
            for name in lacking
            if name not in index or index[name] != list(lacking[name])
        ]
        try:
            for each in concurrent.futures.as_completed(done):
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def output(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A local path to write a file or folder to, which the block's end sends.

    A local path is itself. A remote folder's objects that the new one lacks are
    removed; one that holds anything but an export is left alone.
    """
    if not urls.is_remote(path):
        yield pathlib.Path(path)
        return
    url = str(path).rstrip("/")
    store = objects.Store(url)
    before = store.list()
    ours = {"config.json", "model.safetensors"} <= set(before)
    if before and not ours and "pacx_export.json" not in before:
        raise PacxError(f"{url} exists and is no exported folder: name another")
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        target = pathlib.Path(folder) / url.rpartition("/")[2]
        yield target
        if target.is_file():
            send(store, "", target)
            return
        names = [
            p.relative_to(target).as_posix()
            for p in sorted(target.rglob("*"))
            if p.is_file()
        ]
        # A folder without its config.json is none: it comes last.
        store.delete(["config.json"] if "config.json" in before else [])
        for name in sorted(names, key=lambda name: name == "config.json"):
            send(store, name, target / name)
        store.delete(set(before) - set(names))


def send(store: objects.Store, name: str, file: pathlib.Path) -> None:
    """Writes a file's bytes to an object."""
    size = file.stat().st_size
    store.upload(name, lambda: pieces([file]), size, files.sha256(file))


def pieces(paths: list[pathlib.Path]) -> Iterator[bytes]:
    """The bytes of files, one after the other, in pieces."""
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                yield piece


class _Renaming:
    """A text stream in which a local copy has the name of what it is a copy of."""

    def __init__(self, stream, local: str, url: str):
        self._stream, self._local, self._url = stream, local, url

    def write(self, text: str) -> int:
        return self._stream.write(_renamed(text, self._local, self._url))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def named(local: str | os.PathLike, url: str) -> Iterator[None]:
    """What is printed or raised within calls the local copy by its URL."""
    if not urls.is_remote(url):
        yield
        return
    out, err = (_Renaming(s, str(local), url) for s in (sys.stdout, sys.stderr))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    except PacxError as e:
        raise type(e)(_renamed(str(e), str(local), url)) from e


def _renamed(text: str, local: str, url: str) -> str:
    # What has no room is the disk of the copy.
    return text if "no space left" in text else text.replace(local, url)
