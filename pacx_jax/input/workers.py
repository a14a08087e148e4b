"""Grain's worker processes: how they start, and how they end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

import grain
import numpy as np
from absl import flags

from pacx_jax.types import PacxError

_AHEAD = 2  # batches that each worker makes ahead


def check(workers: int, cache: Any) -> None:
    """PacxError for what workers cannot do."""
    if workers < 0:
        raise PacxError(f"data.workers {workers}: give 0 (threads) or more")
    if workers and cache:
        raise PacxError(
            f"data.cache=True with data.workers={workers}: each process would fill a "
            "cache of its own; give data.cache=False or data.workers=0"
        )


def prefetched(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """The data set in order, its elements made by processes in turns.

    Worker w makes elements w, w + workers, ...: the same ones whatever their number.
    Arrays arrive in shared memory: see `copied`.
    """
    if not flags.FLAGS.is_parsed():
        # Grain reads flags of its own; a program without absl leaves their defaults.
        flags.FLAGS.mark_as_parsed()
    none_ahead = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=_AHEAD
    )
    return dataset.to_iter_dataset(none_ahead).mp_prefetch(options, _start)


def copied(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch in this process's memory; that of the worker is free again.

    A batch that lives on in shared memory, as JAX may keep it, would be reported leaked
    at the end.
    """
    return {key: np.array(value, subok=False) for key, value in batch.items()}


def death(error: Exception) -> PacxError | None:
    """What to say when Grain found a worker dead; None when that is not the error."""
    if "Worker process was terminated unexpectedly" not in str(error):
        return None
    code = str(error).partition("exit code ")[2].split(".")[0]
    return PacxError(
        f"a worker process of the input pipeline ended (exit code {code}): memory or "
        "/dev/shm may be full; lower data.workers or global_batch_size"
    )


def _start(index: int, count: int) -> None:
    """Runs first in each worker."""
    # A scheduler and Ctrl-C signal all processes alike; the parent, which may still
    # want a batch to end its step, tells the workers when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent tells nobody, and its workers would wait for ever.
    multiprocessing.parent_process().join()
    os._exit(1)
