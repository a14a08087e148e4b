"""A plan: what a compiled step costs on a topology, and what follows from it.

  compute  = FLOPs of a chip / (half of its peak), or of a step compiled for a GPU what
             its kernels take (hlo.py)
  T(N)     = compute + max(0, reduction - 2/3 compute) + other collectives
  T'(N)    = compute + reduction + other collectives            (nothing overlaps)

  predicted_efficiency            = compute / T(N)       at an equal batch a chip
  predicted_efficiency_no_overlap = compute / T'(N)

One chip has no collectives, so neither is above 1.

"reduction" are all-reduces, which add gradients up beside the backward pass, two thirds
of a step. All else waits, as the gathers of embeddings that the step asks for by
itself; XLA for TPUs makes all-reduces of these, and they wait nevertheless.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any

from launch.planning import chips, compilers, hlo
from launch.planning.chips import UTILISATION, Topology
from launch.planning.hlo import Collective
from pacx_jax import files
from pacx_jax.errors import PacxError

BACKWARD = 2 / 3
_PACKAGES = ("jax", "jaxlib", "flax", "optax")
_SOURCES = ("pacx_jax", "configs", "launch/planning")


def make(config, name: str, cache: pathlib.Path) -> dict[str, Any]:
    """All figures of a plan, fit for JSON; `cache` has what was compiled before.

    PacxError where the config cannot be compiled for the topology of that name.
    """
    topology = chips.parse(name)
    path = cache / f"{_key([config.to_dict(), name])}.json"
    if not path.is_file():
        files.write_json(path, _compiled(config, topology))
    return predicted(files.read_own_json(path, "delete it"))


def _compiled(config, topology: Topology) -> dict[str, Any]:
    """What is kept of a compiled step, its kernels and its collectives counted."""
    found = vars(compilers.compile_step(config, topology.name))
    text, n = found.pop("text"), topology.devices
    if text:
        sent = [one for one in hlo.collectives(text, n) if one.group > 1]
    elif found["mesh"]["fsdp"] * found["mesh"]["tensor"] > 1:
        raise PacxError(
            f"--topology={topology.name}: libtpu cannot write this step's text, which "
            "says what is sent where parameters are split: give another topology"
        )
    else:  # XLA may send gradients in bfloat16, which is half of it
        size = found["gradient_bytes"] + found["gathered_bytes_per_chip"]
        sent = [Collective("all-reduce", n, 1, size)]
    return {
        "recipe": config.name,
        "topology": topology.name,
        "compiled_on": str(datetime.date.today()),
        "devices": n,
        "global_batch": config.global_batch_size,
        "hbm_bytes_per_chip": topology.chip.hbm_bytes,
        **found,
        "flops_per_step": found["flops_per_chip"] * n,
        "collectives": [one._asdict() for one in sent],
        "collectives_counted_on": "chips" if text else "trace",
        # A TPU's text says no times.
        **hlo.kernels("" if topology.is_tpu else text, topology.chip),
    }


def _key(request: list) -> str:
    """A hash of all that a result depends on: request, code and versions."""
    versions = [importlib.metadata.version(package) for package in _PACKAGES]
    versions += [compilers.version(variable) for variable in compilers.WHEELS]
    digest = hashlib.sha256(json.dumps([request, versions], sort_keys=True).encode())
    for path in (p for f in _SOURCES for p in sorted((compilers.ROOT / f).rglob("*"))):
        if path.suffix in (".py", ".txtpb") and path.name != "report.py":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def predicted(step: dict[str, Any]) -> dict[str, Any]:
    """The step of `_compiled` with what follows from it."""
    topology = chips.parse(step["topology"])
    chip, here = topology.chip, at(step, topology)
    sent = (Collective(**one) for one in step["collectives"])
    parts = {
        "compute": step["flops_per_chip"] / chip.peak_flops,
        "memory": step["accessed_bytes_per_chip"] / chip.hbm_bandwidth,
        "links": sum(_seconds(one, topology.rings(one.group)) for one in sent),
    }
    # Never shorter than the longest part of the roofline.
    seconds = max(here["step_seconds"], *parts.values())
    curve = [at(step, each) for each in topology.curve()] if step["devices"] > 1 else []
    return step | {
        **{f"{part}_roofline_seconds": value for part, value in parts.items()},
        "roofline_seconds": max(parts.values()),
        "roofline_bound": max(parts, key=parts.__getitem__),
        "predicted_step_seconds": seconds,
        "predicted_images_per_s": step["global_batch"] / seconds,
        "predicted_mfu": step["flops_per_chip"] / seconds / chip.peak_flops,
        "predicted_efficiency": here["efficiency"],
        "predicted_efficiency_no_overlap": here["efficiency_no_overlap"],
        "curve": curve,
    }


def at(step: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """The predicted times of a compiled step on a topology, equal rows a chip.

    Gathers of all chips hold rows of the batch and grow with them; gradients do not.
    Groups of a part of the chips (FSDP, tensor) stay as they are.
    """
    found = [Collective(**one) for one in step["collectives"]]
    whole, n = step["devices"], topology.devices
    sizes = {one.kind: one.bytes_per_chip for one in found if one.group == whole}
    apart = sizes.get("all-gather", 0) + sizes.get("reduce-scatter", 0)
    reduction = other = 0.0
    for one in found:
        size = rows = one.bytes_per_chip  # rows of the batch
        group = n if one.group == whole else one.group
        if one.kind == "all-reduce":
            waiting = (step["gathered_bytes_per_chip"] - apart) * (one.group == whole)
            rows = max(0, min(waiting, size))
        rest, rings = one._replace(bytes_per_chip=size - rows), topology.rings(group)
        if rows:  # the hops of all of them wait with these
            grown = one._replace(bytes_per_chip=rows * group // one.group)
            rest, other = rest._replace(count=0), other + _seconds(grown, rings)
        reduction += _seconds(rest, rings)
    compute = step["kernel_seconds"]
    compute = compute or step["flops_per_chip"] / topology.chip.peak_flops / UTILISATION
    total = compute + max(0.0, reduction - BACKWARD * compute) + other
    return {
        "topology": topology.name,
        "chips": n,
        "global_batch": step["global_batch"] * n // whole,
        "compute_seconds": compute,
        "reduction_seconds": reduction,
        "other_seconds": other,
        "step_seconds": total,
        "efficiency": compute / total,
        "efficiency_no_overlap": compute / (compute + reduction + other),
    }


def _seconds(one: Collective, rings: list[tuple[int, float, float]]) -> float:
    """The time of all of a kind, one after the other, on a ring of each axis.

    A reduce-scatter goes round the first axis, then with a share 1/n of its bytes
    round the second, and so on; an all-gather comes back the other way, and an
    all-reduce is both:

      T = r sum_i V / (n_1 ... n_{i-1}) (n_i - 1) / n_i / W_i + r hops,  r = 1 or 2
    """
    total, share = 0.0, float(one.bytes_per_chip)
    for size, bytes_per_second, hop_seconds in rings:
        total += share * (size - 1) / size / bytes_per_second
        total += one.count * (size - 1) * hop_seconds
        share /= size
    return (2 if one.kind == "all-reduce" else 1) * total
