"""A workflow as a node of another one: its steps, events, state and durability."""

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from engine import Context, Engine, Next, Retry, RunHandle, Workflow
from engine.errors import RunPaused, StepFailed
from engine.runtime.inline import THREADS
from engine.testing.crash import crash_everywhere
from engine.testing.faults import Fail
from engine.testing.simulate import simulate

pytestmark = pytest.mark.anyio


def inner_of(*bodies: Any, **options: Any) -> Workflow:
    flow = Workflow("inner", **options)
    for i, body in enumerate(bodies):
        flow.add_node(f"i{i}", body)
        if i:
            flow.add_edge(f"i{i - 1}", f"i{i}")
    return flow.set_entry_point("i0")


def outer_of(inner: Workflow, *, storage: Any = None, after: Any = lambda x: x, **policy: Any) -> Workflow:
    flow = Workflow("outer", storage=storage).add_node("sub", inner, **policy).add_node("after", after).add_edge("sub", "after")
    return flow.set_entry_point("sub")


async def test_a_workflow_is_a_body():
    assert await outer_of(inner_of(lambda x: x + 1, lambda x: x * 2)).execute(3) == 8


async def test_state_and_history_of_an_inner_workflow_are_its_own():
    seen: list[Any] = []

    def look(ctx: Context) -> None:
        seen.append((dict(ctx.state), dict(ctx.history)))
        ctx.state["inner"] = 1

    flow = Workflow().add_node("a", lambda ctx: ctx.state.update(outer=1)).add_node("sub", inner_of(look))
    flow.add_node("b", lambda ctx: dict(ctx.state)).add_edge("a", "sub").add_edge("sub", "b").set_entry_point("a")
    assert await flow.execute() == {"outer": 1}
    assert seen == [({}, {})]


async def test_an_inner_body_knows_its_parent_run():
    def look(ctx: Context) -> Any:
        return [ctx.metadata["parent_run_id"], ctx.step_id, ctx.session_id]

    handle = await Engine(None).start(outer_of(inner_of(look)), None, session_id="s")
    assert await handle.wait() == ["outer.s.1", "outer.s.1/sub/1/0", "s"]


async def test_events_of_inner_steps_are_in_the_outer_stream_under_a_path():
    handle = await Engine(None).start(outer_of(inner_of(lambda: 1, lambda: 2)))
    await handle.wait()
    started = [(e.node, e.step_id.removeprefix(handle.run_id)) async for e in handle.events() if e.kind == "step_succeeded"]
    assert started == [("sub/i0", "/sub/1/0"), ("sub/i1", "/sub/1/1"), ("sub", "/sub/1"), ("after", "/after/1")]


async def test_rows_are_of_the_outer_nodes():
    handle = await Engine(None).start(outer_of(inner_of(lambda: 1)))
    await handle.wait()
    assert [r.node for r in handle.executions] == ["sub", "after"]


async def test_an_inner_failure_fails_the_outer_step_by_name():
    with pytest.raises(StepFailed, match=r"'sub'.*'i1'.*boom") as caught:
        await outer_of(inner_of(lambda: 1, lambda: int("boom"))).execute()
    assert isinstance(caught.value.__cause__, StepFailed)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)
    assert str(caught.value).startswith("Workflow execution failed: step 'sub', attempt 1: step 'i1', attempt 1: ValueError: ")


async def test_policies_apply_to_an_inner_workflow():
    attempts: list[int] = []

    def body() -> str:
        attempts.append(1)
        if len(attempts) < 2:
            raise ValueError
        return "ok"

    assert await outer_of(inner_of(body), retry=Retry(2, delay=0)).execute() == "ok"
    assert await outer_of(inner_of(lambda: int("boom")), on_error="skip").execute() is None


async def test_a_limit_applies_to_an_inner_workflow():
    with pytest.raises(StepFailed, match=r"'sub'.*timed out"):
        await asyncio.wait_for(outer_of(inner_of(lambda: asyncio.Event().wait()), timeout=0.02).execute(), 5)


async def test_an_inner_jump_stays_inside():
    inner = Workflow("inner").add_node("i", lambda: Next("j", input=5)).add_node("j", lambda x: x + 1).set_entry_point("i")
    assert await outer_of(inner).execute() == 6


async def test_an_inner_workflow_may_be_a_fallback():
    flow = Workflow().add_node("a", lambda: int("boom"), on_error="fallback", fallback="spare").add_node("spare", inner_of(lambda x: [x]))
    assert await flow.set_entry_point("a").execute(1) == [1]


async def test_steps_of_an_inner_workflow_that_stands_in_have_ids_of_their_own():
    flow = outer_of(inner_of(lambda: 1, lambda: int("boom")), storage="memory://stands-in", on_error="fallback", fallback="spare")
    handle = await Engine(None).start(flow.add_node("spare", inner_of(lambda: "spare", lambda ctx: ctx.step_id)), session_id="s")
    assert await handle.wait() == "outer.s.1/sub/1/fallback/1"
    succeeded = [e.step_id.removeprefix("outer.s.1/") async for e in handle.events() if e.kind == "step_succeeded"]
    assert succeeded == ["sub/1/0", "sub/1/fallback/0", "sub/1/fallback/1", "sub/1", "after/1"]


async def test_workflows_nest_in_each_other():
    deep = inner_of(lambda x: x + 1)
    for _ in range(5):
        deep = inner_of(deep)
    assert await deep.execute(1) == 2


async def test_cancel_reaches_the_bodies_of_an_inner_workflow():
    started, cancelled = asyncio.Event(), []

    async def body() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    handle = await Engine(None).start(outer_of(inner_of(inner_of(body))))
    await started.wait()
    await asyncio.wait_for(handle.cancel(), 5)
    assert (handle.status, cancelled) == ("cancelled", [1])
    assert [e.node async for e in handle.events() if e.kind == "step_stopped"] == ["sub/i0/i0"]


async def test_pause_stops_an_inner_workflow_between_its_steps():
    started, release, calls = asyncio.Event(), asyncio.Event(), []

    async def first() -> None:
        calls.append("first")
        started.set()
        await release.wait()

    flow = outer_of(inner_of(first, lambda: calls.append("second")), storage="memory://sub-pause", after=lambda: "end")
    handle = await Engine("memory://sub-pause").start(flow, None, session_id="s")
    await started.wait()
    pausing = asyncio.gather(handle.pause())
    await asyncio.sleep(0)
    release.set()
    await pausing
    assert (handle.status, calls) == ("paused", ["first"])
    assert await flow.execute(session_id="s") == "end"
    assert calls == ["first", "second"]


async def test_an_inner_workflow_is_durable_inside_its_parents_log():
    calls: list[str] = []
    broken = [True]

    def last(x: Any, ctx: Context) -> Any:
        calls.append("last")
        if broken[0]:
            raise ValueError
        return [x, dict(ctx.state), dict(ctx.history)]

    inner = inner_of(lambda ctx: calls.append("first") or ctx.state.update(k=1) or "one", last)
    flow = outer_of(inner, storage="memory://sub-durable")
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == ["one", {"k": 1}, {"i0": "one"}]
    assert calls == ["first", "last", "last"]
    assert len(await Engine("memory://sub-durable").runs()) == 1


async def test_a_finished_inner_workflow_is_not_performed_again():
    calls: list[str] = []
    broken = [True]
    flow = outer_of(
        inner_of(lambda: calls.append("inner") or "in"), storage="memory://sub-finished", after=lambda x: int("boom") if broken[0] else x
    )
    with pytest.raises(StepFailed, match="'after'"):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == "in"
    assert calls == ["inner"]


async def test_inner_joins_and_fan_outs_resume_with_plain_values():
    broken = [True]
    inner = (
        Workflow("inner")
        .add_node("x", lambda: [1])
        .add_node("y", lambda: {"k": 2})
        .add_node("j", lambda v: int("boom") if broken[0] else v)
    )
    inner.add_edge("x", "j").add_edge("y", "j").set_entry_point("x", "y")
    flow = outer_of(inner, storage="memory://sub-join")
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == {"x": [1], "y": {"k": 2}}


async def test_a_limit_of_zero_keeps_an_inner_workflow_from_starting():
    calls: list[int] = []
    with pytest.raises(StepFailed, match=r"'sub'.*timed out"):
        await outer_of(inner_of(lambda: calls.append(1)), timeout=0).execute()
    assert calls == []


async def test_an_inner_workflow_that_keeps_its_limit_is_not_disturbed_by_it():
    assert await outer_of(inner_of(lambda: 1, lambda x: x + 1), timeout=50).execute() == 2


async def test_a_limit_stops_an_inner_layer_of_several_and_a_retry_starts_it_afresh():
    attempts: list[int] = []

    async def hang(ctx: Context) -> str:
        attempts.append(1)
        if len(attempts) < 3:
            await asyncio.Event().wait()
        return "in time"

    inner = Workflow("inner").add_node("x", hang).add_node("y", hang).set_entry_point("x", "y")
    assert await outer_of(inner, timeout=0.02, retry=Retry(2, delay=0)).execute() == {"x": "in time", "y": "in time"}


async def test_a_sync_fallback_of_an_inner_workflow_has_its_limit():
    flow = outer_of(inner_of(lambda: int("boom")), on_error="fallback", fallback="spare", timeout=5).add_node("spare", lambda: "spare")
    assert await flow.execute() == "spare"


def test_a_sub_workflow_starts_no_more_steps_than_the_run_around_it_may():
    now, most = 0, 0

    async def body() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        now -= 1

    inner = Workflow("inner", max_concurrency=9).add_node("a", body).add_node("b", body).add_node("c", body).set_entry_point(*"abc")
    flow = Workflow("outer", max_concurrency=2).add_node("sub", inner).set_entry_point("sub")
    assert simulate(flow).status == "completed"  # its executor holds nothing back by itself, as that of Ray
    assert most == 2


@pytest.mark.parametrize("inner_width", [None, 1, 9])
async def test_max_concurrency_bounds_the_steps_of_inner_workflows_too(inner_width: int | None):
    now, most = [0], [0]

    async def body() -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        for _ in range(5):
            await asyncio.sleep(0)
        now[0] -= 1

    inner = Workflow("inner", max_concurrency=inner_width)
    for i in range(4):
        inner.add_node(f"i{i}", body)
    inner.set_entry_point("i0", "i1", "i2", "i3")
    flow = Workflow("outer", max_concurrency=2).add_node("s1", inner).add_node("s2", inner).add_node("s3", inner).add_node("plain", body)
    await asyncio.wait_for(flow.set_entry_point("s1", "s2", "s3", "plain").execute(), 5)
    assert most == [2]


@pytest.mark.anyio
@pytest.mark.parametrize("session", [None, "s"])
async def test_a_sub_workflow_that_is_tried_again_goes_on_where_it_failed(session):
    calls = {"first": 0, "second": 0}

    def first(x):
        calls["first"] += 1
        return x

    def second(x):
        calls["second"] += 1
        if calls["second"] == 1:
            raise ConnectionError("once")
        return x

    inner = Workflow("inner").add_node("first", first).add_node("second", second).add_edge("first", "second").set_entry_point("first")
    outer = Workflow("outer", storage="memory://again").add_node("sub", inner, retry=Retry(attempts=2, delay=0)).set_entry_point("sub")
    assert await outer.execute(5, session_id=session, new=True) == 5
    assert calls == {"first": 1, "second": 2}


# Beside a step that fails.


def slowly(seconds: float = 1.0) -> Any:
    async def body(x: Any) -> Any:
        await asyncio.sleep(seconds)
        return x

    return body


async def boom_later() -> None:
    await asyncio.sleep(1.0)
    raise ValueError("boom")


def fan() -> Workflow:
    flow = Workflow("fan")
    for name in ("a", "b", "end"):
        flow.add_node(name, slowly())
    return flow.add_edge("a", "end").add_edge("b", "end").set_entry_point("a", "b")


def beside(inner: Workflow, *, as_map: bool = False) -> Workflow:
    """`bad` and `sub` in one layer."""
    flow = Workflow("outer").add_node("bad", lambda x: x).add_node("after", lambda x: x)
    add = flow.add_map if as_map else flow.add_node
    return add("sub", inner).add_edge("bad", "after").add_edge("sub", "after").set_entry_point("bad", "sub")


@pytest.mark.parametrize(
    ("flow", "before", "later"),
    [
        (partial(beside, inner_of(slowly(), slowly())), ["sub/i0"], ["sub/i1"]),
        (partial(beside, fan()), ["sub/a", "sub/b"], ["sub/end"]),
        (partial(beside, inner_of(inner_of(slowly(), slowly()), slowly())), ["sub/i0/i0"], ["sub/i0/i1", "sub/i1"]),
        (partial(beside, inner_of(slowly(), slowly()), as_map=True), ["sub/i0"] * 2, ["sub/i1"] * 2),
    ],
    ids=["chain", "fan-out", "nested", "map"],
)
def test_beside_a_failed_step_a_sub_workflow_starts_no_further_step_and_goes_on_when_resumed(
    flow: Any, before: list[str], later: list[str]
):
    report = simulate(flow, [1, 2], faults=[Fail("bad")])
    told = [(e.kind, e.node) for e in report.events if e.node.count("/") or e.kind == "run_failed"]
    succeeded = [("step_succeeded", node) for node in before]
    failed = told.index(("run_failed", ""))
    assert [t for t in told[:failed] if t[0] == "step_succeeded" and t[1] in before] == succeeded
    assert not [t for t in told[:failed] if t[1] in later]
    assert sorted(t[1] for t in told[failed:] if t[0] == "step_succeeded" and t[1] in later) == sorted(later)
    assert (report.status, report.repeated, set(report.performed.values())) == ("completed", (), {1})


@pytest.mark.parametrize(("seconds", "kind"), [(4.9, "step_succeeded"), (5.1, "step_stopped")])
def test_the_running_steps_of_a_sub_workflow_beside_a_failed_step_have_five_seconds(seconds: float, kind: str):
    flow = Workflow("outer").add_node("sub", inner_of(slowly(1 + seconds), slowly())).add_node("bad", boom_later)
    report = simulate(flow.set_entry_point("sub", "bad"), spread=0)
    assert report.status == "failed"
    assert [(e.kind, e.node) for e in report.events if e.node.startswith("sub/")] == [("step_started", "sub/i0"), (kind, "sub/i0")]


async def test_a_retry_in_a_sub_workflow_is_not_waited_for_beside_a_failed_step():
    def boom() -> None:
        raise ValueError

    inner = Workflow("inner").add_node("i", boom, retry=Retry(2, delay=1000, max_delay=1000)).set_entry_point("i")
    flow = Workflow("outer").add_node("sub", inner).add_node("bad", boom).set_entry_point("sub", "bad")
    with pytest.raises(StepFailed, match="'bad'"):
        await asyncio.wait_for(flow.execute(), 4)  # less than the grace


def test_a_sub_workflow_beside_a_failed_step_survives_every_crash():
    flow = Workflow("outer").add_node("sub", inner_of(slowly(0.7), slowly(0.7), slowly(0.7))).add_node("bad", boom_later)
    found = crash_everywhere(flow.set_entry_point("sub", "bad"))
    assert found.calm.status == "failed"
    assert [e.node for e in found.calm.events if e.kind == "step_started"] == ["sub", "bad", "sub/i0", "sub/i1"]


@pytest.mark.parametrize("how", ["fail", "pause"])
async def test_steps_of_sub_workflows_that_wait_for_a_thread_start_no_more_once_the_run_stops(how: str):
    begun: list[int] = []
    busy, full, gate, loop = threading.Event(), asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def body(item: int) -> None:
        begun.append(item)
        if len(begun) == THREADS:
            busy.set()
            loop.call_soon_threadsafe(full.set)
        if item == 0 and how == "fail":
            busy.wait(10)
            raise ValueError("no")
        gate.wait(10)

    flow = Workflow("outer").add_map("m", inner_of(body)).set_entry_point("m")
    handle = await Engine(None).start(flow, list(range(3 * THREADS)))
    await full.wait()
    stopping = loop.create_task(handle.pause() if how == "pause" else until_failed(handle))
    if how == "fail":
        await stopping
    for _ in range(20):
        await asyncio.sleep(0)
    gate.set()
    with pytest.raises(RunPaused if how == "pause" else StepFailed):
        await handle.wait()
    assert handle.status == ("paused" if how == "pause" else "failed")
    assert len(begun) <= THREADS + 1  # the thread of the failed one may have taken another before the run heard of it


async def until_failed(handle: RunHandle) -> None:
    async for event in handle.events():
        if event.kind == "step_failed":
            return
