"""What a pool's workers do is counted in steps, and what coordinators tell becomes one cluster's numbers. No Ray cluster."""

import asyncio
from typing import Any

import pytest

from cluster.executor import RayExecutor
from cluster.metrics import metrics_text, text_of, totals, with_metrics
from cluster.queue import Room
from cluster.wire import PackWire
from engine import Team, Workflow
from engine.core.events import Event
from engine.observe.metrics import Metrics
from tests.cluster import test_dispatch
from tests.cluster.test_dispatch import SLOTS, Holding, drive, layer, turns

pytestmark = pytest.mark.anyio


class Lanes(Holding):
    """A cluster whose packs and lanes never end."""

    def lane(self, lane: int) -> Any:
        return lane

    def send_to_lane(self, lane: int, data: bytes, refs: list[Any]) -> Any:
        return self.send(data, refs, None)

    def stop_in_lane(self, lane: int, numbers: list[int]) -> None: ...


async def begun(flow: Workflow, given: Any = None) -> tuple[dict[str, int], list[PackWire]]:
    """Return what a pool says of a run whose packs never end, and those packs."""
    remote = Lanes()
    run = await drive(remote, flow, given)
    while not remote.packs:
        await turns(1)
    await turns(5)
    told = remote.pool.statistics()
    assert run.task is not None
    run.task.cancel()
    await asyncio.wait({run.task})
    return told, remote.packs


async def test_of_packs_of_sync_steps_one_step_each_is_under_way_and_the_others_wait():
    told, packs = await begun(layer(100))
    assert len(packs) == SLOTS
    assert sum(len(pack.calls) for pack in packs) > SLOTS
    assert (told["workers"], told["processing"], told["waiting"]) == (SLOTS, SLOTS, 100 - SLOTS)


async def test_steps_of_a_lane_are_under_way_together():
    async def wait(x: Any) -> None:
        await asyncio.Event().wait()

    told, packs = await begun(Workflow("w").add_map("each", wait).set_entry_point("each"), list(range(10)))
    assert sum(len(pack.calls) for pack in packs) == 10
    assert (told["workers"], told["processing"], told["waiting"]) == (min(10, SLOTS), 10, 0)


async def test_what_ray_holds_back_is_under_way_nowhere():
    told, packs = await begun(Workflow("w").add_node("a", lambda x: x, num_gpus=1).set_entry_point("a"))
    assert [pack.gated for pack in packs] == [True]
    assert (told["workers"], told["processing"], told["waiting"]) == (0, 0, 1)


async def test_steps_wait_too_that_find_no_room_beside_those_of_other_runs(monkeypatch: pytest.MonkeyPatch):
    room = Room(2)
    monkeypatch.setattr(test_dispatch, "RayExecutor", lambda *args: RayExecutor(*args, room))
    told, packs = await begun(layer(10))
    assert sum(len(pack.calls) for pack in packs) == 2
    assert (told["calls"], told["processing"] + told["waiting"]) == (2, 10)


async def test_members_of_a_team_that_wait_are_steps_too():
    async def wait(x: Any) -> None:
        await asyncio.Event().wait()

    told, _ = await begun(Workflow("w").add_node("t", Team([wait, wait, wait], "t")).set_entry_point("t"))
    assert (told["processing"], told["waiting"]) == (3, 0)


class Told:
    """A cluster of two coordinators, one of an earlier version."""

    async def statistics(self) -> dict[str, dict[str, Any]]:
        metrics = Metrics(distributed=True)
        metrics.take(Event("w.s.1", 1, None, "run_started"))  # type: ignore[arg-type] - when does not matter
        figures = {"queued": 1, "waiting": 2, "workers": 3, "processing": 4, "runs": 1}
        return {"one": with_metrics(figures, metrics), "two": with_metrics(figures, metrics), "old": {"runs": 3}}


async def test_coordinators_are_shown_one_by_one_and_all_together():
    figures = await Told().statistics()
    found = totals({**figures, "silent": None})
    named = ("ExecutionsStarted", "QueueDepth", "ActiveWorkers", "TasksProcessing")
    assert [found[name] for name in named] == [2, 6, 6, 8]
    text = await metrics_text(Told())
    assert text == text_of({**figures, "silent": None})
    assert 'workflow_queue_depth{coordinator="one",kind="steps"} 2.0' in text
    assert 'workflow_active_workers{coordinator="two"} 3.0' in text
    assert 'distributed="true",operation="start",result="started",workflow_id="w"} 1.0' in text
