"""A database for all threads and loops of a process: whole transactions, bounded patience, no password shown."""

import asyncio
import contextlib
import importlib.util
import os
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.core.places import shown
from engine.errors import ConfigurationError, StoreUnavailable
from engine.store import database as module
from engine.store.database import Database, open_database, read_address

BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database of the kind that the test asks for."""
    kind = getattr(request, "param", "sqlite")
    return request.getfixturevalue("postgres") if kind == "postgresql" else f"sqlite:///{tmp_path}/below/log.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Give that database with a table of numbers."""
    made = open_database(url)
    made.do_now(lambda connection: connection.execute(text("CREATE TABLE numbers (number integer PRIMARY KEY)")))
    yield made
    made.close_now(10)


async def add(connection: AsyncConnection, number: int) -> None:
    await connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})


async def numbers(connection: AsyncConnection) -> list[int]:
    return list((await connection.execute(text("SELECT number FROM numbers ORDER BY number"))).scalars())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://a:b@h/db", "postgresql://a:***@h/db"),
        ("postgres://a:p@ss:/w#rd@h:1/db?x=1", "postgres://a:***@h:1/db?x=1"),
        ("postgresql://h/db?user=a&password=b&x=1", "postgresql://h/db?user=a&password=***&x=1"),
        ("postgresql://a@h:5432/db", "postgresql://a@h:5432/db"),
        ("file:///a:b@c", "file:///a:b@c"),
        ("sqlite:///a:b@c", "sqlite:///a:b@c"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_a_database_is_opened_once_by_whatever_name(tmp_path: Path) -> None:
    assert len({id(open_database(name)) for name in ("sqlite:///a.db", f"sqlite:///{tmp_path}/a.db", "sqlite+aiosqlite:///./a.db")}) == 1
    assert open_database("sqlite:///a.db").url == f"sqlite:///{tmp_path}/a.db"
    assert open_database("postgres://a:b@h/db") is open_database("postgresql://a:b@h/db")
    assert not list(tmp_path.iterdir()), "nothing is made before it is used"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://a:secret@h/db", "known are sqlite:///path.db"),
        ("sqlite://host/a.db", "three slashes"),
        ("sqlite://", "three slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///a.db?mode=ro", "unknown option 'mode'"),
        ("postgresql://", "names no server"),
        ("sqlite:///.", "is a folder"),
    ],
)
def test_a_url_that_cannot_work_says_what_to_write(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_address(url)
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "asyncpg" else find(name))
    with pytest.raises(ConfigurationError, match=r"pip install 'gecko-ray\[postgres\]'"):
        open_database("postgresql://nobody@nowhere/nothing")


def test_a_file_is_made_for_its_owner_alone(database: Database, tmp_path: Path) -> None:
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "below").iterdir()} == {"0o600"}
    settings = {"journal_mode": "wal", "synchronous": 2}
    for name, value in settings.items():
        assert database.do_now(lambda connection, name=name: connection.scalar(text(f"PRAGMA {name}"))) == value


@pytest.mark.parametrize("url", BOTH, indirect=True)
def test_many_loops_and_threads_share_one_database(database: Database) -> None:
    async def drive(first: int) -> None:
        for number in range(first, first + 5):
            await database.do(lambda connection, number=number: add(connection, number))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: asyncio.run(drive(i * 10)), range(6)))
        list(threads.map(lambda i: database.do_now(lambda connection: add(connection, i)), range(100, 106)))
    found = database.do_now(numbers, reading=True)
    assert found == [i * 10 + k for i in range(6) for k in range(5)] + list(range(100, 106))


@pytest.mark.anyio
@pytest.mark.parametrize("url", BOTH, indirect=True)
async def test_a_cancelled_caller_leaves_a_whole_transaction(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def slowly(connection: AsyncConnection) -> None:
        await add(connection, 1)
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, go_on.wait, 10)
        await add(connection, 2)

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(database.do(slowly))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait, 10)
        waiting.cancel()
    assert waiting.cancelled()
    go_on.set()
    await database.do(lambda connection: add(connection, 3))
    await database.close()  # which waits for what is under way
    assert await database.do(numbers) == [1, 2, 3]


@pytest.mark.anyio
@pytest.mark.parametrize("url", BOTH, indirect=True)
async def test_an_error_of_the_work_comes_back_as_it_is_and_rolls_back(database: Database) -> None:
    async def twice(connection: AsyncConnection) -> None:
        await add(connection, 1)
        await add(connection, 1)

    async def stops(connection: AsyncConnection) -> None:
        await add(connection, 2)
        raise KeyError("mine")

    with pytest.raises(IntegrityError):
        await database.do(twice)
    with pytest.raises(KeyError, match="mine"):
        await database.do(stops)
    assert await database.do(numbers) == []


@pytest.mark.anyio
async def test_a_writer_waits_for_another_process_and_holds_up_no_reader(database: Database, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "below/log.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(database.do(lambda connection: add(connection, 1)))
            assert await database.do(numbers, reading=True) == []
            assert not waiting.done()
            other.execute("COMMIT")
    assert await database.do(numbers) == [1]


@pytest.mark.anyio
async def test_the_wait_for_another_process_has_an_end(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY", 0.05)
    with contextlib.closing(sqlite3.connect(tmp_path / "below/log.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="is busy"):
            await database.do(lambda connection: add(connection, 1))


@pytest.mark.anyio
async def test_a_file_that_was_replaced_is_not_written_to_any_more(database: Database, tmp_path: Path) -> None:
    await database.do(lambda connection: add(connection, 1))
    for path in (tmp_path / "below").iterdir():
        path.unlink()
    await database.do(lambda connection: connection.execute(text("CREATE TABLE numbers (number integer)")))
    assert await database.do(numbers) == []


@pytest.mark.anyio
async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a text, and long enough to be looked at as a header of a file " * 20)
    database = open_database("sqlite:///text.db")
    with pytest.raises(StoreUnavailable, match=r"text.db cannot be used.*no SQLite database"):
        await database.do(numbers)
    await database.close()


@pytest.mark.anyio
async def test_a_close_waits_for_what_was_spawned_by_others(database: Database) -> None:
    stop = threading.Event()

    async def beat() -> str:
        await asyncio.get_running_loop().run_in_executor(None, stop.wait, 10)
        return "ended"

    beating = database.spawn(beat())
    await database.close()
    assert database.running
    stop.set()
    assert beating.result(10) == "ended"
    await database.close()
    assert not database.running


@pytest.mark.services
@pytest.mark.anyio
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_connection_that_was_lost_before_the_commit_is_made_again(database: Database) -> None:
    tries: list[int] = []

    async def cut_once(connection: AsyncConnection) -> None:
        await add(connection, 1)
        me = await connection.scalar(text("SELECT pg_backend_pid()"))
        tries.append(me)
        if len(tries) == 1:
            await asyncio.to_thread(end_backend, database.url, me)
        await add(connection, 2)

    await database.do(cut_once)
    assert await database.do(numbers) == [1, 2]
    assert len(set(tries)) == 2


@pytest.mark.services
@pytest.mark.anyio
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_commit_whose_outcome_is_not_known_is_said_and_repeated_only_where_that_is_allowed(database: Database) -> None:
    async def prepare(connection: AsyncConnection) -> None:
        cut = "IF NEW.number > (SELECT count(*) FROM ended) THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF"
        body = f"BEGIN {cut}; RETURN NULL; END"
        await connection.execute(text("CREATE SEQUENCE ends"))
        await connection.execute(text("CREATE VIEW ended AS SELECT last_value FROM ends WHERE is_called"))
        await connection.execute(text(f"CREATE FUNCTION end_me() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
        statement = (
            "CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON numbers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION end_me()"
        )
        await connection.execute(text(statement))

    await database.do(prepare)
    with pytest.raises(StoreUnavailable, match="may be there or not"):
        await database.do(lambda connection: add(connection, 1))

    tries: list[int] = []

    async def again(connection: AsyncConnection) -> None:
        tries.append(1)
        if len(tries) == 2:
            await connection.scalar(text("SELECT nextval('ends')"))
        await add(connection, 1)

    await database.do(again, repeatable=True)
    assert len(tries) == 2
    assert await database.do(numbers) == [1]


def end_backend(url: str, backend: int) -> None:
    """End another connection of the server."""
    import asyncpg

    async def end() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("SELECT pg_terminate_backend($1)", backend)
        await connection.close()

    asyncio.run(end())


@pytest.mark.parametrize(
    ("place", "said"),
    [("127.0.0.1:1/db", "cannot be reached"), ("127.0.0.1:1/db?sslmode=never", "cannot be used")],
    ids=["server", "option"],
)
def test_no_error_shows_the_password(place: str, said: str) -> None:
    pytest.importorskip("asyncpg")
    database = open_database(f"postgresql://someone:hidden%21word@{place}")
    with pytest.raises(StoreUnavailable, match=said) as caught:
        database.do_now(numbers)
    database.close_now(10)
    told = "".join(traceback.format_exception(caught.value))
    assert "someone:***@127.0.0.1" in told
    assert "hidden" not in told


FORKED = """
import os, sys
from sqlalchemy import text
from engine.store.database import open_database

database = open_database(sys.argv[1])
count = lambda connection: connection.scalar(text("SELECT 1"))
assert database.do_now(count) == 1
child = os.fork()
if child == 0:
    os._exit(0 if database.do_now(count, timeout=20) == 1 else 3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), database.do_now(count, timeout=20))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("url", BOTH, indirect=True)
def test_a_forked_child_has_a_thread_and_connections_of_its_own(url: str, root: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", FORKED, url], capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, "0 1\n"), done.stderr
