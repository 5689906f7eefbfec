"""Every metric that is named moves by what runs really do; what it costs and how many labels there are is bounded."""

import asyncio
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import Context, Engine, Retry, Team, Workflow
from engine.core.events import Event
from engine.errors import GeckoError, RunPaused, RunTimedOut
from engine.observe import metrics as module
from engine.observe.exposition import MEASURES, NAMED, prometheus_text, readings
from engine.observe.metrics import OTHER, Metrics, seed_figures

AT = datetime(2026, 3, 1, tzinfo=UTC)


def event(kind: str, node: str = "", step: str = "", *, run: str = "flow.s.1", after: float = 0.0, **data: Any) -> Event:
    step_id = f"{run}/{step}" if step else ""
    return Event(run, 1, AT + timedelta(seconds=after), kind, node, step_id, 1, data)


def values(metrics: Metrics, **gauges: float) -> dict[str, float]:
    """The sum of each measure over its labels; of a histogram how many it holds."""
    found: dict[str, float] = {}
    for reading in readings(metrics.snapshot(gauges)):
        name = reading.measure.name
        found[name] = found.get(name, 0) + (reading.counts[-1] if reading.counts else reading.value)
    return found


def same(value: Any) -> Any:
    return value


def fail(value: Any) -> Any:
    raise ValueError("no luck")


async def wait(value: Any) -> Any:
    await asyncio.Event().wait()


async def execute(metrics: Metrics, flow: Workflow, value: Any = None, **options: Any) -> None:
    flow.event_bus = metrics
    try:
        await flow.execute(value, **options)
    except GeckoError:
        pass


@pytest.mark.anyio
async def test_every_named_metric_moves():
    metrics = Metrics()
    assert values(metrics) == {}
    good = Workflow("good").add_node("a", same).add_node("b", same).add_edge("a", "b").set_entry_point("a")
    await execute(metrics, good, 1)
    await execute(metrics, Workflow("bad").add_node("a", fail, retry=Retry(attempts=3, delay=0)).set_entry_point("a"), 1)

    gate = asyncio.Event()

    async def hold(value: Any) -> None:
        await gate.wait()

    held = Workflow("held", event_bus=metrics).add_node("a", hold).add_node("b", same).add_edge("a", "b").set_entry_point("a")
    engine = Engine(f"memory://{uuid.uuid4().hex}")
    handle = await engine.start(held, session_id="s")
    async for told in handle.events():
        if told.kind == "step_started":
            break

    async def open_gate() -> None:
        gate.set()

    await asyncio.gather(handle.pause(), open_gate())  # which begin in this order
    with pytest.raises(RunPaused):
        await handle.wait()
    await (await engine.resume(handle.run_id, flow=held)).wait()
    metrics.take(event("condition_failed", "a", "a/1", run="good.x.1", source="a", target="b", error="TypeError: no"))

    found = values(metrics, queued_runs=2, waiting_steps=3, active_workers=4, processing_steps=5)
    assert set(found) == {measure.name for measure in MEASURES} == {measure.name for measure in NAMED.values()}
    assert all(found.values())
    assert found["workflow_execution_started_total"] == 3
    assert found["workflow_execution_completed_total"] == found["workflow_executions_total"] == 3
    assert (found["workflow_pause_total"], found["workflow_resume_total"]) == (1, 1)
    assert found["workflow_steps_completed_total"] == 4
    assert found["workflow_steps_failed_total"] == 3

    figures = seed_figures([metrics.snapshot({"queued_runs": 2, "waiting_steps": 3, "active_workers": 4, "processing_steps": 5})])
    assert figures.keys() < NAMED.keys()
    assert {name: figures[name] for name in list(figures)[:9]} == {
        "ExecutionsStarted": 3, "ExecutionsCompleted": 2, "ExecutionsFailed": 1, "TasksEnqueued": 7, "TasksCompleted": 4, "TasksFailed": 3,
        "QueueDepth": 5, "ActiveWorkers": 4, "TasksProcessing": 5,
    }  # fmt: skip
    assert figures["AvgTaskDuration"] is not None
    assert figures["AvgExecutionTime"] is not None


def test_averages_are_those_of_what_was_measured():
    metrics = Metrics()
    assert seed_figures([metrics.snapshot()])["AvgTaskDuration"] is None
    metrics.take(event("run_started"))
    metrics.take(event("step_succeeded", "a", "a/1", duration=1.0))
    metrics.take(event("step_failed", "b", "b/1", duration=3.0, error={"type": "ValueError"}))
    metrics.take(event("run_failed", after=8.0, error={"type": "StepFailed"}))
    metrics.take(event("run_resumed", after=100.0))
    metrics.take(event("run_completed", after=104.0))
    figures = seed_figures([metrics.snapshot(), Metrics().snapshot()])
    assert (figures["AvgTaskDuration"], figures["AvgExecutionTime"]) == (2.0, 6.0)
    assert metrics._runs == {}


@pytest.mark.anyio
async def test_what_is_counted_are_steps_and_not_what_they_are_inside_of():
    def begin(ctx: Context) -> None:
        ctx.state["list"] = [1, 2, 3]

    inner = Workflow("inner").add_node("x", same).add_node("z", begin).add_edge("x", "z").set_entry_point("x")
    flow = Workflow("outer").add_node("begin", begin).add_map("each", same, over="list").add_node("team", Team([same, same], "team"))
    flow.add_node("inside", inner).add_map("teams", Team([same, same], "pair"), over="list").add_map("inners", inner, over="list")
    for pair in (("begin", "each"), ("each", "team"), ("team", "inside"), ("inside", "teams"), ("teams", "inners")):
        flow.add_edge(*pair)
    metrics = Metrics()
    await execute(metrics, flow.set_entry_point("begin"))
    (workflow,) = metrics.snapshot()["workflows"].values()
    figures = seed_figures([metrics.snapshot()])
    assert workflow["errors"] == []
    # begin 1, each 3, team 2, inside 2 of inner's, teams 3 with 2 members each, inners 3 with 2 steps each
    assert figures["TasksCompleted"] == figures["TasksEnqueued"] == 1 + 3 + 2 + 2 + 6 + 6


def test_a_container_takes_the_place_of_its_first_step():
    metrics = Metrics()
    for told in (
        event("run_started"),
        event("step_started", "in", "in/1"),
        event("step_started", "in/x", "in/1/0"),
        event("step_succeeded", "in/x", "in/1/0", duration=0.1),
        event("step_started", "in/y", "in/1/1", items=2),
        event("step_succeeded", "in/y", "in/1/1/0", duration=0.1),
        event("step_succeeded", "in/y", "in/1/1/1", duration=0.1),
        event("step_succeeded", "in/y", "in/1/1", duration=0.2, items=2),
        event("step_succeeded", "in", "in/1", duration=0.5),
        event("step_started", "team", "team/1", members=2),
        event("step_started", "team", "team/1/0", member="a"),
        event("step_started", "team", "team/1/1", member="b"),
        event("step_succeeded", "team", "team/1/0", duration=0.1),
        event("step_failed", "team", "team/1/1", duration=0.1, error={"type": "ValueError"}),
        event("step_succeeded", "team", "team/1", duration=0.1, answer=[0]),
        event("step_started", "each", "each/1", items=1),
        event("step_started", "each/x", "each/1/0/0"),
        event("step_failed", "each/x", "each/1/0/0", duration=0.1, error={"type": "ValueError"}),
        event("step_failed", "each", "each/1/0", duration=0.1, error={"type": "StepFailed"}),
    ):
        metrics.take(told)
    figures = seed_figures([metrics.snapshot()])
    assert (figures["TasksEnqueued"], figures["TasksCompleted"], figures["TasksFailed"]) == (6, 4, 2)


@pytest.mark.anyio
async def test_a_run_that_runs_out_of_time_has_failed():
    metrics = Metrics()
    await execute(metrics, Workflow("late").add_node("a", wait).set_entry_point("a"), timeout=0.01)
    (workflow,) = metrics.snapshot()["workflows"].values()
    assert workflow["ended"] == [["start", "timed_out", 1]]
    assert workflow["errors"] == [["run", RunTimedOut.__name__, 1]]
    assert seed_figures([metrics.snapshot()])["ExecutionsFailed"] == 1


def test_prometheus_reads_the_text():
    metrics = Metrics(distributed=True, nodes=True)
    for told in (event("run_started"), event("step_started", "a", "a/1"), event("step_succeeded", "a", "a/1", duration=0.02),
                 event("run_resumed"), event("run_completed", after=3.0)):  # fmt: skip
        metrics.take(told)
    text = prometheus_text({"one": metrics.snapshot({"queued_runs": 1}), "two": Metrics().snapshot({"queued_runs": 2})})
    samples = {(s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    whose, of = ("coordinator", "one"), ("workflow_id", "flow")
    ended = (whose, ("distributed", "true"), ("operation", "resume"), ("result", "completed"), of)
    assert samples[("workflow_execution_completed_total", *ended)] == 1
    assert samples[("workflow_execution_duration_seconds_sum", whose, ("status", "completed"), of)] == 3
    assert samples[("workflow_execution_duration_seconds_bucket", whose, ("le", "2.5"), ("status", "completed"), of)] == 0
    assert samples[("workflow_execution_duration_seconds_bucket", whose, ("le", "5.0"), ("status", "completed"), of)] == 1
    assert samples[("node_execution_duration_seconds_count", whose, ("node", "a"), ("result", "success"), of)] == 1
    assert samples[("workflow_queue_depth", ("coordinator", "two"), ("kind", "runs"))] == 2
    own = prometheus_text({"": metrics.snapshot()})
    assert "coordinator" not in own


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch):
    for name in ("WORKFLOWS", "NODES", "ERRORS"):
        monkeypatch.setattr(module, name, 3)
    metrics = Metrics(nodes=True)
    for number in range(10):
        metrics.take(event("run_started", run=f"w{number}.s.1"))
        metrics.take(event("step_succeeded", f"n{number}", f"n{number}/1", run="w1.s.1", duration=0.1))
        metrics.take(event("step_failed", "n0", "n0/1", run="w1.s.1", duration=0.1, error={"type": f"E{number}"}))
    workflows = metrics.snapshot()["workflows"]
    assert list(workflows) == ["w0", "w1", "w2", OTHER]
    assert workflows[OTHER]["started"] == 7
    assert list(workflows["w1"]["nodes"]) == ["n0", "n1", "n2", OTHER]
    assert workflows["w1"]["errors"][-1] == ["step", OTHER, 7]
    assert seed_figures([metrics.snapshot()])["TasksCompleted"] == 10


def test_runs_that_never_end_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "RUNS", 3)
    metrics = Metrics()
    for number in range(10):
        metrics.take(event("run_started", run=f"w.s.{number + 1}"))
    metrics.take(event("run_completed", run="w.s.1"))
    assert len(metrics._runs) == 2
    assert metrics.snapshot()["workflows"]["w"]["ended"] == [["start", "completed", 1]]


@pytest.mark.slow
def test_an_event_costs_a_few_microseconds_at_most():
    metrics = Metrics(nodes=True)
    run = "flow.s.1"
    events = [event("run_started")]
    for number in range(5000):
        step = f"{run}/n/{number}"
        events.append(Event(run, 1, AT, "step_started", "n", step, 1, {}))
        events.append(Event(run, 1, AT, "step_succeeded", "n", step, 1, {"duration": 0.01, "output": 1}))
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for told in events:
            metrics.take(told)
        best = min(best, (time.process_time() - began) / len(events))
    assert best < 3e-6


def test_neither_the_library_nor_counting_loads_prometheus(root: Path):
    code = "import sys, engine, engine.observe.metrics, engine.observe.exposition; assert 'prometheus_client' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
