"""State: private views, what counts as a write, and how the diffs of one layer merge."""

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine import Context, Engine, Next, Retry, Workflow
from engine.core.state import opened
from engine.errors import StateConflict, StepFailed, StepLimitReached

pytestmark = pytest.mark.anyio


def fan(*bodies: Callable[[Any], Any], before: dict[str, Any] | None = None, **options: Any) -> Workflow:
    """A node that writes `before`, then all bodies side by side, then a node whose output is the state as a dict."""
    flow = Workflow("fan", **options).add_node("before", lambda ctx: ctx.state.update(before or {}))
    names = [f"n{i}" for i in range(len(bodies))]
    for name, body in zip(names, bodies, strict=True):
        flow.add_node(name, body)
    flow.add_node("after", lambda ctx: dict(ctx.state), join="all")
    for name in names:
        flow.add_edge("before", name).add_edge(name, "after")
    return flow.set_entry_point("before")


async def merged(*bodies: Callable[[Any], Any], before: dict[str, Any] | None = None, **options: Any) -> Any:
    return await fan(*bodies, before=before, **options).execute()


async def conflicts(flow: Workflow) -> list[tuple[Any, list[str]]]:
    handle = await Engine(None).start(flow, None)
    await handle.wait()
    return [(e.data["key"], e.data["nodes"]) async for e in handle.events() if e.kind == "conflict"]


def put(**entries: Any) -> Callable[[Any], None]:
    return lambda ctx: ctx.state.update(entries)


def drop(key: str) -> Callable[[Any], None]:
    def body(ctx: Context) -> None:
        del ctx.state[key]

    return body


def append(key: str, item: Any) -> Callable[[Any], None]:
    return lambda ctx: ctx.state[key].append(item)


# The view.


async def test_a_view_agrees_with_itself_in_every_reading():
    def body(ctx: Context) -> Any:
        s = ctx.state
        s["b"] = 20
        s["c"] = 30
        del s["a"]
        assert "a" not in s
        assert s.get("a", 5) == 5
        with pytest.raises(KeyError):
            s["a"]
        with pytest.raises(KeyError):
            del s["a"]
        assert (len(s), bool(s), list(s), list(s.keys())) == (2, True, ["b", "c"], ["b", "c"])
        assert (dict(s), dict(s.items()), list(s.values())) == ({"b": 20, "c": 30}, {"b": 20, "c": 30}, [20, 30])
        assert s == {"b": 20, "c": 30}
        assert s | {"d": 1} == {"b": 20, "c": 30, "d": 1}
        assert json.loads(json.dumps(s)) == {"b": 20, "c": 30}
        assert s.setdefault("b", 1) == 20
        assert s.setdefault("e", 1) == 1
        assert s.pop("e") == 1
        assert s.pop("e", None) is None
        with pytest.raises(KeyError):
            s.pop("e")
        s |= {"f": 1}
        s.update([("g", 2)], h=3)
        with pytest.raises(TypeError):
            s.update(5)
        assert {**s} == {"b": 20, "c": 30, "f": 1, "g": 2, "h": 3}
        return "read"

    assert await merged(body, before={"a": 1, "b": 2}) == {"b": 20, "c": 30, "f": 1, "g": 2, "h": 3}


async def test_nodes_of_a_layer_see_different_states_and_the_same_history():
    views: list[Any] = []
    barrier = threading.Barrier(2, timeout=5)

    def body(ctx: Context) -> None:
        ctx.state["mine"] = ctx.node
        barrier.wait()
        views.append((ctx.state, dict(ctx.state), dict(ctx.history)))

    await fan(body, body).execute()
    (one, seen_one, history_one), (two, seen_two, history_two) = views
    assert one is not two
    assert {seen_one["mine"], seen_two["mine"]} == {"n0", "n1"}
    assert history_one == history_two == {"before": None}


async def test_the_keys_of_all_nodes_of_a_layer_are_in_the_merged_state():
    assert await merged(put(a=1), put(b=2), before={"c": 3}) == {"a": 1, "b": 2, "c": 3}


async def test_a_container_changed_in_place_is_a_write():
    assert await merged(append("k", 2), before={"k": [1]}) == {"k": [1, 2]}


async def test_a_container_nested_in_a_container_changed_in_place_is_a_write():
    assert await merged(lambda ctx: ctx.state["k"]["in"].append(2) or None, before={"k": {"in": [1]}}) == {"k": {"in": [1, 2]}}


async def test_a_container_merely_read_does_not_overwrite_a_siblings_write():
    def reader(ctx: Context) -> Any:
        return ctx.state["k"][:]

    flow = fan(append("k", 4), reader, before={"k": [1, 2, 3]})
    assert await flow.execute() == {"k": [1, 2, 3, 4]}
    assert await conflicts(flow) == []


async def test_a_container_changed_and_left_equal_is_no_write():
    def equal(ctx: Context) -> None:
        ctx.state["k"].append(9)
        ctx.state["k"].pop()

    flow = fan(append("k", 2), equal, before={"k": [1]})
    assert await flow.execute() == {"k": [1, 2]}
    assert await conflicts(flow) == []


async def test_a_deletion_survives_the_merge():
    assert await merged(drop("a"), put(c=3), before={"a": 1, "b": 2}) == {"b": 2, "c": 3}


async def test_popping_a_base_key_deletes_it_also_when_it_was_written_before():
    def body(ctx: Context) -> None:
        ctx.state["a"] = 5
        assert ctx.state.pop("a") == 5
        assert "a" not in ctx.state

    assert await merged(body, before={"a": 1}) == {}


async def test_a_key_deleted_and_written_again_is_written():
    def body(ctx: Context) -> None:
        del ctx.state["a"]
        ctx.state["a"] = 2

    assert await merged(body, before={"a": 1}) == {"a": 2}


async def test_state_keys_may_be_any_storable_hashable():
    assert await merged(lambda ctx: ctx.state.update({(1, 2): "t", 3: "i", None: "n"}), storage="memory://") == {
        (1, 2): "t",
        3: "i",
        None: "n",
    }


async def test_a_failed_attempt_leaves_no_writes():
    def body(ctx: Context) -> None:
        assert dict(ctx.state) == {"k": [1]}
        ctx.state["k"].append(ctx.attempt)
        ctx.state["tried"] = ctx.attempt
        if ctx.attempt < 3:
            raise ValueError

    flow = Workflow().add_node("a", put(k=[1])).add_node("b", body, retry=Retry(3, delay=0)).add_node("c", lambda ctx: dict(ctx.state))
    flow.add_edge("a", "b").add_edge("b", "c").set_entry_point("a")
    assert await flow.execute() == {"k": [1, 3], "tried": 3}


async def test_a_skipped_step_leaves_no_writes():
    def body(ctx: Context) -> None:
        ctx.state["k"] = 1
        raise ValueError

    flow = (
        Workflow().add_node("a", body, on_error="skip").add_node("b", lambda ctx: dict(ctx.state)).add_edge("a", "b").set_entry_point("a")
    )
    assert await flow.execute() == {}


# Merging.


async def test_results_that_arrive_in_any_order_merge_to_the_same_state():
    for order in itertools.permutations(range(3)):
        turns = [threading.Event() for _ in range(4)]
        turns[0].set()

        def body(ctx: Context, turns: Any = turns, order: Any = order) -> None:
            place = order.index(int(ctx.node[1:]))
            turns[place].wait(5)
            ctx.state["k"] = ctx.node
            ctx.state.setdefault("all", []).append(ctx.node)
            turns[place + 1].set()

        assert await merged(body, body, body, reducers={"all": "extend"}) == {"k": "n2", "all": ["n0", "n1", "n2"]}


async def test_the_later_node_in_declared_order_wins_and_a_conflict_event_names_both(caplog: pytest.LogCaptureFixture):
    flow = fan(put(k="first"), put(k="second"))
    assert await flow.execute() == {"k": "second"}
    assert await conflicts(flow) == [("k", ["n0", "n1"])]
    assert "Steps of one layer wrote one key, 'k': 'n0', 'n1'; the later one wins" in caplog.messages


async def test_where_the_later_node_wins_its_whole_value_wins():
    flow = fan(append("k", "first"), append("k", "second"), before={"k": ["base"]})
    assert await flow.execute() == {"k": ["base", "second"]}
    assert await conflicts(flow) == [("k", ["n0", "n1"])]


async def test_a_delete_beside_a_write_is_a_conflict_that_the_later_one_wins():
    first, second = fan(drop("k"), put(k=2), before={"k": 1}), fan(put(k=2), drop("k"), before={"k": 1})
    assert (await first.execute(), await second.execute()) == ({"k": 2}, {})
    assert await conflicts(first) == await conflicts(second) == [("k", ["n0", "n1"])]


async def test_a_delete_beside_a_write_is_a_conflict_with_a_reducer_too():
    flow = fan(put(k=2), drop("k"), before={"k": 1}, reducers={"k": "add"})
    assert await flow.execute() == {}
    assert await conflicts(flow) == [("k", ["n0", "n1"])]


async def test_two_deletes_of_one_key_are_no_conflict():
    flow = fan(drop("k"), drop("k"), before={"k": 1})
    assert await flow.execute() == {}
    assert await conflicts(flow) == []


async def test_a_delete_of_a_key_that_the_base_lacks_is_no_part_of_the_diff():
    def body(ctx: Context) -> None:
        ctx.state["k"] = 1
        del ctx.state["k"]

    flow = fan(put(k=5), body)
    assert await flow.execute() == {"k": 5}
    assert await conflicts(flow) == []


@pytest.mark.parametrize(
    ("reducer", "base", "first", "second", "wanted"),
    [
        ("add", 10, 11, 15, 16),
        ("add", ..., 1, 2, 3),
        ("append", ["a"], ["a", "b"], ["a", "c"], ["a", "b", "c"]),
        ("extend", ..., ["b"], ["c"], ["b", "c"]),
        ("merge", {"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 1, "c": 3}, {"a": 2, "b": 1, "c": 3}),
        ("merge", ..., {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ("union", {1}, {1, 2}, {1, 3}, {1, 2, 3}),
        ("union", ..., {2}, {3}, {2, 3}),
        ("max", 5, 7, 6, 7),
        ("max", ..., 7, 6, 7),
        ("min", 5, 7, 6, 6),
    ],
)
@pytest.mark.parametrize("storage", [None, "memory://"])
async def test_a_reducer_combines_concurrent_writes(reducer: str, base: Any, first: Any, second: Any, wanted: Any, storage: str | None):
    before = {} if base is ... else {"k": base}
    flow = fan(put(k=first), put(k=second), before=before, reducers={"k": reducer}, storage=storage)
    assert await flow.execute() == {"k": wanted}
    assert await conflicts(flow) == []


async def test_a_lone_write_under_a_reducer_is_a_plain_write():
    assert await merged(put(k=3), before={"k": 10}, reducers={"k": "add"}) == {"k": 3}
    assert await merged(put(k="text"), before={"k": [1]}, reducers={"k": "append"}) == {"k": "text"}


def joined(base: Any, writes: list[Any]) -> Any:
    return [base, *writes]


async def test_a_custom_reducer_gets_the_base_and_the_writes_in_declared_order():
    assert await merged(put(k=1), put(k=2), before={"k": 0}, reducers={"k": joined}) == {"k": [0, 1, 2]}
    assert await merged(put(k=1), put(k=2), reducers={"k": joined}) == {"k": [None, 1, 2]}


async def test_a_custom_reducer_may_be_async_or_an_import_path():
    async def late(base: Any, writes: list[Any]) -> Any:
        return sum(writes)

    assert await merged(put(k=1), put(k=2), reducers={"k": late}) == {"k": 3}
    assert await merged(put(k=1.5), put(k=2), before={"k": 9}, reducers={"k": "operator:eq"}) == {"k": False}


async def test_a_custom_reducer_that_fails_fails_the_run_by_key_and_nodes():
    def broken(base: Any, writes: list[Any]) -> Any:
        raise ValueError("boom")

    with pytest.raises(StateConflict, match=r"'k'.*'n0' and 'n1'.*boom") as caught:
        await merged(put(k=1), put(k=2), reducers={"k": broken})
    assert (caught.value.key, list(caught.value.nodes)) == ("k", ["n0", "n1"])


@pytest.mark.parametrize(
    ("reducer", "base", "first", "second", "guilty"),
    [
        ("add", "text", 1, 2, ["n0", "n1"]),
        ("add", 1, 2, "text", ["n1"]),
        ("append", [1, 2], [1, 2, 3], [2], ["n1"]),
        ("append", [1], [1, 2], "text", ["n1"]),
        ("merge", {"a": 1}, {"a": 1, "b": 2}, {}, ["n1"]),
        ("union", {1}, set(), {1, 2}, ["n0"]),
        ("union", [1], {1}, {2}, ["n0", "n1"]),
        ("max", 5, "text", 6, ["n0"]),
    ],
)
async def test_a_write_that_does_not_fit_its_reducer_fails_the_run_by_key_and_node(
    reducer: str, base: Any, first: Any, second: Any, guilty: list[str]
):
    with pytest.raises(StateConflict, match="'k'") as caught:
        await merged(put(k=first), put(k=second), before={"k": base}, reducers={"k": reducer})
    assert (caught.value.key, list(caught.value.nodes)) == ("k", guilty)


async def test_on_conflict_error_fails_the_run_with_both_names():
    with pytest.raises(StateConflict, match=r"'k'.*'n0' and 'n1'") as caught:
        await merged(put(k=1), put(k=2), on_conflict="error")
    assert list(caught.value.nodes) == ["n0", "n1"]


async def test_on_conflict_error_names_the_smallest_key():
    with pytest.raises(StateConflict) as caught:
        await merged(put(z=1, b=1), put(z=2, b=2), on_conflict="error")
    assert caught.value.key == "b"


async def test_a_conflict_fails_again_on_resume_until_the_option_is_changed():
    flow = fan(put(k=1), put(k=2), on_conflict="error", storage="memory://conflict")
    for _ in range(2):
        with pytest.raises(StateConflict):
            await flow.execute(session_id="s")
    flow = fan(put(k=1), put(k=2), storage="memory://conflict")
    assert await flow.execute(session_id="s") == {"k": 2}


async def test_a_conflict_is_gone_on_resume_with_a_reducer():
    with pytest.raises(StateConflict):
        await fan(put(k=1), put(k=2), on_conflict="error", storage="memory://conflict-2").execute(session_id="s")
    flow = fan(put(k=1), put(k=2), on_conflict="error", reducers={"k": "add"}, storage="memory://conflict-2")
    assert await flow.execute(session_id="s") == {"k": 3}


async def test_step_failures_come_before_state_conflicts():
    def broken(ctx: Context) -> None:
        raise ValueError("boom")

    with pytest.raises(StepFailed, match="'n2'"):
        await merged(put(k=1), put(k=2), broken, on_conflict="error")


async def test_a_list_that_grows_is_stored_as_its_tail():
    """500 steps that each add 4 KB store 2 MB, not 500."""

    def grow(ctx: Context) -> None:
        ctx.state.setdefault("k", []).append("x" * 4096)

    flow = Workflow("grow", storage="memory://growth")
    for i in range(20):
        flow.add_node(f"n{i}", grow)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    await flow.set_entry_point("n0").execute(session_id="s")
    engine = Engine("memory://growth")
    assert engine.log is not None
    rows = await engine.log.read(await engine.find("s"))
    assert sum(len(r.diff or b"") for r in rows) < 20 * 5000
    assert len((await engine.state("s"))["k"]) == 20


def scaled(factor: int) -> Callable[[Any, list[Any]], Any]:
    return lambda base, writes: factor * sum(writes)


@pytest.mark.parametrize(
    "reducers",
    [
        {"one": scaled(1), "ten": scaled(10)},
        {"one": lambda base, writes: sum(writes), "ten": lambda base, writes: 10 * sum(writes)},
    ],
    ids=["factory", "lambdas"],
)
async def test_custom_reducers_of_one_name_stay_apart(reducers: dict[str, Any], request: pytest.FixtureRequest):
    place = f"memory://{request.node.callspec.id}"
    flow = fan(put(one=1, ten=1), put(one=2, ten=2), reducers=reducers, storage=place)
    assert await flow.execute(session_id="s") == {"one": 3, "ten": 30}
    assert await Engine(place).state("s") == {"one": 3, "ten": 30}


# What is brought back from the log alone.


async def test_state_from_the_log_alone_after_the_step_limit_was_raised():
    def count(ctx: Context) -> Any:
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        return Next("count") if ctx.state["n"] < 5 else "end"

    def counting(limit: int) -> Workflow:
        return Workflow("count", storage="memory://raised", max_steps=limit).add_node("count", count).set_entry_point("count")

    with pytest.raises(StepLimitReached):
        await counting(2).execute(session_id="s")
    assert await counting(10).execute(session_id="s") == "end"
    engine = Engine("memory://raised")
    assert await engine.state("s") == {"n": 5}
    run, recorded = await engine.look("s")
    assert recorded.status == "completed"
    assert opened(run.last) == "end"


async def test_state_from_the_log_alone_after_a_reducer_was_added():
    place = "memory://reducer-added"
    with pytest.raises(StateConflict):
        await fan(put(k=1), put(k=2), on_conflict="error", storage=place).execute(session_id="s")
    flow = fan(put(k=1), put(k=2), on_conflict="error", reducers={"k": "add"}, storage=place)
    assert await flow.execute(session_id="s") == {"k": 3}
    assert await Engine(place).state("s") == {"k": 3}


async def test_state_from_the_log_alone_after_a_rewired_graph_was_accepted():
    place = "memory://accepted"
    broken = [True]

    def rewired(*names: str) -> Workflow:
        flow = Workflow("w", storage=place)
        for i, name in enumerate(names):
            flow.add_node(name, lambda ctx: ctx.state.update({ctx.node: int("boom") if broken[0] and ctx.node == "b" else 1}))
            if i:
                flow.add_edge(names[i - 1], name)
        return flow.set_entry_point(names[0])

    with pytest.raises(StepFailed):
        await rewired("a", "b").execute(session_id="s")
    with pytest.raises(StepFailed):
        await rewired("a", "new", "b").resume("s", accept=True)
    assert await Engine(place).state("s") == {"a": 1, "new": 1}
    broken[0] = False
    await rewired("a", "new", "b").execute(session_id="s")
    assert await Engine(place).state("s") == {"a": 1, "new": 1, "b": 1}
