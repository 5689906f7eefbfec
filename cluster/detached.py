"""Coordinators that outlive who started them: they drive submitted runs, go on with those of dead owners, let in what there is room for.

Everything that they know is on storage or can be found again: a run's submission in its log, its code with the keeper or by its import
path, what waits in the logs of the runs that wait. Ray restarts them; a start is a scan. Which of them drives a run is decided by the
run's claim alone, so any of them may be asked anything.
"""

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Coroutine
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Protocol

from cluster.answering import answered
from cluster.code import Parcel
from cluster.coordinator import ROUND, Coordinator, opened_request, told_end
from cluster.executor import RayExecutor
from cluster.metrics import with_metrics
from cluster.past import Tickets, events_of, outcome_of, submission_of, view_of
from cluster.queue import Admission, Limits, Room
from cluster.submission import Submission
from cluster.upkeep import Upkeep
from engine.checkpoint.batch import FINAL, RELEASING
from engine.checkpoint.codec import encode
from engine.checkpoint.record import Recorded
from engine.core.ids import make_run_id, split_run_id
from engine.engine import Engine
from engine.errors import (
    CheckpointError,
    DefinitionError,
    GeckoError,
    LeaseLost,
    NeedsCode,
    RunBusy,
    RunNotFound,
    Unavailable,
    WrongState,
)
from engine.local import LocalRun
from engine.observe.metrics import Metrics
from engine.ports import Row, RunKey, RunSummary
from engine.runtime.control import Control, Halt
from engine.runtime.session import Begun, Request, begin, check_input, find_run
from engine.store import open_log, open_records
from engine.store.index import RunIndex, catch_up

logger = logging.getLogger(__name__)

LEASE = 6.0
"""Seconds without a sign of life after which an owner's runs are taken over."""
LOOK = 1.0
"""Seconds between two looks for runs that nobody drives."""
SHARE = 20
"""A look is followed by a rest of so many times what it took."""
AT_ONCE = 32
"""So many runs are brought back at the same time."""

ELSEWHERE = 0.1
"""Seconds between two looks at a run that another coordinator drives."""

ACTIONS = {"pause": Halt.PAUSE, "cancel": Halt.CANCEL}


class Cluster(Protocol):
    """What a coordinator asks of the cluster besides its pool."""

    async def keep(self, token: str, data: bytes) -> None: ...
    async def kept(self, token: str) -> bytes | None: ...
    async def load(self, target: str, cwd: str, paths: tuple[str, ...]) -> tuple[bytes | None, Any]: ...
    async def want(self, who: str, cpus: int, bundles: list[dict[str, float]]) -> None: ...


class Detached(Coordinator):
    """One of the coordinators of a cluster."""

    def __init__(self, name: str, place: str, environment: dict[str, Any], limits: dict[str, Any], parts: int, fleet: Cluster) -> None:
        """Drive nothing yet; `attend` begins it.

        Args:
            name: By which others find it.
            place: Storage URL, which all runs of this coordinator are recorded in.
            environment: Ray's runtime environment that it and its workers live in; it goes on with runs of the same one alone.
            limits: Fields of `Limits`, for the whole cluster.
            parts: How many coordinators share them.
        """
        super().__init__()
        self._place = place
        self._environments = [environment]
        self._log = open_log(place)
        self._log.keep_lease(LEASE)
        self._engine = Engine(self._log)
        self._records = open_records(place)
        self._index = RunIndex(self._records, self._log, coordinator=name)
        self._metrics = Metrics(distributed=True)
        self._fleet = fleet
        self._admission = Admission(Limits(**limits).share(parts))
        self._room = None if self._admission.limits.steps is None else Room(self._admission.limits.steps)
        self._turns: dict[str, Turn] = {}
        self._sessions: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()
        self._foreign: dict[str, int] = {}
        """Runs that scripts come back to, or others, to the number of the event that this was found at."""
        self._tickets = Tickets(self._log)
        self._upkeep = Upkeep(name, self._remote, self._pool, fleet)
        self._attending: asyncio.Task[None] | None = None
        self._recovered = 0
        self._beside: set[asyncio.Task[Any]] = set()

    async def attend(self) -> None:
        """Begin to look after runs; called once it lives, and again without harm."""
        if self._attending is None or self._attending.done():
            self._attending = asyncio.get_running_loop().create_task(self._attend())

    async def _attend(self) -> None:
        self._start(self._remote.warm_up())
        self._start(self._index.drive())
        self._start(self._catch_up())
        self._start(self._upkeep.drive())
        while True:
            begun = time.monotonic()
            try:
                await self._recover()
            except Exception:  # whatever it was, the next look may do better, and nobody else looks
                logger.exception("The storage could not be looked through for runs to go on with")
            await asyncio.sleep(max(LOOK, SHARE * (time.monotonic() - begun)))

    async def _catch_up(self) -> None:
        """Put into the index what others recorded, or what the last coordinator had no time for."""
        try:
            await catch_up(self._log, self._records)
        except (Unavailable, CheckpointError) as error:
            logger.warning("The index of runs could not be caught up with", extra={"error": str(error)})

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def adopt(self, environments: list[dict[str, Any]]) -> None:
        """Go on with runs of environments that nobody can make again, too: they are paused, which says what they need."""
        self._environments += [e for e in environments if e not in self._environments]
        self._foreign.clear()

    async def recover_stale(self) -> tuple[str, Any]:
        """Take over runs whose owner is gone; returns how many."""
        return await answered(Detached._recover)(self)

    async def _recover(self) -> int:
        found = sorted((s for s in await self._log.scan() if self._is_stale(s)), key=lambda s: s.started_at)
        gate = asyncio.Semaphore(AT_ONCE)

        async def go_on(summary: RunSummary) -> bool:
            async with gate:
                return await self._go_on_with(summary)

        taken = sum(await asyncio.gather(*map(go_on, found)))
        self._recovered += taken
        return taken

    def _is_stale(self, run: RunSummary) -> bool:
        if run.status in RELEASING or run.owner is not None or self._live(run.key) is not None:
            return False
        return self._foreign.get(run.run_id) != run.seq

    async def _go_on_with(self, run: RunSummary) -> bool:
        """Drive a run that nobody drives, where it was submitted; a run without its code is paused, which says so."""
        async with self._session(run.key):
            if self._live(run.key) is not None:
                return False
            try:
                recorded = Recorded(await self._log.read(run.key))
                submission = submission_of(recorded)
                if submission is None or submission.environment not in self._environments:
                    self._foreign[run.run_id] = run.seq
                    return False
                resumed = await self._resume(run.key, recorded, submission)
                if recorded.asked in ACTIONS:
                    resumed.request(ACTIONS[recorded.asked])
            except RunBusy:  # another coordinator was first
                return False
            except (NeedsCode, DefinitionError) as error:
                await self._park(run.key, error)
                return False
            except (GeckoError, OSError) as error:
                logger.warning("A run could not be gone on with", extra={"run_id": run.run_id, "error": str(error)})
                if not isinstance(error, (Unavailable, LeaseLost)):  # which pass
                    self._foreign[run.run_id] = run.seq
                return False
            return True

    async def _resume(self, key: RunKey, recorded: Recorded, submission: Submission, *, accept: bool = False) -> LocalRun:
        held, codes, code = await self._code(recorded, submission)
        limit = submission.limit
        if limit is not None:
            limit = max(0.0, limit - (time.time() - recorded.began_at))
        request = Request(
            workflow=key.workflow, plan=held.plan, session=key.session, n=key.n, resume=True, accept=accept, timeout=limit, patience=0.0,
            strategy=submission.strategy, on_commit_failure=submission.on_commit_failure, code=code,
            target=(recorded.started or {}).get("target"),
        )  # fmt: skip
        begun = await begin(request, self._log, lambda: RayExecutor(self._pool, held, codes, self._room), Control())
        return self._take(begun, request, submission)

    async def _code(self, recorded: Recorded, submission: Submission) -> tuple[Parcel, Any, str]:
        """Return a run's plan, what refers to its code, and the code's hash.

        Raises: NeedsCode where neither the cluster holds it nor its import path leads to it.
        """
        if submission.parcel in self._parcels:
            return (*await self._hold(submission.parcel, None), recorded.code)
        kept = await self._fleet.kept(submission.parcel)
        if kept is not None:
            return (*await self._hold(submission.parcel, kept), recorded.code)
        target = (recorded.started or {}).get("target")
        if target is None:
            raise NeedsCode("its workflow has no import path, and the cluster that held its code is gone; resume it with its workflow")
        data, told = await self._fleet.load(target, submission.cwd, submission.paths)
        if data is None:
            raise NeedsCode(f"its workflow {target!r} is not found any more: {told}")
        await self._fleet.keep(submission.parcel, data)
        return (*await self._hold(submission.parcel, data), told)

    async def _park(self, key: RunKey, error: GeckoError) -> None:
        """Pause a run that cannot go on by itself, with the reason."""
        run_id = make_run_id(*key)
        logger.warning("A run is paused, since it cannot go on by itself", extra={"run_id": run_id, "error": str(error)})
        try:
            claim = await self._log.claim(key)
            try:
                recorded = Recorded(claim.rows)
                told = {"type": type(error).__name__, "message": str(error)}
                data = {"finished": recorded.succeeded, "reason": f"{told['type']}: {told['message']}", "error": told}
                await self._log.append(claim, [Row(recorded.seq + 1, time.time(), "run_paused", info=encode(data))])
            finally:
                await self._log.release(claim)
        except (RunBusy, LeaseLost, Unavailable) as other:
            logger.info("Another owner has the run", extra={"run_id": run_id, "error": str(other)})

    async def submit(self, token: str, request: bytes, parcel: bytes | None, submission: dict[str, Any]) -> tuple[str, Any]:
        """Begin a run; returns once its beginning is on storage.

        Args:
            token: Names the plan; with an unknown one, and no parcel, the answer is ("parcel", None).
            request: A pickled `Request` without its plan.
            submission: Data of a `Submission`.

        Returns:
            ("ok", (run id, status)), ("parcel", None) or ("error", pickled error).
        """
        if token not in self._parcels and parcel is None:
            parcel = await self._fleet.kept(token)
            if parcel is None:
                return "parcel", None
        elif parcel is not None:
            await self._fleet.keep(token, parcel)
        return await answered(Detached._submit)(self, token, request, parcel, Submission.from_data(submission))

    async def _submit(self, token: str, request: bytes, parcel: bytes | None, submission: Submission) -> tuple[str, str]:
        held, codes = await self._hold(token, parcel)
        asked = await opened_request(request, held.plan)
        async with self._session(RunKey(asked.workflow, asked.session, 0)):
            if (key := await self._tickets.find(asked.workflow, asked.session, submission.ticket)) is not None:
                asked = replace(asked, new=False, n=key.n)
            if not asked.new and self._live(key := await find_run(self._log, asked)) is not None:
                return await self._driven(asked, key)
            self._admission.check(time.monotonic())
            asked = replace(asked, submission=submission.data(), patience=0.0)
            try:
                begun = await begin(asked, self._log, lambda: RayExecutor(self._pool, held, codes, self._room), Control())
            except RunBusy:  # another coordinator drives it
                return await self._driven(asked, await find_run(self._log, asked))
            run = self._take(begun, asked, submission)
            await self._recorded(run)
            return run.run_id, self._status(run)

    async def _driven(self, asked: Request, key: RunKey) -> tuple[str, str]:
        """Return the id and status of a run that is driven already. Raises: SessionInUse for another input; RunBusy while it begins."""
        recorded = Recorded(await self._log.read(key))
        run_id = make_run_id(*key)
        if not recorded:
            raise RunBusy(f"run {run_id!r} is about to begin; try again")
        await check_input(asked, key, recorded)
        return run_id, await self._status_of(run_id)

    def _take(self, begun: Begun, request: Request, submission: Submission) -> LocalRun:
        """Drive a run that was claimed, when it is its turn."""
        run_id = begun.run_id
        if begun.conductor is not None:
            self._turns[run_id] = Turn()
            begun.conductor.driver.ledger.listeners.extend((self._index.listen(begun.key), self._metrics.take))
            begun.conductor.gate = partial(self._wait_turn, run_id, begun.key.workflow, submission.priority, begun.conductor.control)
        run = LocalRun(begun, request, self._log)
        self._keep(run_id, run)
        if run.task is not None:
            run.task.add_done_callback(lambda _: self._ended(run_id))
        return run

    async def _wait_turn(self, run_id: str, workflow: str, priority: int, control: Control) -> None:
        """Let a run wait until there is room for it, or it is asked to stop."""
        turn = self._turns[run_id]
        turn.entered.set_result(None)
        self._admission.enter(run_id, workflow, priority)
        self._let_in()
        while not turn.admitted.done() and control.halt is Halt.NONE:
            await asyncio.wait({turn.admitted, waiter := control.waiter()}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()

    def _let_in(self) -> None:
        for run_id in self._admission.admit():
            if run_id in self._turns:
                self._turns[run_id].admitted.set_result(None)

    def _ended(self, run_id: str) -> None:
        self._turns.pop(run_id, None)
        self._admission.leave(run_id, time.monotonic())
        self._let_in()

    async def _recorded(self, run: LocalRun) -> None:
        """Wait until a run's beginning is on storage. Raises: what storage raised."""
        if run.task is None or run.run_id not in self._turns:
            return
        await asyncio.wait({run.task, self._turns[run.run_id].entered}, return_when=asyncio.FIRST_COMPLETED)
        if run.task.done() and isinstance(run.error, (LeaseLost, Unavailable)):
            raise run.error

    def _session(self, key: RunKey) -> asyncio.Lock:
        """Return what keeps two calls from beginning runs of one session at once."""
        name = key.workflow, key.session
        lock = self._sessions.get(name)
        if lock is None:
            lock = self._sessions[name] = asyncio.Lock()
        return lock

    def _live(self, key: RunKey) -> LocalRun | None:
        """Return a run that is driven here."""
        run = self._runs.get(make_run_id(*key))
        return run if run is not None and run.task is not None and not run.task.done() else None

    def _status(self, run: LocalRun) -> str:
        turn = self._turns.get(run.run_id)
        return "pending" if turn is not None and not turn.admitted.done() else run.status

    # What is asked of a run, by its id.

    async def status(self, run_id: str) -> tuple[str, Any]:
        """Answer with a run's status."""
        return await answered(Detached._status_of)(self, run_id)

    async def _status_of(self, run_id: str) -> str:
        run = self._live(_key(run_id))
        return self._status(run) if run is not None else (await self._summary(run_id)).status

    async def _summary(self, run_id: str) -> RunSummary:
        key = _key(run_id)
        for found in await self._log.scan(workflow=key.workflow, session=key.session):
            if found.key == key:
                return found
        raise RunNotFound(f"run {run_id!r} not found in {self._place}")

    async def settled(self, run_id: str, patience: float) -> tuple[str, Any]:
        """Answer with a run's status when it has stopped, or after so many seconds: whoever waits asks again."""
        return await answered(Detached._settled)(self, run_id, patience)

    async def _settled(self, run_id: str, patience: float) -> str:
        until = time.monotonic() + patience
        while True:
            run = self._live(_key(run_id))
            left = until - time.monotonic()
            if run is not None and run.task is not None:
                await asyncio.wait({run.task}, timeout=max(0.0, left))
                if not run.task.done():
                    return self._status(run)
            status = (await self._summary(run_id)).status
            if status in RELEASING or left <= 0:
                return status
            await asyncio.sleep(min(left, ELSEWHERE))  # another coordinator drives it, or will

    async def outcome(self, run_id: str) -> tuple[str, Any]:
        """Answer with (status, pickled error, output's bytes, pickled results of a team alone) of a run that has stopped."""
        return await answered(Detached._outcome)(self, run_id)

    async def _outcome(self, run_id: str) -> tuple[str, bytes | None, bytes | None, bytes | None]:
        run = self._runs.get(run_id)
        ended = run is not None and run.task is not None and run.task.done() and not isinstance(run.error, (LeaseLost, Unavailable))
        if run is not None and ended and (await self._summary(run_id)).seq == run.seq:  # it did not go on elsewhere
            return await told_end(run)
        return await outcome_of(self._engine, run_id)

    async def view(self, run_id: str) -> tuple[str, Any]:
        """Answer with (status, last, state, history, rows) of a run as it stands, encoded."""
        return await answered(Detached._view)(self, run_id)

    async def _view(self, run_id: str) -> bytes:
        if self._live(_key(run_id)) is not None:
            return await self.look(run_id)
        return await view_of(self._engine, run_id)

    async def follow(self, run_id: str, reader: str, after: int, transient: bool) -> tuple[str, Any]:
        """Answer as `events` does, also for a run that another coordinator drives, of which only durable events are seen here."""
        return await answered(Detached._follow)(self, run_id, reader, after, transient)

    async def _follow(self, run_id: str, reader: str, after: int, transient: bool) -> list[tuple[Any, ...]] | None:
        if reader in self._readers or self._live(_key(run_id)) is not None:
            known = await self.events(run_id, reader, after, transient)
            if known is not None:
                return known  # behind its last event here it may go on elsewhere
        until = time.monotonic() + ROUND
        while True:
            status = (await self._summary(run_id)).status
            found = await events_of(self._engine, run_id, after)
            if found or time.monotonic() > until:
                return found
            if status in RELEASING:
                return None
            await asyncio.sleep(ELSEWHERE)

    async def ask_to(self, run_id: str, action: str) -> tuple[str, Any]:
        """Pause or cancel a run, durably; answers with its status soon, which is not the one asked for while steps are still ending.

        Idempotent. The error is WrongState for a run that has ended otherwise, RunBusy for one that another coordinator drives.
        """
        return await answered(Detached._ask_to)(self, run_id, action)

    async def _ask_to(self, run_id: str, action: str) -> str:
        key = _key(run_id)
        await self._summary(run_id)
        run = self._live(key)
        if run is None:
            await (self._engine.pause(run_id) if action == "pause" else self._engine.cancel(run_id))
            return await self._status_of(run_id)
        await run.tell("signal_received", {"name": action})
        run.request(ACTIONS[action])
        assert run.task is not None
        await asyncio.wait({run.task}, timeout=ROUND)
        return self._status(run)

    async def go_on(self, run_id: str, retry: bool, accept: bool) -> tuple[str, Any]:
        """Go on with a run that is paused, or with one that failed or timed out, from what failed; answers with its status.

        Args:
            retry: Only with one that failed or timed out.
            accept: Also where recorded nodes are gone or rewired.

        Idempotent: a run that is driven already stays as it is. The error is WrongState for one that completed or was cancelled.
        """
        return await answered(Detached._go_on)(self, run_id, retry, accept)

    async def _go_on(self, run_id: str, retry: bool, accept: bool) -> str:
        key = _key(run_id)
        async with self._session(key):
            run = self._live(key)
            if run is not None and run.stopping:
                assert run.task is not None
                await asyncio.wait({run.task}, timeout=ROUND)
                if (run := self._live(key)) is not None:
                    raise RunBusy(f"run {run_id!r} is about to stop; ask again when it has")
            if run is None:
                status = (await self._summary(run_id)).status
                if status in ("completed", "cancelled") or (retry and status not in FINAL and status != "running"):
                    raise WrongState(f"run {run_id!r} is {status}; it cannot be {'retried' if retry else 'resumed'}")
                recorded = Recorded(await self._log.read(key))
                run = await self._resume(key, recorded, submission_of(recorded) or Submission(ticket="", parcel=""), accept=accept)
                await self._recorded(run)
                if recorded.asked:  # it was not done when the owner died, and this comes after it
                    await run.tell("signal_received", {"name": "resume"})
            return self._status(run)

    @answered
    async def scale(self, ceiling: int | None) -> None:
        """Use so many CPUs at most, None: all there are."""
        self._upkeep.scale(ceiling)

    async def figures(self) -> dict[str, Any]:
        """Return what is under way, what waits, what was taken over, and what all of it amounts to (`metrics`)."""
        told = {**await self.statistics(), **asdict(self._admission.statistics()), "recovered": self._recovered, "pid": os.getpid()}
        return with_metrics(told, self._metrics)


class Turn:
    """Where a run stands that was begun."""

    def __init__(self) -> None:
        """It is neither recorded nor let in."""
        loop = asyncio.get_running_loop()
        self.entered: asyncio.Future[None] = loop.create_future()
        """Done when its beginning is on storage."""
        self.admitted: asyncio.Future[None] = loop.create_future()
        """Done when there is room for it."""


def _key(run_id: str) -> RunKey:
    parts = split_run_id(run_id)
    if parts is None:
        raise RunNotFound(f"run {run_id!r} not found: an id is workflow.session.n")
    return RunKey(*parts)
