"""A cluster in the test's own event loop, with the methods of `cluster.client.Cluster`; `cluster_cases` holds both to the same promises."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from cluster.queue import Admission, Limits
from cluster.submission import Submission, check_labels, check_priority
from engine.core.events import Event
from engine.core.ids import make_run_id, split_run_id
from engine.core.state import same
from engine.engine import Engine
from engine.errors import NeedsCode, RunNotFound, SessionInUse, WrongState
from engine.handle import RunHandle
from engine.local import LocalRun, driven
from engine.ports import RunKey, RunSummary
from engine.runtime.control import Control, Halt

STOPPED = ("completed", "failed", "cancelled", "timed_out", "paused")
ROUND = 0.05


class InlineCluster:
    """Drives submitted runs here, in turn where there are limits."""

    def __init__(self, storage: str, limits: Limits | None = None) -> None:
        self.engine = Engine(storage, executor="inline")
        self.away: BaseException | None = None
        """What every call raises, to see what becomes of a cluster that is gone."""
        self.submitted = 0
        self._admission = Admission(limits or Limits())
        self._flows: dict[str, Any] = {}
        self._turns: dict[str, asyncio.Future[None]] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def submit(
        self, flow: Any, input: Any = None, *, session_id: str | None = None, start_node: str | None = None, timeout: float | None = None,
        new: bool = False, priority: int = 0, labels: Any = None, owner: str = "", ticket: str | None = None,
    ) -> RunHandle:  # fmt: skip
        self._check()
        self._flows[flow.name] = flow
        ticket = ticket or uuid.uuid4().hex
        submission = Submission(
            ticket=ticket, parcel="", priority=check_priority(priority), labels=check_labels(labels), owner=owner, limit=timeout
        )
        session = session_id or ticket
        async with self._locks.setdefault((flow.name, session), asyncio.Lock()):
            live = None if new else self._newest(flow.name, session)
            if live is not None:
                if input is not None and not same(input, live.run().input):
                    raise SessionInUse(f"session {session!r} belongs to run {live.run_id!r} with another input")
                return RunHandle(live)
            self._admission.check(time.monotonic())
            handle = await self.engine._begin(
                flow, input, session_id=session, start_node=start_node, timeout=timeout, new=new, submission=submission.data()
            )
            await self._let_in(handle, flow.name, priority)
            self.submitted += 1
            return handle

    async def _let_in(self, handle: RunHandle, workflow: str, priority: int) -> None:
        run: Any = handle._remote
        if run._conductor is None:  # it had completed
            return
        entered = asyncio.get_running_loop().create_future()
        turn = self._turns[run.run_id] = asyncio.get_running_loop().create_future()
        control: Control = run._conductor.control

        async def wait_turn() -> None:
            entered.set_result(None)
            self._admission.enter(run.run_id, workflow, priority)
            self._admit()
            while not turn.done() and control.halt is Halt.NONE:
                await asyncio.wait({turn, waiter := control.waiter()}, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()

        def ended(_: Any) -> None:
            self._admission.leave(run.run_id, time.monotonic())
            self._admit()

        run._conductor.gate = wait_turn
        run.task.add_done_callback(ended)
        await asyncio.wait({run.task, entered}, return_when=asyncio.FIRST_COMPLETED)
        if run.task.done() and run.error is not None and not entered.done():
            raise run.error

    def _admit(self) -> None:
        for run_id in self._admission.admit():
            if not self._turns[run_id].done():
                self._turns[run_id].set_result(None)

    def handle(self, run_id: str) -> RunHandle:
        live = self._live(run_id)
        return RunHandle(live if live is not None else _Recorded(self, run_id))

    async def status(self, run_id: str) -> str:
        self._check()
        live = self._live(run_id)
        if live is None:
            return (await self._summary(run_id)).status
        return "pending" if self._admission.waits(run_id) else live.status

    async def wait(self, run_id: str, timeout: float | None = None) -> str:
        self._check()
        live = self._live(run_id)
        if live is not None and live.task is not None:
            await asyncio.wait({live.task}, timeout=timeout)
        return await self.status(run_id)

    async def pause(self, run_id: str) -> str:
        return await self._stop(run_id, Halt.PAUSE)

    async def cancel(self, run_id: str) -> str:
        return await self._stop(run_id, Halt.CANCEL)

    async def _stop(self, run_id: str, halt: Halt) -> str:
        self._check()
        await self._summary(run_id)
        live = self._live(run_id)
        if live is None or live.task is None:
            await (self.engine.pause(run_id) if halt is Halt.PAUSE else self.engine.cancel(run_id))
        else:
            live.request(halt)
            await asyncio.wait({live.task}, timeout=ROUND)
        return await self.status(run_id)

    async def resume(self, run_id: str) -> str:
        return await self._go_on(run_id, retry=False)

    async def retry(self, run_id: str) -> str:
        return await self._go_on(run_id, retry=True)

    async def _go_on(self, run_id: str, *, retry: bool) -> str:
        self._check()
        if self._live(run_id) is None:
            status = (await self._summary(run_id)).status
            if status in ("completed", "cancelled") or (retry and status not in ("failed", "timed_out", "running")):
                raise WrongState(f"run {run_id!r} is {status}; it cannot be {'retried' if retry else 'resumed'}")
            key = _key(run_id)
            if key.workflow not in self._flows:
                raise NeedsCode(f"nobody holds the code of run {run_id!r}")
            handle = await self.engine._begin(self._flows[key.workflow], session_id=key.session, n=key.n, resume=True)
            await self._let_in(handle, key.workflow, 0)
        return await self.status(run_id)

    async def survey(self, patience: float = 2.0) -> dict[str, dict[str, Any] | None]:
        self._check()
        return {"inline": {**asdict(self._admission.statistics()), "recovered": 0}}

    async def _summary(self, run_id: str) -> RunSummary:
        key = _key(run_id)
        assert self.engine.log is not None
        for found in await self.engine.log.scan(workflow=key.workflow, session=key.session):
            if found.key == key:
                return found
        raise RunNotFound(f"run {run_id!r} not found")

    def _live(self, run_id: str) -> LocalRun | None:
        assert self.engine.log is not None
        return driven.get((self.engine.log.url, run_id))

    def _newest(self, workflow: str, session: str) -> LocalRun | None:
        """Return the newest run of a session, where it is under way."""
        found = [run for (_, _), run in driven.items() if run.key[:2] == (workflow, session) and self._live(run.run_id) is run]
        return max(found, key=lambda run: run.key.n, default=None)

    def _check(self) -> None:
        if self.away is not None:
            raise self.away


class _Recorded:
    """A run that nobody drives, as its handle sees it: its events, and how it ended."""

    lasting = True

    def __init__(self, cluster: InlineCluster, run_id: str) -> None:
        self.run_id = run_id
        self.key = _key(run_id)
        self._cluster = cluster

    async def events(self, *, after: int, transient: bool) -> AsyncIterator[Event]:
        self._cluster._check()
        async for event in self._cluster.engine.events(self.run_id, after):
            yield event

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"a run that nobody drives has no {name} here")


def _key(run_id: str) -> RunKey:
    parts = split_run_id(run_id)
    if parts is None or make_run_id(*parts) != run_id:
        raise RunNotFound(f"run {run_id!r} not found: an id is workflow.session.n")
    return RunKey(*parts)
