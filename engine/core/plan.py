"""A graph compiled for running: names become numbers, edges become arrays. Planning 100,000 nodes takes a second, and no recursion."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from engine.core.graph import Edge, Graph, Node, grouped
from engine.core.registry import unknown
from engine.core.team import Strategy, TeamPlan
from engine.errors import UnknownName


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What holds for a whole run."""

    max_steps: int = 100
    """How many openings by jumps and live back edges; each target counts one a layer."""
    retention: int | None = 20
    """How many history entries a body sees; None: all."""
    reducers: Mapping[str, str] = field(default_factory=dict[str, str])
    """State key to a built-in reducer's name or the import path of a custom one."""
    custom: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Import path to the custom reducer itself; opaque to the core."""
    on_conflict: str = "warn"
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A compiled graph. Nodes and edges are numbered in declared order."""

    nodes: tuple[Node, ...]
    names: tuple[str, ...]
    index: dict[str, int]
    edges: tuple[Edge, ...]
    source: list[int]
    target: list[int]
    back: bytearray
    """By edge: whether it goes back."""
    asked: frozenset[int]
    """The edges that have a condition."""
    out: list[tuple[int, ...]]
    """By node: its out-edges, in declared order."""
    arriving: list[tuple[int, ...]]
    """By node: its forward in-edges, in the sources' declared order."""
    depends: list[tuple[int, ...]]
    """By node: the nodes it waits for."""
    dependents: list[tuple[int, ...]]
    """By node: the nodes that wait for it."""
    entries: tuple[int, ...]
    simple: bytearray
    """By node: whether a step of it is just one call, without a policy that could make it more."""
    options: Options

    memo: dict[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)
    """What was worked out about the plan before: it never changes, and is started again and again."""

    def holds(self, name: object) -> bool:
        """Tell whether something is the name of a node."""
        return isinstance(name, str) and name in self.index

    def step_after(self, node: int) -> int | None:
        """Return the node that alone follows a node, with certainty, if its body gives a plain answer; None where that depends on more."""
        out = self.out[node]
        if len(out) != 1 or self.dependents[node]:
            return None
        edge = out[0]
        target = self.target[edge]
        if self.back[edge] or edge in self.asked or len(self.arriving[target]) != 1 or self.depends[target]:
            return None
        return target


def compile_plan(graph: Graph, options: Options) -> Plan:
    """Compile a graph that has no problems."""
    source, target, out = arcs = graph.arcs()
    back, _ = graph.back_edges(arcs)
    index = {name: i for i, name in enumerate(graph.nodes)}
    forward = [edge for edges in out for edge in edges if not back[edge]]
    waits = dict.fromkeys(graph.dependencies)
    node, on = [index[node] for node, _ in waits], [index[on] for _, on in waits]
    return Plan(
        nodes=tuple(graph.nodes.values()),
        names=tuple(graph.nodes),
        index=index,
        edges=tuple(graph.edges),
        source=source,
        target=target,
        back=back,
        asked=frozenset(number for number, edge in enumerate(graph.edges) if edge.condition is not None),
        out=out,
        arriving=grouped(forward, [target[edge] for edge in forward], len(index)),
        depends=grouped(on, node, len(index)),
        dependents=grouped(node, on, len(index)),
        entries=tuple(sorted({index[name] for name in graph.entries})),
        simple=bytearray(n.kind == "step" and n.policy.plain and not isinstance(n.body, (Plan, TeamPlan)) for n in graph.nodes.values()),
        options=options,
    )


def find_node(plan: Plan, name: str, what: str = "Node") -> int:
    """Return the number of a node. Raises: UnknownName (a ValueError) with the nearest names."""
    if name not in plan.index:
        raise UnknownName(unknown(what, name, plan.names), where=name)
    return plan.index[name]


def layers(plan: Plan, start: str | None = None) -> list[set[str]]:
    """Return the layers in which the part that is reachable from the entries (or from `start`) runs when every condition holds."""
    roots = plan.entries if start is None else (find_node(plan, start, "Start node"),)
    reached = bytearray(len(plan.nodes))
    queue = list(roots)
    for node in queue:
        reached[node] = 1
    for node in queue:
        for other in _following(plan, node):
            if not reached[other]:
                reached[other] = 1
                queue.append(other)
    waits = [0] * len(plan.nodes)
    for node in queue:
        for other in _following(plan, node):
            waits[other] += 1
    layer = sorted(node for node in queue if not waits[node])
    found: list[set[str]] = []
    while layer:
        found.append({plan.names[node] for node in layer})
        following: list[int] = []
        for node in layer:
            for other in _following(plan, node):
                waits[other] -= 1
                if not waits[other]:
                    following.append(other)
        layer = following
    return found


def _following(plan: Plan, node: int) -> list[int]:
    return [*(plan.target[e] for e in plan.out[node] if not plan.back[e]), *plan.dependents[node]]


def fingerprints(plan: Plan) -> dict[str, str]:
    """Return a short hash for each node, of its name, in-edges, join, dependencies and inner workflow: what a recorded run leans on.

    Two plans agree on a node exactly when it was neither removed nor rewired. Code is not part of it.
    """
    incoming: list[list[tuple[str, bool]]] = [[] for _ in plan.nodes]
    for number, edge in enumerate(plan.edges):
        incoming[plan.target[number]].append((edge.source, edge.condition is not None))
    entries = set(plan.entries)
    found: dict[str, str] = {}
    for i, node in enumerate(plan.nodes):
        inner = _inner_shape(node.body)
        waits = sorted(plan.names[d] for d in plan.depends[i])
        shape = (node.name, node.kind, node.over, str(node.join), incoming[i], waits, i in entries, inner)
        found[node.name] = hashlib.blake2b(repr(shape).encode(), digest_size=6).hexdigest()
    return found


def _terms(team: TeamPlan) -> str:
    """Return how a team is performed, and the teams in it."""
    members = [(repr(m.policy), _terms(m.body) if isinstance(m.body, TeamPlan) else "") for m in team.members]
    return repr((team.strategy.stagger, team.width, team.timeout, members))


def _inner_shape(body: Any) -> Any:
    if isinstance(body, TeamPlan):
        return body.shape(), [_inner_shape(member.body) for member in body.members]
    return fingerprints(body) if isinstance(body, Plan) else None


def definition_hash(plan: Plan) -> str:
    """Return a hash of names, edges, joins, policies and what settles teams; a mended body does not change it."""
    if "hash" in plan.memo:
        return plan.memo["hash"]
    policies = [repr(node.policy) for node in plan.nodes]
    policies += [_terms(node.body) for node in plan.nodes if isinstance(node.body, TeamPlan)]
    edges = [(e.source, e.target, e.condition is not None) for e in plan.edges]
    entries = [plan.names[e] for e in plan.entries]
    text = repr((fingerprints(plan), policies, edges, entries))
    found = plan.memo["hash"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return found


def to_data(plan: Plan) -> dict[str, Any]:
    """Return the shape of a plan as plain data: enough to replay a recorded run without its code."""
    return {
        "nodes": [[n.name, n.kind, n.join, n.over, _inner_data(n.body)] for n in plan.nodes],
        "edges": [[plan.source[i], plan.target[i], edge.condition is not None] for i, edge in enumerate(plan.edges)],
        "depends": [[node, on] for node, waits in enumerate(plan.depends) for on in waits],
        "entries": list(plan.entries),
        "max_steps": plan.options.max_steps,
        "retention": plan.options.retention,
        "reducers": dict(plan.options.reducers),
        "on_conflict": plan.options.on_conflict,
    }


def from_data(data: Mapping[str, Any]) -> Plan:
    """Return a plan without bodies; conditions are marks that say that there is one."""
    graph = Graph(allow_cycles=True)
    for name, kind, join, over, inner in data["nodes"]:
        graph.nodes[name] = Node(name=name, kind=kind, join=join, over=over, body=_inner_from(inner))
    names = list(graph.nodes)
    for source, target, conditional in cast("list[tuple[int, int, bool]]", data["edges"]):
        graph.edges.append(Edge(names[source], names[target], _recorded if conditional else None))
    graph.dependencies = [(names[node], names[on]) for node, on in data["depends"]]
    graph.entries = [names[e] for e in data["entries"]]
    options = Options(
        max_steps=data["max_steps"], retention=data["retention"], reducers=dict(data["reducers"]), on_conflict=data["on_conflict"]
    )
    return compile_plan(graph, options)


def shapes_of(shapes: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Return what `to_data` gave of a node's workflow or team, of those shapes of a plan that have one there."""
    return [node[4] for shape in shapes for node in shape["nodes"] if node[0] == name and node[4] is not None]


def _inner_data(body: Any) -> dict[str, Any] | None:
    if isinstance(body, TeamPlan):
        members = [[member.name, _inner_data(member.body)] for member in body.members]
        pick = body.strategy.pick
        strategy = {"need": body.strategy.need, "stagger": body.strategy.stagger, "pick": "judge" if callable(pick) else pick}
        return {"team": body.name, "members": members, **strategy}
    return to_data(body) if isinstance(body, Plan) else None


def _inner_from(data: Mapping[str, Any] | None) -> Any:
    if data is None:
        return None
    if "team" not in data:
        return from_data(data)
    pick = _recorded if data["pick"] == "judge" else data["pick"]
    strategy = Strategy(data["need"], data.get("stagger", 0.0), pick)  # runs of earlier versions do not say it
    members = tuple(Node(name=name, body=_inner_from(inner)) for name, inner in data["members"])
    return TeamPlan(name=data["team"], members=members, strategy=strategy)


def _recorded(*_: Any) -> bool:
    raise LookupError("the conditions and judges of a recorded run are not asked again")


def rewired(before: Plan, after: Plan) -> list[str]:
    """Return the names of the nodes that a recorded plan has and the present one has not, or has wired otherwise."""
    present = fingerprints(after)
    return [name for name, mark in fingerprints(before).items() if present.get(name) != mark]
