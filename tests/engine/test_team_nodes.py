"""A team as a node: what its workflow makes of outputs, diffs and jumps, and how a race is stopped, tried again and resumed."""

import asyncio
from collections import Counter
from typing import Any

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
    Member,
    MemberResult,
    Next,
    Retry,
    RunHandle,
    Strategy,
    Team,
    Workflow,
)
from engine.errors import (
    RunCancelled,
    RunPaused,
    RunTimedOut,
    StateConflict,
    StepFailed,
    StepTimedOut,
    TeamTimedOut,
)
from tests.engine.racing_bodies import Gate, boom, counted, giving, hang, setting, shown, stopped

pytestmark = pytest.mark.anyio


def noded(team: Any, *, storage: Any = None, reducers: Any = None, on_conflict: Any = "warn", **policy: Any) -> Workflow:
    """A workflow of a team and a node behind it."""
    flow = Workflow("teams", storage=storage, reducers=reducers, on_conflict=on_conflict).add_node("panel", team, **policy)
    return flow.add_node("after", lambda x: x).add_edge("panel", "after").set_entry_point("panel")


# What a workflow sees.


async def test_the_output_of_a_team_is_its_list_of_results_as_data():
    output = await noded(Team([giving(1), boom])).execute(7)
    assert output == [
        {"member_index": 0, "result": 1, "error": None, "is_success": True},
        {"member_index": 1, "result": None, "error": "ValueError: boom 7", "is_success": False},
    ]


async def test_a_team_has_one_row_and_one_entry_in_the_history():
    handle, _ = await stopped(noded(Team([giving(1), giving(2)], strategy=VOTE)))
    assert [(row.node, row.status) for row in handle.executions] == [("panel", "success"), ("after", "success")]
    assert shown(handle.history["panel"]) == [(0, 1)]


async def test_members_are_steps_of_their_own_in_the_events():
    _, events = await stopped(noded(Team([Member(giving(1)), boom], "crew")), 7)
    told = [(e.kind, e.node, e.step_id.partition("/")[2], e.attempt) for e in events if e.step_id and "after" not in e.step_id]
    assert told[0] == ("step_started", "panel", "panel/1", 1)
    assert told[-1] == ("step_succeeded", "panel", "panel/1", 1)
    assert sorted(told[1:-1]) == [
        ("step_failed", "panel", "panel/1/1", 1),
        ("step_started", "panel", "panel/1/0", 1),
        ("step_started", "panel", "panel/1/1", 1),
        ("step_succeeded", "panel", "panel/1/0", 1),
    ]
    data = {(e.kind, e.step_id.partition("/")[2]): e.data for e in events}
    assert data["step_started", "panel/1"] == {"members": 2}
    assert data["step_started", "panel/1/1"] == {"member": "boom"}
    assert data["step_failed", "panel/1/1"]["reason"] == "ValueError: boom 7"
    assert data["step_failed", "panel/1/1"]["error"]["type"] == "ValueError"
    end = data["step_succeeded", "panel/1"]
    assert (end["answer"], end["errors"]) == ([0, 1], {"1": "ValueError: boom 7"})
    assert "output" not in end, "it lies with the members"


async def test_the_winner_is_told_before_its_team_has_succeeded():
    _, events = await stopped(noded(Team([hang, giving(1)], strategy=RACE)))
    kinds = [(e.kind, e.step_id.partition("/")[2]) for e in events]
    places = [kinds.index(one) for one in [("step_succeeded", "panel/1/1"), ("member_won", "panel/1/1"), ("step_succeeded", "panel/1")]]
    assert places == sorted(places)
    assert kinds.index(("step_started", "after/1")) > places[2]


async def test_a_team_in_a_map_answers_for_each_item():
    flow = Workflow().add_map("each", Team([hang, lambda x: x * 10], strategy=RACE)).set_entry_point("each")
    assert [shown(item) for item in await flow.execute([3, 1])] == [[(1, 30)], [(1, 10)]]


async def test_a_team_works_inside_a_sub_workflow():
    inner = noded(Team([hang, lambda x: x + 1], strategy=RACE))
    handle, events = await stopped(Workflow("outer").add_node("sub", inner).set_entry_point("sub"), 3)
    assert shown(handle.output) == [(1, 4)]
    won = next(e for e in events if e.kind == "member_won")
    assert (won.node, won.step_id.partition("/")[2]) == ("sub/panel", "sub/1/0/1")


async def test_a_team_is_a_member_of_a_team():
    outer = Team([Team([giving(1), giving(2)]), Team([hang, giving(3)], strategy=RACE)])
    (first, second) = await outer.run()
    assert shown(first.value) == [(0, 1), (1, 2)]
    assert shown(second.value) == [(1, 3)]


async def test_a_team_that_times_out_is_a_member_that_fails():
    (result,) = await Team([Team([hang], "inner", strategy=RACE, timeout=0.02)], "outer").run()
    assert result.error == "team 'outer[0]' timed out after 0.02 s; 0: Timed out after 0.02 s"
    assert isinstance(result.exception, TeamTimedOut)


async def test_workflows_race_and_the_loser_is_stopped_in_the_middle():
    gate = Gate()
    done: list[str] = []
    slow = Workflow("slow").add_node("a", giving(1)).add_node("b", gate).add_node("c", lambda: done.append("c"))
    slow.add_edge("a", "b").add_edge("b", "c").set_entry_point("a")

    async def waits(x: Any) -> str:
        await gate.started.wait()
        return "won"

    quick = Workflow("quick").add_node("a", waits).set_entry_point("a")
    handle, events = await stopped(noded(Team([slow, quick], strategy=RACE)))
    assert shown(handle.output) == [(1, "won")]
    assert (gate.cancelled, done) == (1, [])
    steps = {(e.kind, e.step_id.partition("/")[2]) for e in events}
    assert {("step_succeeded", "panel/1/0/0"), ("step_stopped", "panel/1/0/1"), ("member_lost", "panel/1/0")} <= steps


async def test_a_workflow_that_fails_is_a_member_that_fails():
    inner = Workflow("inner").add_node("a", boom).set_entry_point("a")
    (result,) = await Team([inner]).run(1)
    assert result.error == "Workflow execution failed: step 'a', attempt 1: ValueError: boom 1"
    assert isinstance(result.exception, StepFailed)


async def test_members_share_the_runs_width():
    most: Counter[str] = Counter()

    async def body(given: Any) -> None:
        most["now"] += 1
        most["most"] = max(most["most"], most["now"])
        await asyncio.sleep(0)
        most["now"] -= 1

    flow = Workflow(max_concurrency=2).add_node("panel", Team([body] * 6)).add_node("other", Team([body] * 6))
    await flow.set_entry_point("panel", "other").execute()
    assert most["most"] == 2


# State.


async def test_what_the_members_of_all_write_merges_in_member_order():
    handle, events = await stopped(noded(Team([setting(k="first", a=1), setting(k="second", b=2)])))
    assert handle.state == {"k": "second", "a": 1, "b": 2}
    assert [(e.data["key"], e.data["nodes"]) for e in events if e.kind == "conflict"] == [("k", ["panel[0]", "panel[1]"])]


async def test_reducers_combine_what_members_write():
    def add(n: int) -> Any:
        async def body(given: Any, ctx: Context) -> None:
            ctx.state["sum"] = ctx.state.get("sum", 0) + n
            ctx.state.setdefault("log", []).append(n)

        return body

    handle, events = await stopped(noded(Team([add(3), boom, add(1)]), reducers={"sum": "add", "log": "append"}))
    assert handle.state == {"sum": 4, "log": [3, 1]}
    assert not [e for e in events if e.kind == "conflict"]


async def test_a_conflict_of_members_fails_the_run_where_that_is_asked_for():
    with pytest.raises(StateConflict, match=r"'panel\[0\]' and 'panel\[1\]'"):
        await noded(Team([setting(k=1), setting(k=2)]), on_conflict="error").execute()


async def test_a_conflict_inside_of_a_team_in_a_team_names_each_member_once(caplog: pytest.LogCaptureFixture):
    team = Team([setting(k=1), Team([setting(k=2), setting(k=3)])])
    with pytest.raises(StateConflict, match=r"than one member of a team.*'panel\[0\]' and 'panel\[1\]\[0\]' and 'panel\[1\]\[1\]'"):
        await noded(team, on_conflict="error").execute()
    await noded(team).execute()
    assert "Members of one team wrote one key, 'k': 'panel[0]', 'panel[1][0]', 'panel[1][1]'; the later one wins" in caplog.messages


async def test_a_conflict_of_items_is_one_of_members_where_they_are_of_one_item(caplog: pytest.LogCaptureFixture):
    async def own(given: int, ctx: Context) -> None:
        ctx.state[given] = True

    flow = Workflow().add_map("each", Team([own, own])).set_entry_point("each")
    await flow.execute([1, 2])
    assert [m.partition(":")[0] for m in caplog.messages] == [f"Members of one team wrote one key, {n}" for n in (1, 2)]
    caplog.clear()
    await flow.execute([1, 1])
    assert [m.partition(":")[0] for m in caplog.messages] == ["Steps of one layer wrote one key, 1"]


async def test_in_the_layers_merge_the_members_stand_in_the_place_of_their_team():
    flow = (
        Workflow().add_node("a", setting(k="a")).add_node("panel", Team([setting(k="p0"), setting(k="p1")])).add_node("z", setting(k="z"))
    )
    handle, events = await stopped(flow.set_entry_point("a", "panel", "z"))
    assert handle.state == {"k": "z"}
    assert next(e.data["nodes"] for e in events if e.kind == "conflict") == ["a", "panel[0]", "panel[1]", "z"]


async def test_a_race_keeps_what_its_winner_wrote_alone():
    both = asyncio.Barrier(2)

    async def loser(given: Any, ctx: Context) -> None:
        ctx.state["k"] = "loser"
        await both.wait()
        await asyncio.Event().wait()

    async def winner(given: Any, ctx: Context) -> str:
        ctx.state["k"] = "winner"
        await both.wait()
        return "won"

    handle, events = await stopped(noded(Team([loser, winner], strategy=RACE)))
    assert handle.state == {"k": "winner"}
    assert not [e for e in events if e.kind == "conflict"]


@pytest.mark.parametrize(("strategy", "state"), [
    (QUORUM(2), {"k": "b", "a": 1, "b": 1}), (VOTE, {"k": "a", "a": 1}), (BEST(lambda r: ord(r)), {"k": "c", "c": 1}),
])  # fmt: skip
async def test_only_those_write_whose_results_are_the_answer(strategy: Strategy, state: dict[str, Any]):
    members = [setting(k=name, **{name: 1}) for name in "abc"]
    handle, _ = await stopped(noded(Team(members, strategy=strategy, max_concurrent=1)))
    assert handle.state == state


async def test_a_failed_member_leaves_no_writes():
    async def fail(given: Any, ctx: Context) -> None:
        ctx.state["gone"] = True
        raise ValueError

    handle, _ = await stopped(noded(Team([fail, setting(k=1)])))
    assert handle.state == {"k": 1}


async def test_a_team_in_a_team_writes_in_the_place_of_its_member():
    inner = Team([setting(k=f"inner {i}") for i in range(3)], "inner")
    handle, _ = await stopped(noded(Team([inner, setting(k="outer")])))
    assert handle.state == {"k": "outer"}
    handle, _ = await stopped(noded(Team([setting(k="outer"), inner])))
    assert handle.state == {"k": "inner 2"}


async def test_a_workflow_as_a_member_keeps_its_state_to_itself():
    inner = Workflow("inner").add_node("a", setting(k=1)).set_entry_point("a")
    handle, _ = await stopped(noded(Team([inner, setting(own=2)])))
    assert handle.state == {"own": 2}


# Jumps.


def jumping(*members: Any, strategy: Strategy = ALL, **policy: Any) -> Workflow:
    flow = noded(Team(members, strategy=strategy), **policy)
    return flow.add_node("x", lambda given: ["x", given]).add_node("y", lambda given: ["y", given])


async def test_under_all_the_first_jump_in_member_order_counts():
    handle, events = await stopped(jumping(giving(1), lambda: Next("x", 5, {"from": "x"}), lambda: Next("y", 6, {"too": "y"})), 3)
    assert handle.output == ["x", 5]
    assert handle.state == {"from": "x", "too": "y"}
    assert handle.history == {"panel": 5, "x": ["x", 5]}
    assert [(e.data["target"], e.data["input"]) for e in events if e.kind == "jumped"] == [("x", 5)]


async def test_a_race_jumps_where_its_winner_jumps():
    async def late(given: Any) -> Any:
        await asyncio.sleep(30)
        return Next("x")

    assert await jumping(late, lambda: Next("y", Next.none), strategy=RACE).execute(3) == ["y", None]


async def test_a_race_does_not_jump_where_a_loser_would_have():
    assert shown(
        await jumping(
            giving(1),
            lambda: Next("y"),
            strategy=RACE,
        ).execute(3)
    ) == [(0, 1)]


async def test_a_jump_without_an_input_hands_on_what_the_team_was_given():
    assert await jumping(lambda: Next("x")).execute(3) == ["x", 3]


async def test_a_team_in_a_team_jumps_too():
    assert await jumping(Team([giving(1), lambda: Next("x", 5)])).execute(3) == ["x", 5]


async def test_a_member_may_jump_back_and_its_team_is_opened_again():
    calls: Counter[Any] = Counter()

    def again(given: int, ctx: Context) -> Any:
        calls[ctx.step_id.removeprefix(ctx.run_id)] += 1
        return Next("panel", given + 1) if given < 3 else given

    assert shown(await jumping(again).execute(1)) == [(0, 3)]
    assert calls == {"/panel/1/0": 1, "/panel/2/0": 1, "/panel/3/0": 1}


async def test_a_jump_of_a_member_to_nowhere_fails_the_run_whatever_its_node_says():
    handle, events = await stopped(jumping(lambda: Next("nowhere"), on_error="skip", retry=3))
    assert handle.status == "failed"
    assert not [e for e in events if e.kind == "step_retrying"]


async def test_an_item_of_a_map_that_is_a_team_cannot_jump():
    flow = Workflow().add_map("each", Team([lambda: Next("x")])).add_node("x", lambda: "x").set_entry_point("each")
    with pytest.raises(StepFailed, match=r"item 'each\[0\]' returned a Next"):
        await flow.execute([1])


# Policies of the node.


async def test_a_team_that_is_tried_again_keeps_its_successes():
    calls: Counter[Any] = Counter()

    async def second_time(given: Any, ctx: Context) -> int:
        calls["slow"] += 1
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return ctx.attempt

    team = Team([counted(calls, "quick", lambda x: "kept"), second_time], strategy=QUORUM(2), timeout=0.05)
    handle, events = await stopped(noded(team, retry=Retry(2, delay=0)))
    assert shown(handle.output) == [(0, "kept"), (1, 2)]
    assert calls == {"quick": 1, "slow": 2}
    assert [e.kind for e in events if e.kind == "step_retrying"] == ["step_retrying"]


@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, "memory://order-of-successes"])
async def test_the_order_of_the_successes_is_kept_from_one_attempt_to_the_next(storage: str | None):
    first = asyncio.Event()

    async def later(given: Any) -> str:
        await first.wait()
        return "second"

    async def at_once(given: Any) -> str:
        asyncio.get_running_loop().call_later(0.01, first.set)
        return "first"

    async def second_time(given: Any, ctx: Context) -> str:
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return "third"

    team = Team([second_time, later, at_once], strategy=QUORUM(3), timeout=0.4)
    assert shown(await noded(team, storage=storage, retry=Retry(2, delay=0)).execute()) == [(2, "first"), (1, "second"), (0, "third")]


async def test_a_failure_counts_in_its_own_attempt_alone():
    async def second_time(given: Any, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError
        return ctx.attempt

    assert shown(await noded(Team([second_time, hang], strategy=RACE, timeout=0.05), retry=Retry(2, delay=0)).execute()) == [(0, 2)]


async def test_a_race_that_times_out_fails_its_step_and_the_run():
    with pytest.raises(StepFailed, match=r"step 'panel', attempt 1: TeamTimedOut: team 'panel' timed out after 0\.02 s; 0: ") as caught:
        await noded(Team([hang], strategy=RACE, timeout=0.02)).execute()
    assert isinstance(caught.value.__cause__, TeamTimedOut)
    assert [r.error for r in caught.value.__cause__.results] == ["Timed out after 0.02 s"]


async def test_a_race_that_all_lose_is_no_failure_of_its_node():
    assert shown(await noded(Team([boom, boom], strategy=RACE)).execute(1)) == [(0, "ValueError: boom 1"), (1, "ValueError: boom 1")]


async def test_the_limit_of_the_node_stops_the_members():
    gate = Gate()
    with pytest.raises(StepFailed, match="timed out") as caught:
        await noded(Team([gate]), timeout=0.02).execute()
    assert isinstance(caught.value.__cause__, StepTimedOut)
    assert gate.cancelled == 1


async def test_a_team_that_failed_is_skipped_where_its_node_says_so():
    handle, _ = await stopped(noded(Team([hang], strategy=RACE, timeout=0.02), on_error="skip"), 1)
    assert handle.status == "completed"
    assert handle.output is None
    assert [(row.node, row.status) for row in handle.executions] == [("panel", "skipped"), ("after", "success")]


async def test_a_team_stands_in_as_a_fallback():
    flow = (
        Workflow()
        .add_node("a", boom, on_error="fallback", fallback="spare")
        .add_node("spare", Team([hang, lambda x: x * 2], strategy=RACE))
    )
    handle, events = await stopped(flow.set_entry_point("a"), 4)
    assert shown(handle.output) == [(1, 8)]
    assert next(e.step_id.partition("/")[2] for e in events if e.kind == "member_won") == "a/1/fallback/1"


async def test_another_body_stands_in_for_a_team():
    flow = noded(Team([hang], strategy=RACE, timeout=0.02), on_error="fallback", fallback="spare").add_node(
        "spare", lambda x: f"instead of {x}"
    )
    assert await flow.execute(3) == "instead of 3"


async def test_a_failing_sibling_lets_running_members_finish_and_no_further_one_start():
    gate, calls = Gate(), Counter[Any]()

    async def fail(given: Any) -> None:
        await gate.started.wait()
        asyncio.get_running_loop().call_later(0.01, gate.release.set)
        raise ValueError("boom")

    team = Team([gate, counted(calls, "second", lambda x: "late")], max_concurrent=1)
    flow = noded(team, storage="memory://sibling").add_node("fail", fail).set_entry_point("panel", "fail")
    with pytest.raises(StepFailed, match="'fail'"):
        await flow.execute(session_id="s")
    assert (gate.calls, gate.cancelled, calls) == (1, 0, {})
    mended = noded(team, storage="memory://sibling").add_node("fail", giving("mended")).set_entry_point("panel", "fail")
    await mended.execute(session_id="s")
    assert (gate.calls, calls) == (1, {"second": 1}), "a member that finished is not performed again"


# Stopping and going on.


async def begun(team: Team, *gates: Gate, place: str, **options: Any) -> tuple[Workflow, RunHandle]:
    flow = noded(team, storage=place)
    handle = await Engine(place).start(flow, 1, session_id="s", **options)
    for gate in gates:
        await gate.started.wait()
    return flow, handle


async def test_pause_lets_running_members_finish_and_no_further_one_start():
    gate, calls = Gate(), Counter[Any]()
    team = Team([gate, counted(calls, "second", lambda x: 2)], max_concurrent=1)
    flow, handle = await begun(team, gate, place="memory://pause-in-team")
    pausing = asyncio.gather(handle.pause())
    await asyncio.sleep(0)
    gate.release.set()
    await pausing
    assert (handle.status, calls, gate.cancelled) == ("paused", {}, 0)
    assert shown(await flow.execute(session_id="s")) == [(0, "through"), (1, 2)]
    assert (gate.calls, calls) == (1, {"second": 1})


async def test_a_race_that_is_decided_while_it_is_paused_is_decided():
    winner, loser = Gate("won"), Gate()
    flow, handle = await begun(Team([loser, winner], strategy=RACE), winner, loser, place="memory://pause-in-race")
    pausing = asyncio.gather(handle.pause())
    await asyncio.sleep(0)
    winner.release.set()
    await pausing
    assert handle.status == "paused"
    assert (loser.cancelled, winner.cancelled) == (1, 0)
    assert shown(await flow.execute(session_id="s")) == [(1, "won")]
    assert (loser.calls, winner.calls) == (1, 1)


async def test_cancel_stops_every_member_now():
    gates = [Gate(), Gate()]
    _, handle = await begun(Team(gates, strategy=RACE), *gates, place="memory://cancel-in-race")
    await handle.cancel()
    assert [gate.cancelled for gate in gates] == [1, 1]
    with pytest.raises(RunCancelled):
        await handle.wait()
    stops = [e.step_id.partition("/")[2] async for e in handle.events() if e.kind == "step_stopped"]
    assert sorted(stops) == ["panel/1/0", "panel/1/1"]


@pytest.mark.slow
async def test_a_runs_limit_stops_a_race_and_a_resume_goes_on_with_it():
    gate, calls = Gate("won"), Counter[Any]()
    team = Team([gate, counted(calls, "boom", boom)], strategy=RACE)
    flow, handle = await begun(team, gate, place="memory://limit-in-race", timeout=0.4)
    with pytest.raises(RunTimedOut):
        await handle.wait()
    assert gate.cancelled == 1
    gate.release.set()
    assert shown(await flow.execute(session_id="s")) == [(0, "won")]
    assert (gate.calls, calls) == (2, {"boom": 1}), "who failed in this attempt has failed"


async def test_a_drained_race_goes_on_where_it_was():
    gate, calls = Gate("won"), Counter[Any]()
    team = Team([counted(calls, "boom", boom), gate, counted(calls, "third", lambda x: 3)], strategy=QUORUM(2), max_concurrent=1)
    flow, handle = await begun(team, gate, place="memory://drain-in-race")
    draining = asyncio.gather(handle.drain())
    await asyncio.sleep(0)
    gate.release.set()
    await draining
    with pytest.raises(RunPaused):
        await handle.wait()
    assert shown(await flow.execute(session_id="s")) == [(1, "won"), (2, 3)]
    assert (gate.calls, calls) == (1, {"boom": 1, "third": 1})


async def test_a_failed_race_that_is_resumed_runs_everybody_who_had_failed():
    calls: Counter[Any] = Counter()
    mended = False

    async def fail(given: Any) -> str:
        calls["failing"] += 1
        if not mended:
            raise ValueError("boom")
        return "mended"

    flow = noded(Team([fail, hang], strategy=RACE, timeout=0.05), storage="memory://failed-race")
    with pytest.raises(StepFailed, match="TeamTimedOut"):
        await flow.execute(session_id="s")
    mended = True
    assert shown(await flow.execute(session_id="s")) == [(0, "mended")]
    assert calls == {"failing": 2}


async def test_a_failed_quorum_that_is_resumed_keeps_its_successes():
    calls: Counter[Any] = Counter()
    gate = Gate("late")
    flow = noded(
        Team([counted(calls, "quick", lambda x: "quick"), gate], strategy=QUORUM(2), timeout=0.05), storage="memory://failed-quorum"
    )
    with pytest.raises(StepFailed, match="TeamTimedOut"):
        await flow.execute(session_id="s")
    gate.release.set()
    assert shown(await flow.execute(session_id="s")) == [(0, "quick"), (1, "late")]
    assert calls == {"quick": 1}


async def test_a_hedge_that_is_resumed_starts_from_the_members_that_have_not_failed():
    calls: Counter[Any] = Counter()
    gate = Gate("won")
    flow, handle = await begun(Team([counted(calls, "boom", boom), gate], strategy=HEDGE(60)), gate, place="memory://hedge-again")
    pausing = asyncio.gather(handle.drain())
    await asyncio.sleep(0)
    gate.release.set()
    await pausing
    assert shown(await flow.execute(session_id="s")) == [(1, "won")]
    assert (gate.calls, calls) == (1, {"boom": 1})


async def test_a_follower_whose_input_is_annotated_gets_results_as_objects():
    def answers(results: list[MemberResult]) -> list[Any]:
        return [(r.member_index, r.value if r.is_success else r.error) for r in results]

    flow = Workflow("typed").add_node("panel", Team([giving(1), boom])).add_node("after", answers)
    assert await flow.add_edge("panel", "after").set_entry_point("panel").execute(7) == [(0, 1), (1, "ValueError: boom 7")]
