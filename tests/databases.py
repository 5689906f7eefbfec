"""Databases of PostgreSQL that a test has to itself."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def postgres_database(server: str) -> Iterator[str]:
    """Make an empty database on a server, `host:port`, give its URL, and drop it in the end."""
    import asyncpg

    name = f"gecko_test_{uuid.uuid4().hex[:12]}"

    async def execute(text: str) -> None:
        connection = await asyncpg.connect(f"postgresql://postgres@{server}/postgres")
        try:
            await connection.execute(text)
        finally:
            await connection.close()

    asyncio.run(execute(f"CREATE DATABASE {name}"))
    try:
        yield f"postgresql://postgres@{server}/{name}"
    finally:
        asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))
