"""Decoded examples in memory."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from pacx_jax.input.transforms import Transform


class Cache:
    """Keeps decoded examples in memory, so that later epochs need not decode again.

    One cache serves one source and one kind of transform, and may be given to several
    calls, as evaluation wants it. An example takes h * w bytes for a grey image (9 KB
    at 96 x 96, 125 KB at 320 x 390) and 240 KB for an ECG of 5000 samples; at
    `max_mib` the cache is full and the remaining examples are decoded every time.
    """

    def __init__(self, max_mib: float = 2048):
        self._room = max_mib * 2**20
        self._examples: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._owner: tuple[str, str] | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def bind(self, source: Any, transform: Transform) -> None:
        """Ties the cache to what it holds; ValueError if it holds something else."""
        owner = (getattr(source, "fingerprint", str(id(source))), transform.name)
        with self._lock:
            if self._owner not in (None, owner):
                raise ValueError(f"cache of {self._owner} used for {owner}")
            self._owner = owner

    def get(self, index: int) -> dict[str, Any] | None:
        return self._examples.get(index)

    def put(self, index: int, example: dict[str, Any]) -> None:
        size = sum(np.asarray(value).nbytes for value in example.values())
        with self._lock:
            if index not in self._examples and size <= self._room:
                self._room -= size
                self._examples[index] = example
