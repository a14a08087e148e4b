"""Saved states in a store: a step's files in one object a process, and its manifest.

  KIND/N/ATTEMPT-I.pack   the files that process I wrote, one after the other
  KIND/N/ATTEMPT-I.json   what these are; where several processes save
  KIND/N/manifest.json    as in saved steps, and what each pack holds; written last
  KIND/N/damaged.json     a step that is not what its manifest says

A step is there only if its manifest is. A manifest is created, never overwritten, and
removed first. KIND is "checkpoints" or "best".
"""

from __future__ import annotations

import json
import pathlib
import shutil
import time
from typing import Any

from pacx_jax import files
from pacx_jax.run import manifest
from pacx_jax.stores import staging
from pacx_jax.stores.failures import Missing, StoreError
from pacx_jax.stores.objects import Store

DAMAGED = "damaged.json"
OTHERS_SECONDS = 600  # for the other processes' packs


def numbers(store: Store, kind: str) -> list[int]:
    """The steps that are there, whole or not, from the oldest on."""
    parts = [name.split("/") for name in store.list(kind)]
    named = {p[1] for p in parts if len(p) == 3 and p[2] == manifest.NAME}
    bad = {p[1] for p in parts if len(p) == 3 and p[2] == DAMAGED}
    return sorted(int(name) for name in named - bad if name.isdecimal())


def upload(store: Store, folder: pathlib.Path, attempt: str, index: int) -> None:
    """Sends what this process has of a step, whose folder says so by its manifest."""
    about = files.read_json(folder / manifest.NAME)
    name = f"{folder.parent.name}/{folder.name}/{attempt}-{index}"
    paths = [folder / file for file in about["files"]]
    size = sum(size for size, _ in about["files"].values())
    store.upload(f"{name}.pack", lambda: staging.pieces(paths), size)
    if index:
        store.write(f"{name}.json", json.dumps(about["files"]).encode())


def commit(store: Store, folder: pathlib.Path, attempt: str, count: int) -> None:
    """In process 0: waits for the others' packs, and writes the manifest."""
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
    if store.create(f"{place}/{manifest.NAME}", data) is None:
        raise StoreError(f"{store.url}/{place}: another run has written this step")


def _others(store: Store, name: str) -> dict[str, Any]:
    end = time.monotonic() + OTHERS_SECONDS
    while True:
        try:
            return json.loads(store.read(name)[0])
        except Missing:
            if time.monotonic() > end:
                raise StoreError(f"{store.url}/{name} did not come") from None
        time.sleep(0.3)


def remove(store: Store, kind: str, number: int, but: str = "-") -> None:
    """Removes a step, its manifest first; what an attempt, `but`, has sent stays."""
    place = f"{kind}/{number}"
    there = sorted(n for n in store.list(place) if not n.startswith(f"{place}/{but}"))
    store.delete([n for n in there if n.endswith(f"/{manifest.NAME}")])
    store.delete([n for n in there if not n.endswith(f"/{manifest.NAME}")])


def remove_unfinished(store: Store, kind: str) -> None:
    """Removes what saves and removals have left that were cut off."""
    names = store.list(kind)
    held = {n.rpartition("/")[0] for n in names if n.endswith(f"/{manifest.NAME}")}
    held |= {n.rpartition("/")[0] for n in names if n.endswith(f"/{DAMAGED}")}
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
