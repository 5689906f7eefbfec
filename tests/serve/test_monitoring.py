"""Health that asks each part for real, figures, and workflows as the service shows them."""

import asyncio
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import with_metrics
from engine.core.events import Event
from engine.errors import ClusterUnavailable
from engine.observe.metrics import Metrics
from serve import monitoring
from serve.monitoring import Monitoring
from tests.serve.served import API, Served, make_served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(tmp_path: Path) -> Served:
    return await make_served(tmp_path)


def checks_of(served: Served) -> Monitoring:
    parts: Any = served.app.state.parts
    parts.monitoring._checked = 0.0
    parts.monitoring._checks = {}
    return parts.monitoring


async def test_health_asks_each_part(served: Served):
    async with served.client("viewer") as client:
        told = (await client.get(f"{API}/monitoring/health")).json()
    assert (told["status"], told["checks"]) == ("healthy", dict.fromkeys(["storage", "records", "cluster", "coordinators"], True))


async def test_each_part_that_is_away_is_named(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served.cluster.away = ClusterUnavailable("gone")
    assert await checks_of(served).health() == {"storage": True, "records": True, "cluster": False, "coordinators": False}
    served.cluster.away = None

    async def one_is_away(patience: float = 2.0) -> dict[str, dict[str, Any] | None]:
        return {"a": {}, "b": None}

    monkeypatch.setattr(served.cluster, "survey", one_is_away)
    assert await checks_of(served).health() == {"storage": True, "records": True, "cluster": True, "coordinators": False}
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("a file lies where the folder was")
    async with served.client("viewer") as client:
        checks_of(served)
        answer = await client.get(f"{API}/monitoring/health", headers={"authorization": ""})
    assert (answer.status_code, answer.json()["status"], answer.headers["retry-after"]) == (503, "unhealthy", "2")
    assert await checks_of(served).health() == {"storage": False, "records": False, "cluster": True, "coordinators": True}


async def test_a_part_that_hangs_is_away(served: Served, monkeypatch: pytest.MonkeyPatch):
    async def hang(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(monitoring, "PATIENCE", 0.05)
    monkeypatch.setattr(served.records, "list_keys", hang)
    monkeypatch.setattr(served.cluster, "survey", hang)
    found = await checks_of(served).health()
    assert found == {"storage": True, "records": False, "cluster": False, "coordinators": False}


async def test_figures_are_prometheus_text(served: Served):
    async with served.client() as client:
        for n in range(3):
            await client.post(f"{API}/executions/echo/execute", json={"context": n, "async_mode": False})
        await client.post(f"{API}/executions/failing/execute", json={"context": {"file": "no"}, "async_mode": False})
        await client.get(f"{API}/nowhere/{'x' * 100}")
        answer = await client.get(f"{API}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {family.name: family.samples for family in text_string_to_metric_families(answer.text)}
    requests = {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
        for s in found["gecko_http_requests"]
        if s.name.endswith("_total")
    }
    assert requests["POST", f"{API}/executions/{{workflow_id}}/execute", "200"] == 4
    assert requests["GET", "unknown", "404"] == 1
    assert {s.labels["status"]: s.value for s in found["gecko_runs"]} == {"completed": 3, "failed": 1}
    assert {s.labels["coordinator"]: s.value for s in found["gecko_queue_ended"]} == {"inline": 4}
    assert found["gecko_coordinator_up"][0].value == 1
    assert "gecko_http_request_duration_seconds" in found


async def test_what_coordinators_count_is_there_for_prometheus_and_not_for_people(served: Served, monkeypatch: pytest.MonkeyPatch):
    metrics = Metrics(distributed=True)
    metrics.take(Event("flow.s.1", 1, datetime.now(UTC), "run_started"))

    async def survey(patience: float = 2.0) -> dict[str, dict[str, Any] | None]:
        return {"a": with_metrics({"queued": 3}, metrics), "b": None}

    monkeypatch.setattr(served.cluster, "survey", survey)
    async with served.client() as client:
        text = (await client.get(f"{API}/metrics")).text
        kinds = [line for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(kinds) == len(set(kinds)), "a name that stands twice is refused by Prometheus"
        told = (await client.get(f"{API}/monitoring/metrics")).json()
    found = {family.name: family.samples for family in text_string_to_metric_families(text)}
    (sample,) = found["workflow_execution_started"]
    assert (sample.value, sample.labels["coordinator"], sample.labels["workflow_id"]) == (1, "a", "flow")
    assert found["workflow_queue_depth"][0].value == found["gecko_queue_queued"][0].value == 3
    assert told["resource_usage"]["coordinators"] == {"a": {"queued": 3}, "b": None}


async def test_figures_for_people_are_counted(served: Served):
    async with served.client() as client:
        await client.post(f"{API}/executions/echo/execute", json={"context": 1, "async_mode": False})
        await client.post(f"{API}/executions/failing/execute", json={"context": {"file": "no"}, "async_mode": False})
        told = (await client.get(f"{API}/monitoring/metrics", params={"time_range": "7d"})).json()
        assert (told["total_executions"], told["running_executions"], told["failed_executions_24h"]) == (2, 0, 1)
        assert told["active_workflows"] == 5
        assert told["avg_execution_time_ms"] > 0
        assert told["resource_usage"]["coordinators"]["inline"]["ended"] == 2
        for odd in ("", "24", "h", "-1h", "999999d", "1y", "\u0661h"):
            assert (await client.get(f"{API}/monitoring/metrics", params={"time_range": odd})).status_code == 400


async def test_workflows_are_listed_and_shown_with_their_graph(served: Served):
    async with served.client("viewer") as client:
        page = (await client.get(f"{API}/workflows", params={"limit": 2, "offset": 1})).json()
        assert (page["total"], [w["id"] for w in page["items"]]) == (5, ["failing", "marking"])
        assert (await client.get(f"{API}/workflows", params={"search": "ECH"})).json()["total"] == 1
        assert (await client.get(f"{API}/workflows", params={"is_active": False})).json()["total"] == 0
        assert (await client.get(f"{API}/workflows", params={"type": "state_machine"})).json()["total"] == 0
        one = (await client.get(f"{API}/workflows/waiting")).json()
        assert (one["version"], one["type"], one["node_count"], one["entries"]) == ("1.0.0", "dag", 3, ["first"])
        assert [(e["source"], e["target"]) for e in one["edges"]] == [("first", "wait"), ("wait", "last")]
        assert (await client.get(f"{API}/workflows/waiting/graph")).json()["nodes"][0]["name"] == "first"
        assert (await client.get(f"{API}/workflows/waiting/graph", params={"format": "mermaid"})).text.startswith("graph TD")
        assert (await client.get(f"{API}/workflows/wating")).status_code == 404
        assert (await client.get(f"{API}/workflows/wating/graph")).status_code == 404
