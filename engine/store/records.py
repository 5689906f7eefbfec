"""The records in a SQL database, SQLite or PostgreSQL: the one implementation of the `Records` port.

Each call is one transaction. The format is looked at before the first, and brought up to date where it is older. Records have a
connection of their own: what they do never holds up a log that lies in the same database, but for SQLite's one writer at a time.
"""

import os
import weakref
from collections.abc import AsyncIterable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.core.registry import unknown
from engine.errors import DefinitionError, StoreUnavailable, UnknownName, VersionInUse
from engine.records import (
    DeadLetter,
    KeyEntry,
    LetterQuery,
    Page,
    Query,
    RunEntry,
    RunQuery,
    Statistics,
    WorkflowEntry,
    WorkflowQuery,
    check_count,
    check_letter_status,
)
from engine.store.database import Database, Work
from engine.store.records_format import is_current, migrate
from engine.store.records_index import begin_generation, drop_runs, insert_into, put_letters, put_runs, replace_index
from engine.store.records_queries import letter_conditions, next_of, order_of, page_of, run_conditions, workflow_conditions
from engine.store.records_tables import (
    entry_of,
    json_value,
    key_row,
    keys,
    letter_of,
    letters,
    runs,
    searched_workflow,
    workflow_row,
    workflows,
)

T = TypeVar("T")


class SqlRecords:
    """The index and the catalogue in a database."""

    def __init__(self, database: Database, *, folder: Path | None = None) -> None:
        """Open nothing yet.

        Args:
            folder: One that is kept out of version control when it is made.
        """
        self.url = database.shown
        self._database = database
        self._folder = folder
        self._ready = False
        _OPENED.add(self)

    # The index of runs.

    async def put_runs(self, entries: Sequence[RunEntry]) -> None:
        if entries:
            await self._do(lambda connection: put_runs(connection, entries))

    async def get_run(self, run_id: str) -> RunEntry | None:
        return await self._one(runs, lambda row: entry_of(RunEntry, row), runs.c.run_id == run_id)

    async def list_runs(self, query: RunQuery) -> Page[RunEntry]:
        return await self._page(runs, run_conditions(query), query, lambda row: entry_of(RunEntry, row))

    async def count_runs(self, query: RunQuery, by: str = "status") -> Mapping[str, int]:
        column = runs.c[check_count(by)]
        statement = sa.select(column, sa.func.count()).where(*run_conditions(query)).group_by(column).order_by(column)

        async def work(connection: AsyncConnection) -> dict[str, int]:
            return {row[0]: row[1] for row in (await connection.execute(statement)).all()}

        return await self._do(work, reading=True)

    async def drop_runs(self, run_ids: Collection[str]) -> int:
        return await self._do(lambda connection: drop_runs(connection, run_ids))

    async def replace_index(self, source: AsyncIterable[tuple[RunEntry, Sequence[DeadLetter]]]) -> None:
        generation = await self._do(begin_generation)
        entries: list[RunEntry] = []
        found: list[DeadLetter] = []
        async for entry, letters_of_run in source:
            entries.append(entry)
            found += letters_of_run
        await self._do(lambda connection: replace_index(connection, generation, entries, found))

    # Dead letters.

    async def put_letters(self, letters: Sequence[DeadLetter]) -> None:
        if letters:
            await self._do(lambda connection: put_letters(connection, letters))

    async def get_letter(self, id: str) -> DeadLetter | None:
        return await self._one(letters, letter_of, letters.c.id == id)

    async def list_letters(self, query: LetterQuery) -> Page[DeadLetter]:
        return await self._page(letters, letter_conditions(query), query, letter_of)

    async def mark_letter(self, id: str, status: str, *, replay_run_id: str | None = None) -> DeadLetter:
        cells = {"status": check_letter_status(status), "replay_run_id": replay_run_id}
        statement = letters.update().where(letters.c.id == id).values(cells).returning(letters)

        async def work(connection: AsyncConnection) -> DeadLetter:
            row = (await connection.execute(statement)).mappings().first()
            if row is None:
                raise UnknownName(f"dead letter {id!r:.80} not found; list them to see which there are", where="id")
            return letter_of(row)

        return await self._do(work)

    # The catalogue of workflows.

    async def put_workflow(self, entry: WorkflowEntry) -> WorkflowEntry:
        row = workflow_row(entry)
        identity = ("tenant", "name", "version")

        async def work(connection: AsyncConnection) -> WorkflowEntry:
            insert = insert_into(connection, workflows)
            cells = {name: insert.excluded[name] for name in row if name not in (*identity, "created_at")}
            upsert = insert.on_conflict_do_update(
                index_elements=list(identity), set_=cells, where=workflows.c.hash == insert.excluded.hash
            ).returning(workflows)
            kept = (await connection.execute(upsert, row)).mappings().first()
            if kept is None:
                text = f"workflow {entry.name!r} has a version {entry.version!r} with another definition; give this one another version"
                raise VersionInUse(text, where=entry.version)
            return entry_of(WorkflowEntry, kept)

        return await self._do(work)

    async def get_workflow(self, name: str, version: str | None = None, *, tenant: str = "") -> WorkflowEntry | None:
        fits = [workflows.c.tenant == tenant, workflows.c.name == name]
        fits.append(workflows.c.is_active == sa.true() if version is None else workflows.c.version == version)
        newest = (workflows.c.created_at.desc(), workflows.c.version.desc())
        return await self._one(workflows, lambda row: entry_of(WorkflowEntry, row), *fits, order=newest)

    async def list_workflows(self, query: WorkflowQuery) -> Page[WorkflowEntry]:
        return await self._page(workflows, workflow_conditions(query), query, lambda row: entry_of(WorkflowEntry, row))

    async def update_workflow(
        self, name: str, version: str, *, at: float, tenant: str = "",
        description: str | None = None, is_active: bool | None = None, metadata: Mapping[str, Any] | None = None,
    ) -> WorkflowEntry:  # fmt: skip
        changed: dict[str, Any] = {"is_active": is_active, "description": description}
        changed["metadata"] = None if metadata is None else json_value(metadata, "metadata")
        changed["searched"] = None if description is None else searched_workflow(name, description)
        cells = {cell: value for cell, value in changed.items() if value is not None}
        this = (workflows.c.tenant == tenant, workflows.c.name == name, workflows.c.version == version)
        statement = workflows.update().where(*this).values(cells | {"updated_at": at}).returning(workflows)
        known = sa.select(workflows.c.name, workflows.c.version).where(workflows.c.tenant == tenant).limit(2000)

        async def work(connection: AsyncConnection) -> WorkflowEntry:
            row = (await connection.execute(statement)).mappings().first()
            if row is not None:
                return entry_of(WorkflowEntry, row)
            versions = [(found.name, found.version) for found in (await connection.execute(known)).all()]
            own = [there for found, there in versions if found == name]
            text = unknown(f"version of workflow {name!r}", version, own) if own else unknown("workflow", name, [n for n, _ in versions])
            raise UnknownName(text, where="name")

        return await self._do(work)

    async def drop_workflow(self, name: str, version: str | None = None, *, tenant: str = "") -> int:
        fits = [workflows.c.tenant == tenant, workflows.c.name == name]
        fits += [] if version is None else [workflows.c.version == version]
        return await self._count(workflows.delete().where(*fits))

    # API keys.

    async def put_key(self, entry: KeyEntry) -> None:
        async def work(connection: AsyncConnection) -> None:
            insert = insert_into(connection, keys).on_conflict_do_nothing().returning(keys.c.id)
            if (await connection.execute(insert, key_row(entry))).first() is not None:
                return
            there = sa.select(keys).where(sa.or_(keys.c.id == entry.id, keys.c.hash == entry.hash))
            found = [entry_of(KeyEntry, row) for row in (await connection.execute(there)).mappings()]
            if found != [entry]:  # which it is where a commit was repeated
                raise DefinitionError(f"API key {entry.id!r}, or one with its hash, is there already: make another", where="id")

        await self._do(work)

    async def find_key(self, hash: str) -> KeyEntry | None:
        return await self._one(keys, lambda row: entry_of(KeyEntry, row), keys.c.hash == hash)

    async def list_keys(self, *, tenant: str | None = None) -> Sequence[KeyEntry]:
        fits = [] if tenant is None else [keys.c.tenant == tenant]
        statement = sa.select(keys).where(*fits).order_by(keys.c.created_at, keys.c.id)

        async def work(connection: AsyncConnection) -> list[KeyEntry]:
            return [entry_of(KeyEntry, row) for row in (await connection.execute(statement)).mappings()]

        return await self._do(work, reading=True)

    async def use_key(self, id: str, at: float) -> None:
        is_later = sa.or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < at)
        await self._count(keys.update().where(keys.c.id == id, is_later).values(last_used_at=at))

    async def revoke_key(self, id: str, at: float) -> KeyEntry:
        moment = sa.func.coalesce(keys.c.revoked_at, sa.literal(at, sa.Double))
        statement = keys.update().where(keys.c.id == id).values(revoked_at=moment).returning(keys)

        async def work(connection: AsyncConnection) -> KeyEntry:
            row = (await connection.execute(statement)).mappings().first()
            if row is None:
                known = (await connection.execute(sa.select(keys.c.id).limit(2000))).scalars().all()
                raise UnknownName(unknown("API key", id, known), where="id")
            return entry_of(KeyEntry, row)

        return await self._do(work)

    # All of it.

    async def statistics(self, *, since: float = 0.0, tenant: str | None = None) -> Statistics:
        def of(table: sa.Table, *columns: Any) -> Any:
            return sa.select(*columns).select_from(table).where(*([] if tenant is None else [table.c.tenant == tenant]))

        count = sa.func.count()
        ended = of(runs, count).where(runs.c.status.in_(["failed", "timed_out"]), runs.c.finished_at >= since)
        took = of(runs, sa.func.avg(runs.c.finished_at - runs.c.started_at))
        took = took.where(runs.c.status == "completed", runs.c.finished_at >= since)

        async def work(connection: AsyncConnection) -> Statistics:
            async def by(table: sa.Table, column: sa.ColumnElement[Any]) -> dict[Any, int]:
                rows: Any = await connection.execute(of(table, column, count).group_by(column).order_by(column))
                return {row[0]: row[1] for row in rows}

            versions = await by(workflows, workflows.c.is_active)
            return Statistics(
                runs=await by(runs, runs.c.status),
                failed=await connection.scalar(ended) or 0,
                seconds=await connection.scalar(took),
                workflows=sum(versions.values()),
                active_workflows=versions.get(True, 0),
                keys=await connection.scalar(of(keys, count)) or 0,
                letters=await by(letters, letters.c.status),
            )

        return await self._do(work, reading=True)

    async def close(self) -> None:
        if self._database.path is not None or self._database.kind != "sqlite":  # what is in memory alone would be gone
            self._ready = False  # who opens it next may find another file there
            await self._database.close()

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._database.after_fork()
        self._ready = False

    # How work is done.

    async def _do(self, work: Work[T], *, reading: bool = False) -> T:
        """Do work in one transaction; all of it may be repeated: what is put twice is put once."""
        try:
            if not self._ready:
                await self._open()
            return await self._database.do(work, reading=reading, repeatable=True)
        except SQLAlchemyError as error:
            said = str(error.orig if isinstance(error, DBAPIError) else error)
            raise StoreUnavailable(f"the records in {self.url} cannot be used: {said:.300}; gecko doctor looks at them") from error

    async def _open(self) -> None:
        place = self.url
        if self._folder is not None and not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / ".gitignore").write_text("*\n")

        async def look(connection: AsyncConnection) -> bool:
            return await connection.run_sync(is_current, place)

        async def bring_up_to_date(connection: AsyncConnection) -> None:
            await connection.run_sync(migrate, place)

        if not await self._database.do(look, reading=True, repeatable=True):
            await self._database.do(bring_up_to_date, repeatable=True)
        self._ready = True

    async def _one(self, table: sa.Table, make: Callable[[Any], T], *fits: sa.ColumnElement[bool], order: Sequence[Any] = ()) -> T | None:
        statement = sa.select(table).where(*fits).order_by(*order).limit(1)

        async def work(connection: AsyncConnection) -> T | None:
            row = (await connection.execute(statement)).mappings().first()
            return None if row is None else make(row)

        return await self._do(work, reading=True)

    async def _page(self, table: sa.Table, conditions: Sequence[sa.ColumnElement[bool]], query: Query, make: Callable[[Any], T]) -> Page[T]:
        counting = sa.select(sa.func.count()).select_from(table).where(*conditions)
        page = page_of(table, conditions, query)

        async def work(connection: AsyncConnection) -> Page[T]:
            rows = (await connection.execute(page)).mappings().all()
            total = await connection.scalar(counting) or 0
            here = rows[: query.limit]
            more = next_of(order_of(table, query), here[-1]) if len(rows) > query.limit else None
            return Page([make(row) for row in here], total, query.offset, query.limit, more)

        return await self._do(work, reading=True)

    async def _count(self, statement: Any) -> int:
        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(statement)).rowcount

        return await self._do(work)


_OPENED: "weakref.WeakSet[SqlRecords]" = weakref.WeakSet()


def _after_fork() -> None:
    for records in list(_OPENED):
        records.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
