"""Batches from a source: the same ones on any number of hosts, from any step.

Grain orders and prefetches; one map call makes the whole batch of a step, which costs
far less a sample than a chain of Grain operations. Position p of the endless shuffled
stream is row p % b of batch p // b. Which sample stands at p and how it is augmented
depend on (seed, p) alone, so batches depend on neither hosts nor threads nor on where
the run was resumed. Threads make batches, or processes of their own, which scale where
threads wait for each other's interpreter (docs/performance.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import mixture
from pacx_jax.input import quarantine as quarantine_lib
from pacx_jax.input import workers as workers_lib
from pacx_jax.input.cache import Cache
from pacx_jax.input.quarantine import Quarantine
from pacx_jax.input.transforms import Transform

Batch = dict[str, np.ndarray]
_ATTEMPTS = 100


class Batches:
    """An iterator of batches that tells errors as they are and can be closed."""

    def __init__(self, batches: grain.IterDataset | workers_lib.Workers):
        self._iterator = iter(batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._iterator)
        except StopIteration:
            raise
        except Exception as error:
            cause = _user_error(error)
            if cause is None:
                raise
            raise PacxError(str(cause)) from None

    def close(self) -> None:
        """Ends threads and processes; the iterator gives nothing afterwards."""
        close = getattr(self._iterator, "close", None)
        if close:
            close()


def train_batches(
    source: Any,
    transform: Transform,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    cache: bool | Cache = False,
    threads: int = 2,
    workers: int = 0,
    quarantine: Quarantine | None = None,
) -> Batches:
    """Endless training batches, shuffled anew in every epoch.

    The stream is continuous: a batch may span two epochs, and nothing is dropped.

    Args:
      source: see sources.py.
      transform: see transforms.py.
      global_batch_size: b, over all hosts.
      seed: of the order and of the augmentation.
      start_step: number of the first batch; what a straight run gives from there.
      rows: this process's row numbers in each global batch; None = all.
      cache: keep decoded examples, in a cache of its own or in the one given.
      threads: how many batches are made at a time; 0 = none ahead.
      workers: processes that make the batches, each one at a time, instead of threads;
        0 = none. They take seconds to start, and need source and transform pickled.
      quarantine: unreadable samples are listed there and replaced; None = the first
        one raises.

    Yields:
      Dicts of arrays with leading axis len(rows): what the transform makes, and
      `index` int64, the sample's number in the source.

    Raises:
      PacxError: an empty source, entries that the data lack, too many unreadable
        samples.
    """
    n = _checked_length(source, transform, global_batch_size)
    rows = _checked_rows(rows, global_batch_size)
    workers_lib.check(workers, cache)
    load = _loader(source, transform, cache)
    number = mixture.order(source, seed)

    def sample(position: int) -> Batch:
        index = first = number(position)
        for attempt in range(_ATTEMPTS):
            loaded = _try_load(load, source, index, quarantine)
            if loaded is not None:
                out = transform.augment(loaded, _generator(seed, position))
                return {**out, "index": np.int64(index)}
            index = quarantine_lib.replacement(seed, first, attempt, n)
        raise PacxError(
            f"{source.name(first)}: unreadable, and {_ATTEMPTS} replacements as well"
        )

    def batch(step: int) -> Batch:
        start = int(step) * global_batch_size
        return _stack((sample(start + int(row)) for row in rows), len(rows))

    if workers:
        return Batches(workers_lib.Workers(batch, int(start_step), workers))
    steps = grain.MapDataset.range(int(start_step), sys.maxsize // 2)
    return _prefetched(steps.map(batch), threads)


def eval_batches(
    source: Any,
    transform: Transform,
    *,
    global_batch_size: int,
    rows: np.ndarray | None = None,
    cache: bool | Cache = False,
    threads: int = 2,
    quarantine: Quarantine | None = None,
) -> Batches:
    """One pass in order; the last batch is padded to the full size.

    Arguments as in `train_batches`. Batches also have `mask` float32 (b,), 1 for real
    rows. Padding and unreadable samples, which are listed and left out, are zeros
    with mask 0 and index -1.
    """
    n = _checked_length(source, transform, global_batch_size)
    rows = _checked_rows(rows, global_batch_size)
    load = _loader(source, transform, cache)

    def sample(index: int) -> Batch | None:
        loaded = _try_load(load, source, index, quarantine) if index < n else None
        if loaded is None:
            return None
        # Evaluation transforms draw nothing; one that does is still repeatable.
        out = transform.augment(loaded, _generator(0, index))
        return {**out, "index": np.int64(index), "mask": np.float32(1)}

    def batch(step: int) -> Batch:
        start = int(step) * global_batch_size
        samples = [sample(start + int(row)) for row in rows]
        real = next((s for s in samples if s is not None), None)
        if real is None:  # a host whose rows are all padding still needs the shapes
            real = next((s for s in map(sample, range(n)) if s is not None), None)
        if real is None:
            raise PacxError(
                f"all {n} samples of the {source.split} split are unreadable"
            )
        padding = {key: np.zeros_like(value) for key, value in real.items()}
        padding["index"] = np.int64(-1)
        return _stack((padding if s is None else s for s in samples), len(rows))

    steps = grain.MapDataset.range(-(-n // global_batch_size))
    return _prefetched(steps.map(batch), threads)


def _generator(seed: int, position: int) -> np.random.Generator:
    """The generator of one position of the stream, for Philox is keyed by numbers."""
    key = np.array([seed % 2**64, position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _loader(
    source: Any, transform: Transform, cache: bool | Cache
) -> Callable[[int], dict[str, Any]]:
    """index -> decoded example, through the cache if there is one."""
    if cache is True:
        cache = Cache()
    kept = cache if isinstance(cache, Cache) else None
    if kept is not None:
        kept.bind(source, transform)

    def load(index: int) -> dict[str, Any]:
        loaded = kept.get(index) if kept is not None else None
        if loaded is None:
            loaded = transform.load(source[index], _LazyName(source, index))
            if kept is not None:
                kept.put(index, loaded)
        return loaded

    return load


class _LazyName:
    """A sample's name, looked up when a message is written, not for every sample."""

    def __init__(self, source: Any, index: int):
        self._source, self._index = source, index

    def __str__(self) -> str:
        return self._source.name(self._index)


def _try_load(
    load: Callable[[int], dict[str, Any]],
    source: Any,
    index: int,
    quarantine: Quarantine | None,
) -> dict[str, Any] | None:
    """The decoded example, or None when it is unreadable and has been listed."""
    if quarantine is None:
        return load(index)
    if quarantine.knows(source, index):
        return None
    try:
        return load(index)
    except PacxError as error:
        quarantine.record(source, index, source.name(index), str(error))
        return None


def _checked_length(source: Any, transform: Transform, global_batch_size: int) -> int:
    if len(source) == 0:
        raise PacxError("the data set is empty; check data.path and data.split_column")
    if global_batch_size < 1:
        raise PacxError(f"global_batch_size {global_batch_size}: give at least 1")
    entries = getattr(source, "entries", None)
    missing = [] if entries is None else sorted(set(transform.requires) - set(entries))
    if missing:
        sets = zip(
            getattr(source, "sets", ()), getattr(source, "set_entries", ()), strict=True
        )
        lacking = [name for name, has in sets if missing[0] not in has]
        where = f" in {', '.join(lacking)}" if lacking else ""
        raise PacxError(
            f"the data have no {', '.join(missing)}{where}, which the "
            f"{transform.name!r} transform needs (they have {', '.join(entries)}); "
            "check data.path, data.csv and data.label_columns"
        )
    return len(source)


def _checked_rows(rows: np.ndarray | None, global_batch_size: int) -> np.ndarray:
    if rows is None:
        return np.arange(global_batch_size)
    rows = np.asarray(rows, np.int64)
    if (
        rows.ndim != 1
        or not rows.size
        or not 0 <= rows.min() <= rows.max() < (global_batch_size)
    ):
        raise PacxError(f"rows {rows} outside a batch of {global_batch_size}")
    return rows


def _stack(samples: Iterable[Batch], n: int) -> Batch:
    """n samples as one batch; each is copied as it comes, while it is in cache."""
    batch: Batch = {}
    for row, sample in enumerate(samples):
        arrays = {key: np.asarray(value) for key, value in sample.items()}
        if not row:
            batch = {k: np.empty((n, *a.shape), a.dtype) for k, a in arrays.items()}
        for key, filled in batch.items():
            if arrays[key].shape != filled.shape[1:]:  # would be broadcast
                raise ValueError(
                    f"{key} of shape {arrays[key].shape} in a batch of "
                    f"{filled.shape[1:]}"
                )
            filled[row] = arrays[key]
    return batch


def _prefetched(dataset: grain.MapDataset, threads: int) -> Batches:
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2 * threads, 1) if threads else 0
    )
    return Batches(dataset.to_iter_dataset(options))


def _user_error(error: BaseException | None) -> PacxError | None:
    """The PacxError that a thread's error stands for, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, PacxError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
