"""Teams by the public API, in this process: what each strategy answers, who is stopped, and what a workflow makes of it."""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import (
    ALL,
    BEST,
    HEDGE,
    QUORUM,
    RACE,
    VOTE,
    Context,
    Engine,
    Event,
    ExecutionStrategy,
    Member,
    Next,
    Strategy,
    Team,
    Workflow,
)
from engine.errors import DefinitionError, InvalidGraph, MemberFailed, StepTimedOut, TeamTimedOut
from engine.runtime.clock import SystemClock
from tests.engine.racing_bodies import Gate, boom, cancel_itself, giving, hang, shown, stopped, told

pytestmark = pytest.mark.anyio


@dataclass
class Answer:
    """What an agent gives."""

    content: Any
    cost: int


def noded(team: Any, **policy: Any) -> Workflow:
    return Workflow("teams", storage=policy.pop("storage", None), **{k: policy.pop(k) for k in ("reducers", "on_conflict") if k in policy}
                    ).add_node("panel", team, **policy).set_entry_point("panel")  # fmt: skip


def of_members(events: list[Event], *kinds: str) -> list[tuple[str, int]]:
    """Kind and member of what was told of members."""
    return [(e.kind, int(e.step_id.rpartition("/")[2])) for e in events if e.step_id.count("/") == 3 and (not kinds or e.kind in kinds)]


# Building.


def test_the_signature_is_that_of_the_seeds():
    team = Team([boom])
    assert (team.name, team.max_concurrent, team.return_full_output, team.strategy, team.input_mapper) == ("Team", 0, False, ALL, None)
    assert Team([boom, boom], "duo", 2, True, ExecutionStrategy.RACE, lambda raw, index: raw).strategy == RACE
    assert repr(team).startswith("Team('Team', members=1")


@pytest.mark.parametrize("strategy", [RACE, HEDGE(1), QUORUM(1), VOTE, BEST(len)])
def test_a_team_of_nobody_cannot_choose(strategy: Strategy):
    with pytest.raises(ValueError, match=r"team 'none' has no members, so nobody can win; only ALL takes an empty team"):
        Team([], "none", strategy=strategy)


async def test_an_empty_team_answers_all_with_an_empty_list():
    assert await Team([]).run(1) == []
    assert await noded(Team([])).execute(1) == []


def test_a_quorum_larger_than_its_team_is_refused():
    with pytest.raises(ValueError, match="needs 3 successes of its 2 members"):
        Team([boom, boom], strategy=QUORUM(3))


@pytest.mark.parametrize("options", [
    {"name": "a/b"}, {"name": ""}, {"strategy": "race"}, {"strategy": QUORUM}, {"max_concurrent": -1}, {"max_concurrent": True},
    {"input_mapper": 3}, {"timeout": -1}, {"timeout": float("nan")},
])  # fmt: skip
def test_what_a_team_cannot_be_made_of_is_refused_at_once(options: dict[str, Any]):
    with pytest.raises(DefinitionError):
        Team([boom], **options)


@pytest.mark.parametrize(("make", "advice"), [
    (lambda: Team(boom), r"must be a list, not <function boom.*>: write Team\(\[boom, \.\.\.\]\)"),
    (lambda: Team(boom, hang), r"write Team\(\[boom, \.\.\.\]\)"),
    (lambda: Team("ab"), "must be a list of bodies, not the text 'ab'"),
    (lambda: Team([boom], RACE), r"write Team\(members, strategy=RACE\)"),
    (lambda: Team([boom], strategy="race"), r"pass ALL, RACE, HEDGE\(delay\), QUORUM\(k\), VOTE or BEST\(judge\)"),
    (lambda: Team([boom], strategy=QUORUM(2)), "needs 2 successes of its 1 member$"),
    (lambda: Workflow().add_node("a", Member(boom)), "node 'a': a Member stands in a Team only"),
    (lambda: Workflow().add_node("a", RACE), r"node 'a': a strategy is no body: write Team\(members, strategy"),
    (lambda: Workflow().add_node("a", 5), "5 is no body: .*or a Team"),
])  # fmt: skip
def test_what_is_mistaken_for_a_team_or_a_part_of_one_is_refused_with_what_to_write(make: Callable[[], Any], advice: str):
    with pytest.raises(DefinitionError, match=advice):
        make()


@pytest.mark.parametrize("options", [{"timeout": -1}, {"num_cpus": -1}, {"resources": {"": 1}}])
def test_what_a_member_cannot_have_is_refused_with_its_place(options: dict[str, Any]):
    with pytest.raises(DefinitionError, match="team 'Team', member 1"):
        Team([boom, Member(boom, **options)])


def test_no_limit_of_members_is_none_or_0():
    assert Team([boom], max_concurrent=None).max_concurrent == 0


def test_a_strategy_that_has_to_be_called_says_so():
    with pytest.raises(DefinitionError, match=r"call it: HEDGE\(delay\)"):
        Team([boom], strategy=HEDGE)  # type: ignore[arg-type]


async def test_the_problems_of_a_workflow_tell_of_members_that_are_no_body_and_stop_nothing():
    flow = noded(Team([giving(1), 5, str], "crew"))
    problems = [(p.text, p.where, p.warning) for p in flow.problems()]
    assert problems == [
        ("in node 'panel': member crew[1]: not executable: 5 is no body: pass a function, an object with run(), a Workflow or a Team",
         "panel/crew[1]", True),
        ("in node 'panel': member crew[2]: not executable: str is a class; pass an instance", "panel/crew[2]", True),
    ]  # fmt: skip
    assert flow.validate()
    assert [error is None for _, error in ((r["member_index"], r["error"]) for r in await flow.execute())] == [True, False, False]


async def test_the_problems_of_a_member_that_is_a_workflow_are_those_of_the_workflow_around():
    broken = Workflow("broken").add_node("a", boom)
    flow = noded(Team([broken], "crew"))
    assert [(p.text, p.where) for p in flow.problems() if not p.warning] == [
        ("in node 'panel': in member crew[0]: " + next(p.text for p in broken.problems()), "panel/crew[0]/" + broken.problems()[0].where)
    ]
    with pytest.raises(InvalidGraph):
        await flow.execute()
    with pytest.raises(InvalidGraph):
        await Team([broken]).run()


def test_a_workflow_cannot_contain_itself_by_way_of_a_team():
    flow = Workflow("self")
    with pytest.raises(DefinitionError, match="cannot contain itself"):
        flow.add_node("panel", Team([Team([flow])]))


# What a member is, and what it gets.


async def test_members_are_functions_objects_workflows_and_teams():
    inner = Workflow("inner").add_node("a", lambda x: x + 1).add_node("b", lambda x: x * 2).add_edge("a", "b").set_entry_point("a")

    async def later(x: int) -> int:
        return x - 1

    team = Team([lambda x: x, later, SimpleNamespace(run=lambda x: -x), inner, Team([later]), Member(later, timeout=9)])
    results = await team.run(3)
    assert told(results[:4]) == [(0, 3), (1, 2), (2, -3), (3, 8)]
    assert [r["result"] for r in results[4].value] == [2]
    assert results[5].value == 2


async def test_calling_a_team_is_running_it():
    team = Team([giving(1)])
    assert told(await team(5)) == told(await team.run(5)) == [(0, 1)]


@pytest.mark.parametrize("value", [0, False, "", [], None, {"content": "x", "more": [1]}])
async def test_any_input_is_handed_on_whole(value: Any):
    assert told(await Team([lambda x: x]).run(value)) == [(0, value)]


async def test_a_context_stands_for_its_input():
    async def body(x: int, ctx: Context) -> Any:
        return [told(await Team([lambda y: y + 1]).run(ctx)), told(await Team([lambda y: y + 1]).run(x * 10))]

    flow = Workflow().add_node("first", giving(4)).add_node("body", body).add_edge("first", "body").set_entry_point("first")
    assert await flow.execute(0) == [[(0, 5)], [(0, 41)]]


async def test_a_member_may_not_edit_the_input_of_another():
    def edit(x: list[int]) -> list[int]:
        x.append(9)
        return x

    given = [1]
    assert told(await Team([edit, edit, lambda x: x], max_concurrent=1).run(given)) == [(0, [1, 9]), (1, [1, 9]), (2, [1])]
    assert given == [1]


async def test_members_have_a_context_of_their_own():
    def look(x: Any, ctx: Context) -> Any:
        return [ctx.node, ctx.step_id.removeprefix(ctx.run_id), ctx.attempt, ctx.input, ctx.step_input]

    flow = Workflow().add_node("first", giving(4)).add_node("panel", Team([look, look])).add_edge("first", "panel").set_entry_point("first")
    assert shown(await flow.execute(3)) == [(0, ["panel", "/panel/1/0", 1, 3, 4]), (1, ["panel", "/panel/1/1", 1, 3, 4])]


async def test_the_text_of_an_agents_output_is_taken_unless_the_full_output_is_asked_for():
    members: list[Any] = [lambda: Answer("text", 3), lambda: {"content": "kept"}, lambda: Answer(["no text"], 3)]
    full = [(0, {"content": "text", "cost": 3}), (1, {"content": "kept"}), (2, {"content": ["no text"], "cost": 3})]
    assert told(await Team(members).run()) == [(0, "text"), *full[1:]]
    assert told(await Team(members, return_full_output=True).run()) == full


# Mappers.


async def test_a_mapper_gives_each_member_its_input_sync_or_async():
    async def later(raw: list[int], index: int) -> int:
        return raw[index]

    members: list[Any] = [lambda x: x, lambda x: x * 2]
    assert told(await Team(members, input_mapper=lambda raw, index: raw[index]).run([3, 4])) == [(0, 3), (1, 8)]
    assert told(await Team(members, input_mapper=later).run([3, 4])) == [(0, 3), (1, 8)]
    assert told(await Team(members, input_mapper=lambda raw, index: later(raw, index)).run([3, 4])) == [(0, 3), (1, 8)]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_mapper_that_fails_fails_its_member_alone(asynchronous: bool):
    async def later(raw: list[int], index: int) -> int:
        return raw[index]

    mapper = later if asynchronous else lambda raw, index: raw[index]
    results = await Team([lambda x: x, lambda x: x], input_mapper=mapper).run([3])
    assert told(results) == [(0, 3), (1, "Input mapping failed: IndexError: list index out of range")]
    with pytest.raises(MemberFailed, match="Input mapping failed") as caught:
        _ = results[1].value
    assert isinstance(caught.value.__cause__, IndexError)


async def test_a_mapper_cannot_change_what_the_next_member_gets():
    def mapper(raw: list[int], index: int) -> list[int]:
        raw.append(index)
        return raw

    assert told(await Team([lambda x: x, lambda x: x], input_mapper=mapper).run([9])) == [(0, [9, 0]), (1, [9, 1])]


async def test_a_mapper_that_cancels_its_own_task_fails_its_member_alone():
    async def mapper(raw: Any, index: int) -> Any:
        return raw if index else await cancel_itself()

    async with asyncio.timeout(5):
        results = await Team([giving(1), giving(2)], input_mapper=mapper).run(timeout=60)
    assert told(results) == [(0, "Input mapping failed: CancelledError: cancelled by its own code"), (1, 2)]


async def test_a_race_is_won_while_a_mapper_still_maps():
    async def mapper(raw: Any, index: int) -> Any:
        return await hang(raw) if index == 0 else raw

    assert told(await Team([giving("a"), giving("b")], strategy=RACE, input_mapper=mapper).run(1)) == [(1, "b")]


async def test_a_mapped_input_is_told_with_the_members_start():
    _, events = await stopped(noded(Team([giving(1), giving(2)], input_mapper=lambda raw, index: raw + index)), 5)
    started = [e.data for e in events if e.kind == "step_started" and "member" in e.data]
    assert sorted(data["input"] for data in started) == [5, 6]


async def test_what_a_mapper_gives_must_be_storable_where_it_is_stored():
    flow = noded(Team([giving(1), giving(2)], input_mapper=lambda raw, index: object() if index else raw), storage="memory://mapped")
    output = await flow.execute(1)
    assert output[0]["result"] == 1
    assert output[1]["error"].startswith("Input mapping failed: the input of panel[1] is of type object")


# ALL.


async def test_all_answers_in_member_order_whatever_ended_first():
    turns = [asyncio.Event() for _ in range(3)]
    turns[2].set()

    async def body(x: int) -> int:
        await turns[x].wait()
        if x:
            turns[x - 1].set()
        return x

    assert told(await Team([body] * 3, input_mapper=lambda raw, index: index).run()) == [(0, 0), (1, 1), (2, 2)]


async def test_a_failure_stands_in_the_list_and_its_value_raises_it():
    results = await Team([giving(1), boom, giving(3)]).run(7)
    assert told(results) == [(0, 1), (1, "ValueError: boom 7"), (2, 3)]
    assert [(r.is_success, r.result) for r in results] == [(True, 1), (False, None), (True, 3)]
    with pytest.raises(MemberFailed, match=r"^ValueError: boom 7$") as caught:
        _ = results[1].value
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__cause__ is results[1].exception


async def test_everybody_may_fail_under_all():
    assert told(await Team([boom, boom]).run(1)) == [(0, "ValueError: boom 1"), (1, "ValueError: boom 1")]


async def test_a_limit_turns_the_unfinished_into_failures_and_keeps_the_rest():
    slow = Gate()
    results = await Team([giving(1), slow, boom], timeout=0.05).run(7)
    assert told(results) == [(0, 1), (1, "Timed out after 0.05 s"), (2, "ValueError: boom 7")]
    assert slow.cancelled == 1
    assert results[1].stopped_after is not None
    assert 0.04 < results[1].stopped_after < 5
    with pytest.raises(MemberFailed, match=r"Timed out after 0\.05 s"):
        _ = results[1].value


async def test_the_limit_of_a_call_goes_before_the_teams_own():
    team = Team([hang], timeout=100)
    assert told(await team.run(1, timeout=0.02)) == [(0, "Timed out after 0.02 s")]
    assert told(await team.run(1, timeout=0.03)) == [(0, "Timed out after 0.03 s")]


@pytest.mark.parametrize("strategy", [ALL, VOTE, BEST(lambda r: 1)])
async def test_a_limit_of_0_expires_before_anybody_starts(strategy: Strategy):
    ran: list[int] = []
    assert told(await Team([lambda: ran.append(1)], strategy=strategy).run(timeout=0)) == [(0, "Timed out after 0 s")]
    assert ran == []


async def test_a_members_own_limit_ends_that_member_alone():
    results = await Team([Member(hang, timeout=0.02), giving(2)]).run()
    assert told(results) == [(0, "step 'Team[0]' timed out after 0.02 s"), (1, 2)]
    assert isinstance(results[0].exception, StepTimedOut)


async def test_a_members_limit_holds_for_a_workflow_and_for_a_team():
    flow = Workflow("inner").add_node("a", hang).set_entry_point("a")
    results = await Team([Member(flow, timeout=0.02), Member(Team([hang]), timeout=0.02), Member(giving(1), timeout=0)]).run()
    assert [r.error for r in results] == [
        "step 'Team[0]' timed out after 0.02 s", "step 'Team[1]' timed out after 0.02 s", "step 'Team[2]' timed out: its limit is 0 s",
    ]  # fmt: skip


async def test_no_more_members_run_at_once_than_max_concurrent():
    running: Counter[str] = Counter()
    most = 0

    async def body(x: Any) -> None:
        nonlocal most
        running["now"] += 1
        most = max(most, running["now"])
        await asyncio.sleep(0)
        running["now"] -= 1

    await Team([body] * 7, max_concurrent=3).run()
    assert most == 3


async def test_sync_members_run_side_by_side_and_block_nobody():
    barrier = threading.Barrier(3)
    assert len(await Team([lambda: barrier.wait(5)] * 3).run()) == 3


# RACE.


@pytest.mark.parametrize("repeat", range(5))
async def test_a_race_always_has_exactly_one_result(repeat: int):
    for _ in range(10):
        results = await Team([giving(i) for i in range(5)], strategy=RACE).run()
        assert told(results) == [(0, 0)], "a tie goes to the lowest member"


async def test_the_first_success_wins_and_the_others_are_stopped():
    slow = [Gate(), Gate()]

    async def quick(x: Any) -> str:
        await asyncio.gather(*(s.started.wait() for s in slow))
        return "won"

    assert told(await Team([slow[0], quick, slow[1]], strategy=RACE).run()) == [(1, "won")]
    assert [s.cancelled for s in slow] == [1, 1]


async def test_failures_are_passed_over_as_long_as_somebody_may_succeed():
    assert told(await Team([boom, giving("won"), boom], strategy=RACE, max_concurrent=1).run(1)) == [(1, "won")]


async def test_a_race_that_all_lose_has_each_ones_own_error():
    def other(x: Any) -> None:
        raise KeyError("other")

    results = await Team([boom, other], strategy=RACE).run(1)
    assert told(results) == [(0, "ValueError: boom 1"), (1, "KeyError: 'other'")]
    assert [type(r.exception) for r in results] == [ValueError, KeyError]
    assert [r.is_success for r in results] == [False, False]


async def test_a_race_without_a_winner_in_its_time_raises_with_what_is_known_of_each():
    with pytest.raises(TeamTimedOut, match=r"'Team' timed out after 0\.05 s; 0: ValueError: boom 1; 1: Timed out after 0\.05 s") as caught:
        await Team([boom, hang], strategy=RACE).run(1, timeout=0.05)
    assert isinstance(caught.value, RuntimeError)
    assert told(list(caught.value.results)) == [(0, "ValueError: boom 1"), (1, "Timed out after 0.05 s")]


@pytest.mark.parametrize("strategy", [RACE, HEDGE(0.01), QUORUM(1)])
async def test_a_race_with_a_limit_of_0_has_no_winner(strategy: Strategy):
    with pytest.raises(TeamTimedOut, match="timed out after 0 s"):
        await Team([giving(1)], strategy=strategy).run(timeout=0)


async def test_a_race_that_all_lose_before_its_limit_is_no_time_out():
    assert told(await Team([boom], strategy=RACE).run(1, timeout=60)) == [(0, "ValueError: boom 1")]


async def test_thirty_races_of_one_team_at_once_stay_separate():
    async def slow(x: int) -> str:
        await asyncio.sleep(30)
        return "slow"

    team = Team([slow, lambda x: x * 2, slow], strategy=RACE)
    answers = await asyncio.gather(*(team.run(n) for n in range(30)))
    assert [told(answer) for answer in answers] == [[(1, n * 2)] for n in range(30)]


async def test_the_record_says_how_long_each_loser_took():
    slow = Gate()

    async def quick(x: Any) -> str:
        await slow.started.wait()
        await asyncio.sleep(0.01)
        return "won"

    _, events = await stopped(noded(Team([slow, boom, quick], strategy=RACE)), 1)
    assert of_members(events, "member_won", "member_lost") == [("member_won", 2), ("member_lost", 1), ("member_lost", 0)]
    failed, lost = (e for e in events if e.kind == "member_lost")
    assert failed.data["reason"] == "ValueError: boom 1"
    assert lost.data["reason"] == "stopped, since the team had its answer"
    assert 0 <= lost.data["stopped_after"] < 5
    assert slow.cancelled == 1


async def test_a_run_ends_only_when_its_losers_have_stopped():
    slow = Gate()

    async def quick(x: Any) -> str:
        await slow.started.wait()
        return "won"

    handle, events = await stopped(noded(Team([slow, quick], strategy=RACE)))
    assert [e.kind for e in events][-2:] == ["member_lost", "run_completed"]
    assert handle.status == "completed"


@pytest.mark.slow
async def test_a_sync_loser_is_left_unattended_and_an_event_says_so():
    begun, release = threading.Event(), threading.Event()

    def slow(x: Any) -> str:
        begun.set()
        release.wait(10)
        return "late"

    def quick(x: Any) -> str:
        begun.wait(10)
        return "won"

    handle, events = await stopped(noded(Team([slow, quick], strategy=RACE)))
    release.set()
    assert shown(handle.output) == [(1, "won")]
    (lost,) = [e for e in events if e.kind == "member_lost"]
    assert lost.data["reason"] == "stopped, since the team had its answer; the body goes on unattended"


@pytest.mark.slow
async def test_an_async_loser_that_does_not_listen_is_left_unattended():
    release = asyncio.Event()
    begun = asyncio.Event()

    async def stubborn(x: Any) -> None:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    async def quick(x: Any) -> str:
        await begun.wait()
        return "won"

    handle, events = await stopped(noded(Team([stubborn, quick], strategy=RACE)))
    release.set()
    assert shown(handle.output) == [(1, "won")]
    assert next(e for e in events if e.kind == "member_lost").data["reason"].endswith("the body goes on unattended")


async def test_what_comes_after_a_race_does_not_wait_for_its_losers():
    order: list[str] = []
    next_began = asyncio.Event()

    async def slow(x: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await next_began.wait()
            order.append("loser stopped")

    async def after(x: Any) -> None:
        order.append("next began")
        next_began.set()

    async def quick(x: Any) -> str:
        await asyncio.sleep(0.01)
        return "won"

    flow = noded(Team([slow, quick], strategy=RACE)).add_node("after", after).add_edge("panel", "after")
    await flow.execute()
    assert order == ["next began", "loser stopped"]


# HEDGE.


async def test_a_hedge_starts_the_next_member_as_soon_as_the_one_before_it_fails():
    calls: list[int] = []

    def member(index: int, body: Any) -> Any:
        async def run(x: Any) -> Any:
            calls.append(index)
            return body(x)

        return run

    team = Team([member(0, lambda x: 1 / 0), member(1, lambda x: "won"), member(2, lambda x: "too late")], strategy=HEDGE(60))
    assert told(await team.run(1)) == [(1, "won")]
    assert calls == [0, 1]


async def test_a_hedge_starts_the_next_member_after_its_delay():
    slow = Gate()
    assert told(await Team([slow, giving("won"), giving("spare")], strategy=HEDGE(0.02)).run()) == [(1, "won")]
    assert slow.cancelled == 1


async def test_a_hedge_whose_first_member_answers_asks_nobody_else():
    _, events = await stopped(noded(Team([giving("won"), hang], strategy=HEDGE(60))))
    assert of_members(events) == [("step_started", 0), ("step_succeeded", 0), ("member_won", 0)]


async def test_a_slower_member_of_a_hedge_may_still_win():
    release = asyncio.Event()

    async def first(x: Any) -> str:
        await release.wait()
        return "first"

    async def second(x: Any) -> None:
        release.set()
        await asyncio.Event().wait()

    assert told(await Team([first, second], strategy=HEDGE(0.01)).run()) == [(0, "first")]


# QUORUM.


async def test_a_quorum_is_the_first_successes_in_their_order():
    gates = [asyncio.Event() for _ in range(3)]
    gates[2].set()

    def member(index: int, opens: int | None) -> Any:
        async def body(x: Any) -> int:
            await gates[index].wait()
            if opens is not None:
                asyncio.get_running_loop().call_later(0.01, gates[opens].set)
            return index

        return body

    team = Team([member(0, 1), member(1, None), member(2, 0)], strategy=QUORUM(2))
    assert told(await team.run()) == [(2, 2), (0, 0)]


async def test_a_quorum_out_of_reach_stops_at_once():
    slow = Gate()

    async def fail(x: Any) -> None:
        await slow.started.wait()
        raise ValueError("boom")

    results = await Team([fail, slow, fail], strategy=QUORUM(2)).run()
    assert told(results) == [(0, "ValueError: boom"), (1, "Stopped: too many others had failed"), (2, "ValueError: boom")]
    assert slow.cancelled == 1


async def test_a_quorum_out_of_reach_starts_nobody_any_more():
    ran: list[int] = []
    team = Team([boom, boom, lambda: ran.append(1)], strategy=QUORUM(2), max_concurrent=1)
    assert told(await team.run(1))[2] == (2, "Never started: too many others had failed")
    assert ran == []


async def test_a_hedge_whose_delay_ends_between_two_looks_at_the_clock_starts_the_next_member():
    class Late(SystemClock):
        def monotonic(self) -> float:
            return {"_stand": 0.9, "_change": 1.1}.get(sys._getframe(1).f_code.co_name, 0.0)  # too early; the delay of 1 s is over

    flow = noded(Team([hang, giving("second")], strategy=HEDGE(1)))
    handle = await Engine(None).start(flow)
    handle._remote._conductor.driver.ledger.clock = Late()  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        assert shown(await handle.wait()) == [(1, "second")]


# VOTE.


async def test_a_vote_is_the_most_frequent_answer_as_one_result():
    assert told(await Team([giving("a"), giving("b"), boom, giving("b")], strategy=VOTE).run(1)) == [(1, "b")]


async def test_a_tied_vote_goes_by_declared_order():
    assert told(await Team([giving("b"), giving("a"), giving("a"), giving("b")], strategy=VOTE).run()) == [(0, "b")]


async def test_votes_may_be_of_any_storable_value():
    members = [giving({"a": [1, (2,)]}), giving({"a": [1, (3,)]}), giving({"a": [1, (3,)]})]
    assert told(await Team(members, strategy=VOTE).run()) == [(1, {"a": [1, (3,)]})]


async def test_a_vote_takes_what_was_cast_within_its_limit():
    assert told(await Team([giving("a"), hang, hang], strategy=VOTE).run(timeout=0.05)) == [(0, "a")]


async def test_a_vote_in_which_all_fail_has_each_ones_error():
    assert told(await Team([boom, hang], strategy=VOTE).run(1, timeout=0.05)) == [(0, "ValueError: boom 1"), (1, "Timed out after 0.05 s")]


async def test_members_that_jump_vote_for_where_they_jump():
    def to(*given: Any) -> Callable[[], Next]:
        return lambda: Next(*given)

    async def where(*members: Any) -> Any:
        (result,) = await Team(members, strategy=VOTE).run(1)
        return result.member_index

    assert await where(to("approve"), to("reject"), to("reject")) == 1
    assert await where(giving(None), to("reject"), to("reject")) == 1
    assert await where(to("x", 1), to("x", 2), to("x", 2)) == 1
    assert await where(to("x"), to("x", Next.none), to("x", Next.none)) == 1
    assert await where(to("x", {"a": 1}), to("y", {"a": 1}), giving({"a": 1}), to("y", {"a": 1})) == 1


# BEST.


async def test_the_best_is_what_the_judge_scores_highest_sync_or_async():
    async def judge(result: int) -> float:
        return -abs(result - 10)

    team = [giving(3), giving(11), boom, giving(20)]
    assert told(await Team(team, strategy=BEST(lambda r: r)).run(1)) == [(3, 20)]
    assert told(await Team(team, strategy=BEST(judge)).run(1)) == [(1, 11)]
    assert told(await Team(team, strategy=BEST(lambda r: 0)).run(1)) == [(0, 3)]


@pytest.mark.parametrize("score", [float("nan"), "high", None, True, [1]])
async def test_a_result_without_a_number_as_its_score_is_a_failure(score: Any):
    results = await Team([giving(1), giving(2)], strategy=BEST(lambda r: score)).run()
    assert [r.error for r in results] == [f"Judge failed: gave {score!r}, which is no number"] * 2
    assert told(await Team([giving(1), giving(2)], strategy=BEST(lambda r: score if r == 2 else -5)).run()) == [(0, 1)]


async def test_a_judge_that_raises_fails_that_member_alone():
    def judge(result: int) -> float:
        return 1 / (result - 2)

    assert told(await Team([giving(2), giving(5)], strategy=BEST(judge)).run()) == [(1, 5)]
    results = await Team([giving(2)], strategy=BEST(judge)).run()
    assert told(results) == [(0, "Judge failed: ZeroDivisionError: division by zero")]
    assert isinstance(results[0].exception, ZeroDivisionError)


@pytest.mark.parametrize("timeout", [None, 60])
async def test_a_judge_that_cancels_its_own_task_has_failed(timeout: float | None):
    async with asyncio.timeout(5):
        results = await Team([giving(1), giving(2)], strategy=BEST(cancel_itself)).run(timeout=timeout)
    assert told(results) == [(i, "Judge failed: CancelledError: cancelled by its own code") for i in range(2)]


@pytest.mark.parametrize("storage", [None, "memory://odd-scores"])
@pytest.mark.parametrize("score", [Decimal("sNaN"), Decimal("NaN"), Fraction(1, 2), complex(1, 1)])
async def test_a_score_that_cannot_be_compared_or_kept_fails_that_member_alone(score: Any, storage: str | None):
    team = Team([giving(1), giving(2)], strategy=BEST(lambda r: score if r == 2 else 0))
    assert shown(await noded(team, storage=storage).execute()) == [(0, 1)]


async def test_scores_may_be_numbers_that_no_float_can_hold():
    assert told(await Team([giving(1), giving(2)], strategy=BEST(lambda r: 10**400 + r)).run()) == [(1, 2)]
    assert told(await Team([giving(1), giving(2)], strategy=BEST(lambda r: float("inf") if r == 2 else 10**400)).run()) == [(1, 2)]


@pytest.mark.parametrize("scores", [
    (np.int64(3), Decimal("2.5")), (np.float64(1.0), 10**400 * -1), (np.float32(2), Decimal(1)), (np.array(4), 3),
])  # fmt: skip
async def test_scores_may_be_of_any_kinds_of_numbers_side_by_side(scores: tuple[Any, Any]):
    assert told(await Team([giving(0), giving(1)], strategy=BEST(lambda r: scores[r])).run()) == [(0, 0)]


async def test_scores_are_told_of_the_winner_and_of_those_who_lost():
    _, events = await stopped(noded(Team([giving(3), giving(9)], strategy=BEST(lambda r: r))))
    scores = {e.kind: e.data["score"] for e in events if e.kind.startswith("member_")}
    assert scores == {"member_won": 9, "member_lost": 3}


async def test_a_judge_that_never_answers_is_held_to_the_teams_limit():
    async def judge(result: int) -> float:
        await asyncio.Event().wait()
        return 0.0

    assert told(await Team([giving(1)], strategy=BEST(judge)).run(timeout=0.05)) == [(0, "Timed out after 0.05 s")]


async def test_a_judge_may_edit_what_it_looks_at_without_harm():
    def judge(result: list[int]) -> int:
        result.append(9)
        return len(result)

    assert told(await Team([giving([1]), giving([1, 2])], strategy=BEST(judge)).run()) == [(1, [1, 2])]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_judge_is_given_the_jump_of_a_member_that_jumps(asynchronous: bool):
    seen: list[Any] = []

    def judge(result: Any) -> float:
        seen.append((result.node, result.input) if isinstance(result, Next) else result)
        return len(seen)

    async def later(result: Any) -> float:
        return judge(result)

    jumps: list[Any] = [lambda: Next("x", [1]), giving(2), lambda: Next("y"), lambda: Next("z", Next.none)]
    await Team(jumps, strategy=BEST(later if asynchronous else judge)).run()
    assert sorted(seen, key=str) == sorted([("x", [1]), 2, ("y", None), ("z", Next.none)], key=str)


async def test_the_best_of_the_first_two():
    assert told(await Team([hang, giving(1), giving(2)], strategy=Strategy(2, pick=lambda r: -r)).run()) == [(1, 1)]


# In a body.


async def test_a_team_alone_hands_a_jump_on_as_a_result():
    async def body(ctx: Context) -> Any:
        (result,) = await Team([hang, lambda: Next("target", 5)], strategy=RACE).run(ctx)
        return result.value

    flow = Workflow().add_node("a", body).add_node("target", lambda x: x * 2).set_entry_point("a")
    assert await flow.execute() == 10


async def test_results_of_a_team_alone_tell_when_each_began_and_how_long_it_took():
    results = await Team([giving(1), boom]).run(1)
    assert all(r.started is not None and r.stopped_after is not None and 0 <= r.stopped_after < 5 for r in results)


async def test_a_team_alone_is_recorded_nowhere(tmp_path: Any):
    await Team([giving(1)]).run()
    assert list(tmp_path.iterdir()) == []


async def test_the_name_of_a_team_may_be_that_of_no_node():
    assert told(await Team([giving(1)], "last_output").run()) == [(0, 1)]
    assert told(await Team([giving(1)], "a[0]").run()) == [(0, 1)]
