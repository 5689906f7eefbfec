"""How routes answer, and how the OpenAPI tells of errors."""

from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic import BaseModel
from starlette.responses import Response

from engine.checkpoint.table import json_text
from serve.middleware.errors import PROBLEM
from serve.parts import Parts, parts_of
from serve.schemas import LONGEST_NAME, Problem

Service = Annotated[Parts, Depends(parts_of)]
Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
Offset = Annotated[int, Query(ge=0, le=2**31, description="How many are passed over.")]
Search = Annotated[str, Query(max_length=LONGEST_NAME, description="Part of a text, in any letter case.")]

_ALWAYS = (400, 401, 403, 413, 415, 429, 503)
_TEXTS = {
    400: "The request is not valid, or the execution is in another state.",
    401: "No API key, or one that opens nothing.",
    403: "The API key has not the role that this needs.",
    404: "There is no such thing.",
    409: "It stands against what is there: another context under the same key or session, or another owner.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "Too many executions wait; `Retry-After` says when to try again.",
    503: "The storage or the cluster is away; `Retry-After` says when to try again.",
}


def reply(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer; what JSON cannot hold is shown as text in it."""
    return Response(json_text(model.model_dump()), status, headers, "application/json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI says of the errors of a route."""
    content = {PROBLEM: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*_ALWAYS, *statuses}):
        found[status] = {"description": _TEXTS[status], "content": content}
        if status in (429, 503):
            found[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return found
