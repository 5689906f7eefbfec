"""Queries of records as statements: what fits, in which order, and which page of it. It builds statements and executes none.

A page after another is found by the place of its last entry in the order, never by counting, so that it costs the same however far
it is, and entries that come or go meanwhile shift nothing.
"""

import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from engine.errors import DefinitionError
from engine.records import LetterQuery, Query, RunQuery, WorkflowQuery
from engine.store.records_tables import NEVER, clean, folded, labels, letters, runs, workflows


class Order(NamedTuple):
    """What a page is sorted by."""

    name: str
    """As the query calls it."""
    columns: Sequence[sa.ColumnElement[Any]]
    """The last of them tell entries apart."""
    descending: bool


def run_conditions(query: RunQuery) -> list[sa.ColumnElement[bool]]:
    """Return what runs have to fulfil."""
    found = _common(runs, query)
    found += _equal(runs, {name: getattr(query, name) for name in ("workflow", "session", "owner", "coordinator")})
    if query.status:
        found.append(runs.c.status.in_(sorted(set(query.status))))
    for name in ("started", "updated"):
        column, after, before = runs.c[f"{name}_at"], getattr(query, f"{name}_after"), getattr(query, f"{name}_before")
        found += [] if after is None else [column >= float(after)]
        found += [] if before is None else [column < float(before)]
    for name, value in query.labels.items():
        having = sa.select(labels.c.run_id).where(labels.c.name == name, labels.c.value == value)
        found.append(runs.c.run_id.in_(having))
    return found


def workflow_conditions(query: WorkflowQuery) -> list[sa.ColumnElement[bool]]:
    """Return what versions of workflows have to fulfil."""
    found = _common(workflows, query) + _equal(workflows, {"name": query.name, "type": query.type})
    return found if query.is_active is None else [*found, workflows.c.is_active == sa.literal(query.is_active)]


def letter_conditions(query: LetterQuery) -> list[sa.ColumnElement[bool]]:
    """Return what dead letters have to fulfil."""
    found = _common(letters, query) + _equal(letters, {name: getattr(query, name) for name in ("workflow", "run_id", "node")})
    return [*found, letters.c.status.in_(sorted(set(query.status)))] if query.status else found


def order_of(table: sa.Table, query: Query) -> Order:
    """Return the order of a query, in which no two entries are equal."""
    name, descending = query.order
    first: sa.ColumnElement[Any] = table.c[name]
    if first.nullable:  # databases disagree where nothing comes
        first = sa.func.coalesce(first, sa.literal(NEVER, sa.Double))
    rest = [column for column in _identity(table) if column.name != name]
    return Order(name, [first, *rest], descending)


def page_of(table: sa.Table, conditions: Iterable[sa.ColumnElement[bool]], query: Query) -> sa.Select[*tuple[Any, ...]]:
    """Return what reads a page, and one row more where it is not the last. Raises: DefinitionError for an `after` of another list."""
    order = order_of(table, query)
    places = [column.label(f"_place_{i}") for i, column in enumerate(order.columns)]
    statement = sa.select(table, *places).where(*conditions)
    if query.after is not None:
        place = sa.tuple_(*_after(query.after, order))
        here = sa.tuple_(*order.columns)
        statement = statement.where(here < place if order.descending else here > place)
    directed = [column.desc() if order.descending else column.asc() for column in order.columns]
    return statement.order_by(*directed).limit(query.limit + 1).offset(query.offset)


def next_of(order: Order, row: Mapping[Any, Any]) -> str:
    """Return the `after` of the page that comes after a row."""
    place = [order.name, *(row[f"_place_{i}"] for i in range(len(order.columns)))]
    return urlsafe_b64encode(json.dumps(place, ensure_ascii=False, separators=(",", ":")).encode()).decode().rstrip("=")


def _after(text: str, order: Order) -> list[sa.ColumnElement[Any]]:
    try:
        name, *place = json.loads(urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)))
    except (NotBase64, ValueError, TypeError, RecursionError):
        raise DefinitionError("after must be the next of a page; take it from there, or leave it out", where="after") from None
    fitting = len(place) == len(order.columns) and all(_fits(v, c) for v, c in zip(place, order.columns, strict=True))
    if name != order.name or not fitting:
        raise DefinitionError(f"after belongs to another list than one sorted by {order.name!r}; begin with its first page", where="after")
    return [sa.literal(value, column.type) for value, column in zip(place, order.columns, strict=True)]


def _fits(value: Any, column: sa.ColumnElement[Any]) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(column.type, sa.Double):
        return whole or (isinstance(value, float) and math.isfinite(value))
    return whole if isinstance(column.type, sa.BigInteger) else isinstance(value, str)


def _identity(table: sa.Table) -> list[sa.Column[Any]]:
    if table is workflows:
        return [table.c.name, table.c.version, table.c.tenant]
    return list(table.primary_key.columns)


def _common(table: sa.Table, query: Query) -> list[sa.ColumnElement[bool]]:
    found = _equal(table, {"tenant": query.tenant})
    if query.search:
        found.append(table.c.searched.contains(clean(folded(query.search)), autoescape=True))
    return found


def _equal(table: sa.Table, wanted: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in wanted.items() if value is not None]
