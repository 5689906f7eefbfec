"""The numbers of `engine.observe.metrics` under the names by which Prometheus finds them, and its text.

`NAMED` says which name stands for what an engine of this kind is asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.observe.metrics import RUN_SECONDS, STEP_SECONDS, Snapshot

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_RUN = ("workflow_id", "distributed", "operation", "result")


class Measure(NamedTuple):
    """A name, and what it stands for."""

    name: str
    kind: str
    """counter, gauge, or histogram."""
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram."""


class Reading(NamedTuple):
    """One value of a measure."""

    measure: Measure
    labels: tuple[str, ...]
    """The values of its labels."""
    value: float
    """Of a histogram, the sum of seconds."""
    counts: tuple[int, ...] = ()
    """Of a histogram: how many lie up to each of its bounds; the last: all."""


STARTED = Measure("workflow_execution_started_total", "counter", "Runs that were started.", _RUN)
COMPLETED = Measure("workflow_execution_completed_total", "counter", "Runs that ended, by how.", _RUN)
RESUMED = Measure("workflow_resume_total", "counter", "Resumes of runs, after a pause, a failure or the loss of their owner.", _RUN)
PAUSED = Measure("workflow_pause_total", "counter", "Pauses of runs, those included that need something to go on.", _RUN)
EXECUTIONS = Measure("workflow_executions_total", "counter", "Runs that ended, by status.", ("workflow_id", "status"))
EXECUTION_SECONDS = Measure(
    "workflow_execution_duration_seconds", "histogram", "Seconds from a run's start, or its newest resume, to its end.",
    ("workflow_id", "status"), RUN_SECONDS,
)  # fmt: skip
NODE_SECONDS = Measure(
    "node_execution_duration_seconds", "histogram", "Seconds that steps took; by node where that was asked for.",
    ("workflow_id", "node", "result"), STEP_SECONDS,
)  # fmt: skip
ERRORS = Measure(
    "workflow_errors_total", "counter", "Failed attempts of steps, failed conditions and failed runs, by class of error.",
    ("workflow_id", "kind", "error"),
)  # fmt: skip
ENQUEUED = Measure("workflow_steps_enqueued_total", "counter", "Steps that were to be performed; each attempt counts.", ("workflow_id",))
SUCCEEDED = Measure("workflow_steps_completed_total", "counter", "Steps that succeeded.", ("workflow_id",))
FAILED = Measure("workflow_steps_failed_total", "counter", "Attempts of steps that failed.", ("workflow_id",))
DEPTH = Measure("workflow_queue_depth", "gauge", "What waits: runs to be let in, steps for a worker.", ("kind",))
WORKERS = Measure("workflow_active_workers", "gauge", "Worker processes that have been given steps to perform.")
PROCESSING = Measure("workflow_steps_processing", "gauge", "Steps that workers perform at once.")

MEASURES = (
    STARTED, COMPLETED, RESUMED, PAUSED, EXECUTIONS, EXECUTION_SECONDS, NODE_SECONDS, ERRORS, ENQUEUED, SUCCEEDED, FAILED, DEPTH, WORKERS,
    PROCESSING,
)  # fmt: skip

#: What is asked for to the measure that answers.
NAMED = {
    "ExecutionsStarted": STARTED,
    "ExecutionsCompleted": COMPLETED,
    "ExecutionsFailed": COMPLETED,
    "TasksEnqueued": ENQUEUED,
    "TasksCompleted": SUCCEEDED,
    "TasksFailed": FAILED,
    "QueueDepth": DEPTH,
    "ActiveWorkers": WORKERS,
    "TasksProcessing": PROCESSING,
    "AvgTaskDuration": NODE_SECONDS,
    "AvgExecutionTime": EXECUTION_SECONDS,
    "workflow_execution_started": STARTED,
    "workflow_execution_completed": COMPLETED,
    "workflow_resume": RESUMED,
    "workflow_pause": PAUSED,
    "workflow_executions_total": EXECUTIONS,
    "workflow_execution_duration_seconds": EXECUTION_SECONDS,
    "node_execution_duration_seconds": NODE_SECONDS,
    "workflow_errors_total": ERRORS,
}

_GAUGES = {
    "queued_runs": (DEPTH, ("runs",)),
    "waiting_steps": (DEPTH, ("steps",)),
    "active_workers": (WORKERS, ()),
    "processing_steps": (PROCESSING, ()),
}


def readings(snapshot: Snapshot) -> Iterator[Reading]:
    """Yield every value of a snapshot."""
    distributed = "true" if snapshot["distributed"] else "false"
    for name, workflow in snapshot["workflows"].items():
        yield from _of_runs(name, distributed, workflow)
        yield from _of_steps(name, workflow)
    for name, value in snapshot["gauges"].items():
        if name in _GAUGES:
            measure, labels = _GAUGES[name]
            yield Reading(measure, labels, value)


def _of_runs(name: str, distributed: str, workflow: Mapping[str, Any]) -> Iterator[Reading]:
    for measure, operation, result in ((STARTED, "start", "started"), (RESUMED, "resume", "resumed"), (PAUSED, "pause", "paused")):
        yield Reading(measure, (name, distributed, operation, result), workflow[result])
    by_status: dict[str, int] = {}
    for operation, status, count in workflow["ended"]:
        by_status[status] = by_status.get(status, 0) + count
        yield Reading(COMPLETED, (name, distributed, operation, status), count)
    for status, count in by_status.items():
        yield Reading(EXECUTIONS, (name, status), count)
    for status, durations in workflow["executions"].items():
        yield _of_durations(EXECUTION_SECONDS, (name, status), durations)


def _of_steps(name: str, workflow: Mapping[str, Any]) -> Iterator[Reading]:
    succeeded = 0
    for node, found in workflow["nodes"].items():
        succeeded += sum(found[0][0])
        for result, durations in zip(("success", "failed"), found, strict=True):
            if any(durations[0]):
                yield _of_durations(NODE_SECONDS, (name, node, result), durations)
    yield Reading(ENQUEUED, (name,), workflow["enqueued"])
    yield Reading(SUCCEEDED, (name,), succeeded)
    yield Reading(FAILED, (name,), workflow["failed"])
    for kind, error, count in workflow["errors"]:
        yield Reading(ERRORS, (name, kind, error), count)


def _of_durations(measure: Measure, labels: tuple[str, ...], durations: list[Any]) -> Reading:
    counts, seconds = durations
    upto: list[int] = []
    for count in counts:
        upto.append(count + (upto[-1] if upto else 0))
    return Reading(measure, labels, seconds, tuple(upto))


class Exposition:
    """A collector of prometheus_client's over snapshots, by the name of whose they are: the label `coordinator`, none where it is empty."""

    def __init__(self, snapshots: Mapping[str, Snapshot]) -> None:
        """Show these."""
        self._snapshots = snapshots

    def collect(self) -> "Iterable[Metric]":
        """Return the families of metrics that there are values for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        families: dict[str, Any] = {}
        for coordinator, snapshot in self._snapshots.items():
            own = ("coordinator",) if coordinator else ()
            for measure, labels, value, counts in readings(snapshot):
                family = families.get(measure.name)
                if family is None:
                    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
                    family = kinds[measure.kind](measure.name, measure.text, labels=(*measure.labels, *own))
                    families[measure.name] = family
                values = (*labels, coordinator) if own else labels
                if measure.kind == "histogram":
                    bounds = [*map(str, measure.bounds), "+Inf"]
                    family.add_metric(values, list(zip(bounds, counts, strict=True)), value)
                else:
                    family.add_metric(values, value)
        return [families[measure.name] for measure in MEASURES if measure.name in families]


def prometheus_text(snapshots: Mapping[str, Snapshot]) -> str:
    """Return snapshots, by the name of the coordinator whose they are (empty: this process's own), in Prometheus' text format."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry()
    registry.register(Exposition(snapshots))  # type: ignore[arg-type] - a collector is whatever collects
    return generate_latest(registry).decode()
