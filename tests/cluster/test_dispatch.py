"""The pool and what travels with its packs, over workers that are threads of this process. No Ray."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.chain import Chain
from cluster.code import parcel
from cluster.dispatch import Pool
from cluster.executor import RayExecutor
from cluster.opened import Home, Opened
from cluster.progress import Progress, answer
from cluster.wire import BIG, PackWire, read_pack
from cluster.worker import perform_calls, perform_chain
from engine import Context, Engine, Workflow
from engine.checkpoint.record import decode_diff
from engine.core.state import opened
from engine.local import LocalRun
from engine.runtime.control import Control
from engine.runtime.session import Request, begin
from engine.runtime.step import Call, Outcome
from engine.store import open_log

SLOTS = 2


def fetched(ref: Any) -> Any:
    return ref.result() if isinstance(ref, asyncio.Future) else ref


class Threaded:
    """A cluster whose workers are threads; an object is the future of what a pack gave, or a list."""

    slots = SLOTS

    def __init__(self) -> None:
        self.packs: list[PackWire] = []
        self.objects: list[Any] = []
        self.pool = Pool(self)  # type: ignore[arg-type]
        self._threads = ThreadPoolExecutor(SLOTS)

    def put(self, value: Any) -> Any:
        self.objects.append(value)
        return [bytes(value)] if isinstance(value, (bytes, memoryview)) else value

    def send(self, data: bytes, refs: list[Any], resources: Any) -> Any:
        self.packs.append(read_pack(data))
        return asyncio.get_running_loop().run_in_executor(self._threads, self.perform, self.packs[-1], refs)

    def perform(self, pack: PackWire, refs: list[Any]) -> Any:
        home = Home(None, None, lambda name, data: None, fetched, None)  # type: ignore[arg-type]
        progress, ready = Progress(pack, home), Opened(pack, refs, home)
        progress.every = 60.0
        progress.pulse = lambda spent: None  # all that a pack gives is in its answer
        (perform_chain if pack.kind == "chain" else perform_calls)(ready, progress)
        return answer(progress)

    async def get(self, ref: Any) -> Any:
        return await ref

    def loss(self, error: BaseException) -> str | None:
        return None

    def is_near(self, place: tuple[str, int] | None) -> bool:
        return True


class Holding(Threaded):
    """A cluster whose packs never end."""

    def perform(self, pack: PackWire, refs: list[Any]) -> Any:
        raise NotImplementedError

    def send(self, data: bytes, refs: list[Any], resources: Any) -> Any:
        self.packs.append(read_pack(data))
        return asyncio.get_running_loop().create_future()

    def cancel(self, ref: Any, *, force: bool) -> None:
        ref.cancel()


async def drive(remote: Threaded, flow: Workflow, given: Any = None, storage: Path | None = None) -> LocalRun:
    """Begin a run on the workers of `remote`."""
    packed = parcel(flow.compiled())
    request = Request(workflow=flow.name, plan=packed.plan, session="s", input=given, strategy=flow.checkpoint_strategy.value)
    log = None if storage is None else open_log(storage)
    begun = await begin(request, log, lambda: RayExecutor(remote.pool, packed, packed.codes), Control())
    return LocalRun(begun, request, log)


def layer(count: int) -> Workflow:
    flow = Workflow("wide")
    for number in range(count):
        flow.add_node(f"n{number}", lambda x: x)
    return flow.set_entry_point(*(f"n{number}" for number in range(count)))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_no_pack_waits_behind_those_that_the_slots_perform():
    remote = Holding()
    run = await drive(remote, layer(200))
    await turns(20)
    assert len(remote.packs) == SLOTS
    assert run.task is not None
    run.task.cancel()
    await asyncio.wait({run.task})


def fill(sizes: dict[str, int], ctx: Context) -> None:
    ctx.state.update({name: b"\x01" * size for name, size in sizes.items()})


def look(x: Any, ctx: Context) -> list[Any]:
    return [{name: len(value) for name, value in ctx.state.items()}, len(x or ())]


def filled() -> Workflow:
    """A node that writes the state, and two beside each other that read it, so that nothing is fused."""
    flow = Workflow("filled").add_node("fill", fill).set_entry_point("fill")
    for name in ("a", "b"):
        flow.add_node(name, look).add_edge("fill", name)
    return flow


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.anyio
async def test_a_big_value_that_a_step_wrote_stays_in_the_object_that_its_pack_gave(stored: bool, tmp_path: Path):
    remote, sizes = Threaded(), {"big": BIG + 1, "bigger": 3 * BIG, "small": 10}
    run = await drive(remote, filled(), sizes, tmp_path if stored else None)
    await run.wait()
    assert run.error is None
    assert run.output() == {"a": [sizes, 0], "b": [sizes, 0]}
    assert [o for o in remote.objects if isinstance(o, (bytes, memoryview))] == []
    if stored:
        log = open_log(tmp_path)
        diffs = [decode_diff(row.diff) for row in await log.read(run.key) if row.diff is not None]
        assert [{key: len(opened(value)) for key, value in diff.written.items()} for diff in diffs] == [sizes]
        await log.close()


@pytest.mark.parametrize(("keys", "snapshot"), [(10, False), (40, True)])
@pytest.mark.anyio
async def test_many_changed_keys_become_a_snapshot_and_few_go_along(keys: int, snapshot: bool):
    remote = Threaded()
    run = await drive(remote, filled(), {f"k{number}": 5 for number in range(keys)})
    await run.wait()
    assert run.error is None
    scene = remote.packs[-1].scenes[0]
    assert (scene.base is not None, len(scene.delta)) == (snapshot, 0 if snapshot else keys)


def past(x: Any, ctx: Context) -> list[Any]:
    ctx.state["seen"] = [*ctx.state.get("seen", []), [ctx.node, list(ctx.history), ctx.get_last_output() == x]]
    return [ctx.node]


async def blind(x: Any) -> Any:
    return x


@pytest.mark.parametrize("retention", [2, None])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.anyio
async def test_a_fused_chain_hands_on_state_and_history_as_separate_steps_do(retention: int | None, is_async: bool):
    async def past_async(x: Any, ctx: Context) -> list[Any]:
        return past(x, ctx)

    flow = Workflow("fused", max_history_retention=retention)
    bodies = [past_async, blind, past_async, past_async, past_async] if is_async else [past] * 5
    for number, body in enumerate(bodies):
        flow.add_node(f"n{number}", body)
        if number:
            flow.add_edge(f"n{number - 1}", f"n{number}")
    flow.set_entry_point("n0")
    remote = Threaded()
    run = await drive(remote, flow, "given")
    await run.wait()
    assert run.error is None
    assert [(pack.kind, len(pack.calls)) for pack in remote.packs] == [("chain", 5)]
    inline = await Engine(None, "inline").start(flow, "given")
    assert run.output() == await inline.wait() == ["n4"]
    assert run.state() == inline.state
    assert len(run.state()["seen"]) == (4 if is_async else 5)


@pytest.mark.anyio
async def test_a_run_that_is_resumed_fuses_what_is_left_of_its_chain(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.touch()

    def fifth(x: Any) -> Any:
        if broken.exists():
            raise ValueError("not yet")
        return x

    flow = Workflow("mended", checkpoint_strategy="async")
    for number in range(10):
        flow.add_node(f"n{number}", fifth if number == 4 else lambda x: x)
        if number:
            flow.add_edge(f"n{number - 1}", f"n{number}")
    flow.set_entry_point("n0")
    failed = await drive(Threaded(), flow, "given", tmp_path / "runs")
    await failed.wait()
    assert failed.status == "failed"
    broken.unlink()
    remote = Threaded()
    resumed = await drive(remote, flow, "given", tmp_path / "runs")
    await resumed.wait()
    assert resumed.output() == "given"
    assert [[call.node for call in pack.calls] for pack in remote.packs] == [[f"n{number}" for number in range(4, 10)]]
    kinds = [(e.kind, e.node) async for e in Engine(tmp_path / "runs").events(resumed.run_id) if e.kind == "step_succeeded"]
    assert kinds == [("step_succeeded", f"n{number}") for number in range(10)]


def test_a_step_that_was_performed_ahead_is_taken_without_waiting():
    calls = [Call(None, number, 1, None, 1, None, None, f"r/n{number}/1") for number in range(3)]  # type: ignore[arg-type]
    chain = Chain.__new__(Chain)
    chain.__dict__.update(
        calls=calls, gated=False, over=False, _done={}, _left={c.step_id for c in calls}, _asked=None, _let_on=set(), _gates={}
    )
    assert chain.take(calls[0].step_id) is None
    for call in calls[:2]:
        chain.report(Outcome(call, 0.0))
    assert [c.step_id in chain._done for c in calls] == [True, True, False]
    assert [chain.take(c.step_id) is not None for c in calls] == [True, True, False]
    assert not chain.holds("r/n0/1")
    assert chain.holds("r/n2/1")
    chain.report(Outcome(calls[2], 0.0))
    assert chain.take(calls[2].step_id) is not None
    assert chain.over
