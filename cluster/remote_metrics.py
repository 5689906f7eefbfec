"""The caller of Ray for metrics: a coordinator's numbers become Ray's, which its Prometheus endpoints show as `ray_<name>`.

Counters are told by how much they grew. Of durations the counts that Prometheus knows a histogram by, `_bucket`, `_sum` and `_count`, are
gauges of Ray's: its own histograms take nothing but single values, and would cost each step what they cost here once in a while.
"""

from ray.util.metrics import Counter, Gauge

from engine.observe.exposition import MEASURES, Measure, readings
from engine.observe.metrics import Snapshot

EVERY = 5.0
"""Seconds between two times that numbers are told to Ray, which collects them every ten."""

OWN = "coordinator"
"""The label that says which coordinator counted."""


class RayMetrics:
    """What one coordinator has told Ray."""

    def __init__(self, coordinator: str) -> None:
        """Tell nothing yet."""
        self._coordinator = coordinator
        self._metrics: dict[str, Counter | Gauge] = {}
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}
        for measure in MEASURES:
            name, text, labels = measure.name, measure.text, (*measure.labels, OWN)
            if measure.kind == "counter":
                self._metrics[name] = Counter(name.removesuffix("_total"), text, labels)
            elif measure.kind == "gauge":
                self._metrics[name] = Gauge(name, text, labels)
            else:
                self._metrics[f"{name}_bucket"] = Gauge(f"{name}_bucket", text, (*labels, "le"))
                self._metrics[f"{name}_sum"] = Gauge(f"{name}_sum", text, labels)
                self._metrics[f"{name}_count"] = Gauge(f"{name}_count", text, labels)

    def push(self, snapshot: Snapshot) -> None:
        """Tell what is not as it was told."""
        for measure, labels, value, counts in readings(snapshot):
            if measure.kind != "histogram":
                self._tell(measure.name, measure, labels, value)
                continue
            self._tell(f"{measure.name}_sum", measure, labels, value)
            self._tell(f"{measure.name}_count", measure, labels, counts[-1])
            for bound, count in zip((*map(str, measure.bounds), "+Inf"), counts, strict=True):
                self._tell(f"{measure.name}_bucket", measure, labels, count, le=bound)

    def _tell(self, name: str, measure: Measure, labels: tuple[str, ...], value: float, **more: str) -> None:
        place = name, (*labels, *more.values())
        before = self._told.get(place)
        if value == (before or 0) and (before is not None or measure.kind == "counter"):
            return
        self._told[place] = value
        tags = dict(zip(measure.labels, labels, strict=True)) | {OWN: self._coordinator} | more
        metric = self._metrics[name]
        if isinstance(metric, Counter):
            metric.inc(value - (before or 0), tags)
        else:
            metric.set(value, tags)
