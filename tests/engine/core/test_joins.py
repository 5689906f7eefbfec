"""Edges, conditions, joins, dependencies and skips, without anything that opens a node again."""

import pytest

from tests.engine.core.trial import Failed, Next, always, draw, is_set, never, outcome

DIAMOND = ("A>B>D", "A>C>D")


def broken(_):
    raise ZeroDivisionError("no verdict")


def test_a_chain_runs_one_node_a_layer(trial):
    run = trial(draw("A>B>C")).go()
    assert run.layers == [["A"], ["B"], ["C"]]
    assert outcome(run) == {"status": "completed", "output": "c", "history": {"A": "a", "B": "b", "C": "c"}, "state": {}}


def test_a_layer_is_all_that_is_ready_in_declared_order(trial):
    run = trial(draw("A>C", "A>B", nodes="A B C")).go()
    assert run.layers == [["A"], ["B", "C"]]


def test_a_node_runs_when_every_predecessor_has_settled(trial):
    run = trial(draw("A>B>C>E", "A>D>E")).go()
    assert run.layers == [["A"], ["B", "D"], ["C"], ["E"]]


def test_all_entries_start_together_and_are_given_the_runs_input(trial):
    run = trial(draw("A>C", "B>C", entries="B A"), 5)
    assert run.ready() == ["A", "B"]
    run.settle()
    assert run.inputs == {"A": 5, "B": 5}


def test_an_entry_behind_another_waits_as_drawn_and_then_runs_whatever_its_join_says(trial):
    run = trial(draw("A>B", entries="A B", when={"A>B": never})).go()
    assert run.layers == [["A"], ["B"]]
    assert run.inputs["B"] == "in"


def test_a_dead_edge_skips_its_target_and_skipping_propagates_at_once(trial):
    run = trial(draw("A>B>C>D", when={"A>B": never})).go()
    assert run.layers == [["A"]]
    assert outcome(run) == {"status": "completed", "output": "a", "history": {"A": "a"}, "state": {}}
    assert [(r.node, r.status) for r in run.run.rows()] == [("A", "success"), ("B", "skipped"), ("C", "skipped"), ("D", "skipped")]


def test_rows_of_skips_follow_those_of_their_layer_in_declared_order(trial):
    run = trial(draw("A>D", "A>B", "A>C", nodes="D A C B", entries="A", when={"A>B": never, "A>D": never})).settle()
    assert [r.node for r in run.run.rows()] == ["A", "D", "B"]
    assert run.ready() == ["C"]


@pytest.mark.parametrize(
    ("join", "live", "runs"),
    [
        ("any", "", False),
        ("any", "A", True),
        ("any", "ABC", True),
        ("all", "", False),
        ("all", "AB", False),
        ("all", "ABC", True),
        (1, "", False),
        (1, "B", True),
        (2, "B", False),
        (2, "BC", True),
        (3, "AB", False),
        (3, "ABC", True),
    ],
)
def test_a_join_counts_live_edges(trial, join, live, runs):
    when = {f"{s}>D": always if s in live else never for s in "ABC"}
    run = trial(draw("A>D", "B>D", "C>D", entries="A B C", joins={"D": join}, when=when)).go()
    assert run.layers[1:] == [["D"]] * runs


def test_join_all_passes_over_edges_whose_source_was_skipped(trial):
    run = trial(draw(*DIAMOND, joins={"D": "all"}, when={"A>B": never})).go()
    assert run.layers == [["A"], ["C"], ["D"]]
    assert run.inputs["D"] == "c"


def test_join_all_of_skipped_sources_alone_skips(trial):
    run = trial(draw(*DIAMOND, joins={"D": "all"}, when={"A>B": never, "A>C": never})).go()
    assert run.layers == [["A"]]


def test_join_all_passes_over_edges_whose_source_jumped(trial):
    run = trial(draw("A>D", "B>D", nodes="A B D X", entries="A B", joins={"D": "all"})).settle(A=Next("X"))
    assert run.ready() == ["D", "X"]
    run.go()
    assert run.inputs["D"] == "b"


def test_a_count_above_the_counted_edges_skips(trial):
    run = trial(draw("A>C", "B>C", entries="A", joins={"C": 2})).go()
    assert run.layers == [["A"]]


def test_edges_from_nodes_that_no_entry_reaches_are_neither_waited_for_nor_counted(trial):
    run = trial(draw("A>C", "B>C", entries="A", joins={"C": "all"})).go()
    assert run.layers == [["A"], ["C"]]
    assert run.inputs["C"] == "a"


def test_a_start_node_leaves_what_lies_before_it_uncounted(trial):
    run = trial(draw(*DIAMOND, joins={"D": "all"}), start_node="B").go()
    assert run.layers == [["B"], ["D"]]
    assert run.inputs == {"B": "in", "D": "b"}


def test_a_condition_is_asked_once_after_its_source_settled_on_merged_state(trial):
    seen = []
    run = trial(draw("A>B", "A>C", when={"A>B": lambda state: seen.append(dict(state)) or state["n"] > 1, "A>C": is_set("n")}))
    run.settle(A=Next("A", update_state={"n": 1})).settle(A=Next("A", update_state={"n": 2}))
    assert run.asked == []
    run.settle(A="a").go()
    assert run.asked == [("A>B", 3), ("A>C", 3)]
    assert seen == [{"n": 2}]
    assert run.layers[-1] == ["B", "C"]


def test_a_condition_sees_its_sources_output_with_history_and_last_output_up_to_date(trial):
    run = trial(draw("A>B>C", when={"A>B": always, "B>C": always})).go()
    assert run.told == [("a", {"A": "a"}, "a"), ("b", {"A": "a", "B": "b"}, "b")]


def test_a_verdict_is_told_with_source_and_target(trial):
    run = trial(draw("A>B", "A>C", when={"A>B": always, "A>C": never})).settle()
    assert [n for n in run.news if n[0] == "condition_decided"] == [
        ("condition_decided", {"source": "A", "target": "B", "verdict": True, "late": False}),
        ("condition_decided", {"source": "A", "target": "C", "verdict": False, "late": False}),
    ]
    assert ("step_skipped", {}) in run.news


def test_any_true_value_is_a_live_edge(trial):
    run = trial(draw("A>B", "A>C", when={"A>B": lambda _: [0], "A>C": lambda _: []})).go()
    assert run.layers == [["A"], ["B"]]


def test_a_condition_that_raises_counts_as_false_and_is_told(trial):
    run = trial(draw("A>B", when={"A>B": broken})).go()
    assert run.layers == [["A"]]
    assert run.news[0] == ("condition_failed", {"source": "A", "target": "B", "error": "ZeroDivisionError: no verdict"})
    assert run.news[1] == ("condition_decided", {"source": "A", "target": "B", "verdict": False, "late": False})


def test_a_failed_condition_counts_as_false_for_join_all(trial):
    run = trial(draw("A>C", "B>C", entries="A B", joins={"C": "all"}, when={"A>C": broken})).go()
    assert run.layers == [["A", "B"]]


def test_a_late_verdict_has_no_effect_in_that_pass(trial):
    run = trial(draw("S>A", "S>B>T", nodes="S A B T U", when={"B>T": always}))
    run.settle()
    run.settle(A=Next("T"))
    assert run.ready() == ["T"]
    run.settle().go()
    assert run.ran.count(("T", 2)) == 1
    assert [n for n, _ in run.ran].count("T") == 1


def test_a_late_verdict_is_told_as_late(trial):
    run = trial(draw("S>A", "S>M>B>T", nodes="S A M B T", when={"B>T": always}))
    run.settle().settle(A=Next("T")).settle()
    assert run.layers[-1] == ["B", "T"]
    assert [d["late"] for k, d in run.news if k == "condition_decided"] == [True]
    run.go()
    assert [n for n, _ in run.ran].count("T") == 1


# inputs and last output


def test_the_input_is_the_output_of_the_one_live_source(trial):
    run = trial(draw(*DIAMOND, when={"A>B": never})).go()
    assert run.inputs == {"A": "in", "C": "a", "D": "c"}


def test_several_live_sources_give_a_dict_in_declared_order(trial):
    run = trial(draw("A>C>D", "A>B>D", nodes="A B C D")).go()
    assert list(run.inputs["D"].items()) == [("B", "b"), ("C", "c")]


def test_last_output_is_bare_for_one_node_and_a_dict_in_declared_order_for_several(trial):
    run = trial(draw("A>C", "A>B", nodes="A B C")).settle()
    assert run.run.last == "a"
    run.settle()
    assert list(run.run.last.items()) == [("B", "b"), ("C", "c")]


def test_last_output_of_a_run_that_did_nothing_yet_is_its_input(trial):
    run = trial(draw("A"), 7)
    assert run.run.last == 7
    assert run.run.window().last == 7
    run.go()


def test_skipped_nodes_do_not_count_in_last_output(trial):
    run = trial(draw("A>B", "A>C>D", when={"A>B": never})).settle().settle()
    assert run.run.last == "c"
    run.settle(D=Failed(ValueError("x"), skip=True))
    assert run.run.last == "c"


# a failure that the policy skips


def test_a_step_skipped_over_its_error_counts_as_successful_and_hands_on_none(trial):
    run = trial(draw("A>B>C", joins={"C": "all"}, when={"B>C": always})).settle()
    run.settle(B=Failed(ValueError("no"), skip=True))
    assert run.ready() == ["C"]
    run.settle()
    assert run.inputs["C"] is None
    assert [(r.node, r.status, r.error) for r in run.run.rows()] == [("A", "success", None), ("B", "skipped", "no"), ("C", "success", None)]
    assert list(run.run.history()) == ["A", "C"]


# dependencies


def test_a_dependency_is_waited_for_and_feeds_no_input(trial):
    run = trial(draw("A>B>C", "A>D", waits=["D<C"])).go()
    assert run.layers == [["A"], ["B"], ["C"], ["D"]]
    assert run.inputs["D"] == "a"


def test_a_dependency_is_counted_in_no_join(trial):
    run = trial(draw("A>B", "A>C", joins={"C": "all"}, when={"A>B": never, "A>C": never}, waits=["C<B"])).go()
    assert run.layers == [["A"]]


def test_a_node_without_counted_edges_runs_when_its_dependencies_settled(trial):
    run = trial(draw("A>B", nodes="A B C", when={"A>B": never}, waits=["C<B"])).go()
    assert run.layers == [["A"], ["C"]]
    assert run.inputs["C"] == "in"


def test_reach_follows_dependencies(trial):
    run = trial(draw("A", nodes="A B C", waits=["B<A", "C<B"])).go()
    assert run.layers == [["A"], ["B"], ["C"]]


def test_a_dependency_on_a_node_that_was_not_opened_is_not_waited_for(trial):
    run = trial(draw("A>B", nodes="A B C", waits=["B<C"])).go()
    assert run.layers == [["A"], ["B"]]


def test_a_dependency_named_twice_is_waited_for_once(trial):
    run = trial(draw("A>C", "A>B", waits=["C<B", "C<B"])).go()
    assert run.layers == [["A"], ["B"], ["C"]]
