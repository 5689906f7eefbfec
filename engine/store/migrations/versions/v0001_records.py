"""The index of runs and dead letters, the catalogue of workflows and of API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(name: str, *, primary_key: bool = False, nullable: bool = False, unique: bool | None = None) -> sa.Column[str]:
    kind = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    return sa.Column(name, kind, primary_key=primary_key, nullable=nullable, unique=unique)


def _texts(*names: str) -> list[sa.Column[str]]:
    return [_text(name) for name in names]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in names]


def _instants(*names: str, nullable: bool = False) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double, nullable=nullable) for name in names]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "gecko_runs",
        _text("run_id", primary_key=True),
        *_texts("workflow", "session", "status", "owner", "tenant", "coordinator", "error", "environment", "hash"),
        _text("target", nullable=True),
        *_instants("started_at", "updated_at"),
        *_instants("finished_at", nullable=True),
        *_numbers("n", "seq", "priority", "steps", "resumes", "generation"),
        *_texts("labels", "searched"),
    )
    op.create_index("gecko_runs_started", "gecko_runs", ["started_at", "run_id"])
    op.create_index("gecko_runs_updated", "gecko_runs", ["updated_at", "run_id"])
    op.create_index("gecko_runs_status", "gecko_runs", ["status", "started_at", "run_id"])
    op.create_index("gecko_runs_workflow", "gecko_runs", ["workflow", "started_at", "run_id"])
    op.create_index("gecko_runs_tenant", "gecko_runs", ["tenant", "started_at", "run_id"])
    op.create_table("gecko_run_labels", _text("run_id", primary_key=True), _text("name", primary_key=True), _text("value"))
    op.create_index("gecko_run_labels_value", "gecko_run_labels", ["name", "value", "run_id"])
    op.create_table(
        "gecko_letters",
        _text("id", primary_key=True),
        *_texts("run_id", "workflow", "node", "step_id", "tenant", "status"),
        _text("replay_run_id", nullable=True),
        *_instants("created_at"),
        *_numbers("attempts", "generation"),
        sa.Column("input", sa.LargeBinary),
        *_texts("errors", "searched"),
    )
    op.create_index("gecko_letters_status", "gecko_letters", ["status", "created_at", "id"])
    op.create_index("gecko_letters_run", "gecko_letters", ["run_id"])
    op.create_table(
        "gecko_workflows",
        *(_text(name, primary_key=True) for name in ("tenant", "name", "version")),
        *_texts("hash", "type", "description", "definition"),
        _text("target", nullable=True),
        sa.Column("is_active", sa.Boolean, nullable=False),
        *_texts("metadata"),
        *_instants("created_at", "updated_at"),
        *_texts("searched"),
    )
    op.create_table(
        "gecko_keys",
        _text("id", primary_key=True),
        *_texts("name", "role", "tenant"),
        _text("hash", unique=True),
        *_instants("created_at"),
        *_instants("expires_at", "revoked_at", "last_used_at", nullable=True),
    )
    op.create_table("gecko_records_meta", _text("name", primary_key=True), *_numbers("value"))
    op.execute("INSERT INTO gecko_records_meta (name, value) VALUES ('generation', 0)")
