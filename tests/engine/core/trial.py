"""A run that a test drives by hand through `start`, `ready` and `apply`, and that checks the invariants of a run on the way.

`draw` makes a graph from text; `Trial` runs it: a test looks at what is ready, and says how it ended. No engine code but the core's.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from engine.core.graph import Edge, Graph, Join, Node
from engine.core.plan import Options, Plan, compile_plan
from engine.core.routing import NEVER, PENDING, UNDECIDED, Next
from engine.core.run import Answer, Ask, Layer, Run, Status, StepResult, apply, ready, start
from engine.core.state import Combine, StateDiff

Condition = Callable[[Mapping[Any, Any]], Any]


class Failed(NamedTuple):
    """Says that a step failed; `skip`: over an error that its policy skips."""

    error: Exception
    skip: bool = False


class Done(NamedTuple):
    """Says that a step succeeded, and what it wrote and deleted (key to value, or to `Growth`)."""

    output: Any = None
    written: Mapping[Any, Any] = {}
    deleted: Sequence[Any] = ()


def always(_: Mapping[Any, Any]) -> bool:
    return True


def never(_: Mapping[Any, Any]) -> bool:
    return False


def is_set(key: str) -> Condition:
    """A condition that asks for the truth of a state key."""
    return lambda state: state.get(key)


def draw(
    *edges: str,
    nodes: str = "",
    entries: str = "",
    joins: Mapping[str, Join] | None = None,
    when: Mapping[str, Condition] | None = None,
    waits: Sequence[str] = (),
    cycles: bool = False,
) -> Graph:
    """Make a graph: each edge text is a chain `A>B>C`; nodes are declared as in `nodes`, then as they appear.

    Entries are the first node where none are named. `when` maps an edge text to its condition, `waits` holds `node<on`.
    """
    graph = Graph(allow_cycles=cycles)
    chains = [chain.split(">") for chain in edges]
    for name in dict.fromkeys([*nodes.split(), *(n for chain in chains for n in chain)]):
        graph.add_node(Node(name=name, body=None, join=(joins or {}).get(name, "any")))
    for chain in chains:
        for source, target in pairwise(chain):
            graph.add_edge(Edge(source, target, (when or {}).get(f"{source}>{target}")))
    for text in waits:
        node, on = text.split("<")
        graph.dependencies.append((node, on))
    graph.entries = entries.split() or list(graph.nodes)[:1]
    return graph


class Trial:
    """A run, driven by hand. Every look at it checks what must hold between two layers."""

    def __init__(self, graph: Graph, input: Any = "in", *, start_node: str | None = None, **options: Any) -> None:
        self.plan = compile_plan(graph, Options(**options))
        self.input = input
        self.start_node = None if start_node is None else self.plan.index[start_node]
        self.run = self._start()
        self.layers: list[list[str]] = []
        """Names of what ran, by layer."""
        self.ran: list[tuple[str, int]] = []
        self.asked: list[tuple[str, int]] = []
        """Conditions that were asked, with their source's pass."""
        self.told: list[tuple[Any, dict[str, Any], Any]] = []
        """Source's output, history and last output that each condition was shown."""
        self.news: list[tuple[str, Any]] = []
        """Kind and data of what the run found out."""
        self.inputs: dict[str, Any] = {}
        """The input of each node's newest step."""
        self._applied: list[Sequence[Any]] = []
        self._targets = set(self.plan.entries if self.start_node is None else [self.start_node])
        self._check_counters()

    def _start(self) -> Run:
        return start(self.plan, "flow.s.1", self.input, start_node=self.start_node)

    def ready(self) -> list[str]:
        """The names of what is ready, in the order in which it was given."""
        return [self.plan.names[s.node] for s in self._layer().steps]

    def _layer(self) -> Layer:
        before = self.run.layer
        layer = ready(self.plan, self.run)
        asked = self.run.snapshot()
        assert ready(self.plan, self.run) is layer or not layer.steps, "ready answers otherwise when it is asked twice"
        assert self.run.snapshot() == asked, "asking twice changed the run"
        assert layer.number - before in (0, 1), "layers are numbered one by one"
        return layer

    def settle(self, _results: Mapping[str, Any] | None = None, /, **named: Any) -> "Trial":
        """Apply a layer: a node not named answers its own name in lower case. A `Next`, `Done` or `Failed` is taken as what it is."""
        given = {**(_results or {}), **named}
        layer = self._layer()
        names = [self.plan.names[s.node] for s in layer.steps]
        assert layer.steps, "nothing is ready"
        assert set(given) <= set(names), f"not ready: {set(given) - set(names)}; ready: {names}"
        self.layers.append(names)
        for step, name in zip(layer.steps, names, strict=True):
            assert (name, step.at) not in self.ran, "one pass of a node ran twice"
            self.ran.append((name, step.at))
            self.inputs[name] = step.input
        self._apply([self._result(s.node, given.get(n, n.lower())) for s, n in zip(layer.steps, names, strict=True)])
        while self.run.status is Status.RUNNING and (questions := self._layer().questions):
            assert self._layer().number == layer.number
            self._apply([self._answer(q) for q in questions])
        self.check()
        return self

    def go(self, bodies: Callable[[str, Any], Any] | None = None, *, limit: int = 200) -> "Trial":
        """Settle layers until the run has ended; `bodies(name, input)` says how a step ends."""
        while self.ready():
            assert len(self.layers) < limit, "the run does not end"
            steps = self._layer().steps
            self.settle({} if bodies is None else {(name := self.plan.names[s.node]): bodies(name, s.input) for s in steps})
        return self

    def _result(self, node: int, told: Any) -> StepResult:
        match told:
            case Next():
                diffs = [(self.plan.names[node], StateDiff(told.update_state, frozenset()))] if told.update_state else []
                return StepResult(node, "success", None, diffs, told)
            case Failed(error, skip):
                return StepResult(node, "skipped" if skip else "failed", error=error)
            case Done(output, written, deleted):
                return StepResult(node, "success", output, [(self.plan.names[node], StateDiff(dict(written), frozenset(deleted)))])
            case StepResult():
                return told
        return StepResult(node, "success", told)

    def _answer(self, question: Ask | Combine) -> Answer:
        try:
            if isinstance(question, Combine):
                return Answer(question, self.plan.options.custom[question.reducer](question.base, question.writes))
            edge = self.plan.edges[question.edge]
            self.asked.append((f"{edge.source}>{edge.target}", question.at))
            self.told.append((question.output, dict(question.window.entries()), question.window.last))
            assert edge.condition is not None
            return Answer(question, edge.condition(self.run.state))
        except ZeroDivisionError as error:  # what a test raises to fail
            return Answer(question, error=error)

    def _apply(self, results: Sequence[Any]) -> None:
        self._applied.append(results)
        self._targets |= {self.plan.index[r.jump.node] for r in results if isinstance(r, StepResult) and r.jump is not None}
        self._targets |= {target for target, back in zip(self.plan.target, self.plan.back, strict=True) if back}
        passes = list(self.run.front.passes)
        assert apply(self.plan, self.run, results) is self.run
        assert all(0 <= new - old <= 1 for old, new in zip(passes, self.run.front.passes, strict=True)), "opened twice in a layer"
        self.news += [(n.kind, n.data) for n in self.run.news]
        self.run.news = []

    # what must hold

    def check(self) -> None:
        """Check everything that must hold between two layers."""
        front, names = self.run.front, self.plan.names
        if self.run.status is Status.FAILED:
            assert self.run.error is not None
            assert not ready(self.plan, self.run).steps
            return
        self._check_counters()
        for step in self._layer().steps:
            fresh = step.at == front.passes[step.node]
            assert not fresh or front.status[step.node] == PENDING, f"{names[step.node]} is ready and done"
            assert not fresh or not front.waiting[step.node] or step.node in self._targets, f"{names[step.node]} did not wait"
        if self.run.status is Status.COMPLETED:
            assert PENDING not in front.status, "the run ended, and something waits"
            assert self.run.openings <= self.plan.options.max_steps
            assert not front.held

    def _check_counters(self) -> None:
        front, plan = self.run.front, self.plan
        for node in range(len(plan.nodes)):
            undecided = sum(front.verdict[e] == UNDECIDED and front.passes[plan.source[e]] > 0 for e in plan.arriving[node])
            waited = sum(front.status[on] == PENDING for on in plan.depends[node])
            if front.status[node] == PENDING:
                assert front.waiting[node] == undecided + waited, f"{plan.names[node]} waits for another number of things"
            assert (front.status[node] == NEVER) == (front.passes[node] == 0)

    def check_order_of_arrival(self) -> None:
        """Apply the same results in other orders, and expect the same run."""
        expected = self._whole(self.run)
        chance = random.Random(len(self._applied))
        orders: list[Callable[[list[Any]], list[Any]]] = [lambda rs: rs[::-1], lambda rs: chance.sample(rs, len(rs))]
        for order in orders:
            other = self._start()
            for results in self._applied:
                ready(self.plan, other)
                apply(self.plan, other, order(list(results)))
            assert self._whole(other) == expected, "the order of arrival decides"

    def _whole(self, run: Run) -> Any:
        steps = ready(self.plan, run).steps
        return run.snapshot(), [(s.node, s.at, s.input, s.window.entries(), s.window.last) for s in steps]


def outcome(trial: Trial) -> dict[str, Any]:
    """What a caller sees of a run that ended."""
    run = trial.run
    return {"status": run.status.value, "output": run.last, "history": run.history(), "state": dict(run.state)}


def plan_of(graph: Graph, **options: Any) -> Plan:
    return compile_plan(graph, Options(**options))


__all__ = ["Done", "Failed", "Next", "Trial", "always", "draw", "is_set", "never", "outcome", "plan_of"]
