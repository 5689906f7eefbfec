"""Limits and cancelling on Ray.

Whatever a body does it is stopped, the record says when, nothing of it happens afterwards, and others go on.
"""

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Context, Engine, Workflow
from engine.errors import RunCancelled, RunPaused, RunTimedOut, StepFailed, StepTimedOut
from tests.acceptance import marks

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("ray_cluster")]


def engine() -> Engine:
    return Engine(str(Path.cwd() / "runs"), executor="ray")


def folder() -> str:
    path = Path.cwd() / "marks"
    path.mkdir(exist_ok=True)
    return str(path)


def sleeping(seconds: float) -> None:
    time.sleep(seconds)


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def in_c(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 4_000_000)


def in_a_process(seconds: float) -> None:
    subprocess.run(["sleep", str(seconds)], check=True)


def swallowing(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:  # the worst that a body can do
            pass


SYNC = [sleeping, busy, in_c, in_a_process, swallowing]


def body_of(kind: Callable[[float], None], place: str, *, is_async: bool = False, seconds: float = 8.0) -> Any:
    def body(ctx: Context):
        marks.leave(place, f"begun {ctx.attempt}")
        kind(seconds)
        marks.leave(place, "after")

    async def async_body(ctx: Context):
        body(ctx)

    return async_body if is_async else body


async def events(handle, *names: str) -> list:
    return [event async for event in handle.events() if event.kind in names]


@pytest.mark.parametrize("kind", SYNC, ids=lambda k: k.__name__)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_limit_stops_whatever_a_body_does(kind, is_async):
    place = folder()
    flow = Workflow("limit").add_node("a", body_of(kind, place, is_async=is_async), timeout=0.5).set_entry_point("a")
    handle = await engine().start(flow, session_id="s")
    with pytest.raises(StepFailed, match="timed out") as caught:
        await handle.wait()
    assert isinstance(caught.value.__cause__, StepTimedOut)
    (failed,) = await events(handle, "step_failed")
    assert 0.4 < failed.data["duration"] < 4
    assert marks.names(place) == {"begun 1": 1}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_limit_that_killed_a_process_is_written_down_and_the_next_attempt_runs(is_async):
    place = folder()

    def body(ctx: Context):
        marks.leave(place, f"begun {ctx.attempt}")
        if ctx.attempt == 1:
            in_c(8.0)
        return ctx.attempt

    async def async_body(ctx: Context):
        return body(ctx)

    flow = Workflow("again").add_node("a", async_body if is_async else body, timeout=0.3, retry=2).set_entry_point("a")
    handle = await engine().start(flow, session_id="s")
    assert await handle.wait() == 2
    (stopped,) = await events(handle, "step_stopped")
    assert 0.3 < stopped.data["stopped_after"] < 4
    assert marks.names(place) == {"begun 1": 1, "begun 2": 1}


@pytest.mark.parametrize("kind", SYNC, ids=lambda k: k.__name__)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_cancel_stops_whatever_a_body_does(kind, is_async):
    place = folder()
    flow = Workflow("cancel").add_node("a", body_of(kind, place, is_async=is_async)).set_entry_point("a")
    handle = await engine().start(flow, session_id="s")
    await marks.until(lambda: marks.names(place))
    begun = time.monotonic()
    await handle.cancel()
    assert time.monotonic() - begun < 4
    with pytest.raises(RunCancelled):
        await handle.wait()
    assert handle.status == "cancelled"
    (stopped,) = await events(handle, "step_stopped")
    assert "unattended" not in stopped.data["reason"]
    assert 0 < stopped.data["stopped_after"] < 5
    assert marks.names(place) == {"begun 1": 1}


@pytest.mark.parametrize("stop", ["limit", "cancel"])
@pytest.mark.parametrize("kind", [sleeping, in_c], ids=lambda k: k.__name__)
async def test_an_effect_is_stopped_with_its_body(kind, stop):
    place = folder()

    def effect():
        marks.leave(place, "begun")
        kind(8.0)
        marks.leave(place, "after")

    async def body(ctx: Context):
        await ctx.once("effect", effect)

    flow = Workflow("effect").add_node("a", body, timeout=0.5 if stop == "limit" else None).set_entry_point("a")
    handle = await engine().start(flow, session_id="s")
    await marks.until(lambda: marks.names(place))
    if stop == "cancel":
        await handle.cancel()
    with pytest.raises(RunCancelled if stop == "cancel" else StepFailed):
        await handle.wait()
    (ended,) = await events(handle, "step_stopped")
    assert "unattended" not in ended.data["reason"]
    assert 0 < ended.data["stopped_after"] < 5
    assert marks.names(place) == {"begun": 1}


async def test_a_stopped_body_does_nothing_afterwards():
    place = folder()
    flow = Workflow("after")
    for kind in SYNC:
        flow.add_node(kind.__name__, body_of(kind, place, seconds=2.0))
        flow.add_node(f"async_{kind.__name__}", body_of(kind, place, is_async=True, seconds=2.0))
    flow.set_entry_point(*flow.graph.nodes)
    handle = await engine().start(flow, session_id="s", timeout=1.0)
    with pytest.raises(RunTimedOut, match="1 s"):
        await handle.wait()
    stopped = await events(handle, "step_stopped")
    assert stopped
    assert not [event for event in stopped if "unattended" in event.data["reason"]]
    begun = await events(handle, "step_started")
    assert len(begun) == 2 * len(SYNC)
    before = marks.names(place)
    await asyncio.sleep(2.5)  # what is left behind would have ended by now
    assert marks.names(place) == before
    assert "after" not in before


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_one_steps_limit_leaves_its_neighbours_alone(is_async):
    place = folder()

    def body(item, ctx: Context):
        if item == 3 and ctx.attempt == 1:
            in_c(8.0)
        marks.leave(place, str(item))
        return item

    async def async_body(item, ctx: Context):
        if item == 3:
            return body(item, ctx)
        await asyncio.sleep(0.2)
        return body(item, ctx)

    flow = Workflow("others").add_map("m", async_body if is_async else body, timeout=1.5, on_error="skip").set_entry_point("m")
    output = await engine().start(flow, list(range(40)), session_id="s")
    assert await output.wait() == [None if n == 3 else n for n in range(40)]
    assert not await events(output, "step_retrying")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_cancelling_one_run_leaves_another_in_peace(is_async):
    place = folder()

    def slow(item, ctx: Context):
        marks.leave(place, ctx.step_id)
        if is_async is False or ctx.session_id == "stopped":
            time.sleep(0.3 if ctx.session_id == "kept" else 20)
        return item

    async def async_slow(item, ctx: Context):
        return slow(item, ctx)

    flow = Workflow("pair").add_map("m", async_slow if is_async else slow).set_entry_point("m")
    kept, stopped = await asyncio.gather(*(engine().start(flow, list(range(8)), session_id=s) for s in ("kept", "stopped")))
    await marks.until(lambda: any("stopped" in name for name in marks.names(place)))
    await stopped.cancel()
    assert await kept.wait() == list(range(8))
    assert not await events(kept, "step_retrying", "step_failed")
    assert not [name for name, count in marks.names(place).items() if "kept" in name and count > (2 if is_async else 1)]


async def test_pause_lets_running_steps_end_and_starts_no_more():
    place = folder()

    def body(given, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(0.3)
        return (given or 0) + 1

    flow = Workflow("pause", storage=str(Path.cwd() / "runs"), executor="ray")
    for n in range(6):
        flow.add_node(f"n{n}", body)
        if n:
            flow.add_edge(f"n{n - 1}", f"n{n}")
    flow.set_entry_point("n0")
    handle = await engine().start(flow, session_id="s")
    await marks.until(lambda: len(marks.names(place)) == 2)
    await handle.pause()
    assert handle.status == "paused"
    with pytest.raises(RunPaused):
        await handle.wait()
    done = len(await events(handle, "step_succeeded"))
    assert done == len(marks.names(place)) < 6
    assert await flow.execute(session_id="s") == 6
    assert not marks.repeated(place)


ITEM = 0.3
SLOTS = 4


@pytest.mark.parametrize("halt", ["pause", "drain", "fail"])
async def test_what_waits_in_the_packs_under_way_does_not_start(halt: str):
    """At the request each slot performs an item; it may begin one more before its worker hears of it, 10 ms and a message later."""
    place = folder()

    def body(x, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(ITEM)
        if x == 0 and halt == "fail":
            marks.leave(place, "failed")
            raise ValueError("the first item")
        return x

    flow = Workflow("map").add_map("m", body).set_entry_point("m")
    items = list(range(1, 49))
    if halt == "fail":
        items.insert(16, 0)  # by then packs hold several items each
    handle = await engine().start(flow, items, session_id="s")
    if halt == "fail":
        await marks.until(lambda: "failed" in marks.names(place))
    else:
        await marks.until(lambda: len(marks.names(place)) >= 3 * SLOTS)
    before, asked = len(marks.names(place)), time.monotonic()
    if halt == "pause":
        await handle.pause()
    elif halt == "drain":
        await handle.drain()
    with pytest.raises(StepFailed if halt == "fail" else RunPaused):
        await handle.wait()
    took = time.monotonic() - asked
    assert len(marks.names(place)) <= before + SLOTS
    assert took < len(items) * ITEM / SLOTS / 2  # two items' time, with room for a busy machine; all that waited would take 2.7 s
    assert not await events(handle, "step_stopped")
    if halt != "fail":
        assert len(await events(handle, "step_succeeded")) == len(marks.names(place))
        assert await (await engine().start(flow, items, session_id="s")).wait() == items
        assert not marks.repeated(place)


async def test_pause_takes_back_what_ray_holds_until_there_are_resources():
    place = folder()

    def body(given, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(ITEM)

    flow = Workflow("scarce")
    for n in range(4):
        flow.add_node(f"n{n}", body, num_cpus=SLOTS)
    handle = await engine().start(flow.set_entry_point("n0", "n1", "n2", "n3"), session_id="s")
    await marks.until(lambda: marks.names(place))
    await handle.pause()
    assert len(await events(handle, "step_succeeded")) == len(marks.names(place)) == 1
    await (await engine().start(flow, session_id="s")).wait()
    assert len(marks.names(place)) == 4
    assert not marks.repeated(place)


@pytest.mark.parametrize("is_async", [False, True])
async def test_pause_ends_a_chain_that_is_performed_ahead_after_its_step(is_async: bool):
    place = folder()

    def body(given, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(ITEM)
        return (given or 0) + 1

    async def async_body(given, ctx: Context):
        marks.leave(place, ctx.step_id)
        await asyncio.sleep(ITEM)
        return (given or 0) + 1

    flow = Workflow("ahead", storage=str(Path.cwd() / "runs"), executor="ray", checkpoint_strategy="async")
    for n in range(6):
        flow.add_node(f"n{n}", async_body if is_async else body)
        if n:
            flow.add_edge(f"n{n - 1}", f"n{n}")
    flow.set_entry_point("n0")
    handle = await engine().start(flow, session_id="s")
    await marks.until(lambda: len(marks.names(place)) == 2)
    asked = time.monotonic()
    await handle.pause()
    assert time.monotonic() - asked < 4 * ITEM  # which the steps that follow would take
    assert len(await events(handle, "step_succeeded")) == len(marks.names(place)) == 2
    assert await flow.execute(session_id="s") == 6
    assert not marks.repeated(place)


async def test_cancelling_whoever_awaits_drains_the_run():
    place = folder()

    def body(given, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(0.2)
        return (given or 0) + 1

    flow = Workflow("drain", storage=str(Path.cwd() / "runs"), executor="ray")
    for n in range(6):
        flow.add_node(f"n{n}", body)
        if n:
            flow.add_edge(f"n{n - 1}", f"n{n}")
    flow.set_entry_point("n0")
    waiting = asyncio.get_running_loop().create_task(flow.execute(session_id="s"))
    await marks.until(lambda: len(marks.names(place)) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(marks.names(place)) < 6
    assert await flow.execute(session_id="s") == 6
    assert not marks.repeated(place)


@pytest.mark.parametrize("strategy", ["always", "async"])
async def test_a_run_that_timed_out_goes_on(strategy):
    place = folder()

    def body(given, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(0.15)
        return (given or 0) + 1

    flow = Workflow("late", storage=str(Path.cwd() / "runs"), executor="ray", checkpoint_strategy=strategy)
    for n in range(8):
        flow.add_node(f"n{n}", body)
        if n:
            flow.add_edge(f"n{n - 1}", f"n{n}")
    flow.set_entry_point("n0")
    with pytest.raises(RunTimedOut, match=r"0\.6 s"):
        await flow.execute(session_id="s", timeout=0.6)
    before = len(marks.names(place))
    assert before < 8
    assert await flow.execute(session_id="s") == 8
    assert len(marks.repeated(place)) <= (1 if strategy == "always" else 2)
