"""A run that waits behind a gate: recorded before it waits, stopped while it waits, and what a storage that fails makes of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from engine import Workflow
from engine.checkpoint.log import SegmentLog
from engine.errors import LeaseLost, RunCancelled, RunPaused, RunTimedOut, StoreUnavailable
from engine.local import LocalRun
from engine.ports import Log, RunKey
from engine.runtime import ledger
from engine.runtime.control import Control, Halt
from engine.runtime.inline import InlineExecutor
from engine.runtime.session import Request, begin
from engine.store import open_log
from engine.testing.medium import Fate, FaultyMedium, Write, make_memory

pytestmark = pytest.mark.anyio

KEY = RunKey("w", "s", 1)
STRATEGIES = ["always", "async", "final", "manual"]
performed: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_performed():
    performed.clear()


def body(x: Any) -> Any:
    performed.append(x)
    return x


FLOW = Workflow("w").add_node("a", body).add_node("b", body).add_edge("a", "b").set_entry_point("a")
REQUEST = Request(workflow="w", plan=FLOW.compiled(), session="s", input=1)


@pytest.fixture
def log() -> Log:
    return SegmentLog(make_memory("conductor"))  # type: ignore[return-value]


class Gate:
    """Lets a run wait until it is opened, or the run is asked to stop, as a queue does."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, control: Control) -> None:
        self.entered.set()
        opened = asyncio.get_running_loop().create_task(self.open.wait())
        while not opened.done() and control.halt is Halt.NONE:
            await asyncio.wait({opened, waiter := control.waiter()}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
        opened.cancel()


async def behind(log: Log, gate: Callable[[Control], Awaitable[None]], **changes: Any) -> LocalRun:
    """Begin a run behind a gate."""
    request = replace(REQUEST, **changes)
    begun = await begin(request, log, lambda: InlineExecutor(2), Control())
    conductor = begun.conductor
    assert conductor is not None
    conductor.gate = lambda: gate(conductor.control)
    return LocalRun(begun, request, log)


async def kinds(log: Log) -> list[str]:
    return [row.kind for row in await log.read(KEY)]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_beginning_is_on_storage_before_a_run_waits_and_nothing_starts_before_it_is_let_in(log: Log, strategy: str):
    seen: list[list[str]] = []

    async def look(control: Control) -> None:
        seen.append(await kinds(log))
        assert performed == []

    run = await behind(log, look, strategy=strategy)
    await run.wait()
    assert seen == [["run_started"]]
    assert (run.status, run.output(), performed) == ("completed", 1, [1, 1])


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_run_that_goes_on_is_recorded_so_before_it_waits(log: Log, strategy: str):
    gate = Gate()
    first = await behind(log, gate, strategy=strategy)
    await gate.entered.wait()
    first.request(Halt.PAUSE)
    await first.wait()
    seen: list[list[str]] = []

    async def look(control: Control) -> None:
        seen.append(await kinds(log))

    run = await behind(log, look, strategy=strategy, resume=True)
    await run.wait()
    assert seen == [["run_started", "run_paused", "run_resumed"]]
    assert (run.status, performed) == ("completed", [1, 1])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("halt", "kind", "error"), [(Halt.PAUSE, "run_paused", RunPaused), (Halt.CANCEL, "run_cancelled", RunCancelled)])
async def test_a_run_that_waits_stops_when_it_is_asked_to(log: Log, strategy: str, halt: Halt, kind: str, error: type[Exception]):
    gate = Gate()
    run = await behind(log, gate, strategy=strategy)
    await gate.entered.wait()
    run.request(halt)
    await run.wait()
    assert isinstance(run.error, error)
    assert await kinds(log) == ["run_started", kind]
    assert performed == []
    (await log.claim(KEY)).forget()  # nobody drives it any more


async def test_the_limit_of_a_run_counts_while_it_waits(log: Log):
    run = await behind(log, Gate(), timeout=0.01)
    await run.wait()
    assert isinstance(run.error, RunTimedOut)
    assert await kinds(log) == ["run_started", "run_timed_out"]
    assert performed == []


async def test_a_process_that_ends_leaves_a_run_that_waits_to_the_next():
    log = SegmentLog(make_memory("ends"))
    gate = Gate()
    run = await behind(log, gate)  # type: ignore[arg-type]
    await gate.entered.wait()
    assert run.task is not None
    run.task.cancel()
    await asyncio.wait({run.task})
    (found,) = await log.scan()
    assert (found.status, found.owner) == ("running", None)
    assert performed == []


class Refusing:
    """Refuses writes behind a number of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.refused = 0

    def __call__(self, write: Write) -> Fate:
        self.refused += write.number > self.most
        return Fate(refused=write.number > self.most)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_run_whose_beginning_cannot_be_recorded_neither_waits_nor_starts(monkeypatch: pytest.MonkeyPatch, strategy: str):
    monkeypatch.setattr(ledger, "PAUSES", (0.0, 0.0))
    refusing = Refusing(2)  # what makes and claims the run
    log = SegmentLog(FaultyMedium(make_memory("refusing"), refusing))
    gate = Gate()
    run = await behind(log, gate, strategy=strategy)  # type: ignore[arg-type]
    await run.wait()
    assert refusing.refused >= 3
    assert isinstance(run.error, StoreUnavailable)
    assert not gate.entered.is_set()
    assert performed == []
    refusing.most = 1 << 62
    assert [row.kind for row in (await log.claim(KEY)).rows] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_run_that_lost_its_lease_while_it_waited_commits_nothing(log: Log, strategy: str):
    gate = Gate()
    run = await behind(log, gate, strategy=strategy)
    await gate.entered.wait()
    claim = await log.claim(KEY, takeover=True)
    gate.open.set()
    await run.wait()
    assert isinstance(run.error, LeaseLost)
    assert await kinds(log) == ["run_started"]
    await log.release(claim)


async def test_a_run_without_a_log_waits_too():
    gate = Gate()
    begun = await begin(REQUEST, None, lambda: InlineExecutor(2), Control())
    assert begun.conductor is not None
    control = begun.conductor.control
    begun.conductor.gate = lambda: gate(control)
    run = LocalRun(begun, REQUEST, None)
    await gate.entered.wait()
    assert performed == []
    gate.open.set()
    await run.wait()
    assert run.status == "completed"


async def test_memory_and_files_record_the_same_beginning(tmp_path):
    for log in (open_log("memory://conductor-places"), open_log(tmp_path)):
        gate = Gate()
        run = await behind(log, gate)
        await gate.entered.wait()
        assert await kinds(log) == ["run_started"]
        run.request(Halt.CANCEL)
        await run.wait()
        await log.close()
