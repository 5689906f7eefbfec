"""What a lane performs beside its event loop: others in it go on, and what is in a thread ends with the process alone. No Ray."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import executor
from cluster.lane import CallTask, Lane
from cluster.opened import Home
from engine import Context, Workflow
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


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    seen.clear()
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
