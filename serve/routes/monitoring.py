"""Health, and figures for people and for Prometheus."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from engine import __version__
from serve.metrics import CONTENT_TYPE
from serve.middleware.auth import HEALTH
from serve.routes.answers import Service, problems, reply
from serve.schemas import Figures, Health

router = APIRouter(tags=["monitoring"])


@router.get(
    HEALTH, response_model=Health, summary="Ask whether the service is healthy", openapi_extra={"security": [{}, {"key": []}]},
    responses=problems() | {503: {"model": Health, "description": "Something that the service stands on does not answer."}},
)  # fmt: skip
async def health(request: Request, parts: Service) -> Response:
    """Ask storage, records, cluster and coordinators whether they answer. Who has no key is told the status alone."""
    checks = await parts.monitoring.health()
    well = all(checks.values())
    told = Health(status="healthy" if well else "unhealthy", timestamp=datetime.now(UTC))
    if request.state.caller is not None:
        told = told.model_copy(update={"checks": checks, "version": __version__})
    return reply(told, 200 if well else 503, None if well else {"retry-after": "2"})


@router.get("/api/v1/monitoring/metrics", response_model=Figures, summary="Count what there is", responses=problems())
async def figures(
    parts: Service, time_range: Annotated[str, Query(pattern="^[0-9]{1,5}[hdm]$", description="As 24h, 30m or 7d.")] = "24h"
) -> Response:
    """Return how many executions there are, how many failed lately, and how long they take."""
    found, day = await parts.monitoring.counted(time_range), await parts.monitoring.counted("24h")
    _, coordinators = await parts.monitoring.figures()
    going = found.runs.get("running", 0) + found.runs.get("pending", 0)
    return reply(
        Figures(
            active_workflows=len(parts.registry.find()), total_executions=sum(found.runs.values()), running_executions=going,
            failed_executions_24h=day.failed, avg_execution_time_ms=None if found.seconds is None else round(1000 * found.seconds, 3),
            resource_usage={"coordinators": {name: _brief(told) for name, told in coordinators.items()}},
        )
    )  # fmt: skip


@router.get(
    "/api/v1/metrics", summary="Figures for Prometheus",
    responses=problems() | {200: {"description": "Prometheus' text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)  # fmt: skip
async def prometheus(parts: Service) -> Response:
    """Return the figures of this replica, of runs, steps and queues in Prometheus' text format."""
    runs, coordinators = await parts.monitoring.figures()
    return Response(parts.metrics.text(runs, coordinators), media_type=CONTENT_TYPE)


def _brief(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a coordinator's figures without what Prometheus is told."""
    return None if figures is None else {name: value for name, value in figures.items() if name != "metrics"}
