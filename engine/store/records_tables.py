"""The tables of records, and how entries lie in them. How they came to be is in migrations/; a test compares the two."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from engine.checkpoint.table import utf8_text
from engine.errors import DefinitionError
from engine.records import DeadLetter, Failure, KeyEntry, RunEntry, WorkflowEntry

T = TypeVar("T", RunEntry, WorkflowEntry, KeyEntry)

NEVER = 1e300
"""When what has not finished finishes, to whoever sorts."""
SEARCHED = 1_000
"""Characters of an error or description in which is searched."""

metadata = sa.MetaData()


class Text(TypeDecorator[str]):
    """Text that every database holds, compares by code points, and finds again."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        return dialect.type_descriptor(sa.Text(collation="C") if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else clean(value)


class Json(TypeDecorator[Any]):
    """A value of JSON's types, as text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else json.loads(value)


def clean(text: str) -> str:
    """Return a text without what UTF-8 and PostgreSQL cannot hold."""
    if text.isascii() and "\0" not in text:
        return text
    return utf8_text(text).replace("\0", "\\x00")


def folded(*texts: str) -> str:
    """Return what is searched in, and what is searched for, so that letter case makes no difference."""
    return "\n".join(texts).casefold()


def _text(name: str, **more: Any) -> sa.Column[str]:
    return sa.Column(name, Text, nullable=False, **more)


def _number(name: str, *, default: int = 0) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=str(default))


def _instant(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=nullable)


runs = sa.Table(
    "gecko_runs",
    metadata,
    _text("run_id", primary_key=True),
    *(_text(name) for name in ("workflow", "session", "status", "owner", "tenant", "coordinator", "error", "environment", "hash")),
    sa.Column("target", Text),
    *(_instant(name) for name in ("started_at", "updated_at")),
    _instant("finished_at", nullable=True),
    *(_number(name) for name in ("n", "seq", "priority", "steps", "resumes", "generation")),
    sa.Column("labels", Json, nullable=False),
    _text("searched"),
    sa.Index("gecko_runs_started", "started_at", "run_id"),
    sa.Index("gecko_runs_updated", "updated_at", "run_id"),
    sa.Index("gecko_runs_status", "status", "started_at", "run_id"),
    sa.Index("gecko_runs_workflow", "workflow", "started_at", "run_id"),
    sa.Index("gecko_runs_tenant", "tenant", "started_at", "run_id"),
)

labels = sa.Table(
    "gecko_run_labels",
    metadata,
    _text("run_id", primary_key=True),
    _text("name", primary_key=True),
    _text("value"),
    sa.Index("gecko_run_labels_value", "name", "value", "run_id"),
)

letters = sa.Table(
    "gecko_letters",
    metadata,
    _text("id", primary_key=True),
    *(_text(name) for name in ("run_id", "workflow", "node", "step_id", "tenant", "status")),
    sa.Column("replay_run_id", Text),
    _instant("created_at"),
    *(_number(name) for name in ("attempts", "generation")),
    sa.Column("input", sa.LargeBinary),
    sa.Column("errors", Json, nullable=False),
    _text("searched"),
    sa.Index("gecko_letters_status", "status", "created_at", "id"),
    sa.Index("gecko_letters_run", "run_id"),
)

workflows = sa.Table(
    "gecko_workflows",
    metadata,
    *(_text(name, primary_key=True) for name in ("tenant", "name", "version")),
    *(_text(name) for name in ("hash", "type", "description", "definition")),
    sa.Column("target", Text),
    sa.Column("is_active", sa.Boolean, nullable=False),
    sa.Column("metadata", Json, nullable=False),
    *(_instant(name) for name in ("created_at", "updated_at")),
    _text("searched"),
)

keys = sa.Table(
    "gecko_keys",
    metadata,
    _text("id", primary_key=True),
    *(_text(name) for name in ("name", "role", "tenant")),
    _text("hash", unique=True),
    _instant("created_at"),
    *(_instant(name, nullable=True) for name in ("expires_at", "revoked_at", "last_used_at")),
)

meta = sa.Table("gecko_records_meta", metadata, _text("name", primary_key=True), _number("value"))
"""`generation`: how often the index was begun to be made again."""


def run_row(entry: RunEntry) -> dict[str, Any]:
    """Return an entry as a row; its `generation` is put in by the statement."""
    searched = folded(entry.run_id, entry.workflow, entry.session, entry.error[:SEARCHED])
    return {**_row(entry), "labels": dict(entry.labels), "searched": searched}


def workflow_row(entry: WorkflowEntry) -> dict[str, Any]:
    """Return a version of a workflow as a row."""
    data = json_value(entry.metadata, "metadata")
    return {**_row(entry), "metadata": data, "searched": searched_workflow(entry.name, entry.description)}


def searched_workflow(name: str, description: str) -> str:
    """Return what of a workflow is searched in."""
    return folded(name, description[:SEARCHED])


def letter_row(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as a row."""
    row = {field.name: getattr(letter, field.name) for field in fields(letter)}
    last = f"{letter.errors[-1].type}: {letter.errors[-1].message}" if letter.errors else ""
    row["errors"] = [asdict(failure) for failure in letter.errors]
    return {**row, "searched": folded(letter.step_id, last[:SEARCHED])}


def key_row(entry: KeyEntry) -> dict[str, Any]:
    """Return a key as a row."""
    return _row(entry)


def json_value(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a mapping that JSON holds.

    Raises: DefinitionError.
    """
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"{what} must be what JSON can hold: {error}", where=what) from error


def _row(entry: RunEntry | WorkflowEntry | KeyEntry) -> dict[str, Any]:
    return {field.name: getattr(entry, field.name) for field in fields(entry)}


def entry_of(kind: type[T], row: Mapping[Any, Any]) -> T:
    """Return the entry of a row."""
    return kind(**{field.name: row[field.name] for field in fields(kind)})


def letter_of(row: Mapping[Any, Any]) -> DeadLetter:
    """Return the dead letter of a row."""
    cells = {field.name: row[field.name] for field in fields(DeadLetter)}
    failures: Sequence[Mapping[str, Any]] = cells["errors"]
    return DeadLetter(**{**cells, "errors": tuple(Failure(**failure) for failure in failures)})
