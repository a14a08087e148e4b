"""A plan as tables for people, the same in a terminal and in docs/scaling.md."""

from __future__ import annotations

from launch.planning import compilers, predict
from launch.planning.plan import Plan

GIB = 2**30


def lines(plan: Plan) -> list[str]:
    """The plan's tables as Markdown."""
    return [
        *_costs(plan),
        "",
        *_collectives(plan),
        "",
        *_kernels(plan),
        *_curve(plan),
    ]


def _costs(plan: Plan) -> list[str]:
    r, costs, topology = plan.result, plan.costs, plan.topology
    chip, batch = topology.chip, plan.config.global_batch_size
    s, parts = plan.summary(), predict.roofline(plan.costs)
    largest, exact = plan.largest_batch()
    tried = ", ".join(
        f"{t.rows} {'fits' if t.fits else 'does not'}" for t in plan.result.tried
    )
    kind = "compiled for it"
    if compilers.simulates(topology):
        kind = f"by XLA's CPU compiler, which knows no {chip.name}: more than it takes"
    share = f"{r.peak / chip.hbm_bytes:.0%} of {chip.hbm_bytes / GIB:.1f} GiB"
    memory = f"{_ms(parts['memory'])} memory, " if costs.hbm_traffic else ""
    mesh = " x ".join(f"{axis} {size}" for axis, size in r.mesh.items() if size > 1)
    rows = [
        ("chips", f"{topology.devices} ({mesh or 'data 1'})"),
        ("global batch", f"{batch:,}, {batch / plan.shards:g} a chip"),
        (f"bytes a chip, {kind}", f"{_gib(r.peak)}: {share}"),
        ("- arguments", _gib(r.arguments)),
        ("- temporaries", _gib(r.temporaries)),
        ("- outputs beside the state, code", f"{_gib(r.outputs)}, {_gib(r.code)}"),
        (
            "FLOPs a step",
            f"{s['flops_per_step']:.4g}, {s['flops_per_step'] / batch / 1e9:.4g} G an "
            f"example; backward {costs.backward:.0%}",
        ),
        *(
            [("gathers and their gradients a chip", f"{costs.gathered:,} bytes")]
            if costs.gathered
            else []
        ),
        (
            "largest batch that fits",
            f"{largest:,}{'' if exact else ' or more (a lower bound)'}; tried a chip: "
            f"{tried}",
        ),
        (
            "roofline",
            f"{_ms(s['roofline_seconds'])}, bound by {s['roofline_bound']} "
            f"({_ms(parts['compute'])} compute, {memory}{_ms(parts['links'])} links)",
        ),
        *([("kernels", _ms(costs.kernels))] if costs.kernels else []),
        ("predicted step", _ms(s["predicted_step_seconds"])),
        ("predicted examples/s", f"{s['predicted_images_per_s']:,.0f}"),
        ("predicted MFU", f"{s['predicted_mfu']:.1%}"),
        ("predicted efficiency", f"{s['predicted_efficiency']:.1%}"),
        ("- without overlap", f"{s['predicted_efficiency_no_overlap']:.1%}"),
    ]
    return [
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]


def _collectives(plan: Plan) -> list[str]:
    where = "the compiled step"
    if plan.counted_on == "simulated":
        where = f"the step compiled for {plan.topology.devices} simulated CPU devices"
    if not plan.costs.collectives:
        return [f"No collective in {where}."]
    found = [f"| collective ({where}) | chips in each | count | bytes a chip | of |"]
    found.append("|---|---:|---:|---:|---|")
    for one in plan.costs.collectives:
        dtypes = sorted(one.dtypes, key=one.dtypes.__getitem__, reverse=True)
        found.append(
            f"| {one.kind} | {one.group} | {one.count} | {one.bytes_per_chip:,} | "
            f"{', '.join(dtypes)} |"
        )
    return found


def _kernels(plan: Plan) -> list[str]:
    """A GPU's kernels, and a blank line; nothing of other plans."""
    kernels = plan.result.kernels
    if kernels is None:
        return []
    found = ["| kernels | count | XLA's estimate | our estimate | without one |"]
    found.append("|---|---:|---:|---:|---:|")
    for kind in kernels.kinds:
        found.append(
            f"| {kind.name} | {kind.count:,} | {_ms(kind.model_seconds)} | "
            f"{_ms(kind.own_seconds)} | {kind.untimed} |"
        )
    own = sum(kernels.own_seconds().values())
    found.append(
        f"| all | {sum(kind.count for kind in kernels.kinds):,} | "
        f"{_ms(kernels.model_seconds)} | {_ms(own)} | "
        f"{sum(kind.untimed for kind in kernels.kinds)} |"
    )
    calls = (f"`{name}` {n:,}" for name, n in kernels.custom_calls.items())
    found += ["", f"Custom calls: {', '.join(calls) or 'none'}."]
    if kernels.unknown_loops:
        found.append(
            f"{kernels.unknown_loops} loops of unknown length are taken as run once."
        )
    return [*found, ""]


def _curve(plan: Plan) -> list[str]:
    found = [
        "| topology | chips | global batch | compute | collectives | not hidden | "
        "efficiency | without overlap |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = plan.config.global_batch_size / plan.topology.devices
    for point, efficiency, no_overlap in predict.curve(plan.costs):
        n, here = point.topology.devices, point.topology.name == plan.topology.name
        name = f"**{point.topology.name}**" if here else point.topology.name
        found.append(
            f"| {name} | {n} | {rows * n:,.0f} | {_ms(point.compute)} | "
            f"{_ms(point.reduction + point.other)} | {_ms(point.step - point.compute)} "
            f"| {efficiency:.1%} | {no_overlap:.1%} |"
        )
    return found


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
