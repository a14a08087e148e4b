"""Runs whose workdir lies in a store: training, measuring and reading them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from pacx_jax import files
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import manifest, mirror, remote_steps, saved_steps
from pacx_jax.stores import objects, staging, urls


def train(run: Callable, config, url: str, force: bool) -> None:
    """`run(config, copy, force=, mirrored=)`, for a remote workdir."""
    mirrored, done = mirror.Mirror(url), False
    try:
        with staging.named(mirrored.local, mirrored.url):
            mirrored.open()
            run(config, str(mirrored.local), force=force, mirrored=mirrored)
        done = True
    except PacxError as e:
        if mirrored.failure:
            raise PacxError(
                f"{mirrored.failure}. What is not sent is kept in {mirrored.local}: "
                "the same command on this machine goes on from there"
            ) from e
        raise
    finally:
        mirrored.close(done)


def measure(run: Callable, config, url: str, split: str) -> None:
    """`run(config, copy, split)`, for a finished run in a store."""
    path = finished(url, mirror.STEPS)
    with staging.named(path, url.rstrip("/")):
        run(config, str(path), split)
        store = objects.Store(url)
        written = (f"evaluation_{split}*.json", f"predictions_{split}*.csv")
        for file in sorted(f for pattern in written for f in path.glob(pattern)):
            if processes.is_first():
                staging.send(store, file.name, file)


def finished(path: str, kinds=("checkpoints",), every: bool = False) -> pathlib.Path:
    """A run's local copy, to read alone; a local run as it is.

    Args:
      kinds: whose states are copied: the newest whole one, or `every` one.
    """
    if not urls.is_remote(path):
        return pathlib.Path(path)
    folder = staging.local(path, wanted=mirror.is_small)
    store = objects.Store(str(path))
    with files.locked(folder.with_name(f".{folder.name}.steps.lock")):
        for kind in kinds:
            for number in reversed(remote_steps.numbers(store, kind)):
                try:
                    mirror.fetch_step(store, folder / kind, number)
                except manifest.Damaged as e:
                    place = f"{str(path).rstrip('/')}/{kind}/{number}"
                    saved_steps.warn(f"{place} is damaged ({e}): it is not read")
                    continue
                if not every:
                    break
    return folder
