"""One execution of a workflow, and the two functions that decide everything about it: `ready` and `apply`.

A driver asks `ready` what may start, performs it, and hands the results to `apply`, until the run has ended. Where user code has
to be asked for a decision (a condition, a custom reducer), `ready` answers with questions instead of steps and `apply` takes the
answers. The order in which results arrive never matters. The driver hands the run over: `apply` changes it in place, since copying
would make a chain quadratic.
"""
# pyright: reportPrivateUsage=false
# The functions below are the Run's methods in all but form: nothing outside this module touches its private slots.

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

from engine.core.history import Row, Window
from engine.core.ids import make_step_id
from engine.core.plan import Plan
from engine.core.routing import ABSENT, DEAD, FALSE, LIVE, PENDING, SKIPPED, SUCCESS, Frontier, Next, Opening, Step
from engine.core.state import Combine, Conflict, Merged, StateDiff, merge, opened, order_of
from engine.errors import StateConflict, StepLimitReached

ROWS = 100
"""How many rows `executions` keeps."""


class Status(StrEnum):
    """Of a run."""

    #: recorded, not started
    PENDING = "pending"
    #: driven by an owner
    RUNNING = "running"
    #: stopped between steps, to be resumed
    PAUSED = "paused"
    #: ended with an output
    COMPLETED = "completed"
    #: ended with an error; may be resumed
    FAILED = "failed"
    #: ended by its caller
    CANCELLED = "cancelled"
    #: ended by its limit; may be resumed
    TIMED_OUT = "timed_out"


RUNNING: Final = Status.RUNNING  # every layer looks twice, and a member is slow to reach through its enum
FINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT})
MOVES: Mapping[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT, Status.RUNNING}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.FAILED: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.TIMED_OUT: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""The legal moves. A run that is found running was left by an owner that died; another goes on with it."""


@dataclass(slots=True)
class StepResult:
    """How one step ended; never changed."""

    node: int
    status: str
    """`success`, `skipped` (failed, with on_error="skip") or `failed`."""
    output: Any = None
    diffs: Sequence[tuple[str, StateDiff]] = ()
    """(label, diff): one for a step, one for each item of a map that wrote."""
    jump: Next | None = None
    attempt: int = 1
    started: float = 0.0
    duration: float = 0.0
    error: BaseException | None = None


class Ask(NamedTuple):
    """A question to the driver: does the condition of an edge hold?"""

    edge: int
    at: int
    """The source's pass."""
    output: Any
    """The source's output."""
    window: Window
    late: bool
    """Whether the target has started without waiting for this verdict."""


class Apply(NamedTuple):
    """A question of a team's: what does its mapper or judge make of some values?"""

    function: Any
    given: Sequence[Any]
    where: str
    """What it is to the reader of an error."""


class Answer(NamedTuple):
    """What user code answered to an `Ask` (a truth value), a `Combine` or an `Apply` (the value)."""

    question: Ask | Combine | Apply
    value: Any = None
    error: BaseException | None = None
    """A condition that failed counts as false; a reducer that failed fails the run."""


@dataclass(slots=True)
class Layer:
    """All that may be done now: steps to perform, or questions to answer first; never changed."""

    number: int
    steps: Sequence[Step]
    questions: Sequence[Ask | Combine] = ()


class News(NamedTuple):
    """Something that `apply` found out, for the driver to record: an event without its number and time."""

    kind: str
    node: int | None
    """Its number; None for what concerns the whole layer."""
    at: int
    """The pass, 0 without a node."""
    data: dict[str, Any]


class Run:
    """One execution. Only `start`, `ready` and `apply` change it."""

    __slots__ = (
        *("_layer", "_merged", "_results", "_window", "changes", "error", "front", "id", "input", "last", "layer", "news"),
        *("openings", "plan", "recent", "standing", "state", "status", "version"),
    )

    def __init__(self, plan: Plan, run_id: str, input: Any) -> None:
        """Stand before the first layer; use `start`."""
        self.id = run_id
        self.plan = plan
        self.input = input
        self.status = Status.PENDING
        self.front = Frontier(plan, input)
        self.state: dict[Any, Any] = {}
        self.version = 0
        """Counts the layers that were applied: the version of the state."""
        self.changes: list[tuple[int, Sequence[Any], Sequence[Any]]] | None = None
        """(version, written keys, deleted keys) of every layer, for a driver that keeps copies of the state elsewhere and empties it."""
        self.standing: dict[int, Any] = {}
        """The history: node to output of what stands, by layer, then declared order."""
        self.last: Any = input
        self.recent: deque[tuple[int, int, str, int, float, float, str | None]] = deque(maxlen=ROWS)
        self.layer = 0
        self.openings = 0
        self.news: list[News] = []
        self.error: BaseException | None = None
        self._layer: Layer | None = None
        self._results: list[tuple[Step, StepResult]] = []
        self._merged: Merged | None = None
        self._window: Window | None = None

    def window(self) -> Window:
        """Return the history of this moment; shared until the history changes."""
        if self._window is None:
            self._window = Window(self.standing, self.plan.names, self.plan.options.retention, self.last)
        return self._window

    def rows(self) -> list[Row]:
        """Return the newest rows of what ran or was skipped."""
        names = self.plan.names
        return [
            Row(names[node], make_step_id(self.id, names[node], at), status, attempt, started, duration, error)
            for node, at, status, attempt, started, duration, error in self.recent
        ]

    def history(self) -> dict[str, Any]:
        """Return the window as a dict of its own, node to output."""
        return {node: opened(output) for node, output in self.window().entries().items()}

    def snapshot(self) -> dict[str, Any]:
        """Return all that decides about the run as plain data, for tests."""
        front = self.front
        return {
            "status": self.status.value,
            "state": {k: opened(v) for k, v in self.state.items()},
            "history": list(self.history().items()),
            "last": self.last,
            "passes": list(front.passes),
            "nodes": bytes(front.status),
            "edges": bytes(front.verdict),
            "taken": sorted((s.node, s.at, repr(s.input)) for s in front.taken.values()),
            "rows": [tuple(r)[:3] for r in self.rows()],
            "openings": self.openings,
            "error": None if self.error is None else (type(self.error).__name__, str(self.error)),
        }


def move(status: Status, to: Status) -> Status:
    """Return the new status of a run; ValueError for a move that is not legal."""
    if to not in MOVES[status]:
        raise ValueError(f"a run that is {status.value} cannot become {to.value}")
    return to


def start(plan: Plan, run_id: str, input: Any, *, start_node: int | None = None) -> Run:
    """Return a run that stands before its first layer: all its entries, or `start_node` alone, are open."""
    run = Run(plan, run_id, input)
    run.status = move(run.status, Status.RUNNING)
    targets = plan.entries if start_node is None else (start_node,)
    for node in run.front.open([Opening(t, ABSENT, jump=False) for t in targets], run.standing):
        run.front.take(node, run.window())
    return run


def ready(plan: Plan, run: Run) -> Layer:
    """Return what may be done now; without steps and questions the run has ended. Asking twice changes nothing."""
    if run.status is not RUNNING:
        return Layer(run.layer, ())
    if run._layer is None:
        if not run.front.taken:
            return Layer(run.layer, ())
        run.layer += 1
        run._layer = Layer(run.layer, run.front.begin())
    return run._layer


def apply(plan: Plan, run: Run, results: Sequence[StepResult] | Sequence[Answer]) -> Run:
    """Apply the results of a whole layer, or the answers to all its questions; return the run as it is then.

    A layer with a failed step leaves the run failed and otherwise as it was: its results are kept by the driver and applied as a
    whole when the run is resumed. What happened besides the steps themselves is in `run.news`.
    """
    layer = run._layer
    assert layer is not None, "apply needs the layer that ready gave"
    if layer.questions:
        _take_answers(plan, run, layer, results)  # type: ignore[arg-type]
    else:
        _take_results(plan, run, layer, results)  # type: ignore[arg-type]
    return run


def _take_results(plan: Plan, run: Run, layer: Layer, results: Sequence[StepResult]) -> None:
    run.news = []
    if len(results) > 1:
        results = sorted(results, key=attrgetter("node"))
    diffs: list[tuple[str, StateDiff]] = []
    for result in results:
        if result.status == "failed":
            _fail(run, result.error)
            return
        diffs += result.diffs
    assert len(results) == len(layer.steps), "apply needs a result for every step of the layer"
    run._results = list(zip(layer.steps, results, strict=True))
    merged = merge(run.state, diffs, plan.options.reducers) if diffs else None
    if merged is not None and merged.open:
        run._layer = Layer(layer.number, layer.steps, merged.open)
        run._merged = merged
        return
    if merged is None or _merge_state(plan, run, merged, {}):
        _record(plan, run, layer)


def _take_answers(plan: Plan, run: Run, layer: Layer, answers: Sequence[Answer]) -> None:
    merged, run._merged = run._merged, None
    if merged is not None:
        broken: dict[Any, BaseException] = {}
        for answer in answers:
            question = answer.question
            assert isinstance(question, Combine)
            merged.written[question.key] = answer.value
            if answer.error is not None:
                broken[question.key] = answer.error
                merged.misfits.append(Conflict(question.key, question.nodes))
        if _merge_state(plan, run, merged, broken):
            _record(plan, run, layer)
        return
    _route(plan, run, {a.question.edge: a for a in answers if isinstance(a.question, Ask)})


def _fail(run: Run, error: BaseException | None) -> None:
    run.error = error
    run.status = move(run.status, Status.FAILED)


def _and(nodes: Sequence[str]) -> str:
    return " and ".join(map(repr, nodes))


def _merge_state(plan: Plan, run: Run, merged: Merged, broken: Mapping[Any, BaseException]) -> bool:
    """Put the merged state in place, or fail the run over the smallest key that cannot be merged.

    `broken` holds what custom reducers raised, by key.
    """
    fatal: list[tuple[Conflict, str]] = [(c, "does not fit its reducer: what they wrote") for c in merged.misfits]
    if plan.options.on_conflict == "error":
        fatal += [(c, f"was written by more than one {_writer(plan, c.nodes)}, and on_conflict is 'error':") for c in merged.conflicts]
    if fatal:
        (key, nodes), why = min(fatal, key=lambda f: order_of(f[0].key))
        reducer = plan.options.reducers.get(key)
        advice = f"; its reducer is {reducer!r}" if reducer else "; give it a reducer: Workflow(reducers={key: ...})"
        text, cause = f"state key {key!r} {why} {_and(nodes)}{advice}", broken.get(key)
        if cause is not None:
            text = f"reducer {reducer!r} of state key {key!r} failed on the writes of {_and(nodes)}: {cause!r}"
        error = StateConflict(text, run_id=run.id, node=nodes[0], key=key, nodes=nodes)
        error.__cause__ = cause
        _fail(run, error)
        return False
    for key in merged.deleted:
        run.state.pop(key, None)
    run.state.update(merged.written)
    if run.changes is not None:
        run.changes.append((run.version + 1, list(merged.written), merged.deleted))
    run.news += [News("conflict", None, 0, {"key": key, "nodes": nodes}) for key, nodes in merged.conflicts]
    return True


def of_one_team(plan: Plan, labels: Sequence[str]) -> bool:
    """Tell whether those who wrote are members of one team, by their labels: `node[member]`, in a map `node[item][member]`."""
    name = labels[0].partition("[")[0]
    depth = 2 if name in plan.index and plan.nodes[plan.index[name]].kind == "map" else 1
    parts = [label.split("[") for label in labels]
    return all(len(part) > depth and part[:depth] == parts[0][:depth] for part in parts)


def _writer(plan: Plan, labels: Sequence[str]) -> str:
    return "member of a team" if of_one_team(plan, labels) else "step of a layer"


def _record(plan: Plan, run: Run, layer: Layer) -> None:
    """Outputs, history, last output; then route, or ask the conditions first."""
    front, standing, names = run.front, run.standing, plan.names
    run.version += 1
    sent: Any = ABSENT
    stayed: dict[str, Any] = {}
    for step, result in run._results:
        node, output, jump = step.node, result.output, result.jump
        if node in standing:
            del standing[node]  # what stands again is the newest
        success = result.status == "success"
        if success:
            if jump is None:
                stayed[names[node]] = output
            else:
                output = _jumpers_entry(step, jump)
                if jump.sent is not ABSENT:
                    sent = output
            standing[node] = output
        if step.at == front.passes[node]:
            front.status[node] = SUCCESS if success else SKIPPED
            front.outputs[node] = output
    if sent is not ABSENT:
        run.last = sent
    elif len(stayed) == 1:
        (run.last,) = stayed.values()
    elif stayed:
        run.last = stayed
    run._window = None
    asks: list[Ask] = []
    for step, result in run._results if plan.asked else ():
        for edge in plan.out[step.node]:
            if edge not in plan.asked or result.jump is not None:
                continue
            if plan.back[edge] or step.at == front.passes[step.node]:
                late = not plan.back[edge] and front.status[plan.target[edge]] != PENDING
                asks.append(Ask(edge, step.at, result.output, run.window(), late))
    if asks:
        run._layer = Layer(layer.number, layer.steps, asks)
    else:
        _route(plan, run, {})


def _jumpers_entry(step: Step, jump: Next) -> Any:
    return step.window.last if jump.sent is ABSENT else jump.sent


def _route(plan: Plan, run: Run, answers: Mapping[int, Answer]) -> None:
    """Verdicts, skips, what is ready; then jumps and live back edges open their targets together."""
    front = run.front
    openings: list[Opening] = []
    settled: list[int] = []
    decided: list[tuple[int, int]] = []
    for step, result in run._results[-ROWS:]:
        error = None if result.error is None else str(result.error)
        run.recent.append((step.node, step.at, result.status, result.attempt, result.started, result.duration, error))
    for step, result in run._results:
        node, jump = step.node, result.jump
        fresh = step.at == front.passes[node]
        if fresh and plan.dependents[node]:
            settled.append(node)
        if jump is not None:
            target = plan.index[jump.node]
            handed = step.input if jump.sent is ABSENT else jump.sent
            openings.append(Opening(target, handed, jump=True))
            data: dict[str, Any] = {"target": jump.node}
            if jump.sent is not ABSENT:
                data["input"] = handed
            run.news.append(News("jumped", node, step.at, data))
        for edge in plan.out[node]:
            back = plan.back[edge]
            if not fresh and not back:
                continue
            verdict = LIVE if jump is None else DEAD
            if edge in answers:
                verdict = _verdict(plan, run, step, edge, answers[edge])
            if fresh:
                decided.append((edge, verdict))
            if verdict == LIVE and back:
                openings.append(Opening(plan.target[edge], result.output, jump=False))
    skipped, chosen = front.settle(settled, decided)
    for node in skipped:
        run.recent.append((node, front.passes[node], "skipped", 0, 0.0, 0.0, None))
        run.standing.pop(node, None)
        run._window = None
        run.news.append(News("step_skipped", node, front.passes[node], {}))
    if chosen:
        window = run.window()
        for node in chosen:
            front.take(node, window)
    run._layer, run._results = None, []
    if openings:
        _open(plan, run, openings)
    if run.status is RUNNING and not front.taken:
        run.status = move(run.status, Status.COMPLETED)


def _verdict(plan: Plan, run: Run, step: Step, edge: int, answer: Answer) -> int:
    source, target = plan.names[step.node], plan.names[plan.target[edge]]
    verdict = answer.error is None and bool(answer.value)
    if answer.error is not None:
        kind = getattr(answer.error, "type_name", type(answer.error).__name__)  # of an error from another process: the original's
        text = f"{kind}: {answer.error}"
        run.news.append(News("condition_failed", step.node, step.at, {"source": source, "target": target, "error": text}))
    ask = answer.question
    late = isinstance(ask, Ask) and ask.late
    run.news.append(News("condition_decided", step.node, step.at, {"source": source, "target": target, "verdict": verdict, "late": late}))
    return LIVE if verdict else FALSE


def _open(plan: Plan, run: Run, openings: Sequence[Opening]) -> None:
    run.openings += len({o.target for o in openings})
    limit = plan.options.max_steps
    if run.openings > limit:
        targets = ", ".join(dict.fromkeys(repr(plan.names[o.target]) for o in openings))
        text = (
            f"Exceeded max steps: {run.openings} openings by jumps and back edges, the limit is {limit} (last: {targets}); "
            "raise it with Workflow(max_steps=...)"
        )
        _fail(run, StepLimitReached(text, run_id=run.id))
        return
    starting = run.front.open(openings, run.standing)
    run._window = None
    for node in starting:
        run.front.take(node, run.window())
