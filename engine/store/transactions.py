"""The transactions of a log in a database: who may write a run's next events, and what of them counts.

Each function runs in one transaction of its own and leaves to commit it to the caller. The protocol is what they check in it:

claim    look whether the run is driven, raise its epoch, read what was committed. Nothing has to be sealed: a batch is whole or
         is not there, and one of an older epoch can no longer come.
commit   only in the epoch that the run still has, and only behind the batch that its owner knows as the last.
read     one state of the database: a prefix of what will ever have been committed.

They open no connection, know no threads and decode nothing. A model checker runs the same functions in every order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, bindparam, delete, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from engine.checkpoint.batch import FINAL, RELEASING, Tail
from engine.checkpoint.log import busy, run_name
from engine.errors import RunNotFound
from engine.ports import Owner, RunKey
from engine.store.tables import BATCHES, OWNERS, RUNS, clock


class Head(NamedTuple):
    """What stands of a run beside its batches."""

    id: int
    key: RunKey
    epoch: int
    owner: Owner
    since: float
    released: bool
    deleted: float
    tail: Tail
    batches: int
    size: int
    lives: bool = False
    """Whether the owner's process said so lately."""
    mark: str = ""
    """What tells that process from others of its machine."""

    @property
    def open(self) -> bool:
        """Whether its owner, while it lives, drives it."""
        return bool(self.epoch) and not self.deleted and not self.released and self.tail.status not in RELEASING


class Stored(NamedTuple):
    """A batch as it lies in the database."""

    number: int
    epoch: int
    data: bytes


class Batch(NamedTuple):
    """A batch that is to be committed."""

    run: int
    epoch: int
    number: int
    first: int
    tail: Tail
    """The run after it."""
    data: bytes


Drives = Callable[[Head], bool]
"""Says whether the owner of an open run lives and drives it."""

ADVANCE = (
    update(RUNS)
    .where(RUNS.c.id == bindparam("run"), RUNS.c.epoch == bindparam("of"), RUNS.c.batches == bindparam("number") - 1)
    .values(
        batches=bindparam("number"),
        seq=bindparam("last"),
        status=bindparam("now"),
        started=bindparam("begun"),
        updated=bindparam("at"),
        size=RUNS.c.size + bindparam("more"),
    )
)
"""The commit's own check; where it changes nothing, nothing is committed."""

_HEAD = (
    RUNS.c.id, RUNS.c.workflow, RUNS.c.session, RUNS.c.n, RUNS.c.epoch, RUNS.c.owner, RUNS.c.host, RUNS.c.pid, RUNS.c.since,
    RUNS.c.released, RUNS.c.deleted, RUNS.c.status, RUNS.c.seq, RUNS.c.started, RUNS.c.updated, RUNS.c.batches, RUNS.c.size,
)  # fmt: skip


def claim(
    connection: Connection, key: RunKey, owner: Owner, *, since: float, lease: tuple[float, str], takeover: bool, drives: Drives
) -> tuple[Head, list[Stored]]:
    """Open the next epoch of a run, which is made where it is not there; `lease` is the owner's, as `beat` takes it.

    Raises: RunBusy with the owner.
    """
    head = _locked(connection, key)
    if head is None:
        new: dict[str, Any] = {"workflow": key.workflow, "session": key.session, "n": key.n, "epoch": 0, "released": False, "deleted": 0.0}
        new |= {"owner": "", "host": "", "pid": 0, "since": 0.0, "status": "pending", "seq": 0, "started": 0.0, "updated": 0.0}
        connection.execute(_insert(connection, RUNS).values(**new, batches=0, size=0).on_conflict_do_nothing())
        head = _locked(connection, key)
        assert head is not None
    if head.open and not takeover and drives(head):
        raise busy(head.key, head.owner, head.since)
    values: dict[str, Any] = {"epoch": head.epoch + 1, "owner": owner.id, "host": owner.host, "pid": owner.pid, "since": since}
    values |= {"released": False, "deleted": 0.0}
    connection.execute(update(RUNS).where(RUNS.c.id == head.id).values(**values))
    beat(connection, owner, *lease)
    claimed = head._replace(epoch=head.epoch + 1, owner=owner, since=since, released=False, deleted=0.0, lives=True, mark=lease[1])
    return claimed, _batches(connection, head.id)


def commit(connection: Connection, batches: Sequence[Batch]) -> list[Head | bool]:
    """Commit batches of different runs; for each whether it is in, or the run's head where its owner knew another last batch.

    False: the run has a newer epoch, or is gone.
    """
    answers: dict[int, Head | bool] = {}
    written: list[dict[str, Any]] = []
    for batch in sorted(batches):  # everybody takes the runs in one order, so that no two wait for each other
        tail = batch.tail
        told = {"run": batch.run, "of": batch.epoch, "number": batch.number, "last": tail.seq, "now": tail.status}
        told |= {"begun": tail.started, "at": tail.updated, "more": len(batch.data)}
        if connection.execute(ADVANCE, told).rowcount:
            answers[batch.run] = True
            written.append(
                {"run": batch.run, "number": batch.number, "epoch": batch.epoch, "first": batch.first, "last": tail.seq, "data": batch.data}
            )
            continue
        head = _head(connection, RUNS.c.id == batch.run)
        answers[batch.run] = head if head is not None and head.epoch == batch.epoch else False
    if written:
        connection.execute(insert(BATCHES), written)
    return [answers[batch.run] for batch in batches]


def release(connection: Connection, run: int, epoch: int) -> None:
    """End an ownership, unless another has begun."""
    connection.execute(update(RUNS).where(RUNS.c.id == run, RUNS.c.epoch == epoch).values(released=True))


def beat(connection: Connection, owner: Owner, seconds: float, mark: str) -> None:
    """Be held to live for so many seconds from now."""
    until = clock(connection) + literal(seconds)
    changed = connection.execute(update(OWNERS).where(OWNERS.c.id == owner.id).values(until=until))
    if not changed.rowcount:
        new = _insert(connection, OWNERS).values(id=owner.id, host=owner.host, pid=owner.pid, mark=mark, until=until)
        connection.execute(new.on_conflict_do_update(index_elements=[OWNERS.c.id], set_={"until": until}))


def leave(connection: Connection, owner: Owner) -> None:
    """Be held to live no more."""
    connection.execute(delete(OWNERS).where(OWNERS.c.id == owner.id))


def read(connection: Connection, key: RunKey, after: int) -> tuple[Head, list[Stored]] | None:
    """Return a run with the batches that hold rows behind `after`; None where it is not there."""
    head = _head(connection, *_is(key))
    if head is None or head.deleted or not head.epoch:
        return None
    return head, [] if head.tail.seq <= after else _batches(connection, head.id, BATCHES.c.last > after)


def pick(connection: Connection, key: RunKey, seqs: Sequence[int]) -> tuple[Head, list[Stored]] | None:
    """Return a run with the batches that hold some rows; None where it is not there."""
    head = _head(connection, *_is(key))
    if head is None or head.deleted:
        return None
    wanted = sorted(seqs)
    spans = connection.execute(
        select(BATCHES.c.number, BATCHES.c.first, BATCHES.c.last).where(
            BATCHES.c.run == head.id, BATCHES.c.last >= wanted[0], BATCHES.c.first <= wanted[-1]
        )
    ).all()
    numbers = [span.number for span in spans if any(span.first <= seq <= span.last for seq in wanted)]
    found: list[Stored] = []
    for at in range(0, len(numbers), 500):
        found += _batches(connection, head.id, BATCHES.c.number.in_(numbers[at : at + 500]))
    return head, found


def heads(connection: Connection, workflow: str | None, session: str | None) -> list[Head]:
    """Return what stands of all runs, with their owners, in one query."""
    query = select(*_HEAD, OWNERS.c.mark, (OWNERS.c.until > clock(connection)).label("lives"))
    query = query.select_from(RUNS.outerjoin(OWNERS, OWNERS.c.id == RUNS.c.owner)).where(RUNS.c.deleted == 0, RUNS.c.epoch > 0)
    if workflow is not None:
        query = query.where(RUNS.c.workflow == workflow)
    if session is not None:
        query = query.where(RUNS.c.session == session)
    return [_told(found) for found in connection.execute(query)]


def remove(connection: Connection, key: RunKey, owner: Owner, *, at: float, drives: Drives) -> None:
    """Remove what a run holds, in an epoch of its own; what stays is a tombstone.

    Raises: RunBusy, RunNotFound.
    """
    head = _locked(connection, key)
    if head is not None and head.deleted == at and head.owner == owner:
        return  # done before, by a transaction whose answer was lost
    if head is None or head.deleted or not head.epoch:
        raise RunNotFound(f"run {run_name(key)} was not found")
    if head.open and drives(head):
        raise busy(head.key, head.owner, head.since)
    connection.execute(delete(BATCHES).where(BATCHES.c.run == head.id))
    gone: dict[str, Any] = {"epoch": head.epoch + 1, "owner": owner.id, "host": owner.host, "pid": owner.pid, "since": at, "deleted": at}
    gone |= {"released": True, "status": "pending", "seq": 0, "started": 0.0, "updated": 0.0, "batches": 0, "size": 0}
    connection.execute(update(RUNS).where(RUNS.c.id == head.id).values(**gone))


def prunable(connection: Connection, before: float) -> list[RunKey]:
    """Return the finished runs that were not touched since."""
    query = select(RUNS.c.workflow, RUNS.c.session, RUNS.c.n).where(
        RUNS.c.deleted == 0, RUNS.c.status.in_(sorted(FINAL)), RUNS.c.updated <= before
    )
    return [RunKey(*found) for found in connection.execute(query)]


def sweep(connection: Connection, before: float, *, owners: float) -> None:
    """Remove tombstones of that age, and owners that were last held to live so many seconds ago."""
    connection.execute(delete(RUNS).where(RUNS.c.deleted > 0, RUNS.c.deleted <= before))
    connection.execute(delete(OWNERS).where(OWNERS.c.until < clock(connection) - literal(owners)))


def _insert(connection: Connection, table: Table) -> Any:
    """An insert that can say what is to become of a row that is there."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _is(key: RunKey) -> Any:
    return RUNS.c.workflow == key.workflow, RUNS.c.session == key.session, RUNS.c.n == key.n


def _locked(connection: Connection, key: RunKey) -> Head | None:
    """Read a run, and keep others from changing it until this transaction ends; SQLite has one writer at a time anyway."""
    if connection.execute(select(RUNS.c.id).where(*_is(key)).with_for_update()).first() is None:
        return None
    return _head(connection, *_is(key))


def _head(connection: Connection, *where: Any) -> Head | None:
    query = select(*_HEAD, OWNERS.c.mark, (OWNERS.c.until > clock(connection)).label("lives"))
    found = connection.execute(query.select_from(RUNS.outerjoin(OWNERS, OWNERS.c.id == RUNS.c.owner)).where(*where)).first()
    return None if found is None else _told(found)


def _told(found: Any) -> Head:
    return Head(
        id=found.id,
        key=RunKey(found.workflow, found.session, found.n),
        epoch=found.epoch,
        owner=Owner(id=found.owner, host=found.host, pid=found.pid),
        since=found.since,
        released=bool(found.released),
        deleted=found.deleted,
        tail=Tail(found.status, found.seq, found.started, found.updated),
        batches=found.batches,
        size=found.size,
        lives=bool(found.lives),
        mark=found.mark or "",
    )


def _batches(connection: Connection, run: int, *where: Any) -> list[Stored]:
    query = select(BATCHES.c.number, BATCHES.c.epoch, BATCHES.c.data).where(BATCHES.c.run == run, *where).order_by(BATCHES.c.number)
    return [Stored(*found) for found in connection.execute(query)]
