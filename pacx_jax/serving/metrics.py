"""Counts of a service, as Prometheus reads them at /metrics."""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The numbers of one service, in a registry of their own.

    Args:
      waiting, requests, ready: what gauges read when they are asked for.
    """

    def __init__(
        self,
        waiting: Callable[[], float],
        requests: Callable[[], float],
        ready: Callable[[], float],
    ):
        self._registry = registry = prometheus_client.CollectorRegistry()

        def make(kind, name, about, labels=(), **more):
            return kind(f"pacx_{name}", about, labels, registry=registry, **more)

        for name, about, function in (
            ("waiting_images", "Images that wait for a batch", waiting),
            ("requests_in_progress", "Requests read or computed now", requests),
            ("ready", "1 if requests are answered", ready),
        ):
            make(Gauge, name, about).set_function(function)
        self._answers = make(
            Counter, "requests", "Answered requests", ("route", "status")
        )
        self._seconds = make(
            Histogram, "request_seconds", "Of a request", ("route",), buckets=_SECONDS
        )
        self._batches = make(
            Histogram, "batch_images", "Of a batch", ("work",), buckets=_IMAGES
        )
        self._computing = make(
            Histogram, "batch_seconds", "Of a batch", ("work",), buckets=_SECONDS
        )
        self._failures = make(Counter, "failed_batches", "Failed batches", ("work",))

    def batch(self, work: str, images: int, seconds: float, failed: bool) -> None:
        """Counts a batch."""
        self._batches.labels(work).observe(images)
        self._computing.labels(work).observe(seconds)
        if failed:
            self._failures.labels(work).inc()

    def answer(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._answers.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)
