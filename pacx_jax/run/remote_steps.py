"""Saved states in a store: a step's files in one object a process, and its manifest.

  KIND/N/ATTEMPT-I.pack   the files that process I wrote, one after the other
  KIND/N/ATTEMPT-I.json   what these are; where several processes save
  KIND/N/manifest.json    as in saved steps, and what each pack holds; written last
  KIND/N/damaged-TAG      says that the manifest of this tag is not true

A step is there only if its manifest is. A manifest is created, or takes the place of
the one of an earlier run, by compare-and-swap; it is removed first. KIND is
"checkpoints" or "best".
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from pacx_jax import files
from pacx_jax.run import manifest
from pacx_jax.stores import staging
from pacx_jax.stores.failures import Missing, StoreError
from pacx_jax.stores.objects import Store, Version

DAMAGED = "damaged-"
OTHERS_SECONDS = 600  # for the other processes' packs
_TRIES = 3  # of a write that finds something else there


def numbers(store: Store, kind: str) -> list[int]:
    """The steps that are there and not known to be damaged, from the oldest on."""
    found = []
    items = store.list(kind)
    for name, item in items.items():
        place, _, last = name.rpartition("/")
        number = place.removeprefix(f"{kind}/")
        if last == manifest.NAME and number.isdecimal():
            if f"{place}/{_mark(item.tag)}" not in items:
                found.append(int(number))
    return sorted(found)


def mark_damaged(store: Store, kind: str, number: int, reason: str) -> None:
    """Marks what is in the step's place now, and nothing that comes there later."""
    place = f"{kind}/{number}"
    if item := store.list(place).get(f"{place}/{manifest.NAME}"):
        store.write(f"{place}/{_mark(item.tag)}", f"{reason}\n".encode())


def _mark(tag: str) -> str:
    return DAMAGED + hashlib.sha256(tag.encode()).hexdigest()[:16]


def upload(store: Store, folder: pathlib.Path, attempt: str, index: int) -> None:
    """Sends what this process has of a step, whose folder says so by its manifest."""
    about = files.read_json(folder / manifest.NAME)
    name = f"{folder.parent.name}/{folder.name}/{attempt}-{index}"
    paths = [folder / file for file in about["files"]]
    size = sum(size for size, _ in about["files"].values())
    store.upload(f"{name}.pack", lambda: staging.pieces(paths), size)
    if index:
        store.write(f"{name}.json", json.dumps(about["files"]).encode())


def commit(
    store: Store,
    folder: pathlib.Path,
    attempt: str,
    count: int,
    renew: Callable[[], None],
) -> None:
    """In process 0: waits for the others' packs, and writes the manifest.

    Args:
      renew: of the run's lock; raises when another run has it.
    """
    about = files.read_json(folder / manifest.NAME)
    place = f"{folder.parent.name}/{folder.name}"
    listed = [about["files"]]
    for index in range(1, count):
        listed.append(_others(store, f"{place}/{attempt}-{index}.json"))
    union: dict[str, Any] = {}
    for found in reversed(listed):  # what each process writes alike is the first one's
        union |= found
    packs = {
        f"{attempt}-{i}.pack": {name: size for name, (size, _) in found.items()}
        for i, found in enumerate(listed)
    }
    content = {"format": manifest.FORMAT, "files": union, "about": about["about"]}
    data = json.dumps(manifest.sealed(content | {"packs": packs})).encode()
    replace(store, f"{place}/{manifest.NAME}", data, {}, renew)
    left = [n for n in store.list(place) if not n.startswith(f"{place}/{attempt}-")]
    store.delete(n for n in left if n != f"{place}/{manifest.NAME}")


def replace(
    store: Store, name: str, data, version: Version, renew: Callable[[], None]
) -> Version:
    """Writes an object over what is there, unless a later holder of the lock wrote it.

    Args:
      version: of what is there as far as this run knows; {} = nothing is.
      renew: of the run's lock; raises when another run has it.
    """
    for _ in range(_TRIES):
        if version:
            made = store.swap(name, data, version)
        else:
            made = store.create(name, data)
        if made is not None:
            return made
        # This order: what is there was written before the lock was still this run's.
        version = store.version(name)
        renew()
    raise StoreError(f"{store.url}/{name}: something else writes it too")


def _others(store: Store, name: str) -> dict[str, Any]:
    end = time.monotonic() + OTHERS_SECONDS
    while True:
        try:
            return json.loads(store.read(name)[0])
        except Missing:
            if time.monotonic() > end:
                raise StoreError(f"{store.url}/{name} did not come") from None
        time.sleep(0.3)


def remove(store: Store, kind: str, number: int) -> None:
    """Removes a step, its manifest first."""
    there = store.list(f"{kind}/{number}")
    store.delete(sorted(there, key=lambda n: not n.endswith(f"/{manifest.NAME}")))


def remove_unfinished(store: Store, kind: str) -> None:
    """Removes what saves and removals have left that were cut off."""
    names = store.list(kind)
    held = {n.rpartition("/")[0] for n in names if n.endswith(f"/{manifest.NAME}")}
    store.delete([name for name in names if name.rpartition("/")[0] not in held])


def fetch(store: Store, folder: pathlib.Path, number: int) -> None:
    """Makes `folder` hold a step as it was saved.

    Raises:
      manifest.Damaged: the store does not hold what was saved.
      StoreError: it cannot be read.
    """
    place = f"{folder.name}/{number}"
    try:
        data, _ = store.read(f"{place}/{manifest.NAME}")
        content = json.loads(data)
        manifest.check(content)
        packs, about = dict(content["packs"]), content["about"]
        if about["step"] != number:
            raise ValueError(f"it holds step {about['step']}")
        saving = folder / f"{number}.saving"
        shutil.rmtree(saving, ignore_errors=True)
        saving.mkdir(parents=True)
        size = sum(sum(sizes.values()) for sizes in packs.values())
        files.check_room(folder, size, f"the checkpoint {number}")
        for pack, sizes in reversed(packs.items()):
            total = sum(sizes.values())
            _unpack(store.stream(f"{place}/{pack}", total), sizes, saving)
        (saving / manifest.NAME).write_bytes(data)
        manifest.verify(saving)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise manifest.Damaged(f"{manifest.NAME} is damaged ({e})") from None
    except Missing as e:
        raise manifest.Damaged(str(e)) from None
    shutil.rmtree(folder / str(number), ignore_errors=True)
    saving.rename(folder / str(number))
    files.sync(folder)


def _unpack(pieces, sizes: dict[str, int], folder: pathlib.Path) -> None:
    """Writes the files that stand in a pack, one after the other."""
    held = memoryview(b"")
    for name, size in sizes.items():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise manifest.Damaged(f"{name} is outside of its folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while size:
                held = held or memoryview(next(pieces, b""))
                if not held:
                    raise manifest.Damaged(f"{name} is cut off")
                n = file.write(held[:size])
                size, held = size - n, held[n:]
