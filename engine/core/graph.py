"""The shape of a workflow: nodes, edges, dependencies, entries, and every problem that it has. Knows nothing of how a body is called."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple, cast

from engine.core.ids import check_name
from engine.core.policy import Policy
from engine.core.registry import unknown
from engine.errors import DefinitionError, UnknownName

Join = Literal["any", "all"] | int
Kind = Literal["step", "map", "workflow", "member"]

PLAIN: Final = Policy()
"""How a node is performed that says nothing about it."""


class Problem(NamedTuple):
    """Something wrong with a graph; `str()` gives the text."""

    kind: str
    text: str
    where: str = ""
    warning: bool = False
    """A warning stops nothing; `back_edge` is no problem at all, but worth knowing."""

    def __str__(self) -> str:
        return self.text


class Composite:
    """A body that is made of bodies: driven where its run is, with each of them as a step. A Workflow, or a Team."""

    def compiled(self) -> Any:
        """Return what is driven, with the bodies in it."""
        raise NotImplementedError

    def problems(self) -> list[Problem]:
        """Return everything that is wrong with it, warnings too."""
        return []

    def contains(self, other: Any) -> bool:
        """Tell whether something is this, or in it at any depth."""
        return other is self


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A named unit of work: a body plus how it is performed."""

    name: str
    body: Any
    """Opaque to the core."""
    join: Join = "any"
    policy: Policy = PLAIN
    kind: Kind = "step"
    over: str | None = None
    """Of a map: the state key that holds the items; None: the input."""
    width: int | None = None
    """Of a map: how many items at once at most."""


class Edge(NamedTuple):
    """A way from one node to another, taken when its condition holds (None: always)."""

    source: str
    target: str
    condition: Callable[..., Any] | None = None


class Arcs(NamedTuple):
    """The edges of a graph by number, nodes and edges in declared order."""

    source: list[int]
    target: list[int]
    out: list[tuple[int, ...]]
    """By node: the numbers of its out-edges."""


@dataclass(slots=True)
class Graph:
    """A graph under construction. Adding refuses what it can see at once; `problems` finds the rest."""

    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    edges: list[Edge] = field(default_factory=list[Edge])
    dependencies: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(node, what it waits for)."""
    entries: list[str] = field(default_factory=list[str])
    allow_cycles: bool = False

    def add_node(self, node: Node) -> None:
        """Add a node. Raises: DefinitionError for a bad or second name."""
        if wrong := check_name(node.name, "a node's name"):
            raise DefinitionError(wrong, where="name")
        if "[" in node.name:
            raise DefinitionError(f"a node's name {node.name!r} must not contain '['", where=node.name)
        if node.name == "last_output":
            raise DefinitionError("no node may be called 'last_output': history['last_output'] reads the newest output", where=node.name)
        if node.name in self.nodes:
            raise DefinitionError(f"Node {node.name!r} already exists", where=node.name)
        join = cast("object", node.join)
        if join not in ("any", "all") and (not isinstance(join, int) or isinstance(join, bool) or join < 1):
            raise DefinitionError(f"node {node.name!r}: join={join!r} is none of 'any', 'all', a number from 1", where=node.name)
        self.nodes[node.name] = node

    def add_edge(self, edge: Edge) -> None:
        """Add an edge. Raises: UnknownName for an end that is not there, the source first."""
        for end, name in (("Source", edge.source), ("Target", edge.target)):
            self.check_known(f"{end} node", name)
        self.edges.append(edge)

    def check_known(self, what: str, name: object) -> None:
        """Raise UnknownName for what is not the name of a node."""
        if not isinstance(name, str) or name not in self.nodes:
            raise UnknownName(unknown(what, name, self.nodes), where=str(name))

    def arcs(self) -> Arcs:
        """Return the edges by number."""
        index = {name: i for i, name in enumerate(self.nodes)}
        source = [index[e.source] for e in self.edges]
        target = [index[e.target] for e in self.edges]
        return Arcs(source, target, grouped(range(len(source)), source, len(index)))

    def back_edges(self, arcs: Arcs | None = None) -> tuple[bytearray, list[str] | None]:
        """Return which edges go back to a node that reaches their source, and the first loop as node names, closed.

        Depth-first in declared order, from the entries, then from the rest; iterative, so depth costs no stack. `arcs` are those of the
        graph, where they are at hand.
        """
        _, targets, out = arcs or self.arcs()
        names = list(self.nodes)
        back, loop = bytearray(len(targets)), None
        colour = bytearray(len(names))  # 0 not seen, 1 on the path, 2 done
        tried = [0] * len(names)  # how many out-edges of a node were followed: numbers, since iterators would burden the collector
        wanted = set(self.entries)
        for root in [i for i, n in enumerate(names) if n in wanted] + list(range(len(names))):
            if colour[root]:
                continue
            colour[root] = 1
            path = [root]
            while path:
                node = path[-1]
                place = tried[node]
                if place == len(out[node]):
                    colour[node] = 2
                    path.pop()
                    continue
                tried[node] = place + 1
                number = out[node][place]
                target = targets[number]
                if colour[target] == 1:
                    back[number] = 1
                    if loop is None:
                        loop = [names[i] for i in [*path[path.index(target) :], target]]
                elif not colour[target]:
                    colour[target] = 1
                    path.append(target)
        return back, loop

    def problems(self) -> list[Problem]:
        """Return everything that is wrong, each named; notes and warnings last."""
        found = [*self._unknown_names(), *self._duplicates()]
        if not self.entries:
            found.append(Problem("no_entry", "No entry point: call set_entry_point(name)"))
        arcs = self.arcs()
        back, loop = self.back_edges(arcs)
        if loop and not self.allow_cycles:
            text = f"Cycle detected: {_drawn(loop)}; draw it with allow_cycles=True, or jump with Next"
            found.append(Problem("cycle", text, loop[0]))
        if circle := self._waiting_circle(back):
            found.append(Problem("dependency_cycle", f"Cycle detected among edges and dependencies: {_drawn(circle)}", circle[0]))
        found += self._joins(back)
        found += self._unreachable(arcs)
        if self.allow_cycles:
            for number, edge in enumerate(self.edges):
                if back[number]:
                    text = f"{edge.source} -> {edge.target} goes back: never waited for, counted in no join"
                    found.append(Problem("back_edge", text, edge.source, warning=True))
        return found

    def _unknown_names(self) -> Iterable[Problem]:
        for name in self.entries:
            if name not in self.nodes:
                yield Problem("unknown", unknown("Entry point", name, self.nodes), name)
        for node, on in self.dependencies:
            for name in (node, on):
                if name not in self.nodes:
                    yield Problem("unknown", unknown("Dependency node", name, self.nodes), name)
        for node in self.nodes.values():
            fallback = node.policy.fallback
            if node.policy.on_error == "fallback":
                if fallback is None:
                    yield Problem("fallback", f"node {node.name!r}: on_error='fallback' needs fallback=<node name>", node.name)
                elif fallback not in self.nodes:
                    yield Problem("unknown", unknown(f"node {node.name!r}: fallback", fallback, self.nodes), node.name)
                elif self.nodes[fallback].kind == "map":
                    yield Problem("fallback", f"node {node.name!r}: fallback {fallback!r} is a map; only a body can stand in", node.name)
            elif fallback is not None:
                yield Problem("fallback", f"node {node.name!r}: fallback={fallback!r} has no effect without on_error='fallback'", node.name)

    def _known(self) -> list[tuple[str, str]]:
        """The dependencies between nodes that are there; the others are problems of their own."""
        return [(node, on) for node, on in self.dependencies if node in self.nodes and on in self.nodes]

    def _duplicates(self) -> Iterable[Problem]:
        seen: set[tuple[str, str]] = set()
        for edge in self.edges:
            if (edge.source, edge.target) in seen:
                yield Problem("duplicate_edge", f"Duplicate edge {edge.source} -> {edge.target}", edge.source)
            seen.add((edge.source, edge.target))

    def _joins(self, back: bytearray) -> Iterable[Problem]:
        arriving = Counter(edge.target for edge, goes_back in zip(self.edges, back, strict=True) if not goes_back)
        for node in self.nodes.values():
            if isinstance(node.join, int) and node.join > arriving[node.name]:
                text = f"node {node.name!r}: join={node.join} is more than its {arriving[node.name]} edges that are waited for"
                yield Problem("join", text, node.name)

    def _waiting_circle(self, back: bytearray) -> list[str] | None:
        """A loop among forward edges and dependencies, as names, closed."""
        if not self.dependencies:
            return None
        after: dict[str, list[str]] = {name: [] for name in self.nodes}
        waits = dict.fromkeys(self.nodes, 0)
        pairs = [(e.source, e.target) for i, e in enumerate(self.edges) if not back[i]] + [(on, node) for node, on in self._known()]
        for source, target in pairs:
            after[source].append(target)
            waits[target] += 1
        free = [n for n, count in waits.items() if not count]
        for node in free:
            for target in after[node]:
                waits[target] -= 1
                if not waits[target]:
                    free.append(target)
        left = {n for n, count in waits.items() if count}
        if not left:
            return None
        before = {t: s for s, t in pairs if s in left and t in left}
        node = next(n for n in self.nodes if n in left)
        path: dict[str, None] = {}
        while node not in path:
            path[node] = None
            node = before[node]
        behind = list(path)
        return [node, *reversed(behind[behind.index(node) :])]

    def _unreachable(self, arcs: Arcs) -> Iterable[Problem]:
        index = {name: i for i, name in enumerate(self.nodes)}
        waiting: dict[int, list[int]] = {}
        for node, on in self._known():
            waiting.setdefault(index[on], []).append(index[node])
        reached = bytearray(len(index))
        queue = [index[name] for name in self.entries if name in index]
        for node in queue:
            if not reached[node]:
                reached[node] = 1
                queue += [arcs.target[edge] for edge in arcs.out[node]]
                queue += waiting.get(node, ())
        spare = {n.policy.fallback for n in self.nodes.values()}
        lost = [n for i, n in enumerate(self.nodes) if not reached[i] and n not in spare]
        if lost and queue:
            shown = ", ".join(map(repr, lost[:8])) + (", ..." if len(lost) > 8 else "")
            yield Problem("unreachable", f"Unreachable nodes detected: {shown}; only a jump can start them", lost[0], warning=True)


def grouped(members: Sequence[int], groups: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Return the members of each of `count` groups, in their order; `groups` tells for each member where it belongs.

    Tuples of numbers, since the garbage collector lets go of them: with a list for each node, it would dominate a large plan.
    """
    found: list[tuple[int, ...]] = [()] * count
    for group, places in groupby(sorted(range(len(groups)), key=groups.__getitem__), groups.__getitem__):
        found[group] = tuple([members[place] for place in places])
    return found


def _drawn(loop: list[str]) -> str:
    shown = loop if len(loop) <= 24 else [*loop[:12], f"... ({len(loop) - 24} more)", *loop[-12:]]
    return " -> ".join(shown)
