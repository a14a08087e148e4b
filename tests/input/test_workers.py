"""Batches by worker processes: the same bytes, errors and ends as without them."""

import contextlib
import json
import multiprocessing
import os
import types

import numpy as np
import pytest

from pacx_jax.input import pipeline, quarantine, transforms
from pacx_jax.types import PacxError
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


def test_workers_give_the_same_bytes_share_the_quarantine_and_leave_nothing(tmp_path):
    """One start of two workers for what would each take seconds."""
    path = tmp_path / "quarantine.jsonl"
    source = Images(bad=(3, 11, 20))
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()

    def kept():
        return quarantine.Quarantine(path, 0.06)  # two may be

    with stream(
        source, 0, start_step=1, quarantine=quarantine.Quarantine(None, 1)
    ) as s:
        straight = [next(s) for _ in range(9)]
    got = []
    with stream(source, 2, start_step=1, quarantine=kept()) as batches:
        with pytest.raises(PacxError) as error:
            for _ in straight:
                got.append(next(batches))
    assert len(got) >= 2
    for one, other in zip(got, straight, strict=False):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].tobytes() == other[key].tobytes()
            assert type(one[key]) is np.ndarray and one[key].dtype == other[key].dtype
    assert "3 unreadable samples of 37" in str(error.value)
    assert "\n" not in str(error.value) and error.value.__cause__ is None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == [3, 11, 20]
    assert not multiprocessing.active_children()
    if before:
        left = {n for n in os.listdir("/dev/shm") if n.startswith("psm_")}
        assert not left - before


def test_a_cache_in_memory_is_refused_with_workers():
    with pytest.raises(PacxError, match="data.cache=True with data.workers=2"):
        stream(Images(), 2, cache=True)
    with pytest.raises(PacxError, match="data.workers -1"):
        stream(Images(), -1)
