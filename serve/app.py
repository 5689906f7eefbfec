"""The composition root of the HTTP service: parts in, an ASGI application out. It reads no environment and knows no Ray."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import JSONResponse

from engine import __version__
from engine.ports import Log
from engine.records import Records
from serve.keys import Keys
from serve.metrics import Metrics
from serve.middleware.auth import HEALTH, Authenticate, role_for
from serve.middleware.errors import add_handlers
from serve.middleware.requests import Requests
from serve.monitoring import Monitoring
from serve.parts import Parts
from serve.registry import Registry
from serve.routes import executions, keys, monitoring, workflows
from serve.runs import Cluster, Runs
from serve.schemas import Problem
from serve.settings import Settings

OPENAPI = "/api/v1/openapi.json"
_ABOUT = """Executions of workflows that the operator registered, driven by a Ray cluster.

Every request but health needs an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`. Errors are problem details (RFC 9457).
"""


def make_app(
    *, registry: Registry, cluster: Cluster, log: Log, records: Records, settings: Settings | None = None, replica: str = ""
) -> FastAPI:
    """Return the application.

    Args:
        registry: The workflows that requests may name.
        cluster: What drives runs.
        log: Where runs are recorded.
        records: Where lists and API keys are kept.
        replica: What this one's own figures are called in the metrics.
    """
    bounds = settings or Settings()
    runs = Runs(registry, cluster, log, records)
    parts = Parts(
        registry=registry, runs=runs, keys=Keys(records), monitoring=Monitoring(runs, cluster, log, records), metrics=Metrics(replica)
    )
    app = FastAPI(title="Gecko", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None, openapi_url=None,
                  redirect_slashes=False)  # fmt: skip
    app.state.parts = parts
    for routes in (executions, workflows, monitoring, keys):
        app.include_router(routes.router)

    @app.get(OPENAPI, include_in_schema=False)
    async def openapi(request: Request) -> JSONResponse:
        return JSONResponse(app.openapi())

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign] - as FastAPI's own documentation does it
    add_handlers(app)
    app.add_middleware(Authenticate, keys=parts.keys)
    app.add_middleware(Requests, metrics=parts.metrics, max_body=bounds.max_body)  # added last, so the outermost
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI: with keys, with problems, and without the validation error that we never answer with."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = schema.setdefault("components", {})
        found = components.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            found.pop(name, None)
        found["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, methods in schema["paths"].items():
            for method, told in methods.items():
                told["responses"].pop("422", None)
                told.setdefault("security", [{"key": []}, {"header": []}])
                told["x-role"] = None if path == HEALTH else role_for(method.upper(), path)
        app.openapi_schema = schema
    return app.openapi_schema
