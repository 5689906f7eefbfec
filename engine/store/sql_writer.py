"""What makes rows durable in a database: one coroutine on the database's thread, one transaction for all runs that have rows.

Rows that arrive while a transaction is under way share the next one. A transaction whose outcome is not known is repeated: the run's
head tells what of it is in, and the rest is written behind that.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from engine.checkpoint.batch import RELEASING, BatchFormat, Record, Tail
from engine.checkpoint.intake import Holding, Intake, one_batch
from engine.checkpoint.log import run_name
from engine.errors import GeckoError, LeaseLost, StoreUnavailable
from engine.ports import Row
from engine.store import transactions
from engine.store.database import Database, first_line
from engine.store.transactions import Batch, Head

logger = logging.getLogger(__name__)

#: Runs that share one transaction.
_MOST = 100


class SqlClaim(Holding):
    """The right to append to a run's rows in a database. What it knows of the run belongs to the database's thread."""

    def __init__(self, head: Head, rows: Sequence[Row]) -> None:
        super().__init__(head.key, rows, head.tail.seq)
        self.run = head.id
        self.record = Record(head.key, head.epoch, head.owner, head.since, {}, head.tail)
        self.form = BatchFormat(head.key)
        self.tail = head.tail
        self.batches = head.batches

    @property
    def epoch(self) -> int:
        return self.record.epoch

    @property
    def driving(self) -> bool:
        """Whether this claim still keeps others from the run."""
        return self.ended is None and self.tail.status not in RELEASING


@dataclass(slots=True)
class _Load:
    """What one claim has to write, and how much of it is in."""

    claim: SqlClaim
    taken: list[Sequence[Row]]
    calls: int
    done: int = 0
    many: int = 0
    """How many calls the batch that is being written holds."""
    tail: Tail | None = None

    def batch(self) -> Batch:
        """Build the next batch."""
        claim = self.claim
        rows, self.many = one_batch(self.taken, self.done)
        number = claim.batches + 1
        data, tail = claim.form.batch(claim.record, number, rows, claim.tail)
        self.tail = tail
        return Batch(claim.run, claim.epoch, number, rows[0].seq, tail, data)

    def advance(self) -> None:
        """Note that the batch is in."""
        assert self.tail is not None
        self.claim.batches, self.claim.tail = self.claim.batches + 1, self.tail
        self.done += self.many

    def catch_up(self, head: Head) -> None:
        """Go on behind what is in already: a commit whose answer was lost."""
        self.claim.batches, self.claim.tail = head.batches, head.tail
        left = [[row for row in rows if row.seq > head.tail.seq] for rows in self.taken[self.done :]]
        self.taken, self.done = [rows for rows in left if rows], 0


class SqlWriter(Intake[SqlClaim]):
    """Commits what is appended to any number of claims of one database."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._ready: list[SqlClaim] = []
        self._working: Future[None] | None = None

    def flush(self) -> "Future[None] | None":
        """Return what ends when everything handed over was tried; None where nothing is."""
        with self._lock:
            return self._working

    def _wake(self, claim: SqlClaim) -> None:
        self._ready.append(claim)
        if self._working is None or self._working.done():
            self._working = self._database.spawn(self._work())

    async def _work(self) -> None:
        while True:
            with self._lock:
                ready, self._ready = self._ready[:_MOST], self._ready[_MOST:]
                if not ready:
                    self._working = None
                    return
            loads = [_Load(claim, *self._take(claim)) for claim in ready]
            try:
                while loads:
                    loads = [load for load in loads if not self._finished(load)]
                    await self._commit(loads)
            except Exception as error:  # what nobody thought of must not leave anybody waiting
                logger.exception("rows could not be written", extra={"log": self._database.shown})
                for load in list(loads):
                    self._refuse(load, error, loads)

    def _finished(self, load: _Load) -> bool:
        if load.claim.ended is not None:
            return True
        if load.done < len(load.taken):
            return False
        self._settle(load.claim, load.calls)
        return True

    async def _commit(self, loads: list[_Load]) -> None:
        """Write one batch of each; what cannot be written is taken out of `loads`."""
        batches: dict[int, Batch] = {}
        for load in list(loads):
            try:
                batches[load.claim.run] = load.batch()
            except Exception as error:  # a row that cannot be written must not end this for every other run
                logger.exception("a batch could not be made", extra={"run": load.claim.key})
                self._refuse(load, error, loads)
        if not loads:
            return
        written = [batches[load.claim.run] for load in loads]
        try:
            answers = await self._database.do(lambda connection: connection.run_sync(transactions.commit, written), repeatable=True)
        except (GeckoError, SQLAlchemyError) as error:
            await self._part(loads, error)
            return
        for load, answer in zip(list(loads), answers, strict=True):
            if answer is True:
                load.advance()
            elif isinstance(answer, Head):
                load.catch_up(answer)
            else:
                self.end(load.claim, _lost(load.claim))

    async def _part(self, loads: list[_Load], error: Exception) -> None:
        """Find out whose batch it is that the database does not take; what it takes of nobody is put back."""
        if isinstance(error, StoreUnavailable):
            for load in loads:
                logger.warning("a commit failed", extra={"run": load.claim.key, "error": str(error)})
                self._put_back(load.claim, load.taken[load.done :], error)
            loads.clear()
        elif len(loads) == 1:
            logger.warning("a batch was refused", extra={"run": loads[0].claim.key, "error": str(error)})
            self._refuse(loads[0], error, loads)
        else:
            for load in list(loads):
                alone = [load]
                await self._commit(alone)
                if not alone:
                    loads.remove(load)

    def _refuse(self, load: _Load, error: Exception, loads: list[_Load]) -> None:
        loads.remove(load)
        said = first_line(error) if isinstance(error, SQLAlchemyError) else repr(error)
        self.end(load.claim, StoreUnavailable(f"rows of run {run_name(load.claim.key)} could not be written: {said}"))


def _lost(claim: SqlClaim) -> LeaseLost:
    text = f"another owner drives run {run_name(claim.key)} now, or it was deleted: its epoch is no more {claim.epoch}"
    return LeaseLost(f"{text}; stop, and read what is committed")
