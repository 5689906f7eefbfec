"""Figures in Prometheus' text: requests as they are answered here, runs, queues and what coordinators count as they are asked for.

Each replica counts its own requests, under its own name: a scrape of a service with several replicas meets one of them.
"""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from cluster.metrics import text_of

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
QUEUE = ("queued", "running", "admitted", "refused", "ended", "recovered")
"""What coordinators tell of their queues."""
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The figures of one replica."""

    def __init__(self, replica: str = "") -> None:
        """Begin to count."""
        self.registry = CollectorRegistry()
        self._replica = replica
        self._requests = Counter(
            "gecko_http_requests_total", "Answered requests.", ("replica", "method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "gecko_http_request_duration_seconds", "Seconds from a request to the end of its answer.", ("replica", "method", "route"),
            registry=self.registry, buckets=_BUCKETS,
        )  # fmt: skip
        self._runs = Gauge("gecko_runs", "Runs by status, as the records have them.", ("status",), registry=self.registry)
        self._queues = {
            name: Gauge(f"gecko_queue_{name}", f"Runs {name}, by coordinator.", ("coordinator",), registry=self.registry) for name in QUEUE
        }
        self._up = Gauge("gecko_coordinator_up", "Whether a coordinator answers.", ("coordinator",), registry=self.registry)

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; status 0: its caller left before the answer."""
        method = method if method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH") else "other"
        self._requests.labels(self._replica, method, route, str(status)).inc()
        self._seconds.labels(self._replica, method, route).observe(seconds)

    def text(self, runs: Mapping[str, int], coordinators: Mapping[str, Mapping[str, Any] | None]) -> bytes:
        """Return all figures, with what was asked for just now."""
        self._runs.clear()
        for status, number in runs.items():
            self._runs.labels(status).set(number)
        self._up.clear()
        for gauge in self._queues.values():
            gauge.clear()
        for name, figures in coordinators.items():
            self._up.labels(name).set(figures is not None)
            for what, gauge in self._queues.items():
                if figures is not None and what in figures:
                    gauge.labels(name).set(figures[what])
        return generate_latest(self.registry) + text_of(coordinators).encode()
