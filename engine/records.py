"""What is searched: the index of runs and dead letters, and the catalogue of workflows and API keys. A port, its values, its queries.

The index is derived: where it disagrees with the log, the log is right, and `gecko doctor --rebuild` makes it again. The catalogue is a
source of truth of its own. Neither is asked by a run that goes on. `check_records` in engine/testing tests every promise below.

Instants are seconds since 1970, UTC. Texts are kept as UTF-8 without zero characters; what that cannot hold is kept as its escape.
"""

import math
from collections.abc import AsyncIterable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar

from engine.core.registry import unknown
from engine.errors import DefinitionError, UnknownName
from engine.ports import RunKey

T = TypeVar("T")

MOST = 1000
"""The longest page."""
_LONGEST_PLACE = 16_384
LONGEST = 512
"""The longest text that is searched for."""
RUN_SORTS = ("started_at", "updated_at", "finished_at", "run_id", "workflow", "status", "owner", "priority", "seq")
WORKFLOW_SORTS = ("name", "version", "created_at", "updated_at")
LETTER_SORTS = ("created_at", "run_id", "workflow", "node", "attempts")
RUN_COUNTS = ("status", "workflow", "owner", "tenant", "coordinator", "environment")
LETTER_STATUSES = ("open", "replayed", "dropped")


# Values.


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """A run as lists show it."""

    run_id: str
    workflow: str
    session: str
    n: int
    status: str
    """As its log tells it; that nobody drives a run which is recorded as running is for the log to say, not for the index."""
    started_at: float
    updated_at: float
    finished_at: float | None = None
    """When it ended; None while it may go on by itself or be resumed from a pause."""
    seq: int = 0
    """The number of the newest event that the entry knows of."""
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    owner: str = ""
    """Who submitted it: the id of an API key, or a user; empty: unknown."""
    tenant: str = ""
    coordinator: str = ""
    """Who drives it, or drove it last."""
    error: str = ""
    """`Type: message` of what it failed of."""
    target: str | None = None
    """The import path of its workflow."""
    environment: str = ""
    """A hash of the runtime environment that it was submitted with."""
    hash: str = ""
    """Of the definition that it was driven with last."""
    steps: int = 0
    """How many steps succeeded, as far as the entry knows."""
    resumes: int = 0

    @property
    def key(self) -> RunKey:
        """Where its log is."""
        return RunKey(self.workflow, self.session, self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowEntry:
    """One version of a workflow."""

    name: str
    version: str
    hash: str
    """Of what is defined, so that one version never means two things."""
    tenant: str = ""
    type: str = "dag"
    """`dag` or `state_machine`."""
    description: str = ""
    target: str | None = None
    """Its import path; None for one that is a definition alone."""
    definition: str = ""
    """The definition as JSON text."""
    is_active: bool = True
    """Whether new runs may be started."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """In JSON's types."""
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """An API key; the key itself is known to nobody but its holder."""

    id: str
    name: str
    hash: str
    role: str
    """`viewer`, `operator` or `admin`."""
    tenant: str = ""
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None

    def is_valid(self, at: float) -> bool:
        """Tell whether the key opens anything at a moment."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One attempt that failed."""

    attempt: int
    type: str
    message: str
    traceback: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A step whose attempts are used up, in a run that failed of it."""

    id: str
    """`letter_id` of its step."""
    run_id: str
    workflow: str
    node: str
    """The node; `outer/inner` inside a sub-workflow."""
    step_id: str
    input: bytes | None = None
    """What the step was given, in the codec's bytes; None where the log alone does not tell, or where it is too large for a copy."""
    errors: Sequence[Failure] = ()
    """What it failed of, by attempt."""
    attempts: int = 0
    """Of how many attempts."""
    tenant: str = ""
    created_at: float
    """When its last attempt failed. A letter with a later one is the newer: it replaces what is there, its status too."""
    status: str = "open"
    """`open`, `replayed` or `dropped`."""
    replay_run_id: str | None = None
    """The run in which it was replayed; its own, where that was resumed and came past it."""


def letter_id(step_id: str) -> str:
    """Return the id of a step's dead letter: short, fit for URLs, and the same whenever it is made."""
    return sha256(step_id.encode("utf-8", "backslashreplace")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What there is, counted."""

    runs: Mapping[str, int]
    """By status, those that there are."""
    failed: int
    """How many runs failed or timed out since the moment that was asked for."""
    seconds: float | None
    """How long the runs took that completed since then, on average; None where there are none."""
    workflows: int
    """How many versions of workflows there are, and how many of them are active."""
    active_workflows: int
    keys: int
    letters: Mapping[str, int]
    """Dead letters by status."""


# Queries.


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list."""

    items: Sequence[T]
    total: int
    """How many the query finds, on all pages."""
    offset: int
    limit: int
    next: str | None = None
    """The `after` of the next page; None on the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is common to queries: an order and a page of it.

    A page is named by `offset`, or by the `next` of the page before it: then nothing is shown twice or left out when entries come or go
    meanwhile, as long as those of the pages keep their place in the order.

    Raises: DefinitionError for what is no page, UnknownName for what is no order.
    """

    search: str = ""
    """Part of a text, in any letter case."""
    sort: str = ""
    """What it is sorted by, with `-` before it for the greatest first. Equals are sorted by their ids, in the same direction; texts by code
    points; what has not finished finishes last."""
    limit: int = 20
    offset: int = 0
    after: str | None = None
    tenant: str | None = None
    """None: every tenant's."""

    def __post_init__(self) -> None:
        _check_number(self.limit, "limit", 1, MOST)
        _check_number(self.offset, "offset", 0, 2**53)
        _check_text(self.search, "search")
        if self.after is not None and not (isinstance(self.after, str) and len(self.after) <= _LONGEST_PLACE):
            raise DefinitionError("after must be the next of a page", where="after")
        if self.after is not None and self.offset:
            raise DefinitionError("a page is named by offset or by after, not by both: leave one out", where="after")

    @property
    def order(self) -> tuple[str, bool]:
        """What it is sorted by, and whether the greatest comes first."""
        return self.sort.removeprefix("-"), self.sort.startswith("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery(Query):
    """Which runs; every part that is given has to fit."""

    search: str = ""
    """Part of the run's id, its session's or workflow's name, or its error, in any letter case."""
    sort: str = "-started_at"
    """One of `RUN_SORTS`."""
    status: Collection[str] = ()
    """One of these; empty: any."""
    workflow: str | None = None
    session: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """All of these."""
    owner: str | None = None
    coordinator: str | None = None
    started_after: float | None = None
    """Not before this moment."""
    started_before: float | None = None
    """Before this moment, and not at it."""
    updated_after: float | None = None
    updated_before: float | None = None

    def __post_init__(self) -> None:
        Query.__post_init__(self)
        _check_sort(self.sort, RUN_SORTS)
        _check_collection(self.status, "status")
        for name in ("started_after", "started_before", "updated_after", "updated_before"):
            _check_instant(getattr(self, name), name)
        for name in ("workflow", "session", "owner", "coordinator"):
            _check_text(getattr(self, name) or "", name)
        if len(self.labels) > 16 or not all(isinstance(text, str) for pair in self.labels.items() for text in pair):
            raise DefinitionError("labels must be at most 16 names with their texts", where="labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowQuery(Query):
    """Which versions of workflows."""

    search: str = ""
    """Part of name or description, in any letter case."""
    sort: str = "name"
    """One of `WORKFLOW_SORTS`."""
    name: str | None = None
    type: str | None = None
    is_active: bool | None = None

    def __post_init__(self) -> None:
        Query.__post_init__(self)
        _check_sort(self.sort, WORKFLOW_SORTS)
        for name in ("name", "type"):
            _check_text(getattr(self, name) or "", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterQuery(Query):
    """Which dead letters."""

    search: str = ""
    """Part of the step's id or of an error, in any letter case."""
    sort: str = "-created_at"
    """One of `LETTER_SORTS`."""
    status: Collection[str] = ("open",)
    """One of these; empty: any."""
    workflow: str | None = None
    run_id: str | None = None
    node: str | None = None

    def __post_init__(self) -> None:
        Query.__post_init__(self)
        _check_sort(self.sort, LETTER_SORTS)
        _check_collection(self.status, "status")
        for status in self.status:
            check_letter_status(status)
        for name in ("workflow", "run_id", "node"):
            _check_text(getattr(self, name) or "", name)


def check_letter_status(status: str) -> str:
    """Return a status that a dead letter may have. Raises: UnknownName."""
    if status not in LETTER_STATUSES:
        raise UnknownName(unknown("status of a dead letter", status, LETTER_STATUSES), where="status")
    return status


def check_count(by: str) -> str:
    """Return what runs may be counted by. Raises: UnknownName."""
    if by not in RUN_COUNTS:
        raise UnknownName(unknown("what runs are counted by", by, RUN_COUNTS), where="by")
    return by


def _check_number(value: object, what: str, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise DefinitionError(f"{what} must be a whole number from {least} to {most}, not {value!r:.80}", where=what)


def _check_instant(value: object, what: str) -> None:
    fits = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))
    if not fits:
        raise DefinitionError(f"{what} must be seconds since 1970, not {value!r:.80}", where=what)


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise DefinitionError(f"{what} must be a text, not {value!r:.80}", where=what)
    if len(value) > LONGEST:
        raise DefinitionError(f"{what} has {len(value):,} characters; it may have {LONGEST}", where=what)


def _check_collection(value: object, what: str) -> None:
    if isinstance(value, str) or not isinstance(value, Collection) or len(value) > 32 or not all(isinstance(v, str) for v in value):
        raise DefinitionError(f"{what} must be up to 32 texts, as ('running',), not {value!r:.80}", where=what)


def _check_sort(value: object, known: Sequence[str]) -> None:
    name = value.removeprefix("-") if isinstance(value, str) else value
    if name not in known:
        raise UnknownName(unknown("sort", name if isinstance(name, str) else repr(name)[:80], known), where="sort")


# The port.


class Records(Protocol):
    """The index and the catalogue of one place. Calls may come from any event loop and thread. Any of them may raise StoreUnavailable."""

    url: str
    """Without a password."""

    # The index of runs.

    async def put_runs(self, entries: Sequence[RunEntry]) -> None:
        """Put runs in, all or none of them; putting one again changes nothing.

        An entry never overwrites one of the same start (`started_at`) that knows of more (`seq`), nor one with a later start: under the
        id of a run that was deleted another one has begun. Of entries that know the same, the last stays.
        """
        ...

    async def get_run(self, run_id: str) -> RunEntry | None: ...

    async def list_runs(self, query: RunQuery) -> Page[RunEntry]: ...

    async def count_runs(self, query: RunQuery, by: str = "status") -> Mapping[str, int]:
        """Count the runs that a query finds, on all its pages, by one of `RUN_COUNTS`; what there is none of is left out.

        Raises: UnknownName.
        """
        ...

    async def drop_runs(self, run_ids: Collection[str]) -> int:
        """Take runs and their dead letters out; how many runs. Those that are not there are passed over."""
        ...

    async def replace_index(self, source: "AsyncIterable[tuple[RunEntry, Sequence[DeadLetter]]]") -> None:
        """Make the index what a source says, read to its end first; readers see it as it was or as it is then, never half.

        What others put in while the source is read stays; so do the marks of dead letters that the source calls open.
        """
        ...

    # Dead letters.

    async def put_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Put dead letters in, all or none of them. One that is open again and not newer keeps the mark that it has."""
        ...

    async def get_letter(self, id: str) -> DeadLetter | None: ...

    async def list_letters(self, query: LetterQuery) -> Page[DeadLetter]: ...

    async def mark_letter(self, id: str, status: str, *, replay_run_id: str | None = None) -> DeadLetter:
        """Say what became of a dead letter, and return it.

        Raises: UnknownName for a letter or a status that is not there.
        """
        ...

    # The catalogue of workflows.

    async def put_workflow(self, entry: WorkflowEntry) -> WorkflowEntry:
        """Put a version of a workflow in, and return it as it is kept. What is there with the same hash keeps its `created_at`.

        Raises: VersionInUse where the tenant's version has another hash.
        """
        ...

    async def get_workflow(self, name: str, version: str | None = None, *, tenant: str = "") -> WorkflowEntry | None:
        """Return a version of a workflow; None: the active one that was put in last (`created_at`)."""
        ...

    async def list_workflows(self, query: WorkflowQuery) -> Page[WorkflowEntry]: ...

    async def update_workflow(
        self, name: str, version: str, *, at: float, tenant: str = "",
        description: str | None = None, is_active: bool | None = None, metadata: Mapping[str, Any] | None = None,
    ) -> WorkflowEntry:  # fmt: skip
        """Change what is said of a version, never what it is; what is None stays.

        Raises: UnknownName.
        """
        ...

    async def drop_workflow(self, name: str, version: str | None = None, *, tenant: str = "") -> int:
        """Take a version out, or all of them; how many."""
        ...

    # API keys.

    async def put_key(self, entry: KeyEntry) -> None:
        """Put a key in. Raises: DefinitionError where its id or its hash is there already."""
        ...

    async def find_key(self, hash: str) -> KeyEntry | None:
        """Return the key with a hash, also one that is revoked or has expired: see `KeyEntry.is_valid`."""
        ...

    async def list_keys(self, *, tenant: str | None = None) -> Sequence[KeyEntry]:
        """The keys, oldest first."""
        ...

    async def use_key(self, id: str, at: float) -> None:
        """Note that a key was used; an older moment than the one that is noted changes nothing, nor does a key that is not there."""
        ...

    async def revoke_key(self, id: str, at: float) -> KeyEntry:
        """Make a key open nothing any more, for good: the first moment stays. Raises: UnknownName."""
        ...

    # All of it.

    async def statistics(self, *, since: float = 0.0, tenant: str | None = None) -> Statistics: ...

    async def close(self) -> None:
        """Let go of connections and threads; records that were closed may be used again."""
        ...
