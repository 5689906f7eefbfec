"""Edges, conditions, joins, skips, dependencies, inputs and last outputs, end to end."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import engine.runtime.step
from engine import Context, Engine, RunHandle, Workflow
from engine.errors import StepLimitReached, WorkflowError
from engine.testing.simulate import simulate

pytestmark = pytest.mark.anyio


def drawn(edges: str, *entries: str, joins: dict[str, Any] | None = None, bodies: dict[str, Any] | None = None, **options: Any) -> Workflow:
    """A workflow from "a>b a?c": `>` is a plain edge, `?` one whose condition is false, `!` one whose condition is true."""
    flow = Workflow("drawn", **options)
    parts = [next((e.split(mark), mark) for mark in ">?!" if mark in e) if any(m in e for m in ">?!") else ([e], "") for e in edges.split()]
    for name in dict.fromkeys(n for ends, _ in parts for n in ends):
        flow.add_node(name, (bodies or {}).get(name, lambda n=name: n), join=(joins or {}).get(name, "any"))
    for ends, mark in parts:
        if mark:
            flow.add_edge(ends[0], ends[1], None if mark == ">" else lambda ctx, mark=mark: mark == "!")
    return flow.set_entry_point(*(entries or (parts[0][0][0],)))


async def ended(flow: Workflow, value: Any = None, **options: Any) -> RunHandle:
    handle = await Engine(None).start(flow, value, **options)
    await handle.wait()
    return handle


async def ran(flow: Workflow, **options: Any) -> dict[str, str]:
    return {row.node: row.status for row in (await ended(flow, **options)).executions}


# Conditions.


@pytest.mark.parametrize("condition", [lambda c: c.step_input == 1, lambda anything: anything.node == "a", lambda ctx: ctx.input == 1])
async def test_a_condition_receives_the_context_whatever_its_parameter_is_called(condition: Any):
    flow = Workflow().add_node("a", lambda x: x).add_node("b", lambda x: [x]).add_edge("a", "b", condition).set_entry_point("a")
    assert await flow.execute(1) == [1]


async def test_a_condition_may_be_sync_or_async():
    async def late(ctx: Context) -> bool:
        await asyncio.sleep(0)
        return True

    flow = drawn("a b c").add_edge("a", "b", late).add_edge("a", "c", lambda ctx: 0)
    assert await ran(flow) == {"a": "success", "b": "success", "c": "skipped"}


async def test_a_condition_sees_merged_state_history_last_output_and_its_source():
    seen: list[Any] = []

    def look(ctx: Context) -> bool:
        seen.append([ctx.node, ctx.step_input, ctx.get_last_output(), dict(ctx.state), dict(ctx.history), ctx.input])
        return True

    flow = drawn("a b c d", "a", "b", bodies={n: lambda ctx: ctx.state.update({ctx.node: 1}) or ctx.node.upper() for n in "abc"})
    flow.add_edge("a", "c", look).add_edge("b", "d", look)
    await flow.execute("in")
    shared = [{"a": "A", "b": "B"}, {"a": 1, "b": 1}, {"a": "A", "b": "B"}, "in"]
    assert sorted(seen) == [["a", "A", *shared], ["b", "B", *shared]]


async def test_a_condition_is_asked_once_a_pass():
    asked: list[int] = []
    flow = drawn("a b c").add_edge("a", "b", lambda ctx: asked.append(1) or True).add_edge("b", "c")
    await flow.execute()
    assert asked == [1]


async def test_a_condition_may_not_write_state():
    seen: list[Any] = []

    def write(ctx: Context) -> bool:
        ctx.state["k"] = 1
        return True

    def edit(ctx: Context) -> bool:
        ctx.state["list"].append(2)
        ctx.history["a"].append(2)
        return True

    flow = drawn(
        "a b c d",
        bodies={"a": lambda ctx: ctx.state.update(list=[1]) or [1], "d": lambda ctx: seen.append((dict(ctx.state), ctx.history["a"]))},
    )
    flow.add_edge("a", "b", write).add_edge("a", "c", edit).add_edge("c", "d")
    assert (await ran(flow))["b"] == "skipped"
    assert seen == [({"list": [1]}, [1])]


async def test_a_condition_that_raises_counts_as_false_with_an_event_and_a_log_line(caplog: pytest.LogCaptureFixture):
    def broken(ctx: Context) -> bool:
        raise ValueError("boom")

    handle = await ended(drawn("a b").add_edge("a", "b", broken))
    events = [e async for e in handle.events() if e.kind.startswith("condition")]
    assert [(e.kind, e.data["source"], e.data["target"]) for e in events] == [
        ("condition_failed", "a", "b"),
        ("condition_decided", "a", "b"),
    ]
    assert "boom" in events[0].data["error"]
    assert events[1].data["verdict"] is False
    assert "Condition check failed, 'a' -> 'b': ValueError: boom" in caplog.messages
    assert {r.node: r.status for r in handle.executions} == {"a": "success", "b": "skipped"}


async def test_the_log_line_of_a_failed_condition_needs_nobody_who_watches(caplog: pytest.LogCaptureFixture):
    await drawn("a b").add_edge("a", "b", lambda ctx: ctx.state["missing"]).execute()
    assert [r.levelno for r in caplog.records if r.message == "Condition check failed, 'a' -> 'b': KeyError: 'missing'"] == [logging.ERROR]


@pytest.mark.parametrize("kind", [SystemExit, KeyError, BaseException])
async def test_whatever_a_condition_raises_counts_as_false(kind: type[BaseException]):
    async def late(ctx: Context) -> bool:
        raise kind

    def sync(ctx: Context) -> bool:
        raise kind

    flow = drawn("a b c").add_edge("a", "b", late).add_edge("a", "c", sync)
    assert await ran(flow) == {"a": "success", "b": "skipped", "c": "skipped"}


async def test_a_condition_that_times_out_counts_as_false(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.step, "CONDITION_LIMIT", 0.01)
    release = threading.Event()
    flow = drawn("a b c").add_edge("a", "b", lambda ctx: release.wait(5)).add_edge("a", "c", lambda ctx: asyncio.Event().wait())
    assert await ran(flow) == {"a": "success", "b": "skipped", "c": "skipped"}
    release.set()


@pytest.mark.parametrize(("seconds", "history"), [(4.9, {"a": None, "b": None}), (5.1, {"a": None})])
def test_a_condition_has_five_seconds(seconds: float, history: dict[str, Any]):
    async def condition(ctx: Context) -> bool:
        await asyncio.sleep(seconds)
        return True

    flow = Workflow().add_node("a", lambda: None).add_node("b", lambda: None).add_edge("a", "b", condition).set_entry_point("a")
    assert simulate(flow).history == history


async def test_sync_conditions_that_time_out_do_not_use_up_the_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.step, "CONDITION_LIMIT", 0.01)
    release = threading.Event()
    flow = drawn("a b c", max_concurrency=1).add_edge("a", "b", lambda ctx: release.wait(5)).add_edge("a", "c")
    assert await asyncio.wait_for(ran(flow), 5) == {"a": "success", "b": "skipped", "c": "success"}
    release.set()


async def test_a_condition_whose_answer_has_no_truth_value_counts_as_false():
    class Neither:
        def __bool__(self) -> bool:
            raise TypeError("neither")

    assert (await ran(drawn("a b").add_edge("a", "b", lambda ctx: Neither())))["b"] == "skipped"


async def test_every_verdict_is_an_event():
    handle = await ended(drawn("a!b a?c"))
    decided = [e.data async for e in handle.events() if e.kind == "condition_decided"]
    assert [(d["target"], d["verdict"], d["late"]) for d in decided] == [("b", True, False), ("c", False, False)]


# Skips.


async def test_an_unmet_condition_skips_with_a_row_and_nothing_else():
    handle = await ended(drawn("a?b b>c", bodies={"a": lambda ctx: ctx.state.update(flag=False) or "from a"}))
    assert handle.output == "from a"
    assert handle.history == {"a": "from a"}
    assert {r.node: r.status for r in handle.executions} == {"a": "success", "b": "skipped", "c": "skipped"}


async def test_skipping_takes_no_layer():
    handle = await ended(drawn("a?b b>c a>d c>e d>e"))
    layers = [e.data["nodes"] async for e in handle.events(transient=True) if e.kind == "layer_started"]
    assert layers == []  # transient events are not kept for who comes late
    order = [r.node for r in handle.executions]
    assert order == ["a", "b", "c", "d", "e"]


# Joins.


@pytest.mark.parametrize(
    ("edges", "join", "status"),
    [
        ("a>x a?y x>j y>j", "any", "success"),
        ("a?x a?y x>j y>j", "any", "skipped"),
        ("a>x a>y x>j y>j", "all", "success"),
        ("a>x a>y x>j y?j", "all", "skipped"),
        ("a>x a?y x>j y>j", "all", "success"),  # an edge whose source was skipped does not count for all
        ("a?x a?y x>j y>j", "all", "skipped"),
        ("a>x a>y a>z x>j y>j z?j", 2, "success"),
        ("a>x a>y a>z x>j y?j z?j", 2, "skipped"),
        ("a>x a>y a?z x>j y>j z>j", 3, "skipped"),
    ],
)
async def test_a_node_runs_when_its_join_holds(edges: str, join: Any, status: str):
    assert (await ran(drawn(edges, joins={"j": join})))["j"] == status


async def test_a_join_waits_for_every_predecessor_to_settle():
    assert await drawn("a>b a>j b>c c>j", bodies={"j": lambda x: x}).execute() == {"a": "a", "c": "c"}


async def test_a_k_above_the_counted_edges_skips():
    flow = drawn("a>j b>j", "a", joins={"j": 2})
    assert await ran(flow) == {"a": "success", "j": "skipped"}


async def test_edges_from_nodes_that_were_not_opened_are_neither_waited_for_nor_counted():
    assert await ran(drawn("a>j b>j", "a", joins={"j": "all"})) == {"a": "success", "j": "success"}


async def test_a_start_node_in_the_middle_starts_there():
    flow = drawn("a>b b>c", bodies={"b": lambda x: [x], "c": lambda x: [x]})
    assert await flow.execute("in", start_node="b") == [["in"]]
    assert await ran(flow, start_node="b") == {"b": "success", "c": "success"}


# Dependencies.


async def test_a_dependency_is_waited_for_and_feeds_no_input():
    order: list[str] = []
    flow = drawn("a>b a>c c>d", bodies={n: lambda x, n=n: order.append(n) or x + n for n in "abcd"})
    flow.set_dependency("b", ["d"])
    assert (await ended(flow, "")).history["b"] == "ab"
    assert order == ["a", "c", "d", "b"]


async def test_a_dependency_is_counted_in_no_join():
    assert (await ran(drawn("a>b a>c", joins={"b": "all"}).set_dependency("b", "c")))["b"] == "success"


async def test_a_dependency_on_a_skipped_node_is_settled():
    assert (await ran(drawn("a>b a?c").set_dependency("b", "c")))["b"] == "success"


async def test_a_dependency_on_a_node_that_was_not_opened_is_not_waited_for():
    assert await ran(drawn("a>b c").set_dependency("b", "c")) == {"a": "success", "b": "success"}


async def test_reach_follows_dependencies():
    assert await ran(drawn("a b").set_dependency("b", "a")) == {"a": "success", "b": "success"}


# Inputs and last outputs.


async def test_the_entry_gets_the_runs_input_and_a_single_live_edge_its_source():
    assert await drawn("a>b", bodies={"a": lambda x: [x], "b": lambda x: [x]}).execute("in") == [["in"]]


async def test_several_live_edges_give_a_dict_in_declared_order_whatever_finished_first():
    turn = threading.Event()
    bodies: dict[str, Callable[..., Any]] = {
        "x": lambda: turn.wait(5) and "x",
        "y": lambda: turn.set() or "y",
        "j": lambda given: list(given.items()),
    }
    assert await drawn("a>x a>y x>j y>j", bodies=bodies).execute() == [("x", "x"), ("y", "y")]


async def test_an_input_depends_on_live_edges_alone():
    assert await drawn("a>x a>y x>j y?j", bodies={"j": lambda x: x}).execute() == "x"


async def test_falsy_outputs_are_handed_on():
    for value in (0, False, "", [], None):
        assert await drawn("a>b", bodies={"a": lambda v=value: v, "b": lambda x: [x]}).execute("in") == [value]


async def test_last_output_of_several_is_a_dict_in_declared_order_and_of_one_is_bare():
    assert list((await drawn("a>b a>c").execute()).items()) == [("b", "b"), ("c", "c")]
    assert await drawn("a>b a?c").execute() == "b"


async def test_a_skip_does_not_change_last_output():
    assert await drawn("a>b b?c").execute() == "b"


async def test_get_last_output_is_the_runs_input_before_anything_ran():
    assert await drawn("a", bodies={"a": lambda ctx: [ctx.get_last_output(), ctx.history["last_output"]]}).execute("in") == ["in", "in"]


async def test_a_step_skipped_over_its_error_counts_as_successful_and_hands_on_none():
    def broken() -> None:
        raise ValueError("boom")

    flow = Workflow().add_node("a", lambda: "a").add_node("b", broken, on_error="skip").add_node("c", lambda x: [x], join="all")
    flow.add_edge("a", "b").add_edge("b", "c", lambda ctx: ctx.step_input is None).set_entry_point("a")
    handle = await ended(flow)
    assert handle.output == [None]
    assert "b" not in handle.history
    row = next(r for r in handle.executions if r.node == "b")
    assert (row.status, "boom" in (row.error or "")) == ("skipped", True)
    kinds = [e.kind async for e in handle.events() if e.node == "b" and e.kind != "step_started"]
    assert kinds[:2] == ["step_failed", "step_skipped"]


async def test_exclusive_branches_join_where_either_ran():
    flow = Workflow().add_node("a", lambda x: x)
    for name in ("low", "high"):
        flow.add_node(name, lambda x, name=name: f"{name} {x}")
    flow.add_node("end", lambda x: x).add_edge("a", "low", lambda ctx: ctx.step_input < 5).add_edge(
        "a", "high", lambda ctx: ctx.step_input >= 5
    )
    flow.add_edge("low", "end").add_edge("high", "end").set_entry_point("a")
    assert [await flow.execute(n) for n in (1, 9)] == ["low 1", "high 9"]


# Back edges.


async def test_a_back_edge_opens_its_target_and_hands_on_its_sources_output():
    flow = Workflow(allow_cycles=True).add_node("a", lambda x: x + 1).add_node("b", lambda x: x)
    flow.add_edge("a", "b").add_edge("b", "a", lambda ctx: ctx.step_input < 5).set_entry_point("a")
    handle = await ended(flow, 0)
    assert handle.output == 5
    assert [r.step_id.rpartition("/")[2] for r in handle.executions if r.node == "b"] == ["1", "2", "3", "4", "5"]


async def test_what_was_taken_beside_a_back_edge_still_runs():
    """In A>B, B>A (back), B>log>end: log runs after each round of B, beside the next A, and end once, after the last."""
    order: list[str] = []
    flow = Workflow(allow_cycles=True)
    for name in ("A", "B", "log", "end"):
        flow.add_node(name, lambda ctx: order.append(ctx.node) or len(order))
    flow.add_edge("A", "B").add_edge("B", "A", lambda ctx: order.count("B") < 3).add_edge("B", "log").add_edge("log", "end")
    await flow.set_entry_point("A").execute()
    assert (order.count("log"), order.count("end"), order[-1]) == (3, 1, "end")


async def test_an_endless_cycle_exceeds_max_steps_and_says_how_to_raise_it():
    flow = Workflow(allow_cycles=True, max_steps=4).add_node("a", lambda: 1).add_node("b", lambda: 1).add_edge("a", "b").add_edge("b", "a")
    with pytest.raises(StepLimitReached, match=r"Exceeded max steps.*max_steps") as caught:
        await flow.set_entry_point("a").execute()
    assert isinstance(caught.value, WorkflowError)
