"""What routes work with: the parts of the service, as `make_app` put them together."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from serve.keys import Keys
from serve.metrics import Metrics
from serve.monitoring import Monitoring
from serve.registry import Registry
from serve.runs import Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of the service."""

    registry: Registry
    runs: Runs
    keys: Keys
    monitoring: Monitoring
    metrics: Metrics


def parts_of(request: Request) -> Parts:
    """Return the parts that a request's route works with."""
    return cast(Parts, request.app.state.parts)
