"""What coordinators tell of their numbers, put together: figures with those of runs and steps, the whole cluster's, Prometheus' text."""

from collections.abc import Mapping
from typing import Any, Protocol

from engine.observe.exposition import prometheus_text
from engine.observe.metrics import Metrics, seed_figures

_GAUGES = {"queued": "queued_runs", "waiting": "waiting_steps", "workers": "active_workers", "processing": "processing_steps"}
"""Figure of a coordinator to the gauge that it is."""


class Answering(Protocol):
    """A cluster, of which `cluster.client.Cluster` is one."""

    async def statistics(self) -> dict[str, dict[str, Any]]: ...


def with_metrics(figures: dict[str, Any], metrics: Metrics) -> dict[str, Any]:
    """Return a coordinator's figures with a snapshot of its metrics, gauges among them."""
    gauges = {name: figures[figure] for figure, name in _GAUGES.items() if figure in figures}
    return {**figures, "metrics": metrics.snapshot(gauges)}


def totals(figures: Mapping[str, Mapping[str, Any] | None]) -> dict[str, float | None]:
    """Return the figures of all coordinators together, by the names of `engine.observe.metrics.seed_figures`."""
    return seed_figures([told["metrics"] for told in figures.values() if told and "metrics" in told])


def text_of(figures: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return what coordinators told, by their names, in Prometheus' text format; those that told nothing are left out."""
    return prometheus_text({name: told["metrics"] for name, told in figures.items() if told and "metrics" in told})


async def metrics_text(cluster: Answering) -> str:
    """Return the metrics of a cluster in Prometheus' text format, each with the coordinator that counted it. Raises: ClusterUnavailable."""
    return text_of(await cluster.statistics())
