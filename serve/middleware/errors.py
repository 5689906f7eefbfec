"""Errors as problem details (RFC 9457), and the one table from the class of an error to its status."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from math import ceil
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.checkpoint.table import json_text
from engine.errors import (
    CheckpointError,
    ConfigurationError,
    DefinitionError,
    GeckoError,
    LeaseLost,
    NotStorable,
    QueueFull,
    RunBusy,
    RunCancelled,
    RunNotFound,
    SessionInUse,
    Unavailable,
    VersionInUse,
    WrongState,
)
from serve.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    KeyNotFound,
    MethodNotAllowed,
    RouteNotFound,
    Unauthorized,
    UnsupportedMediaType,
    WorkflowNotFound,
)

logger = logging.getLogger(__name__)

PROBLEM = "application/problem+json"

STATUSES: tuple[tuple[type[GeckoError], int], ...] = (
    (Unauthorized, 401),
    (Forbidden, 403),
    (WorkflowNotFound, 404),
    (KeyNotFound, 404),
    (RouteNotFound, 404),
    (RunNotFound, 404),
    (MethodNotAllowed, 405),
    (SessionInUse, 409),
    (VersionInUse, 409),
    (RunCancelled, 409),
    (RunBusy, 409),
    (BodyTooLarge, 413),
    (UnsupportedMediaType, 415),
    (QueueFull, 429),
    (ConfigurationError, 500),
    (DefinitionError, 400),
    (NotStorable, 400),
    (WrongState, 400),
    (CheckpointError, 500),
    (Unavailable, 503),
    (LeaseLost, 503),
)
"""The first that fits counts; what fits none is 500."""

RETRY_AFTER = {409: None, 429: 1.0, 503: 2.0}
"""Seconds after which to ask again, where the error itself says none."""


def status_of(error: BaseException) -> int:
    """Return the status of an error."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def problem_of(error: BaseException, path: str, request_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, body and headers of the answer that tells an error; what nobody foresaw is told without its text."""
    status = status_of(error)
    foreseen = isinstance(error, GeckoError)
    detail = str(error) if foreseen else f"the service failed; its log says why, by the request id {request_id!r}"
    doc = (type(error).__doc__ or "").strip().splitlines()
    after = getattr(error, "retry_after", None) or RETRY_AFTER.get(status)
    kind = type(error).__name__ if foreseen else "InternalError"
    body = {
        "type": f"urn:gecko:problem:{_dashed(kind)}",
        "title": doc[0] if foreseen and doc else HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": path,
        "where": getattr(error, "where", None) if foreseen else None,
        "retry_after": after,
        "error": getattr(error, "code", kind),
        "message": detail,
        "details": list(getattr(error, "problems", ())) if isinstance(error, InvalidRequest) else [],
        "request_id": request_id,
        "timestamp": datetime.now(UTC),
    }
    headers = {} if after is None else {"retry-after": str(max(1, ceil(after)))}
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="gecko"'
    return status, body, headers | dict(getattr(error, "headers", {}))


def _dashed(name: str) -> str:
    return "".join(f"-{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def answer_to(error: BaseException, path: str, request_id: str) -> Response:
    """Return the answer that tells an error; what nobody foresaw goes to the log of the program."""
    status, body, headers = problem_of(error, path, request_id)
    if status == 500:
        logger.error("A request failed", extra={"request_id": request_id, "path": path}, exc_info=error)
    return Response(json_text(body), status, headers, PROBLEM)


def _invalid(request: Request, error: Any) -> Response:
    where = _problems(error.errors())
    text = "; ".join(f"{found['where']}: {found['message']}" for found in where[:5])
    told = InvalidRequest(f"the request is not valid: {text}", problems=where, where=where[0]["where"] if where else None)
    return answer_to(told, request.url.path, request.state.request_id)


def _problems(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Say where and what, without what was sent: it may be large, or a secret."""
    found: list[dict[str, str]] = []
    for each in errors[:50]:
        place = ".".join(str(part) for part in each["loc"])[:200]
        found.append({"where": place, "message": str(each["msg"])[:300]})
    return found


def _http(request: Request, error: Any) -> Response:
    """Tell what the framework refused."""
    path, request_id = request.url.path, request.state.request_id
    if isinstance(error.__cause__, GeckoError):  # the framework met it while it read the body
        return answer_to(error.__cause__, path, request_id)
    match error.status_code:
        case 404:
            told: GeckoError = RouteNotFound(f"nothing is at {path[:200]!r}; /api/v1/openapi.json says what there is")
        case 405:
            told = MethodNotAllowed(f"{request.method} is not what {path[:200]!r} takes", headers=dict(error.headers or {}))
        case _:
            told = InvalidRequest(f"the request cannot be read: {str(error.detail)[:200]}", where="body")
    return answer_to(told, path, request_id)


def add_handlers(app: FastAPI) -> None:
    """Have errors of the framework told as all others; those of ours reach serve/middleware/requests.py."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
