"""What every test shares. Eight CPU devices are simulated before jax is imported."""

import os
import pathlib
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Two thirds of the tests' time is LLVM's. XLA's own passes stay as they are.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# What one test compiled, another of this session need not; nothing is left behind.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the first process's
    CACHE = tempfile.TemporaryDirectory(prefix="pacx_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
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
