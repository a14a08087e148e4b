"""Trains one stage.

  python -m pacx_jax.main --config=configs/mae_vitb16.py --workdir=runs/mae
  python -m pacx_jax.main --config=configs/distill_vitb16.py:runlocal \\
      --workdir=runs/distill --config.loss.clip_weight=0.0

A run that was stopped goes on where its last checkpoint stands; a finished one is left
as it is. With --evaluate=SPLIT a finished run is measured on held-out patients.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pacx_jax import cli, files, target
from pacx_jax.distributed import preemption, processes
from pacx_jax.errors import PacxError
from pacx_jax.run import host_memory, recipe_flags
from pacx_jax.stores import staging
from pacx_jax.stores.urls import is_remote
from pacx_jax.training import check_values, goes_on, measure, run

__all__ = ["check_values", "main", "measure", "run"]

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_EVALUATE = flags.DEFINE_string(
    "evaluate", "", "Measure the finished run on this split, such as test."
)
_PREDICTIONS = flags.DEFINE_bool(
    "predictions", False, "With --evaluate: write WORKDIR/predictions_SPLIT.csv too."
)
_GROUPS = flags.DEFINE_string(
    "groups", "", "With --evaluate: a CSV with sex and age, by path or patient."
)
_GROUP_COLUMNS = flags.DEFINE_list(
    "group_columns", [], "Columns of --groups; by default those of sex and age."
)
_THRESHOLDS = flags.DEFINE_list(
    "thresholds",
    ["max_f1", "sensitivity=0.9", "specificity=0.9"],
    "With --evaluate: rules by which thresholds are chosen on validation.",
)
_FORCE = flags.DEFINE_bool(
    "force", False, "Go on with another config or other data than the run's."
)
_QUIET = flags.DEFINE_bool("quiet", False, "Print nothing but errors.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "", ["", "auto"], "auto: join the processes of the job's scheduler."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0, where a run has several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "How many processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "This one's number, from 0.")


def from_flags(argv: list[str]) -> None:
    """Does what the parsed flags ask for; argv holds what was no flag."""
    if len(argv) > 1:
        raise PacxError(f"unknown argument {argv[1]!r}: flags start with --")
    if _CONFIG.value is None or not _WORKDIR.value:
        raise PacxError("give --config=RECIPE and --workdir=DIR")
    host_memory.keep_freed()
    start_processes()
    target.check_backend()
    if _EVALUATE.value:
        measure(
            _CONFIG.value,
            _WORKDIR.value,
            _EVALUATE.value,
            predictions=_PREDICTIONS.value,
            groups=_GROUPS.value,
            group_columns=tuple(_GROUP_COLUMNS.value),
            thresholds=tuple(_THRESHOLDS.value),
        )
    else:
        with contextlib.ExitStack() as stack:
            if _QUIET.value:
                silent = contextlib.redirect_stdout(io.StringIO())
                stack.enter_context(silent)
            quiet = _QUIET.value
            run(_CONFIG.value, _WORKDIR.value, force=_FORCE.value, quiet=quiet)


def start_processes() -> None:
    """Joins the run's other processes, if the flags name any."""
    if _DISTRIBUTED.value:
        processes.start_detected()
    elif _COORDINATOR.value or _NUM_PROCESSES.value != 1 or _PROCESS_ID.value:
        processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)


def main() -> None:
    """The command line: an error of the user's is one line and exit code 2.

    A run that SIGTERM or Ctrl-C stopped, and that saved, ends with 75; 130 after a
    Ctrl-C without. JAX aborts its processes (134) when one of
    them was lost. After both the same command goes on.
    """
    threading.excepthook = _thread_failed
    logging.set_verbosity(logging.WARNING)  # Orbax narrates every save
    cli.print_any_letter()
    sys.stdout.reconfigure(line_buffering=True)  # whatever ends it, what it said is out
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(__doc__ + flags.FLAGS.module_help(sys.modules[__name__]))
        return
    _ending_well(lambda: app.run(from_flags, flags_parser=recipe_flags.parse))


def _ending_well(command: Callable[[], None]) -> None:
    """Makes each way in which a command fails a line and an exit code."""
    try:
        command()
    except SystemExit:  # so absl's app returns
        processes.leave()
        raise
    except preemption.Preempted as e:
        print(f"stopped: {e}; the same command goes on from there", flush=True)
        processes.leave()
        sys.exit(preemption.EXIT_CODE)
    except KeyboardInterrupt:
        _end(f"stopped: {goes_on(_WORKDIR.value or '')}", cli.INTERRUPTED)
    except Exception as e:
        if files.is_full(e):
            _stop_on_full_disk()
        if told := target.out_of_memory(e):
            _end(f"error: {told}", cli.FAILED)
        line = f"error: {cli.describe(e)}"
        if isinstance(e, PacxError):
            _end(line, cli.FAILED)
        several = jax.distributed.is_initialized()
        if several:
            processes.wait_for_abort(e)
        if isinstance(e, OSError):  # such as a missing permission
            _end(line, cli.FAILED)
        if several:
            traceback.print_exc()
            _end("stopped: by the error above", 1)
        raise


def _end(text: str, code: int) -> None:
    """Says why, and ends; where JAX would wait for other processes, without that."""
    print(text, file=sys.stderr, flush=True)
    if not jax.distributed.is_initialized():
        sys.exit(code)
    if processes.is_first():  # JAX's service is here: without it, others are aborted
        time.sleep(1)  # before they can say what stops all of them alike
    os._exit(code)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread without room stops the run: without it, others would wait for it."""
    if files.is_full(failure.exc_value):
        _stop_on_full_disk()
    threading.__excepthook__(failure)


def _stop_on_full_disk() -> None:
    """Ends at once: closing files that cannot be written would raise again."""
    full = staging.scratch() if is_remote(_WORKDIR.value) else _WORKDIR.value
    processes.end_at_once(f"error: {files.full_disk(full)}", cli.FAILED)


if __name__ == "__main__":
    main()
