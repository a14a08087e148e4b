"""What a run says of itself when it starts and when it ends: plain lines, once."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from pacx_jax import files, optim
from pacx_jax.distributed import processes
from pacx_jax.input import sources
from pacx_jax.run import finished, goodput, nonfinite, setup

SHOWN_LABELS = 14
EMBED = "pacx embed --encoder={} --%s=DIR --out=embeddings.npz"
NEXT = {  # kind of the exported encoder -> what to do with it
    "vit": EMBED % "images",
    "unified": EMBED % "images",
    "densenet": EMBED % "images",
    "ecg_net1d": EMBED % "ecgs",
    "vq": "load_image_tokenizer({!r})",
    "labs_dae": "distil it by --config.modalities.labs.init={}",
}


def say_start(run: setup.Run, workdir: str, step: int) -> None:
    """Says on what, how, how long and where a run trains, from `step` on."""
    if not processes.is_first():
        return
    config, train = run.config, run.data.sources[run.config.data.train_split]
    said = {
        "data": _data(run),
        "model": _model(run),
        "devices": _devices(run),
        "schedule": _schedule(config, len(train)),
        "writes": f"{workdir} from step {step} on; saves every {config.save_every} "
        f"steps, keeps {config.keep}; evaluates every {config.eval_every}, logs every "
        f"{config.log_every}",
    }
    lines = [f"  {name}: {text}" for name, text in said.items()]
    b, n = config.global_batch_size, len(train)
    if b > n:
        lines.append(
            f"warning: config.global_batch_size {b:,} is above the {n:,} training "
            f"examples: each batch reads and holds each {b / n:.3g} times, and takes "
            f"as much longer; give at most {n:,}"
        )
    print("\n".join([f"{config.name}:", *lines]), flush=True)


def _data(run: setup.Run) -> str:
    config = run.config
    units = {"image": "images", "images": "studies"}
    units = [units[e] for e in run.objective.entries if e in units]
    unit = units[0] if units else "examples"
    splits = []
    for split, source in run.data.sources.items():
        ids = source.patients()
        known = {i for i in ids or () if i}
        whose = f"{len(known):,} patients" if known else "unknown patients"
        left_out = run.data.left_out.get(split, "")
        more = f" ({left_out})" if left_out else ""
        splits.append(f"{split} {len(source):,} {unit} of {whose}{more}")
    parts = [f"{config.data.path}: {', '.join(splits)}"]
    if config.data.limit:
        parts.append(f"at most {config.data.limit:,} of a split (data.limit)")
    if config.data.label_fraction != 1:
        parts.append(f"{config.data.label_fraction:g} of the training labels")
    if count := config.data.get("label_count", 0):
        taken = len(run.data.sources[config.data.train_split])
        few = "" if taken >= count else f", all that are labelled: {taken:,}"
        parts.append(f"labels of {count:,} training {unit} (data.label_count{few})")
    if config.data.get("subset_list", ""):
        taken = len(run.data.sources[config.data.train_split])
        parts.append(f"labels of the {taken:,} training {unit} in data.subset_list")
    if "labels" in run.objective.entries:
        parts.append(f"labels {_labels(run)}")
    return "; ".join(parts)


def _labels(run: setup.Run) -> str:
    """The labels, with their positives where those need not be read for this."""
    names = list(run.config.data.label_columns)
    split = run.config.data.train_split
    source = origin = run.data.sources[split]
    while hasattr(origin, "origin"):
        origin = origin.origin(0)[0]
    texts = names
    if isinstance(origin, sources.FolderSource):
        counts = (source.labels() == 1).sum(0)[run.data.columns[split]]
        texts = [f"{name} {n}" for name, n in zip(names, counts, strict=True)]
    return _some(texts) + "".join(
        f"; {name} lacks {_some(lacks)}: masked there"
        for name, has in _set_labels(run.data.sources[split])
        if (lacks := [label for label in names if label not in has])
    )


def _set_labels(source) -> list[tuple[str, tuple[str, ...]]]:
    """The labels of each set of a mixture; [] of another source."""
    sets = getattr(source, "sets", ())
    return list(zip(sets, source.set_labels, strict=True)) if sets else []


def _some(texts: list[str]) -> str:
    more = len(texts) - SHOWN_LABELS
    return ", ".join(texts[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")


def _model(run: setup.Run) -> str:
    trained, frozen = (
        sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree)) / 1e6
        for tree in (run.abstract.params, run.abstract.frozen)
    )
    starts = [f"{part} from {at}" for part, at in run.objective.pretrained.items()]
    return ", ".join(
        [
            f"{run.config.objective}, {trained:.3g} million parameters trained",
            f"{frozen:.3g} million frozen",
            *(starts or ["from random weights"]),
        ]
    )


def _devices(run: setup.Run) -> str:
    first = run.mesh.devices.flat[0]
    axes = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    kind = first.device_kind
    name = kind if kind.lower() == first.platform else f"{kind} ({first.platform})"
    return f"{run.mesh.size} {name}{several}, mesh {axes}, {run.config.dtype}"


def _schedule(config, n: int) -> str:
    settings, batch = optim.settings(config), config.global_batch_size
    return (
        f"{config.total_steps:,} steps of {batch:,}, "
        f"{config.total_steps * batch / n:.3g} epochs; learning rate up to "
        f"{settings.peak_lr:.3g} after {settings.warmup_steps:,} steps"
    )


def say_end(config, workdir: str, metrics: dict[str, Any], export) -> None:
    """Says what came out of a finished run, what it left out, and what comes next."""
    path = pathlib.Path(workdir)
    time = goodput.read(workdir)
    hours, minutes = divmod(sum(time["seconds"].values()) / 60, 60)
    steps = time["seconds"]["productive"] + time["seconds"]["data_stall"]
    rate = time["reached_step"] * config.global_batch_size / max(steps, 1e-9)
    left_out = {
        "quarantined files": path / "quarantine.jsonl",
        "skipped steps": path / nonfinite.FILE,
    }
    counts = {
        name: len(file.read_bytes().splitlines()) if file.exists() else 0
        for name, file in left_out.items()
    }
    told = [
        f"{counts[name]} {name}" + (f" ({file})" if counts[name] else "")
        for name, file in left_out.items()
    ]
    print(
        f"{config.name}: step {config.total_steps}, {finished.shown(config, metrics)}\n"
        f"  time: {f'{hours:.0f} h ' if hours else ''}{minutes:.1f} min in "
        f"{time['sessions']} session(s), {rate:,.0f} examples/s between evaluations\n"
        f"  left out: {', '.join(told)}\n"
        f"  encoder: {export}; next: {_next(config, workdir, export)}",
        flush=True,
    )


def _next(config, workdir: str, export) -> str:
    if config.objective == "classify":
        return (
            f"pacx predict --model={workdir} --images=DIR --out=predictions.csv; "
            f"pacx evaluate --workdir={workdir} --split=test"
        )
    if config.objective == "segment":
        return f"the same command with --evaluate=test measures {workdir}"
    kind = files.read_json(pathlib.Path(export) / "config.json")["kind"]
    return NEXT.get(kind, "load_encoder({!r})").format(str(workdir))
