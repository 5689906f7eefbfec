"""A recorded team that goes on with other members: who is who by name, nobody is taken for somebody else, what cannot be told runs anew."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engine import QUORUM, RACE, Context, Engine, RunHandle, Strategy, Team, Workflow
from engine.core.numbering import numbered
from tests.engine.racing_bodies import Gate, boom, called, chain, counted, shown

pytestmark = pytest.mark.anyio

calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _count_anew() -> None:
    calls.clear()


def member(name: str) -> Callable[[Any], Any]:
    return called(name, counted(calls, name, lambda given: f"{name} gave"))


def noded(place: str, *members: Any, strategy: Strategy | None = None) -> Workflow:
    team = Team(members, max_concurrent=1, strategy=strategy or QUORUM(len(members)))
    return Workflow("changed", storage=f"memory://{place}").add_node("panel", team).set_entry_point("panel")


async def paused(flow: Workflow, gate: Gate, *, go_on: bool = False) -> None:
    """Record a run, or go on with one, until its gate; what stands behind that in its team has not begun."""
    engine = Engine(flow.storage)
    handle = await (engine.resume("s", flow=flow, accept=True) if go_on else engine.start(flow, 1, session_id="s"))
    await gate.started.wait()
    pausing = asyncio.gather(handle.pause())
    for _ in range(50):
        await asyncio.sleep(0)
    gate.release.set()
    await pausing
    assert handle.status == "paused"


async def resumed(flow: Workflow) -> RunHandle:
    handle = await Engine(flow.storage).resume("s", flow=flow, accept=True)
    await handle.wait()
    return handle


async def test_members_that_changed_places_keep_their_results():
    gate = called("gate", Gate())
    await paused(noded("swapped", member("a"), gate, member("b")), gate)
    handle = await resumed(noded("swapped", member("b"), gate, member("a")))
    assert sorted(shown(handle.output)) == [(0, "b gave"), (1, "through"), (2, "a gave")]
    assert (calls, gate.calls) == ({"a": 1, "b": 1}, 1)
    run, _ = await Engine("memory://swapped").look("s")
    assert sorted(shown(run.last)) == sorted(shown(handle.output)), "the log alone says the same"


async def test_a_member_that_is_gone_leaves_its_result_to_nobody():
    gate = called("gate", Gate())
    await paused(noded("gone", member("x"), member("b"), gate, member("c")), gate)
    handle = await resumed(noded("gone", member("b"), gate, member("c")))
    assert shown(handle.output) == [(0, "b gave"), (1, "through"), (2, "c gave")]
    assert calls == {"x": 1, "b": 1, "c": 1}


async def test_members_of_one_name_that_cannot_be_told_apart_are_performed_anew():
    def body(name: str) -> Any:
        return called("body", counted(calls, name, lambda given: name))

    gate = called("gate", Gate())
    await paused(noded("same-name", body("first"), gate, body("second")), gate)
    handle = await resumed(noded("same-name", body("new"), body("first"), gate, body("second")))
    assert sorted(shown(handle.output)) == [(0, "new"), (1, "first"), (2, "through"), (3, "second")]
    assert (calls, gate.calls) == ({"first": 2, "new": 1, "second": 1}, 1)


async def test_who_was_told_apart_in_one_life_is_so_in_the_next():
    first, second = called("gate", Gate("one")), called("later", Gate("two"))
    await paused(noded("twice", member("a"), first, member("b")), first)
    changed = [member("b"), member("new"), second, first, member("last"), member("a")]
    await paused(noded("twice", *changed), second, go_on=True)
    handle = await resumed(noded("twice", *changed))
    gave = [(0, "b gave"), (1, "new gave"), (2, "two"), (3, "one"), (4, "last gave"), (5, "a gave")]
    assert sorted(shown(handle.output)) == gave
    assert (calls, first.calls, second.calls) == ({"a": 1, "b": 1, "new": 1, "last": 1}, 1, 1)
    ids = [e.step_id.partition("/")[2] async for e in handle.events() if e.kind == "step_succeeded" and e.step_id.count("/") == 3]
    assert len(ids) == len(set(ids)) == 6, "nobody has the id of another"


async def test_what_a_member_did_once_is_not_taken_for_what_another_did():
    async def pay(given: Any, ctx: Context) -> Any:
        return await ctx.once("pay", lambda: "a paid")

    async def charge(given: Any, ctx: Context) -> Any:
        return await ctx.once("pay", lambda: "b paid")

    gate = called("gate", Gate())
    await paused(noded("receipts", pay, gate, charge), gate)
    handle = await resumed(noded("receipts", charge, gate, pay))
    assert sorted(shown(handle.output)) == [(0, "b paid"), (1, "through"), (2, "a paid")]


async def test_workflows_and_teams_that_changed_places_keep_what_is_inside():
    def inner(name: str, *bodies: Any) -> Workflow:
        flow = chain(*bodies)
        flow.name = name
        return flow

    def inside(*members: Any) -> Team:
        return Team(members, "inside", max_concurrent=1)

    gate = called("gate", Gate())
    one, two = inner("one", member("a0"), member("a1")), inner("two", member("b0"), member("b1"))
    await paused(noded("inside", one, inside(member("c0"), gate, member("c1")), two), gate)
    handle = await resumed(noded("inside", two, inside(member("c1"), gate, member("c0")), one))
    (first, second, third) = sorted(shown(handle.output))
    assert (first, third) == ((0, "b1 gave"), (2, "a1 gave"))
    assert shown(second[1]) == [(0, "c1 gave"), (1, "through"), (2, "c0 gave")]
    assert (set(calls.values()), gate.calls) == ({1}, 1)
    run, _ = await Engine("memory://inside").look("s")
    assert run.last == handle.output


async def test_a_workflow_that_is_stopped_in_the_middle_goes_on_at_another_place():
    gate = called("gate", Gate())
    one, two = chain(member("a0"), gate, member("a2")), chain(member("b0"), member("b1"))
    one.name, two.name = "one", "two"
    await paused(noded("middle", one, two), gate)
    handle = await resumed(noded("middle", two, one))
    assert sorted(shown(handle.output)) == [(0, "b1 gave"), (1, "a2 gave")]
    assert (set(calls.values()), gate.calls) == ({1}, 1)


async def test_who_had_won_has_won_at_another_place_too():
    gate = called("gate", Gate("won"))
    flow = noded("winner", boom, gate, strategy=RACE).add_node("after", boom).add_edge("panel", "after")
    gate.release.set()
    with pytest.raises(Exception, match="boom"):
        await flow.execute(1, session_id="s")
    again = noded("winner", gate, boom, member("new"), strategy=RACE).add_node("after", member("after")).add_edge("panel", "after")
    handle = await resumed(again)
    assert shown(handle.history["panel"]) == [(1, "won")], "a team that had ended is not looked at again"
    assert (calls, gate.calls) == ({"after": 1}, 1)


@pytest.mark.parametrize(("lives", "numbers"), [
    (["ab"], (0, 1)),
    (["ab", "ba"], (1, 0)),
    (["xbc", "bc"], (1, 2)),
    (["ab", "abc", "cab"], (2, 0, 1)),
    (["aab", "baa"], (2, 0, 1)),
    (["aab", "ab"], (3, 2)),
    (["ab", "aab", "aab"], (2, 3, 1)),
    (["ab", "b", "ab"], (2, 1)),
    (["", "a"], (0,)),
    (["a", ""], ()),
])  # fmt: skip
def test_a_number_stays_with_its_name_and_goes_to_nobody_else(lives: list[str], numbers: tuple[int, ...]):
    assert numbered(lives)[-1] == numbers
