"""A run from its configuration to its exported encoder, and measured afterwards."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np

from pacx_jax import files, target
from pacx_jax.distributed import preemption, processes
from pacx_jax.errors import PacxError, one_line
from pacx_jax.run import fingerprints, host_memory
from pacx_jax.stores.urls import absolute, is_remote

if TYPE_CHECKING:
    from jaxtyping import UInt8


def train(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    images: Sequence[UInt8[np.ndarray, "_h _w *_c"]] | None = None,
    labels: Any = None,
    patients: Sequence[Any] | None = None,
    splits: Sequence[str] | None = None,
    quiet: bool = False,
) -> dict[str, float | None]:
    """Trains a stage, from Python; a run that was stopped goes on.

    Args:
      config: of `pacx_jax.recipes`, such as recipes.mae_vitb16("runlocal").
      workdir: folder of the run, which may lie in gs:// or s3://. Its encoder opens by
        `load_encoder(workdir)`, a classifier by `Classifier.load(workdir)`.
      images: n uint8 arrays (h, w) or (h, w, 3) to train on, instead of config.data's.
      labels, patients, splits: of these images, see `input.in_memory.Arrays`.
      quiet: prints nothing.

    Returns:
      The last evaluation's metrics, such as "val/loss"; None for one that has no value.

    Raises:
      PacxError: whatever is wrong with the config, the data or the workdir.
      Preempted: SIGTERM or Ctrl-C; the state is saved.

    Example:
      config = recipes.mae_vitb16("runlocal", **{"total_steps": 100})
      train(config, "runs/mae", images=arrays)  # a list of uint8 (h, w)
    """
    if not isinstance(config, ml_collections.ConfigDict):
        raise PacxError(
            f"config is a {type(config).__name__}: give one of pacx_jax.recipes"
        )
    target.check_backend()
    host_memory.keep_freed()
    config, workdir = ml_collections.ConfigDict(config.to_dict()), os.fspath(workdir)
    with contextlib.ExitStack() as stack:
        if images is not None:
            from pacx_jax.input import in_memory

            arrays = in_memory.Arrays(images, labels, patients, splits)
            config.data.source, config.data.simulated = "arrays", False
            config.data.path = stack.enter_context(in_memory.held(arrays))
        elif (labels, patients, splits) != (None, None, None):
            raise PacxError("labels, patients and splits go with images: give these")
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        run(config, workdir, quiet=quiet)
    if is_remote(workdir):
        from pacx_jax.run import remote_run

        workdir = remote_run.finished(workdir, ())
    return files.read_json(pathlib.Path(workdir) / fingerprints.DONE)["metrics"]


def run(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    force=False,
    mirrored=None,
    quiet=False,
) -> None:
    """Trains `config` in `workdir` and exports its encoder.

    Args:
      force: goes on with another config or other data than the run began with.
      mirrored: the mirror.Mirror whose copy `workdir` is.
      quiet: shows no progress.

    Raises:
      PacxError: whatever is wrong with the config, the data or the workdir.
      Preempted: asked to end by SIGTERM; the state is saved.
    """
    check_values(config)
    check_processes(config, mirrored.url if mirrored else workdir)
    if is_remote(workdir):
        from pacx_jax.run import remote_run

        each = functools.partial(run, quiet=quiet)
        return remote_run.train(each, config, workdir, force)
    from pacx_jax.encoders import model_folder

    config = model_folder.with_image_size(config, workdir)
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
        stack.enter_context(_noting_failure(config, path / fingerprints.FAILED))
        asked = stack.enter_context(listening)
        _train(config, workdir, asked, force, mirrored, quiet)


@contextlib.contextmanager
def _noting_failure(config, file: pathlib.Path) -> Iterator[None]:
    """Writes the error that ends the block to `file`, for `pacx runs`."""
    if not processes.is_first():
        yield
        return
    file.unlink(missing_ok=True)
    try:
        yield
    except preemption.Preempted:
        raise
    except Exception as e:
        with contextlib.suppress(OSError):  # such as a full disk: `e` is what counts
            about = {k: config[k] for k in ("name", "objective", "total_steps")}
            files.write_json(file, {"error": one_line(e)} | about)
        raise


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


def _train(config, workdir: str, asked, force: bool, mirrored, quiet: bool) -> None:
    """Trains, exports, marks the run as finished and says so."""
    from pacx_jax import loop
    from pacx_jax.run import finished, summary

    path = pathlib.Path(workdir)
    metrics = loop.train(
        config, workdir, asked, force=force, mirrored=mirrored, quiet=quiet
    )
    if mirrored:
        mirrored.complete()
    classifies = config.objective == "classify"
    if classifies:  # what its model folder holds beside the encoder
        from pacx_jax.evaluate import held_out

        held_out.calibrate(config, workdir)
    export = finished.from_workdir(config, workdir, heads=classifies)
    metrics = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    done = {"step": config.total_steps, "metrics": metrics}
    if processes.is_first():
        files.write_json(path / fingerprints.DONE, done)
        summary.say_end(config, workdir, metrics, export)


def measure(
    config: ml_collections.ConfigDict, workdir: str, split: str, **asked
) -> None:
    """Prints the finished run's metrics on a split.

    Args:
      asked: fields of held_out.Asked.
    """
    from pacx_jax.encoders import model_folder
    from pacx_jax.evaluate import held_out

    check_processes(config, workdir)
    told = {f"--{name}": value for name, value in asked.items()}
    processes.check_agreement({"--evaluate": split} | told)
    if is_remote(workdir):
        from pacx_jax.run import remote_run

        run = functools.partial(measure, **asked)
        return remote_run.measure(run, config, workdir, split)
    config = model_folder.with_image_size(config, workdir)
    record = pathlib.Path(workdir) / fingerprints.CONFIG
    if record.exists():  # other fields would be other patients, or another model
        fingerprints.check_config(config, workdir)
    result = held_out.evaluate(config, workdir, split, held_out.Asked(**asked))
    if processes.is_first():
        print(*held_out.lines(result), sep="\n")


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
    least["model.patch_size"] = 1
    least["data.image_size"] = int(config.objective not in ("classify", "segment"))
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
