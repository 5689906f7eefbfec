"""The errors of the service itself, of the tree of engine/errors.py; what a status they have is in serve/middleware/errors.py."""

from collections.abc import Sequence
from typing import Any

from engine.errors import DefinitionError, GeckoError, UnknownName


class Unauthorized(GeckoError):
    """The request names no API key that opens this service."""

    code: str = "unauthorized"
    """`unauthorized`: none was given, `invalid_token`: nobody knows it or it was revoked, `token_expired`."""


class Forbidden(GeckoError):
    """The API key has not the role that this needs."""


class WorkflowNotFound(UnknownName):
    """No workflow of that name is registered."""


class KeyNotFound(UnknownName):
    """No API key has that id."""


class RouteNotFound(GeckoError):
    """Nothing is at this address."""


class MethodNotAllowed(GeckoError):
    """The address has no such method."""


class InvalidRequest(DefinitionError):
    """The request does not say what it should."""

    problems: Sequence[Any] = ()
    """What is wrong: `where` and `message` of each part."""


class BodyTooLarge(GeckoError):
    """The body of the request is too large."""


class UnsupportedMediaType(GeckoError):
    """The body of the request is no JSON."""


class ServiceError(GeckoError):
    """The service answered with an error that this client does not know."""

    status: int = 0
    problem: dict[str, Any] | None = None
    """The problem that it told, where it told one."""
