"""How a run begins: which run a session names, whether it goes on, and what is refused. The same in a script and in a coordinator."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from engine.checkpoint.codec import Encoded, encode, private, to_data
from engine.checkpoint.record import Recorded
from engine.core.context import Scene
from engine.core.ids import make_run_id
from engine.core.places import shown
from engine.core.plan import Plan, definition_hash, find_node, from_data, rewired
from engine.core.plan import to_data as plan_data
from engine.core.run import start
from engine.core.state import opened, same
from engine.errors import DefinitionError, RunBusy, RunCancelled, RunNotFound, SessionInUse, WrongState
from engine.ports import Claim, Log, RunKey
from engine.runtime.bulk import as_data, beside, encoded, is_long
from engine.runtime.conductor import Conductor
from engine.runtime.control import Control
from engine.runtime.executor import Executor
from engine.runtime.ledger import Ledger
from engine.runtime.loop import Driver

logger = logging.getLogger(__name__)

WAIT_FOR_OWNER = 10.0
"""Seconds that a second caller waits for an owner that may be dying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run that somebody asks for."""

    workflow: str
    plan: Plan
    session: str
    named: bool = True
    """Whether the caller named the session."""
    n: int | None = None
    """Which run of the session; None: the newest."""
    input: Any = None
    start_node: str | None = None
    timeout: float | None = None
    new: bool = False
    accept: bool = False
    takeover: bool = False
    patience: float = WAIT_FOR_OWNER
    """Seconds to wait for an owner of the run that may be dying."""
    resume: bool = False
    """Whether the run must be there already."""
    strategy: str = "always"
    on_commit_failure: str = "stop"
    code: str = ""
    """A hash of the bodies' code: a mended body may be resumed, and an event says so."""
    target: str | None = None
    """Where the workflow's code is found again, `module:name` or `file.py:name`; None where it is not."""
    watch: bool = True
    """Whether events are kept for whoever asks later, where there is no log to read them from."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    submission: dict[str, Any] | None = None
    """Of a run that belongs to a cluster: what goes on with it has to know. Recorded with its start."""


@dataclass(slots=True, kw_only=True)
class Begun:
    """A run that is driven, or one that had ended before."""

    run_id: str
    key: RunKey
    conductor: Conductor | None
    """None for a run that had completed."""
    recorded: Recorded


async def find_run(log: Log, request: Request) -> RunKey:
    """Return the key of the run that a request means."""
    if request.n is not None:
        return RunKey(request.workflow, request.session, request.n)
    newest = max((s.key.n for s in await log.scan(workflow=request.workflow, session=request.session)), default=0)
    if request.resume and not newest:
        raise RunNotFound(f"session {request.session!r} of workflow {request.workflow!r} not found in {shown(log.url)}")
    return RunKey(request.workflow, request.session, newest + 1 if request.new else max(newest, 1))


async def find_completed(request: Request, log: Log | None) -> Begun | None:
    """Return the run that a request means where it has completed, found by looking alone: its result needs nobody to drive it.

    Raises: SessionInUse for another input than the recorded one, RunCancelled.
    """
    if request.start_node is not None:
        find_node(request.plan, request.start_node, "Start node")
    if log is None or request.new or not request.named:
        return None
    found = await log.scan(workflow=request.workflow, session=request.session)
    meant = [s for s in found if request.n is None or s.key.n == request.n]
    newest = max(meant, key=lambda s: s.key.n, default=None)
    if newest is None or newest.status not in ("completed", "cancelled"):
        return None
    return await _check(request, newest.key, Recorded(await log.read(newest.key)), log)


async def begin(request: Request, log: Log | None, make_executor: Callable[[], Executor], control: Control | None = None) -> Begun:
    """Claim the run that a request means and make ready to drive it, from its first step or from where it stands.

    Raises: RunBusy, SessionInUse, RunCancelled, RunNotFound, DefinitionError (rewired), and what storage raises.
    """
    if request.start_node is not None:
        find_node(request.plan, request.start_node, "Start node")
    request = replace(request, input=await as_data(request.input, "the run's input"))
    if log is None:
        run_id = make_run_id(request.workflow, request.session, 1)
        ledger = Ledger(run_id, None, None)
        first = ("run_started", {"workflow": request.workflow, "session": request.session}, None)
        return _prepare(request, RunKey(request.workflow, request.session, 1), ledger, Recorded(()), first, make_executor(), control)
    given = await encoded(request.input, "the run's input")
    key, claim = await _claim(log, request)
    try:
        recorded = Recorded(claim.rows)
        claim.forget()
        run_id = make_run_id(*key)
        ended = await _check(request, key, recorded, log)
        if ended is not None:
            await log.release(claim)
            return ended
        ledger = Ledger(run_id, log, claim, strategy=request.strategy, on_failure=request.on_commit_failure, seq=recorded.seq)
        ledger.intents, ledger.receipts, ledger.finished = recorded.intents, recorded.receipts, recorded.succeeded
        first = _first(request, recorded, given)
        return _prepare(request, key, ledger, recorded, first, make_executor(), control)
    except BaseException:
        await _give_back(log, claim)
        raise


async def _claim(log: Log, request: Request) -> tuple[RunKey, Claim]:
    """Claim the run that a request means; a new one takes the first number that nobody else took in the meantime."""
    key = await find_run(log, request)
    if not request.new:
        return key, await log.claim(key, takeover=request.takeover, wait=request.patience)
    while True:
        try:
            claim = await log.claim(key, takeover=request.takeover)
        except RunBusy:
            logger.debug("Run %r is somebody else's by now", make_run_id(*key))
        else:
            if not claim.rows:
                return key, claim
            await _give_back(log, claim)
        key = key._replace(n=key.n + 1)


async def _give_back(log: Log, claim: Claim) -> None:
    await asyncio.shield(log.release(claim))


async def _check(request: Request, key: RunKey, recorded: Recorded, log: Log) -> Begun | None:
    """Return the run where it had completed, None where it is to be driven; raise where it must not."""
    run_id = make_run_id(*key)
    if recorded.status == "cancelled":
        raise RunCancelled(f"run {run_id!r} was cancelled; pass new=True to run again under its session", run_id=run_id)
    if not recorded:
        if request.resume:
            raise RunNotFound(f"run {run_id!r} not found in {shown(log.url)}: it holds no started run")
        return None
    await check_input(request, key, recorded)
    if recorded.status == "completed":
        when = datetime.fromtimestamp(recorded.ended_at, UTC).isoformat(timespec="seconds")
        logger.warning(
            "Session %r had finished at %s: this is its result; new=True runs it again", key.session, when, extra={"run_id": run_id}
        )
        return Begun(run_id=run_id, key=key, conductor=None, recorded=recorded)
    assert recorded.started is not None
    if recorded.hash != definition_hash(request.plan) and not request.accept:
        changed = rewired(from_data(recorded.definition), request.plan)
        if changed:
            some = ", ".join(map(repr, changed[:8])) + (", ..." if len(changed) > 8 else "")
            text = f"run {run_id!r} was recorded with nodes that are gone or rewired now: {some}; "
            raise DefinitionError(text + "resume it with accept=True, or start a new run with new=True", where=changed[0])
    recorded_start = recorded.started.get("start_node")
    if request.start_node is not None and request.start_node != recorded_start:
        raise WrongState(
            f"run {run_id!r} was started at {recorded_start or 'its entries'!r}; it goes on from where it stands, not at a start_node"
        )
    return None


async def check_input(request: Request, key: RunKey, recorded: Recorded) -> None:
    """Raise SessionInUse where a request has another input than the recorded one."""
    if request.input is not None and not await _is_input(request.input, recorded):
        text = f"session {key.session!r} of workflow {key.workflow!r} belongs to run {make_run_id(*key)!r} with another input; "
        raise SessionInUse(text + "use another session, leave the input out to go on, or pass new=True for a new run")


async def _is_input(value: Any, recorded: Recorded) -> bool:
    def compare() -> bool:
        return same(to_data(value, where="the run's input"), opened(recorded.input))

    return await beside(compare) if is_long(value) or is_long(recorded.input) else compare()


def _start_data(request: Request) -> dict[str, Any]:
    return {
        "workflow": request.workflow,
        "session": request.session,
        "start_node": request.start_node,
        "hash": definition_hash(request.plan),
        "target": request.target,
        "code": request.code,
        **({} if request.submission is None else {"submission": request.submission}),
    }


def _definition(plan: Plan) -> Encoded:
    """The plan's shape in its bytes, made once: a large plan is started as quickly as a small one."""
    if "definition" not in plan.memo:
        plan.memo["definition"] = encode(plan_data(plan))
    return Encoded(plan.memo["definition"])


def _first(request: Request, recorded: Recorded, given: bytes) -> tuple[str, dict[str, Any], bytes | None]:
    if not recorded:
        return "run_started", {**_start_data(request), "definition": _definition(request.plan)}, given
    assert recorded.started is not None
    now = definition_hash(request.plan)
    data: dict[str, Any] = {"hash": now, "changed": now != recorded.hash, "code": request.code, "from": recorded.status}
    data["mended"] = bool(recorded.code and request.code) and recorded.code != request.code
    if data["mended"]:
        text = "Session %r goes on with other code than it was driven with last"
        logger.info(text, request.session, extra={"session": request.session})
    if plan_data(request.plan) != recorded.definition:
        data["definition"] = _definition(request.plan)  # what is brought back from the log alone needs the newest
    return "run_resumed", data, None


def _prepare(
    request: Request, key: RunKey, ledger: Ledger, recorded: Recorded, first: tuple[str, dict[str, Any], bytes | None], executor: Executor,
    control: Control | None,
) -> Begun:  # fmt: skip
    plan, run_id = request.plan, make_run_id(*key)
    recorded.rows = []  # what is still needed of them is kept by step
    given = recorded.input if recorded else request.input
    if isinstance(given, Encoded):
        given = given.load()
    start_node = recorded.started.get("start_node") if recorded.started else request.start_node
    run = start(plan, run_id, given, start_node=None if start_node is None else find_node(plan, start_node, "Start node"))
    run.changes = [] if executor.keeps_copies else None
    session = key.session if request.named else None
    metadata = {**request.metadata, "session_id": session}
    deadline = None if request.timeout is None else ledger.clock.now() + request.timeout
    scene = Scene(run_id=run_id, session_id=session, input=given, private=private, rows=run.rows, services=None, metadata=metadata,
                  deadline=deadline)  # fmt: skip
    driver = Driver(plan, run, scene, ledger, executor, recorded=recorded if recorded else None, control=control)
    scene.services = driver
    conductor = Conductor(driver, timeout=request.timeout, first=first)
    return Begun(run_id=run_id, key=key, conductor=conductor, recorded=recorded)
