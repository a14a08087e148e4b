"""A plan: what a compiled step costs on a topology, and what follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import sys
from typing import Any

from launch.planning import chips, compilers, fitting, predict, worker
from pacx_jax import files
from pacx_jax.errors import PacxError

ROOT = worker.ROOT
# What a plan depends on besides its request.
_SOURCES = ("pacx_jax", "configs")
_OF_PLANNING = """abstract chips collectives compilers fitting flops hlo kernels
worker""".split()
_PACKAGES = ("jax", "jaxlib", "flax", "optax")
_KERNELS = "model_ms own_estimate_ms custom_calls kernels copied_bytes_per_chip".split()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was compiled, and the costs that predictions are made from.

    Attributes:
      config: of the run.
      result: of the compile for the topology.
      costs: of a step; their collectives may be counted elsewhere.
      counted_on: "chips", or "simulated" where the compiled text cannot be had, or the
        topology is of GPUs that XLA has no description of here.
    """

    config: Any
    result: worker.Result
    costs: predict.Costs
    counted_on: str

    @property
    def topology(self) -> chips.Topology:
        return self.costs.topology

    @property
    def shards(self) -> int:
        """In how many parts the batch lies."""
        return self.topology.devices // self.result.mesh["tensor"]

    def largest_batch(self) -> tuple[int, bool]:
        """(largest global batch that is known to fit, whether the next does not)."""
        rows, _ = fitting.bounds(list(self.result.tried))
        return rows * self.shards, fitting.is_exact(list(self.result.tried))

    def step_seconds(self) -> float:
        """The predicted step; never shorter than the longest part of the roofline."""
        step = predict.at(self.costs, self.topology).step
        return max(step, *predict.roofline(self.costs).values())

    def mfu(self) -> float:
        """Products' FLOPs through those that a chip could do in the predicted step."""
        products = self.result.counted[1][1]
        return products / self.step_seconds() / self.topology.chip.peak_flops

    def summary(self) -> dict[str, Any]:
        """The last line of the output."""
        r, t = self.result, self.topology
        chip, n = t.chip, t.devices
        point = predict.at(self.costs, t)
        efficiency, no_overlap = predict.efficiencies(self.costs, point)
        batch, (largest, exact) = self.config.global_batch_size, self.largest_batch()
        parts = predict.roofline(self.costs)
        return {
            "recipe": self.config.name,
            "topology": t.name,
            "devices": n,
            "mesh": r.mesh,
            "global_batch": batch,
            "peak_bytes_per_chip": r.peak,
            "hbm_bytes_per_chip": chip.hbm_bytes,
            "argument_bytes_per_chip": r.arguments,
            "temporary_bytes_per_chip": r.temporaries,
            "temporaries": r.temporaries,
            "flops_per_step": self.costs.flops * n,
            "collectives": [dataclasses.asdict(c) for c in self.costs.collectives],
            "gathered_bytes_per_chip": self.costs.gathered,
            "collectives_counted_on": self.counted_on,
            "compiled_for": "simulated" if compilers.simulates(t) else "chips",
            "largest_global_batch": largest,
            "largest_global_batch_is_exact": exact,
            "roofline_seconds": max(parts.values()),
            "roofline_bound": max(parts, key=parts.__getitem__),
            "predicted_step_seconds": self.step_seconds(),
            "predicted_images_per_s": batch / self.step_seconds(),
            "predicted_mfu": self.mfu(),
            "predicted_efficiency": efficiency,
            "predicted_efficiency_no_overlap": no_overlap,
            **self._of_kernels(),
        }

    def _of_kernels(self) -> dict[str, Any]:
        """The summary's part on a GPU's kernels; null of other plans."""
        found = self.result.kernels
        if found is None:
            return dict.fromkeys(_KERNELS)
        own = {name: 1000 * s for name, s in found.own_seconds().items()}
        return {
            "model_ms": 1000 * found.model_seconds,  # XLA's, without what `own` is of
            "own_estimate_ms": own,
            "custom_calls": found.custom_calls,
            "kernels": [dataclasses.asdict(kind) for kind in found.kinds],
            "copied_bytes_per_chip": found.copied,
        }


def make(config, name: str, compiles: int, cache: pathlib.Path) -> Plan:
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
    shards = topology.devices // max(config.mesh.tensor, 1)
    if config.global_batch_size % max(shards, 1):
        raise PacxError(
            f"--global_batch={config.global_batch_size} is not divisible by the "
            f"{topology.devices} chips of {name}: give a multiple of {shards}"
        )
    simulated = compilers.simulates(topology)
    request = worker.Request(config, name, simulated, compiles)
    result = _cached(request, cache)
    found, counted_on = result.collectives, "simulated" if simulated else "chips"
    if found is None:
        counted_on = "simulated"
        simulated = dataclasses.replace(request, simulated=True, compiles=0)
        found = _cached(simulated, cache).collectives
    many = result.counted[1][1]
    costs = predict.Costs(
        topology,
        config.global_batch_size // topology.devices,
        # XLA counts nothing for GPUs, and not what our kernels for TPUs do.
        many if result.loops else max(many, result.flops),
        result.counted,
        result.backward,
        result.traffic if topology.is_tpu and not result.loops else 0.0,
        tuple(c for c in found if c.group > 1),
        result.gathered,
        result.kernels.compute_seconds if result.kernels else 0.0,
    )
    return Plan(config, result, costs, counted_on)


def _cached(request: worker.Request, cache: pathlib.Path) -> worker.Result:
    path = cache / f"{_key(request)}.json"
    if path.is_file():
        try:
            return worker.Result.from_dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError, KeyError):
            print(f"{path} is damaged: it is compiled again", file=sys.stderr)
    result = worker.call(request)
    files.write_json(path, dataclasses.asdict(result))
    return result


def _key(request: worker.Request) -> str:
    """A hash of all that a result depends on: request, code and versions."""
    digest = hashlib.sha256()
    fields = dataclasses.asdict(dataclasses.replace(request, config=None))
    fields["config"] = request.config.to_dict()
    digest.update(json.dumps(fields, sort_keys=True).encode())
    versions = [importlib.metadata.version(package) for package in _PACKAGES]
    topology = chips.parse(request.topology)
    versions.append(compilers.version(topology, request.simulated))
    digest.update(" ".join(versions).encode())
    files = [p for f in _SOURCES for p in sorted((ROOT / f).rglob("*.py"))]
    files += [ROOT / "launch" / "planning" / f"{name}.py" for name in _OF_PLANNING]
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
