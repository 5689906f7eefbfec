"""Large outputs leave memory when no node may take them any more."""

import pytest

from engine import Engine, Next, Workflow
from engine.runtime.spill import Stored

LARGE = 100_000


@pytest.mark.anyio
async def test_a_large_output_that_nobody_may_take_is_only_in_the_log(tmp_path):
    held = {}

    def make(x):
        return b"x" * LARGE

    def look(x, ctx):
        front = held["driver"].run.front
        held["kinds"] = [type(front.outputs[n]).__name__ for n in range(2)]

    flow = Workflow("large", storage=str(tmp_path), max_history_retention=1)
    flow.add_node("a", make).add_node("b", make).add_node("c", lambda x: len(x)).add_node("d", look)
    for source, target in ("ab", "bc", "cd"):
        flow.add_edge(source, target)
    flow.set_entry_point("a")
    handle = await Engine(str(tmp_path)).start(flow, session_id="s")
    held["driver"] = handle._remote._conductor.driver
    await handle.wait()
    assert held["kinds"] == [Stored.__name__, Stored.__name__]


@pytest.mark.anyio
async def test_an_output_that_comes_into_view_again_is_read_from_the_log(tmp_path):
    seen = []

    def join(x):
        seen.append({node: len(value) for node, value in x.items()})

    flow = Workflow("again", storage=str(tmp_path), max_history_retention=0)
    flow.add_node("big", lambda x: b"a" * LARGE).add_node("small", lambda x: "b").add_node("join", join, join="all")
    flow.add_node("again", lambda x: Next("small") if len(seen) < 2 else "end")
    flow.add_edge("big", "join").add_edge("small", "join").add_edge("join", "again").set_entry_point("big", "small")
    assert await flow.execute(1, session_id="s") == "end"
    assert seen == [{"big": LARGE, "small": 1}] * 2


@pytest.mark.anyio
async def test_the_items_of_a_large_map_are_read_from_the_log_too(tmp_path):
    seen = []
    flow = Workflow("map", storage=str(tmp_path), max_history_retention=0)
    flow.add_map("big", lambda x: b"a" * LARGE).add_node("small", lambda x: "b").add_node(
        "join", lambda x: seen.append(x["big"]), join="all"
    )
    flow.add_node("again", lambda x: Next("small") if len(seen) < 2 else "end")
    flow.add_edge("big", "join").add_edge("small", "join").add_edge("join", "again").set_entry_point("big", "small")
    assert await flow.execute([1, 2], session_id="s") == "end"
    assert seen == [[b"a" * LARGE] * 2] * 2
