"""What the tests of meshes and of parts of a batch compare with."""

import functools

import jax
import pytest

from tests import stages, tiny


@pytest.fixture(scope="session")
def stage_folders(tmp_path_factory):
    """Model folders that `stages.config` starts from."""
    return tiny.write_folders(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="session")
def whole(meshes, stage_folders):
    """(stage, **fields of its config) -> its step on one device, in float64."""

    @functools.cache
    def step(stage, **fields):
        config = stages.config(stage, stage_folders, **fields)
        with jax.enable_x64(True):
            return stages.one_step(config, meshes[1], "float64")

    return step
