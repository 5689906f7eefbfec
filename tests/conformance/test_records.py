"""All records keep the promises of the port."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine.records import Records
from engine.store import open_records
from engine.testing.check_records import check_records

PLACES = ["folder", "sqlite", "memory", pytest.param("postgres", marks=pytest.mark.services)]


@pytest.fixture
def records_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of an empty place; a database of its own in PostgreSQL."""
    match request.param:
        case "folder":
            yield (tmp_path / "store").as_uri()
        case "sqlite":
            yield f"sqlite:///{tmp_path}/some records.db"
        case "memory":
            yield f"memory://{uuid.uuid4().hex}"
        case _:
            yield from postgres_database(request.getfixturevalue("service")("postgres"))


def postgres_database(server: str) -> Iterator[str]:
    """Make a database, and drop it in the end."""
    import asyncpg

    name = f"gecko_test_{uuid.uuid4().hex[:12]}"

    def execute(text: str) -> None:
        async def work() -> None:
            connection = await asyncpg.connect(f"postgresql://postgres@{server}/postgres")
            await connection.execute(text)
            await connection.close()

        asyncio.run(work())

    execute(f"CREATE DATABASE {name}")
    try:
        yield f"postgresql://postgres@{server}/{name}"
    finally:
        execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("records_url", PLACES, indirect=True)
async def test_records_keep_every_promise(records_url: str) -> None:
    await check_records(lambda: open_records(records_url))
