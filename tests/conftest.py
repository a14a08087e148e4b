"""What every test shares. Eight CPU devices are simulated before jax is imported."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import signal
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the tests' time is that of making code. XLA's own passes stay as they are, but
# LLVM optimizes nothing, and fusions are written by the older emitters, which take half
# as long (a step of distillation: 5 s of CPU, not 11).
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
if importlib.metadata.version("jax").startswith("0.10."):  # later ones lack the flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# What one test compiled, another of this session need not; nothing is left behind.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the first process's
    CACHE = tempfile.TemporaryDirectory(prefix="pacx_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
# A run has about 150 small programs: to read one takes 25 ms, to compile it 40.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.pop("JAX_ENABLE_X64", None)
# A shell has its background jobs, such as a CI, ignore Ctrl-C. The tests hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402

from pacx_jax import sharding  # noqa: E402

# Files that take longest, first: the two processes then end together.
LONG = ("launch/test_demo", "reliability/test_many_processes", "core/test_extending",
        "core/test_main", "reliability/", "launch/test_bench_models", "own/",
        "core/test_meshes", "core/test_export_formats", "launch/test_pages",
        "core/test_losses", "models/", "objectives/", "core/", "launch/")  # fmt: skip
MOST = 1.3e9  # bytes of a process, beyond which it forgets what it compiled,
GROWN = 2e8  # once it has as many more as it kept when it last did
kept = 0  # bytes then
gc.freeze()  # what was imported stays: nothing to look through at each collection


def pytest_collection_modifyitems(items):
    """The order of files for two processes; see LONG."""

    def place(item):
        return next((i for i, x in enumerate(LONG) if f"tests/{x}" in item.nodeid), 99)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def memory():
    """Keeps a process below 2 GB: compiled programs are found again in the cache."""
    global kept
    yield
    if psutil.Process().memory_info().rss > max(MOST, kept + GROWN):
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps it
            trim(0)
        kept = psutil.Process().memory_info().rss


@pytest.fixture(scope="session")
def meshes():
    """Number of devices -> a mesh of that many."""
    assert jax.device_count() == 8
    return {n: sharding.make_mesh(n) for n in (1, 2, 4, 8)}
