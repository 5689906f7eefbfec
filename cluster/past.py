"""What is known of a run from its log alone, in the form in which coordinators tell it."""

import pickle
from typing import Any

from cluster.coordinator import looked
from cluster.submission import Submission
from engine import errors
from engine.checkpoint.codec import encode, private
from engine.checkpoint.record import Recorded
from engine.core.run import Status
from engine.engine import Engine
from engine.errors import GeckoError, RunCancelled, RunPaused, RunTimedOut, StepFailed
from engine.ports import Log, RunKey
from engine.runtime.bulk import encoded
from engine.runtime.replay import state_of

KNOWN = 10_000
"""So many runs' tickets are kept in memory."""


class Tickets:
    """Which call of `submit` began which run: a run's ticket is in its log, and never changes."""

    def __init__(self, log: Log) -> None:
        """Know nothing yet."""
        self._log = log
        self._known: dict[tuple[RunKey, float], str] = {}

    async def find(self, workflow: str, session: str, ticket: str) -> RunKey | None:
        """Return the run of a session that a ticket's call began."""
        for run in sorted(await self._log.scan(workflow=workflow, session=session), key=lambda run: -run.key.n):
            name = run.key, run.started_at  # the number of a run that was deleted is given again
            if name not in self._known:
                recorded = Recorded((await self._log.read(run.key))[:1])
                if not recorded:  # it is about to begin
                    continue
                submission = submission_of(recorded)
                self._known[name] = submission.ticket if submission is not None else ""
                while len(self._known) > KNOWN:
                    del self._known[next(iter(self._known))]
            if self._known[name] == ticket:
                return run.key
        return None


def submission_of(recorded: Recorded) -> Submission | None:
    """Return how a run was submitted, None for a script's."""
    data = (recorded.started or {}).get("submission")
    return None if data is None else Submission.from_data(data)


async def outcome_of(engine: Engine, run_id: str) -> tuple[str, bytes | None, bytes | None, None]:
    """Return (status, pickled error, output's bytes, None) of a run.

    Raises: RunNotFound.
    """
    run, recorded = await engine.look(run_id)
    error = error_of(run_id, recorded)
    if error is not None:
        return recorded.status, pickle.dumps(error), None, None
    return recorded.status, None, await encoded(run.last, "the run's output"), None


async def view_of(engine: Engine, run_id: str) -> bytes:
    """Return (status, last, state, history, rows) of a run as it stands, encoded."""
    run, recorded = await engine.look(run_id)
    return looked(recorded.status, run.last, state_of(run), run.window().entries(), run.rows())


async def events_of(engine: Engine, run_id: str, after: int) -> list[tuple[Any, ...]]:
    """Return the committed events of a run after a number, each as a tuple with its data encoded."""
    return [(*event[:7], encode(private(event.data)), event.ordinal) async for event in engine.events(run_id, after)]


def error_of(run_id: str, recorded: Recorded) -> GeckoError | None:
    """Return what a run that has stopped raises, of the class that it had where that is one of ours; None where it completed or goes on."""
    finished = recorded.ended.get("finished", recorded.succeeded)
    steps = "1 finished step" if finished == 1 else f"{finished:,} finished steps"
    match recorded.status:
        case Status.FAILED:
            told = recorded.ended.get("error", {})
            kind = getattr(errors, str(told.get("type")), StepFailed)
            fields = {"run_id": run_id, "node": told.get("node")}
            return kind(str(told.get("message") or "the run failed"), **fields)
        case Status.TIMED_OUT:
            limit = recorded.ended.get("limit")
            return RunTimedOut(f"run {run_id!r} timed out: its limit is {limit:g} s, reached after {steps}", run_id=run_id)
        case Status.CANCELLED:
            return RunCancelled(f"run {run_id!r} was cancelled after {steps}", run_id=run_id)
        case Status.PAUSED:
            why = recorded.ended.get("reason", "asked")
            told = "" if why in ("asked", "drained") else f": {why}"
            return RunPaused(f"run {run_id!r} is paused after {steps}{told}; resume it to go on", run_id=run_id)
        case _:
            return None
