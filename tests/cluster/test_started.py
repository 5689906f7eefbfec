"""Which call of a lane a thread, a function in a pool, a process and a task belong to, and whether they go on. No Ray."""

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from cluster import started
from cluster.ending import begun_at, is_at_work, kill
from cluster.started import TICK, Family, Owned, Started, attend, calling, current
from engine.runtime.inline import Idle, Threads
from tests.acceptance.marks import until
from tests.cluster.test_dispatch import turns

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who started a process")

WITHIN = 10.0
gate = threading.Event()


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    gate.clear()
    yield
    gate.set()


@pytest.fixture
async def settled() -> None:
    attend(asyncio.get_running_loop())


pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("settled")]


def begin(body: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Started, "asyncio.Task[Any]"]:
    """Perform a body as a call."""
    mine = Started()
    token = calling.set(mine)
    try:
        return mine, asyncio.get_running_loop().create_task(body())
    finally:
        calling.reset(token)


async def began(body: Callable[[], Coroutine[Any, Any, Any]]) -> Started:
    """Perform a body as a call, to its end."""
    mine, task = begin(body)
    await task
    return mine


def wait() -> None:
    gate.wait(WITHIN)


async def nothing() -> None:
    pass


async def test_a_call_that_has_started_nothing_is_at_rest():
    assert not (await began(nothing)).at_work()


async def test_a_thread_of_a_call_is_at_work_until_it_ends_and_is_no_other_call_s():
    async def body() -> None:
        threading.Thread(target=wait, daemon=True).start()

    mine, other = await began(body), await began(nothing)
    assert mine.at_work()
    assert not other.at_work()
    gate.set()
    await until(lambda: not mine.at_work())


async def test_what_a_thread_of_a_call_starts_is_the_call_s_too():
    inner: list[threading.Thread] = []

    def outer() -> None:
        inner.append(threading.Thread(target=wait, daemon=True))
        inner[0].start()

    async def body() -> None:
        threading.Thread(target=outer, daemon=True).start()

    mine = await began(body)
    await until(lambda: inner)
    await until(lambda: mine.threads[-1] is inner[0] and not mine.threads[0].is_alive())
    assert mine.at_work()


async def test_a_sync_body_of_a_nested_run_is_at_work_until_it_ends_on_a_thread_that_is_nobody_s():
    performed: list[asyncio.Future[Any]] = []

    async def body() -> None:
        performed.append(Threads(1).perform(wait))

    mine, other = await began(body), await began(nothing)
    performed[0].cancel()
    assert mine.at_work()
    assert not other.at_work()
    assert mine.threads == []
    gate.set()
    await until(lambda: not mine.at_work())


async def test_a_sync_body_that_was_cancelled_before_it_had_a_thread_is_not_at_work():
    idle, performed = Idle(), []

    async def body() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        idle.perform(wait, asyncio.get_running_loop(), future)
        performed.append(future)

    mine = await began(body)
    await until(lambda: not mine.at_work())


async def test_the_engine_s_own_threads_are_nobody_s_though_a_call_s_thread_needs_them_first():
    idle = Idle()

    def nested() -> None:
        async def perform() -> None:
            await Threads(1, idle).perform(lambda: None)

        asyncio.run(perform())

    async def body() -> None:
        threading.Thread(target=nested, daemon=True).start()

    mine = await began(body)
    await until(lambda: not mine.at_work())
    assert [thread.name for thread in mine.threads if thread.name == "gecko-body"] == []


async def test_a_thread_that_waits_for_something_to_do_is_at_rest():
    given: queue.Queue[Any] = queue.Queue()

    async def body() -> None:
        threading.Thread(target=given.get, daemon=True).start()

    mine = await began(body)
    await until(lambda: not mine.at_work())
    assert [thread.is_alive() for thread in mine.threads] == [True]
    given.put(None)


@pytest.mark.parametrize("shared", [True, False])
async def test_a_function_in_a_pool_is_of_the_call_that_handed_it_in_whoever_started_the_pool_s_thread(shared: bool):
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:

        async def quick() -> None:
            await (loop.run_in_executor(pool, current) if shared else asyncio.to_thread(current))

        async def body() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await (loop.run_in_executor(pool, wait) if shared else asyncio.to_thread(wait))

        first = await began(quick)
        assert not first.at_work()
        second = await began(body)
        assert not first.at_work()
        assert second.at_work()
        gate.set()
        await until(lambda: not second.at_work())


async def test_what_a_function_in_a_pool_starts_is_of_the_call_that_handed_it_in():
    with ThreadPoolExecutor(1) as pool:

        async def body() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, threading.Thread(target=wait, daemon=True).start)

        mine = await began(body)
        assert mine.at_work()
        gate.set()
        await until(lambda: not mine.at_work())
        assert pool.submit(current).result() is None


async def test_a_name_that_is_looked_up_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(started, "HARMLESS", (wait,))

    async def body() -> None:
        asyncio.get_running_loop().run_in_executor(None, wait)

    assert not (await began(body)).at_work()
    gate.set()


@LINUX
async def test_a_process_is_of_the_call_that_started_it_and_at_work_until_it_ends():
    processes: list[Any] = []

    async def of_loop() -> None:
        processes.append(await asyncio.create_subprocess_exec("sleep", "60"))

    async def of_thread() -> None:
        processes.append(await asyncio.to_thread(subprocess.Popen, ["sleep", "60"]))

    first, second, third = await began(of_loop), await began(of_thread), await began(of_loop)
    assert [mine.at_work() for mine in (first, second, third, await began(nothing))] == [True, True, True, False]
    for process, mine in zip(processes, (first, second, third), strict=True):
        process.kill()
        await until(lambda mine=mine: not mine.at_work())  # type: ignore[misc]
        await asyncio.to_thread(process.wait) if mine is second else await process.wait()
    assert not any(mine.at_work() for mine in (first, second, third))


ORPHAN = 'sh -c \'sleep 60 & echo $! > "$0"\' "$0" & wait'
"""A shell whose grandchild is nobody's child any more."""


@LINUX
async def test_an_orphan_that_was_there_before_is_of_none_that_came_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(started, "family", Family())
    old = await asyncio.create_subprocess_exec("sleep", "60")
    monkeypatch.setattr(started, "orphans_of", lambda pid: [old.pid])
    await until(lambda: started._uptime() > begun_at(old.pid) + 2 * TICK)

    async def body() -> None:
        await (await asyncio.create_subprocess_exec("true")).wait()

    mine = await began(body)
    await until(lambda: not mine.at_work(), within=1.0)
    old.kill()
    await old.wait()


@LINUX
@pytest.mark.parametrize("others", [0, 1])
async def test_what_has_lost_its_parent_is_a_call_s_where_no_other_can_have_started_it(
    others: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(started, "family", Family())
    orphan: list[int] = []
    monkeypatch.setattr(started, "orphans_of", lambda pid: orphan)

    async def body() -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", ORPHAN, str(tmp_path / "pid"))
        await process.wait()

    mine = await began(body)
    orphan.append(int((tmp_path / "pid").read_text()))
    assert is_at_work(orphan[0])
    for _ in range(others):
        await began(body)
    assert mine.at_work() is not bool(others)
    kill([*orphan, int((tmp_path / "pid").read_text())])
    await until(lambda: not mine.at_work())


async def forever() -> None:
    await asyncio.Event().wait()


async def test_who_cancels_its_own_tasks_hits_nobody():
    async def body() -> None:
        child = asyncio.get_running_loop().create_task(forever())
        await asyncio.sleep(0)
        child.cancel()
        await asyncio.wait({child})
        assert child.cancelled()

    assert not (await began(body)).hit


async def test_a_call_whose_task_another_one_cancels_is_known_to_be_innocent():
    first, task = begin(forever)
    await turns(2)

    async def body() -> None:
        task.cancel()

    second = await began(body)
    await asyncio.wait({task})
    assert (task.cancelled(), first.hit, second.hit) == (True, True, False)


async def test_no_call_cancels_what_is_the_lane_s_own_and_the_lane_cancels_what_it_likes():
    own = asyncio.get_running_loop().create_task(forever())
    assert isinstance(own, Owned)

    async def body() -> None:
        for task in asyncio.all_tasks():
            if task is own:
                task.cancel()

    await began(body)
    await turns(3)
    assert not own.done()
    own.cancel()
    await asyncio.wait({own})
    assert own.cancelled()


@LINUX
async def test_children_of_a_thread_that_has_ended_stay_who_started_them():
    processes: list[Any] = []

    async def body() -> None:
        thread = threading.Thread(target=lambda: processes.append(subprocess.Popen(["sleep", "60"])), daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join)

    mine = await began(body)
    assert mine.at_work()
    processes[0].kill()
    processes[0].wait()
    assert not mine.at_work()
