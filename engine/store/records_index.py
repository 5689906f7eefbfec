"""What changes the index: runs, their labels and their dead letters, as work in the transaction of whoever calls.

Statements lock rows in the order of their ids, so that two writers wait for each other instead of blocking each other.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.records import DeadLetter, RunEntry
from engine.store.records_tables import clean, labels, letter_row, letters, meta, run_row, runs

T = TypeVar("T")

_PART = 500
"""Rows, or ids, of one statement."""
_GENERATION = sa.select(meta.c.value).where(meta.c.name == "generation").scalar_subquery()


def insert_into(connection: AsyncConnection, table: sa.Table) -> Any:
    """Return an INSERT of the connection's dialect."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


async def put_runs(connection: AsyncConnection, entries: Iterable[RunEntry]) -> None:
    """Put runs in, but for those that are there as something newer."""
    newest: dict[str, RunEntry] = {}
    for entry in entries:
        there = newest.get(entry.run_id)
        if there is None or (entry.started_at, entry.seq) >= (there.started_at, there.seq):
            newest[entry.run_id] = entry
    insert = insert_into(connection, runs).values(generation=_GENERATION)
    new = insert.excluded
    is_newer = sa.or_(new.started_at > runs.c.started_at, sa.and_(new.started_at == runs.c.started_at, new.seq >= runs.c.seq))
    upsert = insert.on_conflict_do_update(index_elements=["run_id"], set_=_all_of(runs, new), where=is_newer).returning(runs.c.run_id)
    for part in _parts(sorted(newest.values(), key=lambda entry: clean(entry.run_id))):
        written = (await connection.execute(upsert, [run_row(entry) for entry in part])).scalars().all()
        await _put_labels(connection, written, {clean(entry.run_id): entry for entry in part})


async def _put_labels(connection: AsyncConnection, written: Sequence[str], entries: Mapping[str, RunEntry]) -> None:
    if not written:
        return
    await connection.execute(labels.delete().where(labels.c.run_id.in_(written)))
    told = {(run_id, clean(name)): text for run_id in written for name, text in entries[run_id].labels.items()}
    if told:
        rows = [{"run_id": run_id, "name": name, "value": text} for (run_id, name), text in told.items()]
        await connection.execute(labels.insert(), rows)


async def put_letters(connection: AsyncConnection, found: Iterable[DeadLetter]) -> None:
    """Put dead letters in, but for those that are there as something newer; what is no news keeps its mark."""
    newest: dict[str, DeadLetter] = {}
    for letter in found:
        there = newest.get(letter.id)
        if there is None or (letter.created_at, letter.status != "open") >= (there.created_at, there.status != "open"):
            newest[letter.id] = letter
    insert = insert_into(connection, letters).values(generation=_GENERATION)
    new = insert.excluded
    is_same = new.created_at == letters.c.created_at
    is_no_news = sa.and_(is_same, new.status == "open")
    cells = _all_of(letters, new)
    for name in ("status", "replay_run_id"):
        cells[name] = sa.case((is_no_news, letters.c[name]), else_=new[name])
    cells["input"] = sa.case((is_same, sa.func.coalesce(new.input, letters.c.input)), else_=new.input)
    upsert = insert.on_conflict_do_update(index_elements=["id"], set_=cells, where=new.created_at >= letters.c.created_at)
    for part in _parts(sorted(newest.values(), key=lambda letter: letter.id)):
        await connection.execute(upsert, [letter_row(letter) for letter in part])


async def drop_runs(connection: AsyncConnection, run_ids: Collection[str]) -> int:
    """Take runs out, with all that belongs to them."""
    dropped = 0
    for part in _parts(sorted(set(run_ids))):
        for table in (labels, letters):
            await connection.execute(table.delete().where(table.c.run_id.in_(part)))
        dropped += (await connection.execute(runs.delete().where(runs.c.run_id.in_(part)))).rowcount
    return dropped


async def begin_generation(connection: AsyncConnection) -> int:
    """Begin to make the index again: whatever is put in from now on is told apart from what is there."""
    updated = meta.update().where(meta.c.name == "generation").values(value=meta.c.value + 1).returning(meta.c.value)
    return (await connection.execute(updated)).scalar_one()


async def replace_index(connection: AsyncConnection, generation: int, entries: Sequence[RunEntry], found: Sequence[DeadLetter]) -> None:
    """Put what was read in the place of what was there before a generation began."""
    old_runs, old_letters = runs.c.generation < generation, letters.c.generation < generation
    marked = sa.select(letters.c.id, letters.c.created_at, letters.c.status, letters.c.replay_run_id)
    rows = (await connection.execute(marked.where(old_letters, letters.c.status != "open"))).all()
    marks = {(row.id, row.created_at): (row.status, row.replay_run_id) for row in rows}
    await connection.execute(labels.delete().where(labels.c.run_id.in_(sa.select(runs.c.run_id).where(old_runs))))
    await connection.execute(runs.delete().where(old_runs))
    await connection.execute(letters.delete().where(old_letters))
    await put_runs(connection, entries)
    await put_letters(connection, [_with_mark(letter, marks.get((letter.id, letter.created_at))) for letter in found])


def _with_mark(letter: DeadLetter, mark: tuple[str, str | None] | None) -> DeadLetter:
    return letter if mark is None or letter.status != "open" else replace(letter, status=mark[0], replay_run_id=mark[1])


def _all_of(table: sa.Table, new: Any) -> dict[str, Any]:
    return {column.name: new[column.name] for column in table.columns if not column.primary_key}


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, _PART)):
        yield part
