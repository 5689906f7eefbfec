"""The tables of a log in a database, and how they come to be there.

    gecko_log_format   one number: the format of these tables; the batches in them have their own
    gecko_log_owners   a process that drives runs, and until when it is held to live, by the database's clock
    gecko_log_runs     a run: who owns which epoch of it, how much was committed, and what lists show
    gecko_log_batches  the committed batches of runs: the same checked Arrow messages that files hold (checkpoint/batch.py)

Other tables may lie in the same database. Nothing here is ever renamed: what an older version made is read by every later one.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    literal_column,
    select,
    text,
)
from sqlalchemy.sql.elements import ColumnElement

from engine.errors import UnknownFormat

FORMAT = 1
#: Taken while tables are made in PostgreSQL, where two who make one at once collide.
_LOCK = 0x6765636B6F

_NUMBER = BigInteger().with_variant(Integer(), "sqlite")  # only this type counts by itself in SQLite
_TIME = Float(53)

METADATA = MetaData()
FORMATS = Table("gecko_log_format", METADATA, Column("number", Integer, primary_key=True, autoincrement=False))
OWNERS = Table(
    "gecko_log_owners",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("mark", Text, nullable=False),
    Column("until", _TIME, nullable=False),
)
RUNS = Table(
    "gecko_log_runs",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("workflow", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("since", _TIME, nullable=False),
    Column("released", Boolean, nullable=False),
    Column("deleted", _TIME, nullable=False),  # when, in seconds since 1970; 0: it is there
    Column("status", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("started", _TIME, nullable=False),
    Column("updated", _TIME, nullable=False),
    Column("batches", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    UniqueConstraint("workflow", "session", "n"),
    sqlite_autoincrement=True,  # the number of a removed run is not given to another
)
BATCHES = Table(
    "gecko_log_batches",
    METADATA,
    Column("run", _NUMBER, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
Index("gecko_log_runs_status", RUNS.c.status, RUNS.c.updated)


def clock(connection: Connection) -> ColumnElement[float]:
    """Seconds since 1970 by the database's own clock, which all its users share."""
    if connection.dialect.name == "sqlite":
        return literal_column("((julianday('now') - 2440587.5) * 86400.0)", _TIME)
    return literal_column("extract(epoch from clock_timestamp())::float8", _TIME)


def found(connection: Connection, place: str) -> bool:
    """Say whether the tables are there.

    Raises: UnknownFormat.
    """
    if not inspect(connection).has_table(FORMATS.name):
        return False
    number = connection.execute(select(FORMATS.c.number)).scalar()
    if number is not None and number > FORMAT:
        raise UnknownFormat(f"the log in {place} has tables of format {number}, and this version reads {FORMAT}: update Gecko to use it")
    return number is not None


def make(connection: Connection, place: str) -> None:
    """Make the tables where they are not there; two may do so at once.

    Raises: UnknownFormat.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    if found(connection, place):
        return
    METADATA.create_all(connection)
    connection.execute(FORMATS.insert().values(number=FORMAT))
