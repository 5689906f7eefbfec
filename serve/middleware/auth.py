"""Default deny: every request needs an API key whose role may do what it asks, but for the health of the service."""

import re
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import StoreUnavailable
from engine.records import KeyEntry
from serve.errors import Forbidden, Unauthorized
from serve.keys import ROLES, Keys

HEALTH = "/api/v1/monitoring/health"
_LONGEST = 512

RULES: tuple[tuple[str, str, str], ...] = (
    ("*", r"/api/v1/keys(/.*)?", "admin"),
    ("GET", r".*", "viewer"),
    ("HEAD", r".*", "viewer"),
    ("*", r".*", "operator"),
)
"""(method, path, role that it needs): the first that fits counts, and one always does. A route that needs more says so here."""

_RULES = tuple((method, re.compile(path, re.DOTALL), role) for method, path, role in RULES)


def role_for(method: str, path: str) -> str:
    """Return the role that a request needs."""
    return next((role for verb, pattern, role in _RULES if verb in ("*", method) and pattern.fullmatch(path)), ROLES[-1])


def key_in(headers: Headers) -> str | None:
    """Return the API key of a request, None where it has none.

    Raises: Unauthorized for credentials of another kind, and for two that differ.
    """
    said = headers.getlist("authorization")
    found = {key.strip() for key in headers.getlist("x-api-key")}
    for value in said:
        scheme, _, key = value.strip().partition(" ")
        if scheme.casefold() != "bearer" or not key.strip():
            raise Unauthorized("the Authorization header must say: Bearer <API key>", code="invalid_token")
        found.add(key.strip())
    if len(found) > 1:
        raise Unauthorized("the request names several API keys: send one", code="invalid_token")
    key = next(iter(found), None)
    if key is not None and not (0 < len(key) <= _LONGEST):
        raise Unauthorized("the API key is none: it begins with gk_", code="invalid_token")
    return key


class Authenticate:
    """Finds out who calls, and refuses who may not. The caller is in `request.state.caller` afterwards."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        """Guard an application."""
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing else is served, so nothing else is let through
            await send({"type": "websocket.close", "code": 1008})
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["caller"] = await self._caller(scope)
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> KeyEntry | None:
        method, path = scope["method"], scope["path"]
        public = (method, path) == ("GET", HEALTH)
        try:
            key = key_in(Headers(scope=scope))
            if key is None:
                raise Unauthorized("an API key is needed: Authorization: Bearer <key>, or X-API-Key: <key>")
            caller = await self._keys.open(key)
        except (Unauthorized, StoreUnavailable):
            if public:
                return None
            raise
        needed = role_for(method, path)
        if caller.role not in ROLES or ROLES.index(caller.role) < ROLES.index(needed):
            raise Forbidden(f"this needs the role {needed!r}, and the API key {caller.id!r} has {caller.role!r}")
        return caller
