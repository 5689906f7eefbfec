"""The service in the test's own event loop: the application over the double of the cluster, with a key of each role."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from cluster.queue import Limits
from engine.records import Records
from engine.store import open_log, open_records
from serve.app import make_app
from serve.keys import ROLES, Keys
from serve.registry import Registry
from serve.settings import Settings
from tests.serve.double import InlineCluster
from tests.serve.flows import FLOWS

API = "/api/v1"


@dataclass
class Served:
    """A service, what it stands on, and keys by role."""

    app: Any
    cluster: InlineCluster
    records: Records
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, role: str | None = "operator", **more: Any) -> httpx.AsyncClient:
        """Return a client of the application with the key of a role, or with none."""
        headers = {"authorization": f"Bearer {self.keys[role]}"} if role else {}
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers | more.pop("headers", {}), **more)


async def make_served(folder: Path, *, limits: Limits | None = None, settings: Settings | None = None) -> Served:
    """Put a service together whose runs and records lie in a folder."""
    url = str(folder / "store")
    cluster, records = InlineCluster(url, limits), open_records(url)
    registry = Registry(FLOWS, since=datetime(2026, 3, 1, tzinfo=UTC))
    app = make_app(registry=registry, cluster=cluster, log=open_log(url), records=records, settings=settings)
    keys = {role: (await Keys(records).make(role, role)).key for role in ROLES}
    return Served(app, cluster, records, keys)


@asynccontextmanager
async def listening(app: FastAPI, port: int = 0) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """Serve an application at a port of the loopback, a free one where none is said, in this event loop; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign] - signals are the test runner's
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it says so nowhere else
            await asyncio.sleep(0.005)
        found = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{found}", server
        finally:
            server.should_exit = True
