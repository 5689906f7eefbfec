"""The HTTP service on Ray Serve: replicas that die lose and double nothing, and the cluster keeps what the service stands on."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest

from engine.engine import Engine
from engine.store import open_records
from serve.client import AsyncClient
from serve.keys import Keys
from serve.settings import Settings
from tests.acceptance.heads import free_port
from tests.serve.cluster_cases import CASES, LIMITED

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio]

CALLS = 100
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def coordinators() -> Iterator[None]:
    """End the coordinators that a test made."""
    yield
    from cluster import remote_fleet

    for name in remote_fleet.find("gecko-"):
        if name != remote_fleet.KEEPER:
            remote_fleet.end(name)


async def test_the_cluster_keeps_what_the_service_stands_on(ray_cluster: str, coordinators: None, tmp_path: Path):
    from cluster.client import Cluster
    from cluster.queue import Limits

    storage = f"file://{tmp_path / 'runs'}"
    cluster = Cluster(storage, patience=20.0)
    for check in CASES:
        folder = tmp_path / check.__name__
        folder.mkdir()
        await asyncio.wait_for(check(cluster, Engine(storage), folder), 60)
    limited = f"file://{tmp_path / 'limited'}"
    for check in LIMITED:
        await asyncio.wait_for(check(Cluster(limited, limits=Limits(runs=1, queued=1), patience=20.0), Engine(limited), tmp_path), 60)


def replicas() -> list[int]:
    """Return the processes that answer requests, oldest first."""
    found = [p for p in psutil.process_iter(["cmdline", "create_time"]) if "ServeReplica:gecko:api" in " ".join(p.info["cmdline"] or [])]
    return [p.pid for p in sorted(found, key=lambda p: p.info["create_time"])]


async def test_a_replica_that_is_killed_under_load_loses_and_doubles_no_run(ray_cluster: str, coordinators: None, tmp_path: Path):
    from serve import deployment

    storage, marks = f"file://{tmp_path / 'store'}", tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "store").mkdir()
    records = open_records(storage)
    key = (await Keys(records).make("test", "operator")).key
    settings = Settings(modules=("tests.serve.flows",), port=free_port(), replicas=2)
    os.chdir(ROOT)  # where workers find the workflows
    plan = deployment.make_plan(storage, storage, settings, datetime.now(UTC))
    try:
        url = await asyncio.to_thread(deployment.deploy, plan)
        async with httpx.AsyncClient() as anybody:
            assert (await anybody.get(f"{url}/api/v1/executions")).status_code == 401
        async with AsyncClient(url, key) as client:
            assert (await client.run("echo", {"a": 1}, wait=30)).output_data == {"a": 1}
            assert (await client.health()).checks == dict.fromkeys(["storage", "records", "cluster", "coordinators"], True)
            before = replicas()
            assert len(before) == 2
            accepted: list[str] = []

            async def call(n: int) -> None:
                await asyncio.sleep(n * 0.02)  # a steady load
                accepted.append((await client.execute("marking", {"folder": str(marks), "n": n})).execution_id)

            async def kill() -> None:
                await asyncio.sleep(CALLS * 0.02 / 3)
                os.kill(before[0], signal.SIGKILL)

            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(kill())
                for n in range(CALLS):
                    group.create_task(call(n))
            took = time.monotonic() - began
            ends = await asyncio.gather(*(client.wait(run, 60) for run in accepted))
            listed = await client.list(workflow_id="marking", limit=1)
        done = [run.execution_id for run in ends if run.status == "completed"]
        performed = [path.name.partition(".1_mark_")[0] for path in marks.iterdir()]
        print(f"accepted {len(accepted)} in {took:.1f} s, finished {len(done)}, listed {listed.total}, performed {len(performed)}")
        assert len(accepted) == len(set(accepted)) == len(done) == listed.total == CALLS
        assert len(performed) == len(set(performed)) == CALLS
        assert before[0] not in replicas()
    finally:
        await asyncio.to_thread(deployment.end)
