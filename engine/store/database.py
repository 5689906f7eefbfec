"""A SQL database by URL, opened once in a process: one engine of SQLAlchemy, on one thread with an event loop of its own.

An async engine belongs to one loop, and callers have many, or none. So work is handed over: `do` from any loop, `do_now` from any
thread. Each piece of work is one transaction, which is done whole or not at all, whoever stops waiting for it. What passes is tried
again here; what does not is said as StoreUnavailable. Which tables there are is for those who hand over the work.
"""

import asyncio
import importlib.util
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from sqlalchemy import URL, AsyncAdaptedQueuePool, event
from sqlalchemy.dialects import registry
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from engine.core.places import shown
from engine.errors import ConfigurationError, StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

#: Seconds for which work is tried again where the database is away, and where others are in its way.
_PATIENCE, _BUSY = 5.0, 10.0
#: Seconds between two tries, at first, and at most where the database is away or busy.
_FIRST_DELAY, _MOST_DELAY, _MOST_BUSY_DELAY = 0.002, 0.5, 0.02
#: Seconds for connecting, for one statement, and for the end of what is under way when a database is closed.
_CONNECT, _STATEMENT, _CLOSE = 10, 60.0, 10.0

_SQLITE, _POSTGRES = ("sqlite", "sqlite+aiosqlite"), ("postgresql", "postgres", "postgresql+asyncpg")
#: Codes of SQLite and PostgreSQL for what was not done and may be done again, and for a server that went away or is not there yet.
_AGAIN, _GONE = (5, 6, "40001", "40P01", "55P03"), ("08000", "08001", "08003", "08004", "08006", "57P01", "57P02", "57P03", "53300")
#: Codes for what somebody has to see to.
_TODO = {
    8: "make the file and its folder writable",
    10: "see to the disk",
    11: "the file is damaged: restore it from a copy",
    13: "make room on the disk",
    14: "make the file and its folder readable and writable",
    26: "name another file, since this one is no SQLite database",
    "28P01": "see to user and password in the URL",
    "28000": "see to user and password in the URL, and to pg_hba.conf",
    "3D000": "create the database, or name another in the URL",
    "25006": "name the server that may be written to",
    "53100": "make room on the server's disk",
    "42501": "grant the user what it lacks",
}


class Address(NamedTuple):
    """A URL of a database, taken apart once."""

    kind: str
    """`sqlite` or `postgresql`."""
    url: str
    """What opens it again from any folder; it may hold a password."""
    path: Path | None = None
    """The file of SQLite; None for one in memory, which is there for as long as it is open."""


def read_address(url: str) -> Address:
    """Take a URL apart; a relative path is made absolute here.

    Raises: ConfigurationError.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in _POSTGRES:
        if not rest:
            raise ConfigurationError(
                f"storage {shown(url)!r} names no server: write postgresql://user:password@host:5432/database", where=scheme
            )
        return Address("postgresql", f"postgresql://{rest}")
    if scheme not in _SQLITE:
        raise ConfigurationError(f"{shown(url)!r} is no database: known are sqlite:///path.db and postgresql://...", where=scheme)
    text, _, options = rest.partition("?")
    if options:
        raise ConfigurationError(
            f"storage {url!r} has the unknown option {options.partition('=')[0]!r}; known: 'lease', 'trust'", where=url
        )
    if not text.startswith("/"):
        raise ConfigurationError(f"storage {url!r} names a host: write sqlite:///path.db, with three slashes", where=url)
    if text in ("/", "/:memory:"):
        raise ConfigurationError(
            f"storage {url!r} names no file: write sqlite:///path.db, or memory:// for this process's memory", where=url
        )
    path = Path(os.path.realpath(Path(unquote(text[1:])).expanduser()))
    if path.is_dir():
        raise ConfigurationError(f"storage {url!r} is a folder: name a file in it, as sqlite:///{text[1:]}/gecko.db", where=url)
    return Address("sqlite", f"sqlite:///{quote(os.fspath(path))}", path)


def open_database(url: str) -> "Database":
    """Return the database of a URL, the same one for everybody in this process. Nothing is connected before the first work.

    Raises: ConfigurationError.
    """
    address = read_address(url)
    with _lock:
        if address.url not in _opened:
            _opened[address.url] = Database(address)
        return _opened[address.url]


class Database:
    """One database, for all threads and loops of this process."""

    def __init__(self, address: Address) -> None:
        """Open nothing yet.

        Raises: ConfigurationError where the driver is not installed.
        """
        if address.kind == "postgresql" and importlib.util.find_spec("asyncpg") is None:
            text = "storage in PostgreSQL needs asyncpg, which is not installed: pip install 'gecko-ray[postgres]'"
            raise ConfigurationError(text, where="postgresql")
        self.kind = address.kind
        self.url = address.url
        """What opens it again; may hold a password."""
        self.shown = shown(address.url)
        """The URL for people."""
        self.path = address.path
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._spawned: set[Future[Any]] = set()

    async def do(self, work: Work[T], *, reading: bool = False, repeatable: bool = False) -> T:
        """Await `work(connection)` in one transaction, on the database's own thread; callable in any loop.

        A caller that is cancelled leaves the transaction to end by itself, whole. `work` may be called again when something passes:
        it does nothing but use the connection. What it raises comes back as it is, and rolls back.

        Args:
            reading: It writes nothing: it sees one state of the database, and waits for no writer.
            repeatable: To do it again after it was committed changes nothing. Else a commit whose outcome is not known is an error.

        Raises: StoreUnavailable, and errors of SQLAlchemy that come from the work itself.
        """
        running = self._running
        if running is not None and asyncio.get_running_loop() is running.loop:
            return await running.do(work, reading=reading, repeatable=repeatable)
        return await wait_for(self._begin(work, reading, repeatable))

    def do_now(self, work: Work[T], *, reading: bool = False, repeatable: bool = False, timeout: float | None = None) -> T:
        """Do the same from a thread without a loop, or in one that may be blocked.

        Raises: as `do`; TimeoutError when the time ran out, and the transaction goes on.
        """
        return self._begin(work, reading, repeatable).result(timeout)

    def spawn(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the database's thread; as long as it runs, a close closes nothing."""
        with self._lock:
            future = asyncio.run_coroutine_threadsafe(work, self._start().loop)
            self._spawned.add(future)
        future.add_done_callback(self._spawned.discard)
        return future

    @property
    def running(self) -> bool:
        """Whether thread and connections are there."""
        return self._running is not None

    async def close(self) -> None:
        """Let go of connections and thread after what is under way, unless others have something spawned; later work opens them again."""
        ending = self._end()
        if ending is not None:
            await wait_for(ending)

    def close_now(self, timeout: float | None = None) -> None:
        """Do the same from a thread that may be blocked."""
        ending = self._end()
        if ending is not None:
            ending.result(timeout)

    def after_fork(self) -> None:
        """Begin anew in a forked child: connections, thread and loop are the parent's, and are kept from being closed here."""
        if self._running is not None:
            _inherited.append(self._running)
        self._lock, self._running, self._spawned = threading.Lock(), None, set()

    def _begin(self, work: Work[T], reading: bool, repeatable: bool) -> "Future[T]":
        with self._lock:
            return self._start().begin(work, reading=reading, repeatable=repeatable)

    def _start(self) -> "_Running":
        if self._running is None:
            self._running = _Running(self)
        return self._running

    def _end(self) -> "Future[None] | None":
        with self._lock:
            if any(not future.done() for future in list(self._spawned)):
                return None
            running, self._running = self._running, None
            return None if running is None else running.end()


class _Running:
    """The thread, the loop and the engine of an open database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine: AsyncEngine | None = None
        self._file: tuple[int, int] | None = None
        self._met = False
        """Whether a connection was ever made; what was never there is not waited for."""
        self._working: set[asyncio.Task[Any]] = set()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gecko-database", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def begin(self, work: Work[T], *, reading: bool, repeatable: bool) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(self._counted(work, reading, repeatable), self.loop)

    def end(self) -> "Future[None]":
        return asyncio.run_coroutine_threadsafe(self._finish(), self.loop)

    async def _counted(self, work: Work[T], reading: bool, repeatable: bool) -> T:
        me = asyncio.current_task()
        assert me is not None
        self._working.add(me)
        try:
            return await self.do(work, reading=reading, repeatable=repeatable)
        finally:
            self._working.discard(me)

    async def _finish(self) -> None:
        if self._working:
            await asyncio.wait(self._working, timeout=_CLOSE)
        try:
            if self._engine is not None:
                await self._engine.dispose()
        finally:
            self.loop.call_soon(self.loop.stop)

    async def do(self, work: Work[T], *, reading: bool, repeatable: bool) -> T:
        begun, delay = time.monotonic(), _FIRST_DELAY
        while True:
            committing = [False]
            try:
                return await self._once(work, reading, committing)
            except (SQLAlchemyError, OSError, *_driver_errors(self._database.kind)) as error:
                unknown = committing[0] and not repeatable and not reading
                found = _judge(self._database, error, unknown=unknown)
                if found is None:
                    raise
                patience, trouble, away = found
                if time.monotonic() - begun > patience or (away and not self._met):
                    raise trouble from error
                logger.debug("work on a database is tried again", extra={"database": self._database.shown, "error": str(trouble)})
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _MOST_DELAY if away else _MOST_BUSY_DELAY)

    async def _once(self, work: Work[T], reading: bool, committing: list[bool]) -> T:
        if self._engine is not None and _file(self._database) != self._file:  # somebody removed or replaced it: what is open leads nowhere
            await self._engine.dispose()
            self._engine = None
        if self._engine is None:
            self._engine = _make_engine(self._database)
            self._file = _file(self._database)
        async with self._engine.connect() as connection:
            self._met = True
            if reading and self._database.kind == "sqlite":
                await connection.execution_options(gecko_reading=True)
            elif reading:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            answer = await work(connection)
            committing[0] = True
            await connection.commit()
            return answer


def _make_engine(database: Database) -> AsyncEngine:
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": 4, "max_overflow": 8, "pool_timeout": _STATEMENT}
    if database.kind == "postgresql":
        return create_async_engine("postgresql+asyncpg://", async_creator=lambda: _connect(database), **options)
    path, mode = database.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    if path is None:  # all there is of it is one connection
        options |= {"pool_size": 1, "max_overflow": 0}
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, mode, 0o600))  # SQLite gives the files beside it the same mode
    from engine.store.sqlite_inline import InlineConnection

    registry.register("sqlite.inline", "engine.store.sqlite_inline", "InlineSqlite")
    engine = create_async_engine(
        URL.create("sqlite+inline", database=":memory:" if path is None else os.fspath(path)),
        poolclass=AsyncAdaptedQueuePool,
        connect_args={"timeout": 0, "factory": InlineConnection},
        **options,
    )
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin_transaction)
    return engine


def _file(database: Database) -> tuple[int, int] | None:
    """What tells the file of SQLite from another of its name; None where there is none."""
    if database.path is None:
        return None
    try:
        found = os.stat(database.path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


async def _connect(database: Database) -> Any:
    import asyncpg

    try:
        return await asyncpg.connect(
            database.url, timeout=_CONNECT, command_timeout=_STATEMENT, server_settings={"application_name": "gecko"}
        )
    except ValueError as error:  # a URL that asyncpg cannot read
        raise StoreUnavailable(f"storage {database.shown!r} cannot be used: {_said(database, error)}; correct the URL") from error


def _prepare(connection: Any, _: Any) -> None:
    """Make a connection to SQLite durable and shared; transactions are begun by `_begin_transaction`, not by the driver."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=1", "foreign_keys=1"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin_transaction(connection: Any) -> None:
    # A transaction that reads before it writes could not become a writer while another one is: it asks to be one at once.
    reading = connection.get_execution_options().get("gecko_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _driver_errors(kind: str) -> tuple[type[BaseException], ...]:
    if kind != "postgresql":
        return ()
    import asyncpg

    return asyncpg.PostgresError, asyncpg.InterfaceError  # a version of SQLAlchemy lets them through where it connects


def _judge(database: Database, error: BaseException, *, unknown: bool) -> tuple[float, StoreUnavailable, bool] | None:
    """Say for how many seconds to try again, what to tell after that, and whether the database was away; None: the work's own error."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    said, place = _said(database, orig), database.shown
    code: Any = getattr(orig, "sqlite_errorcode", None)
    code = code & 0xFF if isinstance(code, int) else getattr(orig, "sqlstate", None)
    if code in _AGAIN:
        return _BUSY, StoreUnavailable(f"{place} is busy: {said}; try again when there is less to do"), False
    dropped = isinstance(error, DBAPIError) and error.connection_invalidated
    if dropped or code in _GONE or (isinstance(orig, OSError) and database.kind == "postgresql"):
        if unknown:
            text = "the connection was lost while it committed, so that its last change may be there or not; look before you repeat it"
            return 0.0, StoreUnavailable(f"{place}: {text} ({said})"), False
        return _PATIENCE, StoreUnavailable(f"{place} cannot be reached: {said}; see to the server and to the URL"), True
    if code in _TODO or isinstance(orig, OSError):
        return 0.0, StoreUnavailable(f"{place} cannot be used: {said}; {_TODO.get(code, _TODO[14])}"), False
    if isinstance(orig, PoolTimeout):
        return 0.0, StoreUnavailable(f"{place} has no free connection: {said}; try again when there is less to do"), False
    return None


def _said(database: Database, error: BaseException | None) -> str:
    """What a driver said, without the password."""
    text = str(error).strip() or type(error).__name__
    secret = database.url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    for form in {secret, unquote(secret)} - {""}:
        text = text.replace(form, "***")
    return text


def first_line(error: Exception) -> str:
    """What an error of SQLAlchemy says, without the statement."""
    return str(error).partition("\n")[0]


async def wait_for(done: "Future[T]") -> T:
    """Wait in this loop for what another thread does; to stop waiting does not stop that."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake(_: Any) -> None:
        try:
            loop.call_soon_threadsafe(lambda: woken.done() or woken.set_result(None))
        except RuntimeError:  # the loop was closed, and nobody waits there any more
            return

    done.add_done_callback(wake)
    await woken
    return done.result()


_opened: dict[str, Database] = {}
_lock = threading.Lock()
_inherited: list[_Running] = []


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for database in _opened.values():
        database.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
