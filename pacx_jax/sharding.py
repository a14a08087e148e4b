"""Mesh, parameter rules, activations, and host batches as global arrays.

The mesh always has three axes, "data", "fsdp" and "tensor". Rows of a batch are split
over the first two, parameters over the last two, by RULES. docs/sharding.md explains
both.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pacx_jax import target
from pacx_jax.errors import PacxError
from pacx_jax.types import Array, Batch, Params

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that a batch's rows are split over

# (regex on the slash-joined path, spec); the first match decides. It covers trained and
# frozen parameters and moments, whose paths end alike. The kernels of transformer
# blocks are 99% of a ViT; the rest, and the ECG and labs networks, are replicated.
RULES = (
    # Megatron's layout: qkv and fc1 by their outputs, proj and fc2 by their inputs.
    (r"(.*/)?block_\d+/(attn/qkv|mlp/fc1)/kernel", PartitionSpec("fsdp", "tensor")),
    (r"(.*/)?block_\d+/(attn/qkv|mlp/fc1)/bias", PartitionSpec("tensor")),
    (r"(.*/)?block_\d+/(attn/proj|mlp/fc2)/kernel", PartitionSpec("tensor", "fsdp")),
    # The norm of hidden units, as EVA-02 has it, lies as they do.
    (r"(.*/)?block_\d+/mlp/norm/(scale|bias)", PartitionSpec("tensor")),
    # LoRA: the side that meets a split one. Gathering 1% would cost more than it saves.
    (r"(.*/)?block_\d+/(attn/qkv|mlp/fc1)/b", PartitionSpec(None, "tensor")),
    (r"(.*/)?block_\d+/(attn/proj|mlp/fc2)/a", PartitionSpec("tensor")),
    # The report decoder's, likewise. Its token embeddings and output layer are split by
    # no axis: few divisors divide a vocabulary.
    (
        r"(.*/)?block_\d+/(self_attn/qkv|cross_attn/(q|kv))/kernel",
        PartitionSpec("fsdp", "tensor"),
    ),
    (
        r"(.*/)?block_\d+/(self|cross)_attn/proj/kernel",
        PartitionSpec("tensor", "fsdp"),
    ),
    (r".*", PartitionSpec()),
)

# Automatic "fsdp": parameters per device. ViT-B's MAE has 112 million, in training
# 1.8 GB with gradient and two moments.
MOST_PARAMETERS = 2**27


def make_mesh(
    num_devices: int = 0, fsdp: int = 1, tensor: int = 1, devices: Sequence = ()
) -> Mesh:
    """The mesh over the first `num_devices` (0 = all) devices.

    Args:
      fsdp: number of devices that share each block's parameters.
      tensor: number of devices that share each layer's heads and hidden units. "data"
        is the rest.
      devices: devices of another machine to compile for; (): this run's.

    Raises:
      PacxError: too few devices, or the axes do not divide their number.
    """
    devices = list(devices or jax.devices())
    if num_devices > len(devices):
        raise PacxError(
            f"config.num_devices is {num_devices} but there are {len(devices)} devices"
        )
    devices = devices[: num_devices or None]
    for name, size in (("fsdp", fsdp), ("tensor", tensor)):
        if size < 1:
            raise PacxError(f"config.mesh.{name} is {size}: give at least 1")
    if len(devices) % (fsdp * tensor):
        raise PacxError(
            f"config.mesh.fsdp {fsdp} x config.mesh.tensor {tensor} does not divide "
            f"the {len(devices)} devices"
        )
    return jax.make_mesh(
        (len(devices) // (fsdp * tensor), fsdp, tensor),
        AXES,
        devices=devices,
        axis_types=(AxisType.Auto,) * 3,
    )


def automatic_fsdp(params: Params, mesh: Mesh) -> int:
    """The smallest "fsdp" that leaves a device at most MOST_PARAMETERS of a tree.

    1 up to ViT-B's size; the largest possible if none is enough. It divides the mesh's
    "data" axis and every axis that RULES split by it.
    """
    tensor, count = mesh.shape["tensor"], mesh.shape["data"]
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    sizes = [
        n
        for n in range(1, count + 1)
        if count % n == 0 and misfit(params, {"fsdp": n}) is None
    ]
    enough = [n for n in sizes if total <= n * tensor * MOST_PARAMETERS]
    return (enough or sizes[-1:])[0]


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_batch_size(
    global_batch_size: int, mesh: Mesh, parts: Mapping[str, int] | None = None
) -> None:
    """Raises PacxError unless every device gets the same number of rows.

    Args:
      parts: config field -> number of parts that the batch is processed in, such as
        {"accumulate": 4}; each part must split evenly too.
    """
    n, tensor = batch_shards(mesh), mesh.shape["tensor"]
    what = f"{n} devices" if tensor == 1 else f"{n} groups of {tensor} devices"
    for field, count in (parts or {}).items():
        if count < 1:
            raise PacxError(f"config.{field} is {count}: give at least 1")
        if count > 1:
            n, what = n * count, f"{what} x config.{field} {count}"
    if global_batch_size < 1 or global_batch_size % n:
        raise PacxError(
            f"global_batch_size {global_batch_size} is not divisible by {what}: "
            f"set config.global_batch_size to a multiple of {n}"
        )


def path_name(path) -> str:
    """A jax key path as "a/b/c"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def rule(name: str, rules=RULES) -> PartitionSpec:
    """The spec of the first rule that matches a whole slash-joined path."""
    for pattern, spec in rules:
        if re.fullmatch(pattern, name):
            return spec
    raise PacxError(f"no sharding rule matches the parameter {name}")


def misfit(tree: Params, sizes: Mapping[str, int], rules=RULES):
    """The first (path, length, mesh axis) whose mesh axis does not divide it, or None.

    Args:
      sizes: mesh axis -> size; an axis that is not in it has size 1.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        for axis, length in zip(rule(name, rules), np.shape(leaf), strict=False):
            if axis is not None and length % sizes.get(axis, 1):
                return name, length, axis
    return None


def tree_shardings(tree: Params, mesh: Mesh, rules=RULES):
    """The NamedSharding of every leaf, by the first rule that matches its path.

    Mesh axes of size 1 do not appear in the shardings.

    Raises:
      PacxError: a mesh axis does not divide the axis it splits. Replicating that leaf
        instead would use the memory that the mesh axis should save.
    """
    wrong = misfit(tree, mesh.shape, rules)
    if wrong:
        name, length, axis = wrong
        raise PacxError(
            f"config.mesh.{axis} {mesh.shape[axis]} does not divide the length "
            f"{length} of {name}: choose a divisor of it"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _present(rule(path_name(path), rules), mesh)
        ),
        tree,
    )


def _present(spec: PartitionSpec, mesh) -> PartitionSpec:
    """The spec without axes of size 1."""
    axes = [None if axis and mesh.shape[axis] == 1 else axis for axis in spec]
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the devices, as in every batch of every jit."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


@contextlib.contextmanager
def tracing(mesh: Mesh):
    """Within this context, functions are traced for `mesh`.

    They constrain their activations to it and choose kernels by its devices.
    """
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        with target.compiling_for(mesh):
            yield


def constrain(x: Array, *axes) -> Array:
    """x, laid out as PartitionSpec(*axes) on the mesh of `tracing`, if there is one."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def constrain_rows(x: Array) -> Array:
    """Splits x (b, ...) by rows only; no-op if the mesh does not divide b."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % batch_shards(mesh):
        return x
    return constrain(x, ROWS)


def row_major(x: Array) -> Array:
    """Lays x out in memory with its last axis innermost, on GPUs; a no-op elsewhere.

    XLA would put the images innermost in the stream of an MAE's encoder and let each
    product transpose it. `shard_map` is needed, since XLA gathers x for a global layout
    constraint.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if target.platform() != "gpu" or mesh.empty or x.shape[0] % batch_shards(mesh):
        return x
    layout = Layout(major_to_minor=tuple(range(x.ndim)))
    rows = PartitionSpec(ROWS)
    return jax.shard_map(
        lambda x: with_layout_constraint(x, layout), in_specs=rows, out_specs=rows
    )(x)


def check_heads(num_heads: int) -> None:
    """PacxError unless the "tensor" axis of `tracing` divides the attention heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and num_heads % mesh.shape["tensor"]:
        raise PacxError(
            f"config.mesh.tensor {mesh.shape['tensor']} does not divide the "
            f"{num_heads} heads of the model's attention: choose a divisor of it"
        )


def row_numbers(batch: Batch) -> Array:
    """Row numbers in the global batch, (b,) int32, by which randomness is keyed.

    A part of a batch carries them beside its examples, from `split_rows`.
    """
    if "row_numbers" in batch:
        return batch["row_numbers"]
    return jnp.arange(len(next(iter(batch.values()))), dtype=jnp.int32)


def split_rows(batch: Batch, count: int) -> Batch:
    """Splits a batch into `count` parts, (count, b / count, ...), with row numbers.

    Part i holds the rows whose number is i modulo `count`: each device takes a share of
    its own rows, and no row moves.
    """
    batch = {**batch, "row_numbers": row_numbers(batch)}

    def one(x):
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:])
        return constrain(x.swapaxes(0, 1), None, ROWS)

    return jax.tree.map(one, batch)


def join_rows(x: Array) -> Array:
    """Inverse of `split_rows` for one array: (count, b / count, ...) -> (b, ...)."""
    x = x.swapaxes(0, 1)
    return constrain(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), ROWS)


def local_rows(global_batch_size: int, mesh: Mesh) -> np.ndarray:
    """Row numbers of each global batch that this process must read, ascending."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((global_batch_size,))
    rows = [np.arange(global_batch_size)[index] for index in indices.values()]
    return np.unique(np.concatenate(rows))


def padded_size(n: int, mesh: Mesh) -> int:
    """The smallest number of rows >= n that the mesh's devices share evenly.

    PacxError for an n that is no size of a batch: of 0, nothing would be computed.
    """
    if not isinstance(n, int | np.integer) or n < 1:
        raise PacxError(f"batch_size {n!r}: give a whole number from 1 on")
    devices = batch_shards(mesh)
    return -(-n // devices) * devices


def call_size(n: int, most: int, mesh: Mesh) -> int:
    """Number of rows to pad n to: a power of two per device, at most `most`.

    Few rows then cost little, and few sizes are compiled.
    """
    devices = batch_shards(mesh)
    rows = -(-n // devices)
    return min(devices * 2 ** (rows - 1).bit_length(), most)


def pad_rows(array: np.ndarray, n: int) -> np.ndarray:
    """Appends rows of zeros to an array, up to n rows."""
    return np.pad(array, [(0, n - len(array))] + [(0, 0)] * (array.ndim - 1))


def put_tree(tree: Params, shardings) -> Params:
    """Turns a tree that every process holds whole into global arrays."""
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda i: x[i]),
        tree,
        shardings,
    )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Turns this process's rows of every array into global arrays over the mesh.

    Returns before the copy ends. Do not change the arrays afterwards.
    """
    sharding = batch_sharding(mesh)
    # With several processes JAX treats this as an implicit transfer.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
            for name, value in batch.items()
        }
