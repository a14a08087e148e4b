"""A plan: what a compiled step costs on a topology, and what follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
from typing import Any

from launch.planning import chips, compilers, fitting, predict
from launch.planning.chips import Topology
from pacx_jax import files

_PACKAGES = ("jax", "jaxlib", "flax", "optax")
_SOURCES = ("pacx_jax", "configs", "launch/planning")
_AFTERWARDS = [f"launch/planning/{name}.py" for name in ("plan", "predict", "report")]
KERNELS = "model_ms own_estimate_ms custom_calls kernels unknown_loops".split()


def make(
    config, name: str, compiles: int, cache: pathlib.Path
) -> tuple[predict.Costs, dict[str, Any]]:
    """Compiles `config`, or finds that in `cache`, and predicts.

    Args:
      config: with the global batch to plan.
      name: of the topology.
      compiles: how many may look for the largest batch that fits.
      cache: folder of what was compiled before, by all that it depends on.

    Raises:
      PacxError: whatever is wrong with the config or the topology.
    """
    topology = chips.parse(name)
    step = _cached(config, topology, compiles, cache)
    simulated = topology.simulated
    if step["collectives"] is None:
        other = dataclasses.replace(topology, simulated=True)
        step["collectives"] = _cached(config, other, 0, cache)["collectives"]
        simulated = True
    return summarize(config, topology, step, simulated)


def summarize(
    config, topology: Topology, step: dict[str, Any], simulated: bool
) -> tuple[predict.Costs, dict[str, Any]]:
    """What predictions are made from, and all figures of a plan, fit for JSON.

    Args:
      step: of `worker.run`.
      simulated: whether its collectives are those of simulated devices.
    """
    kernels = step["kernels"] or {}
    sent = (predict.Collective(**one) for one in step["collectives"])
    costs = predict.Costs(
        topology,
        *(step[name] for name in ("flops", "counted", "backward", "traffic")),
        tuple(one for one in sent if one.group > 1),
        step["gathered"],
        kernels.get("compute_seconds", 0.0),
    )
    point, parts = predict.at(costs, topology), predict.roofline(costs)
    # Never shorter than the longest part of the roofline.
    seconds = max(point.step, *parts.values())
    tried = [fitting.Tried(*one) for one in step["tried"]]
    low, high = fitting.bounds(tried)
    shards = math.prod(step["mesh"].values()) // step["mesh"]["tensor"]
    batch, (_, products) = config.global_batch_size, step["counted"][1]
    return costs, {
        "recipe": config.name,
        "topology": topology.name,
        "devices": topology.devices,
        "mesh": step["mesh"],
        "global_batch": batch,
        "peak_bytes_per_chip": step["peak"],
        "hbm_bytes_per_chip": topology.chip.hbm_bytes,
        "argument_bytes_per_chip": step["arguments"],
        "temporary_bytes_per_chip": step["temporaries"],
        "output_bytes_per_chip": step["outputs"],
        "code_bytes_per_chip": step["code"],
        "flops_per_step": costs.flops * topology.devices,
        "collectives": [dataclasses.asdict(one) for one in costs.collectives],
        "gathered_bytes_per_chip": costs.gathered,
        "collectives_counted_on": "simulated" if simulated else "chips",
        "compiled_for": "simulated" if topology.simulated else "chips",
        "tried": tried,
        "largest_global_batch": low * shards,
        "largest_global_batch_is_exact": bool(high) and high - low <= fitting.STEP,
        "roofline_seconds": max(parts.values()),
        "roofline_bound": max(parts, key=parts.__getitem__),
        "predicted_step_seconds": seconds,
        "predicted_images_per_s": batch / seconds,
        "predicted_mfu": products / seconds / topology.chip.peak_flops,
        "predicted_efficiency": point.efficiency,
        "predicted_efficiency_no_overlap": point.no_overlap,
        **{name: kernels.get(name) for name in KERNELS},
    }


def _cached(config, topology: Topology, compiles: int, cache) -> dict[str, Any]:
    request = [config.to_dict(), topology.name, topology.simulated, compiles]
    path = cache / f"{_key(request)}.json"
    if not path.is_file():
        from launch.planning import worker  # slow to import

        files.write_json(path, worker.call(worker.run, config, topology, compiles))
    return files.read_own_json(path, "delete it")


def _key(request: list) -> str:
    """A hash of all that a result depends on: request, code and versions."""
    versions = [importlib.metadata.version(package) for package in _PACKAGES]
    versions += [compilers.version(variable) for variable in compilers.WHEELS]
    digest = hashlib.sha256(json.dumps([request, versions], sort_keys=True).encode())
    paths = (p for f in _SOURCES for p in sorted((compilers.ROOT / f).rglob("*.*")))
    for path in paths:
        name = path.relative_to(compilers.ROOT).as_posix()
        if path.suffix in (".py", ".txtpb") and name not in _AFTERWARDS:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
