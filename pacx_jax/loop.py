"""The only training loop. Objectives and configs differ between stages; it does not.

Its order is the resume contract: mesh, pipeline, abstract state, shardings, then init
or restore, then for each step: read a batch, update, save, log, evaluate. Saved at step
N means N updates done and N batches read; batch N is the next one. Batches that were
put on the devices ahead do not count: a restored run reads them again. What follows the
save of step N, its row and its evaluation, is done again after a restore.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import pathlib
import sys
import time

import jax

from pacx_jax.distributed import processes
from pacx_jax.distributed.preemption import Preempted, Preemption
from pacx_jax.errors import PacxError
from pacx_jax.run import (
    batches,
    checkpoint,
    fingerprints,
    finished,
    goodput,
    metrics,
    nonfinite,
    overlap,
    profiling,
    progress,
    setup,
    summary,
)

FIRST_STEP = 4  # times as long as others it may take: it is compiled


@dataclasses.dataclass(frozen=True)
class Session:
    """What one session of a run works with.

    Attributes:
      run: the stage that is trained.
      saver: of its states.
      writer: of its metrics.
      watch: over values that are not finite.
      ledger: of its time.
      preemption: says when to save and end.
      shown: what the terminal shows of it.
    """

    run: setup.Run
    saver: checkpoint.Checkpointer
    writer: metrics.MetricsWriter | metrics.NoWriter
    watch: nonfinite.Numbers
    ledger: goodput.Ledger
    preemption: Preemption
    shown: progress.Progress


def train(
    config,
    workdir: str,
    preemption: Preemption,
    *,
    force=False,
    mirrored=None,
    quiet=False,
) -> dict[str, float]:
    """Trains `config.objective` in `workdir` to `config.total_steps`, resuming there.

    Args:
      preemption: says when to save and end.
      force: goes on with other data than those that the run began with.
      mirrored: the mirror.Mirror whose copy `workdir` is.
      quiet: shows no progress.

    Returns:
      The last evaluation's metrics ("val/...").

    Raises:
      Preempted: the state is saved, the run is not finished.
    """
    started = time.perf_counter()
    ledger = goodput.Ledger(workdir, active=processes.is_first())
    opened = batches.open_sources(config)
    overlap.account(config, workdir, opened[config.data.train_split])
    run = setup.prepare(config, workdir, opened)
    write_label_names(run, workdir)
    saver = checkpoint.Checkpointer(
        workdir,
        keep=config.keep,
        best=config.best,
        mode=config.best_mode,
        mirror=mirrored,
    )
    start = saver.latest_step() or 0
    if start > config.total_steps:
        raise PacxError(fingerprints.too_few(workdir, start, config.total_steps))
    prints = run.fingerprints()
    fingerprints.check_data(workdir, prints, started=start > 0, force=force)
    ledger.enter("restore")
    state, now = saver.restore(run.abstract) if start else (run.init(), {})
    fingerprints.record(config, prints, workdir)
    ledger.enter("setup")
    watch = nonfinite.Numbers(config, workdir, start, run.data.sample_names)
    writer = metrics.writer(workdir, start)
    writer.write_timing(start, {"setup_seconds": time.perf_counter() - started})
    summary.say_start(run, workdir, start)
    shown = progress.Progress(config, start, quiet)
    session = Session(run, saver, writer, watch, ledger, preemption, shown)
    try:
        # What the loop moves between host and devices, it says where it does.
        with jax.transfer_guard("disallow"):
            final = take_steps(session, state, start, now)
    finally:  # a save under way when an error comes is a save still
        ledger.enter("checkpoint")
        saver.close()
        writer.close()
        ledger.close()
    check_saved(saver, workdir, config.total_steps)
    preemption.unsaved = False
    return final


def take_steps(session: Session, state, start: int, now: dict) -> dict[str, float]:
    """Updates the state from step `start`, whose metrics are `now`, to the last one."""
    run, ledger, config = session.run, session.ledger, session.run.config
    val, values, n = {}, None, start
    trace = profiling.StepTrace(
        config.profile_steps if processes.is_first() else 0,
        pathlib.Path(run.data.workdir) / "profile",
        start,
    )
    stream = run.data.train(start)
    clock, before_log = time.perf_counter(), ledger.spent(*goodput.KINDS)
    try:
        if start:
            val = conclude(session, state, start, now)
        for n in range(start + 1, config.total_steps + 1):
            watchdog(config.watchdog_seconds * (1 if n > start + 1 else FIRST_STEP))
            log = due(config, n, config.log_every)
            before = run.monitor.keep(state.params) if log else None
            with trace.step(n):
                batch = ledger.next_batch(stream, n, values)
                state, values = run.train_step(state, batch, run.step_key)
            if trace.ends_with(n):
                ledger.enter("metrics")
                jax.block_until_ready(values)
                trace.close()
            session.preemption.unsaved = True
            session.watch.add(n, values)
            check = due(config, n, config.eval_every)
            save = due(config, n, config.save_every)
            if log:
                values = values | run.monitor.values(before, state)
            if log or check or save:
                now = session.watch.fetch(values)
            if log:
                ledger.enter("metrics")
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                spent = ledger.spent(*goodput.KINDS)
                lost = {k: spent[k] for k in ("data_stall", "checkpoint", "metrics")}
                session.writer.write_timing(n, {"seconds": seconds} | lost)
                taken = {k: v - before_log[k] for k, v in spent.items()}
                before_log = spent
                session.shown.logged(n, now["loss"], taken)
                ledger.write(n)
            if save:
                session.writer.flush()
                ledger.enter("checkpoint")
                session.saver.save(state, n, now)
            if session.preemption.reached(n):
                raise Preempted
            val = conclude(session, state, n, now)
            session.shown.stepped()
    except Preempted:
        if not session.saver.holds(n):
            session.saver.save(state, n, session.watch.fetch(values))
        check_saved(session.saver, run.data.workdir, n)
        raise Preempted(f"preempted: saved at step {n}") from None
    finally:
        watchdog(0)
        trace.close()
        session.shown.close()
        stream.close()
    return val


def conclude(session: Session, state, n: int, now: dict) -> dict[str, float]:
    """Evaluates and writes down step n, if it is time; returns the evaluation."""
    config, val = session.run.config, {}
    if due(config, n, config.eval_every):
        session.ledger.enter("evaluation")

        def between_batches() -> None:
            watchdog(config.watchdog_seconds)
            session.preemption.check()

        val = session.run.evaluate(state, between=between_batches)
        count, every = -(-n // config.eval_every), config.get("images_every", 0)
        if every and count % every == 0:
            session.writer.write_images(n, session.run.images(state))
    if val or due(config, n, config.log_every):
        session.ledger.enter("metrics")
        session.writer.write(n, now | session.run.data.shares(n - 1) | val)
    if val:
        session.shown.evaluated(n, finished.shown(config, val))
        session.writer.flush()
        session.ledger.enter("checkpoint")
        session.saver.save_if_best(state, n, val)
    return val


def due(config, n: int, every: int) -> bool:
    """Whether what is done every so many steps, and after the last, is done after n."""
    return n % every == 0 or n == config.total_steps


def check_saved(saver: checkpoint.Checkpointer, workdir: str, n: int) -> None:
    """PacxError if the last state of this session found no room."""
    if not saver.holds(n):
        raise PacxError(
            f"{workdir}: step {n} could not be saved; free some room, and the same "
            "command goes on from the checkpoint before it"
        )


def watchdog(seconds: float) -> None:
    """Every thread's stack goes to standard error unless called again within `seconds`.

    Called before every step and every batch of an evaluation. 0 ends it. The dump is
    made by a thread in C, which no held interpreter stops.
    """
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds, file=sys.__stderr__)
    else:
        faulthandler.cancel_dump_traceback_later()


def write_label_names(run: setup.Run, workdir: str) -> None:
    """Writes down which output of a classifier's head is which label."""
    if "labels" in run.objective.entries and processes.is_first():
        names = json.dumps(list(run.config.data.label_columns))
        (pathlib.Path(workdir) / "labels.json").write_text(names + "\n", "utf-8")
