"""Properties of random runs: they end, wait for nothing, run a pass once, and do not depend on the order of arrival.

A random graph is data drawn by hypothesis; what a body does depends on its node and visit alone. Graphs without jumps and cycles are
also compared with a direct evaluation of the drawing.
"""

import copy
import itertools
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.core.context import View
from engine.core.graph import Edge, Graph, Node
from engine.core.plan import layers
from engine.core.run import Status, StepResult, apply, ready, start
from engine.core.state import Growth, StateDiff, grown, growth, merge, same
from tests.engine.core.trial import Failed, Next, Trial

REDUCERS = {"total": "add", "log": "append", "map": "merge", "tags": "union", "top": "max"}


class Script(NamedTuple):
    """A random graph and what its bodies do."""

    graph: Graph
    acts: dict[str, list[Any]]
    """By node: what each visit does; the last one stands for all later visits."""
    options: dict[str, Any]


@st.composite
def graphs(draw: Any, *, wild: bool) -> Script:
    """A random graph; `wild` ones have back edges, jumps, failures and state."""
    names = [f"n{i}" for i in range(draw(st.integers(2, 7)))]
    verdicts = st.lists(st.booleans(), min_size=1, max_size=3)
    graph = Graph(allow_cycles=wild)
    pairs = list(itertools.combinations(names, 2))
    drawn = draw(st.lists(st.sampled_from(pairs), unique=True, min_size=len(names) - 1, max_size=12))
    back = draw(st.lists(st.sampled_from([(t, s) for s, t in pairs] + [(n, n) for n in names]), unique=True, max_size=2)) if wild else []
    arriving = {n: sum(t == n for _, t in drawn) for n in names}
    for name in draw(st.permutations(names)):
        join = draw(st.sampled_from(["any", "any", "all", *range(1, arriving[name] + 1)]))
        graph.add_node(Node(name=name, body=None, join=join))
    for source, target in draw(st.permutations(drawn + back)):
        conditional = draw(st.booleans()) or (source, target) in back
        graph.add_edge(Edge(source, target, condition(draw(verdicts) + [False] * ((source, target) in back)) if conditional else None))
    waits = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2))
    graph.dependencies = [(node, on) for on, node in waits]
    graph.entries = draw(st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=3))
    acts = {name: draw(st.lists(actions(names) if wild else st.just(("value", [])), min_size=1, max_size=3)) for name in names}
    for each in acts.values():
        each.append(("value", []))  # so that jumping ends
    retention = draw(st.sampled_from([0, 2, None]))
    options = {"reducers": REDUCERS, "retention": retention, "max_steps": draw(st.sampled_from([0, 5, 100]))} if wild else {}
    return Script(graph, acts, options)


def condition(verdicts: list[bool]):
    """A condition that answers with each verdict in turn, then with the last one."""
    left = iter(verdicts)
    return lambda _: next(left, verdicts[-1])


def actions(names: list[str]) -> Any:
    """What one visit of a body does: a kind, and operations on the state."""
    names_of = ["plain", "log", "total", "map", "tags", "top", "del plain", "del log", "cut log"]
    ops = st.lists(st.sampled_from(names_of), min_size=1, max_size=5)
    sent = st.sampled_from([None, 0, "sent", Next.none])
    jump = st.tuples(st.just("jump"), ops, st.sampled_from(names), sent)
    return st.one_of(st.tuples(st.sampled_from(["value", "value", "skip"]), ops), jump)


class Bodies:
    """Performs a script."""

    def __init__(self, script: Script, trial: Trial) -> None:
        self.script, self.trial = script, trial
        self.visits = dict.fromkeys(script.acts, 0)

    def __call__(self, name: str, given: Any) -> Any:
        acts, visit = self.script.acts[name], self.visits[name]
        self.visits[name] += 1
        kind, ops, *jump = acts[min(visit, len(acts) - 1)]
        if kind == "skip":
            return Failed(ValueError("skipped"), skip=True)
        view = View(self.trial.run.state, copy.deepcopy)
        mark = f"{name}.{visit}"
        for op in ops:
            perform(op, view, mark)
        diff = view.diff(self.trial.run.version)
        node = self.trial.plan.index[name]
        output = None if jump else [name, visit, len(repr(given))]
        return StepResult(node, "success", output, [(name, diff)] if diff.written or diff.deleted else [], Next(*jump) if jump else None)


def perform(op: str, view: View, mark: str) -> None:
    match op.split():
        case ["total"] | ["top"]:
            view[op] = view.get(op, 0) + len(mark)
        case ["log"]:
            view.setdefault("log", []).append(mark)
        case ["map"]:
            view.setdefault("map", {})[mark] = [mark]
        case ["tags"]:
            view.setdefault("tags", set()).add(mark)
        case ["plain"]:
            view["plain"] = mark
        case ["del", key]:
            view.pop(key, None)
        case ["cut", key] if view.get(key):
            view[key].pop()


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(graphs(wild=True))
def test_a_random_run_ends_and_keeps_every_invariant_in_every_order(script):
    assume(all(p.warning for p in script.graph.problems()))
    trial = Trial(script.graph, **script.options)
    trial.go(Bodies(script, trial), limit=2000)
    trial.check_order_of_arrival()
    run = trial.run
    assert run.status in (Status.COMPLETED, Status.FAILED)
    if run.status is Status.FAILED:
        assert type(run.error).__name__ in ("StepLimitReached", "StateConflict")
    assert len(trial.asked) == len(set(trial.asked)), "a condition was asked twice in a pass"
    ran = set(trial.ran)
    assert all((text.split(">")[0], at) in ran for text, at in trial.asked), "a condition of a step that did not run was asked"
    assert len(trial.ran) <= len(script.acts) * (1 + run.openings)
    if run.status is Status.COMPLETED:
        assert set(script.graph.entries) <= {name for name, _ in trial.ran}
    retention = script.options["retention"]
    assert retention is None or len(run.history()) <= retention


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(graphs(wild=False))
def test_a_drawn_graph_runs_as_its_direct_evaluation_says(script):
    verdicts = {}

    def asked(edge):
        key = edge.source, edge.target
        if key not in verdicts:
            verdicts[key] = edge.condition is None or edge.condition({})
        return verdicts[key]

    graph = copy.copy(script.graph)
    graph.edges = [Edge(e.source, e.target, None if e.condition is None else lambda _, e=e: asked(e)) for e in script.graph.edges]
    trial = Trial(graph).go(lambda name, given: [name, given])
    expected = evaluate(script.graph, asked)
    ran = {name: layer for name, (status, layer, _) in expected.items() if status == "success"}
    assert trial.layers == [[n for n in graph.nodes if ran.get(n) == i] for i in range(1, 1 + max(ran.values()))]
    assert trial.inputs == {name: given for name, (status, _, given) in expected.items() if status == "success"}
    skipped = {r.node for r in trial.run.rows() if r.status == "skipped"}
    assert skipped == {name for name, (status, _, _) in expected.items() if status == "skipped"}
    if not skipped:
        assert [set(layer) for layer in trial.layers] == layers(trial.plan)


def evaluate(graph: Graph, asked: Any) -> dict[str, tuple[str, int, Any]]:
    """Status, layer and input of every node that is opened, straight from the drawing."""
    opened = set(graph.entries)
    arcs = [(e.source, e.target) for e in graph.edges] + [(on, node) for node, on in graph.dependencies]
    while more := {t for s, t in arcs if s in opened} - opened:
        opened |= more
    found: dict[str, tuple[str, int, Any]] = {}

    def visit(name: str) -> tuple[str, int, Any]:
        if name not in found:
            edges = [e for source in graph.nodes for e in graph.edges if (e.source, e.target) == (source, name) and source in opened]
            before = [e.source for e in edges] + [on for node, on in graph.dependencies if node == name and on in opened]
            settled = max((visit(other)[1] for other in before), default=0)
            succeeded = [e for e in edges if visit(e.source)[0] == "success"]
            live = [e.source for e in succeeded if asked(e)]
            join = graph.nodes[name].join
            holds = bool(live) and len(live) == len(succeeded) if join == "all" else len(live) >= (1 if join == "any" else join)
            if holds or name in graph.entries or not edges:
                outputs = {s: [s, visit(s)[2]] for s in live}
                found[name] = "success", settled + 1, outputs[live[0]] if len(live) == 1 else outputs or "in"
            else:
                found[name] = "skipped", settled, None
        return found[name]

    for name in graph.nodes:
        if name in opened:
            visit(name)
    return found


def test_every_order_of_arrival_of_a_small_layer_gives_the_same_run():
    graph = Graph(entries=["a"])
    for name in ("a", "b", "c", "d", "t"):
        graph.add_node(Node(name=name, body=None))
    for name in ("b", "c", "d"):
        graph.add_edge(Edge("a", name))
        graph.add_edge(Edge(name, "t"))
    trial = Trial(graph, reducers={"log": "append"})
    results = [
        StepResult(1, "success", 1, [("b", StateDiff({"log": ["b"], "k": 1}, frozenset()))]),
        StepResult(2, "success", None, [("c", StateDiff({"log": ["c"], "k": 2}, frozenset()))], Next("a", 5)),
        StepResult(3, "success", None, [("d", StateDiff({"log": ["d"]}, frozenset()))], Next("t", 6)),
    ]
    found = []
    for order in itertools.permutations(results):
        run = start(trial.plan, "r", "in")
        ready(trial.plan, run)
        apply(trial.plan, run, [StepResult(0, "success", "a")])
        ready(trial.plan, run)
        apply(trial.plan, run, order)
        found.append((run.snapshot(), run.news))
    assert all(each == found[0] for each in found)
    assert found[0][0]["state"] == {"log": ["b", "c", "d"], "k": 2}


# growth

LEAVES = st.none() | st.integers(-3, 3) | st.booleans() | st.floats() | st.text(max_size=2)
NESTED = st.dictionaries(st.text(max_size=1), LEAVES, max_size=3)
VALUES = st.recursive(LEAVES | NESTED, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
LISTS = st.lists(VALUES, max_size=4)
DICTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)
SETS = st.sets(st.integers(0, 5), max_size=4)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.one_of(*(st.tuples(kind, kind) for kind in (LISTS, DICTS, SETS))), st.booleans())
def test_a_growth_over_its_base_is_the_value_it_was_made_of(pair, extend):
    base, value = pair
    if extend:
        value = base + value if isinstance(base, list) else base | value
    found = growth(base, copy.deepcopy(value))
    assert (found is not None) == (bool(base) and extends(base, value))
    if found is not None:
        assert same(grown(base, found), value)


def extends(base: Any, value: Any) -> bool:
    if isinstance(base, list):
        return same(value[: len(base)], base)
    return set(base) <= set(value)


# reducers


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.none() | st.integers(), st.lists(st.integers(), min_size=2, max_size=4))
def test_numbers_combine_by_their_simple_definitions(base, writes):
    state = {} if base is None else {"sum": base, "high": base, "low": base}
    diffs = [(f"n{i}", StateDiff({"sum": w, "high": w, "low": w}, frozenset())) for i, w in enumerate(writes)]
    found = merge(state, diffs, {"sum": "add", "high": "max", "low": "min"}).written
    before = base or 0
    assert found == {"sum": before + sum(w - before for w in writes), "high": max(writes), "low": min(writes)}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.none() | LISTS, st.lists(LISTS, min_size=2, max_size=4))
def test_lists_combine_to_the_base_and_every_tail(base, tails):
    state = {} if base is None else {"k": base}
    found = merge(state, [wrote(i, state, (base or []) + tail) for i, tail in enumerate(tails)], {"k": "append"})
    assert found.misfits == []
    assert same(found.written["k"], (base or []) + [item for tail in tails for item in tail])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.none() | DICTS, st.lists(DICTS, min_size=2, max_size=4))
def test_dicts_combine_to_the_base_and_every_changed_entry(base, parts):
    state = {} if base is None else {"k": base}
    before = base or {}
    found = merge(state, [wrote(i, state, {**before, **part}) for i, part in enumerate(parts)], {"k": "merge"})
    assert found.misfits == []
    changed = {k: v for part in parts for k, v in part.items() if k not in before or not same(before[k], v)}
    assert same(found.written["k"], {**before, **changed})


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.none() | SETS, st.lists(SETS, min_size=2, max_size=4))
def test_sets_combine_to_their_union(base, parts):
    state = {} if base is None else {"k": base}
    before = base or set()
    found = merge(state, [wrote(i, state, before | part) for i, part in enumerate(parts)], {"k": "union"})
    assert found.misfits == []
    assert found.written["k"] == before.union(*parts)


def wrote(i: int, state: dict[str, Any], value: Any) -> tuple[str, StateDiff]:
    view = View(state, copy.deepcopy)
    view["k"] = copy.deepcopy(value)
    return f"n{i}", view.diff()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(DICTS, st.lists(DICTS, min_size=1, max_size=4))
def test_without_reducers_the_last_writer_in_declared_order_wins(base, parts):
    diffs = [(f"n{i}", StateDiff(dict(part), frozenset())) for i, part in enumerate(parts)]
    found = merge(base, diffs, {})
    assert same({**base, **found.written}, {k: v for part in [base, *parts] for k, v in part.items()})
    several = {k for k in "abcd" if sum(k in part for part in parts) > 1}
    assert {c.key for c in found.conflicts} == several
    assert not any(isinstance(v, Growth) for v in found.written.values())
