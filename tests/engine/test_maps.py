"""Maps: a body performed once for each item of a list."""

import asyncio
from typing import Any

import pytest

from engine import Context, Engine, Event, Next, Retry, RunHandle, Workflow
from engine.errors import StateConflict, StepFailed, WorkflowError

pytestmark = pytest.mark.anyio


def mapped(body: Any, **options: Any) -> Workflow:
    keep = {k: options.pop(k) for k in ("storage", "reducers", "on_conflict", "max_concurrency_of_run") if k in options}
    if "max_concurrency_of_run" in keep:
        keep["max_concurrency"] = keep.pop("max_concurrency_of_run")
    return Workflow("mapped", **keep).add_map("m", body, **options).set_entry_point("m")


async def stopped(flow: Workflow, value: Any = None) -> tuple[RunHandle, list[Event]]:
    handle = await Engine(None).start(flow, value)
    try:
        await handle.wait()
    except WorkflowError:
        pass
    return handle, [e async for e in handle.events()]


def boom_at(*bad: Any) -> Any:
    def body(x: Any) -> Any:
        if x in bad:
            raise ValueError(f"boom {x}")
        return x

    return body


async def test_the_output_is_the_list_in_item_order_whatever_finished_first():
    turns = [asyncio.Event() for _ in range(4)]
    turns[3].set()

    async def body(x: int) -> int:
        await turns[x].wait()
        if x:
            turns[x - 1].set()
        return x * 10

    assert await mapped(body).execute([0, 1, 2, 3]) == [0, 10, 20, 30]


async def test_a_map_over_a_state_key():
    flow = (
        Workflow()
        .add_node("a", lambda ctx: ctx.state.update(files=["x", "y"]))
        .add_map("m", lambda x, ctx: [x, ctx.step_input], over="files")
    )
    assert await flow.add_edge("a", "m").set_entry_point("a").execute() == [["x", "x"], ["y", "y"]]


async def test_a_map_of_nothing_is_an_empty_list():
    handle, events = await stopped(mapped(lambda x: x), [])
    assert handle.output == []
    assert [e.kind for e in events] == ["run_started", "step_started", "step_succeeded", "run_completed"]


async def test_each_item_has_an_id_of_its_own():
    handle = await Engine(None).start(mapped(lambda x, ctx: ctx.step_id), ["a", "b"])
    assert await handle.wait() == [f"{handle.run_id}/m/1/0", f"{handle.run_id}/m/1/1"]


async def test_only_the_map_has_a_row():
    handle, _ = await stopped(mapped(lambda x: x), [1, 2, 3])
    assert [(r.node, r.status) for r in handle.executions] == [("m", "success")]


async def test_diffs_merge_in_item_order_and_conflicts_name_the_items():
    flow = mapped(lambda x, ctx: ctx.state.update(k=x, mine=x) if x else ctx.state.update(k=x))
    handle, events = await stopped(flow, [0, 7])
    assert handle.state == {"k": 7, "mine": 7}
    assert [(e.data["key"], e.data["nodes"]) for e in events if e.kind == "conflict"] == [("k", ["m[0]", "m[1]"])]


async def test_items_merge_through_reducers():
    flow = mapped(lambda x, ctx: ctx.state.setdefault("all", []).append(x), reducers={"all": "extend"})
    handle, events = await stopped(flow, [3, 1, 2])
    assert handle.state == {"all": [3, 1, 2]}
    assert not [e for e in events if e.kind == "conflict"]


async def test_in_the_layers_merge_the_items_stand_in_the_place_of_their_map():
    flow = Workflow().add_node("a", lambda ctx: ctx.state.update(k="a")).add_map("m", lambda x, ctx: ctx.state.update(k=f"m{x}"))
    flow.add_node("z", lambda ctx: ctx.state.update(k="z")).set_entry_point("a", "m", "z")
    handle, events = await stopped(flow, [0, 1])
    assert handle.state == {"k": "z"}
    assert next(e.data["nodes"] for e in events if e.kind == "conflict") == ["a", "m[0]", "m[1]", "z"]


async def test_a_conflict_of_items_fails_the_run_where_that_is_asked_for():
    with pytest.raises(StateConflict, match=r"'m\[0\]' and 'm\[1\]'"):
        await mapped(lambda ctx: ctx.state.update(k=ctx.step_id), on_conflict="error").execute([1, 2])


async def test_items_are_retried_one_by_one_and_only_those_that_failed():
    calls: list[Any] = []

    def body(x: int, ctx: Context) -> int:
        calls.append((x, ctx.attempt))
        if x == 2 and ctx.attempt == 1:
            raise ValueError
        return x

    assert await mapped(body, retry=Retry(2, delay=0)).execute([1, 2, 3]) == [1, 2, 3]
    assert sorted(calls) == [(1, 1), (2, 1), (2, 2), (3, 1)]


async def test_a_failed_item_fails_the_run_by_its_name_first_in_item_order():
    with pytest.raises(StepFailed, match=r"step 'm\[1\]'.*boom 1") as caught:
        await mapped(boom_at(1, 3)).execute([0, 1, 2, 3])
    assert caught.value.node == "m[1]"


async def test_skip_leaves_none_for_the_items_that_failed():
    assert await mapped(boom_at(1), on_error="skip").execute([0, 1, 2]) == [0, None, 2]


async def test_a_fallback_stands_in_for_an_item():
    flow = mapped(boom_at(1), on_error="fallback", fallback="spare").add_node("spare", lambda x: f"spare {x}")
    assert await flow.execute([0, 1]) == [0, "spare 1"]


async def test_limits_are_those_of_an_item():
    async def body(x: int) -> int:
        if x:
            await asyncio.Event().wait()
        return x

    assert await mapped(body, timeout=0.02, on_error="skip").execute([0, 1, 0]) == [0, None, 0]


async def test_an_item_that_returns_a_next_has_failed():
    with pytest.raises(StepFailed, match=r"'m\[0\]'.*Next"):
        await mapped(lambda x: Next("m")).execute([1])


@pytest.mark.parametrize("given", [None, 5, "text", {"a": 1}, (1, 2), {1}])
async def test_input_that_is_no_list_fails_the_step_unretried(given: Any):
    handle, events = await stopped(mapped(lambda x: x, retry=Retry(3, delay=0)), given)
    assert handle.status == "failed"
    assert [e.kind for e in events] == ["run_started", "step_started", "step_failed", "run_failed"]
    assert "needs a list" in events[2].data["error"]["message"]


async def test_input_that_is_no_list_is_skipped_where_that_is_asked_for():
    handle, _ = await stopped(mapped(lambda x: x, on_error="skip"), 5)
    assert (handle.status, [r.status for r in handle.executions]) == ("completed", ["skipped"])


async def test_a_fallback_does_not_stand_in_for_input_that_is_no_list():
    flow = mapped(lambda x: x, on_error="fallback", fallback="spare").add_node("spare", lambda: "spare")
    with pytest.raises(StepFailed, match="needs a list"):
        await flow.execute(5)


async def test_a_missing_state_key_fails_the_map_by_name():
    with pytest.raises(StepFailed, match="'files'"):
        await mapped(lambda x: x, over="files").execute()


@pytest.mark.parametrize(
    "options", [{"max_concurrency": 2}, {"max_concurrency_of_run": 2}, {"max_concurrency": 2, "max_concurrency_of_run": 9}]
)
async def test_max_concurrency_bounds_the_items_at_once(options: dict[str, int]):
    now, most = [0], [0]

    async def body(x: int) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        for _ in range(5):
            await asyncio.sleep(0)
        now[0] -= 1

    await mapped(body, **options).execute(list(range(8)))
    assert most == [2]


async def test_items_get_private_copies():
    assert await mapped(lambda x: x.append(1) or x).execute([[0], [0]]) == [[0, 1], [0, 1]]
    shared = [[0]] * 2
    assert await mapped(lambda x: x.append(1) or x).execute(shared) == [[0, 1], [0, 1]]
    assert shared == [[0], [0]]


async def test_a_map_of_sub_workflows():
    inner = (
        Workflow("inner")
        .add_node("double", lambda x: x * 2)
        .add_node("show", lambda x: [x])
        .add_edge("double", "show")
        .set_entry_point("double")
    )
    assert await mapped(inner).execute([1, 2, 3]) == [[2], [4], [6]]


async def test_a_map_may_map_the_answers_of_a_map():
    flow = mapped(lambda x: x + 1).add_map("n", lambda x: x * 2).add_edge("m", "n")
    assert await flow.execute([1, 2]) == [4, 6]


async def test_a_resume_performs_only_the_items_that_are_left_and_never_lists_them_again():
    listed: list[int] = []
    calls: list[int] = []
    broken = [True]

    def item(x: int) -> int:
        calls.append(x)
        if broken[0] and x == 2:
            raise ValueError
        return x * 10

    flow = (
        Workflow("w", storage="memory://map-resume")
        .add_node("list", lambda: listed.append(1) or [0, 1, 2])
        .add_map("m", item, max_concurrency=1)
    )
    flow.add_edge("list", "m").set_entry_point("list")
    with pytest.raises(StepFailed, match=r"m\[2\]"):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == [0, 10, 20]
    assert (listed, calls) == ([1], [0, 1, 2, 2])


async def test_the_items_diffs_are_there_after_a_resume():
    broken = [True]

    def item(x: int, ctx: Context) -> int:
        ctx.state.setdefault("seen", []).append(x)
        if broken[0] and x == 1:
            raise ValueError
        return x

    flow = mapped(item, storage="memory://map-diffs", reducers={"seen": "extend"}, max_concurrency=1).add_node(
        "end", lambda ctx: ctx.state["seen"]
    )
    flow.add_edge("m", "end")
    with pytest.raises(StepFailed):
        await flow.execute([0, 1, 2], session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == [0, 1, 2]


async def test_a_skipped_item_stays_skipped_after_a_resume():
    broken = [True]
    flow = mapped(boom_at(0), storage="memory://map-skip", on_error="skip")
    flow.add_node("end", lambda x: int("boom") if broken[0] else x).add_edge("m", "end")
    with pytest.raises(StepFailed, match="'end'"):
        await flow.execute([0, 1], session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == [None, 1]


@pytest.mark.slow
async def test_a_map_of_ten_thousand_items():
    assert await mapped(lambda x: x + 1).execute(list(range(10_000))) == list(range(1, 10_001))


@pytest.mark.parametrize("storage", [None, "memory://no-list"])
async def test_a_skipped_map_over_no_list_is_told_once_also_after_a_resume(storage: str | None):
    broken = [True]
    flow = mapped(lambda x: x, storage=storage, on_error="skip")
    flow.add_node("end", lambda x: int("boom") if broken[0] else [x]).add_edge("m", "end")
    handle = await Engine(storage).start(flow, "no list", session_id="s")
    with pytest.raises(StepFailed, match="'end'"):
        await handle.wait()
    told = ["step_started", "step_failed", "step_skipped"]
    assert [e.kind async for e in handle.events() if e.node == "m" and e.kind.startswith("step_")] == told
    if storage is None:
        return
    with pytest.raises(StepFailed, match="'end'"):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == [None]
    assert [e.kind async for e in Engine(storage).events("s") if e.node == "m"] == told
