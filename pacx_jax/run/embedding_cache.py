"""Frozen embeddings of a data set, computed once and cached.

A cache file is named by a hash of everything its content depends on: the encoder's
weights and description, the data's fingerprint, the batch size. Another encoder or
other data means another file, so that a stale cache is never read. It may lie in a
bucket.

A row of NaN is of an example that cannot be used, a row of -inf of one that lacks the
modality.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import files, sharding
from pacx_jax.distributed import processes
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input import arrays, pipeline, transforms
from pacx_jax.modalities import table, teachers
from pacx_jax.stores import objects, staging, urls

CACHE_VERSION = 1  # raise when preprocessing or an encoder's arithmetic changes


def embeddings(
    source,
    teacher: teachers.Teacher,
    data,
    mesh: Mesh,
    *,
    cache_dir: str | os.PathLike,
    batch_size: int,
    quarantine,
) -> np.ndarray:
    """The embedding (n, d) float32 of every example of a source.

    An encoder's are cached on disk. An example without a usable one (unreadable, or not
    finite) stands in `quarantine`, also where the table was computed by an earlier run.

    Raises:
      PacxError: a damaged table; more such examples than `quarantine` allows, or any
        where it is None.
    """
    if isinstance(teacher, table.Table):
        found = teacher.of(source)
    else:
        found = _cached(source, teacher, data, mesh, cache_dir, batch_size, quarantine)
    for i in np.flatnonzero(np.isnan(found).any(1)):
        name = source.name(int(i))
        reason = f"{name}: has no {teacher.name} embedding (unreadable, or not finite)"
        if quarantine is None:
            raise PacxError(f"{reason}; remove it from the data")
        quarantine.record(source, int(i), name, reason)
    return found


def _cached(source, teacher, data, mesh, cache_dir, batch_size, quarantine):
    key = cache_key(source, teacher.folder, batch_size)
    name, shape = f"{teacher.name}_{key[:24]}.npy", (len(source), teacher.width)
    if urls.is_remote(cache_dir):
        return _in_bucket(
            f"{str(cache_dir).rstrip('/')}/{name}",
            shape,
            lambda: compute(source, teacher, data, mesh, batch_size, quarantine),
        )
    path = pathlib.Path(cache_dir) / name
    with contextlib.ExitStack() as stack:
        # If two runs start at once, one computes and the other waits. The processes
        # of one run compute together: none of them may wait for another.
        if jax.process_count() == 1 and not path.is_file():
            stack.enter_context(files.locked(path.with_suffix(".lock")))
        if path.is_file():
            return read(path, shape)
        found = compute(source, teacher, data, mesh, batch_size, quarantine)
        if jax.process_index() == 0:
            with files.whole(path, "wb") as file:
                np.save(file, found)
        return found


def _in_bucket(url: str, shape: tuple[int, int], make: Callable) -> np.ndarray:
    """The table at a URL, made and written there where there is none."""
    there = objects.Store(url).head() is not None
    if processes.agreed(int(there)):  # else some processes would wait for others
        local = staging.local(url)
        with staging.named(local, url):
            return read(local, shape)
    found = make()
    if processes.is_first():
        with staging.output(url) as local, files.whole(local, "wb") as file:
            np.save(file, found)
    return found


def read(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    """A stored table, float32 of this shape; PacxError for anything else."""
    try:
        table = arrays.open_npy(path)
    except PacxError:
        table = None
    if table is None or table.shape != shape or table.dtype != np.float32:
        raise PacxError(f"{path} is damaged: delete it, it will be computed again")
    return np.array(table)


def cache_key(source, encoder: model_folder.ModelFolder, batch_size: int) -> str:
    """Hash of what an embedding table depends on."""
    digest = hashlib.sha256()
    description = [CACHE_VERSION, source.fingerprint, encoder.kind, batch_size]
    description += [encoder.architecture, encoder.preprocessing]
    digest.update(json.dumps(description, sort_keys=True).encode())
    leaves, _ = jax.tree_util.tree_flatten_with_path(encoder.params)
    for name, leaf in leaves:
        digest.update(sharding.path_name(name).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def compute(
    source, teacher: teachers.Encoder, data, mesh: Mesh, batch_size: int, quarantine
) -> np.ndarray:
    """The table of an encoder without its cache."""
    everywhere = sharding.replicated(mesh)

    @functools.partial(
        jax.jit,
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
    )
    def embed(params, batch):
        z = teacher.embed(params, batch)
        usable = jnp.isfinite(z).all(1) & (batch["mask"] > 0.5)
        z = jnp.where(usable[:, None], z, jnp.nan)
        return jnp.where(batch[f"{teacher.name}_present"][:, None] > 0.5, z, -jnp.inf)

    transform = transforms.make(
        "", data, train=False, entries=(), readers=(teacher.reader,)
    )
    rows = sharding.local_rows(batch_size, mesh)
    batches = pipeline.eval_batches(
        source,
        transform,
        global_batch_size=batch_size,
        rows=rows,
        threads=data.threads,
        quarantine=quarantine,
    )
    params = jax.device_put(teacher.folder.params, everywhere)
    out = []
    for batch in batches:
        batch.pop("index")
        # Of padding and unreadable examples, whose mask is 0, nothing is known.
        present = f"{teacher.name}_present"
        batch[present] = np.maximum(batch[present], 1 - batch["mask"])
        out.append(np.asarray(embed(params, sharding.put_batch(batch, mesh))))
    return np.concatenate(out)[: len(source)]
