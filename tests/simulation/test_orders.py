"""The order in which results arrive decides nothing: any seed, the same end."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Context, Next, Workflow
from engine.testing.crash import check_same
from engine.testing.faults import Slow
from engine.testing.simulate import Report, simulate

BRANCHES = 6


def make_racing() -> Workflow:
    """Steps and items that write the same keys, a jump out of the middle of them, and a loop over it all."""

    def writer(n: int) -> Any:
        async def body(given: Any, ctx: Context) -> int:
            ctx.state["newest"] = n
            ctx.state["sum"] = ctx.state.get("sum", 0) + n
            ctx.state.setdefault("names", []).append(f"w{n}")
            return n

        return body

    def item(given: int, ctx: Context) -> int:
        ctx.state["newest"] = -given
        return given * given

    def jump(ctx: Context) -> Any:
        ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
        return Next("start", ctx.state["rounds"]) if ctx.state["rounds"] < 3 else "enough"

    reducers: dict[Any, Any] = {"sum": "add", "names": "append"}
    flow = (
        Workflow("Racing", reducers=reducers).add_node("start", lambda n: list(range(n))).add_node("join", lambda given: given, join="all")
    )
    for n in range(BRANCHES):
        flow.add_node(f"w{n}", writer(n)).add_edge("start", f"w{n}").add_edge(f"w{n}", "join")
    flow.add_map("items", item).add_edge("start", "items").add_edge("items", "join")
    flow.add_node("jump", jump).add_edge("start", "jump").add_edge("jump", "join")
    return flow.set_entry_point("start")


def arrivals(report: Report) -> list[str]:
    return [event.step_id for event in report.events if event.kind == "step_succeeded"]


CALM = simulate(make_racing, 4, spread=0.0)


@pytest.mark.slow
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_results_in_any_order_end_in_the_same_state(seed: int):
    check_same(CALM, simulate(make_racing, 4, seed=seed), f"seed {seed}")


@pytest.mark.slow
@settings(max_examples=20)
@given(order=st.permutations(range(BRANCHES)))
def test_every_order_of_arrival_of_a_layer_ends_in_the_same_state(order: list[int]):
    late = [Slow(f"w{n}", float(place + 1), times=100) for place, n in enumerate(order)]
    report = simulate(make_racing, 4, faults=late, spread=0.0)
    first = [node for event in report.events if (node := event.node).startswith("w") and event.kind == "step_succeeded"][:BRANCHES]
    assert first == [f"w{n}" for n in order]
    check_same(CALM, report, f"order {order}")


def test_seeds_shuffle_the_arrivals():
    assert arrivals(simulate(make_racing, 4, seed=1)) != arrivals(simulate(make_racing, 4, seed=2))


def test_one_seed_gives_one_run():
    first, second = simulate(make_racing, 4, seed=5), simulate(make_racing, 4, seed=5)
    assert first.events == second.events
    assert (first.writes, first.duration, first.performed) == (second.writes, second.duration, second.performed)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_slots_change_no_result(width: int):
    def make() -> Workflow:
        flow = make_racing()
        flow.max_concurrency = width
        return flow

    check_same(CALM, simulate(make, 4, seed=width), f"{width} slots")
