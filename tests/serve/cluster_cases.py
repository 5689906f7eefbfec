"""What the service stands on in a cluster, as checks: the double keeps them and the real one does, so that the double is honest."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.record import Recorded
from engine.engine import Engine
from engine.errors import QueueFull, RunNotFound, SessionInUse, WrongState
from tests.serve.flows import echoing, failing, waiting

Cluster = Any
"""A `cluster.client.Cluster` or its double."""


async def wait_until(told: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await told():  # noqa: ASYNC110 - what it waits for is no event of this process
            await asyncio.sleep(0.01)


async def started(cluster: Cluster, run_id: str, node: str) -> None:
    """Wait until a node of a run has started."""
    async for event in cluster.handle(run_id).events():
        if event.kind == "step_started" and event.node == node:
            return


async def check_a_run_ends_with_its_output(cluster: Cluster, engine: Engine, folder: Path) -> None:
    handle = await cluster.submit(echoing, {"a": [1, None]}, labels={"team": "blue"}, priority=3, owner="me", ticket="t1")
    assert handle.run_id == "echo.t1.1"
    assert await cluster.wait(handle.run_id, 20) == "completed"
    assert await cluster.status(handle.run_id) == "completed"
    recorded = Recorded(await engine.log.read(await engine.find(handle.run_id)))  # type: ignore[union-attr]
    told = (recorded.started or {})["submission"]
    assert (told["labels"], told["priority"], told["owner"], told["ticket"]) == ({"team": "blue"}, 3, "me", "t1")
    assert await (await cluster.submit(echoing, {"a": [1, None]}, session_id="t1")).wait() == {"a": [1, None]}


async def check_a_session_is_one_run(cluster: Cluster, engine: Engine, folder: Path) -> None:
    given = {"file": str(folder / "go")}
    first = await cluster.submit(waiting, given, session_id="s")
    again = await cluster.submit(waiting, given, session_id="s")
    assert again.run_id == first.run_id
    with pytest.raises(SessionInUse):
        await cluster.submit(waiting, {"file": "another"}, session_id="s")
    (folder / "go").touch()
    assert await cluster.wait(first.run_id, 20) == "completed"
    with pytest.raises(SessionInUse):
        await cluster.submit(waiting, {"file": "another"}, session_id="s")
    assert (await cluster.submit(waiting, given, session_id="s")).run_id == first.run_id


async def check_what_is_not_there_is_told(cluster: Cluster, engine: Engine, folder: Path) -> None:
    for ask in (cluster.status, cluster.wait, cluster.pause, cluster.cancel, cluster.resume, cluster.retry):
        with pytest.raises(RunNotFound):
            await ask("echo.nobody.1")


async def check_a_run_is_paused_and_goes_on(cluster: Cluster, engine: Engine, folder: Path) -> None:
    run = await cluster.submit(waiting, {"file": str(folder / "go")}, session_id="p")
    await started(cluster, run.run_id, "wait")
    assert await cluster.pause(run.run_id) == "running"  # the step that runs ends first
    (folder / "go").touch()
    assert await cluster.wait(run.run_id, 20) == "paused"
    assert await cluster.pause(run.run_id) == "paused"
    await cluster.resume(run.run_id)
    assert await cluster.wait(run.run_id, 20) == "completed"
    with pytest.raises(WrongState):
        await cluster.resume(run.run_id)
    with pytest.raises(WrongState):
        await cluster.pause(run.run_id)


async def check_a_run_is_cancelled_for_good(cluster: Cluster, engine: Engine, folder: Path) -> None:
    run = await cluster.submit(waiting, {"file": str(folder / "never")}, session_id="c")
    await started(cluster, run.run_id, "wait")
    await cluster.cancel(run.run_id)
    assert await cluster.wait(run.run_id, 20) == "cancelled"
    assert await cluster.cancel(run.run_id) == "cancelled"
    with pytest.raises(WrongState):
        await cluster.retry(run.run_id)


async def check_a_failed_run_is_retried_from_what_failed(cluster: Cluster, engine: Engine, folder: Path) -> None:
    run = await cluster.submit(failing, {"file": str(folder / "go")}, session_id="f")
    assert await cluster.wait(run.run_id, 20) == "failed"
    (folder / "go").touch()
    await cluster.retry(run.run_id)
    assert await cluster.wait(run.run_id, 20) == "completed"
    kinds = [(event.kind, event.node) async for event in engine.events(run.run_id)]
    assert kinds.count(("step_succeeded", "first")) == 1


async def check_events_come_once_in_order(cluster: Cluster, engine: Engine, folder: Path) -> None:
    (folder / "go").touch()
    run = await cluster.submit(waiting, {"file": str(folder / "go")}, session_id="e")
    seen = [event async for event in cluster.handle(run.run_id).events()]
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert (seen[0].kind, seen[-1].kind) == ("run_started", "run_completed")
    later = [event.seq async for event in cluster.handle(run.run_id).events(after=3)]
    assert later == list(range(4, len(seen) + 1))


async def check_a_full_queue_refuses(cluster: Cluster, engine: Engine, folder: Path) -> None:
    """For a cluster with room for one run, and one that waits."""
    given = {"file": str(folder / "go")}
    first = await cluster.submit(waiting, given, session_id="q1")
    await started(cluster, first.run_id, "wait")
    second = await cluster.submit(waiting, given, session_id="q2")
    assert await cluster.status(second.run_id) == "pending"
    with pytest.raises(QueueFull) as caught:
        await cluster.submit(waiting, given, session_id="q3")
    assert caught.value.retry_after >= 1
    assert (await cluster.submit(waiting, given, session_id="q2")).run_id == second.run_id
    (folder / "go").touch()
    assert await cluster.wait(second.run_id, 20) == "completed"


async def check_coordinators_tell_what_they_have(cluster: Cluster, engine: Engine, folder: Path) -> None:
    found = await cluster.survey(5.0)
    assert found
    assert all(figures is not None and {"queued", "running", "ended"} <= set(figures) for figures in found.values())


CASES = [
    check_a_run_ends_with_its_output, check_a_session_is_one_run, check_what_is_not_there_is_told, check_a_run_is_paused_and_goes_on,
    check_a_run_is_cancelled_for_good, check_a_failed_run_is_retried_from_what_failed, check_events_come_once_in_order,
    check_coordinators_tell_what_they_have,
]  # fmt: skip
LIMITED = [check_a_full_queue_refuses]
"""Those for a cluster with limits: one run, and one that waits."""
