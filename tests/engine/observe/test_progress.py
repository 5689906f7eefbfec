"""Progress is counted from events alone, each once, through retries, passes, maps and resumes."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from engine import HEDGE, RACE, Context, Engine, Next, Retry, Team, Workflow
from engine.core.events import Event
from engine.errors import RunCancelled, RunPaused
from engine.handle import RunHandle
from engine.observe.progress import Progress, seconds_text
from engine.testing.record import record


def event(seq: int, kind: str, node: str = "", step: str = "", /, *, attempt: int = 1, ordinal: int = 0, **data: Any) -> Event:
    return Event("r", seq, datetime.fromtimestamp(1000 + seq, UTC), kind, node, f"r/{step}" if step else "", attempt, data, ordinal)


def told(*events: Event, nodes: tuple[str, ...] = ()) -> Progress:
    progress = Progress(nodes)
    for each in events:
        progress.take(each)
    return progress


def test_a_map_is_counted_item_by_item():
    progress = told(
        event(1, "run_started"),
        event(2, "step_started", "m", "m/1", items=3),
        event(3, "step_succeeded", "m", "m/1/0"),
        event(4, "step_retrying", "m", "m/1/1", delay=0, error={}),
        event(5, "step_succeeded", "m", "m/1/2"),
        nodes=("m", "z"),
    )
    node = progress.nodes["m"]
    assert (node.status, node.done, node.items, node.failed, progress.finished, progress.failures) == ("running", 2, 3, 1, 2, 1)
    assert progress.line(1011.0) == "10.0 s, running, 0/2 nodes, 2 steps, m 2/3, 0.20 steps/s, 1 failed attempt"


def test_a_resumed_run_goes_on_counting_and_counts_nothing_twice():
    events = [
        event(1, "run_started"),
        event(2, "step_started", "m", "m/1", items=3),
        event(3, "step_succeeded", "m", "m/1/0"),
        event(4, "run_paused", finished=1),
        event(5, "run_resumed"),
        event(6, "step_started", "m", "m/1", items=3),
        event(7, "step_succeeded", "m", "m/1/1"),
        event(8, "step_succeeded", "m", "m/1/2"),
        event(9, "step_succeeded", "m", "m/1", items=3, duration=1.0),
        event(10, "run_completed", finished=4),
    ]
    progress = told(*[each for one in events for each in (one, one)], nodes=("m",))
    assert (progress.nodes["m"].done, progress.nodes["m"].passes, progress.finished, progress.settled()) == (3, 1, 4, 1)
    assert (progress.status, progress.before) == ("completed", 1)


def test_time_and_rates_are_counted_from_the_newest_start_to_the_end():
    events = [event(1, "run_started"), event(5, "run_paused", finished=0), event(100, "run_resumed")]
    assert told(*events[:2]).seconds(5000.0) == 4.0
    assert told(*events).seconds(1107.0) == 7.0
    ended = told(*events, event(104, "step_succeeded", "a", "a/1"), event(108, "run_completed", finished=1))
    assert ended.seconds(5000.0) == 8.0
    assert ended.line(5000.0) == "8.0 s, completed, 1/1 nodes, 1 step, 0.12 steps/s"
    assert told().seconds(5000.0) == 0.0


def test_what_ran_when_a_run_stopped_is_shown_as_stopped_and_waits_when_it_goes_on():
    events = [event(1, "run_started"), event(2, "step_started", "a", "a/1"), event(3, "run_paused", finished=0)]
    assert told(*events).nodes["a"].status == "stopped"
    assert told(*events, event(4, "run_resumed")).nodes["a"].status == "waiting"


def test_transient_events_move_a_node_and_are_never_left_out():
    progress = told(
        event(1, "run_started"),
        event(2, "step_started", "a", "a/1"),
        event(2, "progress", "a", "a/1", ordinal=1, done=1, total=4, note="rows"),
        event(2, "progress", "a", "a/1", ordinal=2, done=3, total=4, note="rows"),
    )
    assert progress.nodes["a"].share == (3, 4)
    assert "a 3/4: rows" in progress.line(1003.0)


@pytest.mark.anyio
async def test_a_real_run_with_everything_in_it_is_counted_right():
    def shaky(x: int, ctx: Context) -> int:
        if ctx.attempt == 1 and x == 1:
            raise ValueError("again")
        return x

    def back(ctx: Context) -> Any:
        if ctx.state.get("been"):
            return "end"
        ctx.state["been"] = True
        return Next("items")

    inner = Workflow("inner").add_node("deep", lambda x: x).set_entry_point("deep")
    flow = (
        Workflow("all")
        .add_node("items", lambda: [0, 1, 2])
        .add_map("each", shaky, retry=Retry(2, delay=0))
        .add_node("sub", inner)
        .add_node("back", back)
        .add_node("not", lambda: 1)
        .add_edge("items", "each")
        .add_edge("each", "sub")
        .add_edge("sub", "back")
        .add_edge("back", "not", lambda ctx: False)
        .set_entry_point("items")
    )
    progress = Progress(["items", "each", "sub", "back", "not"])
    async for each in flow.stream(None):
        progress.take(each)
    assert progress.status == "completed"
    assert {name: (node.status, node.passes) for name, node in progress.nodes.items()} == {
        "items": ("success", 2), "each": ("success", 2), "sub": ("success", 2), "sub/deep": ("success", 2), "back": ("success", 2),
        "not": ("skipped", 0),
    }  # fmt: skip
    assert progress.failures == 2
    assert progress.finished == 2 * (1 + 3 + 1 + 1 + 1 + 1)


class Gate:
    """A last step that waits until it may end."""

    def __init__(self) -> None:
        self.reached, self.may_end, self.fails = asyncio.Event(), asyncio.Event(), False

    async def end(self) -> str:
        self.reached.set()
        await self.may_end.wait()
        if self.fails:
            raise ValueError("no")
        return "end"


def everything(gate: Gate) -> Workflow:
    """Seven steps before the gate: a node, a map and its three items, a sub-workflow and its step."""
    inner = Workflow("inner").add_node("deep", lambda x: x).set_entry_point("deep")
    return (
        Workflow("counted")
        .add_node("list", lambda: [1, 2, 3])
        .add_map("each", lambda x: x)
        .add_node("sub", inner)
        .add_node("gate", gate.end)
        .add_edge("list", "each")
        .add_edge("each", "sub")
        .add_edge("sub", "gate")
        .set_entry_point("list")
    )


async def stop(handle: RunHandle, gate: Gate, end: str) -> None:
    """Bring a run to an end of a kind."""
    await gate.reached.wait()
    if end == "run_cancelled":
        await handle.cancel()
        return
    gate.fails = end == "run_failed"
    asyncio.get_running_loop().call_soon(gate.may_end.set)
    if end == "run_paused":
        await handle.pause()


@pytest.mark.parametrize(("end", "number"), [("run_cancelled", 7), ("run_failed", 7), ("run_completed", 8)])
@pytest.mark.parametrize("place", ["memory://counted", False])
@pytest.mark.anyio
async def test_every_end_tells_how_many_steps_succeeded_with_items_and_steps_of_sub_workflows(end: str, number: int, place: Any):
    gate = Gate()
    handle = await Engine(place).start(everything(gate), session_id=end)
    progress = Progress()
    await stop(handle, gate, end)
    events = [each async for each in handle.events()]
    for each in events:
        progress.take(each)
    assert (events[-1].kind, events[-1].data["finished"], progress.finished) == (end, number, number)
    assert sum(each.kind == "step_succeeded" for each in events) == number


@pytest.mark.parametrize("watch", [True, False])
@pytest.mark.anyio
async def test_the_error_of_a_run_that_was_stopped_says_how_many_steps_succeeded(watch: bool):
    gate = Gate()
    handle = await Engine(False).start(everything(gate), watch=watch)
    await stop(handle, gate, "run_cancelled")
    with pytest.raises(RunCancelled, match="was cancelled after 7 finished steps"):
        await handle.wait()


@pytest.mark.parametrize(("stop", "ended"), [
    ([], 2),  # killed
    ([("step_stopped", "p/1/3", {"reason": "cancelled"}), ("run_timed_out", "", {})], 2),
    ([("step_failed", "p/1", {"error": {}}), ("run_failed", "", {})], 1),
])  # fmt: skip
def test_members_that_a_resumed_run_starts_again_have_not_ended(stop: list[tuple[str, str, dict[str, Any]]], ended: int):
    members = [("step_started", f"p/1/{i}", {"member": "m"}) for i in range(5)]
    told_before = [
        ("run_started", "", {}), ("step_started", "p/1", {"members": 5}), *members,
        ("step_succeeded", "p/1/0", {}), ("step_failed", "p/1/1", {"reason": "no luck"}), *stop, ("run_resumed", "", {}),
        ("step_started", "p/1", {"members": 5}),
    ]  # fmt: skip
    events = [event(i, kind, "p" if step else "", step, **data) for i, (kind, step, data) in enumerate(told_before, 1)]
    progress = told(*events, nodes=("p",))
    assert f"p {ended}/5 members" in progress.line(1050.0)
    for i in (2, 3):
        progress.take(event(50 + i, "step_started", "p", f"p/1/{i}", member="m"))
    assert f"p {ended}/5 members" in progress.line(1060.0)
    progress.take(event(60, "step_succeeded", "p", "p/1/2"))
    assert f"p {ended + 1}/5 members" in progress.line(1070.0)


def test_a_team_that_goes_on_with_more_members_is_counted_by_those_that_it_has_now():
    told_before = [("run_started", "", {}), ("step_started", "p/1", {"members": 3}), ("run_resumed", "", {}),
                   ("step_started", "p/1", {"members": 6}), ("step_started", "p/1/4", {"member": "m"})]  # fmt: skip
    events = [event(i, kind, "p" if step else "", step, **data) for i, (kind, step, data) in enumerate(told_before, 1)]
    assert "p 0/6 members" in told(*events, nodes=("p",)).line(1050.0)


@pytest.mark.anyio
async def test_a_resumed_run_counts_what_succeeded_before_it_was_paused():
    gate, engine = Gate(), Engine("memory://counted-resumed")
    flow = everything(gate).add_node("last", lambda x: x).add_edge("gate", "last")
    handle = await engine.start(flow, session_id="s")
    await stop(handle, gate, "run_paused")
    with pytest.raises(RunPaused, match="was paused after 8 finished steps"):
        await handle.wait()
    handle = await engine.start(flow, session_id="s")
    await handle.wait()
    progress = Progress()
    async for each in engine.events("s"):
        progress.take(each)
    assert (each.data["finished"], progress.finished, progress.before) == (9, 9, 8)


@pytest.mark.anyio
async def test_a_run_that_is_paused_while_nobody_drives_it_keeps_its_count():
    engine = Engine("memory://counted-left")
    await record(everything(Gate()), "s", storage="memory://counted-left", finished={"list": [1, 2, 3], "each": [1, 2, 3]})
    await engine.pause("s")
    events = [each async for each in engine.events("s")]
    assert events[-1].data["finished"] == sum(each.kind == "step_succeeded" for each in events) == 5


RACED = (
    event(1, "run_started"),
    event(2, "step_started", "r", "r/1", members=4),
    *(event(3 + i, "step_started", "r", f"r/1/{i}", member=name) for i, name in enumerate(["a", "b", "c"])),
    event(6, "step_failed", "r", "r/1/1", error={"type": "ValueError", "message": "no"}, reason="ValueError: no", duration=0.5),
)


def standing(progress: Progress, node: str = "r") -> list[tuple[str, str, str]]:
    """The members of a node, and how they stand at 1010."""
    return [(member.name, member.status, member.text(1010.0)) for member in progress.nodes[node].members.values()]


def test_members_of_a_team_are_counted_apart_from_nodes_and_their_failures_are_no_attempts_of_the_team():
    progress = told(*RACED, nodes=("r", "z"))
    node = progress.nodes["r"]
    assert (node.status, node.passes, node.failed, node.team, progress.failures, progress.finished) == ("running", 1, 0, 4, 1, 0)
    assert standing(progress) == [
        ("a", "running", "7.0 s"), ("b", "failed", "failed after 500 ms: ValueError: no"), ("c", "running", "5.0 s"),
    ]  # fmt: skip
    assert progress.line(1010.0) == "9.0 s, running, 0/2 nodes, 0 steps, r 1/4 members, 1 failed attempt"


def test_a_race_that_is_over_says_who_won_and_when_each_of_the_others_had_stopped_also_those_that_stop_late():
    progress = told(
        *RACED,
        event(7, "step_succeeded", "r", "r/1/0", duration=0.25),
        event(8, "member_won", "r", "r/1/0"),
        event(9, "member_lost", "r", "r/1/1", reason="ValueError: no", stopped_after=0.5),
        event(10, "step_succeeded", "r", "r/1", duration=1.0, answer=[0]),
        event(
            11, "member_lost", "r", "r/1/2", reason="stopped, since the team had its answer; the body goes on unattended", stopped_after=2.0
        ),
        event(12, "run_completed", finished=2),
        nodes=("r",),
    )
    assert [text for _, _, text in standing(progress)] == [
        "won after 250 ms", "failed after 500 ms: ValueError: no", "lost, stopped after 2.0 s; the body goes on unattended",
    ]  # fmt: skip
    assert (progress.nodes["r"].members_text(), progress.settled(), progress.finished) == ("1 won, 1 lost, 1 failed", 1, 2)


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ([("step_succeeded", {"duration": 0.01})], "finished after 10 ms"),
        ([("step_succeeded", {"duration": 0.01}), ("member_won", {"score": 0.5})], "won after 10 ms, score 0.5"),
        ([("step_succeeded", {"duration": 0.01}), ("member_won", {"score": 10**400})], f"won after 10 ms, score 1{'0' * 23}"),
        (
            [("step_succeeded", {"duration": 0.01}), ("member_lost", {"reason": "another was chosen", "stopped_after": 0.01, "score": 2})],
            "lost after 10 ms, score 2: another was chosen",
        ),
        ([("member_lost", {"reason": "the process that performed it ended"})], "lost: the process that performed it ended"),
        ([("member_lost", {"reason": "stopped, since the team had its answer", "stopped_after": 0.014})], "lost, stopped after 14 ms"),
        ([("step_failed", {"error": {"type": "StepTimedOut", "message": "m"}, "reason": "m", "duration": 0.4})], "timed out after 400 ms"),
        ([("step_stopped", {"reason": "the team's limit", "stopped_after": 0.5})], "timed out after 500 ms"),
        ([("step_stopped", {"reason": "cancelled", "stopped_after": 0.5})], "stopped after 500 ms: cancelled"),
        ([("run_paused", {})], "stopped: the run stopped"),
        ([("run_resumed", {})], "stopped: the run stopped"),
        ([("progress", {"done": 2, "total": 8, "note": "reading"})], "2/8: reading, 2.0 s"),
    ],
)
def test_how_a_member_ended_is_told_in_a_few_words(ends: list[tuple[str, dict[str, Any]]], text: str):
    progress = told(
        event(1, "run_started"), event(2, "step_started", "t", "t/1", members=1), event(8, "step_started", "t", "t/1/0", member="a")
    )
    for number, (kind, data) in enumerate(ends):
        step = "" if kind.startswith("run_") else "t/1/0"
        progress.take(event(9 + number, kind, "t" if step else "", step, ordinal=int(kind == "progress"), **data))
    assert progress.nodes["t"].members["r/t/1/0"].text(1010.0) == text


def test_a_team_that_is_tried_again_or_opened_again_shows_its_newest_attempt_alone():
    progress = told(
        *RACED,
        event(7, "step_retrying", "r", "r/1", error="x", delay=0.0),
        event(8, "step_started", "r", "r/1/1", attempt=2, member="b"),
    )
    node = progress.nodes["r"]
    assert (node.status, node.attempt, node.failed, node.members["r/r/1/1"].status) == ("running", 2, 1, "running")
    progress = told(*RACED, event(7, "step_started", "r", "r/2", members=2), event(8, "step_started", "r", "r/2/0", member="d"))
    assert [name for name, _, _ in standing(progress)] == ["d"]
    progress.take(event(9, "member_lost", "r", "r/1/0", reason="stopped, since the team had its answer", stopped_after=9.0))
    assert (progress.nodes["r"].status, progress.nodes["r"].passes, len(progress.nodes)) == ("running", 2, 1)


@pytest.mark.anyio
async def test_teams_in_teams_maps_and_workflows_leave_the_count_of_nodes_alone():
    async def quick(x: Any) -> Any:
        return x

    async def never(x: Any) -> None:
        await asyncio.Event().wait()

    def race() -> Team:
        return Team([quick, never], "race", strategy=RACE)

    losing = Workflow("losing").add_node("deep", never).set_entry_point("deep")
    winning = Workflow("winning").add_node("deep", race()).set_entry_point("deep")
    flow = (
        Workflow("all")
        .add_node("list", lambda: [1, 2, 3])
        .add_map("each", race())
        .add_node("outer", Team([losing, winning, race()], "outer", strategy=HEDGE(0.01)))
        .add_node("sub", winning)
        .add_edge("list", "each")
        .add_edge("each", "outer")
        .add_edge("outer", "sub")
        .set_entry_point("list")
    )
    progress = Progress(["list", "each", "outer", "sub"])
    async for each in flow.stream(None):
        progress.take(each)
    assert {name: (node.status, node.passes) for name, node in progress.nodes.items()} == dict.fromkeys(
        ["list", "each", "outer", "sub", "sub/deep"], ("success", 1)
    )
    assert (progress.settled(), progress.failures) == (5, 0)
    each, outer, deep = (progress.nodes[name] for name in ("each", "outer", "sub/deep"))
    assert (each.done, each.members_text(), each.teams) == (3, "3 won, 3 lost", {})
    assert outer.members_text() == "1 won, 1 lost"
    lost, won = outer.members.values()
    assert (lost.nodes["deep"].status, won.nodes["deep"].status) == ("stopped", "success")
    assert [member.status for member in won.nodes["deep"].members.values()] == ["won", "lost"]
    assert [member.status for member in deep.members.values()] == ["won", "lost"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2e-5, "20 us"), (0.0421, "42 ms"), (1.25, "1.2 s"), (59.94, "59.9 s"), (61, "1 min 01 s"), (7325, "2 h 02 min")]
)
def test_durations_are_written_as_people_write_them(seconds: float, text: str):
    assert seconds_text(seconds) == text
