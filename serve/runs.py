"""The use cases of the HTTP service about runs: begin, look, list, stop, go on, follow. No HTTP, no Ray.

Runs are driven by the coordinators of a cluster. What is recorded is read where it lies, so that looking works while coordinators are
restarted; lists come from the records, which are caught up with the log first.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cluster.past import error_of
from cluster.submission import check_labels
from engine.checkpoint.codec import to_data
from engine.checkpoint.record import Recorded
from engine.checkpoint.table import error_text, jsonable
from engine.core.events import Event
from engine.core.ids import check_name, make_run_id, split_run_id
from engine.core.run import FINAL
from engine.core.state import opened, same
from engine.errors import ClusterUnavailable, DefinitionError, RunNotFound, SessionInUse, StoreUnavailable, WrongState
from engine.handle import RunHandle
from engine.ports import Log, RunKey, RunSummary
from engine.records import Page, Records, RunEntry, RunQuery
from engine.runtime.bulk import beside
from engine.store.index import catch_up
from serve.registry import Registry
from serve.report import StepReport, steps_of

FRESH, SHARE = 0.2, 10
"""Seconds for which the index of runs counts as caught up with the log, or so many times what that took: coordinators feed it too."""
ASKED = 1.0
"""Seconds that coordinators have to say whether a run waits."""
AGAIN = 0.5
"""Seconds between two looks at a run that stands still."""
ENDING = 5.0
"""Seconds that a coordinator has to let go of a run that has stopped."""
MOST_STEPS = 1000
"""So many steps of a run are told one by one: the newest."""
_LONGEST_ID = 1100

GOING = ("running", "pending")
ALLOWED = {
    "pause": GOING,
    "cancel": (*GOING, "paused", "failed", "timed_out"),
    "resume": ("paused", "failed", "timed_out"),
    "retry": ("failed", "timed_out"),
}
"""What may be asked of a run, by its status."""
DONE = {"pause": "paused", "cancel": "cancelled", "resume": "resumed", "retry": "retried"}


class Cluster(Protocol):
    """What drives runs: a `cluster.client.Cluster`, or what tests put in its place."""

    async def submit(
        self, flow: Any, input: Any = None, *, session_id: str | None = None, timeout: float | None = None, priority: int = 0,
        labels: Mapping[str, str] | None = None, owner: str = "", ticket: str | None = None,
    ) -> RunHandle: ...  # fmt: skip
    def handle(self, run_id: str) -> RunHandle: ...
    async def status(self, run_id: str) -> str: ...
    async def wait(self, run_id: str, timeout: float | None = None) -> str: ...
    async def pause(self, run_id: str) -> str: ...
    async def cancel(self, run_id: str) -> str: ...
    async def resume(self, run_id: str) -> str: ...
    async def retry(self, run_id: str) -> str: ...
    async def survey(self, patience: float = 2.0) -> dict[str, dict[str, Any] | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A run that somebody asks for."""

    workflow: str
    input: Any = None
    session: str | None = None
    key: str | None = None
    """Names the call: repeated with the same one it is the same run."""
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    timeout: float | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as lists and answers show it."""

    run_id: str
    workflow: str
    session: str
    status: str
    started_at: float
    ended_at: float | None = None
    error: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail(RunView):
    """A run with all that its log tells."""

    input: Any
    output: Any
    priority: int
    seq: int
    resumes: int
    steps: Sequence[StepReport]
    """The newest `MOST_STEPS`, oldest first."""
    steps_total: int


class Runs:
    """Runs of registered workflows in one storage."""

    def __init__(self, registry: Registry, cluster: Cluster, log: Log, records: Records) -> None:
        """Ask nobody anything yet."""
        self._registry = registry
        self._cluster = cluster
        self._log = log
        self._records = records
        self._fresh_until = 0.0
        self._catching_up = asyncio.Lock()

    # Begin.

    async def begin(self, start: Start) -> RunView:
        """Begin a run; returns once it is recorded, at once where the same call was made before.

        Raises: WorkflowNotFound, DefinitionError, SessionInUse, RunCancelled, QueueFull, ClusterUnavailable, StoreUnavailable.
        """
        flow = self._registry.get(start.workflow).flow
        for name, what in ((start.session, "a session_id"), (start.key, "an Idempotency-Key")):
            if name is not None and (wrong := check_name(name, what)):
                raise DefinitionError(wrong, where="session_id" if name is start.session else "Idempotency-Key")
        labels = check_labels(start.labels)
        session = start.session or start.key
        if start.key is not None and session is not None:
            known = await self._repeated(flow.name, session, start)
            if known is not None:
                return known
        handle = await self._cluster.submit(
            flow, start.input, session_id=session, timeout=start.timeout, priority=start.priority, labels=labels, owner=start.owner,
            ticket=start.key or uuid.uuid4().hex,
        )  # fmt: skip
        summary = await self._summary(handle.run_id)
        if summary.status in GOING:
            return _view_of(summary, "pending", labels)
        return await self.detail(handle.run_id)

    async def _repeated(self, workflow: str, session: str, start: Start) -> RunView | None:
        """Return the run that the same call began before: it is looked at and left as it is, also where it failed or was cancelled."""
        newest = max(await self._log.scan(workflow=workflow, session=session), key=lambda s: s.key.n, default=None)
        if newest is None:
            return None
        recorded = Recorded(await self._log.read(newest.key))
        if _submission(recorded).get("ticket") != start.key:
            return None
        if not same(to_data(start.input, where="the run's input"), opened(recorded.input)):
            text = f"Idempotency-Key {start.key!r:.200} began run {newest.run_id!r} with another context; "
            raise SessionInUse(f"{text}repeat the call as it was, or take another key")
        return await self.view(newest.run_id)

    async def wait(self, run_id: str, seconds: float) -> RunDetail | None:
        """Return a run when it has stopped, None after so many seconds.

        Raises: RunNotFound.
        """
        status = await self._cluster.wait(run_id, timeout=seconds)
        return None if status in GOING else await self.detail(run_id)

    # Look.

    async def view(self, run_id: str) -> RunView:
        """Return a run as it stands. Raises: RunNotFound."""
        return await self.detail(run_id)

    async def detail(self, run_id: str) -> RunDetail:
        """Return a run with all that its log tells.

        Raises: RunNotFound, CorruptCheckpoint, UnknownFormat, StoreUnavailable.
        """
        key = _key(run_id)
        try:
            rows = await self._log.read(key)
        except RunNotFound:
            await self.check_storage()
            raise
        found = await beside(lambda: _detail_of(key, Recorded(rows)))
        if found.status not in GOING:
            return found
        return await self._with_turn(found)

    async def _with_turn(self, run: RunDetail) -> RunDetail:
        """Say of a run whether it waits for its turn, which the coordinators alone know; where they are away, what the log says."""
        try:
            status = await asyncio.wait_for(self._cluster.status(run.run_id), ASKED)
        except (ClusterUnavailable, RunNotFound, TimeoutError):
            return run
        return run if status not in GOING else replace(run, status=status)

    async def _summary(self, run_id: str) -> RunSummary:
        key = _key(run_id)
        for found in await self._log.scan(workflow=key.workflow, session=key.session):
            if found.key == key:
                return found
        await self.check_storage()
        raise RunNotFound(f"run {run_id!r:.400} not found")

    async def find(self, query: RunQuery) -> Page[RunEntry]:
        """Return a page of runs with their true number. Raises: StoreUnavailable."""
        await self.refresh()
        return await self._records.list_runs(query)

    async def refresh(self) -> None:
        """Have the records know of what the log holds. Raises: StoreUnavailable."""
        loop = asyncio.get_running_loop()
        async with self._catching_up:
            begun = loop.time()
            if begun < self._fresh_until:
                return
            await self.check_storage()
            await catch_up(self._log, self._records)
            self._fresh_until = loop.time() + max(FRESH, SHARE * (loop.time() - begun))

    async def check_storage(self) -> None:
        """Refuse to say that runs are not there where their folder is not.

        Raises: StoreUnavailable.
        """
        url = self._log.url
        if url.startswith("file://") and not await asyncio.to_thread(os.path.isdir, url.removeprefix("file://")):
            raise StoreUnavailable(f"the storage {url} is not there: see to its disk, then try again")

    # Stop and go on.

    async def act(self, run_id: str, action: str) -> str:
        """Ask for one of `ALLOWED` of a run; returns its status after it.

        Raises: RunNotFound, WrongState, RunBusy, ClusterUnavailable, StoreUnavailable.
        """
        summary = await self._summary(run_id)
        if summary.status not in ALLOWED[action]:
            fitting = ", ".join(ALLOWED[action])
            raise WrongState(f"run {run_id!r} is {summary.status}; it can be {DONE[action]} while it is {fitting}")
        calls = {"pause": self._cluster.pause, "cancel": self._cluster.cancel, "resume": self._cluster.resume, "retry": self._cluster.retry}
        status = await calls[action](run_id)
        until = asyncio.get_running_loop().time() + ENDING
        while action in ("resume", "retry") and status in ALLOWED[action] and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(AGAIN / 10)  # it has said that it stopped, and its coordinator is just letting go of it
            if (await self._summary(run_id)).seq > summary.seq:
                return await self._cluster.status(run_id)  # it went on, and has stopped once more
            status = await calls[action](run_id)
        return status

    # Follow.

    async def check_after(self, run_id: str, after: int) -> bool:
        """Tell whether there is, or may yet be, an event behind a number.

        Raises: RunNotFound; DefinitionError for a number that no event has.
        """
        summary = await self._summary(run_id)
        if after > summary.seq:
            text = f"after must be the number of an event of run {run_id!r}, from 0 to {summary.seq}, not {after}"
            raise DefinitionError(text, where="after")
        return summary.status not in FINAL or summary.seq > after

    async def events(self, run_id: str, after: int, *, transient: bool = False) -> AsyncGenerator[Event]:
        """Yield the events of a run behind a number, each durable one once, until it has ended; a pause is no end.

        Raises: RunNotFound, ClusterUnavailable, StoreUnavailable.
        """
        while True:
            follow: Any = self._cluster.handle(run_id).events(after=after, transient=transient)
            async with aclosing(follow) as found:
                async for event in found:
                    if event.ordinal == 0:
                        after = event.seq
                    yield event
            summary = await self._summary(run_id)
            if summary.status in FINAL and summary.seq <= after:
                return
            await asyncio.sleep(AGAIN)


def _key(run_id: str) -> RunKey:
    parts = split_run_id(run_id) if len(run_id) <= _LONGEST_ID and len(run_id.rpartition(".")[2]) < 19 else None
    if parts is None or any(check_name(part, "") for part in parts[:2]):
        raise RunNotFound(f"run {run_id!r:.400} not found: an id is workflow.session.n")
    return RunKey(*parts)


def _submission(recorded: Recorded) -> Mapping[str, Any]:
    return (recorded.started or {}).get("submission") or {}


def _view_of(summary: RunSummary, status: str, labels: Mapping[str, str]) -> RunView:
    key = summary.key
    return RunView(
        run_id=summary.run_id, workflow=key.workflow, session=key.session, status=status, started_at=summary.started_at, labels=labels
    )


def _detail_of(key: RunKey, recorded: Recorded) -> RunDetail:
    run_id = make_run_id(*key)
    if not recorded:
        raise RunNotFound(f"run {run_id!r} not found: it is being begun just now")
    stopped = recorded.status not in GOING
    steps, _ = steps_of(recorded.rows, recorded.status)
    told = recorded.ended.get("error") if stopped else None
    error = None if told is None else error_text(told)
    if recorded.status == "timed_out":
        error = str(error_of(run_id, recorded))
    submission = _submission(recorded)
    return RunDetail(
        run_id=run_id, workflow=key.workflow, session=key.session, status=recorded.status, started_at=recorded.began_at,
        ended_at=recorded.ended_at if recorded.status in FINAL else None, error=error, labels=submission.get("labels") or {},
        input=jsonable(opened(recorded.input)), output=jsonable(opened(recorded.output)) if recorded.status == "completed" else None,
        priority=submission.get("priority") or 0, seq=recorded.seq, resumes=recorded.resumes, steps=steps[-MOST_STEPS:],
        steps_total=len(steps),
    )  # fmt: skip
