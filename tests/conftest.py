"""What every test shares. Eight CPU devices are simulated before jax is imported."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # tests neither read nor leave one
os.environ.pop("JAX_ENABLE_X64", None)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import pytest  # noqa: E402

from pacx_jax import sharding  # noqa: E402


@pytest.fixture(scope="session")
def meshes():
    """Number of devices -> a mesh of that many."""
    assert jax.device_count() == 8
    return {n: sharding.make_mesh(n) for n in (1, 2, 4, 8)}
