"""Records in a database: where they are, their format, many processes at once, and queries that a plain list answers alike."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError, StoreUnavailable, UnknownFormat
from engine.records import RUN_SORTS, RunEntry, RunQuery
from engine.store import open_records
from engine.store.database import Database, read_address
from engine.store.records import SqlRecords
from engine.store.records_format import VERSIONS, newest
from engine.store.records_tables import metadata
from engine.testing.check_records import fitting, run
from tests.databases import postgres_database

DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.services)]
both = pytest.mark.parametrize("database_url", DATABASES, indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/some.db"
    else:
        with postgres_database(request.getfixturevalue("service")("postgres")) as url:
            yield url


def another(url: str) -> SqlRecords:
    """Records with a connection of their own, as another process has."""
    return SqlRecords(Database(read_address(url)))


@pytest.mark.anyio
async def test_a_folder_keeps_its_records_in_a_file_that_git_leaves_alone(tmp_path: Path):
    records = open_records(tmp_path / "runs")
    assert records is open_records((tmp_path / "runs").as_uri()), "one place is opened once"
    assert not (tmp_path / "runs").exists(), "and nothing is made before it is used"
    await records.put_runs([run()])
    assert (tmp_path / "runs" / "records.db").is_file()
    assert (tmp_path / "runs" / ".gitignore").read_text() == "*\n"
    await records.close()
    assert await records.get_run("flow.a.1") == run(), "records that were closed may be used again"
    await records.close()


@pytest.mark.anyio
async def test_memory_is_shared_by_name_and_outlives_a_close():
    one, other = (f"memory://{uuid.uuid4().hex}" for _ in range(2))
    await open_records(one).put_runs([run()])
    await open_records(one).close()
    assert await open_records(one).get_run("flow.a.1") == run()
    assert await open_records(other).get_run("flow.a.1") is None


def test_a_place_that_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", "ftp://x", "sqlite://host/x.db", f"sqlite:///{tmp_path}", "postgresql://"):
        with pytest.raises(ConfigurationError):
            open_records(place)
    assert open_records("postgresql://user:secret@host/db").url == "postgresql://user:***@host/db"
    assert open_records("postgresql://user:secret@host/db?lease=5") is open_records("postgresql://user:secret@host/db")


@pytest.mark.anyio
async def test_a_file_that_is_no_database_is_told(tmp_path: Path):
    (tmp_path / "records.db").write_text("something else, and long enough to be looked at " * 100)
    with pytest.raises(StoreUnavailable, match="no SQLite database"):
        await open_records(tmp_path).get_run("x")


@pytest.mark.anyio
@both
async def test_the_migrations_make_the_tables_that_the_code_uses(database_url: str):
    records = another(database_url)
    await records.get_run("x")

    def differences(connection: sa.Connection) -> list[object]:
        def differ(_: MigrationContext, _found: object, _meant: object, found: sa.types.TypeEngine, meant: sa.types.TypeEngine) -> bool:
            texts = [kind.compile(connection.dialect).replace("VARCHAR", "TEXT") for kind in (found, meant)]  # one type in PostgreSQL
            return texts[0] != texts[1]

        context = MigrationContext.configure(connection, opts={"version_table": VERSIONS, "compare_type": differ})
        return compare_metadata(context, metadata)

    assert await records._database.do(lambda connection: connection.run_sync(differences), reading=True) == []
    await records.close()


@pytest.mark.anyio
@both
async def test_records_of_a_newer_format_are_refused_with_both_numbers(database_url: str):
    records = another(database_url)
    await records.put_runs([run()])
    await records._database.do(lambda connection: connection.execute(sa.text(f"UPDATE {VERSIONS} SET version_num = '0099'")))
    later = another(database_url)
    with pytest.raises(UnknownFormat, match=rf"format 99, .* up to {newest()}: use the newer version .* or name another place"):
        await later.get_run("flow.a.1")
    await later.close()
    assert await records.get_run("flow.a.1") == run(), "what was open goes on"
    await records.close()


OPEN = """
import asyncio, sys
from engine.store import open_records
from engine.testing.check_records import run
asyncio.run(open_records(sys.argv[1]).put_runs([run(sys.argv[2])]))
"""


@pytest.mark.slow
@both
def test_processes_that_open_new_records_at_once_make_them_once(database_url: str, root: Path):
    command = [sys.executable, "-c", OPEN, database_url]
    started = [subprocess.Popen([*command, f"p{i}"], cwd=root, stderr=subprocess.PIPE, text=True) for i in range(4)]
    assert [process.communicate()[1] for process in started] == [""] * 4
    assert asyncio.run(another(database_url).list_runs(RunQuery())).total == 4


@pytest.mark.slow
@pytest.mark.anyio
async def test_one_process_may_make_many_records_at_once(tmp_path: Path):
    many = [another(f"sqlite:///{tmp_path}/{n}.db") for n in range(8)]
    await asyncio.gather(*(records.put_runs([run()]) for records in many))
    assert [(await records.list_runs(RunQuery())).total for records in many] == [1] * 8
    await asyncio.gather(*(records.close() for records in many))


def test_a_forked_child_has_connections_of_its_own(tmp_path: Path):
    def put(name: str) -> None:
        asyncio.run(open_records(tmp_path).put_runs([run(name)]))

    put("parent")
    pid = os.fork()
    if not pid:
        try:
            put("child")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    put("parent again")
    assert asyncio.run(open_records(tmp_path).list_runs(RunQuery())).total == 3
    asyncio.run(open_records(tmp_path).close())


@pytest.mark.slow
@pytest.mark.anyio
@both
async def test_writers_with_connections_of_their_own_end_with_the_greatest_number(database_url: str):
    writers = [another(database_url) for _ in range(8)]

    async def write(records: SqlRecords, first: int) -> None:
        for seq in [*range(first, 64, 8)][:: 1 if first % 2 else -1]:
            await records.put_runs([run(name, seq=seq, labels={"seq": str(seq)}) for name in "abcdefgh"[:: 1 if seq % 2 else -1]])

    await asyncio.gather(*(write(records, number) for number, records in enumerate(writers)))
    found = await writers[0].list_runs(RunQuery(labels={"seq": "63"}))
    assert [(entry.seq, entry.session) for entry in found.items] == [(63, name) for name in "hgfedcba"]
    await asyncio.gather(*(records.close() for records in writers))


@pytest.mark.anyio
async def test_a_table_that_somebody_dropped_is_told(tmp_path: Path):
    records = open_records(tmp_path)
    await records.put_runs([run()])
    with sqlite3.connect(tmp_path / "records.db") as connection:
        connection.execute("DROP TABLE gecko_run_labels")
    with pytest.raises(StoreUnavailable, match=r"cannot be used: .*gecko_run_labels.*; gecko doctor"):
        await records.put_runs([run()])
    await records.close()


names = st.sampled_from(["a", "A", "b", "a_b", "a%b", "ä", "Z", "\N{SNOWMAN}"])
instants = st.sampled_from([1e9, 1e9 + 0.1, 1e9 + 0.2, 1e9 + 7, 2e9])
some_labels = st.dictionaries(st.sampled_from(["team", "env"]), names, max_size=2)


@st.composite
def entries_of(draw: st.DrawFn) -> list[RunEntry]:
    found: dict[str, RunEntry] = {}
    for n in range(draw(st.integers(0, 25))):
        name = f"{draw(names)}{n}"
        found[name] = run(
            name, workflow=draw(names), status=draw(st.sampled_from(["running", "failed", "completed"])), started_at=draw(instants),
            updated_at=draw(instants), finished_at=draw(st.none() | instants), seq=draw(st.integers(0, 3)), labels=draw(some_labels),
            priority=draw(st.integers(-2, 2)), owner=draw(names | st.just("")), tenant=draw(st.sampled_from(["", "t"])),
            error=draw(names | st.just("")),
        )  # fmt: skip
    return list(found.values())


queries = st.builds(
    RunQuery, status=st.lists(st.sampled_from(["running", "failed", "paused"]), max_size=2), workflow=st.none() | names, labels=some_labels,
    owner=st.none() | names, tenant=st.none() | st.sampled_from(["", "t"]), search=st.just("") | names, limit=st.integers(1, 9),
    sort=st.builds(str.__add__, st.sampled_from(["", "-"]), st.sampled_from(RUN_SORTS)), started_after=st.none() | instants,
    started_before=st.none() | instants, updated_after=st.none() | instants, updated_before=st.none() | instants,
)  # fmt: skip
at_most = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_like_a_list(url: str, entries: list[RunEntry], asked: list[RunQuery]) -> None:
    async def check() -> None:
        records = open_records(url)
        await records.drop_runs([entry.run_id for entry in (await records.list_runs(RunQuery(limit=1000))).items])
        await records.put_runs(entries)
        for query in asked:
            wanted, seen = fitting(entries, query), list[RunEntry]()
            page = await records.list_runs(query)
            assert page.total == len(wanted)
            while True:
                seen += page.items
                if page.next is None:
                    break
                page = await records.list_runs(replace(query, after=page.next))
            assert seen == wanted
            counts = await records.count_runs(query, by="owner")
            assert counts == {owner: sum(entry.owner == owner for entry in wanted) for owner in {entry.owner for entry in wanted}}
        await records.close()

    asyncio.run(check())


@pytest.mark.slow
@at_most
@given(entries=entries_of(), asked=st.lists(queries, min_size=1, max_size=6))
def test_sqlite_answers_as_a_plain_list_does(entries: list[RunEntry], asked: list[RunQuery]):
    check_like_a_list("memory://like-a-list", entries, asked)


@pytest.fixture(scope="module")
def postgres_url(service) -> Iterator[str]:
    with postgres_database(service("postgres")) as url:
        yield url


@pytest.mark.slow
@pytest.mark.services
@at_most
@given(entries=entries_of(), asked=st.lists(queries, min_size=1, max_size=6))
def test_postgresql_answers_as_a_plain_list_does(postgres_url: str, entries: list[RunEntry], asked: list[RunQuery]):
    check_like_a_list(postgres_url, entries, asked)
