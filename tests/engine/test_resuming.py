"""What a resumed run must not do differently: retries that were waiting, large results, arrays in state, changed policies."""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.runtime.loop
from engine import Context, Engine, Event, Limits, Next, Retry, RunHandle, Workflow
from engine.errors import SessionInUse, StateConflict, StepFailed

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count()


@pytest.fixture(params=["memory", "file", "sqlite", pytest.param("postgres", marks=[pytest.mark.services, pytest.mark.slow])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of its own, in memory, in files and in databases."""
    if request.param in ("sqlite", "postgres"):
        return request.getfixturevalue(request.param)
    return f"memory://resuming-{next(NUMBERS)}" if request.param == "memory" else str(tmp_path / "log")


def chain(storage: Any, *bodies: Any, **options: Any) -> Workflow:
    flow = Workflow("flow", storage=storage, **options)
    for i, body in enumerate(bodies):
        flow.add_node(f"n{i}", body)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    return flow.set_entry_point("n0")


async def events_of(place: str) -> list[Event]:
    return [e async for e in Engine(place).events("s")]


async def test_a_retry_that_was_waited_for_keeps_its_number_over_a_pause(place: str):
    attempts: list[int] = []

    def body(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if len(attempts) < 3:
            raise ValueError
        return "ok"

    flow = Workflow("flow", storage=place).add_node("a", body, retry=Retry(3, "fixed", delay=0.05)).set_entry_point("a")
    handle = await Engine(place).start(flow, session_id="s")
    async for event in handle.events():
        if event.kind == "step_retrying":
            await asyncio.wait_for(handle.pause(), 5)
    assert handle.status == "paused"
    assert await flow.execute(session_id="s") == "ok"
    assert attempts == [1, 2, 3]


async def test_a_map_item_that_waited_for_a_retry_keeps_its_number(place: str):
    attempts: list[Any] = []

    def body(x: int, ctx: Context) -> int:
        attempts.append((x, ctx.attempt))
        if ctx.attempt == 1 and x == 1:
            raise ValueError
        return x

    flow = Workflow("flow", storage=place).add_map("m", body, retry=Retry(2, "fixed", delay=0.05)).set_entry_point("m")
    handle = await Engine(place).start(flow, [0, 1], session_id="s")
    async for event in handle.events():
        if event.kind == "step_retrying":
            await asyncio.wait_for(handle.pause(), 5)
    assert await flow.execute(session_id="s") == [0, 1]
    assert sorted(attempts) == [(0, 1), (1, 1), (1, 2)]


async def test_a_large_result_comes_back_whole(place: str):
    big = {"text": "x" * 100_000, "list": list(range(5000))}
    flow = chain(place, lambda: 1, lambda: big)
    assert await flow.execute(session_id="s") == big
    assert await flow.execute(session_id="s") == big
    handle = await Engine(place).start(flow, session_id="s")
    assert (await handle.wait(), handle.history["n1"]) == (big, big)


async def test_a_large_result_of_several_nodes_comes_back_whole(place: str):
    flow = Workflow("flow", storage=place).add_node("a", lambda: "x" * 50_000).add_node("b", lambda: "y" * 50_000).set_entry_point("a", "b")
    found = await flow.execute(session_id="s")
    assert await flow.execute(session_id="s") == found == {"a": "x" * 50_000, "b": "y" * 50_000}


async def test_a_large_result_of_a_resumed_run_comes_back_whole(place: str):
    broken = [True]
    flow = chain(place, lambda: "x" * 50_000, lambda x: int("boom") if broken[0] else x)
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    for _ in range(2):
        assert await flow.execute(session_id="s") == "x" * 50_000


async def test_a_large_jump_input_comes_back_whole(place: str):
    broken = [True]
    flow = chain(place, lambda: Next("t", input="x" * 50_000)).add_node("t", lambda x: int("boom") if broken[0] else len(x))
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == 50_000


async def test_an_array_is_the_same_input_again(place: str):
    flow = chain(place, lambda x: float(x["a"].sum()))
    assert await flow.execute({"a": np.arange(4.0)}, session_id="s") == 6.0
    assert await flow.execute({"a": np.arange(4.0)}, session_id="s") == 6.0
    with pytest.raises(SessionInUse):
        await flow.execute({"a": np.arange(5.0)}, session_id="s")


async def test_reading_arrays_from_state_is_no_write_in_a_resumed_run_either(place: str):
    broken = [True]

    def read(ctx: Context) -> float:
        if broken[0]:
            raise ValueError
        return float(ctx.state["list"][0].sum() + ctx.state["array"].sum())

    flow = Workflow("flow", storage=place, on_conflict="error").add_node(
        "a", lambda ctx: ctx.state.update(list=[np.ones(3)], array=np.ones(3))
    )
    flow.add_node("b", read).add_node("c", read).add_edge("a", "b").add_edge("a", "c").set_entry_point("a")
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    try:
        assert await flow.execute(session_id="s") == {"b": 6.0, "c": 6.0}
    except StateConflict as error:
        pytest.fail(f"reading counted as writing: {error}")
    assert [e.data.get("writes", []) for e in await events_of(place) if e.kind == "step_succeeded" and e.node != "a"] == [[], []]


async def test_a_container_that_grew_in_a_resumed_run_is_stored_as_its_tail(place: str):
    broken = [True]

    def grow(ctx: Context) -> None:
        if broken[0]:
            raise ValueError
        ctx.state["k"].append("tail")

    flow = chain(place, lambda ctx: ctx.state.update(k=["x" * 10_000]), grow, lambda ctx: ctx.state["k"][-1])
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == "tail"
    log = Engine(place).log
    assert log is not None
    diffs = [len(r.diff) for r in await log.read(await Engine(place).find("s")) if r.diff]
    assert diffs[1] < 200 < 10_000 < diffs[0]


async def test_a_changed_policy_is_a_change_that_may_be_resumed(place: str):
    broken = [True]

    def flow_with(**policy: Any) -> Workflow:
        flow = Workflow("flow", storage=place).add_node("a", lambda: int("boom") if broken[0] else "ok", **policy)
        return flow.set_entry_point("a")

    with pytest.raises(StepFailed):
        await flow_with().execute(session_id="s")
    broken[0] = False
    assert await flow_with(retry=2, timeout=Limits(node=50)).execute(session_id="s") == "ok"
    assert [e.data["changed"] for e in await events_of(place) if e.kind == "run_resumed"] == [True]


async def test_state_conflicts_of_a_layer_are_found_again_from_recorded_steps(place: str):
    calls: list[str] = []
    flow = Workflow("flow", storage=place, on_conflict="error")
    for name in "ab":
        flow.add_node(name, lambda ctx: calls.append(ctx.node) or ctx.state.update(k=ctx.node))
    flow.set_entry_point("a", "b")
    for _ in range(2):
        with pytest.raises(StateConflict):
            await flow.execute(session_id="s")
    assert sorted(calls) == ["a", "b"]


async def test_a_sequence_of_failures_and_resumes_numbers_every_event_once(place: str):
    left = [3]

    def body() -> str:
        if left[0]:
            left[0] -= 1
            raise ValueError
        return "ok"

    flow = chain(place, lambda: 1, body)
    for _ in range(3):
        with pytest.raises(StepFailed):
            await flow.execute(session_id="s")
    assert await flow.execute(session_id="s") == "ok"
    events = await events_of(place)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert [e.kind for e in events if e.kind.startswith("run_")] == ["run_started", *["run_failed", "run_resumed"] * 3, "run_completed"]
    assert [e.kind for e in events].count("step_succeeded") == 2


async def test_a_late_verdict_says_so_and_changes_nothing(place: str):
    """The target of a jump starts without its in-edges; one that is decided later has no effect in that pass."""
    flow = Workflow("flow", storage=place).add_node("a", lambda: Next("t", input="jump")).add_node("s", lambda: 1).add_node("u", lambda: 2)
    runs: list[Any] = []
    flow.add_node("t", lambda x: runs.append(x)).add_edge("s", "u").add_edge("u", "t", lambda ctx: True).set_entry_point("a", "s")
    await flow.execute(session_id="s")
    assert runs == ["jump"]
    assert [e.data["late"] for e in await events_of(place) if e.kind == "condition_decided"] == [True]


async def test_a_jumpers_conditions_are_not_asked():
    asked: list[int] = []
    flow = (
        chain(None, lambda: Next("t"))
        .add_node("t", lambda: "t")
        .add_node("x", lambda: "x")
        .add_edge("n0", "x", lambda ctx: asked.append(1) or True)
    )
    assert await flow.execute() == "t"
    assert asked == []


async def test_of_back_edges_the_first_source_gives_the_input_and_a_jump_goes_before():
    def flow_with(body: Any) -> Workflow:
        flow = (
            Workflow(allow_cycles=True)
            .add_node("a", lambda x, ctx: [x, ctx.state.update(n=ctx.state.get("n", 0) + 1)][0])
            .add_node("b", body)
        )
        flow.add_node("c", lambda: "from c").add_edge("a", "b").add_edge("a", "c")
        for name in "bc":
            flow.add_edge(name, "a", lambda ctx: ctx.state["n"] < 2)
        return flow.set_entry_point("a")

    async def second_input(flow: Workflow) -> Any:
        seen = [e.data["output"] async for e in flow.stream("in") if e.kind == "step_succeeded" and e.node == "a"]
        return seen[1]

    assert await second_input(flow_with(lambda: "from b")) == "from b"
    assert await second_input(flow_with(lambda ctx: Next("a", input="jump") if ctx.state["n"] < 2 else None)) == "jump"


async def test_what_was_told_is_not_told_again_by_a_resumed_run(place: str):
    broken = [True]
    flow = (
        Workflow("flow", storage=place)
        .add_node("a", lambda ctx: ctx.state.update(k="a"))
        .add_node("b", lambda ctx: ctx.state.update(k="b"))
    )
    flow.add_node("no", lambda: 1).add_node("never", lambda: 1).add_node("j", lambda: Next("t", input=1)).add_node("t", lambda x: x)
    flow.add_map("m", lambda x: x).add_node("d", lambda: int("x"), on_error="skip").add_node(
        "end", lambda: int("x") if broken[0] else "end"
    )
    flow.add_edge("a", "no", lambda ctx: int("x")).add_edge("no", "never").add_edge("t", "end").set_entry_point("a", "b", "j", "m", "d")
    for _ in range(2):
        with pytest.raises(StepFailed):
            await flow.execute([1, 2], session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == "end"
    events = [(e.kind, e.node, e.step_id) for e in await events_of(place) if not e.kind.startswith("run_") and e.node != "end"]
    assert sorted(set(events)) == sorted(events)


async def test_rows_and_history_after_a_resume_are_those_of_an_undisturbed_run(place: str):
    def flow_with(broken: list[bool], storage: Any) -> Workflow:
        flow = (
            Workflow("flow", storage=storage)
            .add_node("a", lambda: 1)
            .add_node("b", lambda: int("x"), on_error="skip")
            .add_node("no", lambda: 1)
        )
        flow.add_node("j", lambda x: Next("a2", input=x)).add_node("a2", lambda x: [x]).add_node(
            "end", lambda x: int("x") if broken[0] else x
        )
        flow.add_edge("a", "b").add_edge("a", "no", lambda ctx: False).add_edge("b", "j").add_edge("a2", "end")
        return flow.set_entry_point("a")

    broken = [True]
    with pytest.raises(StepFailed):
        await flow_with(broken, place).execute(session_id="s")
    broken[0] = False
    shown = []
    for storage in (place, None):
        handle = await Engine(storage).start(flow_with(broken, storage), session_id="s")
        await handle.wait()
        shown.append([[(r.node, r.step_id, r.status, r.error) for r in handle.executions], list(handle.history.items()), handle.output])
    assert shown[0] == shown[1]


def winding(storage: Any, calls: list[str], dice: random.Random) -> Workflow:
    """A fan-out, a map, a sub-workflow, a condition and two rounds of a jump; `calls` gets the step ids that are performed."""

    async def work(x: Any, ctx: Context) -> Any:
        calls.append(ctx.step_id)
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
        ctx.state.setdefault("l", []).append(ctx.node)
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        return [ctx.node, len(x) if isinstance(x, (list, dict)) else x]

    def again(ctx: Context) -> Any:
        calls.append(ctx.step_id)
        ctx.state["r"] = ctx.state.get("r", 0) + 1
        return Next("a", input=ctx.state["r"]) if ctx.state["r"] < 3 else "done"

    inner = Workflow("inner", reducers={"l": "extend", "n": "add"}).add_node("x", work).add_node("y", work).add_node("z", work)
    inner.add_edge("x", "z").add_edge("y", "z").set_entry_point("x", "y")
    flow = Workflow("flow", storage=storage, reducers={"l": "extend", "n": "add"})
    for name in "abcde":
        flow.add_node(name, work)
    flow.add_node("again", again).add_node("sub", inner).add_map("m", work).add_node("list", lambda: [1, 2, 3])
    for source, target in ("ab", "ac", "bd", "cd"):
        flow.add_edge(source, target)
    flow.add_edge("a", "list").add_edge("list", "m").add_edge("m", "sub").add_edge("sub", "d").add_edge("d", "again")
    return flow.add_edge("again", "e", lambda ctx: True).set_entry_point("a")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_a_run_that_was_stopped_anywhere_ends_like_an_undisturbed_one(place: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.loop, "GRACE", 0.01)
    dice = random.Random(seed)
    undisturbed = await Engine(None).start(winding(None, [], dice), "in", session_id="s")
    await undisturbed.wait()
    finished: set[str] = set()
    for life in itertools.count():
        calls: list[str] = []
        handle = await Engine(place).start(winding(place, calls, dice), "in", session_id="s")
        for _ in range(dice.randrange(60)):
            await asyncio.sleep(0)
        if life < 20:
            await (handle.drain() if dice.random() < 0.5 else handle.pause())
        else:
            await handle.wait()
        assert finished.isdisjoint(calls)
        finished.update([e.step_id async for e in Engine(place).events("s") if e.kind == "step_succeeded"])
        if handle.status == "completed":
            break

    def shown(handle: RunHandle) -> Any:
        return [handle.output, handle.state, [(r.step_id, r.status) for r in handle.executions], list(handle.history.items())]

    assert shown(handle) == shown(undisturbed)
    assert len(finished) == len([e async for e in Engine(place).events("s") if e.kind == "step_succeeded"])
