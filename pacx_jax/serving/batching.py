"""Dynamic batching: images of concurrent requests are computed together.

One thread computes. While it does, images wait in a queue; then the oldest one and
those that go with it are the next batch.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pacx_jax.errors import one_line

LOG = logging.getLogger("pacx_jax.serving")
Work = Callable[[Sequence[Any]], Sequence[np.ndarray]]


class InferenceFailed(Exception):
    """A batch could not be computed; the next one may be."""


@dataclasses.dataclass(frozen=True)
class _Job:
    kind: str
    row: Any
    result: asyncio.Future


class Batcher:
    """Computes rows in batches; used from one event loop.

    Args:
      work: kind -> function of a list of rows to as many results. Batches are of one
        kind.
      batch_size: most rows of a batch.
      wait: seconds for which a batch that is not full waits for more rows.
      seen: called after each batch with its kind, number of rows, seconds, and whether
        it failed.
    """

    def __init__(
        self,
        work: Mapping[str, Work],
        batch_size: int,
        wait: float,
        seen: Callable[[str, int, float, bool], None] = lambda *_: None,
    ):
        self._work, self._batch_size, self._wait, self._seen = (
            work,
            batch_size,
            wait,
            seen,
        )
        self._jobs: collections.deque[_Job] = collections.deque()
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "inference")
        self._task: asyncio.Task | None = None
        self._busy_since: float | None = None
        self._seconds = 0.0  # of one row, a moving mean

    def start(self) -> None:
        """Begins to compute what is submitted."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Ends the loop; a batch that is being computed goes on in its thread."""
        if self._task:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def alone(self, function: Callable[[], Any]) -> Any:
        """Calls a function in the thread that computes, such as a compilation."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def submit(self, kind: str, row: Any) -> np.ndarray:
        """The result of one row.

        Raises:
          InferenceFailed: its batch could not be computed, or is not finite.
        """
        job = _Job(kind, row, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.result

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._jobs)

    @property
    def seconds_behind(self) -> float:
        """How long the queue will take, by the time of the latest batches."""
        return self.waiting * self._seconds

    def stuck(self, limit: float) -> bool:
        """Whether nothing is computed any more, or one batch for `limit` seconds."""
        if self._task is not None and self._task.done():
            return True
        return self.busy and time.monotonic() - self._busy_since > limit

    @property
    def busy(self) -> bool:
        """Whether a batch is being computed."""
        return self._busy_since is not None

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._jobs) < self._batch_size:
                await asyncio.sleep(self._wait)
            if jobs := self._next():
                await self._compute(jobs)

    def _next(self) -> list[_Job]:
        """The oldest job and those of its kind; nobody waits for cancelled ones."""
        waiting = [job for job in self._jobs if not job.result.done()]
        same = [job for job in waiting if job.kind == waiting[0].kind]
        jobs = same[: self._batch_size]
        taken = set(map(id, jobs))
        self._jobs = collections.deque(j for j in waiting if id(j) not in taken)
        if not self._jobs:
            self._arrived.clear()
        return jobs

    async def _compute(self, jobs: list[_Job]) -> None:
        kind, rows = jobs[0].kind, [job.row for job in jobs]
        self._busy_since = start = time.monotonic()
        found, failure = [], None
        try:
            found = await self.alone(lambda: self._work[kind](rows))
        except Exception as error:  # of JAX or the device: these requests fail alone
            LOG.error("%s of %d images failed: %s", kind, len(rows), one_line(error))
            failure = InferenceFailed("inference failed; the service's log says why")
        seconds, self._busy_since = time.monotonic() - start, None
        if failure is None:
            new = seconds / len(rows)
            self._seconds = (
                new if not self._seconds else 0.8 * self._seconds + 0.2 * new
            )
        self._seen(kind, len(rows), seconds, failure is not None)
        for i, job in enumerate(jobs):
            if job.result.done():  # its request timed out
                continue
            if failure is not None:
                job.result.set_exception(failure)
            elif not np.isfinite(found[i]).all():
                LOG.error("%s gave values that are not finite", kind)
                job.result.set_exception(
                    InferenceFailed("the model's output is not finite for this image")
                )
            else:
                job.result.set_result(found[i])
