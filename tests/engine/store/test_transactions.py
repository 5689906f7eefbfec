"""The transactions of a log in a database, in every order, by processes that stop anywhere: the very functions, over a real SQLite.

The search walks all orders of whole transactions of two owners that take a run over, one that waits for its turn, and a reader. Between
any two of them a process may stop for ever, and the answer of a commit may be lost, so that its owner repeats it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import Connection, StaticPool, bindparam, create_engine, event, select, update
from sqlalchemy.exc import IntegrityError

from engine.checkpoint.batch import Tail
from engine.errors import RunBusy
from engine.ports import Owner, RunKey
from engine.store import tables, transactions
from engine.store.tables import BATCHES, RUNS
from engine.store.transactions import Batch, Head

KEY = RunKey("w", "s", 1)


class Broken(AssertionError):
    """A promise was not kept."""


@dataclass(frozen=True)
class Driver:
    """A process that claims the run, commits some batches and releases it."""

    name: str
    takeover: bool
    left: int
    """How many batches it has still to commit."""
    head: tuple[int, int, int, int] | None = None
    """Run, epoch, last batch and last row as it knows them; None: it owns nothing yet."""
    read: tuple[bytes, ...] = ()
    """What was committed before its claim."""
    acknowledged: tuple[bytes, ...] = ()
    lost_answers: int = 1
    """How many of its commits may still be left unanswered."""
    over: bool = False

    def steps(self, connection: Connection) -> Iterator["Driver"]:
        """Perform the next transaction; yield what the process knows then, in one form for each answer that it may get."""
        if self.head is None:
            yield self._claim(connection)
        elif self.left:
            yield from self._commit(connection, *self.head)
        else:
            transactions.release(connection, *self.head[:2])
            yield replace(self, over=True)

    def _claim(self, connection: Connection) -> "Driver":
        me = Owner(id=self.name, host="h", pid=1)
        try:
            head, stored = transactions.claim(
                connection, KEY, me, since=1.0, lease=(60.0, ""), takeover=self.takeover, drives=lambda head: head.lives
            )
        except RunBusy:
            return self
        return replace(self, head=(head.id, head.epoch, head.batches, head.tail.seq), read=tuple(one.data for one in stored))

    def _commit(self, connection: Connection, run: int, epoch: int, last: int, seq: int) -> Iterator["Driver"]:
        data = f"{self.name} {self.left}".encode()
        tail = Tail("running", seq + 1, 1.0, 1.0)
        (answer,) = transactions.commit(connection, [Batch(run, epoch, last + 1, seq + 1, tail, data)])
        if isinstance(answer, Head) and answer.tail.seq > seq:  # it was in, and nobody had said so
            yield replace(
                self, left=self.left - 1, head=(run, epoch, answer.batches, answer.tail.seq), acknowledged=(*self.acknowledged, data)
            )
        elif answer is True:
            yield replace(self, left=self.left - 1, head=(run, epoch, last + 1, seq + 1), acknowledged=(*self.acknowledged, data))
            if self.lost_answers:
                yield replace(self, lost_answers=self.lost_answers - 1)
        else:
            yield replace(self, over=True)


@dataclass(frozen=True)
class Reader:
    """A process that reads the run now and then."""

    left: int
    seen: tuple[bytes, ...] = ()
    over: bool = False

    def steps(self, connection: Connection) -> Iterator["Reader"]:
        """Read, and compare with what was read before."""
        found = transactions.read(connection, KEY, 0)
        now = () if found is None else tuple(one.data for one in found[1])
        if now[: len(self.seen)] != self.seen:
            raise Broken(f"a reader saw {self.seen} and then {now}")
        yield Reader(self.left - 1, now, over=self.left == 1)


Process = Driver | Reader


@dataclass
class Search:
    """Every state that the processes can bring about."""

    connection: Connection
    seen: set[Any] = field(default_factory=set)
    finished: int = 0

    def go(self, processes: tuple[Process, ...], depth: int = 0) -> None:
        """Go on from a state in every way; each state is looked at once."""
        stored = self._check(processes)
        state = (processes, stored)
        if state in self.seen:
            return
        self.seen.add(state)
        self.finished += all(process.over for process in processes)
        for i, process in enumerate(processes):
            if process.over:
                continue
            self.connection.exec_driver_sql(f"SAVEPOINT s{depth}")
            for after in process.steps(self.connection):
                self.go((*processes[:i], after, *processes[i + 1 :]), depth + 1)
            self.connection.exec_driver_sql(f"ROLLBACK TO s{depth}")
            self.connection.exec_driver_sql(f"RELEASE s{depth}")

    def _check(self, processes: tuple[Process, ...]) -> tuple[Any, ...]:
        rows = self.connection.execute(select(BATCHES.c.number, BATCHES.c.epoch, BATCHES.c.data).order_by(BATCHES.c.number)).all()
        committed = [row.data for row in rows]
        if [row.number for row in rows] != list(range(1, len(rows) + 1)):
            raise Broken("batches do not follow on each other")
        if len(set(committed)) != len(committed):
            raise Broken("a batch was committed twice")
        if [row.epoch for row in rows] != sorted(row.epoch for row in rows):
            raise Broken("an old epoch's batch came after a newer one's")
        if len({(row.epoch, row.data.split()[0]) for row in rows}) != len({row.epoch for row in rows}):
            raise Broken("two owners committed in one epoch")
        for process in processes:
            if isinstance(process, Driver) and process.head is not None:
                _check_driver(process, process.head[1], [(row.epoch, row.data) for row in rows])
        runs = self.connection.execute(select(RUNS.c.epoch, RUNS.c.owner, RUNS.c.released, RUNS.c.batches, RUNS.c.seq)).all()
        return tuple(map(tuple, rows)), tuple(map(tuple, runs))


def _check_driver(driver: Driver, epoch: int, rows: list[tuple[int, bytes]]) -> None:
    if [data for of, data in rows if of < epoch] != list(driver.read):
        raise Broken(f"{driver.name} claimed, and what was committed before changed behind it")
    own = [data for of, data in rows if of == epoch]
    if own[: len(driver.acknowledged)] != list(driver.acknowledged):
        raise Broken(f"what was acknowledged to {driver.name} is lost")


@pytest.fixture
def connection() -> Iterator[Connection]:
    """Give a database in memory in one transaction that is never committed, so that every state can be gone back to."""
    engine = create_engine("sqlite://", poolclass=StaticPool)

    @event.listens_for(engine, "connect")
    def _(raw: Any, _: Any) -> None:
        raw.isolation_level = None

    with engine.connect() as made:
        tables.make(made, "a test")
        yield made
    engine.dispose()


def processes() -> tuple[Process, ...]:
    """A writer, one who takes the run over, one who waits until it may, and a reader."""
    return Driver("writer", False, 2), Driver("taker", True, 2), Driver("waiter", False, 1, lost_answers=0), Reader(2)


@pytest.mark.slow
def test_in_every_order_of_transactions_one_owner_commits_and_nothing_acknowledged_is_lost(connection: Connection) -> None:
    search = Search(connection)
    search.go(processes())
    assert search.finished > 10
    assert len(search.seen) > 2000


WITHOUT_EPOCH = (RUNS.c.id == bindparam("run"), RUNS.c.batches == bindparam("number") - 1)
WITHOUT_PLACE = (RUNS.c.id == bindparam("run"), RUNS.c.epoch == bindparam("of"))


def without_epoch_in_claim(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a claim that goes on in the epoch that is there."""

    def claim(connection: Connection, *args: Any, **options: Any) -> Any:
        head, stored = real(connection, *args, **options)
        connection.execute(update(RUNS).values(epoch=RUNS.c.epoch - (0 if head.epoch == 1 else 1)))
        return head._replace(epoch=max(head.epoch - 1, 1)), stored

    return claim


@pytest.mark.slow
@pytest.mark.parametrize("where", [WITHOUT_EPOCH, WITHOUT_PLACE], ids=["epoch", "place"])
def test_a_commit_without_one_of_its_checks_is_found(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, ...]
) -> None:
    names = {"batches": "number", "seq": "last", "status": "now", "started": "begun", "updated": "at"}
    mutant = update(RUNS).where(*where).values({column: bindparam(name) for column, name in names.items()})
    monkeypatch.setattr(transactions, "ADVANCE", mutant.values(size=RUNS.c.size + bindparam("more")))
    with pytest.raises((Broken, IntegrityError)):
        Search(connection).go(processes())


@pytest.mark.slow
def test_a_claim_that_opens_no_epoch_is_found(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "claim", without_epoch_in_claim(transactions.claim))
    with pytest.raises((Broken, IntegrityError)):
        Search(connection).go(processes())
