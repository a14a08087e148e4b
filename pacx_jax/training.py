"""Trains a run: from its configuration to its exported encoder."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib

import ml_collections

from pacx_jax import files
from pacx_jax.distributed import preemption, processes
from pacx_jax.errors import PacxError
from pacx_jax.run import fingerprints
from pacx_jax.stores.urls import absolute, is_remote


def run(
    config: ml_collections.ConfigDict, workdir: str, *, force=False, mirrored=None
) -> None:
    """Trains `config` in `workdir` and exports its encoder.

    Args:
      force: goes on with another config or other data than the run began with.
      mirrored: the mirror.Mirror whose copy `workdir` is.

    Raises:
      PacxError: whatever is wrong with the config, the data or the workdir.
      Preempted: asked to end by SIGTERM; the state is saved.
    """
    check_values(config)
    check_processes(config, mirrored.url if mirrored else workdir)
    if is_remote(workdir):
        from pacx_jax.run import remote_run

        return remote_run.train(run, config, workdir, force)
    path = pathlib.Path(workdir)
    _refuse_other_folder(config, path)
    # A run that stopped at its first error has claimed nothing: it may be mended.
    if (path / "metrics.jsonl").exists() or (path / "checkpoints").exists():
        fingerprints.check_config(config, workdir, force=force)
    done = fingerprints.steps_done(workdir)
    if done == config.total_steps:
        print(f"{config.name}: {workdir} is finished, nothing to do")
        return
    path.mkdir(parents=True, exist_ok=True)
    if not mirrored:
        processes.check_shared(workdir)
    with contextlib.ExitStack() as stack:
        if processes.is_first():  # the processes of one run share its workdir
            refusal = f"{workdir}: another run is writing here: take another --workdir"
            stack.enter_context(files.locked(path / "lock", refusal))
            if done:
                fingerprints.reopen(workdir, done)
        listening = preemption.Preemption(
            config.grace_seconds, functools.partial(goes_on, workdir)
        )
        _train(config, workdir, stack.enter_context(listening), force, mirrored)


def _refuse_other_folder(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """PacxError for a file, or a folder whose own files a run would write over."""
    if path.exists() and not path.is_dir():
        raise PacxError(f"{path} is a file: take another --workdir")
    for file, what in (
        ("model.safetensors", "an encoder"),
        ("pacx.json", "a prepared data set"),
    ):
        if (path / file).exists():
            raise PacxError(f"{path} holds {what} ({file}): take another --workdir")
    from pacx_jax.input import mixture

    for data in mixture.parts(config.data) or [config.data]:
        if os.path.realpath(path) == os.path.realpath(data.path or os.devnull):
            raise PacxError(f"{path} is data.path too: take another --workdir")


def goes_on(workdir: str) -> str:
    """From where the same command goes on, in words."""
    if is_remote(workdir):
        return f"the same command goes on from the last checkpoint in {workdir}"
    folder = pathlib.Path(workdir) / "checkpoints"
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]
    return (
        f"the same command goes on from step {max(steps)}"
        if steps
        else "nothing was saved yet: the same command begins at step 0"
    )


def _train(config, workdir: str, asked, force: bool, mirrored=None) -> None:
    """Trains, exports, marks the run as finished and says so."""
    from pacx_jax import loop
    from pacx_jax.run import finished, summary

    path = pathlib.Path(workdir)
    metrics = loop.train(config, workdir, asked, force=force, mirrored=mirrored)
    if mirrored:
        mirrored.complete()
    classifies = config.objective == "classify"
    if classifies:  # what its model folder holds beside the encoder
        from pacx_jax.evaluate import held_out

        held_out.calibrate(config, workdir)
    target = finished.from_workdir(config, workdir, heads=classifies)
    metrics = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    done = {"step": config.total_steps, "metrics": metrics}
    if processes.is_first():
        files.write_json(path / fingerprints.DONE, done)
        summary.say_end(config, workdir, metrics, target)


def check_processes(config: ml_collections.ConfigDict, workdir: str) -> None:
    """PacxError on every process of the run unless all have the same to do."""
    fields = fingerprints.flat(config.to_dict(), "config.")
    processes.check_agreement(fields | {"--workdir": absolute(workdir)})
    processes.check_devices(config.num_devices)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers that no run can have, before anything is read."""
    flat = fingerprints.flat(config.to_dict())
    least = dict.fromkeys(("global_batch_size", "total_steps", "keep"), 1)
    least |= dict.fromkeys(("log_every", "eval_every", "save_every", "lora.rank"), 1)
    least |= dict.fromkeys(("model.patch_size", "data.image_size"), 1)
    least |= dict.fromkeys(("mesh.tensor", "accumulate", "encoder_chunks"), 1)
    least |= dict.fromkeys(("num_devices", "mesh.fsdp", "loss.chunk"), 0)
    least |= dict.fromkeys(("data.threads", "data.prefetch_to_device"), 0)
    least |= dict.fromkeys(("optim.peak_lr", "profile_steps"), 0)
    least |= dict.fromkeys(("optim.warmup_steps", "optim.weight_decay"), 0)
    least |= dict.fromkeys(("max_skipped", "watchdog_seconds", "grace_seconds"), 0)
    for name, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise PacxError(f"config.{name} is {value}: give a finite number")
    for name, low in least.items():
        if flat.get(name, low) < low:
            raise PacxError(f"config.{name} is {flat[name]}: give at least {low}")
    if flat.get("loss.temperature", 1) <= 0:
        raise PacxError(
            f"config.loss.temperature is {flat['loss.temperature']}: give more than 0"
        )
    from pacx_jax.models import attention

    choices = {
        "dtype": ("float32", "bfloat16", "float16"),
        "attention": attention.WAYS,
        "export": ("latest", "best"),
        "best_mode": ("min", "max"),
        "nonfinite": ("stop", "skip"),
    }
    for name, known in choices.items():
        if flat.get(name, known[0]) not in known:
            raise PacxError(
                f"config.{name} is {flat[name]!r}: choose {' or '.join(known)}"
            )
    if config.export == "best" and not config.best:
        raise PacxError("config.export=best needs config.best, such as 'val/loss'")
