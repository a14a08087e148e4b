"""Whole objects of a store, each checked against its sha256.

obstore sends and retries the requests. What it leaves open is done here: bodies that
arrive cut off or changed, a write whose answer was lost and that then meets itself, and
errors in words. Every object that is written carries its sha256 as metadata, unless it
is streamed; then a manifest has it.
"""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import contextlib
import hashlib
import mmap
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pacx_jax.stores import failures, urls
from pacx_jax.stores.failures import Missing, StoreError

PART = 16 * 2**20  # bytes of a request's body; four are in memory at once
PATIENCE = 45.0  # more than a request may take, so that one is made again
_PARTS_AT_ONCE = 4
_PIECE = 2**18  # bytes
_MOST_PARTS = 9000  # stores take 10,000
_TRIES = 4  # of a body that arrives changed

Version = dict[str, str]  # of an object, as obstore compares it


class Item(NamedTuple):
    """An object in a listing."""

    size: int
    tag: str


class Store:
    """The objects under one URL.

    Args:
      url: gs://BUCKET/PREFIX or s3://BUCKET/PREFIX.
      patience: seconds in which a request is tried again, where that may help; by
        default PATIENCE.
      seconds: for a request to end; by default urls.SECONDS.
      fence: called before each request that writes; raises where none may.
    """

    def __init__(
        self,
        url: str,
        patience: float | None = None,
        seconds: float | None = None,
        fence: Callable[[], None] = lambda: None,
    ):
        self.url, self._fence = url.rstrip("/"), fence
        self._patience = PATIENCE if patience is None else patience
        self._bucket, self._key, self._endpoint = urls.connect(self.url, seconds)

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self._key, name) if part)

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _ask(self, name: str, request: Callable[[], Any], write: bool = False) -> Any:
        """Makes a request, again while that may help."""
        end, pause = time.monotonic() + self._patience, 0.1
        while True:
            if write:
                self._fence()
            try:
                return request()
            except Exception as e:
                if _is_condition(e) or getattr(e, "errno", None):  # of the local disk
                    raise
                error, helps = failures.explained(
                    self._shown(name), e, write, self._endpoint
                )
                if not helps or time.monotonic() + pause > end:
                    raise error from None
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 5.0)

    def read(self, name: str = "") -> tuple[bytes, Version]:
        """An object's bytes, and its version.

        Raises:
          Missing: there is none.
          StoreError: it cannot be read, or is not what was written.
        """
        for _ in range(_TRIES):
            data, version, digest = self._get(name)
            if digest in ("", _sha256(data)):
                return data, version
        raise StoreError(f"{self._shown(name)} is damaged: its sha256 differs")

    def _get(self, name: str, bucket=None) -> tuple[bytes, Version, str]:
        """Bytes, version, and the sha256 that the object was written with, or ""."""

        def get():
            import obstore

            found = obstore.get(bucket or self._bucket, self._path(name))
            data = bytes(found.bytes())
            if len(data) != found.meta["size"]:
                raise ConnectionError("cut off")
            return data, _version(found.meta), found.attributes.get("sha256", "")

        return self._ask(name, get)

    def head(self, name: str = "") -> Item | None:
        """Size and tag of an object; None where there is none."""

        def head():
            import obstore

            return obstore.head(self._bucket, self._path(name))

        try:
            found = self._ask(name, head)
        except Missing:
            return None
        return Item(found["size"], str(found.get("e_tag")))

    def version(self, name: str) -> Version:
        """The version of an object; {} where there is none."""

        def head():
            import obstore

            return _version(obstore.head(self._bucket, self._path(name)))

        try:
            return self._ask(name, head)
        except Missing:
            return {}

    def list(self, prefix: str = "") -> dict[str, Item]:
        """The objects in a folder and below, by their names in this store."""
        cut = len(self._key) + 1 if self._key else 0

        def listed():
            import obstore

            chunks = obstore.list(self._bucket, self._path(prefix) or None)
            return [row for chunk in chunks for row in chunk]

        rows = self._ask(prefix, listed)
        return {
            row["path"][cut:]: Item(row["size"], str(row.get("e_tag"))) for row in rows
        }

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects; those that are not there count as removed."""
        for name in names:

            def delete():
                import obstore

                try:
                    obstore.delete(self._bucket, self._path(name))
                except FileNotFoundError as e:
                    if "NoSuchBucket" in str(e):
                        raise

            self._ask(name, delete, write=True)

    def write(self, name: str, data: bytes) -> Version:
        """Writes an object, whatever was there."""
        return self._put(name, data, "overwrite")

    def create(self, name: str, data: bytes | mmap.mmap) -> Version | None:
        """Writes an object where there is none; None where there is another one."""
        return self._put(name, data, "create")

    def swap(
        self, name: str, data: bytes | mmap.mmap, version: Version
    ) -> Version | None:
        """Writes an object in place of this version; None where that is not there."""
        return self._put(name, data, version)

    def _put(self, name: str, data, mode) -> Version | None:
        """Writes, and reads back unless the store's own tag says what arrived."""
        digest, bucket = _sha256(data), self._bucket
        if len(data) > PART:  # in parts there are no conditions
            bucket, *_ = urls.connect(self.url, urls.SECONDS * len(data) / PART)
        for _ in range(_TRIES):

            def put(mode=mode):
                import obstore

                return obstore.put(
                    bucket,
                    self._path(name),
                    data,
                    mode=mode,
                    attributes={"sha256": digest},
                    use_multipart=False,
                )

            try:
                made = self._ask(name, put, write=True)
                version = _version(made)
                if _is_md5(made.get("e_tag"), hashlib.md5(data).digest()):
                    return version
            except Exception as e:
                if not _is_condition(e):
                    raise
            # Whose it is: an answer may have been lost, and the write met itself.
            try:
                found, there, written_as = self._get(name, bucket)
            except Missing:
                return None
            if written_as != digest:
                return None
            if _sha256(found) == digest:
                return there
            # It is this write, and arrived changed.
            mode = mode if mode == "overwrite" else there
        raise StoreError(
            f"{self._shown(name)} arrives changed, however often it is sent"
        )

    def upload(
        self,
        name: str,
        pieces: Callable[[], Iterator[bytes]],
        size: int,
        digest: str = "",
    ) -> None:
        """Streams an object of `size` bytes, and makes sure that they arrived.

        Args:
          pieces: () -> its bytes from the beginning, in pieces of any size.
          digest: its sha256, for those who read it without a manifest.
        """
        part = max(PART, -(-size // _MOST_PARTS))
        if size <= part:
            self.write(name, b"".join(pieces()))
            return

        def put():
            import obstore

            whole, parts = hashlib.sha256(), []

            def sent():
                for piece in _in_parts(pieces(), part):
                    whole.update(piece)
                    parts.append(hashlib.md5(piece).digest())
                    yield piece

            try:
                made = obstore.put(
                    self._bucket,
                    self._path(name),
                    sent(),
                    attributes={"sha256": digest} if digest else {},
                    chunk_size=part,
                    max_concurrency=_PARTS_AT_ONCE,
                )
            except FileNotFoundError as e:
                if "NoSuchUpload" not in str(e):
                    raise
                # It was completed, that answer was lost, and it was asked again.
                return False, whole.digest()
            together = hashlib.md5(b"".join(parts)).digest()
            return _is_md5(made.get("e_tag"), together, len(parts)), whole.digest()

        for _ in range(_TRIES):
            arrived, whole = self._ask(name, put, write=True)
            if arrived:
                return
            found = hashlib.sha256()
            with contextlib.suppress(Missing):
                for piece in self.stream(name, size):
                    found.update(piece)
            if found.digest() == whole:
                return
        raise StoreError(
            f"{self._shown(name)} arrives changed, however often it is sent"
        )

    def stream(self, name: str, size: int) -> Iterator[memoryview]:
        """The bytes of an object, a part at a time; unchecked."""

        def fetch(offset: int) -> memoryview:
            def get():
                import obstore

                end = min(offset + PART, size)
                path = self._path(name)
                data = obstore.get_range(self._bucket, path, start=offset, end=end)
                if len(data) != end - offset:
                    raise ConnectionError("cut off")
                return memoryview(data)

            return self._ask(name, get)

        with concurrent.futures.ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            waiting: collections.deque = collections.deque()
            for offset in range(0, size, PART):
                waiting.append(pool.submit(fetch, offset))
                if len(waiting) == _PARTS_AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def download(
        self, name: str, target: pathlib.Path, item: Item, digest: str = ""
    ) -> None:
        """Writes an object to a file; what an earlier try has left is gone on with.

        Args:
          digest: its sha256, if that is known otherwise than from its metadata.
        """
        if item.size <= PART:
            for _ in range(_TRIES):
                data, _ = self.read(name)
                if digest in ("", _sha256(data)):
                    partial = target.with_name(f".{target.name}.part")
                    partial.write_bytes(data)
                    os.replace(partial, target)
                    return
            raise StoreError(f"{self._shown(name)} is damaged: its sha256 differs")
        tag = _sha256(f"{item.size} {item.tag}".encode())[:12]
        partial = target.with_name(f".{target.name}.{tag}.part")
        digest = digest or self._digest(name)
        for _ in range(_TRIES):
            whole = hashlib.sha256()
            with partial.open("a+b") as file:
                file.seek(0)
                while piece := file.read(_PIECE):
                    whole.update(piece)
                for end in (*range(file.tell() + PART, item.size, PART), item.size):
                    self._receive(name, file, end, whole)
            if digest in ("", whole.hexdigest()):
                os.replace(partial, target)
                return
            partial.unlink()
        raise StoreError(f"{self._shown(name)} is damaged: its sha256 differs")

    def _receive(self, name: str, file, end: int, whole) -> None:
        """Appends the bytes up to `end` to a file, and hashes them, as they come."""

        def get():
            import obstore

            span = {"range": (file.tell(), end)}
            if file.tell() < end:  # an answer that was cut off is gone on with
                got = obstore.get(self._bucket, self._path(name), options=span)
                for piece in got.stream(min_chunk_size=_PIECE):
                    file.write(piece)
                    whole.update(piece)
            if file.tell() != end:
                raise ConnectionError("cut off")

        self._ask(name, get)

    def _digest(self, name: str) -> str:
        """The sha256 that an object was written with, or ""."""

        def get():
            import obstore

            found = obstore.get(self._bucket, self._path(name), options={"head": True})
            return found.attributes.get("sha256", "")

        return self._ask(name, get)


def _in_parts(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _sha256(data: bytes | mmap.mmap) -> str:
    return hashlib.sha256(data).hexdigest()


def _version(found) -> Version:
    """What obstore takes as a version; it refuses None."""
    names = ("e_tag", "version")
    return {name: found[name] for name in names if found.get(name) is not None}


def _is_md5(tag: str | None, digest: bytes, parts: int = 0) -> bool:
    """Whether a store's tag says that the bytes of this MD5 have arrived."""
    tag, end = (tag or "").strip('"'), f"-{parts}" if parts else ""
    return tag in (digest.hex() + end, base64.b64encode(digest).decode() + end)


def _is_condition(error: Exception) -> bool:
    """Whether a create or a swap found something else there."""
    return type(error).__name__ in ("AlreadyExistsError", "PreconditionError")
