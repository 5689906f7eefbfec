"""What every request gets: an id, a clock, bounds on its body, a count in the metrics, and an answer whatever goes wrong."""

import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from serve.metrics import Metrics
from serve.middleware.errors import answer_to

_ID = re.compile(r"[A-Za-z0-9._~:+/=-]{1,128}")


class Requests:
    """The outermost of ours: what anything inside raises becomes an answer here."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body: int) -> None:
        """Stand around an application.

        Args:
            max_body: Bytes of a body; a longer one is refused as soon as that is seen.
        """
        self._app = app
        self._metrics = metrics
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        told = headers.get("x-request-id", "")
        request_id = told if _ID.fullmatch(told) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                out["x-process-time"] = f"{time.perf_counter() - begun:.6f}"
                out["cache-control"] = "no-store"
                out["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, self._bounded(scope, headers, receive), answer)
        except Exception as error:
            if status:  # the answer has begun: to cut it off is all that is left
                raise
            await answer_to(error, scope["path"], request_id)(scope, receive, answer)
        finally:
            self._metrics.note(scope["method"], _route_of(scope), status, time.perf_counter() - begun)

    def _bounded(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Return a `receive` that counts; raises at once for a length that is too great or none.

        Raises: BodyTooLarge, InvalidRequest, UnsupportedMediaType.
        """
        length = headers.get("content-length")
        if length is not None:
            if not (length.isascii() and length.isdecimal() and len(length) < 20):
                raise InvalidRequest(f"Content-Length {length!r:.80} is no number", where="Content-Length")
            self._check(int(length))
        has_body = bool(length and int(length)) or "transfer-encoding" in headers
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().casefold()
        if has_body and kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedMediaType(f"a body is application/json, not {kind!r:.100}", where="Content-Type")
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                self._check(seen)
            return message

        return counted

    def _check(self, size: int) -> None:
        if size > self._max_body:
            raise BodyTooLarge(f"a body has at most {self._max_body:,} bytes (GECKO_MAX_BODY)")


def _route_of(scope: Scope) -> str:
    """Return the pattern of the address, of which there are few; what nothing is at has one name for all."""
    route = scope.get("route")
    return getattr(route, "path", None) or "unknown"
