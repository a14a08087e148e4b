"""Batches by worker processes: the same bytes, errors and ends as without them."""

import contextlib
import json
import multiprocessing
import os
import pickle
import types

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import pipeline, transforms
from pacx_jax.input.quarantine import Quarantine
from tests.input.test_pipeline import Images


def stream(source, workers, **options):
    data = types.SimpleNamespace(image_size=8, hflip=0.5)
    return contextlib.closing(
        pipeline.train_batches(
            source,
            transforms.make("mae", data, train=True),
            global_batch_size=8,
            seed=5,
            workers=workers,
            **options,
        )
    )


def test_workers_give_the_same_bytes_and_errors_and_leave_nothing(tmp_path):
    """One start of two workers for all of it, which takes seconds."""

    def straight(source, most):
        with stream(source, 0, start_step=1, quarantine=Quarantine(None, most)) as s:
            return [next(s) for _ in range(9)]

    order = np.concatenate([batch["index"] for batch in straight(Images(), 0)])
    first_at = {int(i): int(np.argmax(order == i)) for i in order}
    last = max(first_at, key=first_at.get)  # the sample that comes last
    bad = tuple(sorted({3, 11, last}))
    expected = straight(Images(bad=bad), 1)[: first_at[last] // 8]
    before = shared_memory()
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, 0.06)  # two may be
    got = []
    with stream(Images(bad=bad), 2, start_step=1, quarantine=quarantine) as batches:
        with pytest.raises(PacxError) as error:
            got.extend(batches)
    assert len(got) == len(expected) > 3
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].tobytes() == other[key].tobytes()
            assert type(one[key]) is np.ndarray and one[key].dtype == other[key].dtype
    assert "3 unreadable samples of 37" in str(error.value)
    assert "\n" not in str(error.value) and error.value.__cause__ is None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(bad)
    assert not multiprocessing.active_children() and not shared_memory() - before


def shared_memory() -> set[str]:
    found = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else ()
    return {n for n in found if n.startswith(("psm_", "pym-"))}  # Python's names


def test_a_copy_of_a_quarantine_counts_what_the_others_listed(tmp_path):
    one = Quarantine(tmp_path / "quarantine.jsonl", 0.06)
    other = pickle.loads(pickle.dumps(one))
    one.record(Images(), 3, "im3", "r")
    one.record(Images(), 11, "im11", "r")
    other.record(Images(), 11, "im11", "r")
    with pytest.raises(PacxError, match="3 unreadable samples of 37"):
        other.record(Images(), 20, "im20", "r")


def test_a_cache_in_memory_is_refused_with_workers():
    with pytest.raises(PacxError, match="data.cache=True with data.workers=2"):
        stream(Images(), 2, cache=True)
    with pytest.raises(PacxError, match="data.workers -1"):
        stream(Images(), -1)
