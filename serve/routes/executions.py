"""Runs, which HTTP calls executions: execute, list, get, cancel, suspend, resume, retry, events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from engine.checkpoint.table import json_text
from engine.core.events import Event
from engine.errors import DefinitionError, GeckoError
from engine.records import LONGEST, RUN_SORTS, RunQuery
from serve.errors import InvalidRequest
from serve.middleware.errors import problem_of
from serve.parts import Parts
from serve.routes.answers import Limit, Offset, Search, Service, problems, reply
from serve.runs import DONE, Start
from serve.schemas import (
    LONGEST_NAME,
    Done,
    ExecuteRequest,
    Execution,
    ExecutionDetail,
    ExecutionStatus,
    Page,
    detail_of,
    entry_of,
    execution_of,
    moment,
    status_of,
)

router = APIRouter(prefix="/api/v1/executions", tags=["executions"])

HEARTBEAT = 10.0
"""Seconds between two signs of life in a stream without events."""
RECONNECT = 1000
"""Milliseconds after which a reader whose stream was cut comes back."""

ExecutionId = Annotated[str, Path(description="The id of an execution.", max_length=1100, examples=["audit.order-7.1"])]


@router.post(
    "/{workflow_id}/execute", status_code=202, response_model=Execution, summary="Execute a workflow",
    responses=problems(404, 409) | {200: {"model": ExecutionDetail, "description": "It has ended, and `async_mode` is false."}},
)  # fmt: skip
async def execute(
    request: Request, parts: Service, workflow_id: Annotated[str, Path(max_length=LONGEST_NAME, examples=["audit"])],
    body: ExecuteRequest | None = None,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="Names this call: repeated with the same one it is the same execution.")
    ] = None,
) -> Response:  # fmt: skip
    """Begin an execution: 202 once it is recorded. With `async_mode` false the answer waits for its end: 200, or 202 after `wait`."""
    asked = body or ExecuteRequest()
    start = Start(
        workflow=workflow_id, input=asked.context, session=asked.session_id, key=_key(idempotency_key), priority=asked.priority,
        labels=asked.metadata, timeout=asked.timeout, owner=request.state.caller.id,
    )  # fmt: skip
    run = await parts.runs.begin(start)
    if not asked.async_mode:
        ended = await parts.runs.wait(run.run_id, asked.wait)
        if ended is not None:
            return reply(detail_of(ended))
    return reply(execution_of(run), 202, {"location": f"/api/v1/executions/{quote(run.run_id, safe='')}"})


def _key(text: str | None) -> str | None:
    """Return an Idempotency-Key without the quotes that the header may have. Raises: InvalidRequest."""
    if text is None:
        return None
    key = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if not key or not key.isascii() or not key.isprintable():
        raise InvalidRequest("an Idempotency-Key is a text of 1 to 255 printable ASCII characters", where="Idempotency-Key")
    return key


@router.get("", response_model=Page[Execution], summary="List executions", responses=problems())
async def find(
    parts: Service,
    workflow_id: Annotated[str | None, Query(max_length=LONGEST)] = None,
    status: Annotated[list[ExecutionStatus] | None, Query(max_length=8, description="One of these.")] = None,
    session_id: Annotated[str | None, Query(max_length=LONGEST)] = None,
    label: Annotated[list[str] | None, Query(max_length=16, description="`name:text` of its metadata; all of these.")] = None,
    search: Search = "",
    sort: Annotated[str, Query(max_length=40, description=f"One of {', '.join(RUN_SORTS)}; with `-` the greatest first.")] = "-started_at",
    after: Annotated[str | None, Query(max_length=16_384, description="The `next` of the page before; instead of `offset`.")] = None,
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    """List executions, newest first. `total` counts all that fit; one that waits for its turn is listed as running."""
    query = RunQuery(
        workflow=workflow_id, session=session_id, status=tuple("paused" if s == "suspended" else s for s in status or ()),
        labels=dict(map(_label, label or ())), search=search, sort=sort, after=after, offset=offset, limit=limit,
    )  # fmt: skip
    page = await parts.runs.find(query)
    items = [entry_of(entry) for entry in page.items]
    return reply(Page(total=page.total, offset=page.offset, limit=page.limit, items=items, next=page.next))


def _label(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (name and colon):
        raise InvalidRequest(f"a label is name:text, not {text!r:.80}", where="label")
    return name, value


@router.get("/{execution_id}", response_model=ExecutionDetail, summary="Get an execution", responses=problems(404))
async def get(parts: Service, execution_id: ExecutionId) -> Response:
    """Return an execution with its input, output and steps."""
    return reply(detail_of(await parts.runs.detail(execution_id)))


async def _act(parts: Parts, execution_id: str, action: str) -> Response:
    status = await parts.runs.act(execution_id, action)
    verb = f"is {DONE[action]}" if status not in ("running", "pending") or action in ("resume", "retry") else f"is being {DONE[action]}"
    told = verb.replace("paused", "suspended")
    return reply(Done(success=True, message=f"execution {execution_id!r} {told}", status=status_of(status)))


@router.post("/{execution_id}/cancel", response_model=Done, summary="Cancel an execution", responses=problems(404, 409))
async def cancel(parts: Service, execution_id: ExecutionId) -> Response:
    """Stop an execution for good. 400 where it has completed or was cancelled."""
    return await _act(parts, execution_id, "cancel")


@router.post("/{execution_id}/suspend", response_model=Done, summary="Suspend an execution", responses=problems(404, 409))
async def suspend(parts: Service, execution_id: ExecutionId) -> Response:
    """Let no further step start; those that run end and are recorded. 400 where it is not running."""
    return await _act(parts, execution_id, "pause")


@router.post("/{execution_id}/resume", response_model=Done, summary="Resume an execution", responses=problems(404, 409))
async def resume(parts: Service, execution_id: ExecutionId) -> Response:
    """Go on with an execution that is suspended, failed or timed out. 400 for any other."""
    return await _act(parts, execution_id, "resume")


@router.post("/{execution_id}/retry", response_model=Done, summary="Retry an execution", responses=problems(404, 409))
async def retry(parts: Service, execution_id: ExecutionId) -> Response:
    """Go on with an execution that failed or timed out, from what failed. 400 for any other."""
    return await _act(parts, execution_id, "retry")


@router.get(
    "/{execution_id}/events", summary="Follow an execution", response_class=EventSourceResponse,
    responses=problems(404) | {
        200: {"description": "Server-Sent Events: id is the number of the event, event its kind, data is JSON.",
              "content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "It has ended, and there is no event behind that number: nothing to come back for."},
    },
)  # fmt: skip
async def events(
    request: Request, parts: Service, execution_id: ExecutionId,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only events with a greater number.")] = 0,
    transient: Annotated[bool, Query(description="Also progress, which has no number and may be missed.")] = False,
    last_event_id: Annotated[str | None, Header(max_length=40, description="The number of the last event that was seen.")] = None,
) -> Response:  # fmt: skip
    """Send the events of an execution as they are recorded, each once and in order, until it has ended."""
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 17):
            raise DefinitionError(f"Last-Event-ID is the number of an event, not {last_event_id!r}", where="Last-Event-ID")
        after = int(last_event_id)
    if not await parts.runs.check_after(execution_id, after):
        return Response(status_code=204)
    stream = _stream(request, parts.runs.events(execution_id, after, transient=transient))
    return EventSourceResponse(stream, ping=HEARTBEAT, send_timeout=60.0, sep="\n")


async def _stream(request: Request, found: AsyncGenerator[Event]) -> AsyncGenerator[ServerSentEvent]:
    yield ServerSentEvent(comment="ok", retry=RECONNECT, sep="\n")
    async with aclosing(found) as told:
        try:
            async for event in told:
                number = None if event.ordinal else str(event.seq)
                yield ServerSentEvent(data=json_text(event_data(event)), event=event.kind, id=number, sep="\n")
        except GeckoError as error:  # the answer has begun, so the error is its last event; the reader comes back
            _, problem, _ = problem_of(error, request.url.path, request.state.request_id)
            yield ServerSentEvent(data=json_text(problem), event="error", sep="\n")


def event_data(event: Event) -> dict[str, Any]:
    """Return an event as a stream tells it."""
    return {
        "execution_id": event.run_id, "seq": event.seq, "timestamp": moment(event.at.timestamp()), "event_type": event.kind,
        "node_id": event.node, "step_id": event.step_id, "attempt": event.attempt, "payload": event.data,
    }  # fmt: skip
