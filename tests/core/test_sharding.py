"""Mesh, rules, and the rows that each process reads."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import vit


def test_mesh_takes_the_first_devices_or_all(meshes):
    assert sharding.make_mesh().shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert list(meshes[2].devices) == jax.devices()[:2]


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(PacxError, match="num_devices is 9 but there are 8 devices"):
        sharding.make_mesh(9)


@pytest.mark.parametrize("size", [1000 + 4, 0, -8])
def test_batch_that_devices_cannot_share_is_an_error_with_the_numbers(meshes, size):
    with pytest.raises(PacxError) as error:
        sharding.check_batch_size(size, meshes[8])
    assert str(error.value) == (
        f"global_batch_size {size} is not divisible by 8 devices: set "
        "config.global_batch_size to a multiple of 8"
    )
    sharding.check_batch_size(1000, meshes[8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3, 1), "config.mesh.fsdp 3 x config.mesh.tensor 1 does not divide the 8"),
        ((8, 4, 4), "config.mesh.fsdp 4 x config.mesh.tensor 4 does not divide the 8"),
        ((8, -2, 1), "config.mesh.fsdp is -2: give at least 1"),
        ((8, 1, 0), "config.mesh.tensor is 0: give at least 1"),
    ],
)
def test_mesh_that_does_not_match_the_devices_is_an_error(arguments, message):
    with pytest.raises(PacxError, match=message):
        sharding.make_mesh(*arguments)


def test_batch_must_divide_by_devices_and_parts():
    mesh = sharding.make_mesh(8, 2, 2)  # rows in 4 parts
    sharding.check_batch_size(12, mesh)
    sharding.check_batch_size(24, mesh, {"accumulate": 3, "encoder_chunks": 2})
    with pytest.raises(PacxError) as error:
        sharding.check_batch_size(20, mesh, {"accumulate": 3, "encoder_chunks": 1})
    assert str(error.value) == (
        "global_batch_size 20 is not divisible by 4 groups of 2 devices x "
        "config.accumulate 3: set config.global_batch_size to a multiple of 12"
    )
    with pytest.raises(PacxError, match="config.encoder_chunks is 0: give at least 1"):
        sharding.check_batch_size(8, mesh, {"encoder_chunks": 0})


def shapes(width: int, blocks: int):
    kernel = jax.ShapeDtypeStruct((width, 3 * width), np.float32)
    return {f"block_{i:02d}": {"attn": {"qkv": {"kernel": kernel}}}
            for i in range(blocks)}  # fmt: skip


def test_automatic_fsdp_is_1_up_to_vit_b_and_grows_with_the_model():
    mesh = sharding.make_mesh(8)
    for blocks, size in ((7, 1), (15, 2), (30, 4), (40, 8), (400, 8)):
        # 17.7 million parameters a block; 134 million a device
        assert sharding.automatic_fsdp(shapes(2432, blocks), mesh) == size
    six = sharding.make_mesh(6)
    # 3 does not divide 2432; 6 does not either: 2 is the most there can be.
    assert sharding.automatic_fsdp(shapes(2432, 400), six) == 2
    assert sharding.automatic_fsdp(shapes(2432, 40), sharding.make_mesh(8, 1, 8)) == 1


def test_axis_that_does_not_divide_a_kernel_is_an_error():
    mesh = sharding.make_mesh(6, 3)
    with pytest.raises(PacxError) as error:
        sharding.tree_shardings(shapes(32, 1), mesh)
    assert str(error.value) == (
        "config.mesh.fsdp 3 does not divide the length 32 of "
        "block_00/attn/qkv/kernel: choose a divisor of it"
    )


def test_heads_that_the_tensor_axis_does_not_divide_are_an_error():
    model = vit.ViT(patch_size=8, width=32, depth=1, num_heads=2)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    with (
        sharding.tracing(sharding.make_mesh(4, 1, 4)),
        pytest.raises(PacxError, match="config.mesh.tensor 4 does not divide the 2 h"),
    ):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_mesh_of_one_data_axis_replicates_every_parameter(meshes):
    found = sharding.tree_shardings(shapes(32, 2), meshes[8])
    assert {s.spec for s in jax.tree.leaves(found)} == {PartitionSpec()}


def test_first_rule_that_matches_the_whole_path_decides(meshes):
    tree = {"a": {"kernel": 0, "bias": 0}, "akernel": 0}
    rules = (("a/kernel", PartitionSpec("data")), (".*", PartitionSpec()))
    got = sharding.tree_shardings(tree, meshes[2], rules)
    assert got["a"]["kernel"].spec == PartitionSpec("data")
    assert got["a"]["bias"].spec == got["akernel"].spec == PartitionSpec()


def test_parameter_without_a_rule_is_an_error_that_names_it(meshes):
    with pytest.raises(PacxError, match="no sharding rule matches the parameter a/b"):
        sharding.tree_shardings({"a": {"b": 0}}, meshes[2], (("c", PartitionSpec()),))


def test_one_process_reads_all_rows_in_order(meshes):
    for mesh in meshes.values():
        assert sharding.local_rows(16, mesh).tolist() == list(range(16))


def test_batch_lies_on_the_devices_in_contiguous_rows(meshes):
    rows = np.arange(16).reshape(16, 1)
    out = sharding.put_batch({"x": rows}, meshes[4])["x"]
    assert out.sharding == sharding.batch_sharding(meshes[4])
    np.testing.assert_array_equal(out, rows)
    for i, shard in enumerate(
        sorted(out.addressable_shards, key=lambda s: s.device.id)
    ):
        np.testing.assert_array_equal(shard.data, rows[4 * i : 4 * i + 4])
