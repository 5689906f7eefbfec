"""Coordinators and scripts that die in the middle of a run: the run goes on, and nothing that had finished is done again."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from math import ceil
from pathlib import Path

import pytest

from engine import Context, Engine, Workflow
from engine.errors import WorkerLost
from tests.acceptance import marks, records

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio]

ROOT = Path(__file__).parent.parent.parent
SLOTS = 4
"""Of the cluster: so many steps run at once."""
STEP, SENT, NOTICED = 50, 30, 50
"""Milliseconds: of a step; until a result has reached its coordinator; until a worker notices that its coordinator is gone."""
COMMITTED = {"always": 20, "async": 50}
"""Milliseconds that a result in the coordinator is from storage, as the strategy promises."""
SCRIPT = """
import asyncio, sys, time
from engine import Context, Workflow
from tests.acceptance import marks

def plan(given): return list(range(120))

def item(n, ctx: Context):
    marks.leave("marks", ctx.step_id)
    time.sleep(0.05)
    ctx.state["sum"] = ctx.state.get("sum", 0) + n
    return n

def link(given, ctx: Context):
    marks.leave("marks", ctx.step_id)
    time.sleep(0.05)
    return ctx.state["sum"]

flow = Workflow("script", executor="ray", storage="runs", reducers={"sum": "add"}, checkpoint_strategy=sys.argv[1])
flow.add_node("plan", plan).add_map("items", item).add_edge("plan", "items").set_entry_point("plan")
before = "items"
for n in range(30):
    flow.add_node(f"link{n}", link).add_edge(before, f"link{n}")
    before = f"link{n}"

if __name__ == "__main__":
    print("answer", asyncio.run(flow.execute(session_id="s")))
"""


def committed_twice(folder: str) -> list[str]:
    table = Engine(folder).table()
    steps = [step for kind, step in zip(table["kind"].to_pylist(), table["step_id"].to_pylist(), strict=True) if kind == "step_succeeded"]
    return [step for step, count in Counter(steps).items() if count > 1]


def allowed(strategy: str, *, kills: int) -> int:
    """Return how many steps may be performed again.

    At a kill each slot loses the step that it runs, those that ended too late to be on storage, and those that it begins before its
    worker notices: 1 + (20 + 30) / 50 + 50 / 50 = 3 under `always`, 1 + ceil((50 + 30) / 50) + 50 / 50 = 4 under `async`.
    """
    return kills * SLOTS * (1 + ceil((COMMITTED[strategy] + SENT) / STEP) + ceil(NOTICED / STEP))


async def performed_after_their_commit(storage: str, place: Path) -> dict[str, float]:
    """Return the steps that a body performed after their result had been written down, with how much later, in seconds."""
    told = await records.events(Engine(storage))
    return marks.late(place, {event.step_id: event.at.timestamp() for event in told if event.kind == "step_succeeded"})


@pytest.mark.parametrize("strategy", ["always", "async"])
async def test_a_run_goes_on_through_coordinators_that_are_killed(ray_cluster, tmp_path, strategy):
    place = tmp_path / "marks"
    place.mkdir()
    engine = Engine(str(tmp_path / "runs"), executor="ray")

    def item(n, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(0.05)
        return n

    def link(given, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(0.05)
        return sum(given) if isinstance(given, list) else given + 1

    flow = Workflow("through", checkpoint_strategy=strategy).add_map("items", item).set_entry_point("items")
    for n in range(30):
        flow.add_node(f"link{n}", link).add_edge(f"link{n - 1}" if n else "items", f"link{n}")
    handle = await engine.start(flow, list(range(100)), session_id="s")
    killed: set[int] = set()
    for enough in (40, 112):
        await marks.until(lambda enough=enough: len(marks.names(place)) >= enough, within=50)
        pid = await records.owner(engine)
        assert pid not in killed
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)
    assert await handle.wait() == sum(range(100)) + 29
    assert handle.status == "completed"
    seen = [event async for event in handle.events() if event.kind == "run_resumed"]
    assert len(seen) == 2
    assert not committed_twice(str(tmp_path / "runs"))
    assert not await performed_after_their_commit(str(tmp_path / "runs"), place)
    assert marks.again(place) <= allowed(strategy, kills=2), marks.repeated(place)


async def test_a_run_without_storage_ends_with_its_coordinator_and_says_so(ray_cluster, tmp_path):
    place = tmp_path / "marks"
    place.mkdir()

    def slow(ctx: Context):
        marks.leave(place, str(os.getppid()))
        time.sleep(30)

    def coordinator(ctx: Context):
        return ctx.run_id

    flow = Workflow("lost", executor="ray").add_node("a", slow).set_entry_point("a")
    stored = Engine(str(tmp_path / "runs"), executor="ray")
    other = await stored.start(flow, session_id="tells who the coordinator is")
    running = await Engine(None, executor="ray").start(flow)
    await marks.until(lambda: sum(marks.names(place).values()) == 2)
    os.kill(await records.owner(stored), signal.SIGKILL)
    with pytest.raises(WorkerLost, match="session_id"):
        await running.wait()
    await other.cancel()
    assert await Workflow("next", executor="ray").add_node("a", coordinator).set_entry_point("a").execute()


@pytest.mark.parametrize("strategy", ["always", "async"])
async def test_a_script_that_is_killed_goes_on_when_it_is_started_again(ray_cluster, tmp_path, strategy):
    (tmp_path / "script.py").write_text(SCRIPT)
    place = tmp_path / "marks"
    place.mkdir()
    env = {**os.environ, "RAY_ADDRESS": ray_cluster, "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen:
        command = [sys.executable, "script.py", strategy]
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    kills = (30, 130) if strategy == "always" else (80,)
    for enough in kills:
        running = start()
        await marks.until(lambda enough=enough, running=running: len(marks.names(place)) >= enough or running.poll() is not None, within=40)
        assert running.poll() is None, running.communicate()
        running.kill()
        running.communicate()
    running = start()
    out, err = await asyncio.to_thread(running.communicate, timeout=40)
    assert out.splitlines()[-1] == f"answer {sum(range(120))}", err  # Ray may print lines of its own before
    assert not committed_twice(str(tmp_path / "runs"))
    assert not await performed_after_their_commit(str(tmp_path / "runs"), place)
    assert marks.again(place) <= allowed(strategy, kills=len(kills)), marks.repeated(place)


async def test_a_worker_that_is_told_to_end_is_lost_and_its_step_is_tried_again(ray_cluster, tmp_path):
    place = tmp_path / "marks"
    place.mkdir()

    def body(item, ctx: Context):
        marks.leave(place, str(item))
        if item == 5 and ctx.attempt == 1:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                marks.leave(place, "finally")
        return item

    flow = Workflow("told", executor="ray", storage=str(tmp_path / "runs")).add_map("m", body).set_entry_point("m")
    assert await flow.execute(list(range(20)), session_id="s") == list(range(20))
    assert marks.names(place)["5"] == 2
    assert marks.names(place)["finally"] == 1
    first, second = marks.processes(place, "5")
    assert first != second
