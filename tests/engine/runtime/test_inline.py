"""The threads that perform sync bodies, and the tasks that async bodies share: how many there are, and what becomes of results."""

import asyncio
import contextvars
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine import Context, Workflow
from engine.checkpoint.codec import private
from engine.core.context import Scene
from engine.core.graph import Node
from engine.core.history import Window
from engine.errors import StepFailed
from engine.runtime.bind import bind
from engine.runtime.inline import AHEAD, THREADS, TURN, Idle, InlineExecutor, Threads
from engine.runtime.step import Call, Moment, Outcome

pytestmark = pytest.mark.anyio


async def test_threads_are_reused_once_they_are_idle():
    threads = Threads(4, Idle())
    names = []
    for _ in range(5):
        names.append(await threads.perform(threading.get_ident))
    assert len(set(names)) == 1


async def test_a_thread_that_cannot_be_started_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    idle, performed = Idle(), []

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            Threads(4, idle).perform(lambda: performed.append("refused"))
    together = threading.Barrier(3)
    threads = Threads(4, idle)
    await asyncio.gather(*(threads.perform(lambda: together.wait(10)) for _ in range(3)))
    assert performed == []


async def test_runs_share_the_threads_that_are_idle():
    idle, names = Idle(), set()
    for _ in range(5):
        names.add(await Threads(4, idle).perform(threading.get_ident))
    assert len(names) == 1


async def test_runs_one_after_the_other_leave_no_thread_each():
    flow = Workflow("sync").add_node("a", lambda x: x).set_entry_point("a")
    await flow.execute(1)
    before = threading.active_count()
    for number in range(20):
        await flow.execute(number)
    assert threading.active_count() <= before


FORKING = """
import os, signal
from engine import Workflow
flow = Workflow("sync").add_node("a", lambda x: x + 1).set_entry_point("a")
assert flow.run_sync(1) == 2
pid = os.fork()
if not pid:
    signal.alarm(10)
    os._exit(0 if flow.run_sync(2) == 3 else 1)
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.slow
def test_a_forked_process_performs_sync_bodies_on_threads_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


async def test_no_more_threads_than_the_size_run_at_once():
    threads = Threads(2)
    now, most, lock = [0], [0], threading.Lock()
    turn = threading.Barrier(2, timeout=5)

    def body() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        turn.wait()
        with lock:
            now[0] -= 1

    await asyncio.gather(*(threads.perform(body) for _ in range(6)))
    assert most == [2]


async def test_an_abandoned_thread_leaves_its_place_to_another():
    threads = Threads(1)
    release = threading.Event()
    stuck = threads.perform(lambda: release.wait(5))
    waiting = threads.perform(lambda: "ran")
    stuck.cancel()
    assert await asyncio.wait_for(threads.perform(lambda: "ran too"), 5) == "ran too"
    assert await asyncio.wait_for(waiting, 5) == "ran"
    release.set()


async def test_work_that_was_cancelled_before_it_began_is_not_done():
    threads = Threads(1)
    release, done = threading.Event(), []
    first = threads.perform(lambda: release.wait(5))
    second = threads.perform(lambda: done.append(1))
    second.cancel()
    third = threads.perform(lambda: "third")
    release.set()
    assert (await first, await third, done) == (True, "third", [])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, asyncio.CancelledError])
async def test_what_would_mean_something_to_who_awaits_comes_as_a_plain_error(kind: type[BaseException]):
    def body() -> None:
        raise kind("out")

    with pytest.raises(RuntimeError, match=kind.__name__) as caught:
        await Threads(1).perform(body)
    assert isinstance(caught.value.__cause__, kind)


async def test_context_variables_are_carried_and_stay_apart():
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("outside")
    threads = Threads(1)

    def body() -> str:
        seen = variable.get()
        variable.set("inside")
        return seen

    assert [await threads.perform(body), await threads.perform(body), variable.get()] == ["outside"] * 3


def test_a_result_that_comes_after_the_loops_end_reaches_nobody():
    release, ended = threading.Event(), threading.Event()

    def body() -> None:
        release.wait(5)
        ended.set()

    async def leave() -> None:
        Threads(1).perform(body)

    asyncio.run(leave())
    release.set()
    assert ended.wait(5)


class Held(queue.SimpleQueue[Any]):
    """Work that its thread has taken, and does not get to."""

    def __init__(self) -> None:
        self.taken, self.release, self.first = threading.Event(), threading.Event(), True

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        found = super().get(block, timeout)
        if self.first:
            self.first = False
            self.taken.set()
            self.release.wait(5)
        return found


async def test_a_thread_that_has_taken_work_and_not_begun_it_keeps_no_other_waiting():
    idle = Idle()
    threads = Threads(2, idle)
    assert await threads.perform(lambda: "warm") == "warm"
    held = idle._work = Held()
    idle._threads = 0  # the warm one waits at the old queue
    first = threads.perform(lambda: "first")
    held.taken.wait(5)
    assert await asyncio.wait_for(threads.perform(lambda: "second"), 5) == "second"
    held.release.set()
    assert await first == "first"


# Calls that need a thread.


def calls_of(*bodies: Callable[[], Any], limit: float | None = None) -> tuple[list[Call], Moment]:
    plan = side_by_side(bodies[0], 1).compiled()
    scene = Scene(run_id="r", session_id=None, input=None, private=private, rows=list, services=None)
    calls = [
        Call(Node(name=f"n{number}", body=bind(body, "")), number, 1, None, 1, None, Window.of({}, None), f"r/n{number}/1", limit)
        for number, body in enumerate(bodies)
    ]
    return calls, Moment(scene, plan, {}, 0, False)


async def test_a_limit_begins_when_the_body_has_a_thread():
    executor, outcomes, both = InlineExecutor(1), [], asyncio.Event()
    executor._slots = None  # as where fewer bodies than threads are asked for, and others hold those
    begun, release = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        release.wait(5)

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2:
            both.set()

    (first, second), moment = calls_of(hold, lambda: "ran")
    executor.submit([first], moment, report)
    executor.submit([second._replace(limit=0.05)], moment, report)
    asyncio.get_running_loop().call_later(0.1, release.set)
    await asyncio.wait_for(both.wait(), 5)
    waited, ran = outcomes
    assert (ran.error, ran.output, ran.abandoned) == (None, "ran", False)
    assert ran.started >= waited.started + 0.09
    assert executor._threads._free == 1


async def test_only_a_body_that_began_and_does_not_listen_leaves_its_place_to_another():
    executor, outcomes, over = InlineExecutor(1), [], asyncio.Event()
    release = threading.Event()

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2:
            over.set()

    (stuck, never), moment = calls_of(lambda: release.wait(5), lambda: "ran")
    executor.submit([stuck._replace(limit=0.02), never], moment, report)
    await asyncio.wait_for(over.wait(), 5)
    release.set()
    assert [(o.abandoned, o.output) for o in outcomes] == [(True, None), (False, "ran")]
    assert executor._threads._free == 1


async def test_a_condition_that_waits_for_a_thread_does_not_time_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.runtime.step.CONDITION_LIMIT", 0.2)
    monkeypatch.setattr("engine.runtime.inline.THREADS", 1)
    turn = threading.Lock()

    def slow(ctx: Context) -> bool:
        with turn:
            time.sleep(0.08)
            return True

    flow = Workflow("w").add_node("a", lambda: 1)
    for number in range(4):
        flow.add_node(f"n{number}", lambda: 2).add_edge("a", f"n{number}", slow)
    assert await flow.set_entry_point("a").execute() == {f"n{number}": 2 for number in range(4)}


async def test_what_has_a_thread_has_begun_and_what_waits_for_one_is_withdrawn():
    executor = InlineExecutor()
    held = executor._threads._work = Held()
    reported: list[str] = []
    over = asyncio.Event()

    def report(outcome: Outcome) -> None:
        reported.append(outcome.call.step_id)
        if len(reported) == THREADS:
            over.set()

    calls, moment = calls_of(*[lambda: "ran"] * (THREADS + 3))
    executor.submit(calls, moment, report)
    await asyncio.sleep(0)  # one turn, whether or not a thread has woken up
    assert executor.withdraw(calls) == calls[THREADS:]
    held.release.set()
    await asyncio.wait_for(over.wait(), 5)
    assert sorted(reported) == sorted(call.step_id for call in calls[:THREADS])


async def test_siblings_that_have_a_thread_finish_when_one_fails():
    for _ in range(20):
        seen: list[str] = []

        def body(x: object, ctx: Context, seen: list[str] = seen) -> None:
            seen.append(ctx.node)
            if ctx.node == "n0":
                raise ValueError("no")

        with pytest.raises(StepFailed):
            await side_by_side(body, THREADS).execute()
        assert len(seen) == THREADS


# Async bodies of one layer.


def side_by_side(body: Callable[..., Any], count: int, **options: Any) -> Workflow:
    flow = Workflow("side-by-side", **options)
    for number in range(count):
        flow.add_node(f"n{number}", body)
    return flow.set_entry_point(*(f"n{number}" for number in range(count)))


async def test_bodies_that_wait_all_wait_at_once_however_many():
    here, all_here = [0], asyncio.Event()

    async def body() -> None:
        here[0] += 1
        if here[0] == 5 * AHEAD:
            all_here.set()
        await all_here.wait()

    await asyncio.wait_for(side_by_side(body, 5 * AHEAD).execute(), 5)


async def test_no_more_bodies_than_slots_perform_at_once_and_all_do():
    now, most, done = [0], [0], []

    async def body(x: object, ctx: Context) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0)
        now[0] -= 1
        done.append(ctx.node)

    await side_by_side(body, 3 * AHEAD, max_concurrency=2).execute()
    assert (most, len(set(done)), len(done)) == ([2], 3 * AHEAD, 3 * AHEAD)


@pytest.mark.parametrize("waits", [False, True])
async def test_what_a_body_sets_for_its_task_no_other_body_of_the_layer_sees(waits: bool):
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def body() -> None:
        seen.append(variable.get())
        variable.set("set")
        if waits:
            await asyncio.sleep(0)

    await side_by_side(body, 4).execute()
    assert seen == ["unset"] * 4


async def test_a_body_that_cancels_its_own_task_and_returns_stops_no_other():
    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0) if task.cancelling() else task.cancel()

    flow = side_by_side(body, 3)
    await asyncio.wait_for(flow.execute(), 5)


async def test_a_layer_of_bodies_that_never_wait_gives_the_event_loop_its_turn():
    order: list[str] = []

    async def body() -> None:
        until = time.perf_counter() + 2 * TURN
        while time.perf_counter() < until:
            pass
        if not order:
            asyncio.get_running_loop().call_soon(order.append, "other")
        order.append("body")

    await side_by_side(body, 2 * AHEAD).execute()
    assert "other" in order[: AHEAD + 2]
