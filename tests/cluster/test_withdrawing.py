"""What has not begun when a run stops, or a sibling failed, does not begin: neither inside a pack under way nor where Ray holds one."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import dispatch
from cluster.chain import Chain
from cluster.dispatch import Pool
from cluster.opened import Home, Opened
from cluster.packing import PROBE_CALLS
from cluster.progress import Progress, Watch, answer
from cluster.wire import PackWire
from cluster.worker import perform_calls, perform_chain
from engine import Workflow
from engine.errors import StepFailed
from engine.local import LocalRun
from engine.runtime.control import Halt
from engine.runtime.step import Call, Outcome
from tests.acceptance.marks import until
from tests.cluster.test_dispatch import SLOTS, Holding, Threaded, drive, fetched, turns

WITHIN = 10.0
begun: list[Any] = []
gate = threading.Event()


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    begun.clear()
    gate.clear()
    yield
    gate.set()


class Reporting(Threaded):
    """A cluster of threads that report while a pack goes on, and ask what is wanted back."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()

    def perform(self, pack: PackWire, refs: list[Any]) -> Any:
        def send(name: str, data: bytes) -> None:
            self.loop.call_soon_threadsafe(self.pool.take_report, data)

        def ask(name: str, *args: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(getattr(self.pool, name)(*args), self.loop)

        def call(name: str, pack: str, number: int, _: bytes) -> Any:
            return asyncio.run_coroutine_threadsafe(self.pool.may_go(pack, number), self.loop).result()

        home = Home(call, None, send, fetched, ask)  # type: ignore[arg-type]
        progress, ready = Progress(pack, home), Opened(pack, refs, home)
        with Watch().over(progress):
            (perform_chain if pack.kind == "chain" else perform_calls)(ready, progress)
        return answer(progress)


def item(x: Any) -> Any:
    begun.append(x)
    if x == 0:
        raise ValueError("the first item")
    gate.wait(WITHIN)
    return x


def under_way(pool: Pool) -> int:
    """Count the calls that are in packs."""
    return sum(len(flight.entries) for flight in pool._flights.values())


async def begin_map(remote: Reporting, items: list[int]) -> LocalRun:
    """Begin a map whose items are known to be long, so that packs hold many and their budget gives none back."""
    run = await drive(remote, Workflow("m").add_map("m", item).set_entry_point("m"), items)
    assert run._conductor is not None
    remote.pool._packer.learn(run._conductor.driver.plan.nodes[0].body.cost, 0.3)
    return run


@pytest.mark.parametrize("halt", [Halt.PAUSE, Halt.DRAIN])
@pytest.mark.anyio
async def test_a_run_that_stops_starts_nothing_more_of_the_packs_under_way(halt: Halt):
    remote = Reporting()
    run = await begin_map(remote, list(range(1, 61)))
    await until(lambda: len(begun) == SLOTS)
    assert under_way(remote.pool) > 10 * SLOTS
    run.request(halt)
    await until(lambda: under_way(remote.pool) == SLOTS)
    gate.set()
    await run.wait()
    assert run.status == "paused"
    assert len(begun) == SLOTS


@pytest.mark.anyio
async def test_what_waits_in_a_pack_does_not_start_after_a_sibling_failed():
    remote = Reporting()
    run = await begin_map(remote, list(range(60)))
    await until(lambda: len(begun) > SLOTS)
    await until(lambda: under_way(remote.pool) == SLOTS)
    gate.set()
    await run.wait()
    assert run.status == "failed"
    assert isinstance(run.error, StepFailed)
    assert "the first item" in str(run.error)
    assert len(begun) == SLOTS + 1  # the one behind it, that its worker began at once


@pytest.mark.anyio
async def test_a_chain_that_is_performed_ahead_stops_after_the_step_under_way():
    flow = Workflow("chain")
    for number in range(5):
        flow.add_node(f"n{number}", item)
        if number:
            flow.add_edge(f"n{number - 1}", f"n{number}")
    remote = Reporting()
    run = await drive(remote, flow.set_entry_point("n0"), "given")
    await until(lambda: begun)
    assert under_way(remote.pool) == 5
    run.request(Halt.PAUSE)
    await until(lambda: under_way(remote.pool) == 1)
    gate.set()
    await run.wait()
    assert run.status == "paused"
    assert begun == ["given"]
    assert list(run.history()) == ["n0"]


def wide(count: int, **policy: Any) -> Workflow:
    flow = Workflow("wide")
    for number in range(count):
        flow.add_node(f"n{number}", lambda x: x, **policy)
    return flow.set_entry_point(*(f"n{number}" for number in range(count)))


class Scarce(Holding):
    """A cluster that holds packs back."""

    def cancel(self, ref: Any, *, force: bool) -> None:
        if not ref.done():
            ref.set_exception(RuntimeError("stopped"))


@pytest.mark.anyio
async def test_a_pack_that_waits_for_resources_is_taken_back_and_its_worker_not_let_on():
    remote = Scarce()
    run = await drive(remote, wide(3, num_gpus=1))
    await turns(20)
    assert [pack.gated for pack in remote.packs] == [True] * 3
    assert await remote.pool.may_go(remote.packs[0].id, remote.packs[0].calls[0].id)
    run.request(Halt.PAUSE)
    await turns(5)
    assert [await remote.pool.may_go(pack.id, pack.calls[0].id) for pack in remote.packs[1:]] == [False, False]
    assert under_way(remote.pool) == 1
    run.request(Halt.CANCEL)
    await run.wait()


@pytest.mark.anyio
async def test_a_single_call_that_waits_for_a_slot_is_taken_back():
    remote = Scarce()
    first = await drive(remote, wide(2 * SLOTS))
    await turns(20)
    second = await drive(remote, Workflow("one").add_node("n", item).set_entry_point("n"))
    await turns(20)
    assert len(remote.packs) == SLOTS
    second.request(Halt.PAUSE)
    async with asyncio.timeout(WITHIN):
        await second.wait()
    assert second.status == "paused"
    first.request(Halt.CANCEL)
    await first.wait()


class Refusing(Scarce):
    """A cluster that refuses whatever asks for resources."""

    def send(self, data: bytes, refs: list[Any], resources: Any) -> Any:
        if resources:
            raise ValueError("no such quantity")
        return super().send(data, refs, resources)


@pytest.mark.anyio
async def test_what_ray_refuses_fails_by_name_and_nobody_else_waits_for_it():
    remote = Refusing()
    other = await drive(remote, wide(1))
    run = await drive(remote, wide(2, num_gpus=1, retry=3))
    async with asyncio.timeout(WITHIN):
        await run.wait()
    assert isinstance(run.error, StepFailed)
    assert "step 'n0' could not be sent to a worker: ValueError: no such quantity" in str(run.error)
    assert len(remote.packs) == 1
    other.request(Halt.CANCEL)
    async with asyncio.timeout(WITHIN):
        await other.wait()
    assert other.status == "cancelled"


def refuse(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the first packs hold a value that cannot travel."""
    wire, refused = dispatch.wire_of, []

    def wire_later(*args: Any) -> PackWire:
        if len(refused) < times:
            refused.append(args[0])
            raise TypeError("it cannot travel")
        return wire(*args)

    monkeypatch.setattr(dispatch, "wire_of", wire_later)


@pytest.mark.anyio
async def test_a_chain_that_cannot_be_sent_fails_at_its_first_step(monkeypatch: pytest.MonkeyPatch):
    remote = Threaded()
    refuse(monkeypatch, 1)
    flow = Workflow("two").add_node("a", lambda x: x).add_node("b", lambda x: x).add_edge("a", "b")
    run = await drive(remote, flow.set_entry_point("a"), 7)
    async with asyncio.timeout(WITHIN):
        await run.wait()
    assert isinstance(run.error, StepFailed)
    assert run.error.node == "a"
    assert "could not be sent" in str(run.error)


@pytest.mark.anyio
async def test_packs_that_cannot_be_sent_leave_their_slots_to_what_waits(monkeypatch: pytest.MonkeyPatch):
    remote = Threaded()
    refuse(monkeypatch, SLOTS)
    run = await drive(remote, wide(SLOTS * PROBE_CALLS + 8, on_error="skip"), 7)
    async with asyncio.timeout(WITHIN):
        await run.wait()
    assert run.error is None
    assert list(run.output().values()) == [7] * 8


def interrupted(x: Any) -> Any:
    raise KeyboardInterrupt


class Lone(Threaded):
    """A cluster of one worker."""

    slots = 1


@pytest.mark.anyio
async def test_a_map_whose_last_items_come_back_unperformed_has_failed():
    run = await drive(Lone(), Workflow("m").add_map("m", interrupted).set_entry_point("m"), [1, 2, 3])
    async with asyncio.timeout(WITHIN):
        await run.wait()
    assert run.status == "failed"
    assert isinstance(run.error, StepFailed)


def ahead() -> tuple[Chain, list[Call]]:
    calls = [Call(None, number, 1, None, 1, None, None, f"r/n{number}/1") for number in range(2)]  # type: ignore[arg-type]
    chain = Chain.__new__(Chain)
    chain.__dict__.update(calls=calls, gated=False, over=False, _done={}, _left={c.step_id for c in calls}, _asked=None)
    return chain, calls


@pytest.mark.parametrize("performed", [True, False])
@pytest.mark.anyio
async def test_a_step_that_a_worker_may_have_begun_unasked_is_waited_for(performed: bool):
    chain, calls = ahead()
    waiting = asyncio.get_running_loop().create_task(chain.settled(calls[0].step_id))
    await turns(2)
    assert not waiting.done()
    if performed:
        chain.report(Outcome(calls[0], 0.0))
    else:
        chain.give_back({calls[0].step_id})
    assert await waiting is performed
    assert (chain.take(calls[0].step_id) is not None) is performed


@pytest.mark.anyio
async def test_max_concurrency_bounds_sub_workflows_that_are_side_by_side(monkeypatch: pytest.MonkeyPatch):
    flow = Workflow("outer", max_concurrency=3)
    for name in ("a", "b"):
        flow.add_node(name, wide(4))
    remote = Threaded()
    most, wire = [0], dispatch.wire_of

    def counted(*args: Any) -> PackWire:
        most.append(under_way(remote.pool) + len(args[0].entries))
        return wire(*args)

    monkeypatch.setattr(dispatch, "wire_of", counted)
    run = await drive(remote, flow.set_entry_point("a", "b"), 1)
    async with asyncio.timeout(WITHIN):
        await run.wait()
    assert run.error is None
    assert set(run.output()) == {"a", "b"}
    assert max(most) == 3
