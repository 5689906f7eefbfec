"""What a coordinator keeps: no more plans and readers than are in use."""

import asyncio
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import coordinator as module
from cluster.code import parcel
from cluster.coordinator import PARCELS, Coordinator
from engine import Workflow
from engine.checkpoint.codec import Encoded, encode
from engine.runtime.control import Halt
from engine.runtime.session import Request
from tests.acceptance.marks import until
from tests.cluster.test_dispatch import Threaded, turns
from tests.cluster.test_withdrawing import Scarce

FLOW = Workflow("w").add_node("n", lambda x: x).set_entry_point("n")


@pytest.fixture(autouse=True)
def own_collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def begin(monkeypatch: pytest.MonkeyPatch, remote: Any) -> Coordinator:
    monkeypatch.setattr(module, "make_remote", lambda: remote)
    return Coordinator()


def request() -> bytes:
    asked = Request(workflow="w", plan=None, session="s", input=Encoded(encode(1)), strategy="always")  # type: ignore[arg-type]
    return pickle.dumps(asked)


@pytest.mark.anyio
async def test_plans_are_kept_up_to_a_number_and_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    coordinator = begin(monkeypatch, Threaded())
    packed = pickle.dumps(parcel(FLOW.compiled()))
    for number in range(PARCELS):
        assert (await coordinator.start(f"t{number}", f"p{number}", request(), packed, None))[0] == "run"
    assert (await coordinator.start("again", "p0", request(), None, None))[0] == "run"  # used just now, so not the next to go
    assert (await coordinator.start("new", "more", request(), packed, None))[0] == "run"
    assert len(coordinator._parcels) == PARCELS
    assert await coordinator.start("back", "p1", request(), None, None) == ("parcel", None)
    for ticket in ("t1", "again", "new"):
        assert (await coordinator.wait(ticket))[0] == "completed"


@pytest.mark.anyio
async def test_a_reader_that_leaves_early_is_forgotten_and_served_where_it_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "READER", 0.05)
    coordinator = begin(monkeypatch, Scarce())
    _, (run_id, *_) = await coordinator.start("t", "p", request(), pickle.dumps(parcel(FLOW.compiled())), str(tmp_path))
    first = await coordinator.events("t", "reader", 0, True)
    assert first is not None
    run = coordinator._runs["t"]
    assert run._readers
    await until(lambda: not coordinator._readers)
    await turns(5)
    assert not run._readers
    ending = asyncio.gather(coordinator.request("t", Halt.CANCEL), coordinator.wait("t"))
    seen = list(first)
    while (found := await coordinator.events("t", "reader", seen[-1][1], False)) is not None:
        seen += found
    await ending
    numbers = [event[1] for event in seen if not event[-1]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert (run_id, seen[-1][3]) == (run.run_id, "run_cancelled")
    await turns(2)
    assert not coordinator._readers


@pytest.mark.anyio
async def test_plans_that_come_at_once_do_not_push_each_other_out(monkeypatch: pytest.MonkeyPatch):
    coordinator = begin(monkeypatch, Threaded())
    waiting: list[asyncio.Future[None]] = []

    async def expect(plan: Any, kit: Any) -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        await waiting[-1]

    monkeypatch.setattr(coordinator._pool.races.seats, "expect", expect)
    packed = pickle.dumps(parcel(FLOW.compiled()))
    starting = [asyncio.ensure_future(coordinator.start(f"t{n}", f"p{n}", request(), packed, None)) for n in range(PARCELS + 9)]  # noqa: TID251
    await until(lambda: len(waiting) == PARCELS + 9)
    for future in waiting:
        future.set_result(None)
    assert {kind for kind, _ in await asyncio.gather(*starting)} == {"run"}


@pytest.mark.anyio
async def test_a_run_that_nobody_wants_any_more_stops_as_soon_as_it_begins(monkeypatch: pytest.MonkeyPatch):
    coordinator = begin(monkeypatch, Threaded())
    await coordinator.request("t", Halt.CANCEL)
    assert (await coordinator.start("t", "p", request(), pickle.dumps(parcel(FLOW.compiled())), None))[0] == "run"
    assert (await coordinator.wait("t"))[0] == "cancelled"
