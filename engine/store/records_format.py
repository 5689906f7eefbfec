"""The format of records: made and brought up to date as they are opened, by one process at a time; a newer one is refused.

Each format is a migration in migrations/versions, numbered from 0001, and stays as it was shipped. There is no way back.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from engine.errors import UnknownFormat

VERSIONS = "gecko_records_version"
"""The table in which Alembic keeps the number of the format."""
MIGRATIONS = Path(__file__).with_name("migrations")

_LOCK = 0x6765636B6F
"""The advisory lock in PostgreSQL that whoever migrates holds; in SQLite a transaction that writes is alone anyway."""


def newest() -> int:
    """Return the number of the format that this version writes."""
    return int(ScriptDirectory(str(MIGRATIONS)).get_current_head() or 0)


def current(connection: sa.Connection) -> int:
    """Return the number of the format that a database has; 0: it has no records."""
    if not sa.inspect(connection).has_table(VERSIONS):
        return 0
    return int(connection.scalar(sa.text(f"SELECT version_num FROM {VERSIONS}")) or 0)


def is_current(connection: sa.Connection, place: str) -> bool:
    """Tell whether a database has the newest format; False for an older one.

    Raises: UnknownFormat for one that is newer than this version knows.
    """
    found, known = current(connection), newest()
    if found > known:
        text = f"the records in {place} have format {found}, and this version of Gecko knows formats up to {known}: "
        raise UnknownFormat(text + "use the newer version that wrote them, or name another place")
    return found == known


def migrate(connection: sa.Connection, place: str) -> None:
    """Bring a database to the newest format, in the transaction that is under way.

    Raises: UnknownFormat.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    if is_current(connection, place):
        return
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
