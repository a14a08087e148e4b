"""Our side of `bench.py mae|distill|embed|ecg`: the library's own steps, timed.

The recipe's config, the library's objective, optimizer, shardings and jitted step, with
the state donated, as a run has them; the batch is drawn once and stays on the devices.

  python -m launch.benchmarks.ours OPTIONS   (JSON; see worker.py)
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from launch.benchmarks import recipes, worker
from pacx_jax import objectives, sharding, target
from pacx_jax.encoders import forward
from pacx_jax.errors import PacxError
from pacx_jax.modalities import teachers
from pacx_jax.models import ecg, vit
from pacx_jax.objectives import distill
from pacx_jax.run import host_memory, profiling, setup


class Training:
    """A training step of the library on one synthetic batch."""

    def __init__(self, config, work: dict):
        sharding.check_batch_size(
            config.global_batch_size, sharding.make_mesh(config.num_devices)
        )
        self.stage = make_stage(config)
        self.batch = config.global_batch_size
        self._input = sharding.put_batch(synthetic_batch(config, work), self.stage.mesh)
        self._state = self.stage.init()
        self._key = self.stage.step_key
        arguments = (self.stage.abstract, self._input, self._key)
        self._step, self.about = _compile(self.stage.train_step, *arguments)
        trained = jax.tree.leaves(self.stage.abstract.params)
        self.about["trained_parameters"] = sum(p.size for p in trained)

    def run(self, steps: int) -> float:
        """Takes steps without waiting in between; returns the last one's loss."""
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._input, self._key)
        jax.block_until_ready(self._state)
        return _finite(float(metrics["loss"]))


@dataclasses.dataclass(frozen=True)
class Encoding:
    """An encoder's forward pass.

    Attributes:
      init: key -> parameters, on every device.
      function: (params, rows) -> embeddings: the library's, jitted.
      name: of the batch's entry that are the rows.
      mesh: the devices.
    """

    init: Callable
    function: forward.Forward
    name: str
    mesh: jax.sharding.Mesh


def forward_of(config, work: dict) -> Encoding:
    """The forward pass of the config's X-ray or ECG encoder."""
    mesh = sharding.make_mesh(config.num_devices)
    sharding.check_batch_size(config.global_batch_size, mesh)
    if work["mode"] == "ecg":
        module = ecg.from_config(config.model, config.dtype)
        function, name, shape = forward.ecgs(module, mesh), "ecg", (work["length"], 12)
    else:
        module = recipes.image_encoder(config).module(config.dtype)
        module = module.clone(**vit.ways(config))
        mean, std = config.data.mean, config.data.std
        function, name = forward.images(module, mean, std, mesh), "image"
        shape = (work["image_size"], work["image_size"], 3)

    def init(key):
        example = jax.ShapeDtypeStruct((1, *shape), np.float32)
        shapes = jax.eval_shape(module.init, key, example)["params"]
        # As if read from a file: to compile their drawing takes more memory than they.
        rng, everywhere = np.random.default_rng(0), sharding.replicated(mesh)

        def draw(leaf):
            values = rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype)
            return jax.device_put(values, everywhere)

        return jax.tree.map(draw, shapes)

    return Encoding(init, function, name, mesh)


class Forward:
    """An encoder's forward pass on one synthetic batch."""

    def __init__(self, config, work: dict):
        self.batch = config.global_batch_size
        encoding = forward_of(config, work)
        rows = synthetic_batch(config, work)[encoding.name]
        self._input = jax.device_put(rows, sharding.batch_sharding(encoding.mesh))
        self._params = encoding.init(jax.random.key(0))
        self._step, self.about = _compile(encoding.function, self._params, self._input)
        self.about["trained_parameters"] = 0

    def run(self, steps: int) -> float:
        """Embeds the batch over and over; returns the last embeddings' mean."""
        for _ in range(steps):
            z = self._step(self._params, self._input)
        return _finite(float(np.asarray(z).mean()))


def make_stage(config) -> setup.Run:
    """The library's stage of a config, from random weights, without data."""
    mesh = sharding.make_mesh(config.num_devices)
    if config.objective == "distill":
        folder = recipes.image_encoder(config)
        sources = recipes.physiology_sources(config).items()
        chosen = {m: teachers.encoder(m, source) for m, source in sources}
        objective = distill.from_teachers(config, mesh, folder, chosen)
        objective = dataclasses.replace(objective, pretrained={})
    else:
        objective = objectives.make(config, mesh)
    return setup.assemble(config, mesh, objective)


def synthetic_batch(config, work: dict) -> dict[str, np.ndarray]:
    """One drawn batch, as the input pipeline would give it."""
    rng, b = np.random.default_rng(0), config.global_batch_size
    batch = {}
    if work["mode"] == "ecg":
        shape = (b, work["length"], 12)
        batch["ecg"] = rng.standard_normal(shape, np.float32)
        batch["labels"] = (rng.random((b, recipes.CLASSES)) < 0.1).astype(np.float32)
        batch["label_mask"] = np.ones((b, recipes.CLASSES), np.float32)
        return batch
    size = work["image_size"]
    batch["image"] = rng.integers(0, 256, (b, size, size, 3), np.uint8)
    for m, width in work.get("widths", {}).items():
        batch[f"{m}_embedding"] = rng.standard_normal((b, width), np.float32)
    return batch


def _compile(function, *arguments):
    """The function compiled for its arguments, and what that took."""
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    about = {
        "trace_s": round(traced - start, 3),
        "compile_s": round(done - traced, 3),
        "compile_cache": bool(jax.config.jax_compilation_cache_dir),
        "xla_mib": _planned(compiled),
    }
    return compiled, about


def _planned(compiled) -> dict[str, float] | None:
    """What XLA plans to hold during a step, in MiB of one device."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    names = ("argument", "output", "alias", "temp")
    sizes = {name: getattr(found, f"{name}_size_in_bytes") for name in names}
    return {name: round(size / 2**20, 1) for name, size in sizes.items()}


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise PacxError(f"the step's result is {value}: try another --dtype")
    return value


def make(options: dict) -> worker.Timed:
    """What is timed, ready but for its warm-up."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except Exception:  # JAX raises assertions too
        raise PacxError(
            f"JAX has no backend of JAX_PLATFORMS={wanted}: leave it away, or set cpu"
        ) from None
    config = recipes.make_config(options)
    work = recipes.describe(config, options)
    mesh = sharding.make_mesh(config.num_devices)
    forced = other_forms(options.get("other_form", ()), mesh)
    with target.forced(**forced):
        timed = (Training if work["train"] else Forward)(config, work)
    devices = mesh.devices.ravel()
    timed.device_peak_mib = lambda: _allocated(devices)
    timed.profile = lambda folder, steps: _profile(timed, folder, steps)
    timed.about |= {
        "work": work,
        "dtype": config.dtype,
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "forced": forced,
    }
    return timed


def other_forms(operations: Sequence[str], mesh) -> dict[str, bool]:
    """Operation -> whether it is to be hand-written: what is not usual on the mesh.

    Raises:
      PacxError: an operation that `target.HAND_WRITTEN` does not have.
    """
    for name in operations:
        if name not in target.HAND_WRITTEN:
            known = ", ".join(target.HAND_WRITTEN)
            raise PacxError(f"--other_form={name}: choose of {known}")
    with sharding.tracing(mesh):
        return {name: not target.hand_written(name) for name in operations}


def _allocated(devices) -> float | None:
    """The most that a device's allocator has held; None where it does not say (CPU)."""
    found = [device.memory_stats() for device in devices]
    if not all(found):
        return None
    return round(max(stats["peak_bytes_in_use"] for stats in found) / 2**20, 1)


def _profile(timed: worker.Timed, folder: str, steps: int) -> None:
    with profiling.trace(folder):
        timed.run(steps)


if __name__ == "__main__":
    host_memory.keep_freed()  # as main.py
    worker.serve(lambda: make(json.loads(sys.argv[1])))
