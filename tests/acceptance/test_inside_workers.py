"""What a body in a worker asks of its run, which resources it gets, and how chains end."""

import asyncio
import os
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from engine import Context, Engine, Next, Workflow
from engine.errors import InDoubt, StepFailed
from tests.acceptance import marks

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("ray_cluster")]


def flow(name: str, **options) -> Workflow:
    return Workflow(name, executor="ray", storage=str(Path.cwd() / "runs"), **options)


def folder() -> str:
    path = Path.cwd() / "marks"
    path.mkdir(exist_ok=True)
    return str(path)


def chained(made: Workflow, bodies: dict) -> Workflow:
    names = list(bodies)
    for name in names:
        made.add_node(name, bodies[name])
    for one, other in pairwise(names):
        made.add_edge(one, other)
    return made.set_entry_point(names[0])


async def test_a_context_in_a_worker_answers_as_everywhere():
    async def first(given, ctx: Context):
        ctx.progress(1, 2, "half")
        ctx.logger.info("said in a worker")
        once = await ctx.once("effect", lambda: "done")
        await ctx.checkpoint()
        return [given, once, ctx.run_id, ctx.session_id, ctx.node, ctx.step_id, ctx.attempt, ctx.metadata["session_id"]]

    def second(given, ctx: Context):
        ran = [row.node for row in ctx.executions]
        return [ran, ctx.get_last_output() == given, list(ctx.history), ctx.get_summary()["last_node"], ctx.input]

    handle = await Engine("runs", executor="ray").start(chained(flow("ctx"), {"first": first, "second": second}), 5, session_id="s")
    seen = [event.kind async for event in handle.events(transient=True)]
    assert await handle.wait() == [["first"], True, ["first"], "first", 5]
    assert handle.history["first"] == [5, "done", "ctx.s.1", "s", "first", "ctx.s.1/first/1", 1, "s"]
    assert seen.count("once_intended") == seen.count("once_done") == seen.count("progress") == 1


async def test_sync_effects_of_bodies_that_share_a_process_run_at_once():
    place = folder()

    def effect():
        marks.leave(place, "begun")
        end = time.monotonic() + 20
        while marks.names(place)["begun"] < 40 and time.monotonic() < end:
            time.sleep(0.01)
        return marks.names(place)["begun"]

    async def body(item, ctx: Context):
        return await ctx.once("effect", effect)

    assert await flow("effects").add_map("m", body).set_entry_point("m").execute(list(range(40)), session_id="s") == [40] * 40


async def test_a_run_that_is_recorded_in_the_coordinator_s_memory_is_seen_by_its_handle():
    async def body(given, ctx: Context):
        ctx.state["given"] = await ctx.once("effect", lambda: given)
        return given + 1

    made = flow("memory").add_node("a", body).set_entry_point("a")
    handle = await Engine("memory://", executor="ray").start(made, 1, session_id="s")
    assert await handle.wait() == 2
    assert (handle.status, handle.state, handle.history) == ("completed", {"given": 1}, {"a": 2})
    assert [event.kind async for event in handle.events()][-1] == "run_completed"
    assert await (await Engine("memory://", executor="ray").start(made, session_id="s")).wait() == 2  # answered from the log there
    assert marks.names(folder()) == {}


async def test_an_effect_that_has_its_receipt_is_not_repeated_after_its_worker_died():
    place = folder()

    async def body(ctx: Context):
        value = await ctx.once("pay", lambda: marks.leave(place, "paid") or 7)
        if ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    assert await flow("receipt").add_node("a", body).set_entry_point("a").execute(session_id="s") == 7
    assert marks.names(place) == {"paid": 1}


async def test_an_effect_that_was_begun_is_in_doubt_after_its_worker_died():
    async def body(ctx: Context):
        return await ctx.once("pay", lambda: os.kill(os.getpid(), signal.SIGKILL), again=ctx.attempt > 2)

    with pytest.raises(StepFailed, match="may have happened") as caught:
        await flow("doubt").add_node("a", body).set_entry_point("a").execute(session_id="s")
    assert isinstance(caught.value.__cause__, InDoubt)


async def test_resources_are_asked_of_the_cluster():
    def where():
        import ray

        return ray.get_runtime_context().get_assigned_resources()

    made = flow("resources")
    made.add_node("half", where, num_cpus=0.5).add_node("memory", where, memory=50_000_000).add_node("none", where, num_cpus=0)
    made.set_entry_point("half", "memory", "none")
    handle = await Engine("runs", executor="ray").start(made, session_id="s")
    await handle.wait()
    assert handle.history["half"]["CPU"] == 0.5
    assert handle.history["memory"]["memory"] == 50_000_000
    assert "CPU" not in handle.history["none"]


async def test_inline_nodes_run_beside_the_coordinator_and_share_one_process():
    def where(item):
        return os.getpid()

    pids = await flow("inline").add_map("m", where, executor="inline").set_entry_point("m").execute(list(range(20)), session_id="s")
    assert len(set(pids)) <= 4


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_no_more_steps_run_at_once_than_the_run_and_the_map_allow(is_async):
    place = folder()

    def body(item):
        marks.leave(place, "in")
        time.sleep(0.05)
        marks.leave(place, "out")
        found = marks.names(place)
        return found["in"] - found["out"] + 1

    async def async_body(item):
        marks.leave(place, "in")
        await asyncio.sleep(0.05)
        marks.leave(place, "out")
        found = marks.names(place)
        return found["in"] - found["out"] + 1

    made = flow("width", max_concurrency=3).add_map("m", async_body if is_async else body, max_concurrency=2).set_entry_point("m")
    assert max(await made.execute(list(range(12)), session_id="s")) <= 2


@pytest.mark.parametrize("strategy", ["always", "async", "final"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_chain_that_takes_another_way_performs_nothing_of_the_old_one_twice(strategy, is_async):
    """It jumps back once, goes on, and fails near its end; resumed it goes on at what failed."""
    place = folder()

    def make(name: str):
        def body(given, ctx: Context):
            marks.leave(place, ctx.step_id)
            ctx.state[name] = ctx.state.get(name, 0) + 1
            if name == "n6" and ctx.state[name] == 1:
                return Next("n3", (given or 0) + 1)
            if name == "n12" and "mended" not in marks.names(place):
                raise ValueError("not yet")
            return (given or 0) + 1

        async def async_body(given, ctx: Context):
            return body(given, ctx)

        return async_body if is_async else body

    made = chained(flow("ways", checkpoint_strategy=strategy, allow_cycles=True), {f"n{n}": make(f"n{n}") for n in range(16)})
    with pytest.raises(StepFailed, match="not yet"):
        await made.execute(0, session_id="s")
    marks.leave(place, "mended")
    assert await made.execute(session_id="s") == 20
    found = marks.names(place)
    twice = {name: count for name, count in found.items() if count > 1}
    assert twice == {"ways.s.1/n12/1": 2} or twice == {"ways.s.1/n12/2": 2}
    steps = Counter(name.split("/")[1] for name in found if "/" in name)
    assert {node for node, count in steps.items() if count > 1} <= {f"n{n}" for n in range(3, 16)}


async def test_a_condition_that_kills_or_blocks_its_process_counts_as_false():
    def dies(ctx: Context):
        os.kill(os.getpid(), signal.SIGKILL)

    made = flow("asked").add_node("a", lambda: 1).add_node("b", lambda: 2).add_node("c", lambda given: given + 10)
    made.add_edge("a", "b", dies).add_edge("a", "c", lambda ctx: ctx.step_input == 1).set_entry_point("a")
    handle = await Engine("runs", executor="ray").start(made, session_id="s")
    assert await handle.wait() == 11
    assert [event.data["target"] async for event in handle.events() if event.kind == "condition_failed"] == ["b"]


async def test_many_runs_share_one_coordinator():
    def body(given, ctx: Context):
        ctx.state["n"] = given
        return given + 1

    made = chained(flow("many"), {"a": body, "b": body, "c": body})
    assert await asyncio.gather(*(made.execute(n, session_id=f"s{n}") for n in range(20))) == [n + 3 for n in range(20)]


@pytest.mark.parametrize("outer", ["inline", "ray"])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_nested_execute_runs_where_its_step_runs_unless_told_otherwise(outer, is_async):
    inner = Workflow("inner").add_node("pid", lambda: os.getpid()).set_entry_point("pid")

    async def nest() -> list[int]:
        return [os.getpid(), await inner.execute()]

    def nest_sync() -> list[int]:
        return [os.getpid(), inner.run_sync()]

    here, nested = (
        await Workflow("outer", executor=outer).add_node("nest", nest if is_async else nest_sync).set_entry_point("nest").execute()
    )
    assert here == nested
    assert (here == os.getpid()) is (outer == "inline")
    assert await inner.execute() != os.getpid()  # outside a step it is the cluster that this process is connected to


async def test_an_error_keeps_what_it_was_raised_from_and_what_its_class_makes_of_its_arguments():
    class Weird(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(f"{code}: {text}")
            self.code = code

    def body() -> None:
        try:
            raise ZeroDivisionError("by zero")
        except ZeroDivisionError as error:
            raise Weird(7, "bad") from error

    with pytest.raises(StepFailed, match="Weird: 7: bad") as caught:
        await flow("weird").add_node("a", body).set_entry_point("a").execute()
    cause = caught.value.__cause__
    assert (type(cause).__name__, str(cause), cause.code) == ("Weird", "7: bad", 7)
    assert isinstance(cause.__cause__, ZeroDivisionError)
    assert "raised in a worker" in cause.__notes__[0]
