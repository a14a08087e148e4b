"""Mesh, rules, and the rows that each process reads."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pacx_jax import sharding
from pacx_jax.types import PacxError


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
