"""`bench.py mae|distill|embed|ecg`: a step of ours, and of PyTorch's, in turns.

Each runs in a process of its own, which rests while another has its turn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import time

from launch.benchmarks import flops, measure
from launch.benchmarks.worker import Worker
from pacx_jax.errors import PacxError

PEERS = ("reference", "eager", "compile")
_SETTLE = 0.3  # seconds between turns, in which the threads of the last one rest
_TRIED_STEPS = 2
_FIGURES = ("step_s", "images_per_s", "images_per_cpu_s")


def run(options: argparse.Namespace) -> dict:
    """Measures in turns; returns what goes into the JSON, and `table`."""
    if options.input != "synthetic":
        return importlib.import_module("launch.benchmarks.loop").run(options)
    with contextlib.ExitStack() as stack:
        names = ("mode", "batch", "variant", "image_size", "mask_ratio", "devices")
        names += ("attention", "set", "other_form")
        asked = {name: getattr(options, name) for name in (*names, "dtype", "train")}
        share = {} if options.peer == "none" else _half_of_the_gpu()
        ours = Worker("launch.benchmarks.ours", json.dumps(asked), env=share)
        stack.callback(ours.close)
        about = ours.about
        on_cpu = about["backend"] == "cpu"
        workers = {"ours": ours} | start_peers(options, about, stack)
        steps = options.steps or (3 if on_cpu else 20)
        turns = measure.in_turns(
            {name: _turns(worker, steps) for name, worker in workers.items()},
            options.repeats,
        )
        if options.profile:
            ours.ask(f"profile {os.path.abspath(options.profile)}")
    peers = {k: worker.about for k, worker in workers.items() if k != "ours"}
    return _result(options, steps, about, peers, turns)


def _half_of_the_gpu() -> dict[str, str]:
    """JAX takes three quarters of a GPU at its start: the peer needs room beside it."""
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    return {} if name in os.environ else {name: "0.45"}


def _turns(worker: Worker, steps: int):
    def turn() -> measure.Turn:
        found = worker.ask(f"turn {steps}")
        time.sleep(_SETTLE)
        return found

    return turn


def start_peers(options, about: dict, stack) -> dict[str, Worker]:
    """The peers that take part, by kind: those asked for, or the faster on a CPU."""
    if options.peer == "none":
        return {}
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is missing: the peer is not measured")
        return {}
    if about["backend"] not in ("cpu", "gpu"):
        print(f"PyTorch does not run on a {about['backend']}: the peer is not measured")
        return {}
    on_gpu = about["backend"] == "gpu"
    kinds = [options.peer_mode]
    if options.peer_mode == "best":
        kinds = list(PEERS) if on_gpu else ["eager", "compile"]
    found = {}
    for kind in kinds:
        work = json.dumps(about["work"] | {k: about[k] for k in ("dtype", "backend")})
        try:
            worker = Worker("launch.benchmarks.torch_peer", work, kind)
        except PacxError as e:
            if kind == options.peer_mode:
                raise
            print(f"{e}: the {kind} peer is not measured", flush=True)
            continue
        stack.callback(worker.close)
        found[kind] = worker
    if on_gpu or len(found) < 2:
        return found
    tried = {}
    for kind, worker in found.items():
        turns = [_turns(worker, _TRIED_STEPS)()["step_s"] for _ in range(2)]
        tried[kind] = min(turns)
    best = min(tried, key=tried.get)
    for kind, worker in found.items():
        worker.about["tried_step_s"] = {k: round(v, 4) for k, v in tried.items()}
        if kind != best:
            worker.close()
    return {best: found[best]}


def _result(options, steps: int, about: dict, peers: dict, turns: dict) -> dict:
    work, n = about["work"], about["devices"]
    need = flops.of(work)
    figures = {
        name: {f: measure.spread([t[f] for t in taken]) for f in _FIGURES}
        | {"last": taken[-1]["last"]}
        | {f: measure.largest([t[f] for t in taken]) for f in (
            "peak_mib", "step_peak_mib", "device_peak_mib", "idle_processor_s")}
        for name, taken in turns.items()
    }  # fmt: skip
    ours = figures["ours"]
    rate = ours["images_per_s"]["median"] / n
    ratios = {
        kind: measure.ratio(turns["ours"], turns[kind], "images_per_s")
        for kind in peers
    }
    best = min(ratios, key=lambda k: ratios[k]["median"]) if ratios else None
    memory = {
        kind: {
            f: round(ours[f] / figures[kind][f], 3)
            for f in ("peak_mib", "step_peak_mib", "device_peak_mib")
            if ours[f] and figures[kind][f]
        }
        for kind in peers
    }
    result = {
        "mode": options.mode,
        "images_per_s": ours["images_per_s"]["median"],
        "images_per_s_per_device": round(rate, 4),
        "ratio": ratios[best]["median"] if best else None,
        **flops.utilisation(
            rate * need.step, about["device_kind"], about["dtype"], options.peak_flops
        ),
        "peak_mib": ours["device_peak_mib"] or ours["peak_mib"],
        "batch": work["batch"],
        "steps": steps,
        "repeats": options.repeats,
        "dtype": about["dtype"],
        "variant": options.variant,
        "train": work["train"],
        "dropout": work.get("lora", {}).get("dropout"),
        "mask_ratio": work.get("mask_ratio"),
        "attention": options.attention,
        "input": "synthetic",
        "backend": about["backend"],
        "device_kind": about["device_kind"],
        "devices": n,
        "cores": measure.cores(),
        "load": round(os.getloadavg()[0], 2),
        "step_s": ours["step_s"],
        "trace_s": about["trace_s"],
        "compile_s": about["compile_s"],
        "compile_cache": about["compile_cache"],
        "xla_mib": about["xla_mib"],
        "gflop_forward": round(need.forward / 1e9, 4),
        "gflop_step": round(need.step / 1e9, 4),
        "flops_per_s_per_device": round(rate * need.step),
        "trained_parameters": about["trained_parameters"],
        "peer": best,
        "ratios": ratios,
        "memory_ratios": memory,
        "variants": figures,
        "peers": peers,
        "set": options.set,
        "forced": about["forced"],
        "autotune_level": measure.autotune_level(),
        "versions": measure.versions(),
    }
    return {"table": list(_table(result, need)), **result}


def _table(r: dict, need: flops.Flops):
    what = "training" if r["train"] else "forward"
    yield (
        f"{r['mode']} {what}: {r['devices']} x {r['device_kind']}, {r['cores']} cores, "
        f"load {r['load']}, batch {r['batch']}, {r['dtype']}, variant {r['variant']}, "
        f"{r['repeats']} turns of {r['steps']} steps"
    )
    yield f"{need.formula}"
    yield (
        f"{r['gflop_forward']:,.3f} GFLOP forward and {r['gflop_step']:,.3f} a timed "
        f"step, an image; {r['flops_per_s_per_device'] / 1e9:,.0f} GFLOP/s a device, "
        f"{flops.as_text(r)}"
    )
    cached = ", cache on" if r["compile_cache"] else ""
    if r["backend"] == "gpu":
        yield measure.software(r)
    yield f"traced in {r['trace_s']} s, compiled in {r['compile_s']} s{cached}"
    yield (
        f"{'':10} {'step, ms':>26} {'images/s':>26} {'peak MiB':>9} {'in turns':>9} "
        f"{'device':>9}"
    )
    for name, f in r["variants"].items():
        memory = (f["peak_mib"], f["step_peak_mib"], f["device_peak_mib"])
        cells = " ".join(f"{'–' if m is None else f'{m:,.0f}':>9}" for m in memory)
        yield (
            f"{name:10} {measure.cell(f['step_s'], 1000, 1):>26} "
            f"{measure.cell(f['images_per_s'], digits=2):>26} {cells}"
        )
    for kind, ratio in r["ratios"].items():
        about = r["peers"][kind]
        memory = ", ".join(f"{k} {v}" for k, v in r["memory_ratios"][kind].items())
        tried = about.get("tried_step_s")
        tried = f"; tried: {tried}" if tried else ""
        yield (
            f"ours / torch {kind} ({about['dtype']}): images/s "
            f"{measure.cell(ratio, digits=3)}; memory {memory}{tried}"
        )
