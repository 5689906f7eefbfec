"""What a cluster does not have: resources that no node has, CPUs that others hold, memory that runs out."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import remote, runner
from engine import Engine, Workflow
from tests.acceptance import marks
from tests.acceptance.heads import clean, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio]

CPUS = 4
"""Of the cluster of all tests."""
WITHIN = 30.0
LACKING: dict[str, dict[str, Any]] = {"memory": {"memory": 10**15}, "resource": {"resources": {"nothing": 1}}}
STATUS = {"pause": "paused", "cancel": "cancelled"}


def folder() -> str:
    path = Path.cwd() / "marks"
    path.mkdir(exist_ok=True)
    return str(path)


def engine() -> Engine:
    return Engine(str(Path.cwd() / "runs"), executor="ray")


def lone(place: str, **policy: Any) -> Workflow:
    return Workflow("lone").add_node("a", lambda: marks.leave(place, "begun"), **policy).set_entry_point("a")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("halt", STATUS)
@pytest.mark.parametrize("asked", LACKING)
async def test_a_step_that_asks_for_what_no_node_has_says_so_and_can_be_stopped(asked: str, halt: str):
    place = folder()
    handle = await engine().start(lone(place, **LACKING[asked]), session_id="s")
    async with asyncio.timeout(WITHIN):
        notes = [event.data["note"] async for event in first(handle.events(transient=True), "progress")]
        await getattr(handle, halt)()
    assert "no node has it" in notes[0]
    assert handle.status == STATUS[halt]
    assert not marks.names(place)


async def first(events: Any, kind: str) -> Any:
    """Yield the first event of a kind."""
    async for event in events:
        if event.kind == kind:
            yield event
            return


@pytest.fixture
def held_cpus(ray_cluster: str) -> Iterator[None]:
    """Somebody else's tasks, on all CPUs of the cluster."""
    import ray

    place = folder()

    def hold() -> None:
        marks.leave(place, "held")
        while not (Path(place).parent / "over").exists():
            asyncio.run(asyncio.sleep(0.05))

    holding = [ray.remote(num_cpus=1)(hold).remote() for _ in range(CPUS)]
    asyncio.run(marks.until(lambda: marks.names(place)["held"] == CPUS))
    yield
    (Path(place).parent / "over").touch()
    ray.get(holding)


@pytest.mark.usefixtures("held_cpus")
async def test_a_run_begins_and_can_be_cancelled_where_others_have_all_cpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "script", runner.Script())
    monkeypatch.setattr(runner, "WARM", 1.0)

    async def waits() -> str:
        await asyncio.sleep(0)
        return "done"

    place = str(Path.cwd() / "own")
    Path(place).mkdir()
    async with asyncio.timeout(WITHIN):
        flow = Workflow("waiting", executor="ray").add_node("a", waits).set_entry_point("a")
        assert await flow.execute() == "done"  # what only waits needs no CPU
        handle = await engine().start(lone(place), session_id="s")
        await handle.cancel()
    assert handle.status == "cancelled"
    assert not marks.names(place)
    remote.kill(runner.script.coordinator)


MORE = 1.5e9
"""Bytes beyond what is used before, from which on the cluster is out of memory."""
HUNGRY = """
import asyncio, time
from engine import Engine, Retry, Workflow
from engine.errors import OutOfMemory, StepFailed

def eat() -> int:
    held = []
    while len(held) < 50:  # 5 GB
        held.append(b"x" * 100_000_000)
        time.sleep(0.05)
    return len(held)

async def main() -> None:
    flow = Workflow("hungry").add_node("eat", eat, retry=Retry(attempts=1)).set_entry_point("eat")
    handle = await Engine("runs", executor="ray").start(flow, session_id="s")
    try:
        print("gave", await handle.wait())
    except StepFailed as error:
        assert isinstance(error.__cause__, OutOfMemory), error.__cause__
        print("failed", error.__cause__)

asyncio.run(main())
"""


@pytest.fixture
def little_memory() -> Iterator[dict[str, str]]:
    """A cluster that is soon out of memory, and then ends no more workers than it has to."""
    memory = psutil.virtual_memory()
    if memory.available < 8e9:
        pytest.skip("this machine has too little memory for a body that takes 5 GB")
    threshold = (memory.total - memory.available + MORE) / memory.total
    with running_head(
        "disabled", "--include-dashboard=false", RAY_memory_usage_threshold=f"{threshold:.5f}", RAY_memory_monitor_refresh_ms="100",
        RAY_max_kill_memory_buffer_bytes="1000000",
    ) as environment:  # fmt: skip
        yield environment


def test_a_step_whose_worker_took_all_memory_fails_by_that_name(little_memory: dict[str, str], tmp_path: Path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    environment = {**clean(), **little_memory}
    done = subprocess.run(
        [sys.executable, "hungry.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.splitlines()[-1]
    assert told.startswith("failed the worker of step 'eat' was lost: its machine ran out of memory")
    assert "memory=..." in told
