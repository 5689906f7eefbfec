"""A real cluster's coordinator counts what it drives, tells Ray and Prometheus, and writes its log as JSON where that is asked for."""

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.client import Cluster
from cluster.metrics import metrics_text
from cluster.queue import Limits
from cluster.remote_fleet import end, find
from engine import Context, Retry, Workflow
from engine.errors import GeckoError
from engine.observe.exposition import MEASURES
from tests.acceptance import marks

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio]


def flow(folder: Path) -> Workflow:
    """Return a workflow whose items hold until a file is there, and which logs a line."""
    gate = folder / "gate"

    def hold(x: int, ctx: Context) -> int:
        import time

        ctx.logger.warning("holding")
        while not gate.exists():
            time.sleep(0.01)
        return x

    return Workflow("held").add_map("each", hold).set_entry_point("each")


def failing() -> Workflow:
    def fail(x: Any) -> None:
        raise ValueError("no luck")

    return Workflow("failing").add_node("a", fail, retry=Retry(attempts=2, delay=0)).set_entry_point("a")


async def performing(cluster: Cluster) -> dict[str, float | None]:
    """Return a cluster's figures as soon as steps are performed."""
    for _ in range(600):
        figures = await cluster.totals()
        if figures["TasksProcessing"]:
            return figures
        await asyncio.sleep(0.05)
    raise AssertionError("no step is performed")


def endpoint() -> str:
    import ray

    node = ray.nodes()[0]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def scraped(text: str) -> dict[str, float]:
    """The sums of samples by name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


async def test_every_metric_moves_on_a_cluster_and_is_told_to_prometheus_and_ray(ray_cluster: str, tmp_path: Path):
    cluster = Cluster(f"file://{tmp_path}/runs", limits=Limits(runs=1))
    try:
        held = await cluster.submit(flow(tmp_path), list(range(40)), session_id="one")
        waiting = await cluster.submit(failing(), 1, session_id="two")
        figures = await performing(cluster)
        assert figures["ExecutionsStarted"] == 2
        assert figures["QueueDepth"] == 1 + 40 - (figures["TasksProcessing"] or 0)  # the run behind the limit, and the other steps
        assert 1 <= figures["ActiveWorkers"] == figures["TasksProcessing"] <= 4
        assert figures["TasksEnqueued"] == 40
        await cluster.pause(held.run_id)
        (tmp_path / "gate").touch()
        assert await cluster.wait(held.run_id) == "paused"
        await cluster.resume(held.run_id)
        assert await cluster.wait(held.run_id) == "completed"
        with pytest.raises(GeckoError):
            await waiting.wait()
        figures = await cluster.totals()
        assert (figures["ExecutionsCompleted"], figures["ExecutionsFailed"]) == (1, 1)
        assert (figures["TasksCompleted"], figures["TasksFailed"]) == (40, 2)
        assert (figures["QueueDepth"], figures["ActiveWorkers"], figures["TasksProcessing"]) == (0, 0, 0)
        assert figures["AvgTaskDuration"]
        assert figures["AvgExecutionTime"]

        names = {measure.name + ("_count" if measure.kind == "histogram" else "") for measure in MEASURES}
        text = scraped(await metrics_text(cluster))
        assert names <= text.keys()
        assert (text["workflow_pause_total"], text["workflow_resume_total"], text["workflow_errors_total"]) == (1, 1, 3)

        def told_by_ray() -> dict[str, float]:
            with urllib.request.urlopen(endpoint(), timeout=5) as answer:
                return scraped(answer.read().decode())

        def is_told() -> bool:
            nonlocal told
            told = told_by_ray()
            return told.get("ray_workflow_executions_total") == 2

        told: dict[str, float] = {}
        await marks.until(is_told, within=60)
        assert {f"ray_{name}" for name in names} <= told.keys()
        assert told["ray_node_execution_duration_seconds_count"] == 42 - 1  # of an attempt that is made again no duration is known
    finally:
        for name in find("gecko-"):
            end(name)


async def test_processes_of_a_cluster_write_json_where_their_environment_says_so(ray_cluster: str, tmp_path: Path):
    import ray

    (tmp_path / "gate").touch()
    cluster = Cluster(f"file://{tmp_path}/runs", environment={"env_vars": {"GECKO_LOG": "json"}})
    try:
        handle = await cluster.submit(flow(tmp_path), [1], session_id="logs")
        assert await handle.wait() == [1]
        folder = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]

        def found() -> dict[str, Any] | None:
            for file in folder.glob("worker-*.err"):
                for line in file.read_text(errors="replace").splitlines():
                    if '"message": "holding"' in line and "held.logs.1" in line:
                        return json.loads(line)
            return None

        await marks.until(found)
        told = found()
        assert told is not None
        wanted = ("held.logs.1", "logs", "each", "held.logs.1/each/1/0")
        assert tuple(told[name] for name in ("run_id", "session_id", "node", "step_id")) == wanted
    finally:
        for name in find("gecko-"):
            end(name)
