"""History, rows of executions, and the small things of a context."""

import asyncio
import itertools
import logging
import threading
import time
from typing import Any

import pytest

from engine import Context, Engine, Event, Next, NodeExecution, NodeStatus, Retry, Workflow
from engine.core.events import DURABLE, TRANSIENT
from engine.runtime.inbox import RING

pytestmark = pytest.mark.anyio


def chain(*bodies: Any, **options: Any) -> Workflow:
    flow = Workflow("flow", **options)
    for i, body in enumerate(bodies):
        flow.add_node(f"n{i}", body)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    return flow.set_entry_point("n0")


# History.


@pytest.mark.parametrize(
    ("retention", "wanted"), [(2, ["n2", "n3"]), (0, []), (None, ["n0", "n1", "n2", "n3"]), (20, ["n0", "n1", "n2", "n3"])]
)
async def test_history_is_a_window_over_the_newest_entries(retention: int | None, wanted: list[str]):
    flow = chain(*[lambda i=i: i for i in range(4)], lambda ctx: list(ctx.history), max_history_retention=retention)
    assert await flow.execute() == wanted


async def test_last_output_is_always_there():
    def look(ctx: Context) -> Any:
        return ["last_output" in ctx.history, ctx.history["last_output"], len(ctx.history), list(ctx.history)]

    assert await chain(lambda: 5, look, max_history_retention=0).execute() == [True, 5, 0, []]


async def test_history_never_decides_which_nodes_run_or_what_they_get():
    flow = Workflow(max_history_retention=0).add_node("a", lambda: 1).add_node("b", lambda: 2).add_node("c", lambda x: x, join="all")
    flow.add_node("d", lambda x: x)
    flow.add_edge("a", "c").add_edge("b", "c").add_edge("c", "d").add_edge("a", "d").set_entry_point("a", "b")
    assert await flow.execute() == {"a": 1, "c": {"a": 1, "b": 2}}


async def test_an_input_that_fell_out_of_the_window_is_still_handed_on():
    flow = chain(*[lambda x=i: x for i in range(30)], max_history_retention=1).add_node("late", lambda x: x).add_edge("n0", "late")
    flow.set_dependency("late", "n29")
    handle = await Engine(None).start(flow)
    await handle.wait()
    assert handle.history == {"late": 0}


async def test_history_is_by_layer_then_declared_order():
    flow = (
        Workflow().add_node("z", lambda: 1).add_node("y", lambda: 2).add_node("x", lambda: 3).add_node("end", lambda ctx: list(ctx.history))
    )
    for name in "xzy":
        flow.add_edge(name, "end")
    assert await flow.set_entry_point("x", "y", "z").execute() == ["z", "y", "x"]


async def test_a_node_that_ran_again_is_the_newest():
    rounds: list[int] = []
    flow = chain(lambda: 1, lambda: 2, lambda: rounds.append(1) or (Next("n1") if len(rounds) == 1 else 3), lambda ctx: list(ctx.history))
    assert await flow.execute() == ["n0", "n1", "n2"]


async def test_history_is_read_only():
    def body(ctx: Context) -> None:
        ctx.history["mine"] = 1  # type: ignore[index]

    with pytest.raises(Exception, match=r"'n0'.*TypeError"):
        await chain(body).execute()


async def test_an_unknown_history_entry_is_a_key_error():
    with pytest.raises(Exception, match="KeyError"):
        await chain(lambda ctx: ctx.history["nothing"]).execute()


# Rows.


async def test_rows_have_node_step_id_status_attempt_times_and_error():
    begun = time.time()
    flow = chain(lambda: 1, lambda: 2).add_node("skipped", lambda: 1).add_edge("n0", "skipped", lambda ctx: False)
    handle = await Engine(None).start(flow)
    await handle.wait()
    first, skipped, second = handle.executions
    assert (first.node, first.step_id, first.status, first.attempt, first.error) == ("n0", f"{handle.run_id}/n0/1", "success", 1, None)
    assert begun <= first.started <= time.time()
    assert 0 <= first.duration < 5
    assert (skipped.node, skipped.status, skipped.attempt, skipped.duration) == ("skipped", "skipped", 0, 0.0)
    assert second.node == "n1"


async def test_rows_and_their_statuses_have_the_names_of_earlier_versions():
    flow = Workflow().add_node("a", lambda: 1).add_node("b", lambda: 2).add_edge("a", "b", lambda ctx: False).set_entry_point("a")
    handle = await Engine(None).start(flow)
    await handle.wait()
    assert all(isinstance(row, NodeExecution) for row in handle.executions)
    assert [row.status for row in handle.executions] == [NodeStatus.SUCCESS, NodeStatus.SKIPPED]
    assert set(NodeStatus) == {"pending", "running", "success", "failed", "skipped"}


def test_the_docstring_of_an_event_names_every_kind():
    assert Event.__doc__ is not None
    assert (DURABLE | TRANSIENT) - set(Event.__doc__.split()) == set()


async def test_rows_are_the_newest_hundred_by_layer_then_declared_order():
    flow = Workflow("wide").add_node("start", lambda: 1)
    for i in range(120):
        flow.add_node(f"n{i}", lambda: 1).add_edge("start", f"n{i}")
    handle = await Engine(None).start(flow.set_entry_point("start"))
    await handle.wait()
    assert [r.node for r in handle.executions] == [f"n{i}" for i in range(20, 120)]


async def test_rows_are_of_all_passes():
    handle = await Engine(None).start(Workflow().add_node("a", lambda x: Next("a", input=x + 1) if x < 3 else x).set_entry_point("a"), 0)
    await handle.wait()
    assert [r.step_id.rpartition("/")[2] for r in handle.executions] == ["1", "2", "3", "4"]


async def test_a_body_sees_the_rows_so_far():
    assert await chain(lambda: 1, lambda ctx: [r.node for r in ctx.executions]).execute() == ["n0"]


# The context.


async def test_get_summary_counts_what_ran():
    handle = await Engine(None).start(chain(lambda ctx: ctx.get_summary(), lambda x, ctx: [x, ctx.get_summary()]))
    first, second = await handle.wait()
    empty = {"total_nodes": 0, "total_time": 0, "last_node": None, "status": "completed"}
    assert first == {"execution_id": handle.run_id, **empty}
    assert (second["total_nodes"], second["last_node"], second["status"]) == (1, "n0", "completed")
    assert second["total_time"] >= 0


async def test_a_context_tells_its_run():
    def look(ctx: Context) -> Any:
        return [ctx.run_id, ctx.execution_id, ctx.session_id, ctx.node, ctx.step_id, ctx.attempt, ctx.input, ctx.step_input, ctx.metadata]

    handle = await Engine(None).start(chain(lambda: "first", look, storage=False), {"in": 1}, session_id="s")
    found = await handle.wait()
    assert found == ["flow.s.1", "flow.s.1", "s", "n1", "flow.s.1/n1/1", 1, {"in": 1}, "first", {"session_id": "s"}]


async def test_a_run_without_a_session_has_none_but_an_id():
    assert await chain(lambda ctx: [ctx.session_id, bool(ctx.run_id)]).execute() == [None, True]


async def test_a_bodys_logger_tells_run_node_and_step(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        handle = await Engine(None).start(chain(lambda ctx: ctx.logger.info("at work")))
        await handle.wait()
    (record,) = [r for r in caplog.records if r.getMessage() == "at work"]
    assert (record.__dict__["run_id"], record.__dict__["node"], record.__dict__["step_id"]) == (
        handle.run_id,
        "n0",
        f"{handle.run_id}/n0/1",
    )


async def test_progress_is_a_transient_event_from_sync_and_async_bodies():
    async def late(ctx: Context) -> None:
        ctx.progress(1)

    flow = chain(lambda ctx: ctx.progress(5, 10, "half"), late)
    seen = [e async for e in flow.stream() if e.kind == "progress"]
    assert [(e.node, e.data) for e in seen] == [
        ("n0", {"done": 5, "total": 10, "note": "half"}),
        ("n1", {"done": 1, "total": None, "note": ""}),
    ]
    assert all(e.ordinal > 0 and e.seq > 0 for e in seen)


@pytest.mark.parametrize("storage", [None, "memory://events-ordinals"])
async def test_transient_events_of_one_number_are_in_order_by_their_ordinals(storage: str | None):
    flow = chain(lambda ctx: [ctx.progress(i) for i in range(20)] and None, storage=storage)
    seen = [e async for e in flow.stream() if e.ordinal]
    assert [e.data["done"] for e in seen if e.kind == "progress"] == list(range(20))
    assert all(earlier.ordinal < later.ordinal for earlier, later in itertools.pairwise(seen))
    assert len({e.seq for e in seen if e.kind == "progress"}) == 1


async def test_to_storage_payload_keeps_the_newest_entries_and_last_output():
    bodies = [lambda i=i: i for i in range(4)]
    flow = chain(*bodies, lambda ctx: [ctx.to_storage_payload(2), sorted(ctx.to_storage_payload(0)["history"])])
    payload, everything = await flow.execute("in")
    assert payload["history"] == {"n2": 2, "n3": 3, "last_output": 3}
    assert (payload["input"], payload["state"], "executions" in payload) == ("in", {}, False)
    assert everything == ["last_output", "n0", "n1", "n2", "n3"]


# Events.


async def test_events_of_a_chain_are_numbered_in_order_without_gaps():
    handle = await Engine(None).start(chain(lambda: "one", lambda: "two"), "in")
    await handle.wait()
    events = [e async for e in handle.events()]
    assert [e.kind for e in events] == ["run_started", *["step_started", "step_succeeded"] * 2, "run_completed"]
    assert [e.seq for e in events] == [1, 2, 3, 4, 5, 6]
    assert {e.run_id for e in events} == {handle.run_id}
    assert [e.at for e in events] == sorted(e.at for e in events)
    assert all(e.at.tzinfo is not None for e in events)
    first, started, succeeded = events[:3]
    assert first.data["input"] == "in"
    assert (started.node, started.step_id, started.attempt) == ("n0", f"{handle.run_id}/n0/1", 1)
    assert succeeded.data["output"] == "one"
    assert succeeded.data["duration"] >= 0
    assert events[-1].data == {"finished": 2, "output": "two"}


@pytest.mark.parametrize("storage", [None, "memory://events-same"])
async def test_events_are_the_same_live_late_and_recorded(storage: str | None):
    async def slow(x: Any) -> Any:
        await asyncio.sleep(0)
        return [x]

    def jump(ctx: Context) -> Next:
        ctx.state["k"] = 1
        return Next("n2", input={"k": 1})

    handle = await Engine(storage).start(chain(slow, jump, slow, storage=storage), "in", session_id="s")
    live = [e async for e in handle.events()]
    late = [e async for e in handle.events()]
    assert live == late
    if storage is not None:
        assert [e async for e in Engine(storage).events("s")] == live
    assert [e.kind for e in live][-1] == "run_completed"


async def test_recorded_and_unrecorded_runs_tell_the_same_events():
    def shape(events: list[Event]) -> Any:
        fluid = ("duration", "hash", "code", "definition", "target", "start_node", "error", "due")
        told = [(e.kind, e.step_id, e.node, e.attempt, {k: v for k, v in e.data.items() if k not in fluid}) for e in events]
        return sorted(told, key=lambda t: t[:4])  # within a layer they come as they arrive

    def build(storage: str | None) -> Workflow:
        tried: list[int] = []
        flow = Workflow("same", storage=storage).add_node("a", lambda ctx: ctx.state.update(k="a", only=1) or [1])
        flow.add_node(
            "b",
            lambda ctx: ctx.state.update(k="b") or tried.append(1) or (int("boom") if len(tried) == 1 else None),
            retry=Retry(2, delay=0),
        )
        flow.add_node("c", lambda: int("boom"), on_error="skip").add_map("m", lambda x: x, over="items").add_node(
            "j", lambda: Next("t", input=5)
        )
        flow.add_node("t", lambda x: x).add_node("no", lambda: 1).add_node(
            "sub", Workflow("inner").add_node("i", lambda: 1).set_entry_point("i")
        )
        flow.add_node("list", lambda ctx: ctx.state.update(items=[1, 2]))
        flow.add_edge("a", "c").add_edge("a", "no", lambda ctx: False).add_edge("list", "m").add_edge("a", "sub").add_edge("sub", "j")
        return flow.set_entry_point("a", "b", "list")

    shapes = []
    for storage in (None, "memory://events-shape"):
        handle = await Engine(storage).start(build(storage), "in", session_id="s")
        await handle.wait()
        shapes.append(shape([e async for e in handle.events()]))
    assert shapes[0] == shapes[1]


async def test_a_reader_that_comes_back_gets_what_is_after_the_number_it_saw():
    handle = await Engine("memory://events-after").start(chain(lambda: 1, lambda: 2), session_id="s")
    await handle.wait()
    everything = [e async for e in handle.events()]
    assert [e async for e in handle.events(after=3)] == everything[3:]
    assert [e async for e in Engine("memory://events-after").events("s", after=3)] == everything[3:]
    assert [e async for e in handle.events(after=99)] == []


async def test_events_are_delivered_after_their_commit():
    place = "memory://events-commit"
    handle = await Engine(place).start(chain(lambda: 1, lambda: 2, lambda: 3), session_id="s")
    log = Engine(place).log
    assert log is not None
    async for event in handle.events():
        assert (await log.read(handle._remote.key))[-1].seq >= event.seq
    assert handle.status == "completed"


async def test_layers_are_shown_while_they_run():
    flow = (
        Workflow()
        .add_node("a", lambda: 1)
        .add_node("b", lambda: 1)
        .add_node("c", lambda: 1)
        .add_edge("a", "b")
        .add_edge("a", "c")
        .set_entry_point("a")
    )
    seen = [(e.kind, e.data) async for e in flow.stream() if e.kind.startswith("layer")]
    assert seen == [
        ("layer_started", {"layer": 1, "nodes": ["a"]}),
        ("layer_finished", {"layer": 1}),
        ("layer_started", {"layer": 2, "nodes": ["b", "c"]}),
        ("layer_finished", {"layer": 2}),
    ]


async def test_a_stream_yields_the_events_of_a_run():
    assert [e.kind async for e in chain(lambda: 1).stream("in") if not e.ordinal] == [
        "run_started",
        "step_started",
        "step_succeeded",
        "run_completed",
    ]


async def test_a_stream_of_a_failing_run_ends_with_its_failure():
    assert [e.kind async for e in chain(lambda: int("boom")).stream()][-1] == "run_failed"


async def test_a_stream_from_a_session_without_storage_is_recorded(tmp_path: Any):
    kinds = [e.kind async for e in chain(lambda: 1).stream(session_id="s")]
    assert kinds[-1] in ("run_completed", "commit_succeeded")
    assert (tmp_path / ".gecko").is_dir()


async def test_an_event_bus_gets_every_event_in_order():
    class Bus:
        def __init__(self) -> None:
            self.events: list[Event] = []

        async def publish(self, event: Event) -> None:
            await asyncio.sleep(0)
            self.events.append(event)

    bus = Bus()
    await chain(lambda: 1, event_bus=bus).execute()
    assert [e.kind for e in bus.events if not e.ordinal] == ["run_started", "step_started", "step_succeeded", "run_completed"]


async def test_a_sync_event_bus_is_a_bus_too_and_one_that_fails_does_not_fail_the_run(caplog: pytest.LogCaptureFixture):
    class Bus:
        def publish(self, event: Event) -> None:
            raise ValueError("boom")

    assert await chain(lambda: 1, event_bus=Bus()).execute() == 1
    assert caplog.messages.count("An event bus failed") >= 4


async def test_a_reader_may_spoil_its_events_and_nothing_else():
    class Bus:
        def publish(self, event: Event) -> None:
            spoil(event)

    def spoil(event: Event) -> None:
        for value in event.data.values():
            if isinstance(value, (list, dict)):
                value.clear()
        event.data.clear()

    def answer(ctx: Context) -> list[Any]:
        ctx.state["k"] = [1]
        return [1, {"deep": [2]}]

    async def wait(given: Any) -> Any:
        await told.wait()  # the bus has had the output of the step before
        return given

    told = asyncio.Event()
    flow = chain(
        answer, wait, lambda given, ctx: Next("n3", [given, ctx.history["n0"], ctx.state["k"]]), lambda given: given, event_bus=Bus()
    )
    handle = await Engine(None).start(flow, {"in": [1]})
    async for event in handle.events():
        spoil(event)
        if (event.kind, event.node) == ("step_succeeded", "n0"):
            told.set()
    assert await handle.wait() == [[1, {"deep": [2]}], [1, {"deep": [2]}], [1]]
    told_again = {e.kind: e.data async for e in handle.events()}
    assert told_again["run_started"]["input"] == {"in": [1]}
    assert told_again["run_completed"]["output"] == handle.output == [[1, {"deep": [2]}], [1, {"deep": [2]}], [1]]


async def test_a_reader_that_does_not_read_keeps_every_durable_event_and_a_ring_of_transient_ones():
    def body(ctx: Context) -> None:
        for i in range(RING + 5_000):
            ctx.progress(i)

    handle = await Engine(None).start(chain(body, lambda: 1))
    events = handle.events(transient=True)
    seen = [await anext(events)]
    await handle.wait()
    seen += [e async for e in events]
    assert [e.seq for e in seen if not e.ordinal] == list(range(1, 7))
    passing = [e for e in seen if e.ordinal]
    assert len(passing) <= RING
    assert [e.data["done"] for e in passing if e.kind == "progress"][-1] == RING + 4_999
    assert [e.seq for e in seen] == sorted(e.seq for e in seen)


async def test_an_event_is_frozen():
    handle = await Engine(None).start(chain(lambda: 1))
    await handle.wait()
    event = await anext(handle.events())
    with pytest.raises(AttributeError):
        event.kind = "other"  # type: ignore[misc]


WANTED = {
    "run_started": {"workflow", "session", "input"},
    "run_completed": {"finished", "output"},
    "step_succeeded": {"output", "duration", "writes", "deletes", "items", "jump", "sent"},
    "step_failed": {"error", "duration"},
    "step_retrying": {"error", "delay", "due"},
    "step_skipped": {"error", "duration"},
    "step_stopped": {"reason", "stopped_after"},
    "step_started": {"items"},
    "condition_decided": {"source", "target", "verdict", "late"},
    "condition_failed": {"source", "target", "error"},
    "conflict": {"key", "nodes", "layer"},
    "jumped": {"target", "input"},
    "once_intended": {"key"},
    "once_done": {"key", "value"},
}


@pytest.mark.parametrize("storage", [None, "memory://events-data"])
async def test_the_data_of_an_event_names_what_its_kind_tells(storage: str | None):
    tried: list[int] = []
    flow = (
        Workflow("flow", storage=storage).add_node("a", lambda ctx: ctx.state.update(k=1)).add_node("b", lambda ctx: ctx.state.update(k=2))
    )
    flow.add_node("c", lambda: tried.append(1) or (int("x") if len(tried) == 1 else 1), retry=Retry(2, delay=0))
    flow.add_node("d", lambda: int("x"), on_error="skip").add_node("no", lambda: 1).add_node("g", lambda: Next("h", input=1))
    flow.add_node("h", lambda: 1).add_map("m", lambda x: x).add_node("o", lambda ctx: ctx.once("k", lambda: 1))
    release = threading.Event()
    flow.add_node("t", lambda: release.wait(5), timeout=0.01, on_error="skip")
    flow.add_edge("a", "no", lambda ctx: int("x")).set_entry_point(*"abcdgmot")
    handle = await Engine(storage).start(flow, [1], session_id="s")
    await handle.wait()
    release.set()
    found: dict[str, set[str]] = {}
    async for event in handle.events():
        found.setdefault(event.kind, set()).update(event.data)
    found["run_started"] -= {"definition", "hash", "code", "target", "start_node"}
    assert found == WANTED
