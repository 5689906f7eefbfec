"""Dead letters: steps whose attempts are used up. List them, look at one, replay it, drop it. No typer, no HTTP, no printing.

A letter is what its run's log tells, kept in the index. Whether it was replayed is for the log to say, too: it is when its run went past
the step. So to replay is to have the run gone on with, and can be asked for any number of times.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from engine.checkpoint.codec import decode
from engine.engine import Engine
from engine.errors import RunNotFound, UnknownName, WrongState
from engine.ports import Log
from engine.records import MOST, DeadLetter, LetterQuery, Page, Records
from engine.store import open_records
from engine.store.index import catch_up
from serve import submitted
from serve.report import StepReport
from serve.service import report_of


class Retry(Protocol):
    """Has a run gone on with."""

    async def __call__(self, run: str, *, accept: bool = False) -> tuple[str, str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterReport:
    """A dead letter with what is known around it."""

    letter: DeadLetter
    known: bool
    """Whether it is known what the step was given."""
    input: Any
    """What that was."""
    run_status: str
    target: str | None
    """The import path of its workflow."""
    history: list[StepReport]
    """The steps of its run, in the order in which they began; none where the run's log is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of asking for a replay."""

    letter: DeadLetter
    run_id: str
    run_status: str
    done: bool
    """Whether the run is past the step already: then nothing was asked of it."""


class DeadLetters:
    """The dead letters of one storage."""

    def __init__(self, engine: Engine, records: Records | None = None, retry: Retry | None = None) -> None:
        """Look at nothing yet.

        Args:
            records: Where the index is; default: beside the runs.
            retry: What has a run gone on with from what failed, and returns its id and status; default: the cluster that it belongs to.
        """
        assert engine.log is not None
        self._engine = engine
        self._log: Log = engine.log
        self._records = records or open_records(engine.log.url)
        self._retry: Retry = retry or partial(submitted.retry, engine)

    async def list(self, query: LetterQuery) -> Page[DeadLetter]:
        """Return a page of letters, with those of runs that nobody put into the index.

        Raises: DefinitionError, StoreUnavailable.
        """
        await catch_up(self._log, self._records)
        return await self._records.list_letters(query)

    async def find(self, name: str) -> DeadLetter:
        """Return a letter by its id or a unique beginning of it. Raises: UnknownName for none or several."""
        await catch_up(self._log, self._records)
        found = await self._records.get_letter(name)
        if found is not None:
            return found
        query, matching = LetterQuery(status=(), sort="created_at", limit=MOST), dict[str, DeadLetter]()
        while name:
            page = await self._records.list_letters(query)
            matching |= {letter.id: letter for letter in page.items if letter.id.startswith(name)}
            if page.next is None:
                break
            query = replace(query, after=page.next)
        if not matching:
            raise UnknownName(f"there is no dead letter {name!r}: gecko dead list --status all names those that there are", where="id")
        if len(matching) > 1:
            some = ", ".join(sorted(matching)[:5])
            raise UnknownName(f"{name!r} is the beginning of {len(matching):,} dead letters: {some}; say more of it", where="id")
        return next(iter(matching.values()))

    async def report(self, name: str) -> LetterReport:
        """Return a letter, what its step was given, and the steps of its run. Raises: UnknownName."""
        letter = await self.find(name)
        status, target, history = "", None, list[StepReport]()
        try:
            report = await report_of(self._engine, letter.run_id)
            status, target, history = report.status, report.target, report.steps
        except RunNotFound:  # deleted since the letter was read
            pass
        known = letter.input is not None
        given = decode(letter.input) if letter.input is not None else None
        return LetterReport(letter=letter, known=known, input=given, run_status=status, target=target, history=history)

    async def replay(self, name: str, *, accept: bool = False) -> Replayed:
        """Have the cluster go on with a letter's run, from what failed. Asked again, it is the same replay.

        The letter is `replayed` once the run went past its step; where the step fails again the letter is open again, with that failure.

        Args:
            accept: Also where recorded nodes are gone or rewired.

        Raises: UnknownName, WrongState (also for a script's run), RunNotFound, ClusterUnavailable.
        """
        letter = await self.find(name)
        if letter.status == "replayed":
            run_id = letter.replay_run_id or letter.run_id
            return Replayed(letter=letter, run_id=run_id, run_status=await self._status(run_id), done=True)
        dropped = letter.status == "dropped"
        if dropped:  # before its run goes on, which may end with the other mark
            letter = await self._records.mark_letter(letter.id, "open")
        try:
            run_id, status = await self._retry(letter.run_id, accept=accept)
        except WrongState:
            if dropped:
                await self._records.mark_letter(letter.id, "dropped")
            letter = await self.find(letter.id)
            if letter.status != "replayed":  # else it came past the step between our two looks
                raise
            return Replayed(letter=letter, run_id=letter.run_id, run_status=await self._status(letter.run_id), done=True)
        return Replayed(letter=letter, run_id=run_id, run_status=status, done=False)

    async def _status(self, run_id: str) -> str:
        entry = await self._records.get_run(run_id)
        return "" if entry is None else entry.status

    async def drop(self, name: str) -> DeadLetter:
        """Take note that nobody wants a letter any more; its run stays as it is. Raises: UnknownName; WrongState for one replayed."""
        letter = await self.find(name)
        if letter.status == "replayed":
            raise WrongState(f"dead letter {letter.id!r} was replayed in run {letter.replay_run_id!r}: there is nothing to drop")
        return await self._records.mark_letter(letter.id, "dropped")


def statuses_of(said: str | None) -> Collection[str]:
    """Return what a query is asked for by a status: None means those that are open, `all` any."""
    return ("open",) if said is None else () if said == "all" else (said,)
