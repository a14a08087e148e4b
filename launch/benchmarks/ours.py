"""Our side of `bench.py`'s models: the library's steps, timed.

The recipe's config, the library's objective, optimizer, shardings and jitted step, with
the state donated, as a run has them; the batch is drawn once and stays on the devices.

  python -m launch.benchmarks.ours OPTIONS   (JSON of bench.py's; see worker.py)
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from launch.benchmarks import flops, measure, recipes, worker
from pacx_jax import objectives, sharding, target
from pacx_jax.encoders import forward
from pacx_jax.errors import PacxError
from pacx_jax.modalities import teachers
from pacx_jax.models import ecg, vit, vq
from pacx_jax.objectives import distill
from pacx_jax.run import host_memory, profiling, setup

PROFILED = 3  # steps


class Ours:
    """A training step, or an encoder's forward pass, on one synthetic batch."""

    def __init__(self, options: dict):
        config = recipes.make_config(options)
        work = self._work = recipes.describe(config, options)
        mesh = sharding.make_mesh(config.num_devices)
        sharding.check_batch_size(config.global_batch_size, mesh)
        self._devices = mesh.devices.ravel()
        forced = other_forms(options["other_form"], mesh)
        with target.forced(**forced):
            stage = make_stage(config) if work["train"] else None
            if stage:
                batch = sharding.put_batch(synthetic_batch(config, work), stage.mesh)
                self._state, self._inputs = stage.init(), (batch, stage.step_key)
                jitted, abstract = stage.train_step, stage.abstract
            else:
                jitted, self._state, rows = encoding(config, work)
                rows = jax.device_put(rows, sharding.batch_sharding(mesh))
                abstract, self._inputs = self._state, (rows,)
            start = time.perf_counter()
            lowered = jitted.lower(abstract, *self._inputs)
            traced = time.perf_counter()
            self._step = lowered.compile()
        compiled = time.perf_counter()
        planned = self._step.memory_analysis()
        trained = jax.tree.leaves(stage.abstract.params) if stage else ()
        self.about = {
            **about(config, work),
            "work": work,
            "forced": forced,
            "trace_s": round(traced - start, 3),
            "compile_s": round(compiled - traced, 3),
            "xla_temporaries_mib": planned and planned.temp_size_in_bytes >> 20,
            "trained_parameters": sum(p.size for p in trained),
        }

    def turn(self, steps: int) -> measure.Turn:
        """Its figures of so many steps."""
        turn = measure.timed(self._run, steps, self._work["batch"])
        # The most that a device's allocator has held; a CPU's does not say.
        found = [device.memory_stats() for device in self._devices]
        peaks = [stats["peak_bytes_in_use"] / 2**20 for stats in found if stats]
        return turn | {"device_peak_mib": round(max(peaks), 1) if peaks else None}

    def _run(self, steps: int) -> float:
        """Takes steps without waiting in between; returns a number of the last one."""
        for _ in range(steps):
            if self._work["train"]:
                self._state, metrics = self._step(self._state, *self._inputs)
            else:
                metrics = {"loss": self._step(self._state, *self._inputs)}
        jax.block_until_ready((self._state, metrics))
        last = float(np.asarray(metrics["loss"]).mean())
        if not np.isfinite(last):
            raise PacxError(f"the step's result is {last}: try another --dtype")
        return last

    def profile(self, folder: str) -> None:
        """Writes a trace of a few steps."""
        with profiling.trace(folder):
            self._run(PROFILED)


def make_stage(config) -> setup.Run:
    """The library's stage of a config, from random weights, without data."""
    mesh = sharding.make_mesh(config.num_devices)
    if config.objective == "distill":
        folder = recipes.image_encoder(config)
        sources = recipes.physiology_sources(config).items()
        chosen = {m: teachers.encoder(m, source) for m, source in sources}
        objective = distill.from_teachers(config, mesh, folder, chosen)
        objective = dataclasses.replace(objective, pretrained={})
    elif config.objective == "unified":
        objective = unified(config, mesh)
    else:
        objective = objectives.make(config, mesh)
    return setup.assemble(config, mesh, objective)


def unified(config, mesh):
    """CheXmix's objective with an image tokenizer of random weights."""
    from launch.planning import abstract  # imported here: it needs more packages

    preset = "runlocal" if config.model.variant in recipes.SMALL else ""
    with tempfile.TemporaryDirectory() as directory:
        config = abstract.completed(config, directory, preset)
        objective = objectives.make(config, mesh)
    module = vq.module(recipes.image_tokenizer(config))
    size = config.data.image_size

    def init(key):
        image = np.zeros((1, size, size, module.channels), np.float32)
        return objective.init(key) | {"vq": module.init(key, image)["params"]}

    return dataclasses.replace(objective, init=init, pretrained={})


def encoding(config, work: dict, draw: bool = True):
    """An encoder's jitted forward pass, its parameters on all devices, and its rows.

    Args:
      draw: whether there are values; else the parameters are shapes.
    """
    mesh = sharding.make_mesh(config.num_devices)
    if work["mode"] == "ecg":
        module = ecg.from_config(config.model, config.dtype)
        function, name = forward.arrays(module, mesh), "ecg"
    else:
        module = recipes.image_encoder(config).module(config.dtype)
        module = module.clone(**vit.ways(config))
        mean, std = config.data.mean, config.data.std
        function, name = forward.images(module, mean, std, mesh), "image"
    rows = synthetic_batch(config, work)[name]
    example = jax.ShapeDtypeStruct((1, *rows.shape[1:]), np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
    if draw:  # as if read from a file: to compile their drawing takes more memory
        rng, everywhere = np.random.default_rng(0), sharding.replicated(mesh)

        def drawn(leaf):
            values = rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype)
            return jax.device_put(values, everywhere)

        params = jax.tree.map(drawn, params)
    return function, params, rows


def about(config, work: dict) -> dict:
    """The devices of a step, and the FLOPs that it needs for each image."""
    return {
        "batch": work["batch"],
        "dtype": config.dtype,
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": config.num_devices or jax.device_count(),
        "flops": needed(config, work),
    }


def needed(config, work: dict) -> float:
    """FLOPs that the step needs for each image or ECG."""

    def make(plain):
        if not work["train"]:
            function, *arguments = encoding(plain, work, draw=False)
            return function, arguments
        stage = make_stage(plain)
        batch = synthetic_batch(plain, work)
        return stage.train_step, (stage.abstract, batch, stage.step_key)

    return flops.of_image(make, config) / work["views"]


def synthetic_batch(config, work: dict) -> dict[str, np.ndarray]:
    """One drawn batch, as the input pipeline would give it."""
    rng, b = np.random.default_rng(0), config.global_batch_size
    if work["mode"] == "ecg":
        labels = rng.random((b, recipes.CLASSES)) < 0.1
        return {
            "ecg": rng.standard_normal((b, work["length"], 12), np.float32),
            "labels": labels.astype(np.float32),
            "label_mask": np.ones(labels.shape, np.float32),
        }
    size = work["encoder"]["image_size"]
    if work["mode"] == "mvmae":
        shape = b, work["views"]
        return {
            "images": rng.integers(0, 256, (*shape, size, size, 1), np.uint8),
            "view": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
            "view_mask": np.ones(shape, np.float32),
        }
    shape = b, size, size, config.data.channels
    batch = {"image": rng.integers(0, 256, shape, np.uint8)}
    if work["mode"] == "unified":  # reports that fill their places
        tokens = rng.integers(4, work["words"], (b, config.data.report_length))
        tokens[:, 0], tokens[:, -1] = 2, 3
        batch["report_tokens"] = tokens.astype(np.int32)
        batch["report_present"] = np.ones(b, np.float32)
    for m, width in work.get("widths", {}).items():
        batch[f"{m}_embedding"] = rng.standard_normal((b, width), np.float32)
    return batch


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


if __name__ == "__main__":
    host_memory.keep_freed()  # as main.py
    worker.serve(lambda: Ours(json.loads(sys.argv[1])))
