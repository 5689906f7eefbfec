"""Layers, the compiled graph, its hashes, and its shape as data. Depth costs neither stack nor patience."""

import pytest

from engine.core.graph import Edge, Graph, Node
from engine.core.plan import (
    Options,
    compile_plan,
    definition_hash,
    find_node,
    fingerprints,
    from_data,
    layers,
    rewired,
    to_data,
)
from engine.core.policy import Policy, Retry
from tests.engine.core.trial import Trial, always, draw, plan_of

DEEP = 100_000


def test_layers_are_those_of_a_run_whose_conditions_all_hold():
    graph = draw("A>B>D", "A>C>E>D", waits=["B<E"])
    run = Trial(graph).go()
    assert layers(plan_of(graph)) == [set(layer) for layer in run.layers] == [{"A"}, {"C"}, {"E"}, {"B"}, {"D"}]


def test_layers_from_a_start_node_leave_out_the_rest():
    plan = plan_of(draw("A>B>D", "A>C>D"))
    assert layers(plan, "B") == [{"B"}, {"D"}]


def test_layers_pass_over_back_edges_and_what_no_entry_reaches():
    assert layers(plan_of(draw("A>B>A", "X>B", entries="A", cycles=True))) == [{"A"}, {"B"}]


def test_an_entry_inside_anothers_reach_is_layered_where_it_is_drawn():
    assert layers(plan_of(draw("A>B>C", entries="A C"))) == [{"A"}, {"B"}, {"C"}]


def test_layers_from_an_unknown_node_say_which_is_near():
    with pytest.raises(ValueError, match="Start node 'strat' not found; did you mean 'start'"):
        layers(plan_of(draw("start>end")), "strat")


def test_a_node_is_found_by_its_name():
    plan = plan_of(draw("A>B"))
    assert find_node(plan, "B") == 1
    with pytest.raises(ValueError, match="Node 'C' not found; there are 'A', 'B'"):
        find_node(plan, "C")


def chain(n):
    graph = Graph(entries=["n0"])
    for i in range(n):
        graph.add_node(Node(name=f"n{i}", body=None))
    for i in range(n - 1):
        graph.add_edge(Edge(f"n{i}", f"n{i + 1}"))
    return graph


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_hundred_thousand_chained_nodes_plan_in_seconds():
    graph = chain(DEEP)
    assert graph.problems() == []
    found = layers(compile_plan(graph, Options()))
    assert (len(found), found[0], found[-1]) == (DEEP, {"n0"}, {f"n{DEEP - 1}"})


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_loop_of_a_hundred_thousand_nodes_is_found_without_recursion():
    graph = chain(DEEP)
    graph.add_edge(Edge(f"n{DEEP - 1}", "n0"))
    (problem,) = graph.problems()
    assert problem.kind == "cycle"
    assert problem.text.endswith(f"n{DEEP - 1} -> n0; draw it with allow_cycles=True, or jump with Next")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_circle_of_dependencies_through_a_long_chain_is_found():
    graph = chain(DEEP)
    graph.dependencies = [("n0", f"n{DEEP - 1}")]
    (problem,) = graph.problems()
    assert problem.kind == "dependency_cycle"
    assert f"-> ... ({DEEP - 23} more) ->" in problem.text


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_skipping_propagates_along_a_hundred_thousand_nodes_at_once():
    graph = chain(DEEP)
    graph.edges[0] = Edge("n0", "n1", lambda _: False)
    run = Trial(graph)
    run.settle()
    assert run.run.status == "completed"
    assert run.run.rows()[-1].node == f"n{DEEP - 1}"


# a straight run


def test_step_after_is_the_node_that_alone_follows_with_certainty():
    plan = plan_of(draw("A>B>C"))
    assert [plan.step_after(n) for n in range(3)] == [1, 2, None]


@pytest.mark.parametrize(
    "graph",
    [
        draw("A>B", "A>C"),
        draw("A>B", when={"A>B": always}),
        draw("A>B", "C>B", entries="A C"),
        draw("A>B", nodes="A B C", waits=["C<A"]),
        draw("A>B", nodes="A B C", entries="A C", waits=["B<C"]),
        draw("A>A", cycles=True),
    ],
)
def test_step_after_is_none_where_it_depends_on_more(graph):
    assert plan_of(graph).step_after(0) is None


# hashes


def test_the_definition_hash_covers_names_edges_joins_entries_and_policies():
    def of(graph):
        return definition_hash(plan_of(graph))

    base = of(draw("A>B>C"))
    retried = draw("A>B>C")
    retried.nodes["B"] = Node(name="B", body=None, policy=Policy(retry=Retry(2)))
    others = [
        draw("A>B>D"),
        draw("A>B", "A>C"),
        draw("A>B>C", joins={"C": "all"}),
        draw("A>B>C", entries="B"),
        draw("A>B>C", waits=["C<A"]),
        draw("A>B>C", when={"A>B": always}),
        retried,
    ]
    assert len({base, *map(of, others)}) == 1 + len(others)
    assert of(draw("A>B>C")) == base


def test_the_definition_hash_does_not_cover_code():
    one, other = draw("A>B", when={"A>B": always}), draw("A>B", when={"A>B": bool})
    other.nodes["A"] = Node(name="A", body=print)
    assert definition_hash(plan_of(one)) == definition_hash(plan_of(other))


def test_the_definition_hash_of_a_plan_is_worked_out_once():
    plan = plan_of(draw("A>B"))
    found = definition_hash(plan)
    assert definition_hash(plan) is found


def test_a_node_that_is_gone_or_rewired_is_named():
    before = plan_of(draw("A>B>C>D"))
    assert rewired(before, plan_of(draw("A>B>C>D>E"))) == []
    assert rewired(before, plan_of(draw("A>B>C"))) == ["D"]
    assert rewired(before, plan_of(draw("A>B>C", "A>D"))) == ["D"]
    assert rewired(before, plan_of(draw("A>B>C>D", joins={"C": "all"}))) == ["C"]
    assert rewired(before, plan_of(draw("A>B>C>D", waits=["D<A"]))) == ["D"]


# as data


def test_a_plan_survives_as_data_without_its_code():
    inner = plan_of(draw("x>y"))
    graph = draw("A>B>A", "B>C", "A>C", joins={"C": "all"}, when={"B>A": always}, waits=["C<A"], cycles=True)
    graph.nodes["B"] = Node(name="B", body=inner, kind="workflow")
    graph.nodes["C"] = Node(name="C", body=print, kind="map", over="items", join="all")
    plan = plan_of(graph, max_steps=7, retention=None, reducers={"k": "add"}, on_conflict="error")
    there = from_data(to_data(plan))
    assert to_data(there) == to_data(plan)
    assert (there.names, there.source, there.target, there.back) == (plan.names, plan.source, plan.target, plan.back)
    assert (there.arriving, there.depends, there.entries) == (plan.arriving, plan.depends, plan.entries)
    assert fingerprints(there) == fingerprints(plan)
    assert fingerprints(there.nodes[1].body) == fingerprints(inner)
    assert there.options == plan.options


def test_the_condition_of_a_recorded_plan_is_a_mark_that_cannot_be_asked():
    plan = from_data(to_data(plan_of(draw("A>B>C", when={"A>B": always}))))
    assert plan.edges[1].condition is None
    with pytest.raises(LookupError, match="not asked again"):
        plan.edges[0].condition({})
