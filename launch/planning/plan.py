"""A plan: what a compiled step costs on a topology, and what follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
from typing import Any

from launch.planning import chips, compilers, fitting, predict, worker
from launch.planning.collectives import Collective
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

    Returns:
      what predictions are made from, and the last line of the output.

    Raises:
      PacxError: whatever is wrong with the config or the topology.
    """
    topology = chips.parse(name)
    simulated = compilers.simulates(topology)
    step = _cached(config, topology, simulated, compiles, cache)
    sent, counted_on = step["collectives"], "simulated" if simulated else "chips"
    if sent is None:
        counted_on = "simulated"
        sent = _cached(config, topology, True, 0, cache)["collectives"]
    collectives = (Collective(**one) for one in sent)
    costs = predict.Costs(
        topology,
        step["flops"],
        step["counted"],
        step["backward"],
        step["traffic"],
        tuple(one for one in collectives if one.group > 1),
        step["gathered"],
        step["kernels"]["compute_seconds"] if step["kernels"] else 0.0,
    )
    return costs, summarize(config, step, costs, counted_on)


def summarize(
    config, step: dict[str, Any], costs: predict.Costs, counted_on: str
) -> dict[str, Any]:
    """A plan's figures, fit for JSON.

    Args:
      step: of `worker.run`.
      counted_on: "chips", or "simulated" where the compiled text cannot be had, or the
        topology is of GPUs that XLA has no description of here.
    """
    topology, batch = costs.topology, config.global_batch_size
    point, parts = predict.at(costs, topology), predict.roofline(costs)
    efficiency, no_overlap = predict.efficiencies(costs, point)
    # Never shorter than the longest part of the roofline.
    seconds = max(point.step, *parts.values())
    tried = [fitting.Tried(*one) for one in step["tried"]]
    products = step["counted"][1][1]
    return {
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
        "collectives_counted_on": counted_on,
        "compiled_for": "simulated" if compilers.simulates(topology) else "chips",
        "tried": tried,
        "largest_global_batch": fitting.bounds(tried)[0] * shards(step["mesh"]),
        "largest_global_batch_is_exact": fitting.is_exact(tried),
        "roofline_seconds": max(parts.values()),
        "roofline_bound": max(parts, key=parts.__getitem__),
        "predicted_step_seconds": seconds,
        "predicted_images_per_s": batch / seconds,
        "predicted_mfu": products / seconds / topology.chip.peak_flops,
        "predicted_efficiency": efficiency,
        "predicted_efficiency_no_overlap": no_overlap,
        **{name: (step["kernels"] or {}).get(name) for name in KERNELS},
    }


def shards(mesh: dict[str, int]) -> int:
    """In how many parts a batch lies."""
    return math.prod(mesh.values()) // mesh["tensor"]


def _cached(config, topology, simulated: bool, compiles: int, cache) -> dict[str, Any]:
    request = [config.to_dict(), topology.name, simulated, compiles]
    path = cache / f"{_key(request)}.json"
    if not path.is_file():
        found = worker.call(worker.run, config, topology, simulated, compiles)
        files.write_json(path, found)
    return files.read_own_json(path, "delete it")


def _key(request: list) -> str:
    """A hash of all that a result depends on: request, code and versions."""
    versions = [importlib.metadata.version(package) for package in _PACKAGES]
    versions += [compilers.version(variable) for variable in compilers.WHEELS]
    digest = hashlib.sha256(json.dumps([request, versions], sort_keys=True).encode())
    paths = (p for f in _SOURCES for p in sorted((worker.ROOT / f).rglob("*.*")))
    for path in paths:
        name = path.relative_to(worker.ROOT).as_posix()
        if path.suffix in (".py", ".txtpb") and name not in _AFTERWARDS:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
