"""`bench.py mae|distill|embed|ecg`: a step of ours, and of PyTorch's, in turns.

Each runs in a process of its own, which rests while another has its turn.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import os

from launch.benchmarks import flops, measure
from launch.benchmarks.worker import Worker
from pacx_jax.errors import PacxError

MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
PEERS = {"cpu": ("eager", "compile"), "gpu": ("reference", "eager", "compile")}


def run(options: argparse.Namespace) -> dict:
    """Measures in turns; returns what goes into the JSON, and `table`."""
    if getattr(options, "input", "synthetic") != "synthetic":
        return importlib.import_module("launch.benchmarks.loop").run(options)
    with contextlib.ExitStack() as stack:
        asked = json.dumps(vars(options))
        share = {}
        if options.peer != "none":  # JAX takes three quarters of a GPU at its start
            share = {MEMORY: os.environ.get(MEMORY, "0.45")}
        ours = Worker("launch.benchmarks.ours", asked, env=share)
        stack.callback(ours.close)
        workers = {"ours": ours} | start_peers(options, ours.about, stack)
        steps = options.steps or (3 if ours.about["backend"] == "cpu" else 20)
        taken = {k: functools.partial(w.turn, steps) for k, w in workers.items()}
        turns = measure.in_turns(taken, options.repeats)
        if options.profile:
            ours.profile(options.profile)
    about = {k: w.about for k, w in workers.items()}
    work, ours = ours.about.pop("work"), about.pop("ours")
    forms = {True: "hand-written", False: "JAX's"}
    notes = [
        f"traced in {ours['trace_s']} s, compiled in {ours['compile_s']} s",
        *(f"{name} {forms[form]}" for name, form in ours["forced"].items()),
    ]
    more = {"input": "synthetic", "train": work["train"], "steps": steps}
    more |= {"attention": getattr(options, "attention", "auto")}
    return flops.result(options, turns, ours, about, notes, **more)


def start_peers(options, about: dict, stack) -> dict[str, Worker]:
    """The peers that take part, by kind."""
    if options.peer == "none":
        return {}
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is missing: the peer is not measured")
        return {}
    if about["backend"] not in PEERS:
        print(f"PyTorch does not run on a {about['backend']}: the peer is not measured")
        return {}
    kinds, found = PEERS[about["backend"]], {}
    if options.peer_mode != "best":
        kinds = (options.peer_mode,)
    work = json.dumps(about["work"] | {"backend": about["backend"]})
    for kind in kinds:
        try:
            found[kind] = Worker("launch.benchmarks.torch_peer", work, kind)
        except PacxError as e:
            if kind == options.peer_mode:
                raise
            print(f"{e}: the {kind} peer is not measured", flush=True)
            continue
        stack.callback(found[kind].close)
    return found
