"""Who starts, who is judged, who has won: the one pure function that settles a team, and the values that it is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.graph import Composite, Graph, Node
from engine.core.plan import Options, Plan, compile_plan, definition_hash, from_data, rewired, to_data
from engine.core.policy import Limits, Policy, Resources
from engine.core.state import same
from engine.core.team import (
    ALL,
    BEST,
    HEDGE,
    QUORUM,
    RACE,
    VOTE,
    End,
    ExecutionStrategy,
    MemberResult,
    Standing,
    Strategy,
    TeamPlan,
    named,
    settle,
)
from engine.errors import DefinitionError, MemberFailed


def judge(value: Any) -> float:
    return value


BY_JUDGE = BEST(judge)


def won(member: int, value: Any = None, score: float | None = None) -> End:
    return End(member, True, value, score)


def failed(member: int) -> End:
    return End(member, False)


def over(*answer: int, won: bool = True) -> Standing:
    return Standing(over=True, answer=answer, won=won)


# The start.


@pytest.mark.parametrize("strategy", [ALL, RACE, QUORUM(2), VOTE, BY_JUDGE])
def test_without_a_stagger_all_members_start_at_once(strategy: Strategy):
    assert settle(strategy, 3, []) == Standing(start=(0, 1, 2))


@pytest.mark.parametrize("strategy", [ALL, RACE, QUORUM(2), VOTE, BY_JUDGE])
def test_no_more_members_start_than_the_width_lets(strategy: Strategy):
    assert settle(strategy, 4, [], width=2) == Standing(start=(0, 1))
    assert settle(strategy, 4, [failed(0)], running=[1], width=2) == Standing(start=(2,))
    assert settle(strategy, 4, [], running=[0, 1], width=2) == Standing()
    assert settle(strategy, 4, [], running=[0, 1, 2], width=2) == Standing(), "a width that shrank stops nobody"


def test_who_runs_or_has_ended_is_not_started_again():
    assert settle(ALL, 4, [won(1), failed(3)], running=[0]) == Standing(start=(2,))


# ALL.


def test_all_is_over_when_everybody_has_ended_in_member_order():
    assert settle(ALL, 3, [won(2), failed(0)], running=[1]) == Standing()
    assert settle(ALL, 3, [won(2), failed(0), won(1)]) == over(0, 1, 2)


def test_all_is_won_where_everybody_failed():
    assert settle(ALL, 2, [failed(1), failed(0)]) == over(0, 1)


def test_all_of_nobody_is_over_at_once():
    assert settle(ALL, 0, []) == over()


# RACE.


def test_a_race_is_over_at_its_first_success():
    assert settle(RACE, 3, [won(1)], running=[0, 2]) == over(1)


def test_a_race_goes_on_while_members_fail():
    assert settle(RACE, 3, [failed(0), failed(2)], running=[1]) == Standing()
    assert settle(RACE, 3, [failed(0), failed(2), won(1)]) == over(1)


def test_of_two_successes_the_one_that_was_committed_first_has_won_the_race():
    assert settle(RACE, 3, [won(2), won(0)], running=[1]) == over(2)


def test_a_race_that_all_have_lost_answers_with_how_everybody_ended():
    assert settle(RACE, 3, [failed(2), failed(0), failed(1)]) == over(0, 1, 2, won=False)


# HEDGE.


def test_a_hedge_starts_one_member_and_the_next_after_the_delay():
    hedge = HEDGE(2.0)
    assert settle(hedge, 3, []) == Standing(start=(0,))
    assert settle(hedge, 3, [], running=[0], waited=1.9) == Standing()
    assert settle(hedge, 3, [], running=[0], waited=2.0) == Standing(start=(1,))
    assert settle(hedge, 3, [], running=[0, 1], waited=0.0) == Standing()
    assert settle(hedge, 3, [], running=[0, 1, 2], waited=9.0) == Standing()


def test_a_hedge_starts_the_next_member_at_once_where_the_one_before_it_fails():
    hedge = HEDGE(2.0)
    assert settle(hedge, 3, [failed(0)], waited=0.1) == Standing(start=(1,))
    assert settle(hedge, 4, [failed(1)], running=[0], waited=0.1) == Standing(start=(2,))
    assert settle(hedge, 4, [failed(0)], running=[1], waited=0.1) == Standing(), "member 2 waits for member 1, which is on its way"


def test_a_hedge_is_a_race_once_somebody_succeeds():
    assert settle(HEDGE(2.0), 3, [won(1)], running=[0]) == over(1)
    assert settle(HEDGE(2.0), 2, [failed(0), failed(1)]) == over(0, 1, won=False)


def test_a_hedge_without_delay_starts_everybody():
    assert settle(HEDGE(0), 3, []) == Standing(start=(0, 1, 2))


def test_the_width_holds_for_a_hedge_too():
    assert settle(HEDGE(1.0), 3, [], running=[0], waited=5.0, width=1) == Standing()


def test_a_staggered_quorum_starts_the_next_one_after_a_success_too():
    assert settle(Strategy(2, 1.0), 3, [won(0)], waited=0.0) == Standing(start=(1,))
    assert settle(Strategy(2, 1.0), 3, [won(1)], running=[0], waited=0.5) == Standing()


# QUORUM.


def test_a_quorum_is_the_first_successes_in_the_order_in_which_they_came():
    assert settle(QUORUM(2), 4, [won(3), failed(0)], running=[1, 2]) == Standing()
    assert settle(QUORUM(2), 4, [won(3), failed(0), won(1)], running=[2]) == over(3, 1)
    assert settle(QUORUM(2), 4, [won(3), won(2), won(1)], running=[0]) == over(3, 2)


def test_a_quorum_out_of_reach_ends_at_once():
    assert settle(QUORUM(2), 3, [failed(0)], running=[1, 2]) == Standing()
    assert settle(QUORUM(2), 3, [failed(0), failed(2)], running=[1]) == over(0, 1, 2, won=False)
    assert settle(QUORUM(2), 3, [won(1), failed(0), failed(2)]) == over(0, 1, 2, won=False)


def test_a_quorum_out_of_reach_starts_nobody_who_waits_for_a_place():
    assert settle(QUORUM(3), 4, [failed(0), failed(1)], width=1) == over(0, 1, 2, 3, won=False)


# VOTE.


def test_a_vote_waits_for_everybody_and_takes_the_most_frequent_answer_by_its_first_voter():
    ballots = [won(3, "yes"), won(0, "no"), won(2, "yes")]
    assert settle(VOTE, 4, ballots, running=[1]) == Standing()
    assert settle(VOTE, 4, [*ballots, failed(1)]) == over(2)


def test_a_tied_vote_goes_by_member_order():
    assert settle(VOTE, 4, [won(3, "b"), won(1, "b"), won(2, "a"), won(0, "a")]) == over(0)
    assert settle(VOTE, 3, [won(2, 1), won(1, 2), won(0, 3)]) == over(0)


def test_votes_are_told_apart_by_type_and_compared_all_the_way_down():
    assert settle(VOTE, 3, [won(0, True), won(1, 1), won(2, 1)]) == over(1)
    assert settle(VOTE, 3, [won(0, {"a": [1]}), won(1, {"a": [2]}), won(2, {"a": [2]})]) == over(1)
    assert settle(VOTE, 3, [won(0, None), won(1, float("nan")), won(2, float("nan"))]) == over(1)


answers = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["a", 1.0, float("nan"), b"a", np.arange(2), np.arange(2.0)]),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(st.sampled_from(["x", 1, 1.5]), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(answers, min_size=1, max_size=8))
def test_votes_are_counted_as_if_each_were_compared_with_each(values: list[Any]):
    votes = [sum(same(value, other) for other in values) for value in values]
    assert settle(VOTE, len(values), [won(i, value) for i, value in enumerate(values)]) == over(votes.index(max(votes)))


def test_a_vote_of_very_many_different_answers_is_counted_in_their_number():
    answers = [*range(20_000), 12_345]  # to compare each with each would take minutes
    assert settle(VOTE, len(answers), [won(i, {"answer": [n]}) for i, n in enumerate(answers)]) == over(12_345)


def test_a_vote_in_which_all_failed_has_no_winner():
    assert settle(VOTE, 2, [failed(1), failed(0)]) == over(0, 1, won=False)


def test_a_vote_among_the_first_answers_leaves_the_others_out():
    assert settle(Strategy(2, pick="vote"), 3, [won(2, "a"), won(1, "b")], running=[0]) == over(1)


# BEST.


def test_the_judge_is_asked_once_everybody_has_ended_and_of_successes_alone():
    assert settle(BY_JUDGE, 3, [won(2, "c")], running=[0, 1]) == Standing()
    assert settle(BY_JUDGE, 3, [won(2, "c"), failed(1), won(0, "a")]) == Standing(judge=(2, 0))
    assert settle(BY_JUDGE, 3, [won(2, "c", 1.0), failed(1), won(0, "a")]) == Standing(judge=(0,))


def test_the_highest_score_wins_and_a_tie_goes_to_the_lower_member():
    assert settle(BY_JUDGE, 3, [won(2, score=3.0), won(1, score=9.0), won(0, score=-1.0)]) == over(1)
    assert settle(BY_JUDGE, 3, [won(2, score=3.0), won(1, score=3.0), won(0, score=-1.0)]) == over(1)
    assert settle(BY_JUDGE, 2, [won(0, score=-2.0), won(1, score=-1.0)]) == over(1)
    assert settle(BY_JUDGE, 2, [won(0, score=10**400), won(1, score=float("-inf"))]) == over(0)


def test_a_result_that_could_not_be_judged_is_a_failure_and_the_others_decide():
    assert settle(BY_JUDGE, 2, [failed(0), won(1, score=0.0)]) == over(1)
    assert settle(BY_JUDGE, 2, [failed(0), failed(1)]) == over(0, 1, won=False)


def test_the_best_of_the_first_successes_is_judged_among_them():
    best = Strategy(2, pick=judge)
    assert settle(best, 3, [won(2), won(0)], running=[1]) == Standing(judge=(2, 0))
    assert settle(best, 3, [won(2, score=1.0), won(0, score=2.0)], running=[1]) == over(0)
    assert settle(best, 3, [failed(2), won(0, score=2.0)], running=[1]) == Standing(), "one that failed its judge is replaced by the next"


# Every course of events.


@dataclass(frozen=True)
class Course:
    """A team, and how its members end: in what order, and after how much waiting, is drawn as it goes."""

    strategy: Strategy
    count: int
    width: int | None
    values: tuple[int | None, ...]
    """What each member gives; None: it fails."""
    scores: tuple[float | None, ...]
    """What the judge makes of each; None: it fails."""


STRATEGIES = st.one_of(
    st.just(ALL),
    st.just(RACE),
    st.just(VOTE),
    st.just(BY_JUDGE),
    st.builds(HEDGE, st.just(1.0)),
    st.builds(QUORUM, st.integers(1, 4)),
    st.builds(Strategy, st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.sampled_from([None, "vote", judge])),
)


@st.composite
def courses(draw: st.DrawFn) -> Course:
    strategy = draw(STRATEGIES)
    count = draw(st.integers(max(1, strategy.need or 1), 6))
    values = st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=count, max_size=count).map(tuple)
    scores = st.lists(st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 2.0])), min_size=count, max_size=count).map(tuple)
    return Course(strategy, count, draw(st.none() | st.integers(1, 4)), draw(values), draw(scores))


def go(course: Course, choose: Callable[[int], int]) -> tuple[Standing, list[End], set[int]]:
    """Let a team go its way to the end; `choose(n)` is a number below n. Returns where it stands, the ends, and who was still running."""
    ends: list[End] = []
    running: set[int] = set()
    started: set[int] = set()
    waited = 0.0
    for _ in range(10 * course.count):
        standing = settle(course.strategy, course.count, ends, running=sorted(running), waited=waited, width=course.width)
        assert len(running) <= (course.width or course.count)
        if standing.over:
            return standing, ends, running
        if standing.judge:
            for i, end in enumerate(ends):
                if end.member in standing.judge:
                    score = course.scores[end.member]
                    ends[i] = failed(end.member) if score is None else end._replace(score=score)
        elif standing.start:
            assert not started & set(standing.start), "nobody starts twice"
            started.update(standing.start)
            running.update(standing.start)
            waited = 0.0
        elif course.strategy.stagger and waited < course.strategy.stagger and choose(2):
            waited = course.strategy.stagger
        else:
            assert running, "a team that is not over has somebody to wait for"
            member = sorted(running)[choose(len(running))]
            running.remove(member)
            value = course.values[member]
            ends.append(failed(member) if value is None else won(member, value))
    raise AssertionError(f"the team does not end: {course}")


@given(courses(), st.data())
def test_a_team_always_ends_with_the_answer_that_its_strategy_promises(course: Course, data: st.DataObject):
    standing, ends, running = go(course, lambda n: data.draw(st.integers(0, n - 1)))
    strategy = course.strategy
    successes = {end.member for end in ends if end.success}
    assert standing.start == standing.judge == ()
    if not standing.won:
        assert standing.answer == tuple(range(course.count)), "how everybody ended"
        still_possible = len(successes) + course.count - len(ends)
        assert still_possible < (strategy.need or 1)
    elif not strategy.chooses:
        assert standing.answer == tuple(range(course.count))
        assert not running
    else:
        assert set(standing.answer) <= successes
        assert len(standing.answer) == len(set(standing.answer)) == (1 if strategy.pick is not None else strategy.need)


@given(courses(), st.data())
def test_a_team_is_settled_by_the_same_ends_whoever_still_runs_and_however_long_it_waited(course: Course, data: st.DataObject):
    standing, ends, _ = go(course, lambda n: data.draw(st.integers(0, n - 1)))
    assert settle(course.strategy, course.count, ends, waited=data.draw(st.floats(0, 9)), width=course.width) == standing
    unscored = [end._replace(score=None) for end in ends]
    if course.strategy.judge is None:
        assert settle(course.strategy, course.count, unscored) == standing


@given(courses(), st.data())
def test_the_order_among_ends_counts_for_nothing_where_everybody_is_waited_for(course: Course, data: st.DataObject):
    course = replace(course, strategy=data.draw(st.sampled_from([ALL, VOTE, BY_JUDGE])))
    standing, ends, _ = go(course, lambda n: data.draw(st.integers(0, n - 1)))
    assert settle(course.strategy, course.count, data.draw(st.permutations(ends))) == standing


@given(courses(), st.data())
def test_failures_may_come_anywhere_among_the_successes(course: Course, data: st.DataObject):
    standing, ends, _ = go(course, lambda n: data.draw(st.integers(0, n - 1)))
    successes = [end for end in ends if end.success]
    shuffled: list[End] = data.draw(st.permutations([end for end in ends if not end.success]))
    for success in reversed(successes):
        shuffled.insert(0, success)
    assert settle(course.strategy, course.count, shuffled) == standing


# Strategies as values.


def test_the_names_are_six_values_of_one_strategy():
    assert (Strategy(), Strategy(1), Strategy(pick="vote")) == (ALL, RACE, VOTE)
    assert (HEDGE(2), QUORUM(3), BEST(judge)) == (Strategy(1, 2), Strategy(3), Strategy(pick=judge))
    names = (ExecutionStrategy.ALL, ExecutionStrategy.RACE, ExecutionStrategy.VOTE)
    assert names == (ALL, RACE, VOTE)
    assert (ExecutionStrategy.HEDGE(2), ExecutionStrategy.QUORUM(3), ExecutionStrategy.BEST(judge)) == (HEDGE(2), QUORUM(3), BEST(judge))


def test_only_all_has_no_winners():
    assert not ALL.chooses
    assert all(strategy.chooses for strategy in (RACE, HEDGE(1), QUORUM(2), VOTE, BEST(judge)))
    assert (BEST(judge).judge, VOTE.judge, RACE.judge) == (judge, None, None)


def test_a_strategy_reads_as_people_write_it():
    written = {
        "ALL": ALL, "RACE": RACE, "VOTE": VOTE, "HEDGE(0.5)": HEDGE(0.5), "QUORUM(2)": QUORUM(2), "BEST(judge)": BEST(judge),
        "Strategy(need=2, stagger=1, pick='vote')": Strategy(2, 1.0, "vote"),
        "Strategy(need=None, stagger=1, pick=None)": Strategy(None, 1.0),
        "Strategy(need=1, stagger=0, pick=judge)": Strategy(1, pick=judge),
    }  # fmt: skip
    assert {strategy.text: strategy for strategy in written.values()} == written


@pytest.mark.parametrize("need", [0, -1, True, 1.5, "2"])
def test_a_number_of_successes_is_a_whole_number_from_1(need: Any):
    with pytest.raises(DefinitionError, match=r"^QUORUM\(k\): how many successes are needed must be a whole number from 1, not ") as caught:
        QUORUM(need)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(DefinitionError, match="a number of successes from 1") as caught:
        Strategy(need)
    assert caught.value.where == "need"


@pytest.mark.parametrize("delay", [-1, float("nan"), None, "soon"])
def test_a_delay_is_a_number_of_seconds(delay: Any):
    with pytest.raises(DefinitionError, match=r"^HEDGE\(delay\): the delay must be a number of seconds, 0 or more, not "):
        HEDGE(delay)
    with pytest.raises(DefinitionError, match="stagger"):
        Strategy(1, delay)


@pytest.mark.parametrize("pick", ["best", 3])
def test_what_picks_is_a_vote_or_a_judge(pick: Any):
    with pytest.raises(DefinitionError, match="neither 'vote' nor a judge"):
        Strategy(pick=pick)
    with pytest.raises(DefinitionError, match=r"^BEST\(judge\): the judge must be a function of one result, not "):
        BEST(pick)


@pytest.mark.parametrize("judge", [None, RACE])
def test_a_judge_is_a_function(judge: Any):
    with pytest.raises(DefinitionError, match=r"BEST\(judge\): the judge must be a function"):
        BEST(judge)


def test_a_strategy_that_is_called_says_where_it_goes():
    with pytest.raises(DefinitionError, match=r"RACE is a strategy as it is, and is not called: write Team\(members, strategy=RACE\)"):
        RACE()


# Results and members as values.


def test_the_value_of_a_success_is_its_result():
    assert MemberResult(0, result=0).value == 0
    assert MemberResult(0).value is None


def test_the_value_of_a_failure_raises_its_text_with_what_the_member_raised_as_cause():
    original = ZeroDivisionError("by zero")
    with pytest.raises(MemberFailed, match=r"^ZeroDivisionError: by zero$") as caught:
        _ = MemberResult(3, None, "ZeroDivisionError: by zero", False, original).value
    assert isinstance(caught.value, RuntimeError)
    assert (caught.value.member_index, caught.value.__cause__) == (3, original)


def test_a_result_as_data_is_its_first_four_fields():
    result = MemberResult(1, "x", None, True, None, 5.0, 0.5)
    assert result.data() == {"member_index": 1, "result": "x", "error": None, "is_success": True}


def plan(strategy: Strategy, *names: str) -> TeamPlan:
    return TeamPlan(name="team", members=tuple(Node(name=name, body=None) for name in names), strategy=strategy)


def test_a_recorded_run_leans_on_who_is_who_and_what_settles_and_on_no_pace():
    shape: Callable[[Strategy], Sequence[Any]] = lambda strategy: plan(strategy, "a", "b").shape()  # noqa: E731
    assert plan(RACE, "a", "b").shape() != plan(RACE, "b", "a").shape()
    assert shape(RACE) == shape(HEDGE(9))
    assert len({shape(ALL), shape(RACE), shape(QUORUM(2)), shape(VOTE), shape(BEST(judge))}) == 5
    assert shape(BEST(judge)) == shape(BEST(lambda value: 0)), "a mended judge is code"


def test_a_member_is_performed_under_its_teams_label_with_what_its_node_says_where_it_says_nothing():
    own = Policy(limits=Limits(attempt=1.0), resources=Resources(num_cpus=2))
    node = Policy(limits=Limits(attempt=9.0), resources=Resources(num_gpus=1), executor="inline")
    assert named(Node(name="a", body="body", policy=own), "team", node) == Node(
        name="team", body="body", kind="member", policy=Policy(limits=own.limits, resources=own.resources, executor="inline")
    )
    assert named(Node(name="a", body="body"), "team", node).policy == Policy(resources=node.resources, executor="inline")


# Teams in plans.


def holding(body: Any) -> Plan:
    """A plan of one node."""
    graph = Graph()
    graph.add_node(Node(name="panel", body=body))
    graph.entries = ["panel"]
    return compile_plan(graph, Options())


def test_a_team_goes_through_data_and_back_as_far_as_a_recorded_run_needs_it():
    inner = TeamPlan(name="inner", members=(Node(name="c", body=None),), strategy=QUORUM(1))
    members = (Node(name="a", body=None), Node(name="b", body=inner), Node(name="w", body=holding(None)))
    for strategy in (ALL, RACE, HEDGE(0.5), VOTE, BEST(judge)):
        before = holding(TeamPlan(name="team", members=members, strategy=strategy, width=2, timeout=3.0))
        after = from_data(to_data(before))
        assert rewired(before, after) == []
        assert to_data(after) == to_data(before)
        body = after.nodes[0].body
        assert (body.name, [member.name for member in body.members]) == ("team", ["a", "b", "w"])
        assert (body.strategy.need, body.strategy.stagger) == (strategy.need, strategy.stagger)
        assert isinstance(body.members[1].body, TeamPlan)
        assert isinstance(body.members[2].body, Plan)


def test_the_judge_of_a_recorded_run_is_never_asked():
    body = from_data(to_data(holding(plan(BEST(judge), "a")))).nodes[0].body
    with pytest.raises(LookupError, match="not asked again"):
        body.strategy.judge(1)


def test_a_node_is_rewired_by_other_members_and_by_another_way_to_settle_and_not_by_another_pace():
    before = holding(plan(RACE, "a", "b"))
    for other in (plan(RACE, "a"), plan(RACE, "a", "b", "c"), plan(RACE, "b", "a"), plan(QUORUM(2), "a", "b"), plan(VOTE, "a", "b")):
        assert rewired(before, holding(other)) == ["panel"]
    assert rewired(before, holding(None)) == ["panel"]
    paced = replace(plan(HEDGE(5), "a", "b"), width=1, timeout=2.0)
    assert rewired(before, holding(paced)) == []
    assert definition_hash(before) != definition_hash(holding(paced)), "a policy is part of the definition, and rewires nothing"


def test_a_plan_holds_the_names_of_its_nodes_alone():
    held = holding(None)
    assert held.holds("panel")
    assert not held.holds("other")
    assert not held.holds(["panel"])


def test_a_composite_has_no_problems_and_holds_nothing_but_itself_unless_it_says_so():
    body = Composite()
    assert (body.problems(), body.contains(body), body.contains(Composite())) == ([], True, False)
    with pytest.raises(NotImplementedError):
        body.compiled()
