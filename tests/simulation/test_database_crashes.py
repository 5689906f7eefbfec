"""Every transaction of a log in a database is a place to die at: before it and after it. None is left out, none is sampled."""

import asyncio
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from engine.engine import Engine
from engine.errors import StoreUnavailable
from engine.runtime import ledger
from engine.store import tables, transactions
from engine.store.database import Database, read_address
from engine.store.sql import SqlLog
from tests.simulation.test_crash_points import make_small


class DyingDatabase(Database):
    """A database whose process dies at one of its writing transactions; nothing of it comes through afterwards."""

    def __init__(self, path: Path, *, at: int = 0, after: bool = False) -> None:
        super().__init__(read_address(f"sqlite:///{path}"))
        self.written = 0
        self.dead = False
        self.on_death = lambda: None
        self._at, self._after = at, after

    async def do(self, work: Any, *, reading: bool = False, repeatable: bool = False) -> Any:
        self.written += not reading
        dies = not reading and self.written == self._at and not self.dead
        if self.dead or (dies and not self._after):
            self.die()
            raise StoreUnavailable("this process has died")
        answer = await super().do(work, reading=reading, repeatable=repeatable)
        if dies:
            self.die()
            raise StoreUnavailable("this process has died")
        return answer

    def die(self) -> None:
        self.dead = True
        self.on_death()


def live(database: DyingDatabase, log: SqlLog) -> Any:
    """Drive the workflow in real time; what it ended with, or None where the process died."""
    loop = asyncio.new_event_loop()
    died: asyncio.Future[None] = loop.create_future()
    database.on_death = lambda: loop.call_soon_threadsafe(lambda: died.done() or died.set_result(None)) and None
    flow = make_small(Counter())

    async def drive() -> Any:
        handle = await Engine(log).start(flow, session_id="s")
        await handle.wait()
        return handle.output, handle.state, handle.history

    async def main() -> Any:
        driving = loop.create_task(drive())
        await asyncio.wait({driving, died}, return_when=asyncio.FIRST_COMPLETED)
        if driving.done() and driving.exception() is not None and not database.dead:
            raise AssertionError("it failed without having died") from driving.exception()
        return None if database.dead else await driving

    try:
        return loop.run_until_complete(main())
    finally:
        database.on_death = lambda: None
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=5.0))
        loop.close()


def bury(log: SqlLog, database: DyingDatabase) -> None:
    """Let go of a dead process: its lease is gone, as when it has run out."""
    if log._beating is not None:
        log._beating.cancel()
    Database.do_now(database, lambda connection: connection.run_sync(leave, log))
    database.close_now(10)


def leave(connection: Connection, log: SqlLog) -> None:
    if tables.found(connection, "a test"):
        transactions.leave(connection, log._owner)


def run(path: Path, *, at: int = 0, after: bool = False) -> tuple[Any, int]:
    database = DyingDatabase(path, at=at, after=after)
    log = SqlLog(database)
    end = live(database, log)
    bury(log, database)
    return end, database.written


@pytest.mark.slow
def test_a_process_that_dies_at_any_transaction_leaves_a_run_that_ends_as_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger, "PAUSES", ())  # a dead process does not try again
    calm, written = run(tmp_path / "calm.db")
    assert written > 5
    died = 0
    for at, after in itertools.product(range(1, written + 1), (False, True)):
        path = tmp_path / f"{at}-{after}.db"
        end, _ = run(path, at=at, after=after)
        died += end is None
        if end is None:
            end, _ = run(path)
        assert end == calm, f"died {'after' if after else 'before'} transaction {at}"
    assert died > written
