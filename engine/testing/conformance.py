"""What every executor must do alike: one table of small workflows, and the check that runs one of them.

    for case in CASES:
        await check_executor(case, executor="ray", storage="/tmp/runs")

A case says how its run ends. Its history, rows, error and events are compared with those of a simulated run, but for what tells time and
place. Events are compared in their order where it is determined: layer by layer, and in a layer step by step. Bodies come in both shapes:
functions of this module, which other processes import, and closures, which they cannot.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from engine.core.events import Event
from engine.core.run import Row
from engine.engine import Engine
from engine.errors import WorkflowError
from engine.testing.simulate import simulate
from engine.workflow import Workflow

_IGNORED = frozenset(
    ["duration", "worker", "due", "traceback", "hash", "code", "target", "session", "definition", "stopped_after", "start_node"]
)
"""What tells time or place; `target` names the workflow's code in `run_started` alone, and is kept elsewhere."""

_ENDS = frozenset(["step_succeeded", "step_failed", "step_skipped", "step_stopped"])
"""What ends a step; the last end of a layer ends the layer."""


class Case(NamedTuple):
    """A workflow, and how its run ends on any executor."""

    name: str
    make: Callable[[], Workflow]
    input: Any = None
    output: Any = None
    status: str = "completed"
    state: Mapping[Any, Any] = {}
    history: Mapping[str, Any] | None = None
    """Node to output, in order; None: not compared."""
    error: tuple[str, ...] = ()
    """The error's class, its cause's class (empty: not compared), and parts of its text."""
    kinds: Mapping[str, int] = {}
    """How many events there are of some kinds."""
    timeout: float | None = None
    start_node: str | None = None
    stored: bool = False
    """Whether it needs a storage to end so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """How a run ended, in a form that does not depend on where it was performed."""

    status: str
    output: Any
    state: dict[Any, Any]
    history: dict[str, Any]
    rows: list[tuple[Any, ...]]
    """What `executions` tells, but for when."""
    error: BaseException | None
    events: list[Any]
    """In groups: all of a layer, what is told between it and the next, and so on; in a group by step."""

    @property
    def place(self) -> tuple[Any, ...]:
        """Node and attempt that the error names."""
        return getattr(self.error, "node", None), getattr(self.error, "attempt", None)


async def check_executor(case: Case, *, executor: str, storage: str | None) -> None:
    """Run a case on an executor and compare.

    Args:
        executor: `inline` or `ray`.
        storage: Where it is recorded, a place of its own for this case; None: nowhere.

    Raises: AssertionError that names the case and what differs.
    """
    reference = check_simulated(case)
    observed = await observe(case, executor=executor, storage=storage)
    check_end(case, observed, executor)
    where = f"{case.name} on {executor}"
    _check_value(f"{where}: history", list(observed.history.items()), list(reference.history.items()))
    _check_value(f"{where}: rows", observed.rows, reference.rows)
    _check_value(f"{where}: node and attempt of the error", observed.place, reference.place)
    missing = [e for e in reference.events if e not in observed.events]
    more = [e for e in observed.events if e not in reference.events]
    assert missing == more == [], f"{where}: events differ: missing {missing}, unexpected {more}"
    assert observed.events == reference.events, f"{where}: events come in another order: {observed.events}, not {reference.events}"


def check_simulated(case: Case) -> Observed:
    """Simulate a case and compare. Raises: AssertionError."""
    observed = observe_simulated(case)
    check_end(case, observed, "simulated")
    return observed


async def observe(case: Case, *, executor: str, storage: str | None) -> Observed:
    """Run a case by the engine."""
    engine = Engine(storage, executor=executor)
    flow = case.make()
    handle = await engine.start(flow, case.input, session_id="conformance", timeout=case.timeout, start_node=case.start_node)
    error: BaseException | None = None
    try:
        await handle.wait()
    except WorkflowError as caught:
        error = caught
    told = handle.events() if storage is None else engine.events(handle.run_id)
    events = [event async for event in told]
    return Observed(
        status=handle.status, output=handle.output, state=handle.state, history=handle.history,
        rows=_rows(handle.executions, handle.run_id), error=error, events=_alike(case.name, events, handle.run_id),
    )  # fmt: skip


def observe_simulated(case: Case) -> Observed:
    """Run a case by the simulator."""
    report = simulate(case.make, case.input, timeout=case.timeout, start_node=case.start_node)
    return Observed(
        status=report.status, output=report.output, state=report.state, history=report.history,
        rows=_rows(report.executions, report.run_id), error=report.error, events=_alike(case.name, report.events, report.run_id),
    )  # fmt: skip


def check_end(case: Case, observed: Observed, executor: str) -> None:
    """Compare how a run ended with what the case says. Raises: AssertionError."""
    where = f"{case.name} on {executor}"
    assert observed.status == case.status, f"{where}: status is {observed.status}, not {case.status} ({observed.error!r})"
    if case.status == "completed":
        _check_value(f"{where}: output", observed.output, case.output)
    _check_value(f"{where}: state", observed.state, dict(case.state))
    if case.history is not None:
        _check_value(f"{where}: history", list(observed.history.items()), list(case.history.items()))
    _check_error(where, observed.error, case.error)
    for kind, count in case.kinds.items():
        found = [event for event in observed.events if event[0] == kind]
        assert len(found) == count, f"{where}: {len(found)} events {kind}, not {count}: {found}"


def _check_value(what: str, found: Any, expected: Any) -> None:
    assert found == expected, f"{what} is {found!r}, not {expected!r}"
    assert _types(found) == _types(expected), f"{what} is {found!r}, not {expected!r}, which is of other types"


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(inner) for key, inner in value.items()}
    return [type(value), *map(_types, value)] if isinstance(value, (list, tuple)) else type(value)


def _check_error(where: str, error: BaseException | None, expected: tuple[str, ...]) -> None:
    if not expected:
        assert error is None, f"{where}: ended with {error!r}"
        return
    kind, cause, *parts = expected
    assert type(error).__name__ == kind, f"{where}: ended with {error!r}, not with {kind}"
    assert error is not None
    if cause:
        assert type(error.__cause__).__name__ == cause, f"{where}: its cause is {error.__cause__!r}, not {cause}"
    for part in parts:
        assert part in str(error), f"{where}: {part!r} is not in {str(error)!r}"


def _rows(rows: Iterable[Row], run_id: str) -> list[tuple[Any, ...]]:
    return [
        (row.node, row.step_id.removeprefix(run_id), row.status, row.attempt, row.error and row.error.replace(run_id, "RUN"))
        for row in rows
    ]


def _alike(what: str, events: Iterable[Event], run_id: str) -> list[Any]:
    """Return durable events without time and place, in groups whose order is determined, and in a group by step.

    What a reducer answered is noted for a resume alone, so not where nothing is stored. Who lost in a team is told when it has stopped,
    beside what comes after the team: that comes last here, in the order of the steps.
    """
    durable = [event for event in events if not event.ordinal]
    seqs = [event.seq for event in durable]
    assert seqs == list(range(1, len(seqs) + 1)), f"{what}: the numbers of the events do not ascend by one: {seqs}"
    groups: list[dict[str, list[Any]]] = [{}]
    losses: list[Any] = []
    running: set[str] = set()
    ends = {event.step_id: event.seq for event in durable if event.kind in _ENDS}  # a skip follows a failure: the newest counts
    lost = tuple(f"{event.step_id}/" for event in durable if event.kind == "member_lost")
    for event in durable:
        if "reduced" in event.data:
            continue
        step = event.step_id.removeprefix(run_id)
        if event.kind == "member_lost" or (event.kind == "step_stopped" and event.step_id.startswith(lost)):
            losses.append(_strip(event, run_id))
            continue
        begins = event.kind == "step_started" and step.count("/") == 2
        if begins and not running:
            groups.append({})
        groups[-1].setdefault(step, []).append(_strip(event, run_id))
        if begins:
            running.add(step)
        elif event.seq == ends.get(event.step_id) and step in running:
            running.remove(step)
            if not running:
                groups.append({})
    return [event for group in groups for _, told in sorted(group.items()) for event in told] + sorted(losses, key=itemgetter(2))


def _strip(event: Event, run_id: str) -> tuple[Any, ...]:
    kept = _IGNORED - ({"target"} if event.step_id else set())
    data: dict[str, Any] = {}
    for key, value in sorted(event.data.items()):
        if key in kept or (event.kind == "jumped" and key == "input"):  # where there is a log, the jumper's own event has it
            continue
        if key == "reason" and event.kind == "member_lost":  # how a body was stopped depends on where it was: in a thread it goes on
            continue
        if key == "error" and isinstance(value, dict):
            value = (value["type"], value["message"].replace(run_id, "RUN"))
        elif key in ("writes", "deletes"):
            value = sorted(map(repr, value))
        data[key] = value
    return event.kind, event.node, event.step_id.removeprefix(run_id), event.attempt, data
