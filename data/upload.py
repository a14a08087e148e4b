"""A prepared set on its way to a bucket, by way of a local copy.

  URL/.preparing/lock.json  while it is prepared; one process alone does
  URL/pacx.json             written last, and only where there is none

The local copy lies under PACX_SCRATCH. What was sent of it, and arrived, is noted
beside it, and is not sent again when the same machine goes on.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import tqdm

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import prepared as manifests
from pacx_jax.stores import lock, objects, staging

_WORKING = ".preparing"


def folder(url: str) -> pathlib.Path:
    """Where a set is prepared that goes to a bucket."""
    return staging.copy_of(url, staging.scratch() / "prepared")


def finished(url: str) -> dict[str, Any] | None:
    """The manifest of a finished set in a bucket; None when there is nothing yet.

    Raises:
      PacxError: something else is there, or not all of the set.
    """
    there = objects.Store(url).list()
    if manifests.FILE not in there:
        if there and not any(name.startswith(_WORKING) for name in there):
            raise PacxError(
                f"{url}: exists and is not a prepared data set; choose another --target"
            )
        return None
    near = staging.local(url, wanted={manifests.FILE}.__contains__)
    manifest = manifests.read(near, sizes=False)
    for name, size in manifest["files"].items():
        if name not in there or there[name].size != size:
            raise PacxError(
                f"{url}/{name}: missing or cut off ({size} bytes were written); delete "
                f"{url} and prepare it again"
            )
    return manifest


@contextlib.contextmanager
def held(url: str) -> Iterator[lock.Lock]:
    """Holds a target, so that no other process writes there.

    Raises:
      PacxError: another one does.
    """
    remedy = "wait for that to end, or choose another --target"
    # Who loses it learns so by `check`, before anything is sent.
    mine = lock.Lock(f"{url}/{_WORKING}", lambda text: None, remedy)
    mine.acquire()
    try:
        yield mine
    finally:
        mine.release()
    objects.Store(url).delete([f"{_WORKING}/{lock.NAME}"])  # the set is there


def send(url: str, local: pathlib.Path, mine: lock.Lock) -> None:
    """Sends a finished set, and removes the local one."""
    store, sums = objects.Store(url), manifests.read(local)["sha256"]
    record = local.with_name(f"{local.name}.sent.json")
    try:
        sent = files.read_json(record)
    except (OSError, ValueError):
        sent = {}
    there = store.list()
    lacking = [
        name
        for name, digest in sums.items()
        if name not in sent or sent[name] != [digest, *(store.head(name) or ())]
    ]
    size = sum((local / name).stat().st_size for name in lacking)
    with tqdm.tqdm(
        total=size, desc="upload", unit="B", unit_scale=True,
        disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        for name in lacking:
            mine.check()
            staging.send(store, name, local / name)
            sent[name] = [sums[name], *store.head(name)]
            files.write_json(record, sent)
            bar.update((local / name).stat().st_size)
    others = {k for k in there if k not in sums and not k.startswith(_WORKING)}
    mine.check()
    store.delete(others)  # of a preparation that was cut off and had other files
    if store.create(manifests.FILE, (local / manifests.FILE).read_bytes()) is None:
        raise PacxError(f"{url}: another process has prepared it meanwhile")
    shutil.rmtree(local)
    record.unlink()
