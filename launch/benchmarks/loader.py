"""Turns of an input pipeline, ours or PyTorch's, with the workers that suit it best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from launch.benchmarks import measure

TRIED_STEPS = 8  # at most, of the turns that choose


class Loader:
    """Turns of one pipeline, whose workers live on between them.

    Attributes:
      about: setting -> images a second, of the few turns that chose it.
    """

    def __init__(
        self,
        make: Callable[[int, int], tuple],
        settings: Sequence[tuple[int, int]],
        batch: int,
        steps: int,
        use: Callable[[Any], None] = lambda batch: None,
    ):
        """Tries the settings, and goes on with the fastest.

        Args:
          make: (threads, workers) -> batches without end, how many of them may be
            ready before a turn, and what ends the workers.
          batch: images in one.
          steps: of a turn.
          use: of each batch.
        """
        self._make, self._batch, self._use, self.about = make, batch, use, {}
        rates = {}
        for setting in settings:
            self._open(*setting)
            turns = [self.turn(min(steps, TRIED_STEPS)) for _ in range(2)]
            rates[setting] = max(turn["images_per_s"] for turn in turns)
            self.close()
        for (threads, workers), rate in rates.items():
            name = f"{workers} processes" if workers else f"{threads} threads"
            self.about[name] = round(rate, 1)
        self._open(*max(rates, key=rates.get))

    def _open(self, threads: int, workers: int) -> None:
        self._batches, self._ready, self._end = self._make(threads, workers)
        self._take(self._ready)  # starts the workers

    def _take(self, steps: int) -> None:
        for _ in range(steps):
            self._use(next(self._batches))

    def turn(self, steps: int) -> measure.Turn:
        """Images a second, and a second of processor time, from an empty queue on."""
        self._take(self._ready)
        return measure.timed(self._take, steps, self._batch)

    def close(self) -> None:
        """Ends the workers."""
        self._end()
        time.sleep(measure.SETTLE)
