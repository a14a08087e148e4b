"""The devices a program is compiled for: the mesh's, not those of the tracing host.

A plan made on a CPU therefore decides as the GPU would, like all processes of a run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.sharding import Mesh

from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError

# Operation with two forms -> platforms that take the hand-written one, not JAX's.
# docs/compiled.md has the measurements behind this.
HAND_WRITTEN = {
    "dense": ("cpu",),
    "gelu": ("cpu", "gpu"),
    "silu": ("cpu",),
    "layer_norm": ("cpu", "gpu", "tpu"),
    "low_rank": ("cpu", "gpu"),
    "grouped_convolution": ("cpu",),
    "update_in_branch": ("cpu", "tpu"),
}

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh")
_FORCED: contextvars.ContextVar[dict[str, bool]] = contextvars.ContextVar("forced")


@contextlib.contextmanager
def compiling_for(mesh: Mesh) -> Iterator[None]:
    """Within this context, programs are traced for the devices of `mesh`."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


@contextlib.contextmanager
def forced(**forms: bool) -> Iterator[None]:
    """Forces the hand-written form of operations (True) or JAX's (False).

    For measurements that compare the two.
    """
    unknown = forms.keys() - HAND_WRITTEN.keys()
    if unknown:
        raise ValueError(f"{min(unknown)}: choose of {', '.join(HAND_WRITTEN)}")
    token = _FORCED.set(_FORCED.get({}) | forms)
    try:
        yield
    finally:
        _FORCED.reset(token)


def device() -> jax.Device | None:
    """One of the devices being compiled for; None without a mesh."""
    mesh = _MESH.get(None)
    return None if mesh is None else mesh.devices.flat[0]


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu", or "" without a mesh.

    Without one, operations take the CPU's forms and attention takes XLA's.
    """
    found = device()
    return "" if found is None else found.platform


def device_count() -> int:
    """Number of devices of the mesh; 1 without a mesh."""
    mesh = _MESH.get(None)
    return 1 if mesh is None else mesh.size


def capability() -> tuple[int, ...]:
    """An NVIDIA GPU's compute capability, such as (9, 0); () for other devices."""
    text = getattr(device(), "compute_capability", "")
    return tuple(int(part) for part in str(text).split(".") if part.isdecimal())


def hand_written(operation: str) -> bool:
    """Whether this operation takes its hand-written form on the mesh's devices."""
    here = (platform() or "cpu") in HAND_WRITTEN[operation]
    return _FORCED.get({}).get(operation, here)


def tried(what: str, attempt: Callable[[jax.Device], str]) -> str:
    """Returns why a kernel cannot run on the mesh's devices, or "" if it can.

    Tries it once on one device of each process. A fault in one process counts for all;
    every process asks for the same kernels in the same order, as all trace the same
    program. Devices that are not present, such as a planned pod's, count as able.

    Args:
      what: names the kernel and everything its success depends on.
      attempt: (a device) -> what is wrong, or "". Runs outside of any trace; an
        exception counts as what is wrong.
    """
    mesh = _MESH.get(None)
    if mesh is None:
        return ""
    here = [d for d in mesh.devices.flat if d in _local_devices()]
    several = len({d.process_index for d in mesh.devices.flat}) > 1
    if not here:
        return ""
    return _tried(what, attempt, here[0], several)


@functools.cache
def _local_devices() -> frozenset:
    return frozenset(jax.local_devices())


_ANSWERS: dict[tuple, str] = {}


def _tried(what, attempt, device, several: bool) -> str:
    key = (what, device.device_kind, several)
    if key not in _ANSWERS:
        # Another thread has neither the trace nor the mesh of this one.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            _ANSWERS[key] = thread.submit(_answer, attempt, device, several).result()
    return _ANSWERS[key]


def _answer(attempt, device, several: bool) -> str:
    """The fault this process finds, or the first fault of several processes."""
    try:
        answer = attempt(device)
    except Exception as error:  # anything a compiler or a driver raises
        answer = " ".join(str(error).split())[:200] or type(error).__name__
    answers = processes.gathered(answer) if several else [answer]
    return next(filter(None, answers), "")


def say_of_dtype(dtype: str) -> None:
    """Warns once if the mesh's devices have no units for products in `dtype`."""
    if platform() == "gpu" and dtype == "bfloat16" and () < capability() < (8, 0):
        say_once(
            f"{device().device_kind} has no units for bfloat16: XLA computes its "
            "products in float32, no faster; give --config.dtype=float16 or float32"
        )


TRAINING = (
    "lower the batch size, or give --config.accumulate, --config.encoder_chunks or "
    "--config.remat=full; launch/plan.py says what fits"
)


def out_of_memory(error: BaseException, remedy: str = TRAINING) -> str:
    """One line for an XLA out-of-memory error; "" for any other error."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text:
        return ""
    wanted = re.search(r"allocat\w+ ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", text)
    more = f" ({wanted[1]} more were asked for)" if wanted else ""
    return f"the devices' memory does not hold this step{more}: {remedy}"


@functools.cache
def check_backend() -> None:
    """PacxError where JAX finds no devices of the kind that JAX_PLATFORMS names.

    Called before anything whose failure would be blamed on a file.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # JAX's, without CUDA at all
        reason = " ".join(str(error).split()).partition(" (set JAX_")[0]
        raise PacxError(
            f"JAX_PLATFORMS={jax.config.jax_platforms}: JAX finds no such "
            f"devices here{f' ({reason})' if reason else ''}: take JAX_PLATFORMS=cpu, "
            "or leave it out, or install what drives them, from the root of the clone: "
            "pip install -e '.[cuda]' or '.[tpu]'"
        ) from None


@functools.cache
def say_once(text: str) -> None:
    """Logs a warning, once a process."""
    logging.warning("%s", text)
