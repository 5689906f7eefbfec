"""A run's statuses and legal moves, failing, merging a layer, `max_steps`, rows, history windows, questions."""

import pytest

from engine.core.plan import Options, compile_plan
from engine.core.run import FINAL, MOVES, Answer, Combine, Run, Status, StepResult, apply, move, ready, start
from engine.core.state import NO_DIFF, Growth, StateDiff
from engine.errors import StateConflict, StepLimitReached
from tests.engine.core.trial import Done, Failed, Next, draw, is_set, never, outcome

FAN = ("A>B", "A>C")


def fan(**options):
    return draw(*FAN, nodes="A B C"), options


# statuses


def test_a_run_starts_running():
    run = start(compile_plan(draw("A"), Options()), "r", 1)
    assert (run.status, run.id, run.input, run.last, run.layer, run.state) == (Status.RUNNING, "r", 1, 1, 0, {})


def test_a_run_that_was_not_started_is_pending_and_has_nothing_ready():
    plan = compile_plan(draw("A"), Options())
    run = Run(plan, "r", None)
    assert run.status is Status.PENDING
    assert ready(plan, run).steps == ()


def test_a_run_completes_when_nothing_is_left(trial):
    run = trial(draw("A>B")).settle()
    assert run.run.status is Status.RUNNING
    assert run.settle().run.status is Status.COMPLETED
    assert run.ready() == []


LEGAL = {
    ("pending", "running"),
    ("pending", "cancelled"),
    ("running", "running"),
    ("running", "paused"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "timed_out"),
    ("paused", "running"),
    ("paused", "cancelled"),
    ("failed", "running"),
    ("failed", "cancelled"),
    ("timed_out", "running"),
    ("timed_out", "cancelled"),
}


@pytest.mark.parametrize("before", list(Status))
@pytest.mark.parametrize("after", list(Status))
def test_only_legal_moves_are_made(before, after):
    if (before.value, after.value) in LEGAL:
        assert move(before, after) is after
    else:
        with pytest.raises(ValueError, match=f"a run that is {before.value} cannot become {after.value}"):
            move(before, after)


def test_every_status_is_a_word_and_has_its_moves():
    assert {s.value for s in Status} == {"pending", "running", "paused", "completed", "failed", "cancelled", "timed_out"}
    assert set(MOVES) == set(Status)


def test_the_last_four_statuses_are_final_but_failed_and_timed_out_may_be_resumed():
    assert {s.value for s in FINAL} == {"completed", "failed", "cancelled", "timed_out"}
    assert [s.value for s in Status if s in FINAL and Status.RUNNING in MOVES[s]] == ["failed", "timed_out"]


def test_a_run_without_anything_open_has_nothing_ready():
    graph = draw("A")
    graph.entries = []
    plan = compile_plan(graph, Options())
    assert ready(plan, start(plan, "r", 0)).steps == ()


def test_apply_without_a_layer_is_refused():
    plan = compile_plan(draw("A"), Options())
    with pytest.raises(AssertionError, match="needs the layer"):
        apply(plan, start(plan, "r", 0), [])


def test_apply_wants_a_result_for_every_step(trial):
    run = trial(draw("A>B", "A>C")).settle()
    ready(run.plan, run.run)
    with pytest.raises(AssertionError, match="a result for every step"):
        apply(run.plan, run.run, [StepResult(1, "success")])


# failing


def test_the_error_is_that_of_the_first_failed_node_in_declared_order():
    plan = compile_plan(draw(*FAN, nodes="A B C"), Options())
    run = start(plan, "r", 0)
    ready(plan, run)
    apply(plan, run, [StepResult(0, "success")])
    ready(plan, run)
    first, second = ValueError("B"), ValueError("C")
    apply(plan, run, [StepResult(2, "failed", error=second), StepResult(1, "failed", error=first)])
    assert run.error is first
    assert run.status is Status.FAILED


def test_a_failed_layer_leaves_state_history_and_rows_as_they_were(trial):
    run = trial(draw(*FAN)).settle(A=Done(1, {"k": 1}))
    before = run.run.snapshot()
    run.settle(B=Done(2, {"k": 2}), C=Failed(ValueError("no")))
    after = run.run.snapshot()
    assert after.pop("error") == ("ValueError", "no")
    assert after.pop("status") == "failed"
    assert after == {k: v for k, v in before.items() if k not in ("error", "status")}


def test_step_failures_come_before_conflicts(trial):
    run = trial(draw("A>B", "A>C", "A>D"), on_conflict="error").settle()
    run.settle(B=Done(1, {"k": 1}), C=Done(1, {"k": 2}), D=Failed(ValueError("no")))
    assert str(run.run.error) == "no"


def test_conflicts_come_before_the_step_limit(trial):
    run = trial(draw("A>B", "A>C"), on_conflict="error", max_steps=0).settle()
    run.settle(B=Done(1, {"k": 1}), C=Next("A", update_state={"k": 2}))
    assert isinstance(run.run.error, StateConflict)


# merging a layer


def test_state_is_merged_when_the_layer_ends(trial):
    run = trial(draw(*FAN)).settle(A=Done(1, {"a": 1, "b": [1]})).settle(B=Done(1, {"b": Growth([2])}), C=Done(1, {}, ["a"]))
    assert run.run.state == {"b": [1, 2]}
    assert run.run.version == 2


def test_the_later_node_in_declared_order_wins_and_a_conflict_names_key_and_nodes(trial):
    run = trial(draw("A>C", "A>B", nodes="A C B")).settle().settle(B=Done(1, {"k": "B"}), C=Done(1, {"k": "C"}))
    assert run.run.state == {"k": "B"}
    assert run.news == [("conflict", {"key": "k", "nodes": ["C", "B"]})]


def test_with_on_conflict_error_the_run_fails_with_both_names(trial):
    run = trial(draw(*FAN), on_conflict="error").settle().settle(B=Done(1, {"k": 1}), C=Done(1, {"k": 1}))
    error = run.run.error
    assert isinstance(error, StateConflict)
    assert (error.key, error.nodes, error.node, error.run_id) == ("k", ["B", "C"], "B", "flow.s.1")
    assert "'k'" in str(error)
    assert "'B' and 'C'" in str(error)
    assert "give it a reducer" in str(error)
    assert run.run.state == {}


def test_a_reducer_is_no_conflict_for_on_conflict_error(trial):
    run = trial(draw(*FAN), on_conflict="error", reducers={"k": "add"}).settle().settle(B=Done(1, {"k": 1}), C=Done(1, {"k": 2}))
    assert run.run.state == {"k": 3}
    assert run.run.status is Status.COMPLETED


def test_of_several_conflicts_the_smallest_key_is_named(trial):
    run = trial(draw(*FAN), on_conflict="error").settle().settle(B=Done(1, {"z": 1, "a": 1}), C=Done(1, {"a": 1, "z": 2}))
    assert run.run.error.key == "a"


def test_a_write_that_does_not_fit_its_reducer_fails_the_run_naming_key_and_node(trial):
    run = trial(draw(*FAN), reducers={"k": "append"}).settle(A=Done(1, {"k": [1]}))
    run.settle(B=Done(1, {"k": Growth([2])}), C=Done(1, {"k": [3]}))
    error = run.run.error
    assert isinstance(error, StateConflict)
    assert (error.key, error.nodes) == ("k", ["C"])
    assert "its reducer is 'append'" in str(error)
    assert run.run.state == {"k": [1]}


# custom reducers


def product(base, writes):
    for write in writes:
        base = (base or 1) * write
    return base


CUSTOM = {"reducers": {"k": "my:product"}, "custom": {"my:product": product}}


def test_a_custom_reducer_is_asked_for_the_value_of_concurrent_writes(trial):
    run = trial(draw(*FAN), **CUSTOM).settle(A=Done(1, {"k": 2})).settle(B=Done(1, {"k": 3}), C=Done(1, {"k": 5}))
    assert run.run.state == {"k": 30}


def test_a_custom_reducer_is_given_none_for_a_missing_base_and_the_writes_in_declared_order():
    plan = compile_plan(draw("A>C", "A>B", nodes="A C B"), Options(reducers={"k": "my:f"}))
    run = start(plan, "r", 0)
    ready(plan, run)
    apply(plan, run, [StepResult(0, "success")])
    steps = ready(plan, run)
    wrote = [StepResult(n, "success", diffs=[(plan.names[n], StateDiff({"k": n}, frozenset()))]) for n in (2, 1)]
    apply(plan, run, wrote)
    layer = ready(plan, run)
    assert layer.steps == steps.steps
    assert layer.questions == [Combine("k", "my:f", None, [1, 2], ["C", "B"])]
    apply(plan, run, [Answer(layer.questions[0], "joined")])
    assert (run.state, run.status) == ({"k": "joined"}, Status.COMPLETED)


def test_a_custom_reducer_is_not_asked_about_a_lone_write(trial):
    run = trial(draw(*FAN), **CUSTOM).settle(A=Done(1, {"k": 2})).settle(B=Done(1, {"k": 3}))
    assert run.run.state == {"k": 3}


def test_a_custom_reducer_that_fails_fails_the_run_naming_key_and_nodes(trial):
    def fail(base, writes):
        raise ZeroDivisionError("cannot")

    run = trial(draw(*FAN), reducers={"k": "my:fail"}, custom={"my:fail": fail}).settle()
    run.settle(B=Done(1, {"k": 1}), C=Done(1, {"k": 2}))
    error = run.run.error
    assert isinstance(error, StateConflict)
    assert (error.key, error.nodes, error.node) == ("k", ["B", "C"], "B")
    assert str(error) == "reducer 'my:fail' of state key 'k' failed on the writes of 'B' and 'C': ZeroDivisionError('cannot')"
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_a_smaller_key_is_named_before_a_custom_reducer_that_failed(trial):
    def fail(base, writes):
        raise ZeroDivisionError("cannot")

    run = trial(draw(*FAN), on_conflict="error", reducers={"k": "my:fail"}, custom={"my:fail": fail}).settle()
    run.settle(B=Done(1, {"k": 1, "a": 1}), C=Done(1, {"k": 2, "a": 2}))
    assert run.run.error.key == "a"


def test_conditions_are_asked_after_the_reducers(trial):
    graph = draw("A>B>D", "A>C>D", when={"B>D": is_set("k"), "C>D": never}, joins={"D": "any"})
    run = trial(graph, **CUSTOM).settle().settle(B=Done(1, {"k": 2}), C=Done(1, {"k": 5}))
    assert run.run.state == {"k": 10}
    assert run.ready() == ["D"]
    run.go()


# max_steps


def test_max_steps_does_not_count_a_plain_chain(trial):
    assert trial(draw("A>B>C>D"), max_steps=0).go().run.status is Status.COMPLETED


def test_max_steps_bounds_the_openings_by_jumps(trial):
    run = trial(draw("A"), max_steps=2).settle(A=Next("A")).settle(A=Next("A"))
    assert (run.run.openings, run.run.status) == (2, Status.RUNNING)
    run.settle(A=Next("A"))
    assert isinstance(run.run.error, StepLimitReached)
    text = str(run.run.error)
    assert text.startswith("Exceeded max steps: 3 openings")
    assert "the limit is 2" in text
    assert "raise it with Workflow(max_steps=...)" in text
    assert run.run.error.run_id == "flow.s.1"


def test_max_steps_bounds_live_back_edges(trial):
    run = trial(draw("A>B>A", cycles=True), max_steps=3).go()
    assert isinstance(run.run.error, StepLimitReached)
    assert [n for n, _ in run.ran] == ["A", "B"] * 4


def test_a_back_edge_that_is_not_live_counts_for_nothing(trial):
    assert trial(draw("A>B>A", cycles=True, when={"B>A": never}), max_steps=0).go().run.openings == 0


def test_each_target_counts_one_a_layer(trial):
    run = trial(draw("A>B", "A>C", "A>D", nodes="A B C D S T")).settle().settle(B=Next("T"), C=Next("T"), D=Next("S"))
    assert run.run.openings == 2
    run.go()


# rows, history, snapshot


def test_rows_have_node_step_id_status_attempt_times_and_error(trial):
    run = trial(draw("A>B", when={"A>B": never}))
    run.settle(A=StepResult(0, "skipped", attempt=3, started=10.0, duration=0.5, error=ValueError("no")))
    assert [tuple(r) for r in run.run.rows()] == [
        ("A", "flow.s.1/A/1", "skipped", 3, 10.0, 0.5, "no"),
        ("B", "flow.s.1/B/1", "skipped", 0, 0.0, 0.0, None),
    ]


def test_rows_are_of_all_passes(trial):
    run = trial(draw("A")).settle(A=Next("A")).go()
    assert [r.step_id for r in run.run.rows()] == ["flow.s.1/A/1", "flow.s.1/A/2"]


def test_rows_are_the_newest_hundred(trial):
    run = trial(draw(">".join(f"n{i}" for i in range(120)))).go()
    assert [r.node for r in run.run.rows()] == [f"n{i}" for i in range(20, 120)]


@pytest.mark.parametrize(("retention", "seen"), [(0, []), (1, ["C"]), (2, ["B", "C"]), (20, ["A", "B", "C"]), (None, ["A", "B", "C"])])
def test_history_is_a_window_over_the_newest_entries(trial, retention, seen):
    run = trial(draw("A>B>C"), retention=retention).go()
    assert list(run.run.history()) == seen
    assert run.run.window().last == "c"


def test_retention_does_not_touch_inputs(trial):
    run = trial(draw("A>B>C>D", "A>D"), retention=0).go()
    assert run.inputs["D"] == {"A": "a", "C": "c"}


def test_history_is_by_layer_then_declared_order(trial):
    run = trial(draw("A>C>D", "A>B", nodes="D C B A", entries="A")).go()
    assert list(run.run.history()) == ["A", "C", "B", "D"]


def test_running_again_moves_an_entry_to_its_newest_layer(trial):
    run = trial(draw("A>B>A", "A>log", cycles=True, when={"B>A": is_set("again")}, nodes="A B log"))
    run.settle().settle(B=Done(1, {"again": True})).settle().settle(B=Done(2, {"again": False})).go()
    assert list(run.run.history()) == ["A", "B", "log"]


def test_a_snapshot_is_plain_data_that_two_runs_alike_share(trial):
    one, two = trial(draw(*FAN)).settle(), trial(draw(*FAN)).settle()
    assert one.run.snapshot() == two.run.snapshot()
    two.settle()
    assert one.run.snapshot() != two.run.snapshot()


def test_a_diff_that_says_nothing_changes_nothing(trial):
    run = trial(draw("A")).settle(A=StepResult(0, "success", "out", [("A", NO_DIFF)]))
    assert outcome(run) == {"status": "completed", "output": "out", "history": {"A": "out"}, "state": {}}


def test_the_items_of_a_map_merge_in_the_place_of_their_map(trial):
    run = trial(draw("A>m", "A>z", nodes="A m z"), reducers={"log": "append"}).settle()
    items = [(f"m[{i}]", StateDiff({"log": [i], "last": i}, frozenset())) for i in range(3)]
    run.settle(m=StepResult(1, "success", [0, 1, 2], items), z=Done(1, {"log": ["z"]}))
    assert run.run.state == {"log": [0, 1, 2, "z"], "last": 2}
    assert run.news == [("conflict", {"key": "last", "nodes": ["m[0]", "m[1]", "m[2]"]})]


def test_who_asks_for_them_is_told_which_keys_each_layer_changed():
    plan = compile_plan(draw("A>B"), Options())
    run = start(plan, "r", 0)
    run.changes = []
    for node, diff in enumerate([StateDiff({"a": 1, "b": 1}, frozenset()), StateDiff({"c": 1}, frozenset({"a"}))]):
        ready(plan, run)
        apply(plan, run, [StepResult(node, "success", diffs=[("AB"[node], diff)])])
    assert run.changes == [(1, ["a", "b"], []), (2, ["c"], ["a"])]
