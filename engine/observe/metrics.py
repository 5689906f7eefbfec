"""What runs and steps amount to: counters, durations and gauges, read from events, under the names that operators look for.

A pure reader: it takes events of any number of runs, from one place, and keeps numbers. It costs about a microsecond an event, keeps a
little for each run that goes on, and nothing for one that has ended. `engine.observe.exposition` writes the numbers as Prometheus' text.

A step here is one attempt of a body: an item of a map and a member of a team is one, a map, a team and a sub-workflow are none. A step
that is attempted again is enqueued again. Of a map that goes on after a resume all items count as enqueued again.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from engine.core.events import STATUS_AFTER, Event
from engine.core.ids import split_run_id

OTHER = "(other)"
"""Stands for what would be one label too many."""
WORKFLOWS, NODES, ERRORS = 200, 200, 50
"""So many workflows, nodes of each, and classes of errors of each have a label of their own."""
RUNS = 50_000
"""So many runs are followed at once; of the oldest beyond it the duration is not measured."""
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
RUN_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
"""Upper bounds of what durations are sorted into."""

Snapshot = dict[str, Any]
"""The numbers of one `Metrics` as plain data, which JSON holds and `engine.observe.exposition` reads."""

_FINAL = frozenset(["completed", "failed", "cancelled", "timed_out"])


class Durations:
    """How often something took how long."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Begin with none."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def note(self, seconds: float) -> None:
        """Take one more in."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def data(self) -> list[Any]:
        """Return them as plain data: how many lie up to each bound and not up to the one before, the last beyond all; their sum."""
        return [list(self.counts), self.seconds]


class Workflow:
    """The numbers of one workflow."""

    __slots__ = ("ended", "enqueued", "errors", "executions", "failed", "nodes", "paused", "resumed", "started")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.started = self.resumed = self.paused = 0
        self.ended: Counter[tuple[str, str]] = Counter()
        """(operation, status) to how many."""
        self.executions: dict[str, Durations] = {}
        """By status."""
        self.enqueued = self.failed = 0
        self.nodes: dict[str, tuple[Durations, Durations]] = {}
        """Node, or "" for all of them, to how long its steps took that succeeded and that failed."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """(kind, class) to how many."""

    def data(self) -> dict[str, Any]:
        """Return them as plain data."""
        return {
            "started": self.started,
            "resumed": self.resumed,
            "paused": self.paused,
            "ended": [[*key, count] for key, count in self.ended.items()],
            "executions": {status: durations.data() for status, durations in self.executions.items()},
            "enqueued": self.enqueued,
            "failed": self.failed,
            "nodes": {node: [good.data(), bad.data()] for node, (good, bad) in self.nodes.items()},
            "errors": [[*key, count] for key, count in self.errors.items()],
        }


class _Run:
    __slots__ = ("began", "node", "operation", "outer", "workflow")

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.began: datetime | None = None
        self.operation = "start"
        self.node: tuple[str, tuple[Durations, Durations]] | None = None
        self.outer: set[str] = set()
        """Steps that perform nothing themselves, but what is inside of them."""


class Metrics:
    """The numbers of the runs whose events it is given."""

    def __init__(self, *, distributed: bool = False, nodes: bool = False) -> None:
        """Count from now on.

        Args:
            distributed: Whether the runs are performed on a cluster, which a label says.
            nodes: Whether durations of steps are kept by node: a label more for each node of each workflow.
        """
        self.distributed = distributed
        self._by_node = nodes
        self._workflows: dict[str, Workflow] = {}
        self._runs: dict[str, _Run] = {}
        self._published: dict[str, tuple[datetime, int]] = {}
        """Run to the newest of its events, where they come through a bus."""
        self._takers = {
            "step_started": self._step_started,
            "step_succeeded": self._step_succeeded,
            "step_failed": self._step_failed,
            "step_retrying": self._step_retrying,
            "condition_failed": self._condition_failed,
            **dict.fromkeys(STATUS_AFTER, self._status),
        }

    def take(self, event: Event) -> None:
        """Take an event in; those of one run in their order, each once."""
        taker = self._takers.get(event.kind)
        if taker is not None:
            taker(event)

    def publish(self, event: Event) -> None:
        """Take an event in, as the `event_bus` of a workflow, which is told everything once more where a run is resumed."""
        if event.ordinal:
            return
        place = event.at, event.seq
        newest = self._published.get(event.run_id)
        if newest is None or place > newest:
            self._published[event.run_id] = place
            while len(self._published) > RUNS:
                del self._published[next(iter(self._published))]
            self.take(event)

    def snapshot(self, gauges: Mapping[str, float] | None = None) -> Snapshot:
        """Return the numbers as they are.

        Args:
            gauges: What events do not tell, as far as it was measured: `queued_runs`, `waiting_steps`, `active_workers`,
                `processing_steps`.
        """
        workflows = {name: workflow.data() for name, workflow in self._workflows.items()}
        return {"distributed": self.distributed, "workflows": workflows, "gauges": dict(gauges or {})}

    def _run(self, event: Event) -> _Run:
        run = self._runs.get(event.run_id)
        if run is None:
            parts = split_run_id(event.run_id)
            run = self._runs[event.run_id] = _Run(self._workflow(parts[0] if parts else event.run_id))
            if len(self._runs) > RUNS:
                del self._runs[next(iter(self._runs))]
        return run

    def _workflow(self, name: str) -> Workflow:
        found = self._workflows.get(name)
        if found is None:
            if len(self._workflows) >= WORKFLOWS:
                name = OTHER
            found = self._workflows.setdefault(name, Workflow())
        return found

    def _durations(self, run: _Run, node: str) -> tuple[Durations, Durations]:
        if not self._by_node:
            node = ""
        if run.node is not None and run.node[0] == node:  # the same as before, or all
            return run.node[1]
        nodes = run.workflow.nodes
        found = nodes.get(node)
        if found is None:
            if len(nodes) >= NODES:
                node = OTHER
            found = nodes.setdefault(node, (Durations(STEP_SECONDS), Durations(STEP_SECONDS)))
        run.node = node, found
        return found

    def _status(self, event: Event) -> None:
        run, status = self._run(event), STATUS_AFTER[event.kind]
        workflow = run.workflow
        if status == "running":
            run.began, run.operation = event.at, "start" if event.kind == "run_started" else "resume"
            if event.kind == "run_started":
                workflow.started += 1
            else:
                workflow.resumed += 1
            return
        self._runs.pop(event.run_id, None)
        if status not in _FINAL:
            workflow.paused += 1
            return
        workflow.ended[run.operation, status] += 1
        if run.began is not None:
            durations = workflow.executions.get(status)
            if durations is None:
                durations = workflow.executions[status] = Durations(RUN_SECONDS)
            durations.note(max(0.0, (event.at - run.began).total_seconds()))
        if status == "timed_out":
            self._error(run, "run", "RunTimedOut")
        elif status == "failed":
            self._error(run, "run", _class_of(event.data.get("error")))

    def _step_started(self, event: Event) -> None:
        run, data = self._run(event), event.data
        count = 1
        if data:
            if "members" in data:
                run.outer.add(event.step_id)
                count = 0
            elif "items" in data:
                run.outer.add(event.step_id)
                count = data["items"]
        if "/" in event.node or (data and "member" in data):
            around = event.step_id.rpartition("/")[0]
            if around not in run.outer and not around.endswith("/fallback"):  # it was taken for a step before
                run.outer.add(around)
                count -= 1
        run.workflow.enqueued += count

    def _step_succeeded(self, event: Event) -> None:
        data, run = event.data, self._run(event)
        if "items" in data or "answer" in data or (run.outer and event.step_id in run.outer):
            run.outer.discard(event.step_id)
            return
        self._durations(run, event.node)[0].note(data.get("duration", 0.0))

    def _step_failed(self, event: Event) -> None:
        run = self._run(event)
        if event.step_id in run.outer:
            return
        run.workflow.failed += 1
        self._durations(run, event.node)[1].note(event.data.get("duration", 0.0))
        self._error(run, "step", _class_of(event.data.get("error")))

    def _step_retrying(self, event: Event) -> None:
        run = self._run(event)
        if event.step_id not in run.outer:
            run.workflow.failed += 1
            run.workflow.enqueued += 1
            self._error(run, "step", _class_of(event.data.get("error")))

    def _condition_failed(self, event: Event) -> None:
        self._error(self._run(event), "condition", "")

    def _error(self, run: _Run, kind: str, name: str) -> None:
        errors = run.workflow.errors
        errors[(kind, name) if (kind, name) in errors or len(errors) < ERRORS else (kind, OTHER)] += 1


def _class_of(error: Any) -> str:
    return str(error.get("type", ""))[:200] if isinstance(error, Mapping) else ""


def seed_figures(snapshots: Sequence[Snapshot]) -> dict[str, float | None]:
    """Return the eleven figures of a distributed engine, of all snapshots together; None for an average of nothing.

    ExecutionsFailed counts runs that timed out, too. Averages are in seconds: of steps that ended by themselves, well or not, and of runs
    from their start or newest resume to their end.
    """
    workflows = [workflow for snapshot in snapshots for workflow in snapshot["workflows"].values()]
    ended: Counter[str] = Counter()
    for workflow in workflows:
        for _, status, count in workflow["ended"]:
            ended[status] += count
    good = [node[0] for workflow in workflows for node in workflow["nodes"].values()]
    bad = [node[1] for workflow in workflows for node in workflow["nodes"].values()]
    executions = [durations for workflow in workflows for durations in workflow["executions"].values()]

    def gauge(*names: str) -> float:
        return sum(snapshot["gauges"].get(name, 0) for snapshot in snapshots for name in names)

    return {
        "ExecutionsStarted": sum(workflow["started"] for workflow in workflows),
        "ExecutionsCompleted": ended["completed"],
        "ExecutionsFailed": ended["failed"] + ended["timed_out"],
        "TasksEnqueued": sum(workflow["enqueued"] for workflow in workflows),
        "TasksCompleted": sum(sum(counts) for counts, _ in good),
        "TasksFailed": sum(workflow["failed"] for workflow in workflows),
        "QueueDepth": gauge("queued_runs", "waiting_steps"),
        "ActiveWorkers": gauge("active_workers"),
        "TasksProcessing": gauge("processing_steps"),
        "AvgTaskDuration": _average(good + bad),
        "AvgExecutionTime": _average(executions),
    }


def _average(durations: Sequence[Sequence[Any]]) -> float | None:
    count = sum(sum(counts) for counts, _ in durations)
    return sum(seconds for _, seconds in durations) / count if count else None
