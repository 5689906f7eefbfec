"""Opening: jumps, live back edges, what they take back, the order of what happens after a layer, and `Next` itself."""

import copy
import pickle

import pytest

from engine.core.routing import ABSENT, REAL_NONE
from tests.engine.core.trial import Done, Failed, Next, always, draw, is_set, never

LOOP = ("A>B>A", "B>log>end")


def rounds(n):
    """A condition that holds for the first n - 1 times that it is asked."""
    return turns(*[True] * (n - 1))


def turns(*verdicts):
    """A condition that answers with each verdict in turn, then with False."""
    left = iter(verdicts)
    return lambda _: next(left, False)


# jumps


def test_a_jump_opens_its_target_and_all_that_it_reaches(trial):
    run = trial(draw("A>B>C", "A>X", nodes="A X B C")).settle().settle(X=Next("A"))
    assert run.layers == [["A"], ["X", "B"]]
    assert run.run.front.passes == [2, 2, 2, 2]
    run.go()
    assert run.layers == [["A"], ["X", "B"], ["A"], ["X", "B"], ["C"]]


def test_a_jumpers_own_out_edges_are_dead_and_its_siblings_stay(trial):
    run = trial(draw("A>J>D", "A>B>D", nodes="A J B D X", joins={"D": "all"})).settle().settle(J=Next("X"))
    assert run.ready() == ["D", "X"]
    run.go()
    assert run.inputs["D"] == "b"


def test_the_conditions_of_a_jumper_are_not_asked(trial):
    run = trial(draw("A>B", nodes="A B X", when={"A>B": always})).settle(A=Next("X")).go()
    assert run.asked == []
    assert run.layers == [["A"], ["X"]]


def test_a_jump_may_go_to_its_own_node(trial):
    run = trial(draw("A>B")).settle(A=Next("A", 1)).settle(A=Next("A", 2)).go()
    assert run.ran == [("A", 1), ("A", 2), ("A", 3), ("B", 3)]
    assert run.inputs["A"] == 2


def test_a_jump_may_go_to_a_node_that_no_edge_reaches(trial):
    run = trial(draw("A>B", nodes="A B X Y")).settle(A=Next("Y", "far")).go()
    assert run.layers == [["A"], ["Y"]]
    assert run.inputs["Y"] == "far"
    assert run.run.front.passes == [1, 1, 0, 1]


def test_the_target_of_a_jump_starts_without_its_in_edges_and_dependencies(trial):
    run = trial(draw("A>J", "A>B>C>T", waits=["T<C"])).settle().settle(J=Next("T", "now"))
    assert run.ready() == ["C", "T"]
    run.settle()
    assert run.inputs["T"] == "now"
    run.go()
    assert run.ran.count(("T", 2)) == 1
    assert ("T", 1) not in run.ran


def test_the_successors_of_a_jumps_target_run_after_it_as_drawn(trial):
    run = trial(draw("A>J", "T>U>V", nodes="A J T U V")).settle().settle(J=Next("T")).go()
    assert run.layers[2:] == [["T"], ["U"], ["V"]]


def test_a_jump_hands_its_input_to_its_target(trial):
    run = trial(draw("A>T", nodes="A T")).settle(A=Next("T", {"k": 1})).settle()
    assert run.inputs["T"] == {"k": 1}


def test_a_jump_without_input_hands_on_the_jumpers_own_input(trial):
    run = trial(draw("A>B", nodes="A B T")).settle(A="made").settle(B=Next("T")).settle()
    assert run.inputs["T"] == "made"


@pytest.mark.parametrize("real", [0, False, "", []])
def test_falsy_values_are_real_inputs_of_a_jump(trial, real):
    run = trial(draw("A", nodes="A T")).settle(A=Next("T", real)).settle()
    assert run.inputs["T"] == real
    assert type(run.inputs["T"]) is type(real)


def test_next_none_sends_a_real_none(trial):
    run = trial(draw("A", nodes="A T")).settle(A=Next("T", Next.none)).settle()
    assert run.inputs["T"] is None
    assert ("jumped", {"target": "T", "input": None}) in run.news


def test_of_several_jumps_to_one_node_the_last_in_declared_order_brings_the_input(trial):
    run = trial(draw("A>C", "A>B", nodes="A B C T")).settle().settle(B=Next("T", "from B"), C=Next("T", "from C")).settle()
    assert run.inputs["T"] == "from C"
    assert run.ran[-1] == ("T", 1)


def test_all_jumps_of_a_layer_open_their_targets_together(trial):
    run = trial(draw("A>B", "A>C", nodes="A B C S T")).settle().settle(B=Next("T", 1), C=Next("S", 2))
    assert run.ready() == ["S", "T"]
    assert [d for k, d in run.news if k == "jumped"] == [{"target": "T", "input": 1}, {"target": "S", "input": 2}]
    run.go()


def test_update_state_is_the_last_part_of_the_jumpers_diff(trial):
    run = trial(draw("A", nodes="A T")).settle(A=Next("T", update_state={"k": 1})).go()
    assert run.run.state == {"k": 1}


def test_last_output_after_a_jump_is_the_last_jumps_input(trial):
    run = trial(draw("A>B", "A>C", "A>D", nodes="A B C D T")).settle()
    run.settle(B=Next("T", 1), C=Next("T", 2), D="plain")
    assert run.run.last == 2
    run.go()


def test_last_output_is_unchanged_by_a_jump_without_input(trial):
    run = trial(draw("A>B", nodes="A B T")).settle().settle(B=Next("T"))
    assert run.run.last == "a"
    run.go()


def test_last_output_counts_those_that_did_not_jump_beside_a_jump_without_input(trial):
    run = trial(draw("A>B", "A>C", nodes="A B C T")).settle().settle(B=Next("T"))
    assert run.run.last == "c"
    run.go()


def test_a_jumpers_history_entry_is_its_jumps_input_else_the_former_last_output(trial):
    run = trial(draw("A>B", "A>C", nodes="A B C T")).settle().settle(B=Next("T"), C=Next("T", "sent"))
    assert run.run.history() == {"A": "a", "B": "a", "C": "sent"}
    run.go()


def test_a_jumper_without_input_hands_on_its_own_input_and_keeps_the_last_output(trial):
    run = trial(draw("A>B>D", "A>C", nodes="A B C D T")).settle().settle().settle(D=Next("T"))
    assert run.run.history()["D"] == {"B": "b", "C": "c"}
    run.settle()
    assert run.inputs["T"] == "b"


def test_history_entries_of_what_is_opened_again_are_dropped(trial):
    run = trial(draw("A>B>C", "A>X")).settle().settle().settle(C=Next("B"))
    assert run.run.history() == {"A": "a", "X": "x"}
    run.go()
    assert list(run.run.history()) == ["A", "X", "B", "C"]


def test_a_jumper_in_its_own_reach_loses_its_entry(trial):
    run = trial(draw("A>B")).settle().settle(B=Next("A"))
    assert run.run.history() == {}
    run.go()


def test_state_stays_through_an_opening(trial):
    run = trial(draw("A>B")).settle(A=Done(1, {"k": 1})).settle(B=Next("A")).go()
    assert run.run.state == {"k": 1}


def test_a_jump_takes_back_what_is_ready_within_its_reach(trial):
    plan_again = draw("plan>a>join", "plan>b>work>join", nodes="plan a b work join", joins={"join": "all"})
    run = trial(plan_again).settle().settle(a=Next("plan"))
    assert run.ready() == ["plan"]  # work was ready, and waits for the new plan
    run.go()
    assert run.layers == [["plan"], ["a", "b"], ["plan"], ["a", "b"], ["work"], ["join"]]


def test_a_fan_out_of_which_one_says_plan_again_is_joined_once(trial):
    run = trial(draw("plan>a>join", "plan>b>join", "plan>c>join", joins={"join": "all"}))
    run.settle().settle(b=Next("plan")).go()
    assert [n for n, _ in run.ran].count("join") == 1
    assert run.inputs["join"] == {"a": "a", "b": "b", "c": "c"}


def test_what_is_ready_outside_a_jumps_reach_goes_on(trial):
    run = trial(draw("A>B>C", "A>J", nodes="A B J C T")).settle().settle(J=Next("T"))
    assert run.ready() == ["C", "T"]
    run.go()


def test_a_target_that_another_targets_reach_holds_waits_as_drawn_then_runs_with_its_own_input(trial):
    run = trial(draw("A>J", "A>K", "S>M>T", nodes="A J K S M T", when={"M>T": never}))
    run.settle().settle(J=Next("S", "to S"), K=Next("T", "to T"))
    assert run.ready() == ["S"]
    run.go()
    assert run.layers[2:] == [["S"], ["M"], ["T"]]  # whatever its join says
    assert run.inputs["T"] == "to T"


def test_a_target_that_has_not_started_keeps_its_start_and_its_input_through_further_openings(trial):
    run = trial(draw("A>J", "A>K", "S>M>T", nodes="A J K S M T", when={"M>T": never}))
    run.settle().settle(J=Next("S"), K=Next("T", "kept"))
    run.settle().settle(M=Next("S"))
    assert run.ready() == ["S"]
    run.go()
    assert run.inputs["T"] == "kept"
    assert [n for n, _ in run.ran].count("T") == 1


def test_a_later_jumps_input_replaces_that_of_a_target_that_has_not_started(trial):
    run = trial(draw("A>J", "A>K", "S>M>T", nodes="A J K S M T", when={"M>T": never}))
    run.settle().settle(J=Next("S"), K=Next("T", "old"))
    run.settle(S=Next("T", "new"))
    assert run.ready() == ["T"]
    run.go()
    assert run.inputs["T"] == "new"


def test_a_target_that_starts_beside_an_opening_upstream_has_used_up_its_start(trial):
    graph = draw("A>J", "A>K", "S>M>T", "M>S", nodes="A J K S M T", cycles=True, when={"M>T": never, "M>S": rounds(2)})
    run = trial(graph).settle().settle(J=Next("S"), K=Next("T", "to T")).settle().settle()
    assert run.ready() == ["S", "T"]  # T as it was taken, S by the back edge
    run.go()
    assert run.inputs["T"] == "to T"
    assert [n for n, _ in run.ran].count("T") == 1


def test_an_entrys_start_counts_for_its_first_pass_alone(trial):
    run = trial(draw("A>B", entries="A B", when={"A>B": is_set("go")}))
    run.settle().settle(B=Next("A")).settle()
    assert run.layers == [["A"], ["B"], ["A"]]
    assert run.ready() == []


# joins in a later pass


def test_in_a_later_pass_a_join_needs_a_new_live_edge(trial):
    run = trial(draw("A>D>J", "B>D", nodes="A B D J", entries="A B", when={"B>D": rounds(2)}))
    run.settle().settle().settle(J=Next("B")).settle()
    assert run.layers == [["A", "B"], ["D"], ["J"], ["B"]]  # A>D is live still, and D has used it
    assert run.ready() == []
    assert run.run.front.passes == [1, 2, 2, 2]


def test_kept_live_edges_count_and_add_their_input(trial):
    run = trial(draw("A>D>J", "B>D", nodes="A B D J", entries="A B", joins={"D": 2})).settle().settle().settle(J=Next("B"))
    run.settle(B="again").settle()
    assert run.layers[-1] == ["D"]
    assert run.inputs["D"] == {"A": "a", "B": "again"}
    run.go()


def test_a_kept_edge_that_no_started_pass_used_is_new(trial):
    run = trial(draw("A>D", "B>C>D", nodes="A B C D", entries="A B", when={"C>D": never})).settle()
    assert run.ready() == ["C"]
    run.settle(C=Next("B")).settle().go()
    assert run.layers[-1] == ["D"]
    assert run.inputs["D"] == "a"


def test_a_live_edge_that_was_decided_again_is_new_until_a_started_pass_had_it(trial):
    graph = draw("B>D>J", "B>K>D", nodes="B K D J", when={"K>D": never})
    run = trial(graph).settle().settle().settle()
    assert run.layers == [["B"], ["K"], ["D"]]
    run.settle(J=Next("B")).settle().settle(K=Next("K")).settle()
    assert run.ready() == ["D"]
    run.go()
    assert run.inputs["D"] == "b"


def test_a_kept_false_edge_stays_false_for_join_all(trial):
    run = trial(draw("A>D", "B>C>D", nodes="A B C D", entries="A B", joins={"D": "all"}, when={"A>D": never}))
    run.settle().settle(C=Next("B")).go()
    assert "D" not in [n for n, _ in run.ran]


# back edges


def test_a_live_back_edge_opens_its_target_and_hands_on_its_sources_output(trial):
    run = trial(draw("A>B>A", cycles=True, when={"B>A": rounds(3)}))
    run.settle().settle(B=1).settle()
    assert run.inputs["A"] == 1
    run.settle(B=2).settle()
    assert run.inputs["A"] == 2
    run.go()
    assert [n for n, _ in run.ran] == ["A", "B"] * 3


def test_back_edges_are_never_waited_for_and_count_in_no_join(trial):
    run = trial(draw("A>B>C>B", cycles=True, joins={"B": "all"}, when={"C>B": never})).go()
    assert run.layers == [["A"], ["B"], ["C"]]


def test_a_live_back_edge_does_not_take_back_what_was_taken(trial):
    run = trial(draw(*LOOP, cycles=True, when={"B>A": rounds(3)})).go()
    assert run.layers == [["A"], ["B"], ["A", "log"], ["B"], ["A", "log"], ["B"], ["log"], ["end"]]


def test_a_step_opened_again_behind_itself_decides_nothing_forward_but_writes(trial):
    run = trial(draw(*LOOP, cycles=True, when={"B>A": rounds(2), "log>end": always})).settle().settle()
    run.settle(log=Done("logged", {"k": 1}))
    assert run.asked == [("B>A", 1)]
    assert (run.run.state, run.run.history()) == ({"k": 1}, {"A": "a", "log": "logged"})
    assert run.run.last == {"A": "a", "log": "logged"}
    assert [(r.node, r.status) for r in run.run.rows()][-2:] == [("A", "success"), ("log", "success")]
    assert run.run.rows()[-1].step_id == "flow.s.1/log/1"
    run.go()
    assert run.layers[3:] == [["B"], ["log"], ["end"]]


def test_the_jump_of_a_step_opened_again_behind_itself_counts(trial):
    run = trial(draw(*LOOP, nodes="A B log end X", cycles=True, when={"B>A": rounds(2)})).settle().settle()
    run.settle(log=Next("X", "x"))
    assert run.ready() == ["B", "X"]
    run.go()
    assert run.layers[-1] == ["end"]


def test_the_live_back_edge_of_a_step_opened_again_behind_itself_counts(trial):
    graph = draw("A>B>A", "B>log>A", nodes="A B log", cycles=True, when={"B>A": rounds(2), "log>A": rounds(2)})
    run = trial(graph).settle().settle()
    assert run.settle(log="back").layers[-1] == ["A", "log"]
    assert run.ready() == ["A", "B"]
    run.go()


def test_a_step_opened_again_behind_itself_has_used_the_edges_that_it_started_with(trial):
    graph = draw("A>B>A", "B>log", "E>log", nodes="A B E log", entries="A E", cycles=True, when={"B>A": turns(True), "B>log": turns(True)})
    run = trial(graph).go()
    assert run.layers == [["A", "E"], ["B"], ["A", "log"], ["B"]]


def test_a_later_skip_of_its_node_drops_the_entry_of_a_step_opened_behind_itself(trial):
    run = trial(draw("A>B>A", "B>log", nodes="A B log", cycles=True, when={"B>A": rounds(2), "B>log": rounds(2)}))
    run.settle().settle().settle()
    assert "log" in run.run.history()
    run.go()
    assert run.run.history() == {"A": "a", "B": "b"}


def test_a_target_that_was_taken_itself_runs_once_with_the_openings_input(trial):
    run = trial(draw("S>T>U>T", "S>J", nodes="S T U J", cycles=True, when={"U>T": never})).settle()
    assert run.ready() == ["T", "J"]
    run.settle(J=Next("U", "jumped"))
    assert run.ready() == ["U"]
    run.settle()
    assert run.inputs["U"] == "jumped"
    assert [n for n, _ in run.ran].count("U") == 1
    run.go()


SPIRAL = ("M>T>U>T", "M>K>M", "M>M")


def test_a_target_of_a_back_edge_that_was_taken_itself_runs_once_with_the_openings_input(trial):
    graph = draw(*SPIRAL, nodes="M T U K", cycles=True, when={"U>T": turns(True), "K>M": turns(True), "M>M": never})
    run = trial(graph).settle().settle().settle(U="around")
    assert run.layers == [["M"], ["T", "K"], ["M", "U"]]
    assert run.ready() == ["T", "K"]
    run.settle()
    assert run.inputs["T"] == "around"
    run.go()
    assert run.ran.count(("T", 3)) == 1
    assert ("T", 2) not in run.ran


def test_a_target_of_a_back_edge_that_anothers_reach_holds_is_taken_back_and_waits_as_drawn(trial):
    graph = draw(*SPIRAL, nodes="M T U K", cycles=True, when={"U>T": turns(True), "K>M": turns(True), "M>M": turns(False, True)})
    run = trial(graph).settle().settle().settle(U="around")
    assert run.ready() == ["M", "K"]  # K stays, T waits for M
    run.settle(M="anew").settle()
    assert run.inputs["T"] == "anew"
    run.go()


def test_of_several_back_edges_the_first_in_declared_order_brings_the_input(trial):
    run = trial(draw("A>B>A", "A>C>A", nodes="A B C", cycles=True, when={"B>A": rounds(2), "C>A": rounds(2)}))
    run.settle().settle(B="first", C="second").settle()
    assert run.inputs["A"] == "first"
    run.go()


def test_a_jump_goes_before_a_back_edge(trial):
    run = trial(draw("A>B>A", "A>C", nodes="A B C", cycles=True, when={"B>A": rounds(2)}))
    run.settle().settle(B="edge", C=Next("A", "jump")).settle()
    assert run.inputs["A"] == "jump"
    run.go()


def test_a_target_held_for_a_back_edge_takes_its_input_as_drawn(trial):
    graph = draw("S>A>T>U>T", "A>K>S", nodes="S A T U K", cycles=True, when={"U>T": rounds(2), "K>S": rounds(2)}, waits=["K<T"])
    run = trial(graph).settle().settle().settle()
    assert run.ready() == ["U", "K"]
    run.settle(U="back")
    assert run.ready() == ["S"]  # S reaches T, which waits as drawn
    run.settle().settle(A="drawn").settle()
    assert run.inputs["T"] == "drawn"
    run.go()


def test_a_skipped_source_opens_nothing_by_its_back_edge(trial):
    run = trial(draw("A>B>A", cycles=True, when={"A>B": never})).go()
    assert run.layers == [["A"]]


def test_a_step_skipped_over_its_error_takes_its_back_edge(trial):
    run = trial(draw("A>B>A", cycles=True, when={"B>A": rounds(2)})).settle().settle(B=Failed(ValueError("x"), skip=True)).settle()
    assert run.inputs["A"] is None
    run.go()


# after a layer


def test_skips_propagate_before_jumps_open(trial):
    run = trial(draw("A>B>C", "A>J", nodes="A J B C", when={"A>B": never})).settle()
    assert [(r.node, r.step_id.split("/")[2]) for r in run.run.rows()] == [("A", "1"), ("B", "1"), ("C", "1")]
    run.settle(J=Next("B")).go()
    assert run.layers[2:] == [["B"], ["C"]]


def test_a_step_keeps_history_and_last_output_of_the_moment_at_which_it_was_taken(trial):
    run = trial(draw(*LOOP, cycles=True, when={"B>A": rounds(2)})).settle().settle()
    windows = {run.plan.names[s.node]: (s.window.entries(), s.window.last) for s in run._layer().steps}
    assert windows == {"A": ({}, "b"), "log": ({"A": "a", "B": "b"}, "b")}
    run.go()


def test_the_history_of_what_was_taken_keeps_what_an_opening_drops(trial):
    run = trial(draw("A>B>A", "B>log", nodes="A B log X", cycles=True)).settle().settle()
    windows = {run.plan.names[s.node]: list(s.window.entries()) for s in run._layer().steps}
    assert windows == {"A": [], "log": ["A", "B"]}
    run.settle().settle(B=Next("X")).go()


def test_running_after_it_was_opened_behind_itself_moves_a_steps_entry(trial):
    run = trial(draw(*LOOP, cycles=True, when={"B>A": rounds(2)})).go()
    assert list(run.run.history()) == ["A", "B", "log", "end"]


def test_nodes_of_a_layer_share_one_history_unless_an_opening_came_between(trial):
    run = trial(draw("A>B", "A>C")).settle()
    first, second = run._layer().steps
    assert first.window is second.window
    run.go()


# Next as a value


def test_next_says_what_it_sends():
    assert Next("T").sent is ABSENT
    assert Next("T", 0).sent == 0
    assert Next("T", Next.none).sent is None


def test_next_shows_its_target_and_input():
    assert repr(Next("T", 5)) == "Next('T', input=5)"
    assert repr(Next("T", Next.none)) == "Next('T', input=Next.none)"
    assert repr(ABSENT) == "ABSENT"


def test_next_survives_a_process_boundary():
    there = pickle.loads(pickle.dumps(Next("T", Next.none, {"k": [1]})))
    assert (there.node, there.input, there.update_state) == ("T", REAL_NONE, {"k": [1]})
    assert there.input is REAL_NONE
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
    assert copy.deepcopy(Next.none) is REAL_NONE


@pytest.mark.parametrize("wrong", [5, 0, False, "", "ab", [], [("k", 1)], {"k"}])
def test_an_update_state_that_is_no_mapping_is_refused_at_once(wrong):
    with pytest.raises(TypeError, match=r"^Next\('T', update_state=\.\.\.\) takes a mapping of state keys to values, not "):
        Next("T", update_state=wrong)


def test_next_takes_its_own_copy_of_update_state():
    given = {"k": 1}
    jump = Next("T", update_state=given)
    given["k"] = 2
    assert jump.update_state == {"k": 1}
