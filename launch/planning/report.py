"""Plans as tables for people: the same in a terminal and in docs/scaling.md."""

from __future__ import annotations

import datetime
import importlib
import pathlib
import sys
import time
from concurrent import futures
from typing import Any

import jax

from launch.planning import chips, compilers, plan, predict
from pacx_jax.errors import PacxError

PODS = ("v5e:16x16", "v6e:16x16", "v5p:8x8x16")
GPUS = ("gpu:1xH100", "gpu:1xH200", "gpu:256xH100")
# Recipe -> examples a chip: a multiple of 8 that every pod's memory has room for.
RECIPES = dict(mae_vitb16=128, distill_vitb16=64, labs_dae=1024, ecg_net1d=64)
RECIPES |= dict(linear_probe=256, segment=64)
ON_GPUS = dict(mae_vitb16=256, distill_vitb16=64)
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def renew(path: pathlib.Path, compiles: int, cache: pathlib.Path, jobs: int) -> None:
    """Plans every recipe for every pod, and writes it between the marks in the file.

    Args:
      jobs: compiles at a time.

    Raises:
      PacxError: a file without the marks; whatever a plan raises.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise PacxError(f"--out={path} has no lines {BEGIN} and {END}")
    todo = [(recipe, pod, n) for recipe, n in RECIPES.items() for pod in PODS]
    todo += [(recipe, gpus, n) for recipe, n in ON_GPUS.items() for gpus in GPUS]
    with futures.ThreadPoolExecutor(jobs) as pool:
        sections = pool.map(lambda one: section(*one, compiles, cache), todo)
        found = [line for each in sections for line in each]
    libtpu, cuda = map(compilers.version, compilers.WHEELS)
    made = (
        f"Made on {datetime.date.today()} with jax {jax.__version__}, "
        f"libtpu {libtpu}, jax-cuda13-plugin {cuda}, by\n"
        f"`python launch/plan.py --all --out=docs/{path.name}`."
    )
    body = "\n".join(["", made, *found, ""])
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    path.write_text(text[:start] + body + text[stop:], encoding="utf-8")


def section(
    recipe: str, pod: str, rows: int, compiles: int, cache: pathlib.Path
) -> list[str]:
    """One recipe on one pod, so many rows a chip: its command and its tables."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.global_batch_size = rows * chips.parse(pod).devices
    start = time.perf_counter()
    found = plan.make(config, pod, compiles, cache)
    print(f"{recipe} {pod} {time.perf_counter() - start:.0f} s", file=sys.stderr)
    command = f"python launch/plan.py --config=configs/{recipe}.py --topology={pod} \\"
    batch = f"    --global_batch={config.global_batch_size}"
    title = f"## {recipe} on {pod}"
    return ["", title, "", "```", command, batch, "```", "", *lines(*found)]


def lines(costs: predict.Costs, s: dict[str, Any]) -> list[str]:
    """A plan's tables as Markdown.

    Args:
      s: of `plan.summarize`.
    """
    return [
        *_costs(costs, s),
        "",
        *_collectives(s),
        "",
        *_kernels(s),
        *_curve(costs, s),
    ]


def _costs(costs: predict.Costs, s: dict[str, Any]) -> list[str]:
    chip, batch, flops = costs.topology.chip, s["global_batch"], s["flops_per_step"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in s["mesh"].items() if size > 1)
    each = batch * s["mesh"]["tensor"] / s["devices"]
    kind = "compiled for it"
    if s["compiled_for"] == "simulated":
        kind = f"by XLA's CPU compiler, which knows no {chip.name}: more than it takes"
    share = s["peak_bytes_per_chip"] / chip.hbm_bytes
    memory = f"{share:.0%} of {chip.hbm_bytes / chips.GIB:.1f} GiB"
    used = {name: _gib(s[f"{name}_bytes_per_chip"]) for name in
            ("peak", "argument", "temporary", "output", "code")}  # fmt: skip
    tried = [f"{one.rows} {'fits' if one.fits else 'does not'}" for one in s["tried"]]
    more = "" if s["largest_global_batch_is_exact"] else " or more (a lower bound)"
    parts = {part: _ms(each) for part, each in predict.roofline(costs).items()}
    traffic = f"{parts['memory']} memory, " if costs.hbm_traffic else ""
    rows = {
        "chips": f"{s['devices']} ({mesh or 'data 1'})",
        "global batch": f"{batch:,}, {each:g} a chip",
        f"bytes a chip, {kind}": f"{used['peak']}: {memory}",
        "- arguments": used["argument"],
        "- temporaries": used["temporary"],
        "- outputs beside the state, code": f"{used['output']}, {used['code']}",
        "FLOPs a step": f"{flops:.4g}, {flops / batch / 1e9:.4g} G an example; "
        f"backward {costs.backward:.0%}",
        "gathers and their gradients a chip": f"{costs.gathered:,} bytes",
        "largest batch that fits": f"{s['largest_global_batch']:,}{more}; tried a "
        f"chip: {', '.join(tried)}",
        "roofline": f"{_ms(s['roofline_seconds'])}, bound by {s['roofline_bound']} "
        f"({parts['compute']} compute, {traffic}{parts['links']} links)",
        "kernels": _ms(costs.kernels),
        "predicted step": _ms(s["predicted_step_seconds"]),
        "predicted examples/s": f"{s['predicted_images_per_s']:,.0f}",
        "predicted MFU": f"{s['predicted_mfu']:.1%}",
        "predicted efficiency": f"{s['predicted_efficiency']:.1%}",
        "- without overlap": f"{s['predicted_efficiency_no_overlap']:.1%}",
    }
    if not costs.gathered:
        del rows["gathers and their gradients a chip"]
    if not costs.kernels:
        del rows["kernels"]
    return ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]


def _collectives(s: dict[str, Any]) -> list[str]:
    where = "the compiled step"
    if s["collectives_counted_on"] == "simulated":
        where = f"the step compiled for {s['devices']} simulated CPU devices"
    if not s["collectives"]:
        return [f"No collective in {where}."]
    found = [f"| collective ({where}) | chips in each | count | bytes a chip | of |"]
    found.append("|---|---:|---:|---:|---|")
    for one in s["collectives"]:
        dtypes = sorted(one["dtypes"], key=one["dtypes"].get, reverse=True)
        found.append(
            f"| {one['kind']} | {one['group']} | {one['count']} | "
            f"{one['bytes_per_chip']:,} | {', '.join(dtypes)} |"
        )
    return found


def _kernels(s: dict[str, Any]) -> list[str]:
    """A GPU's kernels, and a blank line; nothing of other plans."""
    if s["kernels"] is None:
        return []
    found = ["| kernels | count | XLA's estimate | our estimate | without one |"]
    found.append("|---|---:|---:|---:|---:|")
    sums = ("count", "model_seconds", "own_seconds", "untimed")
    total = {name: sum(kind[name] for kind in s["kernels"]) for name in sums}
    for kind in [*s["kernels"], {"name": "all"} | total]:
        found.append(
            f"| {kind['name']} | {kind['count']:,} | {_ms(kind['model_seconds'])} | "
            f"{_ms(kind['own_seconds'])} | {kind['untimed']} |"
        )
    calls = (f"`{name}` {n:,}" for name, n in s["custom_calls"].items())
    found += ["", f"Custom calls: {', '.join(calls) or 'none'}."]
    if loops := s["unknown_loops"]:
        found.append(f"{loops} loops of unknown length are taken as run once.")
    return [*found, ""]


def _curve(costs: predict.Costs, s: dict[str, Any]) -> list[str]:
    if s["devices"] == 1:  # its step has no collectives to scale
        return ["One chip: plan for several to see how the step scales."]
    found = [
        "| topology | chips | global batch | compute | collectives | not hidden | "
        "efficiency | without overlap |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = s["global_batch"] / s["devices"]
    for point in predict.curve(costs):
        name, n = point.topology.name, point.topology.devices
        name = f"**{name}**" if name == s["topology"] else name
        found.append(
            f"| {name} | {n} | {rows * n:,.0f} | {_ms(point.compute)} | "
            f"{_ms(point.reduction + point.other)} | {_ms(point.step - point.compute)} "
            f"| {point.efficiency:.1%} | {point.no_overlap:.1%} |"
        )
    return found


def _gib(size: float) -> str:
    big = size >= chips.GIB / 100
    return f"{size / chips.GIB:.2f} GiB" if big else f"{size / 2**20:.2f} MiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
