"""The only training loop. Objectives and configs differ between stages; it does not.

Its order is the resume contract: mesh, pipeline, abstract state, shardings, then init
or restore, then for each step: read a batch, update, save, log, evaluate. Saved at step
N means N updates done and N batches read; batch N is the next one. What follows the
save of step N, its row and its evaluation, is done again after a restore.
"""

from __future__ import annotations

import faulthandler
import json
import pathlib
import sys
import time

import jax
import tqdm

from pacx_jax import (
    checkpoint,
    goodput,
    identity,
    metrics,
    numbers,
    overlap,
    processes,
    stage,
)
from pacx_jax.preemption import Preempted, Preemption
from pacx_jax.types import PacxError


def train(
    config, workdir: str, preemption: Preemption, *, force: bool = False
) -> dict[str, float]:
    """Trains `config.objective` in `workdir` to `config.total_steps`, resuming there.

    Args:
      preemption: says when the run shall save and end.
      force: goes on with other data than those that the run began with.

    Returns:
      The last evaluation's metrics ("val/...").

    Raises:
      Preempted: the state is saved, the run is not finished.
    """
    started = time.perf_counter()
    ledger = goodput.Ledger(workdir, active=processes.is_first())
    run = stage.set_up(config, workdir)
    overlap.account(run.config, workdir, run.data.train_source)
    write_label_names(run, workdir)
    saver = checkpoint.Checkpointer(
        workdir, keep=config.keep, best=config.best, mode=config.best_mode
    )
    start = saver.latest_step() or 0
    identity.check_data(workdir, run.fingerprints(), started=start > 0, force=force)
    ledger.enter("restore")
    state, now = saver.restore(run.abstract) if start else (run.init(), {})
    ledger.enter("setup")
    watch = numbers.Numbers(config, workdir, start, run.data.sample_names)
    writer = metrics.writer(workdir, start)
    writer.write_timing(start, {"setup_seconds": time.perf_counter() - started})

    def due(n: int, every: int) -> bool:
        return n % every == 0 or n == config.total_steps

    def conclude(state, n: int, now: dict[str, float]) -> dict[str, float]:
        """Evaluates and writes down step n, whose own metrics are `now`."""
        val = {}
        if due(n, config.eval_every):
            ledger.enter("evaluation")
            val = run.evaluate(state, between=preemption.check)
        if val or due(n, config.log_every):
            writer.write(n, now | val)
        if val:
            writer.flush()
            ledger.enter("checkpoint")
            saver.save_if_best(state, n, val)
        return val

    val, values, n = {}, None, start
    stream = run.data.train(start)
    bar = progress_bar(config, start)
    clock = time.perf_counter()
    try:
        if start:
            val = conclude(state, start, now)
        for n in range(start + 1, config.total_steps + 1):
            watchdog(config.watchdog_seconds if n > start + 1 else 0)
            ledger.enter_reading(n, values)
            batch = next(stream)
            ledger.enter_step(n)
            preemption.unsaved = True
            state, values = run.train_step(state, batch, run.step_key)
            watch.add(n, values)
            log, check, save = (
                due(n, every)
                for every in (config.log_every, config.eval_every, config.save_every)
            )
            if log or check or save:
                now = fetch(values)
                watch.check()
            if log:
                bar.set_postfix(loss=f"{now['loss']:.4f}", refresh=False)
                writer.write_timing(n, {"seconds": time.perf_counter() - clock})
                clock = time.perf_counter()
                ledger.write(n)
            if save:
                writer.flush()
                ledger.enter("checkpoint")
                saver.save(state, n, now)
            if preemption.reached(n):
                raise Preempted
            if log or check:
                val = conclude(state, n, now)
            bar.update()
    except Preempted:
        if not saver.holds(n):
            now = fetch(values)
            watch.check()
            saver.save(state, n, now)
        check_saved(saver, workdir, n)
        raise Preempted(f"preempted: saved at step {n}") from None
    finally:  # a save under way when an error comes is a save still
        watchdog(0)
        bar.close()
        stream.close()
        ledger.enter("checkpoint")
        saver.close()
        preemption.unsaved = False
        writer.close()
        ledger.close(n)
    check_saved(saver, workdir, n)
    return val


def check_saved(saver: checkpoint.Checkpointer, workdir: str, n: int) -> None:
    """PacxError if the last state of this session found no room."""
    if not saver.holds(n):
        raise PacxError(
            f"{workdir}: step {n} could not be saved; free some room, and the same "
            "command goes on from the checkpoint before it"
        )


def fetch(values: dict[str, jax.Array]) -> dict[str, float]:
    """A step's metrics, once it is done."""
    return {k: float(v) for k, v in jax.device_get(values).items()}


def watchdog(seconds: float) -> None:
    """Every thread's stack goes to standard error unless called again within `seconds`.

    0 ends it. The dump is made by a thread in C, which no held interpreter stops.
    """
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds, file=sys.__stderr__)
    else:
        faulthandler.cancel_dump_traceback_later()


def write_label_names(run: stage.Stage, workdir: str) -> None:
    """Writes down which output of a classifier's head is which label."""
    if "labels" in run.objective.modalities and processes.is_first():
        names = json.dumps(list(run.config.data.label_columns))
        (pathlib.Path(workdir) / "labels.json").write_text(names + "\n", "utf-8")


def progress_bar(config, start: int) -> tqdm.tqdm:
    """A bar on standard error, silent where there is no terminal."""
    return tqdm.tqdm(
        total=config.total_steps,
        initial=start,
        desc=config.name,
        unit="step",
        disable=not sys.stderr.isatty() or jax.process_index() > 0,
    )
