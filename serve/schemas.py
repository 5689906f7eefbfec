"""What requests and answers of the HTTP service hold, with the examples that its OpenAPI shows. The client reads answers with them too.

HTTP says execution for a run, and `suspended` for paused.
"""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from engine.records import KeyEntry, RunEntry
from serve.registry import Registered
from serve.report import StepReport
from serve.runs import RunDetail, RunView

T = TypeVar("T")

LONGEST_WAIT = 300.0
DEEPEST = 64
"""So deep may lists and objects lie in each other."""
LONGEST_NAME = 512

ExecutionStatus = Literal["pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out"]
Role = Literal["viewer", "operator", "admin"]

EXECUTION = {
    "execution_id": "audit.order-7.1", "workflow_id": "audit", "status": "pending", "start_time": "2026-03-01T12:00:00.120000Z",
    "end_time": None, "duration_ms": None, "error_message": None, "created_at": "2026-03-01T12:00:00.120000Z", "session_id": "order-7",
    "metadata": {"team": "blue"},
}  # fmt: skip
DETAIL = {
    **EXECUTION, "status": "completed", "end_time": "2026-03-01T12:00:02.370000Z", "duration_ms": 2250.0, "context": {"invoice": 7},
    "input_data": {"invoice": 7}, "output_data": {"passed": True}, "priority": 0, "seq": 6, "resumes": 0,
    "node_executions": [
        {"node_id": "check", "step_id": "audit.order-7.1/check/1", "status": "success", "start_time": "2026-03-01T12:00:00.130000Z",
         "end_time": "2026-03-01T12:00:02.360000Z", "duration_ms": 2230.0, "retry_count": 0, "error_info": None},
    ],
    "node_executions_total": 1,
}  # fmt: skip
WORKFLOW = {
    "id": "audit", "name": "audit", "version": "1.0.0", "type": "dag", "description": "", "is_active": True, "node_count": 1,
    "created_at": "2026-03-01T11:59:00Z", "updated_at": "2026-03-01T11:59:00Z", "metadata": {},
}  # fmt: skip
GRAPH = {
    "entries": ["check"],
    "nodes": [{"name": "check", "kind": "step", "body": "shop.audit.check", "join": "any", "on_error": "fail"}],
    "edges": [],
    "dependencies": [],
}  # fmt: skip
KEY = {
    "id": "key_5f2a90c1d3e4", "name": "ci", "role": "operator", "created_at": "2026-03-01T12:00:00Z", "expires_at": None,
    "revoked_at": None, "last_used_at": None,
}  # fmt: skip


def check_json(value: Any) -> Any:
    """Return a value of a request, unless it is nested too deeply or holds what JSON does not have, as NaN.

    Raises: ValueError.
    """
    pending = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if depth > DEEPEST:
            raise ValueError(f"lists and objects lie in each other more than {DEEPEST} deep")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("NaN and Infinity are no JSON")
        if isinstance(item, dict):
            pending += ((part, depth + 1) for part in item.values())
        elif isinstance(item, list):
            pending += ((part, depth + 1) for part in item)
    return value


def _is_number(value: Any) -> Any:
    """Refuse what pydantic would turn into a number, as `true` and `"1"`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError("must be a number")
    return value


Json = Annotated[Any, AfterValidator(check_json)]
Seconds = Annotated[float, BeforeValidator(_is_number), Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=LONGEST_NAME)]


class Answer(BaseModel):
    """What the service answers with."""

    model_config = ConfigDict(extra="ignore")


def shown(example: dict[str, Any], *, extra: Literal["ignore", "forbid"] = "ignore") -> ConfigDict:
    """Return the settings of a model that shows an example."""
    return ConfigDict(extra=extra, json_schema_extra={"examples": [example]})


# Requests.


class ExecuteRequest(BaseModel):
    """A run of a workflow that is asked for."""

    model_config = shown({"context": {"invoice": 7}, "async_mode": True, "priority": 0, "metadata": {"team": "blue"}}, extra="forbid")

    context: Json = Field(default_factory=dict, description="The input of the run: any JSON.")
    async_mode: Annotated[bool, Field(strict=True, description="False: the answer waits for the end of the run.")] = True
    wait: Annotated[Seconds, Field(ge=0, le=LONGEST_WAIT)] = Field(
        default=30.0, description="With `async_mode` false: seconds after which the answer is 202 all the same."
    )
    priority: Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000, description="A greater one goes first where runs wait.")] = 0
    metadata: dict[Text, Text] = Field(default_factory=dict, max_length=64, description="Texts by name, to find the run by.")
    session_id: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)] | None = Field(
        default=None,
        description="The same session is the same execution: unfinished or failed it goes on, finished it is answered from its log.",
    )
    timeout: Annotated[Seconds, Field(ge=0, le=1e9)] | None = Field(default=None, description="Seconds that the run may take.")


class KeyRequest(BaseModel):
    """An API key that is asked for."""

    model_config = shown({"name": "ci", "role": "operator", "expires_in": 2_592_000}, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    role: Role = "operator"
    expires_in: Annotated[Seconds, Field(gt=0, le=1e9)] | None = Field(default=None, description="Seconds; left out: it does not expire.")


# Answers.


class Execution(Answer):
    """A run."""

    model_config = shown(EXECUTION)

    execution_id: str
    workflow_id: str
    status: ExecutionStatus
    start_time: AwareDatetime | None
    end_time: AwareDatetime | None
    duration_ms: float | None
    error_message: str | None
    created_at: AwareDatetime
    session_id: str
    metadata: dict[str, str]


class NodeExecution(Answer):
    """A step of a run."""

    node_id: str
    step_id: str
    status: str
    start_time: AwareDatetime | None
    end_time: AwareDatetime | None
    duration_ms: float | None
    retry_count: int
    error_info: str | None


class ExecutionDetail(Execution):
    """A run with its input, output and steps."""

    model_config = shown(DETAIL)

    context: Any
    input_data: Any
    output_data: Any
    priority: int
    seq: int
    """The number of its newest event."""
    resumes: int
    node_executions: list[NodeExecution]
    """The newest 1,000, oldest first."""
    node_executions_total: int


class Page(Answer, Generic[T]):
    """Part of a list, with the number of all."""

    total: int
    offset: int
    limit: int
    items: list[T]
    next: str | None = None
    """The `after` of the next page, which shows nothing twice though entries come meanwhile; None on the last."""


class Done(Answer):
    """What became of what was asked of a run."""

    model_config = shown({"success": True, "message": "execution 'audit.order-7.1' is cancelled", "status": "cancelled"})

    success: bool
    message: str
    status: ExecutionStatus


class Workflow(Answer):
    """A registered workflow."""

    model_config = shown(WORKFLOW)

    id: str
    name: str
    version: str
    type: str
    description: str
    is_active: bool
    node_count: int
    created_at: AwareDatetime
    updated_at: AwareDatetime
    metadata: dict[str, Any]


class WorkflowDetail(Workflow):
    """A registered workflow with its graph."""

    model_config = shown({**WORKFLOW, **GRAPH})

    entries: list[str]
    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    dependencies: list[dict[str, Any]]


class Graph(Answer):
    """The graph of a workflow."""

    model_config = shown({"name": "audit", **GRAPH})

    name: str
    entries: list[str]
    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    dependencies: list[dict[str, Any]]


class Key(Answer):
    """An API key, without the key itself."""

    model_config = shown(KEY)

    id: str
    name: str
    role: Role
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None


class NewKey(Key):
    """An API key that was just made."""

    model_config = shown({**KEY, "key": "gk_..."})

    key: str
    """The key itself, which is told here and never again."""


class Health(Answer):
    """Whether the service and all that it stands on answer."""

    model_config = shown({
        "status": "healthy", "version": "0.1.0", "timestamp": "2026-03-01T12:00:00Z",
        "checks": {"storage": True, "records": True, "cluster": True, "coordinators": True},
    })  # fmt: skip

    status: Literal["healthy", "unhealthy"]
    version: str | None = None
    timestamp: AwareDatetime
    checks: dict[str, bool] | None = None
    """Only told to who has a key."""


class Figures(Answer):
    """What there is, counted."""

    active_workflows: int
    total_executions: int
    running_executions: int
    failed_executions_24h: int
    avg_execution_time_ms: float | None
    """Of those that completed within the time range."""
    resource_usage: dict[str, Any]
    """What each coordinator has under way and waiting, null for one that does not answer."""


class Problem(Answer):
    """An error, as RFC 9457 describes problems, with the members of earlier versions."""

    model_config = shown({
        "type": "urn:gecko:problem:run-not-found", "title": "The run was not found.", "status": 404,
        "detail": "run 'audit.order-9.1' not found", "instance": "/api/v1/executions/audit.order-9.1", "where": None, "retry_after": None,
        "error": "RunNotFound", "message": "run 'audit.order-9.1' not found", "details": [], "request_id": "4c1f2b",
        "timestamp": "2026-03-01T12:00:00Z",
    })  # fmt: skip

    type: str
    title: str
    status: int
    detail: str
    instance: str
    where: str | None
    retry_after: float | None
    error: str
    """The class of the error."""
    message: str
    details: list[dict[str, Any]]
    """Of an invalid request: where and what, for each part."""
    request_id: str
    timestamp: AwareDatetime


# How answers are made of what the use cases tell.


def execution_of(run: RunView) -> Execution:
    """Return a run as HTTP shows it."""
    return Execution(**_execution(run))


def detail_of(run: RunDetail) -> ExecutionDetail:
    """Return a run with its steps as HTTP shows it."""
    return ExecutionDetail(
        **_execution(run), context=run.input, input_data=run.input, output_data=run.output, priority=run.priority, seq=run.seq,
        resumes=run.resumes, node_executions=[_node(run.run_id, step) for step in run.steps], node_executions_total=run.steps_total,
    )  # fmt: skip


def entry_of(run: RunEntry) -> Execution:
    """Return a run of a list as HTTP shows it."""
    return execution_of(
        RunView(run_id=run.run_id, workflow=run.workflow, session=run.session, status=run.status, started_at=run.started_at,
                ended_at=run.finished_at, error=run.error or None, labels=run.labels)
    )  # fmt: skip


def _execution(run: RunView) -> dict[str, Any]:
    began = moment(run.started_at)
    return {
        "execution_id": run.run_id, "workflow_id": run.workflow, "status": status_of(run.status), "created_at": began,
        "start_time": None if run.status == "pending" else began, "end_time": moment(run.ended_at), "error_message": run.error,
        "duration_ms": None if run.ended_at is None else round(1000 * (run.ended_at - run.started_at), 3), "session_id": run.session,
        "metadata": dict(run.labels),
    }  # fmt: skip


def _node(run_id: str, step: StepReport) -> NodeExecution:
    end = None if step.duration is None else moment(step.started_at + step.duration)
    return NodeExecution(
        node_id=step.node, step_id=f"{run_id}/{step.step}", status=step.status, start_time=moment(step.started_at), end_time=end,
        duration_ms=None if step.duration is None else round(1000 * step.duration, 3), retry_count=max(0, step.attempt - 1),
        error_info=step.error,
    )  # fmt: skip


def workflow_of(found: Registered, make: Callable[..., T] = Workflow) -> T:  # type: ignore[assignment] - a Workflow is what T is by default
    """Return a workflow as HTTP shows it; with `WorkflowDetail`, its graph too."""
    graph = found.graph() if make is WorkflowDetail else {}
    return make(
        id=found.name, name=found.name, version=found.version, type=found.type, description="", is_active=True,
        node_count=len(found.flow.graph.nodes), created_at=found.since, updated_at=found.since, metadata={},
        **{name: graph[name] for name in ("entries", "nodes", "edges", "dependencies") if graph},
    )  # fmt: skip


def key_of(entry: KeyEntry) -> Key:
    """Return an API key as HTTP shows it."""
    return Key(**_key(entry))


def new_key_of(entry: KeyEntry, key: str) -> NewKey:
    """Return an API key that was just made."""
    return NewKey(**_key(entry), key=key)


def _key(entry: KeyEntry) -> dict[str, Any]:
    moments = {name: moment(getattr(entry, name)) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return {"id": entry.id, "name": entry.name, "role": entry.role, **moments}


def status_of(status: str) -> Any:
    """Return a run's status in HTTP's words."""
    return "suspended" if status == "paused" else status


def moment(seconds: float | None) -> Any:
    """Return seconds since 1970 as a moment; None for None and for 0."""
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
