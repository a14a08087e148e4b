"""Mesh, parameter rules, and host batches as global arrays."""

from __future__ import annotations

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pacx_jax.types import Batch, PacxError, Params

# (regex on the slash-joined path, spec); the first match decides. ViT-B fits every
# chip, so parameters are replicated by default and only the batch is split.
DEFAULT_RULES = ((r".*", PartitionSpec()),)


def make_mesh(num_devices: int = 0) -> Mesh:
    """A mesh with one axis, "data", over the first `num_devices` (0 = all) devices."""
    devices = jax.devices()
    if num_devices > len(devices):
        raise PacxError(
            f"config.num_devices is {num_devices} but there are {len(devices)} devices"
        )
    devices = devices[: num_devices or None]
    return jax.make_mesh(
        (len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,)
    )


def check_batch_size(global_batch_size: int, mesh: Mesh) -> None:
    """Raises PacxError unless every device gets as many rows as every other."""
    n = mesh.shape["data"]
    if global_batch_size < 1 or global_batch_size % n:
        raise PacxError(
            f"global_batch_size {global_batch_size} is not divisible by {n} devices: "
            f"set config.global_batch_size to a multiple of {n}"
        )


def path_name(path) -> str:
    """A jax key path as "a/b/c"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def tree_shardings(tree: Params, mesh: Mesh, rules=DEFAULT_RULES):
    """The NamedSharding of every leaf, by the first rule that matches its path."""

    def one(path, leaf):
        name = path_name(path)
        for pattern, spec in rules:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, spec)
        raise PacxError(f"no sharding rule matches the parameter {name}")

    return jax.tree_util.tree_map_with_path(one, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def local_rows(global_batch_size: int, mesh: Mesh) -> np.ndarray:
    """Row numbers of each global batch that this process must read, ascending."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((global_batch_size,))
    rows = [np.arange(global_batch_size)[index] for index in indices.values()]
    return np.unique(np.concatenate(rows))


def padded_size(n: int, mesh: Mesh) -> int:
    """The least number of rows from n on that the mesh's devices share evenly."""
    devices = mesh.shape["data"]
    return -(-n // devices) * devices


def call_size(n: int, most: int, mesh: Mesh) -> int:
    """To how many rows n of them are padded: a power of two a device, at most `most`.

    Few rows cost little then, and few sizes are compiled.
    """
    devices = mesh.shape["data"]
    rows = -(-n // devices)
    return min(devices * 2 ** (rows - 1).bit_length(), most)


def pad_rows(array: np.ndarray, n: int) -> np.ndarray:
    """The array with rows of zeros after its own, n in all."""
    return np.pad(array, [(0, n - len(array))] + [(0, 0)] * (array.ndim - 1))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of every array -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }
