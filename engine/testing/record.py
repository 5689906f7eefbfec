"""Writes a run in a given position, as a crash or a pause would have left it, so that a test resumes from there.

    from engine.testing.record import record

    await record(flow, "s", storage="memory://t", input=3, finished={"fetch": [1, 2], "measure[0]": 10})
    assert await flow.resume("s") == ...     # performs measure[1] and what follows

The driver of the engine goes through the workflow with the given answers in place of bodies; what has none is left running. So a
position that no run could reach cannot be written.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from engine.checkpoint.codec import encode
from engine.checkpoint.record import Recorded
from engine.core.graph import Node
from engine.core.run import Answer, Ask
from engine.core.state import Combine
from engine.errors import DefinitionError, WrongState
from engine.local import LocalRun
from engine.ports import Log, Row, RunKey
from engine.runtime.bind import Binding
from engine.runtime.control import Control
from engine.runtime.session import Request, begin
from engine.runtime.step import Call, Moment, Outcome, attempt
from engine.store import open_log
from engine.testing.clock import EPOCH, VirtualClock, VirtualLoop, apart
from engine.testing.executor import Seen, SimulatedExecutor, names_of
from engine.testing.faults import Oracle
from engine.testing.medium import Fate, FaultyMedium, SimulatedLog, committed, make_memory
from engine.workflow import Workflow

Left = Literal["crashed", "paused", "timed_out", "cancelled"]
_ENDS: dict[str, str] = {"paused": "run_paused", "timed_out": "run_timed_out", "cancelled": "run_cancelled"}
_PATIENCE = 0.05


@dataclass(frozen=True, slots=True)
class Done:
    """An answer with what the step did to the state."""

    output: Any = None
    """The output, or a `Next`."""
    state: Mapping[Any, Any] = field(default_factory=dict[Any, Any])
    """Keys that the step wrote."""
    deleted: tuple[Any, ...] = ()


async def record(flow: Workflow, session_id: str, *, storage: str | Log, input: Any = None, finished: Mapping[str, Any] | None = None,
                 verdicts: Mapping[tuple[str, str], bool] | None = None, left: Left = "crashed") -> str:  # fmt: skip
    """Write the first run of a session and return its id.

    Args:
        finished: Answers by node (`a`, `outer/inner`; in every pass), by step id without the run's (`a/2`: the second pass) or by item
            (`m[0]`); a map takes the list of its answers too. An answer is the output, a `Next`, a `Done` that wrote state, or an
            exception that every attempt raises. Every step that starts and has no answer is left running.
        verdicts: What conditions say, by (source, target); the others are asked.
        left: Whether the driver died, or the run was stopped.

    Raises: DefinitionError for an answer whose step does not start in this position; WrongState where the session has a run already.
    """
    answers = _Answers(dict(finished or {}), dict(verdicts or {}))
    key = RunKey(flow.name, session_id, 1)
    request = Request(workflow=flow.name, plan=flow.compiled(), session=session_id, n=1, input=input, target=flow.find_target())
    rows = apart(lambda: _play(request, key, answers))
    if unused := [repr(k) for k in answers.finished if k not in answers.used]:
        raise DefinitionError(f"no step starts in this position for {', '.join(unused)}: answer what stands before it too", where=unused[0])
    recorded = Recorded(rows)
    if left != "crashed":
        if recorded.status != "running":
            raise WrongState(f"with these answers the run ends by itself ({recorded.status}); it cannot be left {left}")
        rows.append(Row(rows[-1].seq + 1, rows[-1].at, _ENDS[left], info=encode({"finished": recorded.succeeded, "reason": "recorded"})))
    log = open_log(storage) if isinstance(storage, str) else storage
    claim = await log.claim(key)
    try:
        if claim.rows:
            raise WrongState(f"session {session_id!r} of workflow {flow.name!r} has a run already: record under another one")
        await log.append(claim, rows)
    finally:
        await log.release(claim)
    return f"{key.workflow}.{key.session}.{key.n}"


@dataclass(slots=True)
class _Answers:
    finished: dict[str, Any]
    verdicts: dict[tuple[str, str], bool]
    used: set[str] = field(default_factory=set[str])

    def find(self, call: Call, moment: Moment) -> tuple[bool, Any]:
        """Return whether a call has an answer, and which."""
        step, label, node = names_of(call, moment)
        for name in (step, label):
            if name in self.finished and not (call.ordinal is not None and name == node):
                self.used.add(name)
                return True, self.finished[name]
        if node not in self.finished:
            return False, None
        self.used.add(node)
        given = self.finished[node]
        if call.ordinal is None or isinstance(given, BaseException):
            return True, given
        return call.ordinal < len(given), given[call.ordinal] if call.ordinal < len(given) else None


class _Puppets(SimulatedExecutor):
    """Answers in place of bodies; holds what has no answer."""

    def __init__(self, loop: VirtualLoop, answers: _Answers) -> None:
        super().__init__(loop, Seen(), Oracle((), 0), Recorded(()), life=1, spread=0.0, alive=lambda: True)
        self._answers = answers

    async def _perform(self, call: Call, moment: Moment) -> Outcome:
        known, given = self._answers.find(call, moment)
        if not known:
            await self._loop.create_future()

        async def body(ctx: Any, _: Any) -> Any:
            if isinstance(given, BaseException):
                raise given
            if not isinstance(given, Done):
                return given
            ctx.state.update(given.state)
            for key in given.deleted:
                del ctx.state[key]
            return given.output

        node = Node(name=call.node.name, body=Binding(body, body, body, None, wants_context=True, asks=False), policy=call.node.policy)
        outcome = await attempt(call._replace(node=node, spare=None, limit=None), moment, self._loop.perform)
        outcome.call, outcome.started, outcome.duration = call, EPOCH, 0.0
        return outcome

    async def ask(self, questions: Any, moment: Moment) -> list[Answer]:
        known: list[Answer] = []
        asked: list[Ask | Combine] = []
        for question in questions:
            verdict = None
            if isinstance(question, Ask):
                plan = moment.plan
                ends = plan.names[plan.source[question.edge]], plan.names[plan.target[question.edge]]
                verdict = self._answers.verdicts.get(ends)
            if verdict is None:
                asked.append(question)
            else:
                known.append(Answer(question, verdict))
        return known + await super().ask(asked, moment)


def _play(request: Request, key: RunKey, answers: _Answers) -> list[Row]:
    """Drive the run with the answers until nothing more happens; return what was committed."""
    stuck: list[asyncio.Future[None]] = []

    def on_stuck() -> None:
        if not stuck[0].done():
            stuck[0].set_result(None)

    loop = VirtualLoop(patience=_PATIENCE, on_stuck=on_stuck)
    stuck.append(loop.create_future())

    async def drive() -> list[Row]:
        disk = make_memory("recorded")
        clock = VirtualClock(loop, Random(0))
        begun = await begin(request, SimulatedLog(FaultyMedium(disk, lambda _: Fate()), clock), lambda: _Puppets(loop, answers), Control())
        assert begun.conductor is not None
        begun.conductor.driver.ledger.clock = clock
        run = LocalRun(begun, request, None)
        driving = loop.create_task(run.wait())
        await asyncio.wait({driving, stuck[0]}, return_when=asyncio.FIRST_COMPLETED)
        return committed(disk, key)

    return loop.run_to_end(drive())
