"""Our side of `bench.py mae|distill|embed|ecg`: the library's own steps, timed.

The recipe's config, the library's objective, optimizer, shardings and jitted step, with
the state donated, as a run has them; the batch is drawn once and stays on the devices.

  python -m launch.benchmarks.ours OPTIONS   (JSON; see worker.py)
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable

from launch.benchmarks import stand_ins

MISSING = stand_ins.install()  # before what imports those packages

import jax  # noqa: E402
import numpy as np  # noqa: E402

from configs import (  # noqa: E402
    base,
    distill_vitb16,
    ecg_net1d,
    labs_dae,
    mae_vitb16,
)
from launch.benchmarks import worker  # noqa: E402
from pacx_jax import (  # noqa: E402
    forward,
    host_memory,
    model_folder,
    objectives,
    sharding,
    stage,
)
from pacx_jax.models import ecg, vit  # noqa: E402
from pacx_jax.objectives import distill  # noqa: E402
from pacx_jax.types import PacxError  # noqa: E402

RECIPES = {"mae": mae_vitb16, "distill": distill_vitb16, "ecg": ecg_net1d}
RECIPES["embed"] = mae_vitb16  # of its encoder
SMALL = ("mu", "demo")  # variants that go with the sizes of the recipes' `:runlocal`
BATCHES = {  # on two CPU cores, and on an accelerator a device
    "mae": (16, 256),
    "distill": (8, 128),
    "embed": (16, 256),
    "ecg": (8, 64),
}
ECG_SECONDS = 10
CLASSES = 150  # of ECGFounder's pretraining


def make_config(options: dict):
    """The recipe's config, with what the flags say."""
    mode, small = options["mode"], options["variant"] in SMALL
    c = RECIPES[mode].get_config("runlocal" if small else None)
    if mode == "distill":
        c.lora.dropout = RECIPES[mode].get_config().lora.dropout
        base.vit(c)  # of the encoder, which a run takes from its folder
        c.model.patch_size = 8 if small else 16
    if mode == "ecg":
        c.data.label_columns = tuple(f"label_{i}" for i in range(CLASSES))
    else:
        c.model.variant = options["variant"]
    if options["image_size"]:
        c.data.image_size = options["image_size"]
    if mode == "mae" and options["mask_ratio"]:
        c.loss.mask_ratio = options["mask_ratio"]
    cpu = jax.default_backend() == "cpu"
    c.num_devices = options["devices"]
    n = options["devices"] or jax.device_count()
    c.dtype = options["dtype"] or ("float32" if cpu else "bfloat16")
    c.global_batch_size = options["batch"] or BATCHES[mode][0 if cpu else 1] * (
        1 if cpu else n
    )
    return c


def image_encoder(config) -> model_folder.ModelFolder:
    """A description of the config's ViT, as a folder has it; without weights."""
    if config.model.variant not in vit.VARIANTS:
        raise PacxError(
            f"--variant={config.model.variant}: choose of {', '.join(vit.VARIANTS)}"
        )
    width, depth, num_heads = vit.VARIANTS[config.model.variant]
    architecture = {
        "patch_size": config.model.patch_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "ln_eps": config.model.ln_eps,
        "image_size": config.data.image_size,
    }
    preprocessing = model_folder.image_preprocessing(config.data.mean, config.data.std)
    return model_folder.ModelFolder("vit", architecture, preprocessing, {})


def physiology_sources(config) -> dict[str, model_folder.ModelFolder]:
    """Descriptions of an ECG and a labs encoder, of the sizes of their recipes."""
    small = config.model.variant in SMALL
    m = ecg_net1d.get_config("runlocal" if small else None).model
    sizes = {
        "ecg": {k: getattr(m, k) for k in ("base_filters", "kernel", "groups_width")}
        | {"filters": list(m.filters), "blocks": list(m.blocks)},
        "labs": labs_dae.get_config().model.to_dict(),
    }
    return {
        name: model_folder.ModelFolder(distill.SOURCES[name], sizes[name], {}, {})
        for name in config.loss.modalities
    }


def describe(config, options: dict) -> dict:
    """All that the step's FLOPs and the peer depend on; see flops.py."""
    mode = options["mode"]
    work = {"mode": mode, "batch": config.global_batch_size, "train": mode != "embed"}
    work["optim"] = config.optim.to_dict()
    if mode == "ecg":
        m = config.model
        names = ("base_filters", "kernel", "groups_width", "filters", "blocks")
        work |= {name: getattr(m, name) for name in names}
        length = ECG_SECONDS * 500 // config.data.ecg_decimate
        return work | {
            "train": options["train"],
            "length": length,
            "classes": CLASSES,
        }
    a = image_encoder(config).architecture
    work |= {k: a[k] for k in ("image_size", "width", "depth", "num_heads", "ln_eps")}
    work |= {"patch": a["patch_size"]}
    if mode == "mae":
        work["decoder"] = config.model.decoder.to_dict()
        work |= {"mask_ratio": config.loss.mask_ratio}
    if mode == "distill":
        work["lora"], work["loss"] = config.lora.to_dict(), config.loss.to_dict()
        work["head_dropout"], d = config.heads.dropout, a["width"]
        shared = config.heads.shared_dim
        widths = {m: s.width for m, s in physiology_sources(config).items()}
        work |= {"widths": widths, "shared": shared, "heads": [(d, shared)]}
        for width in widths.values():
            work["heads"] += [(width, shared), (d, width)]
    return work


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
        module = image_encoder(config).module(config.dtype)
        mean, std = config.data.mean, config.data.std
        function, name = forward.images(module, mean, std, mesh), "image"
        shape = (work["image_size"], work["image_size"], 3)

    def init(key):
        return module.init(key, np.zeros((1, *shape), np.float32))["params"]

    init = jax.jit(init, out_shardings=sharding.replicated(mesh))
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


def make_stage(config) -> stage.Stage:
    """The library's stage of a config, from random weights, without data."""
    mesh = sharding.make_mesh(config.num_devices)
    if config.objective == "distill":
        folder, sources = image_encoder(config), physiology_sources(config)
        objective = distill.from_folders(config, mesh, folder, sources)
        objective = dataclasses.replace(objective, pretrained={})
    else:
        objective = objectives.make(config, mesh)
    return stage.assemble(config, mesh, objective)


def synthetic_batch(config, work: dict) -> dict[str, np.ndarray]:
    """One drawn batch, as the input pipeline would give it."""
    rng, b = np.random.default_rng(0), config.global_batch_size
    batch = {}
    if work["mode"] == "ecg":
        shape = (b, work["length"], 12)
        batch["ecg"] = rng.standard_normal(shape, np.float32)
        batch["labels"] = (rng.random((b, CLASSES)) < 0.1).astype(np.float32)
        batch["label_mask"] = np.ones((b, CLASSES), np.float32)
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
    config = make_config(options)
    work = describe(config, options)
    timed = (Training if work["train"] else Forward)(config, work)
    devices = sharding.make_mesh(config.num_devices).devices.ravel()
    timed.device_peak_mib = lambda: _allocated(devices)
    timed.profile = lambda folder, steps: _profile(timed, folder, steps)
    timed.about |= {
        "work": work,
        "dtype": config.dtype,
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "stand_ins": MISSING,
    }
    return timed


def _allocated(devices) -> float | None:
    """The most that a device's allocator has held; None where it does not say (CPU)."""
    found = [device.memory_stats() for device in devices]
    if not all(found):
        return None
    return round(max(stats["peak_bytes_in_use"] for stats in found) / 2**20, 1)


def _profile(timed: worker.Timed, folder: str, steps: int) -> None:
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        timed.run(steps)


if __name__ == "__main__":
    host_memory.keep_freed()  # as main.py
    worker.serve(lambda: make(json.loads(sys.argv[1])))
