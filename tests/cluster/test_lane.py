"""What a lane performs beside its event loop: others in it go on, and what is in a thread ends with the process alone. No Ray."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import executor
from cluster.lane import CallTask, Lane
from cluster.opened import Home
from cluster.started import Owned, calling
from engine import Context, Team, Workflow
from engine.errors import StepTimedOut, WorkerLost
from engine.local import LocalRun
from engine.runtime.control import Halt
from engine.runtime.inline import Threads
from tests.acceptance.marks import until
from tests.cluster.test_dispatch import Threaded, drive, fetched, turns

pytestmark = pytest.mark.anyio

WITHIN = 10.0
gate = threading.Event()
seen: list[str] = []
children: list[Any] = []


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    seen.clear()
    children.clear()
    gate.clear()
    yield
    gate.set()


class Laned(Threaded):
    """A cluster of one lane, on the test's own event loop. Where its process is killed its threads end too."""

    slots = 1

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.told: list[str] = []
        self.kills = 0
        self.work: list[asyncio.Task[Any]] = []
        self._start()

    def _start(self) -> None:
        self.living = Lane(Home(None, self._answer, self._take, fetched, None))  # type: ignore[arg-type]

    async def _answer(self, name: str, *_: Any) -> Any:
        self.told.append(name)
        return ("go", None) if name == "once_begin" else None

    def _take(self, name: str, data: bytes) -> None:
        self.loop.call_soon_threadsafe(self.pool.take_report, data)

    def lane(self, lane: int) -> Any:
        return self.living

    def send_to_lane(self, lane: int, data: bytes, refs: list[Any]) -> Any:
        self.work.append(self.loop.create_task(self.living.perform(data, refs)))
        return self.work[-1]

    async def get(self, ref: Any) -> Any:
        await asyncio.wait({ref})
        if ref.cancelled():
            raise ProcessLookupError
        return ref.result()

    def stop_in_lane(self, lane: int, numbers: list[int]) -> None:
        self.told.append("stop")
        self.work.append(self.loop.create_task(self.living.stop(numbers)))

    def renew_lane(self, lane: int, old: Any) -> None:
        if self.living is old:
            self.kills += 1
            gate.set()
            for child in children:
                child.kill()
            for task in self.work:
                task.cancel()
            self._start()

    async def lane_ended(self, old: Any) -> None:
        pass

    def loss(self, error: BaseException) -> Any:
        return (WorkerLost, "its process died") if isinstance(error, ProcessLookupError) else None


def waits() -> bool:
    seen.append("waits")
    return gate.wait(WITHIN)


async def with_effect(x: Any, ctx: Context) -> bool:
    open = await ctx.once("wait", waits)
    await asyncio.sleep(0)
    seen.append("after")
    return open


async def lets_go(x: Any) -> str:
    await until(lambda: seen)
    gate.set()
    return "done"


def lone(**policy: Any) -> Workflow:
    return Workflow("lone").add_node("a", with_effect, **policy).set_entry_point("a")


async def end_of(run: LocalRun) -> LocalRun:
    async with asyncio.timeout(WITHIN):
        await run.wait()
    return run


async def test_a_sync_effect_of_one_body_holds_up_no_other_of_its_lane():
    remote = Laned()
    flow = lone().add_node("b", lets_go)
    run = await end_of(await drive(remote, flow.set_entry_point("a", "b")))
    assert run.output() == {"a": True, "b": "done"}
    assert (remote.told, remote.kills) == (["once_begin", "once_end"], 0)


async def test_a_body_that_is_stopped_ends_with_the_effect_that_it_has_in_a_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executor, "FORCE", 60.0)
    remote = Laned()
    run = await drive(remote, lone())
    await until(lambda: seen)
    run.request(Halt.CANCEL)
    await until(lambda: "stop" in remote.told)
    gate.set()
    await end_of(run)
    assert (run.status, seen, remote.kills) == ("cancelled", ["waits"], 0)


async def test_an_effect_that_goes_on_after_its_body_was_stopped_costs_the_process():
    remote = Laned()
    run = await drive(remote, lone())
    await until(lambda: seen)
    run.request(Halt.CANCEL)
    await end_of(run)
    assert (run.status, seen, remote.kills) == ("cancelled", ["waits"], 1)


async def test_an_effect_that_goes_on_past_the_limit_of_its_body_costs_the_process():
    remote = Laned()
    run = await end_of(await drive(remote, lone(timeout=0.1)))
    assert isinstance(run.error and run.error.__cause__, StepTimedOut)
    assert (seen, remote.kills) == (["waits"], 1)


async def test_a_pack_that_is_stopped_ends_when_nothing_of_it_is_in_a_thread_any_more():
    remote = Laned()
    run = await drive(remote, lone())
    await until(lambda: seen)
    (performing,) = remote.work
    performing.cancel()
    await turns(50)
    assert not performing.done()
    gate.set()
    await asyncio.wait({performing})
    assert seen[0] == "waits"
    assert "after" not in seen
    run.request(Halt.CANCEL)
    await end_of(run)


async def in_pool(x: Any) -> None:
    await asyncio.to_thread(waits)


async def in_thread(x: Any) -> None:
    threading.Thread(target=waits, daemon=True).start()
    await asyncio.Event().wait()


async def in_team(x: Any) -> None:
    await Team([lambda x: waits()]).run(x)


async def in_process(x: Any) -> None:
    children.append(await asyncio.create_subprocess_exec("sleep", "60"))
    seen.append("waits")
    await asyncio.Event().wait()


GOING_ON = pytest.mark.parametrize("body", [in_pool, in_thread, in_team, in_process])


@GOING_ON
async def test_what_a_body_has_started_and_what_goes_on_after_its_stop_costs_the_process(body: Any):
    remote = Laned()
    run = await drive(remote, Workflow("lone").add_node("a", body).set_entry_point("a"))
    await until(lambda: seen)
    run.request(Halt.CANCEL)
    await end_of(run)
    assert (run.status, seen, remote.kills) == ("cancelled", ["waits"], 1)


@GOING_ON
async def test_what_a_body_has_started_and_what_goes_on_past_its_limit_costs_the_process(body: Any):
    remote = Laned()
    run = await end_of(await drive(remote, Workflow("lone").add_node("a", body, timeout=0.2).set_entry_point("a")))
    assert isinstance(run.error and run.error.__cause__, StepTimedOut)
    assert (seen, remote.kills) == (["waits"], 1)


async def test_a_body_has_stopped_when_what_it_has_started_ends_by_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executor, "FORCE", 60.0)
    remote = Laned()
    run = await drive(remote, Workflow("lone").add_node("a", in_pool).set_entry_point("a"))
    await until(lambda: seen)
    run.request(Halt.CANCEL)
    await until(lambda: "stop" in remote.told)
    await turns(50)
    assert run.task is not None
    assert not run.task.done()
    gate.set()
    await end_of(run)
    assert (run.status, remote.kills) == ("cancelled", 0)


async def test_a_body_that_ends_well_leaves_behind_what_it_likes():
    async def leaves(x: Any) -> str:
        threading.Thread(target=waits, daemon=True).start()
        return "done"

    remote = Laned()
    run = await end_of(await drive(remote, Workflow("lone").add_node("a", leaves).set_entry_point("a")))
    assert (run.output(), remote.kills) == ("done", 0)


async def cancels_itself(x: Any) -> None:
    seen.append("begins")
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


@pytest.mark.parametrize("policy", [{}, {"timeout": 60.0}])
async def test_a_body_that_cancels_its_own_task_has_failed(policy: dict[str, Any]):
    remote = Laned()
    run = await end_of(await drive(remote, Workflow("lone").add_node("a", cancels_itself, **policy).set_entry_point("a")))
    cause = run.error and run.error.__cause__
    assert getattr(cause, "type_name", None) == "CancelledError"
    assert (seen, remote.kills) == (["begins"], 0)


async def test_a_body_that_cancels_its_own_task_in_a_chain_has_failed():
    flow = Workflow("chain").add_node("a", lets_go).add_node("b", cancels_itself).add_node("c", lets_go)
    seen.append("goes")
    run = await end_of(await drive(Laned(), flow.add_edge("a", "b").add_edge("b", "c").set_entry_point("a")))
    assert getattr(run.error and run.error.__cause__, "type_name", None) == "CancelledError"
    assert seen == ["goes", "begins"]


async def cancels_all(x: Any) -> None:
    await until(lambda: "other" in seen)
    for task in asyncio.all_tasks():
        if isinstance(task, Owned):  # beside the tasks of the test itself
            task.cancel()
    await asyncio.Event().wait()


async def other(x: Any) -> str:
    seen.append("other")
    if seen.count("other") == 1:
        await asyncio.Event().wait()
    return "done"


async def waits_for_other(x: Any) -> str:
    return await asyncio.get_running_loop().create_task(other(x))


@pytest.mark.parametrize("body", [other, waits_for_other])
async def test_what_another_body_cancelled_is_performed_again(body: Any, monkeypatch: pytest.MonkeyPatch):
    remote = Laned()
    monkeypatch.setattr(remote, "send", lambda data, refs, resources: remote.send_to_lane(0, data, refs))
    flow = Workflow("two").add_node("a", cancels_all, on_error="skip").add_node("b", body)
    run = await end_of(await drive(remote, flow.set_entry_point("a", "b")))
    assert (run.output(), seen, remote.kills) == ("done", ["other", "other"], 0)
    rows = {row.node: (row.status, row.attempt) for row in run.rows()}
    assert rows == {"a": ("skipped", 1), "b": ("success", 2)}


async def hit(x: Any) -> None:
    seen.append("hit")
    mine, task = calling.get(), asyncio.current_task()
    assert mine is not None
    assert task is not None
    mine.hit = True
    task.cancel()
    await asyncio.Event().wait()


async def test_what_is_always_cancelled_by_another_body_is_not_performed_again_without_end(monkeypatch: pytest.MonkeyPatch):
    remote = Laned()
    monkeypatch.setattr(remote, "send", lambda data, refs, resources: remote.send_to_lane(0, data, refs))
    run = await end_of(await drive(remote, Workflow("lone").add_node("a", hit).set_entry_point("a")))
    assert isinstance(run.error and run.error.__cause__, WorkerLost)
    assert "another body of its process cancelled it" in str(run.error)
    assert seen == ["hit"] * 3


async def test_who_waits_for_a_thread_can_be_cancelled():
    threads = Threads(1)
    first, second = CallTask(threads), CallTask(threads)
    performing, waiting = (asyncio.get_running_loop().create_task(call.off_loop(waits)) for call in (first, second))
    await turns(5)
    assert (first.busy, second.busy) == (True, False)
    waiting.cancel()
    gate.set()
    assert await performing
    await asyncio.wait({waiting})
    assert seen == ["waits"]
    assert not first.busy
