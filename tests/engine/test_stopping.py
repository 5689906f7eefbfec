"""Stopping a run: its limit, pause, cancel, drain, and what can be resumed afterwards."""

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import engine.runtime.loop
from engine import Context, Engine, Retry, RunHandle, Workflow
from engine.errors import RunCancelled, RunNotFound, RunPaused, RunTimedOut, StepFailed, WorkflowError, WrongState
from engine.runtime.inline import THREADS

pytestmark = pytest.mark.anyio


class Gate:
    """An async body that says when it has started, and ends when it is let through."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.calls = 0
        self.cancelled = 0

    async def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return x


def gated(place: str | None = None, **options: Any) -> tuple[Workflow, Gate]:
    """A workflow before>gate>after."""
    gate = Gate()
    flow = (
        Workflow("gated", storage=place, **options)
        .add_node("before", lambda: "before")
        .add_node("gate", gate)
        .add_node("after", lambda: "after")
    )
    return flow.add_edge("before", "gate").add_edge("gate", "after").set_entry_point("before"), gate


async def begun(place: str | None = None, **options: Any) -> tuple[Workflow, Gate, RunHandle]:
    flow, gate = gated(place)
    handle = await Engine(place).start(flow, None, session_id="s", **options)
    await gate.started.wait()
    return flow, gate, handle


async def kinds(handle: RunHandle) -> list[str]:
    return [e.kind async for e in handle.events()]


# The run's limit.


async def test_a_runs_limit_raises_with_the_limit_and_the_number_of_finished_steps():
    flow, gate = gated()
    with pytest.raises(RunTimedOut, match=r"0\.05 s, reached after 1 finished step;") as caught:
        await flow.execute(timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, WorkflowError)
    assert gate.cancelled == 1


@pytest.mark.slow
async def test_a_timed_out_run_can_be_resumed():
    flow, gate = gated("memory://timed-out")
    with pytest.raises(RunTimedOut):
        await flow.execute(session_id="s", timeout=0.4)  # long enough for the gate's body to begin on a busy machine
    (summary,) = await Engine("memory://timed-out").runs()
    assert summary.status == "timed_out"
    gate.release.set()
    assert await flow.execute(session_id="s") == "after"
    assert gate.calls == 2


async def test_a_runs_limit_of_zero_expires_at_once():
    ran: list[int] = []
    with pytest.raises(RunTimedOut, match="0 finished steps"):
        await Workflow().add_node("a", lambda: ran.append(1)).set_entry_point("a").execute(timeout=0)
    assert ran == []


async def test_a_runs_limit_does_not_wait_for_a_sync_body():
    release = threading.Event()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(RunTimedOut):
        await Workflow().add_node("a", lambda: release.wait(5)).set_entry_point("a").execute(timeout=0.05)
    assert loop.time() - begun < 2
    release.set()


async def test_a_body_knows_the_runs_deadline():
    deadlines: list[Any] = []
    flow = Workflow().add_node("a", lambda ctx: deadlines.append(ctx.deadline)).set_entry_point("a")
    await flow.execute()
    await flow.execute(timeout=100)
    assert deadlines[0] is None
    assert deadlines[1] is not None


# Pause.


async def test_pause_lets_running_steps_finish_and_no_further_one_start():
    _, gate, handle = await begun("memory://pause")
    pausing = asyncio.gather(handle.pause())
    await asyncio.sleep(0)
    assert not pausing.done()
    gate.release.set()
    await pausing
    assert handle.status == "paused"
    with pytest.raises(RunPaused):
        await handle.wait()
    assert gate.cancelled == 0
    assert (await kinds(handle))[-2:] == ["step_succeeded", "run_paused"]


async def test_a_paused_run_goes_on_after_what_is_done():
    flow, gate, handle = await begun("memory://pause-resume")
    pausing = asyncio.gather(handle.pause())
    gate.release.set()
    await pausing
    assert await flow.execute(session_id="s") == "after"
    assert gate.calls == 1


async def test_pause_is_idempotent_on_handle_and_engine():
    _, gate, handle = await begun("memory://pause-twice")
    gate.release.set()
    await asyncio.gather(handle.pause(), handle.pause())
    await handle.pause()
    engine = Engine("memory://pause-twice")
    await engine.pause(handle.run_id)
    await engine.pause("s")
    assert (await kinds(handle)).count("run_paused") == 1


async def test_a_run_that_ended_cannot_be_paused():
    flow = Workflow("w", storage="memory://pause-ended").add_node("a", lambda: 1).set_entry_point("a")
    await flow.execute(session_id="s")
    with pytest.raises(WrongState, match="completed"):
        await Engine("memory://pause-ended").pause("s")


async def test_a_run_that_nobody_drives_can_be_paused_and_cancelled():
    flow = Workflow("w", storage="memory://idle").add_node("a", lambda: int("boom")).set_entry_point("a")
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    engine = Engine("memory://idle")
    with pytest.raises(WrongState, match="failed"):
        await engine.pause("s")
    await engine.cancel("s")
    await engine.cancel("s")
    assert [s.status for s in await engine.runs()] == ["cancelled"]
    with pytest.raises(RunCancelled, match="new=True"):
        await flow.execute(session_id="s")


async def test_pausing_or_cancelling_an_unknown_run_says_so():
    with pytest.raises(RunNotFound, match="not found"):
        await Engine("memory://none").pause("nothing")
    with pytest.raises(ValueError, match="not found"):
        await Engine("memory://none").cancel("nothing")


# Cancel.


async def test_cancel_stops_now_and_is_durable():
    flow, gate, handle = await begun("memory://cancel")
    await handle.cancel()
    await handle.cancel()
    assert gate.cancelled == 1
    assert handle.status == "cancelled"
    with pytest.raises(RunCancelled, match="1 finished"):
        await handle.wait()
    assert (await kinds(handle))[-1] == "run_cancelled"
    with pytest.raises(RunCancelled, match="new=True"):
        await flow.execute(session_id="s")
    gate.release.set()
    assert await flow.execute(session_id="s", new=True) == "after"


async def test_cancel_does_not_wait_for_a_sync_body_and_discards_its_late_result():
    started, release, done = threading.Event(), threading.Event(), threading.Event()

    def body(ctx: Context) -> str:
        started.set()
        release.wait(5)
        done.set()
        return "late"

    handle = await Engine(None).start(Workflow().add_node("a", body).set_entry_point("a"))
    await asyncio.to_thread(started.wait, 5)
    await handle.cancel()
    assert handle.status == "cancelled"
    release.set()
    assert done.wait(5)
    assert handle.history == {}


async def test_cancel_stops_every_step_of_a_layer_and_the_events_say_so():
    gates = [Gate() for _ in range(3)]
    flow = Workflow()
    for i, gate in enumerate(gates):
        flow.add_node(f"n{i}", gate)
    handle = await Engine(None).start(flow.set_entry_point("n0", "n1", "n2"))
    await asyncio.gather(*(g.started.wait() for g in gates))
    await handle.cancel()
    assert [g.cancelled for g in gates] == [1, 1, 1]
    stopped = [e async for e in handle.events() if e.kind == "step_stopped"]
    assert sorted(e.node for e in stopped) == ["n0", "n1", "n2"]
    assert all(e.data["stopped_after"] >= 0 for e in stopped)


async def test_a_single_step_that_is_cancelled_has_its_event_too():
    _, _, handle = await begun()
    await handle.cancel()
    assert [e.node async for e in handle.events() if e.kind == "step_stopped"] == ["gate"]


async def test_cancel_goes_before_pause():
    _, gate, handle = await begun()
    pausing = asyncio.gather(handle.pause())
    await asyncio.sleep(0)
    await handle.cancel()
    await pausing
    assert handle.status == "cancelled"
    assert gate.cancelled == 1


async def test_cancelling_through_the_engine_reaches_the_run_that_is_driven():
    _, gate, handle = await begun("memory://through")
    await Engine("memory://through").cancel("s")
    assert (handle.status, gate.cancelled) == ("cancelled", 1)


async def test_a_body_that_ignores_being_cancelled_does_not_hold_the_run_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.runtime.conductor.STUBBORN", 0.01)
    monkeypatch.setattr("engine.runtime.layer.STUBBORN", 0.01)
    release, started = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    handle = await Engine(None).start(Workflow().add_node("a", stubborn).set_entry_point("a"))
    await started.wait()
    await asyncio.wait_for(handle.cancel(), 5)
    assert handle.status == "cancelled"
    release.set()


async def test_cancel_while_a_condition_is_asked_stops():
    asked = asyncio.Event()

    async def condition(ctx: Context) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    flow = Workflow().add_node("a", lambda: 1).add_node("b", lambda: 2).add_edge("a", "b", condition).set_entry_point("a")
    handle = await Engine(None).start(flow)
    await asked.wait()
    await asyncio.wait_for(handle.cancel(), 5)
    assert handle.status == "cancelled"


async def test_cancel_while_a_retry_is_waited_for_stops():
    flow = Workflow().add_node("a", lambda: int("boom"), retry=Retry(2, delay=1000, max_delay=1000)).set_entry_point("a")
    handle = await Engine(None).start(flow)
    async for event in handle.events():
        if event.kind == "step_retrying":
            await asyncio.wait_for(handle.cancel(), 5)
    assert handle.status == "cancelled"


# Drain.


async def test_cancelling_the_task_that_awaits_drains_releases_and_raises_again():
    flow, gate = gated("memory://drain")
    running = asyncio.get_running_loop().create_task(flow.execute(session_id="s"))
    await gate.started.wait()
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    gate.release.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gate.cancelled == 0
    (summary,) = await Engine("memory://drain").runs()
    assert (summary.status, summary.owner) == ("paused", None)
    assert await flow.execute(session_id="s") == "after"
    assert gate.calls == 1


async def test_a_drain_stops_what_outlasts_the_grace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.loop, "GRACE", 0.02)
    monkeypatch.setattr("engine.runtime.conductor.STUBBORN", 0.02)
    flow, gate = gated("memory://drain-grace")
    running = asyncio.get_running_loop().create_task(flow.execute(session_id="s"))
    await gate.started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gate.cancelled == 1
    gate.release.set()
    assert await flow.execute(session_id="s") == "after"
    assert gate.calls == 2


async def test_closing_a_stream_early_drains():
    flow, gate = gated("memory://drain-stream")
    stream = flow.stream(session_id="s")
    async for event in stream:
        if event.node == "gate" and event.kind == "step_started":
            gate.release.set()
            break
    await stream.aclose()
    (summary,) = await Engine("memory://drain-stream").runs()
    assert (summary.status, summary.owner) == ("paused", None)


async def test_a_limit_around_execute_drains_too():
    flow, gate = gated("memory://wait-for")
    gate.release.set()
    release = threading.Event()
    flow.add_node("slow", lambda: release.wait(0.2) and None).add_edge("after", "slow")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flow.execute(session_id="s"), 0.05)
    release.set()
    (summary,) = await Engine("memory://wait-for").runs()
    assert summary.owner is None


async def test_a_library_installs_no_signal_handlers():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    seen: list[Any] = []
    await (
        Workflow()
        .add_node("a", lambda: seen.append([signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]))
        .set_entry_point("a")
        .execute()
    )
    assert seen == [before]


@pytest.mark.slow
def test_neither_the_loops_end_nor_the_processs_waits_for_an_abandoned_body(root: Path):
    script = (
        "import asyncio, threading\n"
        "from engine import Workflow\n"
        "flow = Workflow().add_node('a', lambda: threading.Event().wait(60), timeout=0.01, on_error='skip').set_entry_point('a')\n"
        "print(asyncio.run(flow.execute()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, timeout=20, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


# Bodies that never wait.


def greedy(n: int, before: Any, after: Any) -> Workflow:
    """A chain of async bodies that each keep the event loop for 2 ms, between two that are given."""

    async def keep() -> None:
        threading.Event().wait(0.002)

    flow = Workflow("greedy", storage="memory://greedy", checkpoint_strategy="final")  # no commit gives a turn either
    for i, body in enumerate([before, *[keep] * n, after]):
        flow.add_node(f"n{i}", body)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    return flow.set_entry_point("n0")


async def test_a_runs_limit_holds_for_bodies_that_never_wait():
    ended: list[int] = []

    async def end() -> None:
        ended.append(1)

    with pytest.raises(RunTimedOut, match=r"0\.05 s"):
        await greedy(100, lambda: 1, end).execute(session_id="limit", timeout=0.05)
    assert ended == []


async def test_pause_takes_effect_between_bodies_that_never_wait():
    started = asyncio.Event()
    ended: list[int] = []

    async def begin() -> None:
        started.set()

    async def end() -> str:
        ended.append(1)
        return "end"

    flow = greedy(60, begin, end)
    handle = await Engine("memory://greedy").start(flow, session_id="pause")
    await started.wait()
    await handle.pause()
    assert (handle.status, ended) == ("paused", [])
    assert await flow.execute(session_id="pause") == "end"


async def test_others_on_the_event_loop_get_their_turn_between_bodies_that_never_wait():
    started = asyncio.Event()
    turns: list[str] = []

    async def begin() -> None:
        started.set()

    async def end() -> None:
        turns.append("end")

    async def other() -> None:
        await started.wait()
        turns.append("other")

    async with asyncio.TaskGroup() as group:
        group.create_task(other())
        group.create_task(greedy(20, begin, end).execute())
    assert turns == ["other", "end"]


# Cancelled before anything was recorded.


async def test_a_run_that_was_cancelled_before_anything_was_recorded_stays_cancelled():
    place = "memory://cancel-manual"
    flow, gate = gated(place, checkpoint_strategy="manual")
    handle = await Engine(place).start(flow, session_id="s")
    await gate.started.wait()
    assert await Engine(place).state("s") == {}
    gate.release.set()
    await handle.wait()
    assert [e async for e in Engine(place).events("s")] == []
    await Engine(place).cancel("s")
    assert [e.kind async for e in Engine(place).events("s")] == ["run_cancelled"]
    assert await Engine(place).state("s") == {}
    for given in (None, "input"):
        with pytest.raises(RunCancelled, match="new=True"):
            await flow.execute(given, session_id="s")
    assert await flow.execute(session_id="s", new=True) == "after"


async def test_a_manual_run_that_is_cancelled_while_it_is_driven_stays_cancelled():
    place = "memory://cancel-manual-live"
    flow, gate = gated(place, checkpoint_strategy="manual")
    handle = await Engine(place).start(flow, session_id="s")
    await gate.started.wait()
    await handle.cancel()
    gate.release.set()
    with pytest.raises(RunCancelled, match="new=True"):
        await flow.execute(session_id="s")
    assert gate.calls == 1


@pytest.mark.parametrize("how", ["pause", "drain"])
async def test_items_that_wait_for_a_thread_start_no_more_once_the_run_stops(how: str):
    begun: list[int] = []
    busy, gate, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def body(item: int) -> int:
        begun.append(item)
        if len(begun) == THREADS:
            loop.call_soon_threadsafe(busy.set)
        gate.wait(10)
        return item

    flow = Workflow("many").add_map("m", body).set_entry_point("m")
    handle = await Engine("runs").start(flow, list(range(5 * THREADS)), session_id="s")
    await busy.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(handle.pause() if how == "pause" else handle.drain())
        for _ in range(20):
            await asyncio.sleep(0)
        gate.set()
    assert sorted(begun) == list(range(THREADS))
    assert [event.kind for event in [event async for event in handle.events()]].count("step_stopped") == 0
    assert await (await Engine("runs").start(flow, session_id="s")).wait() == list(range(5 * THREADS))
    assert sorted(begun) == list(range(5 * THREADS))


async def test_items_that_wait_for_a_thread_do_not_start_once_one_has_failed():
    begun: list[int] = []
    busy, gate = threading.Event(), threading.Event()

    def body(item: int) -> int:
        begun.append(item)
        if len(begun) == THREADS:
            busy.set()
        if item == 0:
            busy.wait(10)
            raise ValueError("no")
        gate.wait(10)
        return item

    flow = Workflow("many").add_map("m", body).set_entry_point("m")
    handle = await Engine("runs").start(flow, list(range(5 * THREADS)), session_id="s")
    async for event in handle.events():
        if event.kind == "step_failed":
            gate.set()
    with pytest.raises(StepFailed, match="no"):
        await handle.wait()
    assert len(begun) <= THREADS + 1  # the thread of the failed one may have taken another before the run heard of it


async def test_a_pause_is_recorded_under_manual_too(tmp_path: Path):
    flow, gate = gated(str(tmp_path), checkpoint_strategy="manual")
    handle = await Engine().start(flow, None, session_id="s")
    await gate.started.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(handle.pause())
        gate.release.set()
    (summary,) = await Engine(tmp_path).runs()
    assert (summary.status, handle.status) == ("paused", "paused")
    assert await flow.resume("s") == "after"
    assert gate.calls == 1
