"""What is said of calls whose worker was lost, and of those that wait for what no node has. No Ray cluster."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from cluster import scarce
from engine import Retry, Workflow
from engine.core.events import Event
from engine.errors import ClusterUnavailable, OutOfMemory, StepFailed, WorkerLost
from engine.observe.progress import Progress
from tests.cluster.test_dispatch import Holding, Threaded, drive, turns

FITTING = [{"CPU": 4.0, "GPU": 2.0}]


class Starved(Threaded):
    """A cluster whose workers are ended for their memory."""

    def perform(self, pack: Any, refs: list[Any]) -> Any:
        raise MemoryError

    def loss(self, error: BaseException) -> Any:  # type: ignore[override]
        return OutOfMemory, "its machine ran out of memory"


class Full(Holding):
    """A cluster of one node, whose packs never end."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    def totals(self) -> list[dict[str, float]]:
        self.asked.set()
        return FITTING


def lone(**policy: Any) -> Workflow:
    return Workflow("lone").add_node("a", lambda x: x, **policy).set_entry_point("a")


@pytest.mark.parametrize(("retry", "packs"), [(None, 3), (Retry(attempts=2, delay=0), 2), (Retry(give_up_on=OutOfMemory), 1)])
@pytest.mark.anyio
async def test_a_step_whose_machine_ran_out_of_memory_fails_with_an_error_that_policies_can_name(retry: Retry | None, packs: int):
    remote = Starved()
    run = await drive(remote, lone(retry=retry))
    await run.wait()
    assert isinstance(run.error, StepFailed)
    assert isinstance(run.error.__cause__, OutOfMemory)
    assert str(run.error.__cause__) == "the worker of step 'a' was lost: its machine ran out of memory"
    assert len(remote.packs) == packs


@pytest.mark.slow
def test_ray_s_own_errors_say_how_a_worker_was_lost():
    from ray.exceptions import OutOfMemoryError, TaskCancelledError, WorkerCrashedError

    from cluster.remote import RayRemote

    def loss(error: BaseException) -> Any:
        return RayRemote.loss(None, error)  # type: ignore[arg-type]

    kind, text = loss(OutOfMemoryError("used 23 GB"))
    assert kind is OutOfMemory
    assert "memory=..." in text
    assert "max_concurrency=..." in text
    assert loss(WorkerCrashedError()) == (WorkerLost, "its process died")
    assert loss(TaskCancelledError()) == (WorkerLost, "it was stopped")
    assert loss(ValueError()) is None


async def see_waiting(flow: Workflow, given: Any = None) -> list[Event]:
    """Drive a workflow whose packs never end until one could have been said to wait in vain; return the transient events."""
    remote, seen = Full(), list[Event]()
    run = await drive(remote, flow, given)

    async def watch() -> None:
        async for event in run.events(after=0, transient=True):
            seen.append(event)

    watching = asyncio.gather(watch())
    await remote.asked.wait()
    await turns(20)
    assert run.task is not None
    run.task.cancel()
    await asyncio.wait({run.task})
    watching.cancel()
    return [event for event in seen if event.kind == "progress"]


@pytest.mark.anyio
async def test_a_node_that_asks_for_what_no_node_has_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(scarce, "SCARCE", 0.0)
    caplog.set_level(logging.WARNING)
    flow = Workflow("wide").add_map("each", lambda x: x, num_gpus=8).set_entry_point("each")
    (event,) = await see_waiting(flow, [1, 2, 3])
    told = "asks for 8 GPU; no node has it (most: 2); it waits until one joins"
    assert (event.node, event.data["note"]) == ("each", told)
    assert [record.getMessage() for record in caplog.records] == [f"node 'each' of run {event.run_id!r} {told}"]


@pytest.mark.anyio
async def test_a_node_that_waits_for_what_others_use_is_not_said_to_wait_in_vain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(scarce, "SCARCE", 0.0)
    caplog.set_level(logging.WARNING)
    assert await see_waiting(lone(num_gpus=2)) == []
    assert caplog.records == []


def test_a_note_without_a_share_is_shown_with_its_node():
    progress, now = Progress(["a"]), datetime.now(UTC)
    progress.take(Event("r", 1, now, "run_started", "", "", 0, {}))
    progress.take(Event("r", 2, now, "step_started", "a", "r/a/1", 1, {}))
    progress.take(Event("r", 2, now, "progress", "a", "r/a/1", 0, {"done": None, "total": None, "note": "waits"}, 1))
    assert "a: waits" in progress.line(now.timestamp())


@pytest.mark.slow
def test_a_cluster_where_nobody_listens_is_unavailable():
    from cluster.remote_head import meet

    with pytest.raises(ClusterUnavailable, match=r"'127\.0\.0\.1:1' cannot be reached"):
        meet("127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_cluster_that_keeps_no_coordinator_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    from ray.exceptions import ActorDiedError

    from cluster import runner

    class Home:
        tries = 0

        class start:  # Ray spells it `home.start.remote(...)`
            @staticmethod
            async def remote(*_: object) -> None:
                Home.tries += 1
                raise ActorDiedError

    monkeypatch.setattr(runner.script, "get", lambda not_this=None: Home())
    with pytest.raises(ClusterUnavailable, match="no coordinator lives long enough"):
        await runner.RayRun("token", b"", None, None).begin()  # type: ignore[arg-type]
    assert Home.tries == runner.STARTS + 1
