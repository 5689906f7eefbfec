"""SQLite for an async engine, in the thread of its event loop.

The usual driver has a thread for each connection and goes there and back three times a statement, which takes four times as long as
a commit itself. Our engine's loop has a thread of its own (database.py), which nobody minds to be held up for a statement. What would
take long is to wait for another writer: so nothing waits inside SQLite, and the database tries again.
"""

import sqlite3
from typing import Any

from sqlalchemy import URL
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool
from sqlalchemy.util import await_only


class InlineCursor(sqlite3.Cursor):
    """A cursor as async engines close it."""

    async def _async_soft_close(self) -> None:
        return


class InlineConnection(sqlite3.Connection):
    """A connection with such cursors."""

    def cursor(self, factory: Any = InlineCursor) -> Any:
        """Return a cursor."""
        return super().cursor(factory)


class InlineSqlite(SQLiteDialect_pysqlite):
    """The dialect of Python's own driver, told to be async; the engine asks to see that something was awaited in each statement."""

    driver = "inline"
    is_async = True
    supports_statement_cache = True

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        """Return a pool whose waiting holds up no loop."""
        return AsyncAdaptedQueuePool

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """Perform a statement."""
        await_only(_nothing())
        super().do_execute(cursor, statement, parameters, context)

    def do_executemany(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """Perform a statement for each of some parameters."""
        await_only(_nothing())
        super().do_executemany(cursor, statement, parameters, context)

    def do_execute_no_params(self, cursor: Any, statement: Any, context: Any = None) -> None:
        """Perform a statement that takes none."""
        await_only(_nothing())
        super().do_execute_no_params(cursor, statement, context)


async def _nothing() -> None:
    return
