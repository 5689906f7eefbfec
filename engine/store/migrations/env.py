"""How Alembic reaches the tables of records: on a connection that is given to it, in the transaction that is under way there."""

from alembic import context

from engine.store.records_format import VERSIONS
from engine.store.records_tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSIONS,
    transactional_ddl=True,  # also in SQLite: half a migration is none
    include_name=lambda name, kind, _: kind != "table" or name in metadata.tables,
)
context.run_migrations()
