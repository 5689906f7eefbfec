"""Next: where a jump may go, what it hands on, and what is opened again."""

import re
from typing import Any

import pytest

from engine import Context, Engine, Next, RunHandle, Workflow
from engine.errors import StepFailed, StepLimitReached

pytestmark = pytest.mark.anyio


def flow_of(edges: str, entry: str = "a", **bodies: Any) -> Workflow:
    flow = Workflow("jumps")
    ends = [e.split(">") for e in edges.split()]
    for name in dict.fromkeys(n for pair in ends for n in pair):
        flow.add_node(name, bodies.get(name, lambda n=name: n))
    for pair in ends:
        if len(pair) == 2:
            flow.add_edge(*pair)
    return flow.set_entry_point(entry)


async def ended(flow: Workflow, value: Any = None) -> RunHandle:
    handle = await Engine(None).start(flow, value)
    await handle.wait()
    return handle


def passes(handle: RunHandle) -> list[str]:
    return ["/".join(r.step_id.split("/")[1:]) for r in handle.executions]


async def test_a_jump_hands_on_its_input():
    for value in (0, False, "", [], {"k": 1}, "text"):
        assert await flow_of("a b", a=lambda v=value: Next("b", input=v), b=lambda x: [x]).execute("in") == [value]


async def test_a_jump_without_input_hands_on_the_jumpers_own_input():
    flow = flow_of("a>b c", a=lambda: {"data": 1}, b=lambda: Next("c"), c=lambda x: [x])
    assert await flow.execute() == [{"data": 1}]


async def test_a_jump_may_send_a_real_none():
    flow = flow_of("a b", a=lambda: Next("b", input=Next.none), b=lambda x: [x])
    assert await flow.execute("in") == [None]


async def test_a_jump_without_input_leaves_last_output_and_enters_it_as_the_jumpers_history():
    flow = flow_of("a>b c", a=lambda: "from a", b=lambda: Next("c"), c=lambda ctx: [ctx.get_last_output(), dict(ctx.history)])
    assert await flow.execute() == ["from a", {"a": "from a", "b": "from a"}]


async def test_a_jump_with_input_makes_it_the_last_output_and_the_jumpers_history():
    flow = flow_of("a>b c", b=lambda: Next("c", input=5), c=lambda ctx: [ctx.get_last_output(), ctx.history["b"]])
    assert await flow.execute() == [5, 5]


async def test_update_state_is_the_last_part_of_the_jumpers_diff():
    def jump(ctx: Context) -> Next:
        ctx.state["k"] = "body"
        ctx.state["mine"] = 1
        del ctx.state["gone"]
        return Next("c", update_state={"k": "jump", "gone": "back"})

    flow = flow_of("a>b c", a=lambda ctx: ctx.state.update(gone=1), b=jump, c=lambda ctx: dict(ctx.state))
    assert await flow.execute() == {"k": "jump", "mine": 1, "gone": "back"}


async def test_update_state_of_two_jumpers_is_kept():
    flow = Workflow().add_node("a", lambda: Next("c", update_state={"x": 1})).add_node("b", lambda: Next("c", update_state={"y": 2}))
    flow.add_node("c", lambda ctx: dict(ctx.state)).set_entry_point("a", "b")
    assert await flow.execute() == {"x": 1, "y": 2}


async def test_when_several_jump_to_one_node_the_last_in_declared_order_gives_its_input():
    flow = Workflow().add_node("a", lambda: Next("c", input="a")).add_node("b", lambda: Next("c", input="b")).add_node("c", lambda x: x)
    assert await flow.set_entry_point("b", "a").execute() == "b"


async def test_the_last_jumps_input_in_declared_order_is_the_last_output():
    flow = (
        Workflow()
        .add_node("a", lambda: Next("c", input="first"))
        .add_node("b", lambda: Next("d", input="second"))
        .add_node("e", lambda: "e")
    )
    flow.add_node("c", lambda ctx: ctx.get_last_output()).add_node("d", lambda ctx: ctx.get_last_output()).set_entry_point("a", "b", "e")
    assert await flow.execute() == {"c": "second", "d": "second"}


async def test_the_jumpers_out_edges_are_dead_and_its_siblings_stay():
    flow = flow_of("a>b a>c b>x c>y d", b=lambda: Next("d"))
    handle = await ended(flow)
    assert {r.node: r.status for r in handle.executions} == dict.fromkeys("abcyd", "success") | {"x": "skipped"}


async def test_a_jump_back_runs_the_targets_successors_again_as_drawn():
    rounds: list[int] = []
    flow = flow_of("a>b b>c", c=lambda x: rounds.append(1) or (Next("a", input="again") if len(rounds) < 3 else "end"))
    handle = await ended(flow)
    assert handle.output == "end"
    assert passes(handle) == ["a/1", "b/1", "c/1", "a/2", "b/2", "c/2", "a/3", "b/3", "c/3"]


async def test_a_jump_may_go_to_its_own_node_without_allow_cycles():
    flow = flow_of("a", a=lambda x: Next("a", input=x + 1) if x < 5 else x)
    assert await flow.execute(0) == 5


async def test_a_jump_may_go_to_a_node_that_no_edge_reaches():
    assert await flow_of("a island", a=lambda: Next("island")).execute() == "island"


async def test_the_target_starts_without_its_in_edges_and_dependencies():
    flow = flow_of("a x>b", a=lambda: Next("b", input=1), b=lambda x: x).set_dependency("b", "x")
    assert await flow.execute() == 1


async def test_history_entries_of_what_is_opened_again_are_dropped_and_state_stays():
    seen: list[Any] = []

    def look(ctx: Context) -> str:
        seen.append((sorted(ctx.history), dict(ctx.state)))
        return "a"

    def jump(ctx: Context) -> Any:
        ctx.state["round"] = ctx.state.get("round", 0) + 1
        return Next("a") if ctx.state["round"] == 1 else "end"

    await flow_of("a>b b>c", a=look, c=jump).execute()
    assert seen == [([], {}), ([], {"round": 1})]


async def test_a_jump_takes_back_what_is_ready_in_its_reach():
    """A fan-out of which one says "plan again" is joined once, after the new plan."""
    planned: list[int] = []
    flow = Workflow("again").add_node("plan", lambda: planned.append(1) or len(planned))
    flow.add_node("x", lambda plan: Next("plan") if plan == 1 else f"x{plan}").add_node("y", lambda plan: f"y{plan}").add_node(
        "join", lambda x: x
    )
    flow.add_edge("plan", "x").add_edge("plan", "y").add_edge("x", "join").add_edge("y", "join").set_entry_point("plan")
    handle = await ended(flow)
    assert handle.output == {"x": "x2", "y": "y2"}
    assert passes(handle).count("join/2") + passes(handle).count("join/1") == 1


async def test_an_unknown_target_fails_the_run_naming_target_and_jumper():
    with pytest.raises(StepFailed, match=r"'b'.*'nowere' not found; did you mean 'nowhere'"):
        await flow_of("a>b nowhere", b=lambda: Next("nowere")).execute()


@pytest.mark.parametrize("target", [5, None, ["b"], {"b": 1}])
async def test_a_target_that_is_no_name_is_an_unknown_one(target: Any):
    with pytest.raises(StepFailed, match=rf"'b': target {re.escape(repr(target))} not found; "):
        await flow_of("a>b nowhere", b=lambda: Next(target)).execute()


@pytest.mark.parametrize("policy", [{"on_error": "skip"}, {"retry": 3}, {"on_error": "fallback", "fallback": "b"}])
async def test_an_unknown_target_is_not_retried_whatever_on_error_says(policy: dict[str, Any]):
    calls: list[int] = []
    flow = Workflow().add_node("a", lambda: calls.append(1) or Next("nowhere"), **policy).add_node("b", lambda: 1).set_entry_point("a")
    with pytest.raises(StepFailed, match="nowhere"):
        await flow.execute()
    assert calls == [1]


async def test_max_steps_bounds_jumps():
    flow = Workflow(max_steps=2).add_node("A", lambda: Next("B")).add_node("B", lambda: Next("A")).set_entry_point("A")
    with pytest.raises(StepLimitReached, match="Exceeded max steps"):
        await flow.execute()


async def test_max_steps_counts_each_target_once_a_layer():
    flow = Workflow(max_steps=1).add_node("a", lambda: Next("c")).add_node("b", lambda: Next("c")).add_node("c", lambda: "c")
    assert await flow.set_entry_point("a", "b").execute() == "c"


async def test_a_jump_is_an_event_with_target_and_input():
    handle = await ended(flow_of("a>b c", a=lambda: Next("b", input=[1]), b=lambda: Next("c")))
    jumps = [(e.node, e.data) async for e in handle.events() if e.kind == "jumped"]
    assert jumps == [("a", {"target": "b", "input": [1]}), ("b", {"target": "c"})]


async def test_a_dict_with_a_node_key_is_no_jump():
    assert await flow_of("a b", a=lambda: {"node": "b", "text": "<Next"}).execute() == {"node": "b", "text": "<Next"}


def test_a_next_says_what_it_is():
    assert repr(Next("b", input=1)) == "Next('b', input=1)"
    assert (Next("b").input, Next("b").update_state) == (None, {})
