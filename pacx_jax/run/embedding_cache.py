"""Frozen ECG and lab embeddings of a data set, computed once and cached.

A cache file is named by a hash of everything its content depends on: the encoder's
weights and description, the data's fingerprint, the batch size. Another encoder or
other data means another file, so that a stale cache is never read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from pacx_jax import files, sharding
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input import arrays, pipeline, transforms
from pacx_jax.objectives.distill import physiology_inputs

CACHE_VERSION = 1  # raise when preprocessing or an encoder's arithmetic changes


def embeddings(
    source,
    modality: str,
    encoder: model_folder.ModelFolder,
    data,
    mesh: Mesh,
    *,
    cache_dir: str | os.PathLike,
    batch_size: int,
    quarantine,
) -> np.ndarray:
    """The embedding (n, d) float32 of every example of a source, cached on disk.

    An example without one (unreadable, or not finite) has a row of NaN and stands in
    `quarantine`, also where the table was computed by an earlier run.

    Raises:
      PacxError: a damaged table; more such examples than `quarantine` allows, or any
        where it is None.
    """
    key = cache_key(source, encoder, batch_size)
    path = pathlib.Path(cache_dir) / f"{modality}_{key[:24]}.npy"
    with contextlib.ExitStack() as stack:
        # Of two runs that start at once, one computes and the other waits. The
        # processes of one run compute together: none of them may wait for another.
        if jax.process_count() == 1 and not path.is_file():
            stack.enter_context(files.locked(path.with_suffix(".lock")))
        if path.is_file():
            table = _read(path, (len(source), encoder.width))
        else:
            table = compute(
                source, modality, encoder, data, mesh, batch_size, quarantine
            )
            if jax.process_index() == 0:
                with files.whole(path, "wb") as file:
                    np.save(file, table)
    for i in np.flatnonzero(~np.isfinite(table).all(1)):
        name = source.name(int(i))
        reason = f"{name}: has no {modality} embedding (unreadable, or not finite)"
        if quarantine is None:
            raise PacxError(f"{reason}; remove it from the data")
        quarantine.record(source, int(i), name, reason)
    return table


def _read(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
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
    source, modality, encoder, data, mesh, batch_size, quarantine
) -> np.ndarray:
    """The table without its cache."""
    module, params = encoder.module(), encoder.params
    everywhere = sharding.replicated(mesh)

    @functools.partial(
        jax.jit,
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
    )
    def embed(params, batch):
        z = module.apply({"params": params}, *physiology_inputs(modality, batch))
        return jnp.where(batch["mask"][:, None] > 0.5, z, jnp.nan)

    data = ml_collections.ConfigDict(data.to_dict())
    # The encoder's own preprocessing, whatever this run's config says of ECGs.
    data.ecg_decimate = encoder.preprocessing.get("decimate", 1)
    transform = transforms.make(modality, data, train=False)
    rows = sharding.local_rows(batch_size, mesh)
    batches = pipeline.eval_batches(
        source,
        transform,
        global_batch_size=batch_size,
        rows=rows,
        threads=data.threads,
        quarantine=quarantine,
    )
    params = jax.device_put(params, everywhere)
    names = ("mask", modality) + (("labs_mask",) if modality == "labs" else ())
    out = []
    for batch in batches:
        inputs = sharding.put_batch({k: batch[k] for k in names}, mesh)
        z = np.asarray(embed(params, inputs))
        out.append(z)
    return np.concatenate(out)[: len(source)]
