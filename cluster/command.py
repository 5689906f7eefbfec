"""What the commands that run a workflow share: names for sessions, what is said of a run, its result as text, exit statuses.

Exit status: 0 what was asked happened, 1 a run failed or stopped before its end, 2 wrong usage, 3 something outside is unavailable,
130 left at a second signal.
"""

import pprint
import re
import secrets
import shlex
import time
from typing import Any

from cluster.attend import LEFT_AT_ONCE, Interrupted
from cluster.notices import failure_text, one_line, say
from engine.checkpoint.table import is_json, json_text
from engine.core.places import shown
from engine.engine import Engine
from engine.errors import (
    CheckpointError,
    DefinitionError,
    GeckoError,
    LeaseLost,
    RunBusy,
    RunCancelled,
    RunNotFound,
    RunPaused,
    RunTimedOut,
    SessionInUse,
    Unavailable,
    WorkflowError,
    WrongState,
)
from engine.handle import RunHandle
from engine.observe.progress import Progress, counted, seconds_text
from engine.ports import Log
from engine.runtime.session import WAIT_FOR_OWNER
from engine.workflow import Workflow

OK, FAILED, USAGE, OUTSIDE = 0, 1, 2, 3

_STOPPED = (RunPaused, RunTimedOut, Unavailable)
"""Ends of a run that nothing in its workflow is the cause of: to go on is enough. Every other comes again as long as its cause is there."""

_MEND = "if the input is the cause, give another one with another session or --new (of `run`); else mend the cause, then go on"
"""What holds for an end that comes again: the command that goes on takes the recorded input, so that it helps where the code is mended."""

_STATUSES: tuple[tuple[type[GeckoError], int], ...] = (
    (DefinitionError, USAGE),
    (RunNotFound, USAGE),
    (SessionInUse, USAGE),
    (WrongState, USAGE),
    (WorkflowError, FAILED),
    (Unavailable, OUTSIDE),
    (RunBusy, OUTSIDE),
    (LeaseLost, OUTSIDE),
    (CheckpointError, OUTSIDE),
)
"""Error class to exit status; the first that fits counts."""


async def free_session(workflow: str, log: Log | None) -> str:
    """Return a new session's name, `workflow-7f3a`, under which nothing is recorded; without a log, one that nobody is likely to have."""
    stem = re.sub(r"[^\w.-]+", "-", workflow).strip("-.")[:40].lower() or "run"
    digits = 8 if log is None else 4
    while True:
        session = f"{stem}-{secrets.token_hex(8)[:digits]}"
        if log is None or not await log.scan(workflow=workflow, session=session):
            return session
        digits = min(16, digits + 1)


def layers_of(flow: Workflow) -> list[list[str]]:
    """Return the layers of a workflow, the nodes of each in declared order.

    Raises: InvalidGraph.
    """
    order = {name: i for i, name in enumerate(flow.graph.nodes)}
    return [sorted(layer, key=order.__getitem__) for layer in flow.layers()]


def command_text(*words: str, **options: str | None) -> str:
    """Return a command as it is typed, with those of its options that are not None; a password is left to whoever types it."""
    return shlex.join([*words, *(word for name, value in options.items() if value is not None for word in (f"--{name}", shown(value)))])


class Told:
    """What a command says about a run besides its progress, on standard error."""

    def __init__(self, engine: Engine, again: str) -> None:
        """Tell of a run that an engine begins; `again` is the command that goes on with it where it is recorded."""
        self._engine = engine
        self._again = again
        self._begun = False
        self._since = time.time()

    def begun(self, handle: RunHandle) -> None:
        """Say which run it is and where it is recorded."""
        self._begun = True
        log = self._engine.log
        say(f"run {handle.run_id}, {'recorded nowhere' if log is None else f'recorded in {shown(log.url)}'}{fleeting(self._engine)}")

    async def await_owner(self, workflow: str, session: str | None, n: int | None = None) -> None:
        """Say at once that another process drives the run that is to be begun, since the claim waits for that one to end.

        Args:
            workflow: Its workflow.
            session: Its session; None: a new one.
            n: Which run of the session; None: the newest.
        """
        log = self._engine.log
        if log is None or session is None:
            return
        found = [s for s in await log.scan(workflow=workflow, session=session) if n in (None, s.key.n)]
        newest = max(found, key=lambda s: s.key.n, default=None)
        if newest is not None and newest.owner is not None:
            driven = f"run {newest.run_id!r} is driven by process {newest.owner.pid} on {newest.owner.host}"
            say(f"{driven}: waiting up to {seconds_text(WAIT_FOR_OWNER)} for it to end")

    def noticed(self) -> None:
        """Say that the first signal was heard; before the run has begun, the command ends at it."""
        if self._begun:
            goes_on = f"; go on with: {self._again}" if self._can_go_on() else ""
            say(f"stopping at a checkpoint; once more leaves at once{goes_on}")

    def _can_go_on(self) -> bool:
        return self._begun and self._engine.log is not None and not fleeting(self._engine)

    def ended(self, progress: Progress) -> None:
        """Say that it completed, with how much; of a run that had completed before, the log says so."""
        if progress.began >= self._since:
            before = f", {progress.before:,} of them before" if progress.before else ""
            say(f"completed in {seconds_text(progress.seconds(0.0))}, {counted(progress.finished, 'step')}{before}")
        if progress.doubts:
            recorded = self._engine.log is not None and not fleeting(self._engine)
            which = f"; gecko runs show {progress.run_id} says which" if recorded else ""
            say(f"{counted(progress.doubts, 'condition')} failed and counted as false{which}")

    def explain(self, error: GeckoError) -> None:
        """Note on an error how the run goes on, where it had begun and a command does that."""
        goes_on = isinstance(error, (WorkflowError, Unavailable)) and not isinstance(error, RunCancelled)
        if goes_on and self._can_go_on():
            error.add_note(f"{'go on' if isinstance(error, _STOPPED) else _MEND} with: {self._again}")


def fleeting(engine: Engine) -> str:
    """Return what is to be said of a storage in memory, behind its URL; nothing of any other."""
    lives = engine.log is None or not engine.log.url.startswith("memory:")
    return "" if lives else ", which is gone when this command ends: --storage with a folder keeps it"


def result_text(value: Any, *, wide: bool) -> str:
    """Return a result: JSON where JSON holds it, else its data form as Python writes it; over several lines if `wide`."""
    if is_json(value):
        return json_text(value, indent=2 if wide else None)
    return pprint.pformat(value, width=120 if wide else 10**9, sort_dicts=False)


def failure_of(error: BaseException, *, traced: bool = False) -> tuple[int, str]:
    """Return the exit status for an error, and the line that is said of it; `traced`: its traceback was shown."""
    hint = "" if traced else " (--debug shows the traceback)"
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return LEFT_AT_ONCE, f"error: {str(error) or 'interrupted'}"
    if isinstance(error, RunPaused):
        return FAILED, f"stopped: {failure_text(error)}"
    if isinstance(error, GeckoError):
        return next((status for kind, status in _STATUSES if isinstance(error, kind)), FAILED), f"error: {failure_text(error, hint)}"
    if isinstance(error, ImportError):
        return OUTSIDE, f"error: {one_line(str(error))}; is gecko-ray installed here with all it needs? gecko doctor says"
    if isinstance(error, OSError):
        return OUTSIDE, one_line(f"error: {error.filename or 'the system'}: {error.strerror or error}")
    return FAILED, f"error: {one_line(f'{type(error).__name__}: {error}')}{'' if traced else '; --debug shows where'}"
