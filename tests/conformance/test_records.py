"""All records keep the promises of the port."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.store import open_records
from engine.testing.check_records import check_records
from tests.databases import postgres_database

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
            with postgres_database(request.getfixturevalue("service")("postgres")) as url:
                yield url


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("records_url", PLACES, indirect=True)
async def test_records_keep_every_promise(records_url: str) -> None:
    await check_records(lambda: open_records(records_url))
