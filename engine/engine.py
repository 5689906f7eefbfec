"""The front door: opens storage by URL, starts and resumes runs, looks at them. The composition root of a process."""

import asyncio
import importlib
import importlib.util
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from engine.checkpoint.codec import encode
from engine.checkpoint.record import Recorded, event_of
from engine.core.events import Event, check_seq
from engine.core.ids import check_name, make_run_id, split_run_id
from engine.core.places import shown
from engine.core.policy import check_limit
from engine.core.registry import unknown
from engine.core.run import FINAL, Run, Status
from engine.errors import ConfigurationError, DefinitionError, RunBusy, RunNotFound, UnknownName, WrongState
from engine.handle import Remote, RunHandle
from engine.local import LocalRun, inside_step
from engine.ports import Log, Row, RunKey, RunSummary
from engine.runtime.bind import code_of
from engine.runtime.bulk import beside
from engine.runtime.control import Halt
from engine.runtime.replay import replay, state_of
from engine.runtime.session import Request, find_completed
from engine.runtime.step import publish
from engine.store import DEFAULT_PLACE, is_relative, open_log

if TYPE_CHECKING:
    from engine.workflow import Workflow

RUNNERS = {"inline": "engine.local:LocalRunner", "ray": "cluster.runner:RayRunner"}
"""Executors by name: the one place where a lower layer loads a higher one."""

STATUSES = tuple(status.value for status in Status)

logger = logging.getLogger(__name__)
_noted: set[str] = set()
_background: set[asyncio.Task[Any]] = set()


class Runner(Protocol):
    """Where runs are driven."""

    async def start(self, request: Request, log: Log | None) -> Remote:
        """Begin a run; returns when it is claimed and recorded."""
        ...

    async def halt(self, place: str, run_id: str, halt: Halt) -> bool:
        """Stop a run that is driven on behalf of this process, and wait until it has; False where there is none."""
        ...


class Engine:
    """Starts, resumes and looks at runs in one storage."""

    def __init__(self, storage: "str | Path | Log | Literal[False] | None" = None, executor: str | None = None) -> None:
        """Open a storage.

        Args:
            storage: A folder, `file://...`, `sqlite:///...`, `postgresql://...`, `memory://`, a `Log`, or False: nothing is recorded. None:
                where the workflow says; where it says nothing, `./.gecko` for runs with a session and for looking at runs. `memory://`
                is the memory of the process that drives a run: of one on Ray it is the coordinator's, and the run's handle alone shows
                what is in it.
            executor: `inline`, `ray`, or None: Ray where this process is connected to one and the storage is not its memory.
        """
        self._executor = known_executor(executor, "executor")
        self._records = storage is not False
        self.log: Log | None = _open(storage)
        """The storage; None where nothing is recorded, and as long as nobody said where and nothing was asked."""

    # Starting.

    async def start(
        self, flow: "Workflow", input: Any = None, *, session_id: str | None = None, start_node: str | None = None,
        timeout: float | None = None, executor: str | None = None, new: bool = False, output_type: Any = None, watch: bool = True,
    ) -> RunHandle:  # fmt: skip
        """Begin a run, or go on with the session's; returns once it is claimed. Arguments as in `Workflow.execute`.

        Args:
            watch: Whether the events of a run that is not recorded are kept for `RunHandle.events`.
        """
        return await self._begin(flow, input, session_id=session_id, start_node=start_node, timeout=timeout, executor=executor,
                                 output_type=output_type, new=new, watch=watch)  # fmt: skip

    async def _begin(
        self, flow: "Workflow", input: Any = None, *, session_id: str | None, start_node: str | None = None, timeout: float | None = None,
        executor: str | None = None, output_type: Any = None, **more: Any,
    ) -> RunHandle:  # fmt: skip
        """Begin a run; `more` are fields of its `Request`."""
        plan = flow.compiled()
        if session_id is not None and (wrong := check_name(session_id, "a session id")):
            raise DefinitionError(wrong, where="session_id")
        request = Request(
            workflow=flow.name, plan=plan, session=session_id or uuid.uuid4().hex, named=session_id is not None, input=input,
            start_node=start_node, timeout=check_limit(timeout, "timeout"), strategy=flow.checkpoint_strategy.value,
            on_commit_failure=flow.on_commit_failure, target=flow.find_target(), code=code_of(plan), **more,
        )  # fmt: skip
        log = self._log_of(flow, named=session_id is not None)
        name = _executor_name(executor or flow.executor or self._executor, log)
        completed = await find_completed(request, log)  # answered from its log: it is not claimed, and no cluster is started for it
        remote: Remote = LocalRun(completed, request, log) if completed else await _runner(name).start(request, log)
        publishing = None
        if flow.event_bus is not None:
            publishing = asyncio.get_running_loop().create_task(_publish(remote, flow.event_bus))
            _background.add(publishing)
            publishing.add_done_callback(_background.discard)
        return RunHandle(remote, output_type, publishing)

    async def resume(self, run: str, *, flow: "Workflow | None" = None, accept: bool = False, takeover: bool = False) -> RunHandle:
        """Go on with a recorded run, by its id or by its session.

        Args:
            flow: The workflow; found by its recorded import path where it is left out.

        Raises: RunNotFound, WrongState (its code has to be given), DefinitionError (rewired).
        """
        log = None if flow is None else self._log_of(flow, named=True)
        if flow is None:
            key = await self.find(run)
            flow = await self._load(key)
        elif log is None:
            raise RunNotFound(f"run {run!r} not found: nothing that workflow {flow.name!r} does is recorded")
        else:
            key = await _find(log, run, flow.name)
        return await self._begin(flow, session_id=key.session, n=key.n, accept=accept, takeover=takeover, resume=True)

    async def _load(self, key: RunKey) -> "Workflow":
        recorded = Recorded(await self._storage().read(key))
        target = (recorded.started or {}).get("target")
        if target is None:
            raise WrongState(f"run {make_run_id(*key)!r} has no import path recorded; resume it with its workflow: await flow.resume(...)")
        load = importlib.import_module("engine.definition.target").load_target
        return load(target)

    def _storage(self) -> Log:
        """The storage, the default place where nobody said another."""
        if not self._records:
            raise ConfigurationError("this engine records nothing, so there is nothing to look at: Engine('./.gecko')")
        if self.log is None:
            self.log = _open_place(DEFAULT_PLACE)
            _note_default_place(self.log)
        if self._executor == "ray" and _is_memory(self.log):
            text = "runs on Ray that are recorded in memory are in that of their coordinator, which nobody can look into from here: "
            raise ConfigurationError(text + "look at a run by its handle, or name a folder as the storage", where=shown(self.log.url))
        return self.log

    def _log_of(self, flow: "Workflow", *, named: bool) -> Log | None:
        """Where a run of a workflow is recorded."""
        if self.log is not None or not self._records:
            return self.log
        if flow.storage is not None:
            return _open(flow.storage)
        return self._storage() if named else None

    # Stopping.

    async def pause(self, run: str) -> None:
        """Pause a run that this process drives, or nobody. Idempotent; WrongState for one that has ended, RunBusy for another process's."""
        await self._halt(run, Halt.PAUSE, "run_paused", "paused")

    async def cancel(self, run: str) -> None:
        """Cancel a run that this process drives, or nobody. Idempotent; WrongState for one that has completed, RunBusy for another's."""
        await self._halt(run, Halt.CANCEL, "run_cancelled", "cancelled")

    async def _halt(self, run: str, halt: Halt, kind: str, status: str) -> None:
        key = await self.find(run)
        run_id, log = make_run_id(*key), self._storage()
        for name, place in RUNNERS.items():
            if (name == "inline" or place.partition(":")[0] in sys.modules) and await _runner(name).halt(log.url, run_id, halt):
                return
        try:
            claim = await log.claim(key)
        except RunBusy as busy:
            if busy.pid is None:
                raise
            text = f"run {run_id!r} cannot be {status} from here, since process {busy.pid} on {busy.host} drives it; "
            raise RunBusy(text + "stop it there, by its handle or with SIGINT where `gecko` runs it", **vars(busy)) from busy
        try:
            recorded = Recorded(claim.rows)
            if recorded.status == status:
                return
            ended = recorded.status in FINAL and (recorded.status in (Status.COMPLETED, Status.CANCELLED) or halt is Halt.PAUSE)
            if ended:
                raise WrongState(f"run {run_id!r} is {recorded.status}; it cannot be {status}")
            seq = recorded.seq + 1
            data = encode({"finished": recorded.succeeded, "reason": "asked while nobody drove it"})
            await log.append(claim, [Row(seq, time.time(), kind, info=data)])
        finally:
            await log.release(claim)

    # Looking.

    async def find(self, run: str) -> RunKey:
        """Return the key of a run by its id, a unique beginning of it, or its session (the newest run).

        Raises: RunNotFound, also where a beginning fits several.
        """
        return await _find(self._storage(), run)

    async def runs(self, status: str | None = None, workflow: str | None = None) -> list[RunSummary]:
        """Return the runs, newest first.

        Raises: UnknownName for a status that is none.
        """
        if status is not None and status not in STATUSES:
            raise UnknownName(unknown("status", status, STATUSES), where="status")
        found = await self._storage().scan(workflow=workflow)
        return [s for s in found if status is None or s.status == status]

    def events(self, run: str, after: int = 0, *, follow: bool = False) -> AsyncIterator[Event]:
        """Return an async iterator over the committed events of a run after a number; with `follow` also those to come.

        It ends, with `follow`, when nobody drives the run.

        Raises: DefinitionError for an `after` that is no number from 0.
        """
        return self._events(run, check_seq(after, "after"), follow=follow)

    async def _events(self, run: str, after: int, *, follow: bool) -> AsyncIterator[Event]:
        key = await self.find(run)
        run_id, log = make_run_id(*key), self._storage()
        if not follow:
            for row in await log.read(key, after=after):
                yield event_of(run_id, row)
            return
        async for rows in log.follow(key, after=after):
            for row in rows:
                yield event_of(run_id, row)

    async def state(self, run: str, at: int | None = None) -> dict[Any, Any]:
        """Return the state of a run after a committed event (default: the newest), from its log alone.

        Raises: DefinitionError for what is no event of the run.
        """
        found, _ = await self.look(run, at=at)
        return await beside(lambda: state_of(found))

    async def look(self, run: str, *, at: int | None = None) -> tuple[Run, Recorded]:
        """Return a run as it stood after a committed event, brought back from its log without its code, and what the log holds.

        Raises: DefinitionError for what is no event of the run.
        """
        key = await self.find(run)
        rows = await self._storage().read(key)
        newest = rows[-1].seq if rows else 0
        if at is not None:
            check_seq(at, "at", of=f" of run {make_run_id(*key)!r}", newest=newest)
        return await beside(lambda: replay(rows, run_id=make_run_id(*key), at=at))

    def table(self) -> Any:
        """Return all committed events of all runs as one `pyarrow.Table`; a plain call, also inside a running event loop.

        A run whose log is damaged is left out, with a warning in the log of the program.
        The columns are in `engine.checkpoint.table.schema`.
        """
        from engine.checkpoint.table import table_of  # it leads to pyarrow, which only a table needs

        return table_of(self._storage())

    async def delete(self, run: str) -> None:
        """Remove a run by name."""
        await self._storage().delete(await self.find(run))

    async def prune(self, older_than: float = 30 * 86400.0) -> int:
        """Remove runs that ended more than so many seconds ago; never an unfinished one. Returns how many.

        Raises: DefinitionError for what is no number of seconds.
        """
        seconds = check_limit(older_than, "older_than")
        if seconds is None:
            raise DefinitionError("older_than must be a number of seconds, 0 or more, not None", where="older_than")
        return await self._storage().prune(older_than=seconds)


async def _find(log: Log, run: str, workflow: str | None = None) -> RunKey:
    key = split_run_id(run)
    if key is not None and workflow in (None, key[0]):  # a whole id is looked for where it is: there may be very many runs
        for found in await log.scan(workflow=key[0], session=key[1]):
            if found.key == key:
                return found.key
    known = await log.scan(workflow=workflow)
    ids: dict[str, RunKey] = {make_run_id(*s.key): s.key for s in known}
    if run in ids:
        return ids[run]
    by_session = [s.key for s in known if s.key.session == run]
    if by_session and len({k.workflow for k in by_session}) == 1:
        return max(by_session, key=lambda k: k.n)
    fitting = [key for run_id, key in ids.items() if run_id.startswith(run)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting or by_session:
        some = ", ".join(repr(make_run_id(*k)) for k in (by_session or fitting)[:5])
        raise RunNotFound(f"run {run!r} not found: it could be any of {some}; say which")
    place = f"{log.url}, this process's own memory, where no run on Ray is" if _is_memory(log) else shown(log.url)
    if not ids and workflow is not None:
        text = f"run {run!r} not found: no run of workflow {workflow!r} is recorded in {place}; "
        raise RunNotFound(text + "a run is recorded where it has a session_id, or its workflow a storage")
    raise RunNotFound(f"{unknown('run', run, ids)} (in {place})")


async def _publish(remote: Remote, bus: Any) -> None:
    """Hand every event to a bus, in order."""
    async for event in remote.events(after=0, transient=True):
        await publish(bus, event)


def _open(storage: "str | Path | Log | Literal[False] | None") -> Log | None:
    if storage is None or storage is False:
        return None
    if isinstance(storage, (str, Path)):
        return _open_place(storage)
    if not hasattr(storage, "claim"):
        raise ConfigurationError(f"storage is a folder, a URL, a Log or False, not {storage!r:.80}", where="storage")
    return storage


def _open_place(place: str | Path) -> Log:
    """Open a place, unless it is a folder of a Ray job's.

    Raises: ConfigurationError.
    """
    if is_relative(place) and _cluster_says("in_job"):
        raise ConfigurationError(
            f"storage {str(place)!r} lies in the folder of this Ray job, which is Ray's cache and goes away; "
            "pass storage=... with a path that begins with /",
            where=str(place),
        )
    return open_log(str(place))


def _is_memory(log: Log) -> bool:
    return log.url.startswith("memory:")


def _note_default_place(log: Log) -> None:
    """Say once where runs are recorded when nobody said where."""
    if log.url not in _noted:
        _noted.add(log.url)
        logger.info("Runs are recorded in %s", shown(log.url))


def _cluster_says(question: str) -> bool:
    """Ask what is known of a cluster around this process, without importing Ray."""
    return importlib.util.find_spec("cluster") is not None and getattr(importlib.import_module("cluster.connect"), question)()


def known_executor(name: str | None, what: str) -> str | None:
    """Return the name of an executor, or None for the one that fits. Raises: ConfigurationError for an unknown one."""
    if name is not None and name not in tuple(RUNNERS):  # whatever it is, hashable or not
        raise ConfigurationError(unknown(what, name, RUNNERS), where=what)
    return name


def _executor_name(name: str | None, log: Log | None) -> str:
    if name is None:
        shared = log is None or not _is_memory(log)
        return "ray" if shared and not inside_step.get() and _cluster_says("connected") else "inline"
    if name not in RUNNERS:
        raise ConfigurationError(unknown("executor", name, RUNNERS))
    return name


def _runner(name: str) -> Runner:
    module, _, attribute = RUNNERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
