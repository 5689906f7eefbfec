"""Which nodes run next: verdicts of edges, joins, skips, jumps and back edges, kept as counters by node.

`Frontier` is the moving part of a run. A node waits for a number of things (undecided counted in-edges, pending dependencies);
what settles counts down; what reaches zero is ready or skipped. So a layer costs what its own nodes and edges cost, whatever
the size of the graph.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple, cast

from engine.core.history import Window
from engine.core.plan import Plan

NEVER, PENDING, SUCCESS, SKIPPED = 0, 1, 2, 3
"""Of a node: never opened; opened and not settled; settled."""
UNDECIDED, LIVE, FALSE, DEAD = 0, 1, 2, 3
"""Of an edge: DEAD where its source was skipped or jumped."""


class _Absent:
    """No input at all, which `None` is not."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


class _RealNone:
    """`Next.none`: sends a real None."""

    def __repr__(self) -> str:
        return "Next.none"

    def __reduce__(self) -> str:
        return "REAL_NONE"


REAL_NONE: Final = _RealNone()


class Next:
    """Return it from a body to jump: the target and all that is downstream of it are opened again."""

    __slots__ = ("input", "node", "update_state")
    none: ClassVar[_RealNone] = REAL_NONE
    """As `input`: hand the target a real None. `input=None` hands on the jumper's own input."""

    def __init__(self, node: str, input: Any = None, update_state: dict[Any, Any] | None = None) -> None:
        """Jump to `node`; `update_state` is the last part of the jumper's own diff.

        Raises: TypeError for an `update_state` that is no mapping.
        """
        self.node = node
        self.input = input
        if update_state is not None and not isinstance(cast("object", update_state), Mapping):
            raise TypeError(f"Next({node!r}, update_state=...) takes a mapping of state keys to values, not {update_state!r:.80}")
        self.update_state = dict(update_state) if update_state else {}

    @property
    def sent(self) -> Any:
        """The input for the target, `ABSENT` where there is none."""
        return ABSENT if self.input is None else None if self.input is REAL_NONE else self.input

    def __repr__(self) -> str:
        return f"Next({self.node!r}, input={self.input!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Next, (self.node, self.input, self.update_state)


@dataclass(slots=True)
class Step:
    """One pass of one node, ready to start; never changed. No tuple: every layer reads it, and a slot is read four times as fast."""

    node: int
    at: int
    """The pass, from 1."""
    input: Any
    window: Window
    """History and last output of the moment at which it became ready."""


class Opening(NamedTuple):
    """A node to open, by a jump, a live back edge, or the start of the run."""

    target: int
    input: Any
    jump: bool


class Frontier:
    """Where a run stands in its graph."""

    __slots__ = ("given", "held", "input", "kept", "outputs", "passes", "plan", "status", "taken", "used", "verdict", "waiting")

    def __init__(self, plan: Plan, input: Any) -> None:
        """Stand before the first opening."""
        nodes, edges = len(plan.nodes), len(plan.edges)
        self.plan = plan
        self.input = input
        self.status = bytearray(nodes)
        self.passes = [0] * nodes
        self.waiting = [0] * nodes
        self.outputs: dict[int, Any] = {}
        self.verdict = bytearray(edges)
        self.used = bytearray(edges)
        """By edge: a started pass of its target had it."""
        self.kept = bytearray(edges)
        """By edge: used before its target was opened again, so it is no reason to run."""
        self.taken: dict[int, Step] = {}
        self.held: set[int] = set()
        """Targets that wait as drawn and then run whatever their join says."""
        self.given: dict[int, Any] = {}
        """The input that a jump, or a back edge, brought to a target that has not started."""

    def begin(self) -> list[Step]:
        """Take the next layer out, in declared order; its steps count as started."""
        steps = list(self.taken.values())
        if len(steps) > 1:
            steps.sort(key=attrgetter("node"))
        self.taken = {}
        verdict, used, arriving, passes = self.verdict, self.used, self.plan.arriving, self.passes
        for step in steps:
            node = step.node
            for edge in arriving[node]:
                if verdict[edge]:
                    used[edge] = 1
            if (self.held or self.given) and step.at == passes[node]:
                self.held.discard(node)
                self.given.pop(node, None)
        return steps

    def settle(self, settled: Iterable[int], decided: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Count down for nodes that settled and edges that were decided; return the skipped and the ready nodes, in declared order."""
        plan, status = self.plan, self.status
        queue: list[int] = []
        for node in settled:
            self._count_down(plan.dependents[node], queue)
        self._decide(decided, queue)
        skipped: list[int] = []
        ready: list[int] = []
        while queue:
            node = queue.pop()
            if status[node] != PENDING:
                continue
            if node in self.held or self._joins(node):
                ready.append(node)
                continue
            status[node] = SKIPPED
            skipped.append(node)
            self._decide([(edge, DEAD) for edge in plan.out[node]], queue)
            self._count_down(plan.dependents[node], queue)
        skipped.sort()
        ready.sort()
        return skipped, ready

    def _decide(self, decided: Iterable[tuple[int, int]], queue: list[int]) -> None:
        back, target, waiting = self.plan.back, self.plan.target, self.waiting
        for edge, verdict in decided:
            self.verdict[edge] = verdict
            self.used[edge] = self.kept[edge] = 0
            if not back[edge]:
                node = target[edge]
                waiting[node] -= 1
                if not waiting[node]:
                    queue.append(node)

    def _count_down(self, nodes: Sequence[int], queue: list[int]) -> None:
        for node in nodes:
            self.waiting[node] -= 1
            if not self.waiting[node]:
                queue.append(node)

    def _joins(self, node: int) -> bool:
        """Whether the join of a node holds, all that it waits for being settled."""
        verdicts, kept = self.verdict, self.kept
        counted = live = new = failed = 0
        for edge in self.plan.arriving[node]:
            verdict = verdicts[edge]
            if verdict == LIVE:
                live += 1
                if not kept[edge]:
                    new = 1
            elif verdict == FALSE:
                failed = 1
            elif verdict == DEAD:
                counted = 1
            # the rest is from nodes that were not opened in this run
        if not new:
            return not (counted or live or failed)
        join = self.plan.nodes[node].join
        return join == "any" or (not failed if join == "all" else live >= join)

    def take(self, node: int, window: Window) -> None:
        """Put a node into the next layer, with its input and history of this moment."""
        self.taken[node] = Step(node, self.passes[node], self._input_of(node), window)

    def _input_of(self, node: int) -> Any:
        if node in self.given:
            return self.given[node]
        verdict, source = self.verdict, self.plan.source
        live: list[int] = []
        for edge in self.plan.arriving[node]:
            if verdict[edge] == LIVE:
                live.append(source[edge])
        if not live:
            return self.input
        if len(live) == 1:
            return self.outputs[live[0]]
        return {self.plan.names[s]: self.outputs[s] for s in live}

    def reach(self, nodes: Iterable[int]) -> set[int]:
        """Return what the nodes reach along forward edges and dependencies; themselves only where another of them reaches them."""
        out, target, back, dependents = self.plan.out, self.plan.target, self.plan.back, self.plan.dependents
        queue = list(nodes)
        found: set[int] = set()
        for node in queue:
            for edge in out[node]:
                other = target[edge]
                if other not in found and not back[edge]:
                    found.add(other)
                    queue.append(other)
            for other in dependents[node]:
                if other not in found:
                    found.add(other)
                    queue.append(other)
        return found

    def open(self, openings: Sequence[Opening], standing: dict[int, Any]) -> list[int]:
        """Open targets together with all that they reach; return those that start now, whose `take` is the caller's.

        `standing` is the history: entries of what is opened again are dropped.
        """
        brought: dict[int, Any] = {}
        for target, handed, jump in openings:  # of jumps the last input counts, then of back edges the first
            brought[target] = handed if jump else brought.get(target, handed)
        jumps = {o.target for o in openings if o.jump}
        later = self.reach(brought)
        if self.taken:
            self._take_back(jumps, brought)
        self._reopen(later.union(brought), standing)
        starting: list[int] = []
        for target, handed in brought.items():
            waits = target in later
            if waits:
                self.held.add(target)
            if handed is not ABSENT and (target in jumps or not waits):
                self.given[target] = handed
            if not waits:
                starting.append(target)
        return starting

    def _take_back(self, jumps: set[int], brought: Iterable[int]) -> None:
        """A jump takes back what is ready in its reach, a back edge its target alone."""
        for node in self.reach(jumps).union(brought):  # of which the jumps are a part
            self.taken.pop(node, None)
        for step in self.taken.values():
            step.window.entries()  # what remains keeps the history of its own moment
            for edge in self.plan.arriving[step.node]:
                if self.verdict[edge]:
                    self.used[edge] = 1

    def _reopen(self, nodes: set[int], standing: dict[int, Any]) -> None:
        plan, status, verdict, passes = self.plan, self.status, self.verdict, self.passes
        out, arriving, depends, source = plan.out, plan.arriving, plan.depends, plan.source
        for node in nodes:
            if passes[node]:
                standing.pop(node, None)
                self.outputs.pop(node, None)
                if status[node] != PENDING or node in self.taken:  # a target that has not started keeps its start and its input
                    self.given.pop(node, None)
                    self.held.discard(node)
                for edge in out[node]:
                    verdict[edge] = UNDECIDED
            passes[node] += 1
            status[node] = PENDING
        for node in nodes:
            count = 0
            for edge in arriving[node]:
                if not verdict[edge]:
                    count += passes[source[edge]] > 0
                elif self.used[edge]:
                    self.kept[edge] = 1
            for on in depends[node]:
                count += status[on] == PENDING
            self.waiting[node] = count
