"""What adding refuses at once, and every problem that `problems` finds."""

import pytest

from engine.core.graph import Edge, Graph, Node
from engine.core.policy import Policy
from tests.engine.core.trial import draw


def kinds(graph):
    return [p.kind for p in graph.problems()]


def text_of(graph, kind):
    (problem,) = [p for p in graph.problems() if p.kind == kind]
    return str(problem)


def with_policy(graph, name, **policy):
    node = graph.nodes[name]
    graph.nodes[name] = Node(name=name, body=node.body, join=node.join, kind=node.kind, policy=Policy(**policy))
    return graph


# refused at once


def test_a_second_node_of_a_name_is_refused():
    with pytest.raises(ValueError, match="Node 'A' already exists"):
        draw("A>B").add_node(Node(name="A", body=None))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a/b", "must not contain '/'"),
        ("a[1]", r"must not contain '\['"),
        ("", "is empty"),
        ("..", "is no name"),
        (5, "must be a text, not int"),
    ],
)
def test_a_bad_name_is_refused(name, why):
    with pytest.raises(ValueError, match=why):
        Graph().add_node(Node(name=name, body=None))


def test_no_node_may_be_called_last_output():
    with pytest.raises(ValueError, match="history"):
        Graph().add_node(Node(name="last_output", body=None))


@pytest.mark.parametrize("join", [0, -1, True, False, "some", 1.5, None])
def test_a_join_is_any_all_or_a_number_from_one(join):
    with pytest.raises(ValueError, match="none of 'any', 'all', a number from 1"):
        Graph().add_node(Node(name="A", body=None, join=join))


@pytest.mark.parametrize("join", ["any", "all", 1, 7])
def test_a_join_that_can_be_is_taken(join):
    graph = Graph()
    graph.add_node(Node(name="A", body=None, join=join))
    assert graph.nodes["A"].join == join


def test_an_edge_from_or_to_an_unknown_node_is_refused_source_first():
    graph = draw("fetch>parse")
    with pytest.raises(ValueError, match="Source node 'fetsh' not found; did you mean 'fetch'"):
        graph.add_edge(Edge("fetsh", "nowhere"))
    with pytest.raises(ValueError, match="Target node 'prase' not found; did you mean 'parse'"):
        graph.add_edge(Edge("fetch", "prase"))
    assert len(graph.edges) == 1


# problems


def test_a_sound_graph_has_no_problems():
    assert draw("A>B>D", "A>C>D", joins={"D": "all"}, waits=["C<B"]).problems() == []


def test_a_graph_without_entry_is_a_problem():
    graph = draw("A>B")
    graph.entries = []
    assert text_of(graph, "no_entry") == "No entry point: call set_entry_point(name)"


def test_an_unknown_entry_is_named_with_the_nearest():
    assert text_of(draw("start>end", entries="stat"), "unknown") == "Entry point 'stat' not found; did you mean 'start'?"


def test_both_ends_of_a_dependency_must_be_known():
    assert [str(p) for p in draw("one>two", waits=["tvo<xyz"]).problems()] == [
        "Dependency node 'tvo' not found; did you mean 'two'?",
        "Dependency node 'xyz' not found; there are 'one', 'two'",
    ]


def test_all_problems_that_can_be_seen_are_in_one_list():
    graph = draw("A>B", "A>B", "C>D", joins={"B": 3}, waits=["D<D"])
    assert kinds(graph) == ["duplicate_edge", "dependency_cycle", "join", "unreachable"]


def test_an_unknown_name_hides_only_what_cannot_be_told():
    graph = draw("A>B", "A>B", entries="A Z")
    assert kinds(graph) == ["unknown", "duplicate_edge"]


def test_a_duplicate_edge_is_named():
    assert text_of(draw("A>B", "A>B"), "duplicate_edge") == "Duplicate edge A -> B"


def test_a_cycle_is_a_problem_whose_text_draws_the_loop():
    text = text_of(draw("A>B>C>D>B"), "cycle")
    assert text == "Cycle detected: B -> C -> D -> B; draw it with allow_cycles=True, or jump with Next"


def test_a_loop_to_itself_is_drawn():
    assert "Cycle detected: A -> A;" in text_of(draw("A>A"), "cycle")


def test_an_allowed_cycle_is_a_note_that_says_which_edges_go_back():
    (note,) = draw("A>B>C>B", cycles=True).problems()
    assert (note.kind, note.warning, note.where) == ("back_edge", True, "C")
    assert str(note) == "C -> B goes back: never waited for, counted in no join"


def test_back_edges_are_found_from_the_entries_in_declared_order_then_from_the_rest():
    graph = draw("A>B>A", nodes="A B", entries="B", cycles=True)
    assert list(graph.back_edges()[0]) == [1, 0]
    graph.entries = ["A"]
    assert list(graph.back_edges()[0]) == [0, 1]
    graph = draw("X>Y>X", nodes="A Y X", entries="A", cycles=True)
    assert list(graph.back_edges()[0]) == [1, 0]


def test_edges_and_dependencies_together_must_have_no_loop():
    text = text_of(draw("A>B>C", waits=["B<C"]), "dependency_cycle")
    assert text == "Cycle detected among edges and dependencies: B -> C -> B"
    assert text_of(draw("A>B", waits=["B<B"]), "dependency_cycle").endswith("B -> B")


def test_back_edges_are_no_part_of_a_loop_with_dependencies():
    assert kinds(draw("A>B>A", cycles=True, waits=["B<A"])) == ["back_edge"]


def test_the_drawn_loop_leaves_out_what_only_hangs_on_it():
    graph = draw("A>B>C>D", "C>E", waits=["B<C"], nodes="A D E B C")
    assert text_of(graph, "dependency_cycle").split(": ")[1] in ("B -> C -> B", "C -> B -> C")


def test_a_count_above_the_edges_that_are_waited_for_is_a_problem():
    graph = draw("A>B", "C>B>A", entries="A C", joins={"B": 3}, cycles=True)
    assert text_of(graph, "join") == "node 'B': join=3 is more than its 2 edges that are waited for"
    assert "join" not in kinds(draw("A>B", "C>B", entries="A C", joins={"B": 2}))


def test_unreachable_nodes_are_a_warning():
    (warning,) = draw("A>B", "X>Y").problems()
    assert warning.warning
    assert str(warning) == "Unreachable nodes detected: 'X', 'Y'; only a jump can start them"


def test_many_unreachable_nodes_are_cut_short():
    assert "'n7', ...;" in text_of(draw("A", nodes="A " + " ".join(f"n{i}" for i in range(9))), "unreachable")


def test_reach_follows_dependencies_too():
    assert draw("A", nodes="A B C", waits=["B<A", "C<B"]).problems() == []


def test_a_node_used_only_as_a_fallback_is_not_meant_by_unreachable():
    graph = with_policy(draw("A", nodes="A spare"), "A", on_error="fallback", fallback="spare")
    assert graph.problems() == []


def test_a_fallback_must_be_named_known_and_no_map():
    graph = draw("A>B", nodes="A B spare")
    assert text_of(with_policy(graph, "A", on_error="fallback"), "fallback") == "node 'A': on_error='fallback' needs fallback=<node name>"
    assert text_of(with_policy(graph, "A", on_error="fallback", fallback="sapre"), "unknown") == (
        "node 'A': fallback 'sapre' not found; did you mean 'spare'?"
    )
    graph.nodes["spare"] = Node(name="spare", body=None, kind="map")
    assert "'spare' is a map" in text_of(with_policy(graph, "A", on_error="fallback", fallback="spare"), "fallback")


def test_a_fallback_without_its_policy_has_no_effect_and_is_told():
    graph = with_policy(draw("A", nodes="A spare"), "A", fallback="spare")
    assert text_of(graph, "fallback") == "node 'A': fallback='spare' has no effect without on_error='fallback'"
