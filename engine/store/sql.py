"""The log in a database, SQLite or PostgreSQL: the batches that files hold, as rows; for clusters without a disk that all nodes share.

It decides whether an owner lives: each log has a lease in the database, by the database's own clock, which its thread renews for as long
as it drives runs. The lease decides who tries, the epoch in the commit's own transaction decides who commits. What happens in a
transaction is transactions.py's, and how rows become durable is sql_writer.py's.
"""

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from engine.checkpoint.batch import batch_rows
from engine.checkpoint.intake import Commit
from engine.checkpoint.log import keep, process_owner, run_name
from engine.errors import CorruptCheckpoint, GeckoError, LeaseLost, RunBusy, RunNotFound, StoreUnavailable
from engine.ports import Claim, Owner, Row, RunKey, RunSummary
from engine.store import tables, transactions
from engine.store.alive import is_gone, mark_of
from engine.store.database import Database, first_line, wait_for
from engine.store.sql_writer import SqlClaim, SqlWriter
from engine.store.transactions import Head, Stored

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that an owner is held to live after it last said so.
LEASE = 10.0
#: Seconds between two looks at a run that is driven, and at one that is followed.
_LOOK_AGAIN, _FOLLOW_AGAIN = 0.05, 0.1
#: Seconds after which the lease of an owner that never came back is removed.
_OWNERS_KEPT = 3600.0
#: How often a lease is renewed while it lasts.
_BEATS = 4


class SqlLog:
    """Committed events of runs in a database."""

    def __init__(self, database: Database, *, url: str | None = None, lease: float = LEASE) -> None:
        """Touch nothing yet; `url` is what opens this log again, where that says more than the database's."""
        self.url = url or database.url
        self.database = database
        self._lease = lease
        self._owner, self._mark = _own()
        self._writer = SqlWriter(database)
        self._lock = threading.Lock()
        self._driven: dict[RunKey, SqlClaim] = {}
        self._claiming: set[RunKey] = set()
        self._beating: Future[None] | None = None
        self._made = False
        keep(self)

    async def claim(self, key: RunKey, *, takeover: bool = False, wait: float = 0.0) -> Claim:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while True:
            claiming = self.database.spawn(self._claim(key, takeover))
            try:
                return await wait_for(claiming)
            except RunBusy:
                if loop.time() >= until:
                    raise
            except asyncio.CancelledError:
                claiming.add_done_callback(self._abandon)
                raise
            await asyncio.sleep(_LOOK_AGAIN)

    def append(self, claim: Claim, rows: Sequence[Row]) -> Commit:
        assert isinstance(claim, SqlClaim)
        return self._writer.append(claim, rows)

    async def release(self, claim: Claim) -> None:
        assert isinstance(claim, SqlClaim)
        try:
            if claim.durable < claim.calls and not claim.told:  # rows that nobody waited for must not be lost in silence
                await self._writer.append(claim, ())
        finally:
            await wait_for(self.database.spawn(self._let_go(claim)))

    async def read(self, key: RunKey, *, after: int = 0) -> Sequence[Row]:
        return (await self._rows(key, after))[1]

    def fetch(self, key: RunKey, seqs: Sequence[int]) -> Mapping[int, Row]:
        wanted = set(seqs)
        if not wanted:
            return {}
        look = self._look(partial(transactions.pick, key=key, seqs=sorted(wanted)))
        try:
            head, stored = self._there(key, self.database.do_now(partial(_run, look), reading=True))
        except SQLAlchemyError as error:
            raise self._explained(error) from error
        return {row.seq: row for row in self._decoded(head, stored) if row.seq in wanted}

    async def follow(self, key: RunKey, *, after: int = 0) -> AsyncIterator[Sequence[Row]]:
        before: Head | None = None
        while True:
            head, rows = await self._rows(key, after)
            if rows:
                after = rows[-1].seq
                yield rows
            elif before is not None and (head.id, head.epoch) == (before.id, before.epoch) and not (before.open and self._lives(before)):
                return
            else:
                await asyncio.sleep(_FOLLOW_AGAIN)
            before = head

    async def scan(
        self, *, workflow: str | None = None, session: str | None = None, on_damage: Callable[[str, GeckoError], object] | None = None
    ) -> Sequence[RunSummary]:
        heads = await self._read(partial(transactions.heads, workflow=workflow, session=session)) or []
        found = [
            RunSummary(
                key=head.key,
                status=head.tail.status,
                started_at=head.tail.started or head.since,
                updated_at=max(head.tail.updated, head.tail.started) or head.since,
                seq=head.tail.seq,
                owner=head.owner if head.open and self._lives(head) else None,
                size=head.size,
            )
            for head in heads
        ]
        return sorted(found, key=lambda run: (-run.started_at, run.key))

    async def delete(self, key: RunKey) -> None:
        await self._rows_exist(key)
        await self._write(partial(transactions.remove, key=key, owner=self._owner, at=time.time(), drives=self._lives))
        with self._lock:
            held = self._driven.pop(key, None)
        if held is not None:
            self._writer.end(held, LeaseLost(f"run {run_name(key)} was deleted"))

    def keep_lease(self, seconds: float) -> None:
        return

    async def prune(self, *, older_than: float) -> int:
        before, removed = time.time() - older_than, 0
        if (keys := await self._read(partial(transactions.prunable, before=before))) is None:
            return 0
        await self._write(partial(transactions.sweep, before=before, owners=_OWNERS_KEPT))
        for key in keys:
            try:
                await self.delete(key)
                removed += 1
            except (RunBusy, RunNotFound) as error:
                logger.warning("a run was not pruned", extra={"run": run_name(key), "error": str(error)})
        return removed

    async def close(self) -> None:
        if not self.database.running:
            return
        while (working := self._writer.flush()) is not None:
            await wait_for(working)
        if self._rest():
            await self._do(partial(_run, partial(transactions.leave, owner=self._owner)))
            await self.database.close()

    def after_fork(self, owner: Owner) -> None:
        """Begin anew in a forked child: what the parent drives is not the child's."""
        for held in self._driven.values():
            held.ended = LeaseLost("the claim belongs to the process that this one was forked from; claim the run here")
        self._lock, self._driven, self._claiming, self._beating = threading.Lock(), {}, set(), None
        self._writer = SqlWriter(self.database)
        self._owner, self._mark = _own()

    def finish(self, timeout: float) -> None:
        """Make durable what was appended, as the process ends, and be held to live no more."""
        if not self.database.running:
            return
        try:
            if (working := self._writer.flush()) is not None:
                working.result(timeout)
            if self._beating is not None:
                self._beating.cancel()
                self.database.do_now(partial(_run, partial(transactions.leave, owner=self._owner)), timeout=timeout)
        except (GeckoError, SQLAlchemyError, TimeoutError, RuntimeError) as error:
            logger.warning("a log could not be let go of", extra={"log": self.database.shown, "error": str(error)})

    async def _claim(self, key: RunKey, takeover: bool) -> SqlClaim:
        self._begin_to_claim(key, takeover)
        try:
            make = partial(
                transactions.claim,
                key=key,
                owner=self._owner,
                since=time.time(),
                lease=(self._lease, self._mark),
                takeover=takeover,
                drives=self._lives,
            )
            head, stored = await self._write(make)
            try:
                opened = SqlClaim(head, await asyncio.to_thread(self._decoded, head, stored, head.batches))
            except GeckoError:
                await self._write(partial(transactions.release, run=head.id, epoch=head.epoch))
                raise
            with self._lock:
                former, self._driven[key] = self._driven.get(key), opened
        finally:
            with self._lock:
                self._claiming.discard(key)
        if former is not None:
            self._writer.end(former, LeaseLost(f"run {run_name(key)} was claimed again in this process; stop"))
        return opened

    def _begin_to_claim(self, key: RunKey, takeover: bool) -> None:
        with self._lock:
            held = self._driven.get(key)
            if held is not None and held.driving and not takeover:
                raise transactions.busy(key, held.record.owner, held.record.since)
            if key in self._claiming:
                raise RunBusy(f"run {run_name(key)} is being claimed in this process now; wait for it")
            self._claiming.add(key)
            if self._beating is None or self._beating.done():
                self._beating = self.database.spawn(self._beat())

    def _abandon(self, claiming: "Future[SqlClaim]") -> None:
        """Release a claim that nobody waits for any more."""
        if not claiming.cancelled() and claiming.exception() is None:
            self.database.spawn(self._let_go(claiming.result()))

    async def _let_go(self, claim: SqlClaim) -> None:
        try:
            if claim.driving:
                await self._write(partial(transactions.release, run=claim.run, epoch=claim.epoch))
        except StoreUnavailable as error:
            logger.warning("the end of an ownership could not be written", extra={"run": claim.key, "error": str(error)})
        finally:
            self._writer.end(claim, LeaseLost("the claim was released; claim the run again to append to it"))
            with self._lock:
                if self._driven.get(claim.key) is claim:
                    del self._driven[claim.key]

    async def _beat(self) -> None:
        """Renew the lease for as long as runs are driven. A claim takes it too, so it is there from the claim on."""
        while True:
            await asyncio.sleep(self._lease / _BEATS)
            with self._lock:
                if not self._driven and not self._claiming:
                    self._beating = None
                    return
            try:
                await self._write(partial(transactions.beat, owner=self._owner, seconds=self._lease, mark=self._mark))
            except StoreUnavailable as error:  # until it can be, others may take this process for dead; the epoch keeps them apart
                logger.warning("a lease could not be renewed", extra={"log": self.database.shown, "error": str(error)})

    def _rest(self) -> bool:
        """Stop renewing the lease, unless runs are driven; say whether it stopped."""
        with self._lock:
            if self._claiming or any(held.driving for held in self._driven.values()):
                return False
            beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
        return True

    def _lives(self, head: Head) -> bool:
        """Whether the owner of an open run lives and drives it."""
        if head.owner.id != self._owner.id:
            return head.lives and not is_gone(head.owner.pid, head.mark)
        with self._lock:
            held = self._driven.get(head.key)
        return held is not None and held.driving

    async def _rows(self, key: RunKey, after: int) -> tuple[Head, list[Row]]:
        head, stored = self._there(key, await self._read(partial(transactions.read, key=key, after=after)))
        if head.tail.seq <= after:
            return head, []
        rows = await asyncio.to_thread(self._decoded, head, stored, len(stored) if after else head.batches)
        return head, [row for row in rows if row.seq > after]

    async def _rows_exist(self, key: RunKey) -> None:
        self._there(key, await self._read(partial(transactions.read, key=key, after=1 << 62)))

    def _there(self, key: RunKey, found: "tuple[Head, list[Stored]] | None") -> tuple[Head, list[Stored]]:
        if found is None:
            raise RunNotFound(f"run {run_name(key)} was not found in {self.database.shown}")
        return found

    def _decoded(self, head: Head, stored: Sequence[Stored], last: int | None = None) -> list[Row]:
        """Return the rows of batches: of the `last` so many up to the newest, or of some that were picked.

        Raises: CorruptCheckpoint, UnknownFormat.
        """
        if last is not None and [one.number for one in stored] != list(range(head.batches - last + 1, head.batches + 1)):
            place = f"{self.database.shown}, run {run_name(head.key)}"
            raise CorruptCheckpoint(f"batches are missing in {place}; restore the database from a copy", file=place, offset=0)
        rows: list[Row] = []
        for number, epoch, data in stored:
            place = f"{self.database.shown}, batch {number} of run {run_name(head.key)}"
            found = batch_rows(data, epoch, number, place)
            if found is None:
                raise CorruptCheckpoint(f"{place} is damaged; restore the database from a copy", file=place, offset=0)
            rows += found
        return rows

    async def _read(self, work: Callable[[Connection], T]) -> T | None:
        """Read in one transaction; None where there is no log yet, which a look does not make."""
        if self.database.path is not None and not self.database.path.exists():
            self._made = False
            return None
        return await self._do(partial(_run, self._look(work)), reading=True)

    def _look(self, work: Callable[[Connection], T]) -> Callable[[Connection], T | None]:
        def look(connection: Connection) -> T | None:
            self._made = self._made or tables.found(connection, self.database.shown)
            return work(connection) if self._made else None

        return look

    async def _write(self, work: Callable[[Connection], T]) -> T:
        """Change something in one transaction that may be repeated, for which the tables are made."""
        if not self._made or (self.database.path is not None and not self.database.path.exists()):
            await self._do(partial(_run, partial(tables.make, place=self.database.shown)), repeatable=True)
            self._made = True
        return await self._do(partial(_run, work), repeatable=True)

    async def _do(self, work: Callable[[Any], Any], **how: bool) -> Any:
        try:
            return await self.database.do(work, **how)
        except SQLAlchemyError as error:
            raise self._explained(error) from error

    def _explained(self, error: SQLAlchemyError) -> StoreUnavailable:
        self._made = False  # what is said may be that the tables are gone
        return StoreUnavailable(f"{self.database.shown} cannot be used: {first_line(error)}; see to the database, then try again")


async def _run(work: Callable[[Connection], T], connection: Any) -> T:
    return await connection.run_sync(work)


def _own() -> tuple[Owner, str]:
    """Return who a log is as an owner: two logs over one database in one process, by two spellings of its URL, are two."""
    return replace(process_owner(), id=secrets.token_hex(8)), mark_of(os.getpid())
